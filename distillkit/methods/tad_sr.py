"""TAD-SR, time-aware distillation (arXiv 2408.07476): pairs, a delta score, a diffusion GAN."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from distillkit import checks
from distillkit.diffusion.denoiser import Cond
from distillkit.diffusion.guidance import guided
from distillkit.diffusion.process import expand
from distillkit.losses.delta import delta_loss
from distillkit.losses.reduce import Normalise, distance_scale
from distillkit.methods.adversarial import Discriminator
from distillkit.methods.base import WEIGHTS, Adam
from distillkit.methods.pairs import PairDistil
from distillkit.teachers.base import Teacher

GAN = 0.02  # the released weight


class TADSR(PairDistil):
    """Regress on the teacher's pairs, with two terms for what a regression blurs.

    The student's sample x_g and the teacher's y come from the same noise. The loss is
    `regression d(x_g, y) + delta L_delta + gan L_GAN`.

    L_delta noises both with the same noise to a low level and moves x_g along the difference of
    what the teacher says of them. Along a direction in which data have the variance S^2 the
    gradient is `alpha sigma / V (x_g - y)` of noises and `alpha^2 S^2 / V (x_g - y)` of samples,
    `V = alpha^2 S^2 + sigma^2`: of noises it is large where data vary less than the noise, which
    are fine details. Student and teacher that agree leave none of it, whatever the teacher gets
    wrong.

    L_GAN asks heads on the frozen teacher's features, which are told the level, whether a noised
    sample is real.

    In network passes a student's step costs 3 of the student, 2 of the teacher and 2 of its blocks
    down to the middle, a heads' step 1 of the student and 2 of these blocks.

    Args:
        teacher: the frozen teacher.
        regression, delta, gan: weights of the three terms. Without `gan` there are no heads, and no
            real data are needed.
        compared: the teacher's words of which the delta score is the difference: the predicted
            `noise` or the predicted `sample`.
        share: the part of the levels of the teacher's sampler on which the delta score is taken,
            those with the least noise, in (0, 1].
        normalise: the delta score is divided by the mean of |x_g - teacher's x_0|, of each `sample`
            or the whole `batch`; None leaves it as it is.
        distance: as in `PairDistil`.
        discriminator: the heads' features and loss; without `layers` there is a head on each block
            down to the middle (of a U-Net: its encoder). Noised samples are of any level of the
            teacher's sampler but the first.
        student, heads: settings of the two roles' optimisers.

    Raises:
        ValueError: a value is out of range, no term has a weight, or the discriminator taps another
            network than the teacher's.
    """

    def __init__(
        self,
        teacher: Teacher,
        regression: float = 1.0,
        delta: float = 1.0,
        gan: float = GAN,
        compared: Literal["noise", "sample"] = "noise",
        share: float = 0.2,
        normalise: Normalise | None = None,
        distance: Literal["huber", "l2"] = "l2",
        discriminator: Discriminator = Discriminator(taps="teacher", timed=True, loss="hinge"),
        student: Adam = Adam(lr=5e-5),
        heads: Adam = Adam(lr=5e-5),
        **kwargs,
    ):
        checks.within(WEIGHTS, regression=regression, delta=delta, gan=gan)
        checks.within("(0, 1]", share=share)
        if not (regression or delta or gan):
            raise ValueError("a student needs something to learn from: give model.regression, delta or gan a weight")
        if compared not in ("noise", "sample"):
            raise checks.Unfit("compared", compared, "be noise or sample")
        if discriminator.taps != "teacher":
            raise ValueError(
                "there is no fake score whose features one could tap: set model.discriminator.taps=teacher"
            )
        super().__init__(teacher, distance=distance, student=student, **kwargs)
        self.regression, self.delta, self.gan = regression, delta, gan
        self.compared, self.normalise = compared, normalise
        levels = teacher.grid(self.pairs.facts()["steps"])  # falling; no buffer, which half precision would round
        self.low, self.judged = levels[-max(1, round(share * len(levels))) :], levels[min(1, len(levels) - 1) :]
        if gan:
            network = teacher.denoiser.network
            if discriminator.layers is None and hasattr(network, "feature_widths"):
                discriminator = dataclasses.replace(discriminator, layers=[*range(network.feature_layer + 1)])
            self.discriminator = discriminator
            self.add_role("heads", heads, heads=discriminator.heads(teacher.denoiser))
        self.requires = self.needs({"kappa": self.kappa, "gan": gan})

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """The needs of the base; `gan` adds data and features."""
        return super().needs(arguments) | ({"data", "features"} if arguments.get("gan", GAN) else set())

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        x_g, y, cond = self.paired(batch)
        loss = self.regression * self.regress(x_g, y, cond)
        if self.delta:
            loss = loss + self.delta * self.delta_term(x_g, y, cond)
        if self.gan:
            x_t, t = self.diffuse("student gan", self.judged, x_g)
            fake = self.discriminator.logits(self.heads, self.teacher.denoiser, x_t, t, cond)
            loss = loss + self.gan * self.discriminator.generator_loss(fake)
        return loss

    def delta_term(self, x_g: Tensor, y: Tensor, cond: Cond) -> Tensor:
        """The delta score's loss (a scalar): one batched call of the teacher without gradient."""
        teacher, twice = self.teacher, {name: torch.cat([value, value]) for name, value in cond.items()}
        with torch.no_grad():
            x = torch.cat([x_g, y])
            x_t, t = self.diffuse("delta", self.low, x_g, y)
            said = guided(teacher.denoiser, x_t, t, twice, self.null(twice), self.kappa)
            real, mask = said[: len(x_g)], cond.get("mask")
            scale = distance_scale(x_g, real, self.normalise, mask) if self.normalise else None
            if self.compared == "noise":  # without the noise itself, which both have
                said = (x - said) / expand(teacher.process.ratio(t), x)
            moved, still = said.chunk(2)
        return delta_loss(x_g, moved, still, scale, mask)

    def heads_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The heads' loss on real samples and the student's, for the same conditions.

        Both have the same level and noise.
        """
        teacher, cond = self.teacher, self.condition(batch)
        x_0 = teacher.codec.encode(batch)
        with torch.no_grad():
            x_g = self.jump(self.randn(x_0.shape, "heads"), cond)
        x_t, t = self.diffuse("heads gan", self.judged, x_g, x_0)
        (x_g, x_0), (t, _) = x_t.chunk(2), t.chunk(2)
        fake, penalty = self.discriminator.logits(self.heads, teacher.denoiser, x_g, t, cond), 0.0
        if self.discriminator.r1:
            real, penalty = self.discriminator.penalised(self.heads, teacher.denoiser, x_0, t, cond)
        else:
            real = self.discriminator.logits(self.heads, teacher.denoiser, x_0, t, cond)
        return self.discriminator.discriminator_loss(fake, real) + penalty

    def diffuse(self, purpose: str, levels: Tensor, *samples: Tensor) -> tuple[Tensor, Tensor]:
        """`(x_t, t)` of several samples [B, ...] each, one after the other, under one noise.

        Row i of each has the same noise and the same level, one of `levels`.
        """
        num, levels = len(samples[0]), levels.to(self.device, torch.float32)
        t = levels[(self.rand(num, f"{purpose} t") * len(levels)).long()]
        eps = self.randn(samples[0].shape, f"{purpose} eps")
        x_t = torch.cat([self.teacher.process.add_noise(x, eps, t) for x in samples])
        return x_t, t.repeat(len(samples))
