"""Words of the command line as Hydra's overrides."""

import os
import re
import shlex
from collections.abc import Sequence

from distillkit.cli.catalogue import SEARCH_PATH, conf_dirs, groups
from distillkit.errors import UsageError, did_you_mean

GONE = {  # choices of earlier versions
    "teacher=discrete_folder": "teacher=folder",
    "teacher=wan": "teacher=diffusers",
    "teacher=cogvideox": "teacher=diffusers",
}


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
