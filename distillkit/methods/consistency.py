"""Consistency distillation in hops (arXiv 2303.01469), in segments, to any level, from data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from distillkit import checks
from distillkit.diffusion.denoiser import Cond, Denoiser
from distillkit.diffusion.guidance import guided
from distillkit.diffusion.hops import Grid, Hop, Hops, edge_below, hop
from distillkit.diffusion.process import expand
from distillkit.diffusion.sampling import Renoise
from distillkit.losses.consistency import Distance, distance
from distillkit.methods.adversarial import Discriminator
from distillkit.methods.base import WEIGHTS, Adam
from distillkit.methods.few_step import FewStepDistiller
from distillkit.students.few_step import END, told_end
from distillkit.teachers.base import Teacher


class Ends(NamedTuple):
    """The two ends of a hop, each taken to the level `end`; top is the level above its segment."""

    far: Tensor
    near: Tensor
    end: Tensor
    top: Tensor
    cond: Cond
    weight: Tensor | float


class Consistency(FewStepDistiller):
    """The student's jumps from both ends of a hop agree: `d(J(x_t, t), sg[J(x_s, s)])`.

    J(x_t, t) is the step of DDIM with the student's x_0, from t to the lower end of its segment;
    with one segment that is the datum, so J is the student. The hop t -> s is one step of the
    teacher. Where s is the end itself, the target is x_s. The fixed point is the teacher's sampler
    in as many steps, whose law on Gaussians is known, see `diffusion/hops.py`; with several
    segments the student's deterministic sampler from edge to edge has it too.

    Args:
        teacher: the frozen teacher; with `hop=data` only a start for the student.
        hops: the law of the hops.
        hop: the step from t to s: `ddim` or `heun` of the teacher, or `data`, which noises the
            datum with the same noise to both levels (consistency training).
        segments: parts of equally many hops (PCM, arXiv 2405.18407), or a list of such numbers for
            equal parts of the run (Hyper-SD, arXiv 2404.13686: 8, 4, 2, 1). The student's steps are
            those of the last number, without new noise.
        ends: `edge` of the segment, or `any` level between it and s, which the student is told: it
            then jumps from any level to any (CTM, arXiv 2310.02279; TCD, arXiv 2402.19159).
        target: decay of the average that gives the target, in [0, 1); 0 is the student itself.
        distance, c: the distance and what counts as near, see `losses/consistency.py`.
        weight: of a hop. `network`: the difference counts as one of outputs of the network at the
            far end (`Denoiser.loss_weight`); without, what is learnt near the data, from which all
            the rest follows, hardly counts. `hop`: one over its length in sigma / alpha (iCT, ECT).
            `none`: all alike.
        kappa: guidance scale of the teacher, or a range `[low, high]` of it.
        tell_kappa: whether a student of a range is told kappa. Without, it learns the mean (PCM).
        gan: weight of the adversarial loss, in which the target is real: both ends are noised to a
            level of their segment (PCM); 0 has no discriminator.
        discriminator: the discriminator's features and loss.
        gamma: new noise between the jumps of a student with `ends=any`, in [0, 1], see
            `jump_steps`.
        student, heads: settings of the optimisers of the student and of the discriminator's heads.

    Raises:
        ValueError: a value is out of range, segments do not divide the hops, or arguments
            contradict each other.
    """

    maps = True
    requires = frozenset({"denoiser", "data"})
    ranged = True
    tells = frozenset({"kappa", END})
    # The law of the recipe's 64 hops is itself 0.035 away from the Gaussian.
    proof = {**FewStepDistiller.proof, "gaussian": {"std_error": 0.07, "correlation_error": 0.05}}

    def __init__(
        self,
        teacher: Teacher,
        hops: Hops | None = None,
        hop: Hop = "ddim",
        segments: int | list[int] = 1,
        ends: Literal["edge", "any"] = "edge",
        target: float = 0.0,
        distance: Distance = "square",
        c: float = 0.001,
        weight: Literal["network", "hop", "none"] = "network",
        kappa: float | list[float] = 1.0,
        tell_kappa: bool = True,
        gan: float = 0.0,
        discriminator: Discriminator = Discriminator(taps="teacher", loss="hinge"),
        gamma: float = 0.0,
        num_steps: int | None = None,
        renoise: Renoise | None = None,
        student: Adam = Adam(lr=1e-5),
        heads: Adam = Adam(lr=1e-5),
        **kwargs,
    ):
        self.tell_kappa = tell_kappa
        self.parts = [segments] if isinstance(segments, int) else list(segments)
        checks.whole(1, 1000, segments=self.parts)
        many = self.parts[-1] > 1
        if many and (num_steps not in (None, self.parts[-1]) or kwargs.get("times") is not None):
            raise ValueError(
                f"the student of {self.parts[-1]} segments has as many steps: leave num_steps and times null"
            )
        if many and renoise not in (None, "implied"):
            raise ValueError(f"steps from edge to edge have no new noise, got renoise={renoise}: leave it null")
        super().__init__(
            teacher,
            num_steps=None if kwargs.get("times") else 1 if many else num_steps or 1,
            renoise="implied" if many else renoise or "fresh",
            kappa=kappa,
            **kwargs,
        )
        checks.within(WEIGHTS, gan=gan)
        checks.positive(c=c)
        checks.within("[0, 1]", gamma=gamma)
        if hop == "data" and self.guides:
            raise ValueError("hop=data has no teacher to guide: leave model.kappa at 1")
        if ends == "any" and not isinstance(hops or Grid(), Grid):
            raise ValueError(f"ends=any takes levels of a grid, {type(hops).__name__} has none: give model.hops a Grid")
        if gan and discriminator.taps != "teacher":
            raise ValueError(
                "Consistency has no fake score whose features heads could see: set model.discriminator.taps=teacher"
            )
        self.hops, self.hop, self.ends = hops or Grid(), hop, ends
        self.distance, self.c, self.weight = distance, c, weight
        self.gan, self.discriminator = gan, discriminator
        self.top = float(self.step_times[0])
        self.edges = [self.hops.edges(teacher.process, self.top, number) for number in self.parts]
        if many:
            inner = self.edges[-1][:-1].double()
            self.step_times = torch.cat([self.step_times[:1], inner])
            self.num_steps = len(self.step_times)
        self.gamma = gamma if ends == "any" else None
        self.requires = self.needs({"kappa": kappa, "gan": gan})
        if gan:
            self.add_role("heads", heads, heads=discriminator.heads(teacher.denoiser))
        self.add_role("student", student, student=self.make_student())
        self.keep_ema()
        if target:
            self.keep_target(target)

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """The needs of the base; `gan` adds features."""
        return super().needs(arguments) | ({"features"} if arguments.get("gan") else set())

    def make_student(self) -> Denoiser:
        """The student's denoiser, told the end of its jumps if that may be any level."""
        made = super().make_student()
        if (END in made.told) and self.ends == "edge":
            raise ValueError("the student to go on from was told the end of its jumps: say model.ends=any")
        if self.ends == "any" and END not in made.told:
            made.tell(END, range=(0.0, 1.0))
        return made

    def knowing_kappa(self, denoiser: Denoiser) -> Denoiser:
        if self.tell_kappa or not self.kappa_range:
            return super().knowing_kappa(denoiser)
        if "kappa" in denoiser.told:
            raise ValueError("the student to go on from was told kappa: say model.tell_kappa=true")
        return denoiser

    def on_fit_start(self) -> None:
        if (self.hops.changes or len(self.parts) > 1) and self.total == math.inf:
            raise ValueError(
                "hops that change do so in shares of the run, whose end is not known: give trainer.max_steps"
            )

    # The losses

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.agreement(self.hop_ends(batch, "student"))

    def agreement(self, ends: Ends) -> Tensor:
        """The loss of the two ends of hops, a scalar."""
        mask = ends.cond.get("mask")
        loss = (ends.weight * distance(ends.far, ends.near, self.distance, self.c, mask)).mean()
        self.note("student/consistency", loss)
        if self.gan:
            loss = loss + self.gan * self.discriminator.generator_loss(self.logits(ends.far, ends, "student"))
        return loss

    def heads_loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            ends = self.hop_ends(batch, "heads")
        fake, real = (self.logits(x, ends, f"heads {kind}") for kind, x in (("fake", ends.far), ("real", ends.near)))
        return self.discriminator.discriminator_loss(fake, real)

    def hop_ends(self, batch: dict[str, Tensor], purpose: str) -> Ends:
        """The ends of a random hop of each sample; only `far` has a gradient."""
        cond = self.condition(batch)
        x_0 = self.origin(batch, cond)
        process, num = self.teacher.process, len(x_0)
        told = self.with_kappa(cond, num, f"{purpose} kappa")
        kappa, told = told.get("kappa", self.kappa), told if self.tell_kappa else cond
        t, s = self.hops(self.rand(num, f"{purpose} hop"), process, self.top, self.done)
        edges = self.edges[min(int(len(self.parts) * self.done), len(self.parts) - 1)].to(t)
        edge = edge_below(t, edges)
        s = torch.maximum(s, edge)
        end = edge if self.ends == "edge" else self.between(edge, s, self.rand(num, f"{purpose} end"))
        eps = self.randn(x_0.shape, f"{purpose} eps")
        x_t = process.add_noise(x_0, eps, t)
        far = self.jump(self.student, x_t, t, end, told)
        with torch.no_grad():
            x_s = self.neighbour(x_0, eps, x_t, t, s, cond, kappa)
            inside = torch.where(s < 0, t, s)  # at the datum nothing is left to jump
            near = self.jump(self.student if self.target is None else self.target, x_s, inside, end, told)
            near = torch.where(expand(s == end, x_s), x_s, near)
        tops = torch.cat([edges.new_tensor([self.top]), edges])
        return Ends(far, near, end, tops[torch.searchsorted(-tops, -edge) - 1], told, self.weights(t, s))

    def origin(self, batch: dict[str, Tensor], cond: Cond) -> Tensor:
        """The samples whose noised states the hops begin at, [B, ...]: the data."""
        return self.teacher.codec.encode(batch)

    def weights(self, t: Tensor, s: Tensor) -> Tensor | float:
        """The weights of hops, [B], or 1."""
        if self.weight == "none":
            return 1.0
        if self.weight == "network":
            weight = self.student.loss_weight(t)
            return weight if self.distance == "square" else weight.sqrt()
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (self.teacher.process.scales(u) for u in (t, s))
        return 1 / (sigma_t / alpha_t - sigma_s / alpha_s)

    def between(self, low: Tensor, high: Tensor, u: Tensor) -> Tensor:
        """A level of the grid from low to high, each as likely, [B]; u is uniform in [0, 1)."""
        levels = self.hops.levels(self.teacher.process, self.top, self.done).to(u.device)
        first, last = (torch.searchsorted(-levels, -ends.contiguous()) for ends in (high, low))
        return levels[first + (u * (last - first + 1)).long().minimum(last - first)]

    def neighbour(
        self, x_0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond, kappa: float | Tensor
    ) -> Tensor:
        """The state x_s at the lower end of the hop, [B, ...]."""
        process = self.teacher.process
        if self.hop == "data":
            alpha, sigma = (expand(scale, x_0) for scale in process.scales(s))
            return alpha * x_0 + sigma * eps
        null = self.null(cond)
        return hop(self.hop, lambda x, u: guided(self.teacher.denoiser, x, u, cond, null, kappa), process, x_t, t, s)

    def jump(self, denoiser: Denoiser, x: Tensor, t: Tensor, end: Tensor, cond: Cond) -> Tensor:
        """`J(x, t -> end)` of the student or its target."""
        process = self.teacher.process
        if self.ends == "any":
            cond = {**cond, END: told_end(process, end, x)}
        return process.jump(x, denoiser(x, t, cond), t, end)

    def logits(self, x: Tensor, ends: Ends, purpose: str) -> Tensor:
        """The logits of samples of level `end`, noised to a level of their segment, [B, heads]."""
        process = self.teacher.process
        low = ends.end.clamp_min(process.t_min)
        t = low + (ends.top - low) * self.rand(len(x), f"{purpose} gan t")
        x_t = process.travel(x, ends.end, t, self.randn(x.shape, f"{purpose} gan eps"))
        return self.discriminator.logits(self.heads, self.teacher.denoiser, x_t, t, ends.cond)
