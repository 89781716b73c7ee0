"""TwinFlow (arXiv 2512.05150): a two-time flow map that is its own fake score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distillkit import checks
from distillkit.diffusion.denoiser import Cond, Denoiser
from distillkit.diffusion.flow import Velocity, noised
from distillkit.diffusion.times import Times
from distillkit.losses.flow_map import adaptive_weight, rectifying, weighted_pull
from distillkit.losses.reduce import mean
from distillkit.methods.base import WEIGHTS, Adam
from distillkit.methods.few_step import FewStepDistiller
from distillkit.methods.flow_map import SHARE, FlowMap
from distillkit.students.few_step import END, SIDE
from distillkit.teachers.base import Teacher

SHORT = 0.05  # the longest of the short ways in tau


class TwinFlow(FlowMap):
    """Fit a flow map, and move its one-step samples along the difference of its own two sides.

    The student is told a side: 0 for trajectories of data, 1 for those of its own samples (the
    paper's negative times). The samples of a batch are split into rows:

    - any: `r = tau (1 - U)`. Short: `r = tau - U min(0.05, tau)`. Whole: tau is the student's
      largest level and r = 0. All of them minimise the residual of RCGM, see `hop_residual`.
    - fake: `|u(x, tau, tau; 1) - (eps - x_g)|^2` on the student's own one-step samples x_g, noised.

    The rectification moves x_g along `sg[u(x, tau, tau; 1) - u(x, tau, tau; 0)]` at x_g noised: the
    gradient of DMD, whose two scores are the student itself.

    Args:
        teacher: the frozen teacher.
        student_times: noise levels of the rows; None means uniform in tau.
        judge_times: noise levels at which one-step samples are judged; None means uniform in tau.
        whole, short, fake: shares of the rows; the rest are any.
        rectify: weight of the rectification, on the samples of the fake rows.
        rectify_start: the optimiser step from which it counts; before it the own side follows a
            student that nothing but the flow map moves.
        judge: the velocity of data in the rectification: the student's `own`, as published, or the
            `teacher`'s, guided by kappa.
        rectify_clamp: largest absolute value of an element of the rectification's difference.
        rectify_power: as `power`, of the rectification's own weight. 0.5 makes a difference of any
            size about a unit long; 0 leaves it as it is, so that it ends where the sides agree.
        states: the states of the flow map are noised `data`, or the student's `own` one-step
            samples noised, which need no data.
        target_decay: the jumps behind a hop are those of an average of the student with this decay;
            0 is the student itself, without a copy.
        tangent, delta, order, velocity, power, floor, clamp, weigh_span, student: as in `FlowMap`,
            with the values of the paper.

    Raises:
        ValueError: a value is out of range, arguments contradict each other, or the student's
            network cannot be told.
    """

    requires = frozenset({"denoiser"})
    tells = FlowMap.tells | {SIDE}
    proof = {**FewStepDistiller.proof, "gaussian": {"std_error": 0.08, "correlation_error": 0.05}}  # 1,500 steps: 0.059

    def __init__(
        self,
        teacher: Teacher,
        student_times: Times | None = None,
        judge_times: Times | None = None,
        whole: float = 0.25,
        short: float = 0.25,
        fake: float = 0.25,
        rectify: float = 0.5,
        rectify_start: int = 0,
        judge: Literal["own", "teacher"] = "own",
        rectify_clamp: float = 1.0,
        rectify_power: float = 0.5,
        states: Literal["data", "own"] = "data",
        target_decay: float = 0.0,
        tangent: Literal["jvp", "quotient"] = "quotient",
        delta: float = 1e-2,
        order: int = 2,
        velocity: Literal["teacher", "data"] = "teacher",
        power: float = 0.5,
        floor: float = 1e-6,
        clamp: float | None = 1.0,
        weigh_span: bool = True,
        student: Adam = Adam(lr=1e-5, betas=(0.9, 0.99)),
        **kwargs,
    ):
        checks.within(SHARE, short=short, fake=fake)
        checks.within(WEIGHTS, rectify=rectify)
        checks.positive(rectify_clamp=rectify_clamp)
        checks.within("[0, 2]", rectify_power=rectify_power)
        checks.whole(0, rectify_start=rectify_start)
        if whole + short + fake > 1:
            raise ValueError(f"whole={whole}, short={short} and fake={fake} are shares of a batch: together at most 1")
        if rectify and not fake:
            raise ValueError(f"rectify={rectify} needs the side of own samples: give model.fake a share of the batch")
        if judge not in ("own", "teacher"):
            raise checks.Unfit("judge", judge, "be own or teacher")
        if states not in ("data", "own"):
            raise checks.Unfit("states", states, "be data or own")
        if states == "own" and velocity == "data":
            raise ValueError("velocity=data needs the data that states=own does without: choose one of them")
        if judge == "teacher" and velocity == "data":
            raise ValueError("velocity=data asks no teacher, judge=teacher does: choose one of them")
        self.judge_times, self.short, self.fake = judge_times, short, fake
        self.rectify_start, self.rectify_power = rectify_start, rectify_power
        self.rectify, self.judge, self.rectify_clamp, self.states = rectify, judge, rectify_clamp, states
        super().__init__(
            teacher,
            student_times,
            instant=0.0,
            whole=whole,
            tangent=tangent,
            delta=delta,
            order=order,
            velocity=velocity,
            power=power,
            floor=floor,
            clamp=clamp,
            weigh_span=weigh_span,
            student=student,
            **kwargs,
        )
        self.student_times = student_times
        self.requires = self.needs({"kappa": self.kappa_range or self.kappa, "states": states})
        if target_decay:
            self.keep_target(target_decay)

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """The needs of the base; states that are noised data add data."""
        return super().needs(arguments) | ({"data"} if arguments.get("states", "data") == "data" else set())

    def make_student(self) -> Denoiser:
        """The student's denoiser, which is told the end of its jump and the side."""
        made = super().make_student()
        if SIDE not in made.told:
            made.tell(SIDE, categories=2)
        return made

    # The loss

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        cond = self.told_condition(batch)
        num = len(next(iter(batch.values())))
        fake = self.part(num, self.fake, "fake")
        cond, own = rows(cond, slice(num - fake)), rows(cond, slice(num - fake, None))
        loss = 0.0
        if fake < num:
            with torch.no_grad():
                own_states = self.states == "own"
                x_0 = self.own_samples(num - fake, cond, "states") if own_states else self.teacher.codec.encode(batch)
            loss = (1 - fake / num) * self.matching(x_0[: num - fake], *self.spans(num - fake), cond)
        if fake:
            rectifies = self.rectify > 0 and self.global_step >= self.rectify_start
            with torch.set_grad_enabled(rectifies):
                x_g = self.own_samples(fake, own, "own")
            loss = loss + fake / num * self.own_side(x_g.detach(), own)
            if rectifies:
                loss = loss + self.rectify * self.rectification(x_g, own)
        return loss

    def own_side(self, x_g: Tensor, cond: Cond) -> Tensor:
        """The mean of `|u(x, tau, tau; 1) - (eps - x_g)|^2` on own samples x_g, noised.

        It has no robust weight, which would fit a median: the rectification needs the mean.
        """
        tau, eps = self.levels(len(x_g), "own tau"), self.randn(x_g.shape, "own eps")
        u = self.average_velocity(on_side(1, cond, tau), tau)(noised(x_g, tau, eps), tau)
        loss = mean((u - (eps - x_g)).square(), cond.get("mask"))
        self.note("student/own", loss)
        return loss

    def rectification(self, x_g: Tensor, cond: Cond) -> Tensor:
        """The loss that moves own samples x_g along `u_1 - u_0`; only x_g has a gradient."""
        tau, mask = self.levels(len(x_g), "judge tau", self.judge_times), cond.get("mask")
        x = noised(x_g.detach(), tau, self.randn(x_g.shape, "judge eps"))
        with torch.no_grad():
            own = self.average_velocity(on_side(1, cond, tau), tau)(x, tau)
            teacher = self.judge == "teacher"
            data = self.ode_velocity(x, tau, cond) if teacher else self.average_velocity(cond, tau)(x, tau)
            push = rectifying(own, data, self.rectify_clamp)
            self.note("student/rectification", mean(push.square(), mask).sqrt())
        return weighted_pull(x_g, push, adaptive_weight(push, self.rectify_power, self.floor, mask), mask)

    # Its parts

    def average_velocity(self, cond: Cond, end: Tensor, network: nn.Module | None = None) -> Velocity:
        """As in `FlowMap`, on the side of data unless `cond` names another."""
        return super().average_velocity({**on_side(0, {}, end), **cond}, end, network)

    def own_samples(self, num: int, cond: Cond, purpose: str) -> Tensor:
        """The student's one-step samples, [num, ...]."""
        shape, t = self.teacher.shape(num, cond), self.step_times[0]
        x_t = self.start(self.teacher.process, self.randn(shape, purpose), t, cond)
        to_data = on_side(0, cond, x_t) | {END: x_t.new_zeros(num)}
        with torch.autocast(self.device.type, enabled=False):
            return self.student(x_t, t, to_data)

    def spans(self, num: int) -> tuple[Tensor, Tensor, int]:
        """Draws tau and r for `num` samples: any, then short, then whole."""
        tau, share = self.levels(num, "tau"), self.rand(num, "r")
        short = self.part(num, self.short / (1 - self.fake), "short")
        whole = min(self.part(num, self.whole / (1 - self.fake), "whole"), num - short)
        some, far = slice(num - short - whole, num - whole), slice(num - whole, None)
        r = tau * (1 - share)
        r[some] = tau[some] - share[some] * tau[some].clamp_max(SHORT)
        tau[far], r[far] = self.last, 0
        return tau, r, 0

    def levels(self, num: int, purpose: str, times: Times | None = None) -> Tensor:
        """Draws `num` levels tau within the student's range, uniform without a law, [num]."""
        times = self.student_times if times is None else times
        if times is not None:
            return self.mapped(self.draw_times(times, num, purpose))
        return self.low + (self.last - self.low) * self.rand(num, purpose)

    def on_fit_start(self) -> None:
        self.check_ends(*(times for times in (self.student_times, self.judge_times) if times is not None))


def rows(cond: Cond, part: slice) -> Cond:
    """The conditions of some of the samples."""
    return {name: value[part] for name, value in cond.items()}


def on_side(side: int, cond: Cond, like: Tensor) -> Cond:
    """The conditions on a side: 0 of data, 1 of own samples; one for each row of `like`."""
    return {**cond, SIDE: torch.full((len(like),), side, device=like.device)}
