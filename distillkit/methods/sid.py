"""SiD, score identity distillation (arXiv 2404.04057): one-step, few-step, guided, adversarial.

Few steps: arXiv 2505.12674. Guidance (LSG): arXiv 2406.01561. Real data (SiDA): arXiv 2410.14919.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from distillkit import checks
from distillkit.diffusion.denoiser import Cond
from distillkit.diffusion.guidance import drop_condition, guided
from distillkit.diffusion.times import KarrasUniform, LogNormal, Times
from distillkit.losses.denoising import denoising_loss
from distillkit.losses.gan import sida_discriminator_loss, sida_generator_loss
from distillkit.losses.reduce import distance_scale
from distillkit.losses.sid import sid_loss
from distillkit.methods.base import WEIGHTS, Adam
from distillkit.methods.score import ScoreDistiller
from distillkit.teachers.base import Teacher

# kappa of the teacher, of the fake score in the student's loss, of the fake score in its own loss
GUIDANCE = {
    "lsg": lambda kappa: (kappa, kappa, kappa),
    "zero": lambda kappa: (kappa, 0.0, 0.0),
    "anti": lambda kappa: (kappa, -1.0, 1.0),
}


class SiD(ScoreDistiller):
    """Minimise a Fisher divergence of the noised student to the noised teacher by score identities.

    Args:
        teacher: the frozen teacher.
        alpha: weight of the squared term, in [-1, 2]. 1.2 is best on images; above 1 a student that
            is much too wide can diverge.
        kappa: guidance scale, 1 = none.
        guidance: `lsg` guides teacher and fake score alike (long and short guidance); `zero` leaves
            the fake score unconditional (Zero-CFG); `anti` guides it with -1 (Anti-CFG).
        gan: weight of SiDA's loss against real data, with the fake score's own features as the
            discriminator (SiDA has 1e-4, see `losses/gan.py`); 0 needs no data.
        gan_discriminator: weight of the discriminator's loss beside the fake score's (SiDA has 1,
            and 100 for EDM2's networks).
        gan_start: student steps before `gan` counts; the discriminator learns from the start (SiDA
            begins after 200,000 samples).
        gan_clamp: logits beyond this value do not move the student (SiDA has 10); None means that
            all do.
        student_times: noise levels of the student's loss; None means uniform in EDM's warped level
            up to sigma 24.
        fake_times: noise levels of the fake score's loss; None means EDM's lognormal.
        student, fake_score: settings of the two roles' optimisers.

    Raises:
        ValueError: a value is out of range, or the teacher lacks the unconditional branch that
            `guidance` needs.
    """

    renamed = ScoreDistiller.renamed | {
        "adversarial": "it weighed both parts of SiDA far too much; say model.gan=1e-4 for the student's, as published, and "
        "model.gan_discriminator for the discriminator's, or model.gan=0 for SiD without real data"
    }

    def __init__(
        self,
        teacher: Teacher,
        alpha: float = 1.2,
        kappa: float = 1.0,
        guidance: Literal["lsg", "zero", "anti"] = "lsg",
        gan: float = 0.0,
        gan_discriminator: float = 1.0,
        gan_start: int = 0,
        gan_clamp: float | None = 10.0,
        student_times: Times | None = None,
        fake_times: Times | None = None,
        student: Adam = Adam(lr=1e-5, betas=(0.0, 0.999)),
        fake_score: Adam = Adam(lr=1e-5, betas=(0.0, 0.999)),
        **kwargs,
    ):
        if guidance != "lsg" and not teacher.guidable:
            raise ValueError(
                f"guidance={guidance} needs an unconditional branch, which {teacher.id} lacks: leave model.guidance at lsg"
            )
        checks.within("[-1, 2]", "the paper tries -0.25 to 1.2", alpha=alpha)
        checks.within(WEIGHTS, gan=gan, gan_discriminator=gan_discriminator)
        checks.whole(0, gan_start=gan_start)
        if gan_clamp is not None:
            checks.positive("null leaves the logits as they are", gan_clamp=gan_clamp)
        super().__init__(
            teacher,
            student_times or KarrasUniform(0.0, 0.8),
            fake_times or LogNormal(),
            student,
            fake_score,
            kappa=kappa,
            **kwargs,
        )
        self.alpha, self.gan, self.gan_discriminator = alpha, gan, gan_discriminator
        self.gan_start, self.gan_clamp = gan_start, gan_clamp
        self.teacher_kappa, self.judge_kappa, self.fit_kappa = GUIDANCE[guidance](kappa)
        self.requires |= self.needs({"gan": gan})

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """The needs of the base; `gan` adds data and features, `guidance` perhaps conditions."""
        adversarial = {"data", "features"} if arguments.get("gan") else set()
        unconditional = {"classes"} if arguments.get("guidance", "lsg") != "lsg" else set()
        return super().needs(arguments) | adversarial | unconditional

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        x_g, cond = self.student_samples(batch)
        x_t, t = self.diffuse(x_g, self.student_times, "student")
        null = self.null(cond)
        real = guided(self.teacher.denoiser, x_t, t, cond, null, self.teacher_kappa)
        fake = guided(self.fake_score, x_t, t, cond, null, self.judge_kappa)
        loss = sid_loss(x_g, real, fake, self.alpha, self.normalise, cond.get("mask"))
        if self.gan and self.updates_before("student", self.global_step) >= self.gan_start:
            mask, over = cond.get("mask"), self.normalise
            scale = distance_scale(x_g, real, over, mask) if over else torch.ones((), device=x_g.device)
            loss = loss + self.gan * sida_generator_loss(self.logits(x_t, t, cond), scale, self.gan_clamp)
        return loss

    def fake_score_loss(self, batch: dict[str, Tensor]) -> Tensor:
        x_g, cond = self.fake_samples(batch)
        null, process = self.null(cond), self.teacher.process

        def told(cond: Cond) -> Cond:  # psi needs an unconditional branch; fake and real see it in the same rows
            if not cond or (self.judge_kappa == 1 and self.fit_kappa == 1):
                return cond
            return drop_condition(cond, self.null(cond), self.rand(len(x_g), "drop") < 0.1)

        t = self.draw_times(self.fake_times, len(x_g), "fake t")
        eps = self.randn(x_g.shape, "fake eps")

        def denoise(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
            return guided(self.fake_score, x_t, t, cond, null, self.fit_kappa)

        loss = denoising_loss(self.fake_score, x_g, t, eps, told(cond), denoise)
        if self.gan:  # fake and real share level and noise
            fake = self.logits(process.add_noise(x_g, eps, t), t, told(cond))
            x_0 = self.teacher.codec.encode(batch)  # whose sets may be larger than those of reused samples
            x_t = process.add_noise(x_0, self.randn(x_0.shape, "fake eps"), t)
            real = self.logits(x_t, t, told(self.real_condition(batch, cond)))
            weight = self.fake_score.loss_weight(t)
            against = sida_discriminator_loss(fake, real, weight, x_g, cond.get("mask"))
            loss = loss + self.gan_discriminator * against
        return loss

    def logits(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The channel mean of the fake score's middle features: one logit per position (SiDA).

        It adds no parameters.
        """
        return self.fake_score.features(x_t, t, cond).mean(dim=1)
