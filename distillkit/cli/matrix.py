"""`list`: domains, methods, and which go together."""

import inspect
import json
from collections.abc import Sequence
from functools import cache

from distillkit import capabilities
from distillkit.cli import config, declarations
from distillkit.errors import Arguments, UsageError, one_line


def show(args: Sequence[str]) -> None:
    """Domains, methods, and which go together."""
    parser = Arguments("python -m distillkit list", description="Show domains, methods, and which go together.")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("words", nargs="*", metavar="hydra.searchpath=[...]", help="configuration folders of your own")
    options = parser.parse_args(args)
    places = tuple(options.words)
    if other := [word for word in places if not word.lstrip("+").startswith(config.SEARCH_PATH)]:
        raise UsageError(
            f"list: {other[0]!r} changes nothing here; what list takes is {config.SEARCH_PATH}[file://FOLDER]"
        )
    known = config.groups(places)
    domains = {name: config.describe("domain", name, places) for name in known.get("domain", ())}
    methods = {name: config.describe("method", name, places) for name in known.get("method", ())}
    for method in methods:
        methods[method] = methods[method] or about(method, next(iter(domains), ""), places)
    matrix = {domain: {method: compatibility(domain, method, places) for method in methods} for domain in domains}
    if options.json:
        print(json.dumps({"domains": domains, "methods": methods, "matrix": matrix}, indent=1))
        return

    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for title, rows in (("domain", domains), ("method", methods)):
        table = Table(title, "what it is", box=None, title_justify="left", padding=(0, 2, 0, 0))
        for name, text in rows.items():
            table.add_row(name, text or "-")
        console.print(table)
        console.print()
    table = Table("", *domains, box=None, padding=(0, 2, 0, 0))
    reasons: dict[str, int] = {}
    for method in methods:
        cells = []
        for domain in domains:
            reason = matrix[domain][method]
            cells.append("yes" if reason is None else f"no [{reasons.setdefault(reason, len(reasons) + 1)}]")
        table.add_row(method, *(cell.replace("[", r"\[") for cell in cells))
    console.print(table)
    for reason, number in reasons.items():
        console.print(f"[{number}] {reason}", markup=False)
    console.print("\nrun one: python -m distillkit fit domain=DOMAIN method=METHOD", markup=False)


@cache
def compatibility(domain: str, method: str, places: tuple[str, ...] = ()) -> str | None:
    """Why a method cannot be used in a domain with its default teacher and data; None if it can.

    `places` are words with further configuration folders.
    """
    try:
        handed = config.hand_over(config.pair(domain, method, places), ("model", "data"))
    except UsageError as error:
        return f"{method} does not compose with {domain}: {one_line(error)}"
    try:
        return capabilities.gap(handed, declarations.read)
    except Exception as error:
        return f"{method} in {domain} cannot be imported: {type(error).__name__}: {one_line(error)}"


def about(method: str, domain: str, places: Sequence[str] = ()) -> str:
    """The first line of a method's class: what to say when its yaml says nothing."""
    try:
        path = config.pair(domain, method, places).model._target_
        return inspect.getdoc(declarations.read(path)).splitlines()[0]
    except Exception:
        return ""
