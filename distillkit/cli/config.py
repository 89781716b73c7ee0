"""Hydra's side of the command line: where configurations live and how words change them.

Hands the composed configuration to Lightning.

Listing the groups needs the standard library only, composing needs Hydra: nothing is imported
before that.
"""

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from distillkit.cli.messages import no_group
from distillkit.errors import UsageError, did_you_mean, one_line

HANDED_OVER = ("model", "data", "trainer", "seed_everything")
SCRATCH = ("vars", "teacher", "network", "student", "fake_score")
SEARCH_PATH = "hydra.searchpath="
# class paths of earlier versions to those of now; in MOVED_TOKENS for discrete diffusion
MOVED = {
    "distillkit.logger.MetricsLogger": "distillkit.report.logger.MetricsLogger",
    "distillkit.methods.lsd.LSDPlus": "distillkit.methods.lsd.LSD with learn_times: true",
}
MOVED_TOKENS = {
    "distillkit.methods.lsd.LSDPlus": "distillkit.methods.lsd_tokens.LSDTokens with learn_times: true",
    "distillkit.methods.lsd.LSD": "distillkit.methods.lsd_tokens.LSDTokens",
    "distillkit.methods.pretrain.Pretrain": "distillkit.methods.pretrain_tokens.PretrainTokens",
}
UNFIT = {  # what Hydra says of choices that do not go together, and what to say instead
    r"Could not override '(\w+)'": "this run has no {0}: leave {0}=... out",
    r"Multiple values for (\w+)": "two of the choices name a {0} each, so they do not go together: change one of them",
    r"Error resolving interpolation '\$\{\w*recipe": "a run needs a domain and a method: say domain=... method=...",
}
GONE = {  # choices of earlier versions
    "teacher=discrete_folder": "teacher=folder",
    "teacher=wan": "teacher=diffusers",
    "teacher=cogvideox": "teacher=diffusers",
}


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


def target(method: str, words: Sequence[str] = ()) -> str:
    """The class path of a method, without a domain's recipe; empty if its yaml does not compose."""
    places = tuple(words)
    try:
        with hydra_errors():
            parts = _parts("method", method, places)
        if parts is None:
            return str(compose([*places, f"method={method}", "~recipe"])[0].model._target_)
    except UsageError:
        return ""
    found = [part.keys.model._target_ for part in parts if "_target_" in (part.keys.get("model") or {})]
    return str(found[-1]) if found else ""


def word_of(choices: Mapping[str, str], tokens: Sequence[str]) -> str | None:
    """The method that was chosen; None if there is none, or a word or flag gives another class."""
    another = any(re.match(r"(\++|--)?model(\.(_target_|class_path))?(=|$)", token) for token in tokens)
    return None if another else choices.get("method")


def _comment(group: str, choice: str, words: Sequence[str]) -> list[str]:
    """The lines of the comment at the top of a configuration file, without `@package`."""
    if (file := _path(group, choice, words)) is None:
        return []
    lines = takewhile(lambda line: line.startswith("#"), file.read_text(encoding="utf-8").splitlines())
    return [line.lstrip("# ").strip() for line in lines if "@package" not in line]


def _path(group: str, choice: str, words: Sequence[str]) -> Path | None:
    """The file of a choice, ours before those of others."""
    return next((file for top in conf_dirs(words) if (file := top / group / f"{choice}.yaml").is_file()), None)


def read_choice(group: str, choice: str, words: Sequence[str] = ()) -> dict[str, Any]:
    """The keys in the file of a choice that Hydra does not compose."""
    from distillkit.files import read_yaml

    return read_yaml(_path(group, choice, words))


def to_override(word: str, known: dict[str, list[str]]) -> str:
    """`++a.b=c` for `a.b=c`, so that Hydra admits keys that only a signature has.

    LightningCLI checks these keys.
    """
    if word.startswith(("+", "~")):
        return word
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise UsageError(f"cannot read {word!r}: write key=value, such as {_instead(word, known)}")
    if key.startswith(("hydra.", "hydra/")) or "/" in key or "@" in key:
        return word
    if key not in known:
        return f"++{word}"
    lie = "conf/recipe/DOMAIN/METHOD.yaml is taken by itself, recipe=DOMAIN/METHOD takes another"
    there = lie if key == "recipe" else f"there are: {', '.join(known[key]) or 'none yet'}"
    if not value:
        raise UsageError(f"{key}= chooses nothing; {there}")
    for choice in value.split(","):
        if mend := GONE.get(f"{key}={choice}"):
            raise UsageError(f"{key}={choice} is {mend} now, which tells by the folder what it holds")
        if choice not in known[key] and re.fullmatch(r"[^\[({$'\"]+", choice) and choice != "null":
            wanted = (
                f"; a folder is {key}=folder {key}.path={choice}" if "folder" in known[key] and "/" in choice else ""
            )
            raise UsageError(f"no {key} {choice!r}{did_you_mean(choice, known[key])}; {there}{wanted}")
    return word


def _instead(word: str, known: dict[str, list[str]]) -> str:
    """A suggestion for a word without a key or a value."""
    if word in known:
        return f"{word}={(known[word] or ['CHOICE'])[0]}"
    homes = [f"{group}={word}" for group, names in known.items() if word in names]
    return " or ".join(homes) or "domain=toy"


def quoted(text: str) -> str:
    """The text in quotes, which Hydra's grammar and OmegaConf's interpolation leave as it is."""
    text = re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + r"\${", text)
    return '"' + re.sub(r'(\\*)("|\Z)', lambda match: 2 * match[1] + (r"\"" if match[2] else ""), text) + '"'


def on_disk(value: str) -> str | None:
    """The value as a path if it is one: of something that exists, or with a `~`, expanded."""
    return value if os.path.exists(value) else home if (home := os.path.expanduser(value)) != value else None


def as_it_stands(word: str, known: dict[str, list[str]]) -> str:
    """The word `a.b=PATH` with the path quoted; in a sweep `a.b=PATH,PATH` with each of them.

    A number is a path only under a key that asks for one: a folder called 4 does not change
    trainer.max_steps=4.
    """
    key, equals, value = word.partition("=")
    if not equals or key.lstrip("+") in known or word.startswith("~") or re.search("[/@]|^hydra[.]", key):
        return word
    if re.fullmatch(r"[-+\d.,_e]+|null|true|false", value, re.IGNORECASE) and not re.search("(path|root)$", key):
        return word
    paths = [on_disk(value)]
    if paths == [None] and "," in value:
        paths = [on_disk(part) for part in value.split(",")]
    return word if None in paths else f"{key}={','.join(map(quoted, paths))}"


def overrides(words: Sequence[str], sweep: bool = False) -> list[str]:
    """All words as Hydra's overrides, and one search path for the configuration folders of others.

    Args:
        sweep: whether a word may list several values.
    """
    known, others = groups(words), conf_dirs(words)[1:]
    words = [word for word in words if not word.lstrip("+").startswith(SEARCH_PATH)]
    changes = [to_override(as_it_stands(word, known), known) for word in words]
    for word, change in zip(words, changes, strict=True):
        check(word, change, known, sweep)
    return changes + ([f"{SEARCH_PATH}[{','.join(quoted(f'file://{folder}') for folder in others)}]"] if others else [])


def check(word: str, change: str, known: dict[str, list[str]], sweep: bool) -> None:
    """Refuse a word that Hydra's grammar does not take; the error gives the one to type."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parse = OverridesParser.create().parse_override
    key, _, value = word.partition("=")
    try:
        several = parse(change).is_sweep_override()
    except HydraException as error:
        try:
            parse(f"{key}=x")
        except HydraException:
            raise UsageError(f"cannot read {word!r}: write key=value, such as model.num_steps=4") from error
        typed = shlex.quote(f"{key}={quoted(value)}")
        raise UsageError(f"cannot read {word!r}: to have the value as it stands, type {typed}") from error
    if several and not sweep:
        listed = f", or write {shlex.quote(f'{key}=[{value}]')} for a list"
        plain = key.lstrip("+") not in known and "(" not in value
        raise UsageError(f"{word} lists several values: add -m to run them all{listed if plain else ''}")


def listing(changes: Sequence[str]) -> int:
    """The number of Hydra's overrides that list several values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return sum(each.is_sweep_override() for each in OverridesParser.create().parse_overrides([*changes]))


@contextmanager
def hydra_errors() -> Iterator[None]:
    """Turns Hydra's and OmegaConf's errors into one sentence."""
    from hydra.errors import HydraException
    from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException
    from yaml import YAMLError

    try:
        yield
    except YAMLError as error:
        raise UsageError(f"a configuration file is not readable as yaml: {one_line(error)}") from error
    except RecursionError as error:
        raise UsageError("a configuration file builds on itself: take it out of its own defaults") from error
    except MissingMandatoryValue as error:
        raise UsageError(f"{error.full_key} has no default: say {error.full_key}=...") from error
    except InterpolationKeyError as error:
        if (match := re.match(r"Interpolation key '(([\w@]+)\.[\w.]+)' not found", str(error))) is None:
            raise UsageError(one_line(str(error).partition("\n")[0])) from error
        mend = f"choose another {match[2]}=..., or give {error.full_key}=..."
        mend = f"give {match[1]}=..." if match[2] == "vars" else mend
        raise UsageError(f"{error.full_key} is {match[1]}, which this run does not have: {mend}") from error
    except (HydraException, OmegaConfBaseException) as error:
        if match := re.match(r"Error merging override \++([^=]+)=(.*)", str(error)):
            raise UsageError(no_group(match[1], (), match[2])) from error
        for pattern, mend in UNFIT.items():
            if match := re.match(pattern, str(error)):
                raise UsageError(mend.format(*match.groups())) from error
        said = str(error).partition("Config search path:")[0]
        lines = [line for line in said.splitlines() if not line.strip().startswith(("full_key", "object_type", "See "))]
        raise UsageError(one_line(" ".join(lines))) from error
    except ValueError as error:
        if "Config group override" in str(error):
            raise UsageError("null is no choice of a group: '~GROUP' leaves one out") from error
        raise


def register_resolvers(places: Sequence[str] = ()) -> None:
    """Register `recipe_of` and `further_recipe`, which config.yaml asks for.

    Args:
        places: words with further configuration folders.
    """
    from omegaconf import OmegaConf

    def find(folder: str, method: str) -> str:
        return recipe_of(folder, method, tuple(places))

    def further(domain: str, stage: str, teacher: str, method: str) -> str:
        return further_recipe(domain, stage, teacher, method, tuple(places))

    OmegaConf.register_new_resolver("recipe_of", find, replace=True)
    OmegaConf.register_new_resolver("further_recipe", further, replace=True)


@contextmanager
def hydra_over(places: Sequence[str] = ()) -> Iterator[None]:
    """Hydra over the configurations. Errors are one sentence.

    Args:
        places: words with further configuration folders.
    """
    from hydra import initialize_config_dir

    register_resolvers(places)
    with hydra_errors(), initialize_config_dir(str(conf_dirs()[0]), version_base="1.3"):
        yield


def compose(words: Sequence[str]) -> tuple[Any, dict[str, str]]:
    """The composed configuration and the choice made in every group.

    The configuration is a DictConfig whose interpolations are not yet resolved.
    """
    changes, places = overrides(words), places_of(words)
    cfg, choices = _compose(changes, places)
    cfg = _reached(cfg, changes, places)
    refuse_unknown(cfg, words)
    return cfg, choices


def places_of(words: Sequence[str]) -> tuple[str, ...]:
    """The words that name further configuration folders."""
    return tuple(word for word in words if word.lstrip("+").startswith(SEARCH_PATH))


def _compose(changes: Sequence[str], places: tuple[str, ...]) -> tuple[Any, dict[str, str]]:
    """The configuration that Hydra composes of its overrides, unchecked, and the choices."""
    from hydra import compose
    from omegaconf import open_dict

    with hydra_over(places):
        cfg = compose("config", changes, return_hydra_config=True)
    made = cfg.hydra.runtime.choices.items()
    choices = {group: name for group, name in made if name and not re.search("^hydra/|@", group)}
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, choices


def _reached(cfg: Any, changes: Sequence[str], places: tuple[str, ...]) -> Any:
    """The configuration with words that reach into the value of an interpolation.

    An example is model.student_times.mean. Hydra does not merge such a word into the value, so that
    is done here. A word that names a class, model.student_times._target_, replaces the value.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    deep = [change for change in changes if re.match(r"\++(model|data)\.\w+\.", change)]
    nodes = dict.fromkeys(".".join(change.lstrip("+").split(".")[:2]) for change in deep)
    said = {change.lstrip("+").partition("=")[0] for change in deep}
    alone = [
        node
        for node in nodes
        if f"{node}._target_" not in said
        and OmegaConf.is_dict(there := OmegaConf.select(cfg, node))
        and all(f"{node}.{key}" in said for key in there)
    ]
    if not alone:
        return cfg
    deep = [change for change in deep if change.lstrip("+").startswith(tuple(f"{node}." for node in alone))]
    cfg, _ = _compose([change for change in changes if change not in deep], places)
    OmegaConf.set_struct(cfg, False)
    for node in alone:
        if OmegaConf.is_dict(brought := OmegaConf.select(cfg, node)):
            OmegaConf.update(cfg, node, brought.copy(), merge=False)
    for change in OverridesParser.create().parse_overrides(deep):
        OmegaConf.update(cfg, change.key_or_group, change.value(), merge=True, force_add=True)
    return cfg


def recipe_of(folder: str, method: str, places: tuple[str, ...] = ()) -> str:
    """The recipe of a method in a folder (a domain, or DOMAIN/STAGE).

    It is its own, else that of the method it builds on. It need not exist.
    """
    for name in _lineage(method, places):
        if _path("recipe", f"{folder}/{name}", places):
            return f"{folder}/{name}"
    return f"{folder}/{method}"


def further_recipe(domain: str, stage: str, teacher: str, method: str, places: tuple[str, ...] = ()) -> str:
    """The recipe of a method with a domain's teacher, else at its stage; it need not exist."""
    own = recipe_of(f"{domain}/{teacher}", method, places)
    return own if _path("recipe", own, places) else recipe_of(f"{domain}/{stage}", method, places)


@cache
def _lineage(method: str, places: tuple[str, ...]) -> tuple[str, ...]:
    """A method, and the methods that its yaml builds on."""
    from omegaconf import OmegaConf

    if (file := _path("method", method, places)) is None:
        return (method,)
    with hydra_errors():
        below = OmegaConf.to_container(_read(file)).get("defaults") or ()
    bases = [entry for entry in below if isinstance(entry, str) and entry != "_self_"]
    return (method, *(name for base in bases for name in _lineage(base, places)))


class Part(NamedTuple):
    """What the file of one choice adds to the configuration.

    Args:
        group, choice: the file is conf/GROUP/CHOICE.yaml.
        keys: a DictConfig of what it adds at the top.
        how: `built on`, `chosen`, or `override`: chosen in the place of an earlier choice.
    """

    group: str
    choice: str
    keys: Any
    how: str = "built on"


@cache
def _read(file: Path) -> Any:
    """The content of a configuration file, which is read once."""
    from omegaconf import OmegaConf

    return OmegaConf.load(file)


def pair(domain: str, method: str, words: Sequence[str] = ()) -> Any:
    """The composed configuration of a domain and a method, as `compose` gives it.

    For many pairs: Hydra composes what all have in common once, and the files of domain, method and
    recipes are merged into it in the order of config.yaml. Files that choose groups in another way
    are left to Hydra.

    Args:
        words: those that name further configuration folders.
    """
    places = tuple(words)
    cfg, choices = _domain(domain, places)
    with hydra_errors():
        stage, teacher = (choices.get(group, "none") for group in ("stage", "teacher"))
        named = recipe_of(domain, method, places), further_recipe(domain, stage, teacher, method, places)
        recipes = [("recipe", name) for name in named]
        files = [("method", method), *(recipe for recipe in recipes if _path(*recipe, places))]
        merged = _merged(cfg, choices, [_parts(*file, places) for file in files], places)
    if merged is None or merged[1].get("stage") != choices.get("stage"):  # which has recipes too
        return compose([*words, f"domain={domain}", f"method={method}"])[0]
    refuse_unknown(merged[0], words)
    return merged[0]


@cache
def _domain(domain: str, places: tuple[str, ...]) -> tuple[Any, dict[str, str]]:
    """A domain's configuration without method and recipe, and the choices made in its groups."""
    cfg, choices = _common(places)
    parts = _parts("domain", domain, places)
    later = {"student", "fake_score", "method", "recipe", "experiment"}  # than the domain in config.yaml
    merged = None
    if not any(later & {part.group, *part.keys} for part in parts or ()):
        with hydra_errors():
            merged = _merged(cfg, choices, [parts], places)
    return merged or _without_method(f"domain={domain}", places)


@cache
def _common(places: tuple[str, ...]) -> tuple[Any, dict[str, str]]:
    """What the configurations of all domains have in common."""
    return _without_method("~domain", places)


def _without_method(domain: str, places: tuple[str, ...]) -> tuple[Any, dict[str, str]]:
    """The configuration and the choices that Hydra makes of a word about the domain alone."""
    from omegaconf import OmegaConf

    alone = [domain, "~method", "recipe=none", "recipe@_global_=none"]
    cfg, choices = _compose([*alone, *overrides(places)], places)
    OmegaConf.set_struct(cfg, False)
    return cfg, choices


def _merged(
    cfg: Any, choices: dict[str, str], files: Sequence[tuple[Part, ...] | None], places: tuple[str, ...]
) -> tuple[Any, dict[str, str]] | None:
    """A configuration and its choices with further files; None if only Hydra can tell."""
    from omegaconf import OmegaConf

    if None in files:
        return None
    added: list[Any] = []
    for part in [part for parts in files for part in parts]:
        if part.how == "chosen" and part.group in choices:
            return None
        if part.how == "override":  # no other file may have a say in what is replaced
            old = _parts(part.group, choices.get(part.group, ""), places) or ()
            if [{*one.keys} for one in old] != [{part.group}] or any(part.group in keys for keys in added):
                return None
            if OmegaConf.to_container(cfg).get(part.group) != OmegaConf.to_container(old[0].keys)[part.group]:
                return None
            cfg = OmegaConf.masked_copy(cfg, [key for key in cfg if key != part.group])
        added.append(part.keys)
        choices = {**choices, part.group: part.choice}
    return OmegaConf.merge(cfg, *added), choices


@cache
def _parts(group: str, choice: str, places: tuple[str, ...]) -> tuple[Part, ...] | None:
    """The parts of a choice's file and of those that it builds on or chooses, in order.

    None if only Hydra can tell.
    """
    from omegaconf import OmegaConf

    if (file := _path(group, choice, places)) is None:
        return None
    with hydra_errors():
        keys = _read(file).copy()
    if not OmegaConf.is_dict(keys) or "hydra" in keys:
        return None
    package = re.findall(r"@package (\S+)", file.read_text(encoding="utf-8"))
    entries = OmegaConf.to_container(keys.pop("defaults", OmegaConf.create([])))
    if not package and not entries and "/" not in group + choice:
        return (Part(group, choice, OmegaConf.create({group: keys})),)
    if package != ["_global_"]:
        return None
    parts: list[Part] = []
    for entry in entries[:-1] if entries[-1:] == ["_self_"] else entries:
        what, chosen = (
            next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (f"/{group}", entry)
        )
        match = re.fullmatch(r"(override )?/(\w+)", what)
        below = _parts(match[2], chosen, places) if match and isinstance(chosen, str) else None
        if below is None:
            return None
        if isinstance(entry, dict):
            below = (*below[:-1], below[-1]._replace(how="override" if match[1] else "chosen"))
        parts += below
    return (*parts, Part(group, choice, keys))


def refuse_unknown(cfg: Any, words: Sequence[str]) -> None:
    """Refuse unknown keys at the top and under `vars`, and parts that are no class."""
    from omegaconf import OmegaConf

    for key in map(str, cfg):
        if key not in (*HANDED_OVER, *SCRATCH):
            refuse_top(key, cfg, words)
    plain = OmegaConf.to_container(cfg, resolve=False)
    refuse_moved(plain, "your configuration")
    for part, group in {"model": "method", "data": "data"}.items():
        node = plain.get(part)
        followed = node is None or (isinstance(node, str) and "${" in node)
        if not followed and not (isinstance(node, dict) and node.get("_target_")):
            raise UsageError(f"{part} is no class: choose one with {group}=..., or give {part}._target_=PACKAGE.CLASS")
    if not isinstance(plain.get("vars"), dict):
        raise UsageError(f"vars holds further keys, such as vars.callbacks, and cannot be {plain.get('vars')!r}")
    refuse_unread(cfg, plain, words)
    for kind in ("callbacks", "logger"):
        refuse_no_classes(kind, plain["vars"].get(kind))


def refuse_top(key: str, cfg: Any, words: Sequence[str]) -> None:
    """Refuse a key at the top that no part of the run reads."""
    known = groups(words)
    names = sorted({*HANDED_OVER, *SCRATCH, *known})
    typed = next((w for word in words if (w := word.lstrip("+").partition("=")[0]).startswith(f"{key}.")), key)
    if key in known and typed != key:
        raise UsageError(f"{typed} sets nothing: {key}=... chooses a file, and its keys are set by their own names")
    if key in known:
        package = f"vars.{key}" if key in ("callbacks", "logger") else "_global_"
        raise UsageError(f"a file of {key} reaches no part of the run: begin it with '# @package {package}'")
    deeper = [name for name in typed_keys(cfg) if name.endswith(f".{typed}")]
    near = f" (did you mean {' or '.join(map(repr, deeper[:3]))}?)" if deeper else did_you_mean(key, names)
    raise UsageError(f"no key {key!r} at the top{near}; there are: {', '.join(names)}")


def refuse_unread(cfg: Any, plain: dict[str, Any], words: Sequence[str]) -> None:
    """Refuse words under `vars` that no interpolation in use reads."""
    said = {match[1]: match[0] for word in words if (match := re.match(r"vars\.(\w+)[^=]*", word.lstrip("+")))}
    if "student_network" in said:
        raise UsageError(
            "vars.student_network is now said with makers: student=fresh network=... (and fake_score=fresh)"
        )
    read, text = {"callbacks", "logger"}, str({key: node for key, node in plain.items() if key != "vars"})
    while more := {*re.findall(r"\bvars\.(\w+)", text)} - read:
        read |= more
        text = str([plain["vars"].get(name) for name in more])
    for name, key in said.items():
        if name not in read:
            deeper = [other for other in typed_keys(cfg) if other.endswith(f".{name}")]
            near = f" (did you mean {' or '.join(map(repr, deeper[:3]))}?)" if deeper else ""
            raise UsageError(f"nothing in this run reads {key}{near or did_you_mean(name, read, 'vars.')}")


def refuse_no_classes(kind: str, parts: Any) -> None:
    """Refuse callbacks, or loggers, that are no class."""
    if not isinstance(parts, dict):
        raise UsageError(f"vars.{kind} holds one key for each part, such as vars.{kind}.NAME, and cannot be {parts!r}")
    whole = [name for name, part in parts.items() if isinstance(part, dict) and part.get("_target_")]
    for name in parts.keys() - whole:
        near = did_you_mean(name, whole, f"vars.{kind}.")
        leave = f"; '~vars.{kind}.{name}' leaves it out" if parts[name] is None else ""
        there = f"; there are: {', '.join(whole) or 'none'}{leave}"
        raise UsageError(f"vars.{kind}.{name} has no _target_, the class to build{near}{there}")


def refuse_moved(plain: dict[str, Any], where: str) -> None:
    """Refuse class paths that earlier versions wrote, with the new ones, all of them at once."""
    made_of = str([plain.get("model"), plain.get("teacher")])  # a callback of that name says nothing about the model
    on_tokens = re.search(r"'(class_path|_target_)': '(distillkit|domains)\.discrete\.", made_of)
    moved, said = MOVED | MOVED_TOKENS if on_tokens else MOVED, str(plain)
    found = [f"{old} is {moved[old]}" for old in moved if re.search(rf"(?<![\w.]){re.escape(old)}(?![\w.])", said)]
    if found:
        raise UsageError(f"{' and '.join(found)} now: change {'it' if len(found) == 1 else 'them'} in {where}")


def typed_keys(cfg: Any) -> list[str]:
    """Every key that words may set, including those that only a chosen class's signature has."""
    from omegaconf import OmegaConf

    from distillkit.cli.messages import keys_of

    found = [f"trainer.{key}" for key in keys_of("lightning.pytorch.Trainer")]
    plain = OmegaConf.to_container(cfg, resolve=False)
    for part in ("model", "data", "teacher", "network"):
        if isinstance(plain.get(part), dict):
            found += [f"{part}.{key}" for key in dict.fromkeys((*plain[part], *keys_of(plain[part].get("_target_"))))]
    return found


def as_typed(message: str, cfg: Any) -> str:
    """A message about Lightning's configuration, with keys as words set them.

    For example `teacher.path` for `model.teacher.path`.
    """
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(cfg, resolve=False)

    def source(node: Any) -> str | None:
        """The key at the end of a chain of interpolations."""
        found = None
        while isinstance(node, str) and (match := re.fullmatch(r"\$\{([\w.]+)\}", node)):
            found, node = match[1], plain
            for name in found.split("."):
                node = node.get(name) if isinstance(node, dict) else None
        return found

    for part in ("model", "data", "student", "fake_score"):  # these two are reached from the first
        for key, node in (plain.get(part) or {}).items():
            if there := source(node):
                message = re.sub(rf"(?<![\w.]){part}\.{key}(?=\.\w)", there, message)
    for kind in ("callbacks", "logger"):
        if match := re.search(rf"(?<![\w.])trainer\.{kind}\.(\w+)", message):
            homes = [name for name, node in plain["vars"][kind].items() if isinstance(node, dict) and match[1] in node]
            if len(homes) == 1:
                message = re.sub(rf"(?<![\w.])trainer\.{kind}(?=\.\w)", f"vars.{kind}.{homes[0]}", message)
    return message


def unused(cfg: Any, words: Sequence[str]) -> list[str]:
    """Scratch keys in words that no interpolation reads, such as a teacher for `pretrain`."""
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


def hand_over(cfg: Any, parts: Sequence[str] = HANDED_OVER) -> dict[str, Any]:
    """The composed configuration, or `parts` of it, as LightningCLI takes it.

    Interpolations are resolved, scratch keys dropped.
    """
    from omegaconf import OmegaConf

    with hydra_errors():
        plain = OmegaConf.to_container(cfg, resolve=False)
        for key in parts:  # the scratch may stay incomplete where nothing reads it
            if OmegaConf.is_config(cfg.get(key)):
                plain[key] = OmegaConf.to_container(cfg[key], resolve=True, throw_on_missing=True)
    return to_class_path({key: value for key, value in plain.items() if key in parts})


def text(handed: dict[str, Any]) -> str:
    """JSON that LightningCLI's YAML reads back; surrogate pairs become one sign."""
    return re.sub(r"\\ud[89ab]..\\ud[c-f]..", lambda pair: json.loads(f'"{pair[0]}"'), json.dumps(handed))
