"""What methods refuse of a teacher and data that do not fit each other."""

from __future__ import annotations

import torch

from distillkit.codec import Codec
from distillkit.teachers.base import BaseTeacher


def check_guidable(teacher: BaseTeacher, kappa: float) -> None:
    """Raises ValueError if kappa is not 1 and the teacher has no unconditional branch."""
    if kappa != 1 and not teacher.guidable:
        raise ValueError(
            f"kappa={kappa} has nothing to guide: {teacher.id} has no unconditional branch; leave model.kappa at 1"
        )


def check_belongs(teacher: BaseTeacher, data) -> None:
    """Raises ValueError if shape, tokens or context frames of the data do not fit the teacher.

    Sides that the codec leaves free may have any size.
    """
    made, there = teacher.codec.data_shape(teacher.event_shape), tuple(data.event_shape)
    free = {axis - 1 for axes in teacher.codec.free.values() for axis in axes}
    if len(made) != len(there) or any(made[i] != there[i] for i in range(len(made)) if i not in free):
        mend = "choose a teacher trained on these data (fit method=pretrain makes one)"
        if len(made) == 3 and made[1] == made[2]:
            own = {name: made[i] for i, name in enumerate(("channels", "resolution")) if i not in free}
            words = [f"data.{name}={size}" for name, size in own.items() if getattr(data, name, size) != size]
            mend += f", or say {' '.join(words)}" if words else ""
        raise ValueError(f"the data have shape {there}, the teacher makes {made}: {mend}")
    check_tokens(teacher.process, data)
    if lacking := sorted(set(teacher.context) - set(data.context)):
        raise ValueError(f"the teacher needs {' and '.join(lacking)} in a batch, which these data do not have")


def check_sizes(model, data) -> None:
    """Raises ValueError if samples for the data's conditions would have another size than the data.

    Args:
        model: what has a codec, the `event_shape` of its samples and `condition(batch)`.
        data: the data, set up.
    """
    codec = model.codec
    if type(codec).shape is Codec.shape:
        return  # sizes do not depend on conditions
    cond = model.condition(data.val[torch.arange(1)])
    own = data.event_shape if codec.free else model.event_shape
    if (made := codec.shape(1, model.event_shape, cond)) != (expected := Codec().shape(1, own, cond)):
        settings = ", ".join(f"{name}={value}" for name, value in codec.recorded().items())
        raise ValueError(
            f"samples for {' and '.join(cond)} of these data would have shape {list(made[1:])}, the data's is "
            f"{list(expected[1:])}: give data that the codec {type(codec).__name__}({settings}) is for"
        )


def check_tokens(process, data) -> None:
    """Raises ValueError if the data declare another number of tokens than the process has."""
    own, other = getattr(process, "num_tokens", None), getattr(data, "num_tokens", None)
    if other is not None and own != other:
        raise ValueError(f"the data have {other} tokens, the process {own or 'none'}: choose a teacher of these data")
