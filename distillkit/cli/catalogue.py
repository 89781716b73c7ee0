"""Where configurations lie, and what there is to choose: the standard library alone reads it."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any

from distillkit.errors import UsageError

SEARCH_PATH = "hydra.searchpath="


def conf_dirs(words: Sequence[str] = ()) -> list[Path]:
    """The folders of configurations: the package's own, then those of others.

    An installed package names its folder in the entry-point group `distillkit.conf`, for example in
    its pyproject.toml `[project.entry-points."distillkit.conf"]` with `mine = "my_package.conf"`.
    Any other folder is reached with `hydra.searchpath=[file:///path/to/conf]` or
    `hydra.searchpath=[pkg://package.conf]`.
    """
    found = [_own()]
    places = [f"pkg://{name}" for name in announced()]
    for word in words:
        if word.lstrip("+").startswith(SEARCH_PATH):
            places += [place.strip(" \"'") for place in word.partition("=")[2].strip("[]").split(",")]
    for place in filter(None, places):
        if place.startswith("pkg://"):
            try:
                spec = find_spec(place[len("pkg://") :])
            except ModuleNotFoundError:
                spec = None
            folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or []]
        else:
            folders = [Path(place.removeprefix("file://")).absolute()]
        if not any(folder.is_dir() for folder in folders):
            raise UsageError(f"there is no configuration folder {place}")
        found += folders
    return found


@cache
def _own() -> Path:
    """The folder of the own configurations: in a wheel in the package, else in the checkout."""
    here = Path(__file__).resolve().parents[1]
    return here / "conf" if (here / "conf").is_dir() else here.parent / "conf"


@cache
def announced() -> tuple[str, ...]:
    """The configuration packages that installed packages announce."""
    return tuple(point.value for point in entry_points(group="distillkit.conf"))


def places_of(words: Sequence[str]) -> tuple[str, ...]:
    """The words that name further configuration folders."""
    return tuple(word for word in words if word.lstrip("+").startswith(SEARCH_PATH))


def groups(words: Sequence[str] = ()) -> dict[str, list[str]]:
    """Every config group and its choices; a choice of `recipe` is DOMAIN/METHOD."""
    found: dict[str, set[str]] = {}
    for top in conf_dirs(words):
        for folder in top.iterdir():
            if folder.is_dir() and not folder.name.startswith(("_", ".")):
                files = folder.rglob("*.yaml") if folder.name == "recipe" else folder.glob("*.yaml")
                names = {file.relative_to(folder).with_suffix("").as_posix() for file in files}
                found.setdefault(folder.name, set()).update(names)
    return {group: sorted(names) for group, names in sorted(found.items())}


def describe(group: str, choice: str, words: Sequence[str] = ()) -> str:
    """The first line of a configuration file's comment, which describes the choice."""
    return next(iter(_comment(group, choice, words)), "")


def paper(method: str, words: Sequence[str] = ()) -> str:
    """The source of a method: `paper: ...` in the comment of its yaml; empty if there is none."""
    lines = _comment("method", method, words)
    return next((line.removeprefix("paper:").strip() for line in lines if line.startswith("paper:")), "")


def _comment(group: str, choice: str, words: Sequence[str]) -> list[str]:
    """The lines of the comment at the top of a configuration file, without `@package`."""
    if (file := file_of(group, choice, words)) is None:
        return []
    lines = takewhile(lambda line: line.startswith("#"), file.read_text(encoding="utf-8").splitlines())
    return [line.lstrip("# ").strip() for line in lines if "@package" not in line]


def file_of(group: str, choice: str, words: Sequence[str]) -> Path | None:
    """The file of a choice, ours before those of others."""
    return next((file for top in conf_dirs(words) if (file := top / group / f"{choice}.yaml").is_file()), None)


def read_choice(group: str, choice: str, words: Sequence[str] = ()) -> dict[str, Any]:
    """The keys in the file of a choice that Hydra does not compose."""
    from distillkit.files import read_yaml

    return read_yaml(file_of(group, choice, words))


def word_of(choices: Mapping[str, str], tokens: Sequence[str]) -> str | None:
    """The method that was chosen; None if there is none, or a word or flag gives another class."""
    another = any(re.match(r"(\++|--)?model(\.(_target_|class_path))?(=|$)", token) for token in tokens)
    return None if another else choices.get("method")
