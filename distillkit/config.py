"""Hydra's side of the command line: where configurations live, how words change them, how Lightning gets them.

Listing the groups needs the standard library only, composing needs Hydra: nothing is imported before that.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distillkit.errors import UsageError, did_you_mean, one_line

HANDED_OVER = ("model", "data", "trainer", "seed_everything")
SCRATCH = ("vars", "teacher", "network")
SEARCH_PATH = "hydra.searchpath="


def conf_dirs(words: Sequence[str] = ()) -> list[Path]:
    """Our own conf (in a wheel beside this file, else at the top of the checkout), then those of others.

    An installed package names its folder in the entry-point group `distillkit.conf`, for example in its pyproject.toml
    `[project.entry-points."distillkit.conf"]` with `mine = "my_package.conf"`. Any other folder is reached with
    `hydra.searchpath=[file:///path/to/conf]` or `hydra.searchpath=[pkg://package.conf]`.
    """
    here = Path(__file__).resolve().parent
    found = [here / "conf" if (here / "conf").is_dir() else here.parent / "conf"]
    places = [f"pkg://{point.value}" for point in entry_points(group="distillkit.conf")]
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


def groups(words: Sequence[str] = ()) -> dict[str, list[str]]:
    """Every config group and its choices."""
    found: dict[str, set[str]] = {}
    for top in conf_dirs(words):
        for folder in top.iterdir():
            if folder.is_dir() and not folder.name.startswith(("_", ".")):
                found.setdefault(folder.name, set()).update(file.stem for file in folder.glob("*.yaml"))
    return {group: sorted(names) for group, names in sorted(found.items())}


def describe(group: str, choice: str) -> str:
    """The first comment of a configuration file (after its `@package` line): what the choice is, in a line."""
    for top in conf_dirs():
        file = top / group / f"{choice}.yaml"
        if file.is_file():
            for line in file.read_text(encoding="utf-8").splitlines():
                if not line.startswith("#"):
                    break
                if "@package" not in line:
                    return line.lstrip("# ").strip()
    return ""


def to_override(word: str, known: dict[str, list[str]]) -> str:
    """`a.b=c` becomes `++a.b=c`, so that Hydra lets through what only a signature knows; LightningCLI checks it."""
    if word.startswith(("+", "~")):
        return word
    key, equals, value = word.partition("=")
    if not equals:
        homes = [f"{group}={word}" for group, names in known.items() if word in names]
        raise UsageError(f"cannot read {word!r}: write key=value, such as {' or '.join(homes) or 'domain=toy'}")
    if key.startswith(("hydra.", "hydra/")) or "/" in key or "@" in key:
        return word
    if key not in known:
        return f"++{word}"
    for choice in value.split(","):
        if re.fullmatch(r"[\w-]+", choice) and choice != "null" and choice not in known[key]:
            there = ", ".join(known[key]) or "none yet"
            raise UsageError(f"no {key} {choice!r}{did_you_mean(choice, known[key])}; there are: {there}")
    return word


def overrides(words: Sequence[str]) -> list[str]:
    """All words as Hydra's overrides, and one search path for the configuration folders of others."""
    known, others = groups(words), conf_dirs(words)[1:]
    changes = [to_override(word, known) for word in words if not word.lstrip("+").startswith(SEARCH_PATH)]
    return changes + ([f"{SEARCH_PATH}[{','.join(f'file://{folder}' for folder in others)}]"] if others else [])


@contextmanager
def hydra_errors() -> Iterator[None]:
    """Hydra's and OmegaConf's errors as one sentence."""
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        yield
    except MissingMandatoryValue as error:
        raise UsageError(f"{error.full_key} has no default: say {error.full_key}=...") from error
    except (HydraException, OmegaConfBaseException) as error:
        text = str(error)
        if "--multirun" in text:
            word = re.search(r"'([^']+)'", text)
            what = word[1].lstrip("+") if word else "a value"
            raise UsageError(
                f"{what} lists several values: add -m to run them all, or write key=[a,b] for a list"
            ) from error
        if isinstance(error, OverrideParseException):
            raise UsageError(
                f"cannot read {error.override.lstrip('+')!r}: quote the value, such as 'key=\"a b\"'"
            ) from error
        kept = [line for line in text.splitlines() if not line.strip().startswith(("full_key", "object_type", "See "))]
        raise UsageError(one_line(" ".join(kept))) from error


def compose(words: Sequence[str]) -> tuple[Any, dict[str, str]]:
    """The composed configuration (a DictConfig, interpolations not yet followed) and the choice made in every group."""
    changes = overrides(words)
    from hydra import compose, initialize_config_dir
    from omegaconf import open_dict

    with hydra_errors(), initialize_config_dir(str(conf_dirs()[0]), version_base="1.3"):
        cfg = compose("config", changes, return_hydra_config=True)
    choices = {k: v for k, v in cfg.hydra.runtime.choices.items() if not k.startswith("hydra/") and v}
    with open_dict(cfg):
        del cfg["hydra"]
    scratch = {*SCRATCH, *groups(words)}
    for key in map(str, cfg):
        if key not in scratch and key not in HANDED_OVER:
            names = sorted({*HANDED_OVER, *scratch})
            raise UsageError(f"no key {key!r} at the top{did_you_mean(key, names)}; there are: {', '.join(names)}")
    return cfg, choices


def unused(cfg: Any, words: Sequence[str]) -> list[str]:
    """Scratch keys that the words speak of and no interpolation reads (a teacher, when a method takes none)."""
    from omegaconf import OmegaConf

    said = {re.split(r"[.=]", word.lstrip("+~"))[0] for word in words}
    plain = OmegaConf.to_container(cfg, resolve=False)
    return [
        key
        for key in SCRATCH[1:]
        if key in said and f"${{{key}" not in str({other: value for other, value in plain.items() if other != key})
    ]


def to_class_path(node: Any) -> Any:
    """Hydra's `{_target_, **kwargs}` to Lightning's `{class_path, init_args}`, at every depth."""
    if isinstance(node, list):
        return [to_class_path(n) for n in node]
    if not isinstance(node, dict):
        return node
    node = {k: to_class_path(v) for k, v in node.items()}
    target = node.pop("_target_", None)
    return {"class_path": target, "init_args": node} if target else node


def hand_over(cfg: Any) -> dict[str, Any]:
    """The composed configuration as LightningCLI takes it: interpolations followed, scratch dropped."""
    from omegaconf import OmegaConf

    with hydra_errors():
        plain = OmegaConf.to_container(cfg, resolve=False)
        for key in HANDED_OVER:  # the scratch may stay incomplete where nothing reads it
            if OmegaConf.is_config(cfg.get(key)):
                plain[key] = OmegaConf.to_container(cfg[key], resolve=True, throw_on_missing=True)
    return to_class_path({key: value for key, value in plain.items() if key in HANDED_OVER})
