"""`compare`: runs in one table, with what they cost and what their samples are worth."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from distillkit import runs
from distillkit.errors import Arguments, UsageError, one_line
from distillkit.report.comparison import SideBySide
from distillkit.report.evaluated import Run, read, runs_in


def compare(argv: Sequence[str]) -> int:
    """`compare RUN RUN ... --out DIR`: a table, compare.csv and compare.html."""
    args = _asked(argv)
    folders, home = _folders(args.runs)
    found, left_out = read_all(folders)
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in [*left_out.items()][:4])
        raise UsageError(f"none of these runs was evaluated, so there is nothing to compare ({reasons})")
    table = SideBySide(found, args.metric)
    tell(table, [f"Left out is {name}: {reason}." for name, reason in left_out.items()])
    chosen = args.out or home
    folder = runs.claim(None, "compare") if chosen is None else chosen
    try:
        save(table, folder, left_out)
    finally:
        if chosen is None:
            runs.release(folder)
            os.environ.pop(runs.OUT, None)
    return 0


def _asked(argv: Sequence[str]) -> Namespace:
    """The arguments."""
    parser = Arguments(
        prog="distillkit compare",
        description="Show runs that were measured alike in one table and one plot. Runs that differ in their seed alone "
        "are one row, with mean and standard deviation.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run, a student, or a folder of runs")
    parser.add_argument("--metric", metavar="NAME", help="what ranks the runs (default: the headline)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for compare.html and compare.csv, which are replaced there (default: the folder of runs, if one "
        "alone is given, else runs/compare-NUMBER)",
    )
    args = parser.parse_args(argv)
    if args.out and args.out.exists() and not args.out.is_dir():
        raise UsageError(f"--out: {args.out} is a file; give a folder")
    return args


def _folders(places: Sequence[Path]) -> tuple[dict[str, Path], Path | None]:
    """Run folders by the names they are shown by, each once, and a folder of runs given alone."""
    inside = {place: runs_in(place) for place in places}
    if len(inside) == 1 and (of := next(iter(inside.values())))[0].parent == places[0]:
        return {path.name: path for path in of}, places[0]
    once = {path.resolve(): path for of in inside.values() for path in of}
    return {str(path): path for path in once.values()}, None


def read_all(folders: Mapping[str, Path]) -> tuple[list[Run], dict[str, str]]:
    """The runs that were evaluated, and why others are left out, by name."""
    found, left_out = [], {}
    for name, folder in folders.items():
        try:
            found.append(read(folder, one_line(name)))
        except OSError as error:
            left_out[one_line(name)] = f"it cannot be read ({error.strerror})"
        except ValueError as error:
            left_out[one_line(name)] = one_line(error).rstrip(".")
    return found, left_out


def tell(table: SideBySide, more: Iterable[str] = ()) -> None:
    """Print the table, then what it cannot show, and more sentences."""
    from rich.console import Console

    from distillkit.report.comparison_page import console_table

    console = Console(highlight=False)
    console.print(console_table(table))
    for sentence in [*table.notes, *more]:
        console.print(sentence, markup=False)


def save(table: SideBySide, folder: Path, left_out: Mapping[str, str]) -> None:
    """Write compare.html and compare.csv, and print where they are.

    Raises:
        Failure: the folder cannot be written to.
    """
    from distillkit.report.comparison_page import CELLS, PAGE, write

    try:
        write(table, folder, left_out)
    except OSError as error:
        raise runs.cannot_write(error, folder) from error
    print(f"comparison: {folder / PAGE}\ntable: {folder / CELLS}", flush=True)
