"""What methods that differentiate the student in its input need of it and refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from distillkit.diffusion.denoiser import Denoiser

SLOW = 4.0  # the fastest wave in which such a student sees the noise level


def slowed(student: Denoiser, fastest: float | None) -> Denoiser:
    """The student, its network's waves of the level made slow, see `Denoiser.slow`; None: as is."""
    if fastest not in (None, student.fastest):
        student.slow(fastest)
    return student


def refuse_half_weights(model: LightningModule) -> None:
    """Raises ValueError at a precision of weights that is too coarse for derivatives."""
    if (precision := model.trainer.precision) in ("bf16-true", "16-true"):
        raise ValueError(
            f"{type(model).__name__} differentiates the student in its input, for which {precision} is too coarse: use 32-true "
            f"or bf16-mixed"
        )


@torch.no_grad()
def try_forward_mode(network: nn.Module, differentiate: Callable[[], Any], instead: str = "quotient") -> None:
    """Tries a derivative of a network in forward mode.

    Args:
        network: the network.
        differentiate: takes the derivative at some sample.
        instead: the estimate of `model.tangent` that does without.

    Raises:
        ValueError: one of the network's operators has no such derivative.
    """
    try:
        differentiate()
    except (NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"{type(network).__name__} has an operator without a derivative in forward mode "
            f"({str(error).splitlines()[0][:120]}): set model.tangent={instead}"
        ) from error
