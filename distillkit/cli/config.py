"""Hydra's side of the command line: words become a configuration, which Lightning is handed."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from distillkit.cli.catalogue import conf_dirs, file_of, places_of
from distillkit.cli.grammar import overrides
from distillkit.cli.messages import no_group
from distillkit.cli.refusals import HANDED_OVER, refuse_unknown
from distillkit.errors import UsageError, one_line

UNFIT = {  # what Hydra says of choices that do not go together, and what to say instead
    r"Could not override '(\w+)'": "this run has no {0}: leave {0}=... out",
    r"Multiple values for (\w+)": "two of the choices name a {0} each, so they do not go together: change one of them",
    r"Error resolving interpolation '\$\{\w*recipe": "a run needs a domain and a method: say domain=... method=...",
}


def compose(words: Sequence[str]) -> tuple[Any, dict[str, str]]:
    """The composed configuration and the choice made in every group.

    The configuration is a DictConfig whose interpolations are not yet resolved.
    """
    changes, places = overrides(words), places_of(words)
    cfg, choices = composed(changes, places)
    cfg = _reached(cfg, changes, places)
    refuse_unknown(cfg, words)
    return cfg, choices


def composed(changes: Sequence[str], places: tuple[str, ...]) -> tuple[Any, dict[str, str]]:
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
    cfg, _ = composed([change for change in changes if change not in deep], places)
    OmegaConf.set_struct(cfg, False)
    for node in alone:
        if OmegaConf.is_dict(brought := OmegaConf.select(cfg, node)):
            OmegaConf.update(cfg, node, brought.copy(), merge=False)
    for change in OverridesParser.create().parse_overrides(deep):
        OmegaConf.update(cfg, change.key_or_group, change.value(), merge=True, force_add=True)
    return cfg


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


def recipe_of(folder: str, method: str, places: tuple[str, ...] = ()) -> str:
    """The recipe of a method in a folder (a domain, or DOMAIN/STAGE).

    It is its own, else that of the method it builds on. It need not exist.
    """
    for name in _lineage(method, places):
        if file_of("recipe", f"{folder}/{name}", places):
            return f"{folder}/{name}"
    return f"{folder}/{method}"


def further_recipe(domain: str, stage: str, teacher: str, method: str, places: tuple[str, ...] = ()) -> str:
    """The recipe of a method with a domain's teacher, else at its stage; it need not exist."""
    own = recipe_of(f"{domain}/{teacher}", method, places)
    return own if file_of("recipe", own, places) else recipe_of(f"{domain}/{stage}", method, places)


@cache
def _lineage(method: str, places: tuple[str, ...]) -> tuple[str, ...]:
    """A method, and the methods that its yaml builds on."""
    from omegaconf import OmegaConf

    if (file := file_of("method", method, places)) is None:
        return (method,)
    with hydra_errors():
        below = OmegaConf.to_container(read(file)).get("defaults") or ()
    bases = [entry for entry in below if isinstance(entry, str) and entry != "_self_"]
    return (method, *(name for base in bases for name in _lineage(base, places)))


@cache
def read(file: Path) -> Any:
    """The content of a configuration file, which is read once."""
    from omegaconf import OmegaConf

    return OmegaConf.load(file)


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
