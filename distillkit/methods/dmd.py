"""DMD2, improved distribution matching distillation (arXiv 2405.14867), and the original DMD (arXiv 2311.18828)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillkit import checks
from distillkit.diffusion.denoiser import Cond
from distillkit.diffusion.guidance import guided
from distillkit.diffusion.times import KarrasUniform, Times
from distillkit.losses.denoising import denoising_loss
from distillkit.losses.dmd import dmd_loss, regression_loss
from distillkit.losses.gan import discriminator_loss, generator_loss
from distillkit.methods.base import WEIGHTS, Adam
from distillkit.methods.score import ScoreDistiller
from distillkit.networks.heads import Head
from distillkit.progress import calls
from distillkit.teachers.base import Teacher


class DMD(ScoreDistiller):
    """Move the student along the difference of two denoisers: the teacher's, and one fitted to the student.

    The fake score takes `fake_score.updates` steps for every `student.updates` (two time-scale rule).

    Args:
        teacher: the frozen teacher.
        kappa: guidance of the teacher, 1 = none; the fake score is never guided.
        gan: weight of the adversarial loss on fake-score features, against real data (DMD2 uses 3e-3); 0 needs no data.
        gan_discriminator: weight of the discriminator's loss beside the fake score's (DMD2 uses 1e-2).
        regression: weight of the original DMD's distance to teacher samples from the same noise (paper 0.25); one step only.
        num_pairs: teacher samples made at the start for the regression.
        student_times: None means uniform in EDM's warped level, its outer 2 % left out.
        fake_times: None means the same without leaving any out.
    """

    def __init__(
        self,
        teacher: Teacher,
        kappa: float = 1.0,
        gan: float = 0.0,
        gan_discriminator: float = 1e-2,
        regression: float = 0.0,
        num_pairs: int = 1000,
        student_times: Times | None = None,
        fake_times: Times | None = None,
        student: Adam = Adam(lr=1e-5, weight_decay=0.01, clip=10.0),
        fake_score: Adam = Adam(lr=1e-5, weight_decay=0.01, clip=10.0, updates=5),
        **kwargs,
    ):
        checks.within(WEIGHTS, gan=gan, gan_discriminator=gan_discriminator, regression=regression)
        if gan and not gan_discriminator:
            raise ValueError(f"gan={gan} needs a discriminator that learns: give gan_discriminator a weight")
        checks.whole(1, num_pairs=num_pairs)
        self.gan, self.gan_discriminator = gan, gan_discriminator
        student_times, fake_times = student_times or KarrasUniform(0.02, 0.98), fake_times or KarrasUniform(0.0, 1.0)
        super().__init__(teacher, student_times, fake_times, student, fake_score, kappa=kappa, **kwargs)
        self.regression, self.num_pairs = regression, num_pairs
        if regression and self.num_steps > 1:
            raise ValueError(f"regression pairs noise with samples and needs model.num_steps=1, got {self.num_steps}")
        if regression and teacher.context:
            raise ValueError(
                f"regression makes its pairs before there is a batch, so it cannot know {' and '.join(teacher.context)}: "
                f"leave model.regression at 0 for this teacher"
            )
        self.requires |= self.needs({"gan": gan})

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """A discriminator needs real samples, and features to look at."""
        return super().needs(arguments) | ({"data", "features"} if arguments.get("gan") else set())

    def make_roles(self, student: Adam, fake_score: Adam, network: nn.Module | None) -> None:
        """The discriminator's head shares the fake score's turn, loss and clip."""
        fake = self.new_fake_score(network)
        if self.gan and not hasattr(fake.network, "feature_channels"):
            raise ValueError(
                f"{type(fake.network).__name__} has no features for a discriminator to look at: set model.gan=0"
            )
        head = {"head": Head(fake.network.feature_channels)} if self.gan else {}
        self.add_role("fake_score", fake_score, fake_score=fake, **head)
        self.add_role("student", student, student=self.teacher.new_denoiser(network))

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        x_g, cond = self.rollout(batch, "student")
        x_t, t = self.diffuse(x_g, self.student_times, "student")
        with torch.no_grad():
            x_t = x_t.detach()
            real = guided(self.teacher.denoiser, x_t, t, cond, self.null(cond), self.kappa)
            fake = self.fake_score(x_t, t, cond)
        loss = dmd_loss(x_g, real, fake, self.normalise, cond.get("mask"))
        if self.gan:
            loss = loss + self.gan * generator_loss(self.logits(x_g, cond, "student gan"))
        if self.regression:
            noise, y, pair_cond = self.pairs(len(x_g))
            t = self.step_times[0]
            x_y = self.student(self.teacher.process.sigma(t).to(noise.dtype) * noise, t, pair_cond)
            loss = loss + self.regression * regression_loss(x_y, y)
        return loss

    def fake_score_loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            x_g, cond = self.rollout(batch, "fake")
        t = self.fake_times(self.rand(len(x_g), "fake t"), self.teacher.process)
        loss = denoising_loss(self.fake_score, x_g, t, self.randn(x_g.shape, "fake eps"), cond)
        if self.gan:
            fake = self.logits(x_g, cond, "fake gan")
            real = self.logits(batch["data"], self.real_condition(batch, cond), "real gan")
            loss = loss + self.gan_discriminator * discriminator_loss(fake, real)
        return loss

    def logits(self, x_0: Tensor, cond: Cond, purpose: str) -> Tensor:
        """The head on the fake score's features at a noise level of its own (diffusion GAN)."""
        x_t, t = self.diffuse(x_0, self.fake_times, purpose)
        return self.head(self.fake_score.features(x_t, t, cond))

    # The original DMD's pairs of noise and teacher sample: a function of the seed, so a resumed run makes the same

    def on_fit_start(self) -> None:
        if not self.regression:
            return
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.num_pairs, *self.teacher.event_shape)
        noise = torch.randn(shape, generator=generator).to(self.device)
        cond = {
            name: torch.randint(num, (self.num_pairs,), generator=generator).to(self.device)
            for name, num in self.teacher.classes.items()
        }
        total = self.num_pairs * self.teacher.calls_per_sample(kappa=self.kappa)
        with calls(f"making {self.num_pairs:,} pairs to learn from", self.teacher.denoiser, total):
            self._pairs = noise, self.teacher.sample(noise, cond, kappa=self.kappa), cond

    def pairs(self, num: int) -> tuple[Tensor, Tensor, Cond]:
        """`num` random pairs: noise, the teacher's sample from it, their condition."""
        noise, y, cond = self._pairs
        rows = (self.rand(num, "pairs") * self.num_pairs).long()
        return noise[rows], y[rows], {name: value[rows] for name, value in cond.items()}
