"""Videos longer than a clip: a model that is given the first frames goes on, clip by clip, from its own last ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distillkit.diffusion.denoiser import Cond


def following(cond: Cond, x_0: Tensor) -> Cond:
    """The condition of what comes after x_0 [B, C, T, ...], made for `cond`: its last frames are the first ones now.

    As many as `cond["first"]` [B, C, given, ...] has; they are cut to [-1, 1], and no gradient
    flows through them.
    """
    given = cond["first"].shape[2]
    return {**cond, "first": x_0[:, :, -given:].detach().clamp(-1, 1)}


def continued(sample: Callable[[int, Cond, int], Tensor], cond: Cond, clips: int, seed: int = 0) -> Tensor:
    """Samples [N, C, T + (clips - 1) (T - given), ...]: frames in which two clips overlap are those of the earlier one.

    Args:
        sample: `(n, cond, seed)` to clips [n, C, T, ...]: `Student.sample` or `Teacher.generate`.
        cond: `first` [N, C, given, ...], and classes, which hold for all clips.
        clips: how many in a row.
        seed: of the noise; every clip has its own.

    Raises:
        ValueError: there are no first frames to go on from, or no clip to make.
    """
    if "first" not in cond:
        raise ValueError("there are no first frames to go on from: this needs a model of stage=continuation")
    if clips < 1:
        raise ValueError(f"clips must be at least 1, got {clips}")
    given, parts, num = cond["first"].shape[2], [], len(cond["first"])
    for k in range(clips):
        made = sample(num, cond, seed * clips + k)
        parts.append(made[:, :, given if k else 0 :])
        cond = following(cond, made)
    return torch.cat(parts, dim=2)
