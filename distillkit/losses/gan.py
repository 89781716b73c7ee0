"""Adversarial losses on logits whose positive sign means real, and SiDA's weights of them.

The weights of SiDA (arXiv 2410.14919) are those of its released code, whose options are
`lsg = 100`, `lsg_gan = 0.01`, `ls = 1` and `lsd = 1`. With N elements in a sample, n the scale of
SiD's loss and w the weight of the fake score's error,

    student     0.5 lsg / B sum_b sum_elements L_SiD + 0.5 lsg_gan / B sum_b N / n_b BCE
                = 50 N (mean L_SiD + 1e-4 mean_b(1 / n_b) BCE)
    fake score  ls / B sum_b w_b sum_elements error^2 + lsd / B sum_b w_b (BCE_real + BCE_fake) / 2
                = N (mean w error^2 + mean_b(w_b / N) (BCE_real + BCE_fake) / 2),

where each BCE is the mean over the batch and all positions together. All losses here are means over
the elements, so the weights are 1e-4 and 1; Adam is invariant to the common factors 50 N and N.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from distillkit.diffusion.process import expand_mask


def generator_loss(fake_logits: Tensor) -> Tensor:
    """`mean softplus(-l(x_g))`: the non-saturating cross-entropy against real (arXiv 1406.2661)."""
    return softplus(-fake_logits).mean()


def discriminator_loss(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """`mean softplus(l(sg x_g)) + mean softplus(-l(x_real))`: the cross-entropies of sigmoid(l)."""
    return softplus(fake_logits).mean() + softplus(-real_logits).mean()


def hinge_generator_loss(fake_logits: Tensor) -> Tensor:
    """`-mean l(x_g)`, never saturated (arXiv 1802.05957); PCM, LADD: `mean relu(1 - l(x_g))`."""
    return -fake_logits.mean()


def hinge_discriminator_loss(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """`mean relu(1 + l(sg x_g)) + mean relu(1 - l(x_real))` (arXiv 1705.02894)."""
    return relu(1 + fake_logits).mean() + relu(1 - real_logits).mean()


def r1_penalty(real_logits: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """R1 penalty `mean_b sum_i |d l_b / d input_i,b|^2` on real samples (arXiv 1801.04406).

    Its factor 0.5 gamma is left to the caller.

    Args:
        real_logits: [B] or [B, K], at the real samples; l_b is the sum over K.
        inputs: inputs of the logits, [B, ...] each: the samples themselves, or the features that
            the heads get. They must require gradients; the penalty is a function of the parameters
            in between.
    """
    found = torch.autograd.grad(real_logits.sum(), list(inputs), create_graph=True)
    return sum(gradient.flatten(1).square().sum(1) for gradient in found).mean()


def sida_generator_loss(fake_logits: Tensor, scale: Tensor, clamp: float | None = 10.0) -> Tensor:
    """`mean(1 / n) mean softplus(-clip(l(x_t), -c, c))`; its weight beside `sid_loss` is 1e-4.

    Args:
        fake_logits: logits of the noised student samples, of any shape; no gradient where clipped.
        scale: n of `sid_loss`, a constant.
        clamp: c; None means no clipping.
    """
    logits = fake_logits if clamp is None else fake_logits.clamp(-clamp, clamp)
    return (1 / scale).mean() * generator_loss(logits)


def sida_discriminator_loss(
    fake_logits: Tensor, real_logits: Tensor, weight: Tensor, x_0: Tensor, mask: Tensor | None = None
) -> Tensor:
    """`mean(w / N) (mean softplus(l(sg x_g)) + mean softplus(-l(x_real))) / 2`.

    Its weight beside `denoising_loss` is 1.

    Args:
        fake_logits, real_logits: of any shape.
        weight: w of the squared error in `denoising_loss`, [B].
        x_0: samples, [B, ...], whose elements are counted.
        mask: mask of sets, bool [B, *positions], true at elements.
    """
    counted = torch.ones_like(x_0[:1]) if mask is None else expand_mask(mask, x_0).expand_as(x_0)
    return (weight / counted.flatten(1).sum(1).clamp_min(1)).mean() * discriminator_loss(fake_logits, real_logits) / 2
