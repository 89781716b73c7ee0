"""The discriminator of a diffusion GAN: heads on a denoiser's features at noised samples."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from distillkit import checks
from distillkit.diffusion.denoiser import Cond, Denoiser
from distillkit.losses.gan import (
    discriminator_loss,
    generator_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    r1_penalty,
)
from distillkit.networks.heads import Head

LOSSES = {
    "softplus": (generator_loss, discriminator_loss),
    "bce": (generator_loss, discriminator_loss),  # one loss, by both of its names
    "hinge": (hinge_generator_loss, hinge_discriminator_loss),
}


@dataclass(frozen=True)
class Discriminator:
    """The settings of a discriminator: the features that it sees, its loss and its penalty.

    Args:
        taps: whose features the heads see. `fake_score`: the discriminator's loss trains the fake
            score as well (DMD2, arXiv 2405.14867). `teacher`: the teacher is frozen and the heads
            alone are trained (LADD, arXiv 2403.12015).
        layers: indices from 0 of the network's blocks, one head after each; None means one head on
            the network's middle features.
        timed: whether the heads are conditioned on the noise level.
        loss: `softplus` (non-saturating), also called `bce`; or `hinge`.
        r1: weight of the gradient penalty on real samples; 0 does not compute it.
        r1_on: the penalty takes the gradient in the noised `images` or in the `features`.

    Raises:
        ValueError: a value is not one of those named here, or r1 is negative.
    """

    taps: Literal["fake_score", "teacher"] = "fake_score"
    layers: list[int] | None = None
    timed: bool = False
    loss: Literal["softplus", "hinge", "bce"] = "softplus"
    r1: float = 0.0
    r1_on: Literal["images", "features"] = "images"

    def __post_init__(self):
        for name, known in (("taps", ("fake_score", "teacher")), ("loss", LOSSES), ("r1_on", ("images", "features"))):
            if getattr(self, name) not in known:
                raise checks.Unfit(name, getattr(self, name), f"be {' or '.join(known)}")
        if self.layers is not None:
            checks.whole(0, layers=self.layers)
        checks.not_negative(r1=self.r1)

    def heads(self, tapped: Denoiser) -> nn.ModuleList:
        """New heads for the features of `tapped`.

        Raises:
            ValueError: the network of `tapped` gives no features, or lacks a block of `layers`.
        """
        network = tapped.network
        if not hasattr(network, "feature_channels"):
            raise ValueError(
                f"{type(network).__name__} has no features for a discriminator to look at: set model.gan=0"
            )
        widths = [network.feature_channels]
        if self.layers is not None:
            there = getattr(network, "feature_widths", [])
            if not self.layers or max(self.layers) >= len(there):
                raise ValueError(
                    f"model.discriminator.layers={self.layers} must name blocks of {type(network).__name__}, which lets one "
                    f"see {len(there)} (from 0): leave it null for the features in its middle"
                )
            widths = [there[index] for index in self.layers]
        return nn.ModuleList(Head(width, self.timed) for width in widths)

    def logits(self, heads: nn.ModuleList, tapped: Denoiser, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The logits of all heads, [B, heads]; positive means real.

        Args:
            heads: made by `heads`.
            tapped: the denoiser whose features the heads see.
            x_t: noised samples, [B, ...].
            t: their noise levels, [B].
            cond: their conditioning.
        """
        return self._judge(heads, tapped, self._features(tapped, x_t, t, cond), t, cond)

    def penalised(
        self, heads: nn.ModuleList, tapped: Denoiser, x_t: Tensor, t: Tensor, cond: Cond
    ) -> tuple[Tensor, Tensor]:
        """The `logits` of noised real samples, and `r1` times their gradient penalty (a scalar)."""
        images = self.r1_on == "images"
        if images:
            x_t = x_t.detach().requires_grad_()
        # the fast kernels of attention cannot be differentiated twice
        with sdpa_kernel(SDPBackend.MATH) if images else nullcontext():
            features = self._features(tapped, x_t, t, cond)
        features = [h if h.requires_grad else h.requires_grad_() for h in features]
        logits = self._judge(heads, tapped, features, t, cond)
        return logits, self.r1 * r1_penalty(logits, [x_t] if images else features)

    def generator_loss(self, fake_logits: Tensor) -> Tensor:
        """The student's loss, see `losses/gan.py`."""
        return LOSSES[self.loss][0](fake_logits)

    def discriminator_loss(self, fake_logits: Tensor, real_logits: Tensor) -> Tensor:
        """The heads' loss, see `losses/gan.py`."""
        return LOSSES[self.loss][1](fake_logits, real_logits)

    def _features(self, tapped: Denoiser, x_t: Tensor, t: Tensor, cond: Cond) -> list[Tensor]:
        if self.layers is None:
            return [tapped.features(x_t, t, cond)]
        return tapped.features(x_t, t, cond, self.layers)

    def _judge(
        self, heads: nn.ModuleList, tapped: Denoiser, features: Sequence[Tensor], t: Tensor, cond: Cond
    ) -> Tensor:
        time, sets = tapped.process.network_time(t), "mask" in cond
        return torch.stack([head(h, time, sets) for head, h in zip(heads, features, strict=True)], dim=1)
