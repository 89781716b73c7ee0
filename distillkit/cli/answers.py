"""`sample --input`: a sample for each file of a user's."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from pathlib import Path

from distillkit.codec import Answering
from distillkit.errors import Failure, UsageError
from distillkit.progress import progress
from distillkit.sources import Source, listed
from distillkit.students.base import Student


def answer(student: Student, args: Namespace, out: Path) -> int:
    """Write the samples made for `args.input`, a file or a folder, into the folder `out`.

    A file that cannot be read is left out and named when the others are done.
    """
    try:
        asked = student.codec.answering(student, args.seed, args.kappa, args.tile, args.overlap)
        if asked is None:
            raise ValueError(f"--input {args.input}: samples of this student are made for no files: leave it out")
        files = found(args.input, asked)
    except ValueError as error:
        raise UsageError(str(error)) from error
    faults = []
    with progress("files", len(files)) as going:
        for source, target in files.items():
            try:
                asked(source, out / target)
            except ValueError as error:
                faults.append(str(error))
            except OSError as error:
                raise Failure(f"{out / target} cannot be written: {error}") from error
            going.advance()
    made = len(files) - len(faults)
    print(f"{made} of {len(files)} files made, in {out}" if made else f"nothing made in {out}")
    if faults:
        raise Failure(f"{len(faults)} of {len(files)} files left out: {listed(faults)}")
    return 0


def found(path: Path, asked: Answering) -> dict[Path, Path]:
    """The files to answer, and below `out` the paths of what is made for them.

    Names are kept with the ending of what is written; with their own too where two would be alike.
    """
    if path.is_file():
        return {path: Path(path.stem + asked.ending)}
    source = Source(path, asked.suffixes, asked.noun)
    names = {file: Path(source.name(file)) for file in source.without({})}
    targets = {file: name.with_suffix(asked.ending) for file, name in names.items()}
    while max((alike := Counter(targets.values())).values()) > 1:
        targets = {
            file: target if alike[target] == 1 else names[file].with_suffix(names[file].suffix + asked.ending)
            for file, target in targets.items()
        }
    return targets
