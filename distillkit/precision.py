"""The precision that a run computes in where nobody says one."""

from __future__ import annotations

import torch

FULL = ("32-true", "32", "64-true", "64")
SAID = "precision bf16-mixed, tf32 for the rest: trainer.precision=32-true for full"


def on_gpu(accelerator: object) -> bool:
    """Whether a run with this `trainer.accelerator` computes on CUDA (or ROCm)."""
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def default(accelerator: object, precise: bool) -> str:
    """The `trainer.precision` of a run that names none.

    It is `bf16-mixed` on a GPU that computes in bfloat16, unless the method is `precise`; else
    `32-true`.

    Args:
        accelerator: `trainer.accelerator`.
        precise: `Distiller.precise` of the method.
    """
    halved = on_gpu(accelerator) and not precise and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if halved else "32-true"


def set_products(precision: object) -> None:
    """Lets float32 products and convolutions of CUDA be rounded to tf32, unless precision is full.

    Training, evaluation and pictures of a run have the same ones.
    """
    rounded = str(precision) not in FULL
    torch.set_float32_matmul_precision("high" if rounded else "highest")
    torch.backends.cudnn.allow_tf32 = rounded
