"""`list`: domains, methods, and which go together."""

import inspect
import json
from collections.abc import Iterable, Sequence
from functools import cache

from distillkit import capabilities
from distillkit.cli import config, declarations
from distillkit.errors import Arguments, UsageError, one_line

Rows = dict[str, tuple[str, ...]]  # name to the cells beside it
COLUMNS = ("paper", "mechanism", "about")  # of a method


def show(args: Sequence[str]) -> None:
    """Prints domains, methods, and which go together."""
    parser = Arguments("python -m distillkit list", description="Show domains, methods, and which go together.")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--markdown", action="store_true", help="the tables of the README: methods, then domains")
    parser.add_argument("words", nargs="*", metavar="hydra.searchpath=[...]", help="configuration folders of your own")
    options = parser.parse_args(args)
    places = tuple(options.words)
    if other := [word for word in places if not word.lstrip("+").startswith(config.SEARCH_PATH)]:
        raise UsageError(
            f"list: {other[0]!r} changes nothing here; what list takes is {config.SEARCH_PATH}[file://FOLDER]"
        )
    domains, methods = domains_of(places), methods_of(places)
    if options.markdown:
        print(markdown(places), end="")
        return
    matrix = {domain: {method: compatibility(domain, method, places) for method in methods} for domain in domains}
    if options.json:
        facts = {name: dict(zip(COLUMNS, cells, strict=True)) for name, cells in methods.items()}
        about = {name: text for name, (text,) in domains.items()}
        print(json.dumps({"domains": about, "methods": facts, "matrix": matrix}, indent=1))
        return
    print_tables(domains, methods, matrix)


def domains_of(places: tuple[str, ...] = ()) -> Rows:
    """Every domain with its description."""
    return {name: (config.describe("domain", name, places),) for name in config.groups(places).get("domain", ())}


def methods_of(places: tuple[str, ...] = ()) -> Rows:
    """Every method with its paper, its class and its description; empty cells where unknown."""
    rows = {}
    for name in config.groups(places).get("method", ()):
        path = config.target(name, places)
        text = config.describe("method", name, places) or about(path)
        rows[name] = (config.paper(name, places), path.rpartition(".")[2], text)
    return rows


def markdown(places: tuple[str, ...] = ()) -> str:
    """The tables of the README."""

    def table(head: Iterable[str], rows: Rows) -> str:
        lines = [head, ["---"] * len([*head]), *([f"`{name}`", *cells] for name, cells in rows.items())]
        return "".join(f"| {' | '.join(cell or '-' for cell in line)} |\n" for line in lines)

    methods = table(("method", "paper", "mechanism", "what it is"), methods_of(places))
    return f"{methods}\n{table(('domain', 'what it is'), domains_of(places))}"


def print_tables(domains: Rows, methods: Rows, matrix: dict[str, dict[str, str | None]]) -> None:
    """Print the two tables, which pairs go together, and why others do not."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for head, rows in ((("domain",), domains), (("method", "paper", "mechanism"), methods)):
        table = Table(box=None, padding=(0, 2, 0, 0))
        for title in head:
            table.add_column(title, no_wrap=True)
        table.add_column("what it is")
        for name, cells in rows.items():
            table.add_row(name, *(escaped(cell or "-") for cell in cells))
        console.print(table)
        console.print()
    table = Table("", *domains, box=None, padding=(0, 2, 0, 0))
    reasons: dict[str, int] = {}
    for method in methods:
        cells = []
        for domain in domains:
            reason = matrix[domain][method]
            cells.append("yes" if reason is None else f"no [{reasons.setdefault(reason, len(reasons) + 1)}]")
        table.add_row(method, *map(escaped, cells))
    console.print(table)
    for reason, number in reasons.items():
        console.print(f"[{number}] {reason}", markup=False)
    console.print("\nrun one: python -m distillkit fit domain=DOMAIN method=METHOD", markup=False)


def escaped(text: str) -> str:
    """The text with its brackets escaped, so that they are not read as a style."""
    return text.replace("[", r"\[")


@cache
def compatibility(domain: str, method: str, places: tuple[str, ...] = ()) -> str | None:
    """Why a method cannot be used in a domain with its default teacher and data; None if it can.

    `places` are words with further configuration folders.
    """
    try:
        handed = config.hand_over(config.pair(domain, method, places), ("model", "data"))
    except UsageError as error:
        if " has no default" in str(error):
            return f"{domain} has no embedded teacher: {one_line(error)}"
        return f"{method} does not compose with {domain}: {one_line(error)}"
    try:
        return capabilities.gap(handed, declarations.read)
    except Exception as error:
        return f"{method} in {domain} cannot be imported: {type(error).__name__}: {one_line(error)}"


def about(path: str) -> str:
    """The first line of a class: the description of a method whose yaml has none."""
    try:
        return inspect.getdoc(declarations.read(path)).splitlines()[0]
    except Exception:
        return ""
