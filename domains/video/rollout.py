"""Videos longer than a clip: a student that is given the first frame goes on, clip by clip, from its own last frame."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.diffusion.denoiser import Cond
from distillkit.student import Student


def rollout(student: Student, cond: Cond, clips: int, seed: int = 0) -> Tensor:
    """Samples [N, C, 1 + clips (T - 1), H, W]: the given first frame is there once, as are those where clips meet.

    A frame does not say where things are going, so each clip chooses its motion anew, and errors are passed on from clip to
    clip: the student was never trained on frames that it made itself.

    Args:
        student: made for a first frame.
        cond: `first` [N, C, H, W] and the student's classes, which hold for all clips.
        clips: how many in a row.
        seed: of the noise; every clip has its own.

    Raises:
        ValueError: the student is not made for a first frame, or there is no clip to make.
    """
    if tuple(student.context) != ("first",):
        raise ValueError(
            "this student is not given a first frame, so it cannot go on: train one with vars.context=[first]"
        )
    if clips < 1:
        raise ValueError(f"clips must be at least 1, got {clips}")
    parts, num = [], len(cond["first"])
    for k in range(clips):
        made = student.sample(num, cond, seed * clips + k)
        parts.append(made[:, :, min(k, 1) :])
        cond = {**cond, "first": made[:, :, -1].clamp(-1, 1)}
    return torch.cat(parts, dim=2)
