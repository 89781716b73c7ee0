"""What a composed configuration may not hold, and keys as words set them."""

import re
from collections.abc import Sequence
from typing import Any

from distillkit.cli.catalogue import groups
from distillkit.errors import UsageError, did_you_mean

HANDED_OVER = ("model", "data", "trainer", "seed_everything")
SCRATCH = ("vars", "teacher", "network", "student", "fake_score")
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
