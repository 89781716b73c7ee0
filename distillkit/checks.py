"""Checks of numbers at their entry, so that no run fails late or silently because of one.

Every function takes numbers by the names under which people give them, such as `positive(lr=lr)`; a
value may also be a list or a dict of numbers. None is no number; callers for whom it has a meaning
check it first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any


class Unfit(ValueError):
    """A number that is not valid.

    Args:
        name: the name under which it was given.
        value: the given value.
        demand: the condition on the value.
        why: the consequence or the mend, in brackets after the sentence.
    """

    def __init__(self, name: str, value: Any, demand: str, why: str = ""):
        super().__init__(name, value, demand, why)
        self.name, self.value, self.demand, self.why = name, value, demand, why

    def __str__(self) -> str:
        value = "null" if self.value is None else self.value
        return f"{self.name} must {self.demand}, got {value}" + f" ({self.why})" * bool(self.why)

    def with_key(self, config: Mapping[str, Any]) -> Unfit:
        """Returns the error with its full key, if `config` has the number under its name once."""
        keys = list(_keys(config, self.name, self.value))
        return Unfit(keys[0], self.value, self.demand, self.why) if len(keys) == 1 else self


def finite(why: str = "", **values: Any) -> None:
    within("(-inf, inf)", why, **values)


def positive(why: str = "", **values: Any) -> None:
    within("(0, inf)", why, **values)


def not_negative(why: str = "", **values: Any) -> None:
    within("[0, inf)", why, **values)


def within(interval: str, why: str = "", **values: Any) -> None:
    """Refuse a number that is not finite or not in the interval, such as `[0, 1)`."""
    low, high = map(float, interval[1:-1].split(","))
    known = {"(0, inf)": "be positive", "[0, inf)": "not be negative"}
    for name, value in values.items():
        for number in _numbers(value):
            if not isinstance(number, Real) or isinstance(number, bool) or not math.isfinite(number):
                raise Unfit(name, value, "be a finite number", why)
            above = number > low or (number == low and interval[0] == "[")
            below = number < high or (number == high and interval[-1] == "]")
            if not (above and below):
                raise Unfit(name, value, known.get(interval, f"lie in {interval}"), why)


def whole(least: int, most: float = math.inf, why: str = "", **values: Any) -> None:
    """Refuse a value that is not a whole number from `least` to `most`."""
    for name, value in values.items():
        for number in _numbers(value):
            if not isinstance(number, Integral) or isinstance(number, bool):
                raise Unfit(name, value, "be a whole number", why)
            if number < least:
                raise Unfit(name, value, f"be at least {least}", why)
            if number > most:
                raise Unfit(name, value, f"be at most {most}", why)


def workers(**values: Any) -> None:
    """Refuse a number of processes that read data; None leaves it to a rule."""
    whole(0, 1000, "null chooses", **{name: value for name, value in values.items() if value is not None})


def network(**sizes: Any) -> None:
    """Refuse sizes of a network that give no network, or one too large for any machine."""
    whole(1, 1_000_000, **{name: value for name, value in sizes.items() if name not in ("depth", "blocks")})
    whole(1, 1000, **{name: value for name, value in sizes.items() if name in ("depth", "blocks")})


def seed(**values: Any) -> None:
    """Refuse a value that NumPy does not take for a seed."""
    whole(0, 2**32 - 1, **values)


def shares(**values: Any) -> None:
    """Refuse parts of a whole that are not within (0, 1) or add up to 1 or more."""
    within("(0, 1)", **values)
    if sum(values.values()) >= 1:
        raise ValueError(
            f"{' and '.join(values)} are shares and leave nothing, got {' and '.join(map(str, values.values()))}"
        )


HALF = "it scales gradients, which clipping and the guard against NaN do not undo: use trainer.precision=bf16-mixed"


def trainer(flags: Any) -> None:
    """Refuse settings with which training is wrong, breaks late or never ends.

    Args:
        flags: a Trainer, or its arguments as attributes; a missing one has Lightning's default.
    """
    whole(1, **_given(flags, "log_every_n_steps"))
    whole(1, **{"trainer.accumulate_grad_batches": getattr(flags, "accumulate_grad_batches", 1)})
    not_negative(**_given(flags, "gradient_clip_val", "limit_val_batches", "limit_test_batches"))
    positive(**_given(flags, "limit_train_batches"))
    for name, value in _given(flags, "val_check_interval").items():
        if isinstance(value, Real):
            positive(**{name: value})
    _modes(flags)
    for name, number in _given(flags, "num_sanity_val_steps").items():
        if number < -1:
            raise Unfit(name, number, "be at least -1", "-1 is all of them")
    _limits(flags)


def _given(flags: Any, *names: str) -> dict[str, Any]:
    """The settings that are not None, by their full keys."""
    found = {f"trainer.{name}": getattr(flags, name, None) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _modes(flags: Any) -> None:
    """Refuse modes of Lightning that do not work here."""
    if str(getattr(flags, "precision", None)) in ("16", "16-mixed"):
        raise ValueError(f"trainer.precision={flags.precision} does not train here: {HALF}")
    if "value" in str(getattr(flags, "gradient_clip_algorithm", None)):
        raise ValueError(
            "trainer.gradient_clip_algorithm=value is not known here, where the norm of each role is clipped: leave it out"
        )
    if getattr(flags, "barebones", False):
        raise ValueError(
            "trainer.barebones keeps neither metrics nor checkpoints, so nothing would be left: leave it out"
        )


def _limits(flags: Any) -> None:
    """Refuse limits of steps, epochs and time that are wrong or contradict each other."""
    for least, most in (("min_steps", "max_steps"), ("min_epochs", "max_epochs")):
        for name, number in _given(flags, least).items():
            whole(0, **{name: number})
            if -1 != getattr(flags, most, -1) < number:
                raise ValueError(f"{name}={number} and trainer.{most}={getattr(flags, most)} contradict each other")
    for name, limit in _given(flags, "max_time").items():
        wrong = not re.fullmatch(r"\d+(:\d\d){3}", limit) if isinstance(limit, str) else "-" in str(limit)
        if wrong or not re.search("[1-9]", str(limit)):
            raise Unfit(name, limit, "be a time such as 00:12:00:00", "days:hours:minutes:seconds")
    for name, value in {"trainer.max_steps": getattr(flags, "max_steps", -1), **_given(flags, "max_epochs")}.items():
        if value != -1:
            whole(1, why="-1 is no limit", **{name: value})


def ends(flags: Any) -> None:
    """Refuse a training that nothing ends; `flags` as for `trainer`."""
    if flags.max_steps == -1 and flags.max_epochs == -1 and not flags.max_time and not flags.fast_dev_run:
        raise ValueError("nothing ends this run: give trainer.max_steps, trainer.max_epochs or trainer.max_time")


def _numbers(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else (value,)


def _keys(config: Any, name: str, value: Any, path: tuple[str, ...] = ()) -> Iterable[str]:
    """Yields the dotted keys under which a configuration holds `value` as `name`."""
    if isinstance(config, Mapping):
        for key, inner in config.items():
            here = path if key == "init_args" else (*path, key)
            if key == name and str(inner) == str(list(value) if isinstance(value, tuple) else value):
                yield ".".join(here)
            else:
                yield from _keys(inner, name, value, here)
    elif isinstance(config, list):  # of parts that are known by their keys alone, such as callbacks
        for inner in config:
            yield from _keys(inner, name, value, path)
