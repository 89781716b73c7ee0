"""DMD, distribution matching distillation (arXiv 2311.18828), and DMD2 (arXiv 2405.14867)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from distillkit import checks
from distillkit.diffusion.denoiser import Cond, Denoiser
from distillkit.diffusion.guidance import drop_condition, guided
from distillkit.diffusion.times import KarrasUniform, Times
from distillkit.losses.denoising import denoising_loss
from distillkit.losses.dmd import dmd_loss, regression_loss
from distillkit.methods.adversarial import Discriminator
from distillkit.methods.base import WEIGHTS, Adam
from distillkit.methods.score import ScoreDistiller
from distillkit.pairs import Pairs, ode_solver, own_start
from distillkit.teachers.base import Teacher


class DMD(ScoreDistiller):
    """Move the student along the difference of two denoisers: the teacher's and the student's own.

    The second one, the fake score, is fitted to the student's samples. It takes
    `fake_score.updates` steps for every `student.updates` (two time-scale rule).

    Args:
        teacher: the frozen teacher.
        kappa: guidance scale of the teacher, 1 = none, or a range `[low, high]`.
        guide_fake: guide the fake score in the student's loss with kappa too (SwiftBrush, arXiv
            2312.05239). The student's fixed point is then the teacher's unguided distribution;
            without, it is the guided one. The fake score is trained unconditionally on a tenth of
            its samples, for it needs that branch.
        weight: weight of each sample in the student's gradient. `sigma_alpha` is the sigma alpha of
            a variance preserving process at the same ratio sigma / alpha (SwiftBrush); on other
            processes sigma itself has no bound. `none` is 1.
        gan: weight of the adversarial loss against real data (DMD2 uses 3e-3); 0 needs no data.
        gan_discriminator: weight of the discriminator's loss beside the fake score's (DMD2 uses
            1e-2).
        discriminator: the discriminator's features and loss; its heads are trained in the fake
            score's turn.
        regression: weight of the original DMD's distance to teacher samples from the same noise
            (paper 0.25); one-step students only.
        num_pairs: number of teacher samples made at the start for the regression.
        pairs_path: a folder that keeps them for other runs, see `Pairs`; None keeps them in memory
            only.
        student_times: noise levels of the student's loss; None means uniform in EDM's warped level
            without its outer 2 % at either end.
        fake_times: noise levels of the fake score's loss; None means uniform in EDM's warped level.
        student, fake_score: settings of the two roles' optimisers.

    Raises:
        ValueError: a value is out of range, or `regression` is asked for with several steps or a
            range of kappa.
    """

    ranged = True

    def __init__(
        self,
        teacher: Teacher,
        kappa: float | list[float] = 1.0,
        gan: float = 0.0,
        gan_discriminator: float = 1e-2,
        discriminator: Discriminator = Discriminator(),
        guide_fake: bool = False,
        weight: Literal["none", "sigma_alpha"] = "none",
        regression: float = 0.0,
        num_pairs: int = 1000,
        pairs_path: str | None = None,
        student_times: Times | None = None,
        fake_times: Times | None = None,
        student: Adam = Adam(lr=1e-5, weight_decay=0.01, clip=10.0),
        fake_score: Adam = Adam(lr=1e-5, weight_decay=0.01, clip=10.0, updates=5),
        **kwargs,
    ):
        checks.within(WEIGHTS, gan=gan, gan_discriminator=gan_discriminator, regression=regression)
        if gan and not gan_discriminator:
            raise ValueError(f"gan={gan} needs a discriminator that learns: give gan_discriminator a weight")
        if weight not in ("none", "sigma_alpha"):
            raise checks.Unfit("weight", weight, "be none or sigma_alpha")
        self.gan, self.gan_discriminator, self.discriminator = gan, gan_discriminator, discriminator
        student_times, fake_times = student_times or KarrasUniform(0.02, 0.98), fake_times or KarrasUniform(0.0, 1.0)
        super().__init__(teacher, student_times, fake_times, student, fake_score, kappa=kappa, **kwargs)
        self.guide_fake, self.weight = guide_fake, weight
        self.regression = regression
        self.pairs = Pairs(teacher, num_pairs, pairs_path, self.kappa, ode_solver(teacher, None))
        if pairs_path is not None and not regression:
            raise ValueError(
                "pairs_path keeps the pairs of the regression, which has no weight: give model.regression one"
            )
        if regression and self.num_steps > 1:
            raise ValueError(f"regression pairs noise with samples and needs model.num_steps=1, got {self.num_steps}")
        if regression:
            own_start(self.start, teacher)
        if regression and self.kappa_range:
            raise ValueError("regression has pairs of one kappa: leave model.regression at 0 or give one number")
        self.requires |= self.needs({"gan": gan})

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """The needs of the base; `gan` adds data and features."""
        return super().needs(arguments) | ({"data", "features"} if arguments.get("gan") else set())

    def make_roles(self, student: Adam, fake_score: Adam) -> None:
        """Adds both roles; the discriminator's heads share the fake score's turn, loss and clip."""
        fake = self.new_fake_score()
        tapped = self.teacher.denoiser if self.discriminator.taps == "teacher" else fake
        heads = {"heads": self.discriminator.heads(tapped)} if self.gan else {}
        self.add_role("fake_score", fake_score, fake_score=fake, **heads)
        self.add_role("student", student, student=self.make_student())

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.matching(*self.student_samples(batch))

    def matching(self, x_g: Tensor, cond: Cond) -> Tensor:
        """The student's loss (a scalar) for its samples x_g [B, ...] and their conditioning."""
        x_t, t = self.diffuse(x_g, self.student_times, "student")
        with torch.no_grad():
            x_t = x_t.detach()
            null, kappa = self.null(cond), cond.get("kappa", self.kappa)
            real = guided(self.teacher.denoiser, x_t, t, cond, null, kappa)
            fake = guided(self.fake_score, x_t, t, cond, null, kappa if self.guide_fake else 1)
        ratio = self.teacher.process.ratio(t)
        weight = ratio / (1 + ratio**2) if self.weight == "sigma_alpha" else None
        loss = dmd_loss(x_g, real, fake, self.normalise, cond.get("mask"), weight)
        if self.gan:
            loss = loss + self.gan * self.discriminator.generator_loss(self.logits(x_g, cond, "student gan"))
        if self.regression:
            noise, y, pair_cond = self.pairs.random(len(x_g), self.generator("pairs"))
            t = self.step_times[0]
            x_y = self.student(self.teacher.start(self.teacher.process, noise, t, pair_cond), t, pair_cond)
            loss = loss + self.regression * regression_loss(x_y, y, pair_cond.get("mask"))
        return loss

    def fake_score_loss(self, batch: dict[str, Tensor]) -> Tensor:
        x_g, cond = self.fake_samples(batch)
        t = self.draw_times(self.fake_times, len(x_g), "fake t")
        told = cond
        if cond and self.guide_fake and self.guides:  # the fake score needs an unconditional branch
            told = drop_condition(cond, self.null(cond), self.rand(len(x_g), "drop") < 0.1)
        loss = denoising_loss(self.fake_score, x_g, t, self.randn(x_g.shape, "fake eps"), told)
        if self.gan:
            loss = loss + self.gan_discriminator * self.heads_loss(x_g, cond, batch)
        return loss

    def heads_loss(self, x_g: Tensor, cond: Cond, batch: dict[str, Tensor]) -> Tensor:
        """The heads' loss on student samples and real ones, and the gradient penalty (a scalar).

        Both kinds of samples are noised independently.
        """
        x_0, real_cond = self.teacher.codec.encode(batch), self.real_condition(batch, cond)
        fake = self.logits(x_g, cond, "fake gan")
        if not self.discriminator.r1:
            return self.discriminator.discriminator_loss(fake, self.logits(x_0, real_cond, "real gan"))
        x_t, t = self.diffuse(x_0, self.fake_times, "real gan")
        real, penalty = self.discriminator.penalised(self.heads, self.tapped, x_t, t, real_cond)
        return self.discriminator.discriminator_loss(fake, real) + penalty

    def logits(self, x_0: Tensor, cond: Cond, purpose: str) -> Tensor:
        """The discriminator's logits of x_0 noised at random levels (diffusion GAN), [B, heads]."""
        x_t, t = self.diffuse(x_0, self.fake_times, purpose)
        return self.discriminator.logits(self.heads, self.tapped, x_t, t, cond)

    @property
    def tapped(self) -> Denoiser:
        """The denoiser whose features the discriminator sees."""
        return self.teacher.denoiser if self.discriminator.taps == "teacher" else self.fake_score

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.regression:
            self.pairs.make(self.trainer.datamodule.train, self.seed, self.trainer.strategy)
