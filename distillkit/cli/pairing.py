"""Configurations of many pairs of domain and method, without composing each of them."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from distillkit.cli.catalogue import file_of
from distillkit.cli.config import compose, composed, further_recipe, hydra_errors, read, recipe_of
from distillkit.cli.grammar import overrides
from distillkit.cli.refusals import refuse_unknown
from distillkit.errors import UsageError


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


def pair(domain: str, method: str, words: Sequence[str] = ()) -> Any:
    """The composed configuration of a domain and a method, as `compose` gives it.

    For many pairs: Hydra composes what all have in common once, and the files of domain, method and
    recipes are merged into it in the order of config.yaml. Files that choose groups in another way
    are left to Hydra.

    Args:
        words: those that name further configuration folders.
    """
    places = tuple(words)
    cfg, choices = domain_alone(domain, places)
    with hydra_errors():
        merged = _merged(cfg, choices, _files(domain, method, places), places)
    if merged is None or merged[1].get("stage") != choices.get("stage"):  # which has recipes too
        return compose([*words, f"domain={domain}", f"method={method}"])[0]
    refuse_unknown(merged[0], words)
    return merged[0]


def _files(domain: str, method: str, places: tuple[str, ...]) -> list[tuple[Part, ...] | None]:
    """The parts of the files that a method adds to a domain: its own, and those of its recipes."""
    _, choices = domain_alone(domain, places)
    stage, teacher = (choices.get(group, "none") for group in ("stage", "teacher"))
    named = recipe_of(domain, method, places), further_recipe(domain, stage, teacher, method, places)
    recipes = [("recipe", name) for name in named]
    files = [("method", method), *(recipe for recipe in recipes if file_of(*recipe, places))]
    return [parts_of(*file, places) for file in files]


def target(method: str, words: Sequence[str] = (), domain: str | None = None) -> str:
    """The class path of a method in a domain, or without recipes; empty if it does not compose."""
    places = tuple(words)
    try:
        with hydra_errors():
            files = _files(domain, method, places) if domain else [parts_of("method", method, places)]
        if None in files:
            where = [f"domain={domain}"] if domain else ["~recipe"]
            return str(compose([*places, *where, f"method={method}"])[0].model._target_)
    except UsageError:
        return ""
    models = [part.keys.get("model") or {} for parts in files for part in parts or ()]
    return str(next((model._target_ for model in reversed(models) if "_target_" in model), ""))


@cache
def domain_alone(domain: str, places: tuple[str, ...]) -> tuple[Any, dict[str, str]]:
    """A domain's configuration without method and recipe, and the choices made in its groups."""
    cfg, choices = _common(places)
    parts = parts_of("domain", domain, places)
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
    cfg, choices = composed([*alone, *overrides(places)], places)
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
            old = parts_of(part.group, choices.get(part.group, ""), places) or ()
            if [{*one.keys} for one in old] != [{part.group}] or any(part.group in keys for keys in added):
                return None
            if OmegaConf.to_container(cfg).get(part.group) != OmegaConf.to_container(old[0].keys)[part.group]:
                return None
            cfg = OmegaConf.masked_copy(cfg, [key for key in cfg if key != part.group])
        added.append(part.keys)
        choices = {**choices, part.group: part.choice}
    return OmegaConf.merge(cfg, *added), choices


@cache
def parts_of(group: str, choice: str, places: tuple[str, ...]) -> tuple[Part, ...] | None:
    """The parts of a choice's file and of those that it builds on or chooses, in order.

    None if only Hydra can tell.
    """
    from omegaconf import OmegaConf

    if (file := file_of(group, choice, places)) is None:
        return None
    with hydra_errors():
        keys = read(file).copy()
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
        below = parts_of(match[2], chosen, places) if match and isinstance(chosen, str) else None
        if below is None:
            return None
        if isinstance(entry, dict):
            below = (*below[:-1], below[-1]._replace(how="override" if match[1] else "chosen"))
        parts += below
    return (*parts, Part(group, choice, keys))
