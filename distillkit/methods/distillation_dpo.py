"""Distillation-DPO (arXiv 2504.11447): score distillation towards samples that a reward prefers."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from distillkit import checks
from distillkit.diffusion.denoiser import Cond, Denoiser
from distillkit.diffusion.guidance import guided
from distillkit.diffusion.process import expand
from distillkit.diffusion.times import KarrasUniform, Times
from distillkit.losses.denoising import denoising_loss
from distillkit.losses.preference import Judged, guidance_loss, published_loss
from distillkit.methods.base import WEIGHTS, Adam
from distillkit.methods.score import ScoreDistiller
from distillkit.teachers.base import Teacher

KINDS = {"guidance": ("winner", "loser", "first"), "published": ("winner", "loser")}  # of samples, by form


class DistillationDPO(ScoreDistiller):
    """The student makes two samples for each condition, and the data's reward ranks them.

    The fake score follows the winners and the losers, told by the condition `kind` whose score is
    asked for: one network and one optimiser step for all, and what it gets wrong of both cancels in
    their difference. The reward need not be differentiable. Of equal samples the first wins.

    `published` moves winners towards the teacher and losers away from it. Where winners differ from
    losers by a shift or a scale, the student moves AWAY from the winners by that, and with
    `loser=1` nothing bounds it: see docs/distillation_dpo.md.

    `guidance` is DMD steered by the difference of both scores, see `guidance_loss`: towards the
    winners, and at rest where the teacher pulls back as strongly.

    In network passes a fake score's step costs 2 of the student and 3 of the fake score, a
    student's step 1 of the student, 1 of the teacher and 3 of the fake score (`published`: 2 and 2,
    and 2 of each).

    Args:
        teacher: the frozen teacher.
        form: `guidance`, ours, or `published`, the paper's.
        beta: weight of the preference in `guidance`; 0 is DMD. For Gaussians of equal widths the
            mean rests beta times the distance between winners and losers from the teacher's.
        loser: weight of the losers in `published`, in [0, 1]; the paper has 1.
        second: noise of the second sample of a pair: `fresh` noise, or a factor of the first one's
            noise, as in the paper (1.1). None is `fresh` in `guidance`, whose fake scores must tell
            a good sample from a bad one and not one scale of the noise from the other, and 1.1 in
            `published`.
        student_times: noise levels of the student's loss; None means uniform in EDM's warped level
            without its outer 2 % at either end.
        fake_times: noise levels of the fake score's loss; None means uniform in EDM's warped level.
        student, fake_score: settings of the two roles' optimisers.

    Raises:
        ValueError: a value is out of range, the fake score cannot be told the kind of a sample, or
            samples would be kept or made in a row, where there is no pair for a condition.
    """

    requires = ScoreDistiller.requires | {"reward"}
    # Modes change their weights: the preference's own law has 0.034 and 0.070 on the mixture.
    proof = {
        "gaussian": {"std_error": 0.05, "correlation_error": 0.05},
        "mixture": {"std_error": 0.1, "correlation_error": 0.12},
    }

    def __init__(
        self,
        teacher: Teacher,
        form: Literal["guidance", "published"] = "guidance",
        beta: float = 0.25,
        loser: float = 0.5,
        second: float | Literal["fresh"] | None = None,
        student_times: Times | None = None,
        fake_times: Times | None = None,
        student: Adam = Adam(lr=1e-5, weight_decay=0.01, clip=10.0),
        fake_score: Adam = Adam(lr=1e-5, weight_decay=0.01, clip=10.0, updates=5),
        **kwargs,
    ):
        if form not in KINDS:
            raise checks.Unfit("form", form, "be guidance or published")
        checks.within(WEIGHTS, beta=beta)
        checks.within("[0, 1]", "above 1 every sample is pushed away from the teacher", loser=loser)
        second = {"guidance": "fresh", "published": 1.1}[form] if second is None else second
        if second != "fresh":
            checks.within("(0, 10]", second=second)
            if second == 1:
                raise checks.Unfit("second", second, "not be 1", "both samples would be the same one")
        self.form, self.beta, self.loser, self.second = form, beta, loser, second
        self.kinds = KINDS[form]
        student_times, fake_times = student_times or KarrasUniform(0.02, 0.98), fake_times or KarrasUniform(0.0, 1.0)
        super().__init__(teacher, student_times, fake_times, student, fake_score, **kwargs)
        if self.rollouts > 1 or self.reuse:
            raise ValueError(
                "a pair is made for one condition, anew: leave model.rollouts at 1 and model.reuse at false"
            )

    def new_fake_score(self) -> Denoiser:
        """The fake score, told which kind of samples it stands for."""
        fake = super().new_fake_score()
        if not fake.tellable:
            raise ValueError(
                f"{type(fake.network).__name__} cannot be told the winners from the losers: say fake_score=fresh, or give "
                f"the network an `embed` with a method `tell`"
            )
        fake.tell("kind", categories=len(self.kinds))
        return fake

    def pair(self, batch: dict[str, Tensor], purpose: str) -> tuple[dict[str, Tensor], Cond]:
        """The preferred of two samples for each condition, the other one and the first one.

        They are by kind, `winner`, `loser` and `first`, with gradient, beside their conditioning.

        Raises:
            ValueError: the reward is not one number for each sample.
        """
        same, scale = (f"{purpose} again", 1.0) if self.second == "fresh" else (purpose, self.second)
        first, cond = self.rollout(batch, purpose)
        second, _ = self.rollout(batch, same, scale)
        with torch.no_grad():
            rewards = [self.reward(x_g.detach(), cond, batch) for x_g in (first, second)]
        swap = expand(rewards[1] > rewards[0], first)
        pair = {"winner": torch.where(swap, second, first), "loser": torch.where(swap, first, second)}
        return {**pair, "first": first}, cond

    def fake(self, kind: str, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The denoised samples of the fake score of one kind."""
        return self.fake_score(x_t, t, self.told(kind, cond, len(x_t)))

    def told(self, kind: str, cond: Cond, num: int) -> Cond:
        """The conditioning of `num` samples of one kind, for the fake score."""
        return {**cond, "kind": torch.full((num,), self.kinds.index(kind), device=self.device)}

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        if self.form == "published":
            pair, cond = self.pair(batch, "student")
            winner, loser = (self.judged(pair[kind], cond, kind)[0] for kind in ("winner", "loser"))
            return published_loss(winner, loser, self.loser, self.normalise, cond.get("mask"))
        x_g, cond = self.rollout(batch, "student")
        judged, x_t, t = self.judged(x_g, cond, "first")
        with torch.no_grad():
            winner, loser = (self.fake(kind, x_t, t, cond) for kind in ("winner", "loser"))
        return guidance_loss(judged, winner, loser, self.beta, self.normalise, cond.get("mask"))

    def judged(self, x_g: Tensor, cond: Cond, kind: str) -> tuple[Judged, Tensor, Tensor]:
        """Samples, seen by the teacher and the fake score of their kind, and where: `x_t`, `t`.

        Level and noise are those of the batch, whatever the kind.
        """
        with torch.no_grad():
            x_t, t = self.diffuse(x_g, self.student_times, "student")
            real = guided(self.teacher.denoiser, x_t, t, cond, self.null(cond), self.kappa)
            return Judged(x_g, real, self.fake(kind, x_t, t, cond)), x_t, t

    def fake_score_loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            pair, cond = self.pair(batch, "fake")
        loss = torch.zeros((), device=self.device)
        for kind in self.kinds:
            x_g = pair[kind]
            t = self.draw_times(self.fake_times, len(x_g), f"{kind} t")
            eps = self.randn(x_g.shape, f"{kind} eps")
            loss = loss + denoising_loss(self.fake_score, x_g, t, eps, self.told(kind, cond, len(x_g)))
        return loss
