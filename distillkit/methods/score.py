"""Base of score distillation methods.

A few-step student is trained with a fake score that follows it; both start from the teacher.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from distillkit import checks
from distillkit.diffusion.denoiser import Cond, Denoiser
from distillkit.diffusion.times import Times
from distillkit.losses.reduce import Normalise
from distillkit.methods.base import Adam
from distillkit.methods.few_step import FewStepDistiller
from distillkit.students.makers import Copy, Maker
from distillkit.teachers.base import Teacher

ROW = "clip"  # part of the names of the noise of samples in a row: another would change every run


class ScoreDistiller(FewStepDistiller):
    """Base of methods that compare the teacher's score with a score of the student's samples.

    Args:
        teacher: the frozen teacher.
        student_times, fake_times: noise levels at which the student is judged and the fake score is
            trained.
        student, fake_score: optimisers of the two roles.
        normalise: the student's loss is divided by the mean of |x_g - teacher's x_0|, of each
            `sample` or the whole `batch`; None leaves it as it is.
        matched: which outputs of a student of several steps are matched with the teacher. `each`:
            one step drawn at random in every cycle (arXiv 2505.12674). `last`: the last step alone,
            which is the one that counts; the steps before it only lead up to it. With `each` the
            fake score is told the step: otherwise it would follow the mixture of all steps, and
            their errors could cancel each other in it for ever.
        rollouts: number of samples that the student makes in a row in training, each conditioned on
            the one before; needs a teacher with a continuation. A random one of them is trained. So
            the student learns from conditions that it made itself, as at inference (Self-Forcing,
            arXiv 2506.08009): the divergence between long samples is the sum over their parts, each
            given what the student made before. Gradients stop between samples.
        reuse: the fake score's first step after the student's trains on the very samples that the
            student's last step made, as in DMD2's code, which saves a rollout in every cycle. They
            are a step of the student old, and of the cycle before: with `matched=each` perhaps of
            another of its steps than the one that is judged next.
        fake_score_maker: makes the fake score's denoiser; None copies the teacher's for every
            student.
        fake_told: vectors among the teacher's conditions that the fake score is told as well,
            `{name: elements}`, such as a camera (ProlificDreamer, arXiv 2305.16213). What the
            teacher's network makes of the same condition stays as it is. A tenth of the samples on
            which the fake score is trained come without.
    """

    requires = frozenset({"denoiser"})
    allows = frozenset({"judge", "start"})
    renamed = FewStepDistiller.renamed | {"clips": "how many samples in a row is model.rollouts"}

    def __init__(
        self,
        teacher: Teacher,
        student_times: Times,
        fake_times: Times,
        student: Adam,
        fake_score: Adam,
        normalise: Normalise | None = "sample",
        matched: Literal["each", "last"] = "each",
        rollouts: int = 1,
        reuse: bool = False,
        fake_score_maker: Maker | None = None,
        fake_told: dict[str, int] | None = None,
        **kwargs,
    ):
        super().__init__(teacher, **kwargs)
        checks.whole(1, rollouts=rollouts)
        if rollouts > 1 and teacher.continuation is None:
            raise ValueError(
                f"rollouts={rollouts} need a teacher that says what comes after a sample (`continuation` in its "
                f"teacher.yaml), {teacher.id} does not: leave model.rollouts at 1"
            )
        self.rollouts, self.reuse, self.fake_told = rollouts, reuse, dict(fake_told or {})
        self._kept: list[tuple[Tensor, Cond]] = []  # by micro-batch, from the student's step to the next one
        self.student_times, self.fake_times = student_times, fake_times
        self.normalise, self.matched = normalise, matched
        self.fake_score_maker = fake_score_maker or Copy()
        self.make_roles(student, fake_score)
        self.keep_ema()

    def make_roles(self, student: Adam, fake_score: Adam) -> None:
        """Makes the roles. The fake score comes first: it sees the student before it steers it."""
        self.add_role("fake_score", fake_score, fake_score=self.new_fake_score())
        self.add_role("student", student, student=self.make_student())

    def new_fake_score(self) -> Denoiser:
        """The fake score; told the student's step if each step is matched, and `fake_told`."""
        fake = self.knowing_kappa(self.fake_score_maker.make(self.teacher))
        if getattr(getattr(fake, "network", None), "blind", False):
            raise ValueError(
                f"{type(fake.network).__name__} looks at the conditions alone, so it gives no score of noised samples: say "
                f"fake_score=copy"
            )
        if self.tells_steps:
            if not fake.tellable:
                raise ValueError(
                    f"{type(fake.network).__name__} cannot be told which of the {self.num_steps} steps it judges: "
                    f"set model.matched=last or model.num_steps=1"
                )
            fake.tell("step", categories=self.num_steps)
        for name, size in self.fake_told.items():
            if name not in self.teacher.context:
                raise ValueError(
                    f"the fake score cannot be told {name!r}, which is not in the context {list(self.teacher.context)} of "
                    f"{self.teacher.id}: set model.fake_told=null"
                )
            if not fake.tellable:
                raise ValueError(
                    f"{type(fake.network).__name__} cannot be told {name!r}: set model.fake_told=null, or say "
                    f"fake_score=fresh with another network"
                )
            if told(name) not in fake.told:
                fake.tell(told(name), size=size)
        return fake

    @property
    def tells_steps(self) -> bool:
        return self.num_steps > 1 and self.matched == "each"

    def on_fit_start(self) -> None:
        self.check_ends(self.student_times, self.fake_times)

    # The student

    @property
    def step(self) -> int:
        """The student's step of this cycle, the same for the batch, all roles and all ranks."""
        return self.randint(self.num_steps, "stop") if self.matched == "each" else self.num_steps - 1

    def student_samples(self, batch: dict[str, Tensor]) -> tuple[Tensor, Cond]:
        """Samples for the student's loss, with gradient, and their conditioning."""
        x_g, cond = self.rollout(batch, "student")
        if self.reuse:
            if self._micro == 0:  # nobody took those of the student's step before
                self._kept.clear()
            self._kept.append((x_g.detach(), cond))
        return x_g, cond

    @torch.no_grad()
    def fake_samples(self, batch: dict[str, Tensor]) -> tuple[Tensor, Cond]:
        """Samples for the fake score's loss, without gradient, and their conditioning.

        With `reuse` those of the student's step right before, if there was one; the batch then has
        no part in them.
        """
        if self._kept:
            x_g, cond = self._kept.pop(0)
            x_g, cond = x_g.to(self.device), {name: value.to(self.device) for name, value in cond.items()}
        else:
            x_g, cond = self.rollout(batch, "fake")
        keep = (self.rand(len(x_g), "forget") >= 0.1)[:, None] if self.fake_told else None
        return x_g, cond | {told(name): keep * cond[told(name)] for name in self.fake_told}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the kept samples of all processes: the weights that made them have moved since."""
        super().on_save_checkpoint(checkpoint)
        if self._kept:
            own = [(x_g.cpu(), {name: value.cpu() for name, value in cond.items()}) for x_g, cond in self._kept]
            ranks = [self.trainer.strategy.broadcast(own, src=rank) for rank in range(self.trainer.world_size)]
            checkpoint["samples"] = [kept for micro in zip(*ranks, strict=True) for kept in micro]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes this process's share of kept samples, if a step still has as many micro-batches."""
        super().on_load_checkpoint(checkpoint)
        samples, trainer = checkpoint.get("samples", []), self._trainer
        if self.reuse and trainer and len(samples) == trainer.world_size * trainer.accumulate_grad_batches:
            self._kept = samples[trainer.global_rank :: trainer.world_size]

    def rollout(
        self, batch: dict[str, Tensor], purpose: str, noise_scale: float = 1.0, step: int | None = None
    ) -> tuple[Tensor, Cond]:
        """Samples of a step of the student, this cycle's `step` if None, and their conditioning.

        The gradient flows through that step only. The steps before it run as at inference (backward
        simulation, arXiv 2405.14867). All roles see the same step in one cycle, so the fake score
        has just followed the step that it judges. The conditioning names the step and what else the
        fake score alone is told. All noise is multiplied by `noise_scale`.
        """
        num, step = len(next(iter(batch.values()))), self.step if step is None else step
        cond = self.with_kappa(self.condition(batch), num, f"{purpose} kappa")
        shape = self.teacher.shape(num, cond)
        with torch.no_grad():
            for k in range(self.randint(self.rollouts, ROW)):
                made = self.generate(shape, cond, f"{purpose} {ROW} {k}", self.num_steps - 1, noise_scale)
                cond = self.teacher.proceed(cond, self.teacher.codec.decode(made, cond))
        x_g = self.generate(shape, cond, purpose, step, noise_scale)
        if self.tells_steps:
            cond = {**cond, "step": torch.full((len(x_g),), step, device=self.device)}
        return x_g, cond | {told(name): self.vector(cond[name], name) for name in self.fake_told}

    def vector(self, value: Tensor, name: str) -> Tensor:
        """A condition [B, ...] as the vector [B, size] that the fake score is told.

        Raises:
            ValueError: it has another size.
        """
        if value[0].numel() != self.fake_told[name]:
            raise ValueError(
                f"{name} has {value[0].numel()} numbers in a batch, {self.fake_told[name]} were announced: set "
                f"model.fake_told.{name}={value[0].numel()}"
            )
        return value.flatten(1)

    def real_condition(self, batch: dict[str, Tensor], cond: Cond) -> Cond:
        """The conditioning of the batch's own samples, told what `cond` tells besides."""
        return {**cond, **self.condition(batch)}

    def diffuse(self, x_0: Tensor, times: Times, purpose: str) -> tuple[Tensor, Tensor]:
        """`(x_t, t)` at noise levels drawn from `times`; gradient flows through x_0."""
        process, t = self.teacher.process, self.draw_times(times, len(x_0), f"{purpose} t")
        return process.add_noise(x_0, self.randn(x_0.shape, f"{purpose} eps"), t), t


def told(name: str) -> str:
    """The name under which the fake score is told a condition that the network may read itself."""
    return f"told_{name}"
