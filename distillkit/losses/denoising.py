"""Regression of denoisers: on data (Vincent 2011; EDM eq. 8), or on another denoiser's answer."""

from __future__ import annotations

from torch import Tensor

from distillkit.diffusion.denoiser import Cond, Denoiser
from distillkit.diffusion.process import expand
from distillkit.losses.reduce import mean


def denoising_loss(denoiser: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor, cond: Cond, denoise=None) -> Tensor:
    """`mean w(t) |D(alpha x_0 + sigma eps, t, c) - sg[x_0]|^2`, w the denoiser's own `loss_weight`.

    Args:
        x_0, eps: clean samples (constants) and unit noise, [B, ...].
        t: times, [B].
        cond: conditions; the `mask` of sets excludes padding.
        denoise: a replacement of the plain call of the denoiser, for example a guided one.
    """
    x_0 = x_0.detach()
    x_t = denoiser.process.add_noise(x_0, eps, t)
    error = (denoise or denoiser)(x_t, t, cond) - x_0
    return mean(expand(denoiser.loss_weight(t), error) * error.square(), cond.get("mask"))


def answer_loss(denoiser: Denoiser, x_t: Tensor, t: Tensor, answer: Tensor, cond: Cond) -> Tensor:
    """`mean w(t) |D(x_t, t, c) - sg[answer]|^2`, weights as of `denoising_loss`.

    Args:
        x_t, t, cond: noised samples [B, ...], their times [B] and conditions, as the denoiser sees
            them.
        answer: the denoised samples that it learns, [B, ...].
    """
    error = denoiser(x_t, t, cond) - answer.detach()
    return mean(expand(denoiser.loss_weight(t), error) * error.square(), cond.get("mask"))
