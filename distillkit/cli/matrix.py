"""`list`: domains, methods, and which go together."""

import inspect
import json
from collections.abc import Iterable, Sequence
from functools import cache

from distillkit import capabilities
from distillkit.cli import catalogue, config, declarations, pairing
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
    if other := [word for word in places if not word.lstrip("+").startswith(catalogue.SEARCH_PATH)]:
        raise UsageError(
            f"list: {other[0]!r} changes nothing here; what list takes is {catalogue.SEARCH_PATH}[file://FOLDER]"
        )
    domains, methods = domains_of(places), methods_of(places)
    if options.markdown:
        print(markdown(places), end="")
        return
    if options.json:
        matrix = {domain: {method: compatibility(domain, method, places) for method in methods} for domain in domains}
        facts = {name: dict(zip(COLUMNS, cells, strict=True)) for name, cells in methods.items()}
        about = {name: text for name, (text,) in domains.items()}
        print(json.dumps({"domains": about, "methods": facts, "matrix": matrix}, indent=1))
        return
    print_choices(domains, methods)  # before the matrix, which takes seconds
    print_matrix({method: {domain: reason(domain, method, places) for domain in domains} for method in methods})
    print("\nrun one: python -m distillkit fit domain=DOMAIN method=METHOD")


def domains_of(places: tuple[str, ...] = ()) -> Rows:
    """Every domain with its description."""
    return {name: (catalogue.describe("domain", name, places),) for name in catalogue.groups(places).get("domain", ())}


def methods_of(places: tuple[str, ...] = ()) -> Rows:
    """Every method with its paper, its class and its description; empty cells where unknown."""
    rows = {}
    for name in catalogue.groups(places).get("method", ()):
        path = pairing.target(name, places)
        text = catalogue.describe("method", name, places) or about(path)
        rows[name] = (catalogue.paper(name, places), path.rpartition(".")[2], text)
    return rows


def markdown(places: tuple[str, ...] = ()) -> str:
    """The tables of the README."""

    def table(head: Iterable[str], rows: Rows) -> str:
        lines = [head, ["---"] * len([*head]), *([f"`{name}`", *cells] for name, cells in rows.items())]
        return "".join(f"| {' | '.join(cell or '-' for cell in line)} |\n" for line in lines)

    methods = table(("method", "paper", "mechanism", "what it is"), methods_of(places))
    return f"{methods}\n{table(('domain', 'what it is'), domains_of(places))}"


def print_choices(domains: Rows, methods: Rows) -> None:
    """Print the tables of domains and of methods."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    plain = {name: (paper, text) for name, (paper, _, text) in methods.items()}
    for head, rows in ((("domain",), domains), (("method", "paper"), plain)):
        table = Table(box=None, padding=(0, 2, 0, 0))
        for title in head:
            table.add_column(title, no_wrap=True)
        table.add_column("what it is")
        for name, cells in rows.items():
            table.add_row(name, *(escaped(cell or "-") for cell in cells))
        console.print(table)
        console.print()
    console.file.flush()


def print_matrix(matrix: dict[str, dict[str, str | None]]) -> None:
    """Print where each method runs, and why not elsewhere.

    Args:
        matrix: by method and domain, the reason why it does not run there; None where it does.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("method", no_wrap=True)
    table.add_column("runs with the default teacher and data of")
    reasons: dict[str, int] = {}
    for method, column in matrix.items():
        table.add_row(method, escaped(homes(column, reasons)))
    console.print(table)
    console.print()
    for why, number in reasons.items():
        console.print(f"[{number}] {why}", markup=False)


def homes(column: dict[str, str | None], reasons: dict[str, int]) -> str:
    """Where a method runs, in words; reasons against it are numbers of `reasons`, which grow.

    Args:
        column: by domain, the reason why it does not run there; None where it does.
        reasons: numbers of the reasons so far.
    """
    by_reason: dict[str, list[str]] = {}
    for domain, why in column.items():
        if why is not None:
            by_reason.setdefault(f"[{reasons.setdefault(why, len(reasons) + 1)}]", []).append(domain)
    there = [domain for domain, why in column.items() if why is None]
    if not by_reason:
        return "all domains"
    against = [f"{' '.join(names)} {number}" for number, names in by_reason.items()]
    if len(there) > len(column) / 2:
        return f"all domains but {', '.join(against)}"
    return f"{' '.join(there) or 'none'}; not {', '.join(against)}"


def escaped(text: str) -> str:
    """The text with its brackets escaped, so that they are not read as a style."""
    return text.replace("[", r"\[")


def compatibility(domain: str, method: str, places: tuple[str, ...] = ()) -> str | None:
    """Why a method cannot be used in a domain with its default teacher and data; None if it can.

    `places` are words with further configuration folders.
    """
    return _told(domain, method, places)[0]


def reason(domain: str, method: str, places: tuple[str, ...] = ()) -> str | None:
    """As `compatibility`, in words that name no class, so that many pairs share them."""
    return _told(domain, method, places)[1]


@cache
def _told(domain: str, method: str, places: tuple[str, ...]) -> tuple[str | None, str | None]:
    """What `compatibility` and `reason` say."""
    try:
        handed = config.hand_over(pairing.pair(domain, method, places), ("model", "data"))
        return capabilities.gap(handed, declarations.read), capabilities.plainly(handed, declarations.read)
    except UsageError as error:
        if " has no default" in str(error):
            said = f"{domain} has no embedded teacher: {one_line(error)}"
        else:
            said = f"{method} does not compose with {domain}: {one_line(error)}"
    except Exception as error:
        said = f"{method} in {domain} cannot be imported: {type(error).__name__}: {one_line(error)}"
    return said, said


def about(path: str) -> str:
    """The first line of a class: the description of a method whose yaml has none."""
    try:
        return inspect.getdoc(declarations.read(path)).splitlines()[0]
    except Exception:
        return ""
