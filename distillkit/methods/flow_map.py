"""Two-time flow maps: MeanFlow as distillation (arXiv 2505.13447)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from distillkit import checks
from distillkit.diffusion.denoiser import Cond, Denoiser
from distillkit.diffusion.flow import Velocity, flow_time, flow_velocity, forward_derivative, noised
from distillkit.diffusion.guidance import guided
from distillkit.diffusion.process import expand
from distillkit.diffusion.times import LogNormal, Times
from distillkit.losses.flow_map import adaptive_weight, hop_residual, jump, span_weight, weighted_pull
from distillkit.losses.mdt import residual
from distillkit.losses.reduce import mean
from distillkit.methods.base import Adam
from distillkit.methods.derivatives import SLOW, refuse_half_weights, slowed, try_forward_mode
from distillkit.methods.few_step import FewStepDistiller
from distillkit.students.few_step import END
from distillkit.teachers.base import Teacher

SHARE = "[0, 1]"


class FlowMap(FewStepDistiller):
    """Fit the average velocity between any two levels, without fake score or discriminator.

    On noised data x at level tau the student is told the level r <= tau where its jump ends, and
    minimises `w |u(x, tau, r) - sg[v - (tau - r) du/dtau]|^2` (MeanFlow eq. 9 to 11). v is the
    velocity of the teacher's ODE in flow coordinates, see `diffusion/flow.py`, sg the
    stop-gradient. At r = tau it is regression on v, at r = 0 velocity matching of MDT-dist. The
    student then jumps between any times, see `jump_steps`.

    Args:
        teacher: the frozen teacher.
        student_times: the law of noise levels; of two draws for each sample the larger is tau, the
            smaller r. None means the paper's logit-normal(-0.4, 1) in tau on every process. Levels
            are mapped in tau from the process's range onto the student's.
        instant: share of the samples with r = tau, which need no tangent.
        whole: share of the samples with r = 0, the datum itself, which draws of r only come near.
        tangent: the estimate of the derivative. `jvp`: exact, in forward mode; it needs operators
            with a forward derivative. `quotient`: one hop down the ODE and `order` jumps of the
            student behind it (RCGM, see `hop_residual`).
        delta: length of the hop in tau. Where less than it is left, the hop ends at r.
        order: number of jumps behind the hop, evenly spread in tau.
        velocity: v is that of the `teacher`, guided by kappa, or `eps - x_0` of the `data`. With
            `data` the student learns the law of the data, the teacher is nothing but its start, its
            process and its codec, and kappa must be 1.
        kappa: guidance scale of the teacher, 1 = none, or a range `[low, high]`.
        power, floor: of the weight `1 / (mean R^2 + floor)^power` of each sample.
        clamp: largest absolute value of an element of the residual; None leaves it as it is.
        weigh_span: weigh short jumps more, see `span_weight`.
        tangent_warmup: steps over which the derivative's part of the residual rises from zero.
        fastest: the fastest wave in which the student's network sees the level, see
            `Denoiser.slow`, in (0, 64]; None leaves them as they are.
        gamma: share of new noise between the finished student's steps, see `jump_steps`.
        student: settings of the student's optimiser.

    Raises:
        ValueError: a value is out of range, arguments contradict each other, or the student's
            network cannot be told where a jump ends.
    """

    maps = True
    precise = True
    requires = frozenset({"denoiser", "data"})
    ranged = True
    tells = frozenset({"kappa", END})
    proof = {  # of the mixture what half the default run reached, with half its batch
        "gaussian": {"std_error": 0.05, "correlation_error": 0.05},
        "mixture": {"std_error": 0.12, "correlation_error": 0.06, "weight_error": 0.2},
    }

    def __init__(
        self,
        teacher: Teacher,
        student_times: Times | None = None,
        instant: float = 0.75,
        whole: float = 0.0,
        tangent: Literal["jvp", "quotient"] = "jvp",
        delta: float = 1e-2,
        order: int = 1,
        velocity: Literal["teacher", "data"] = "teacher",
        kappa: float | list[float] = 1.0,
        power: float = 1.0,
        floor: float = 1e-3,
        clamp: float | None = None,
        weigh_span: bool = False,
        tangent_warmup: int = 0,
        fastest: float | None = SLOW,
        gamma: float = 0.0,
        student: Adam = Adam(lr=1e-4, betas=(0.9, 0.95)),
        **kwargs,
    ):
        self.fastest = fastest
        super().__init__(teacher, kappa=kappa, **kwargs)
        checks.within(SHARE, instant=instant, whole=whole, gamma=gamma)
        checks.within("[0, 2]", power=power)
        checks.positive(floor=floor)
        checks.whole(1, 16, order=order)
        checks.whole(0, tangent_warmup=tangent_warmup)
        if instant + whole > 1:
            raise ValueError(f"instant={instant} and whole={whole} are shares of the samples: together at most 1")
        if clamp is not None:
            checks.positive("null leaves the residual as it is", clamp=clamp)
        if tangent not in ("jvp", "quotient"):
            raise checks.Unfit("tangent", tangent, "be jvp or quotient")
        if velocity not in ("teacher", "data"):
            raise checks.Unfit("velocity", velocity, "be teacher or data")
        if velocity == "data" and self.guides:
            raise ValueError(f"velocity=data asks no teacher, so kappa={kappa} guides nothing: leave model.kappa at 1")
        self.student_times = LogNormal(-0.4, 1.0) if student_times is None else student_times
        self.instant, self.whole = instant, whole
        self.tangent, self.delta, self.order, self.velocity = tangent, delta, order, velocity
        self.power, self.floor, self.clamp, self.weigh_span = power, floor, clamp, weigh_span
        self.tangent_warmup, self.gamma = tangent_warmup, gamma
        self.find_range()
        self.add_role("student", student, student=self.make_student())
        self.keep_ema()

    def find_range(self) -> None:
        """Sets the levels tau of the process, `low` to `high`, and the student's largest, `last`.

        Raises:
            ValueError: `delta` is not inside the student's range.
        """
        process = self.teacher.process
        ends = torch.tensor([process.t_min, process.t_max, self.step_times[0]], dtype=torch.float64)
        self.low, self.high, last = flow_time(process, ends).tolist()
        self.last = min(last, 1 - 1e-4)  # no ratio is infinite
        checks.finite(delta=self.delta)
        if not 0 < self.delta < self.last - self.low:
            raise ValueError(
                f"delta must lie between 0 and the student's range {self.last - self.low:.3g}, got {self.delta}"
            )

    def make_student(self) -> Denoiser:
        """The student's denoiser, which is told the flow time of the end of its jump."""
        made = slowed(super().make_student(), self.fastest)
        if END not in made.told:
            made.tell(END, range=(0.0, 1.0))
        return made

    # The loss

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        x_0 = self.teacher.codec.encode(batch)
        tau, r, instant = self.spans(len(x_0))
        return self.matching(x_0, tau, r, instant, self.told_condition(batch))

    def matching(self, x_0: Tensor, tau: Tensor, r: Tensor, instant: int, cond: Cond) -> Tensor:
        """The loss on data noised to tau, for jumps to r; only the bare u has a gradient.

        Args:
            x_0: data, [B, ...].
            tau, r: the levels, [B].
            instant: the number of samples, the first ones, with r = tau.
            cond: their conditions.
        """
        eps, mask = self.randn(x_0.shape, "eps"), cond.get("mask")
        x = noised(x_0, tau, eps)
        u = self.average_velocity(cond, r)(x, tau)
        with torch.no_grad():
            v = self.ode_velocity(x, tau, cond) if self.velocity == "teacher" else eps - x_0
            R = u - v
            if instant < len(x):
                rows = slice(instant, None)
                later = {name: value[rows] for name, value in cond.items()}
                R[rows] = self.residual(later, x[rows], tau[rows], r[rows], u[rows], v[rows])
            self.note("student/residual", mean(R.square(), mask).sqrt())
            R = R if self.clamp is None else R.clamp(-self.clamp, self.clamp)
            weight = adaptive_weight(R, self.power, self.floor, mask)
            if self.weigh_span:
                weight = weight * expand(span_weight(tau, r), weight)
        return weighted_pull(u, R, weight, mask)

    def residual(self, cond: Cond, x: Tensor, tau: Tensor, r: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """`R = u + (tau - r) du/dtau - v` along v, with r fixed."""
        if self.tangent == "jvp":
            rate = forward_derivative(self.average_velocity(cond, r), x, tau, v)
            R = residual(u, rate, v, tau - r)
        else:
            hop = (tau - r).clamp_max(self.delta)
            after = self.chain(cond, x - expand(hop, x) * v, tau - hop, r)
            R = hop_residual(u, v, x, after, tau, r, hop)
        if self.global_step >= self.tangent_warmup:
            return R
        return torch.lerp(u - v, R, self.global_step / self.tangent_warmup)

    def chain(self, cond: Cond, x: Tensor, tau: Tensor, r: Tensor) -> Tensor:
        """The state at r after `order` jumps of the student from (x, tau)."""
        level, network = tau, self.student if self.target is None else self.target
        for k in range(self.order - 1, -1, -1):
            end = r + (tau - r) * (k / self.order)
            u = self.average_velocity(cond, end, network)(x, level.clamp_min(self.low))
            x, level = jump(x, level, end, u), end
        return x

    # Its parts

    def average_velocity(self, cond: Cond, end: Tensor, network: nn.Module | None = None) -> Velocity:
        """The velocity u of jumps to level `end` [B], in float32 at any precision.

        Differences of rounded numbers would be no derivatives. The jumps are the student's, or
        those of another `network`.
        """
        network = self.student if network is None else network

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            with torch.autocast(x_t.device.type, enabled=False):
                return network(x_t, t, {**cond, END: end})

        return flow_velocity(denoise, self.teacher.process)

    def ode_velocity(self, x: Tensor, tau: Tensor, cond: Cond) -> Tensor:
        """The velocity v of the ODE of the teacher guided by kappa."""
        teacher, null, kappa = self.teacher, self.null(cond), cond.get("kappa", self.kappa)
        return flow_velocity(lambda x_t, t: guided(teacher.denoiser, x_t, t, cond, null, kappa), teacher.process)(
            x, tau
        )

    def told_condition(self, batch: dict[str, Tensor]) -> Cond:
        """The batch's conditions, with a kappa for each sample if that is a range."""
        return self.with_kappa(self.condition(batch), len(next(iter(batch.values()))), "kappa")

    def spans(self, num: int) -> tuple[Tensor, Tensor, int]:
        """Draws tau and r for `num` samples, [num] each, and the number of those with r = tau.

        These come first, those with r = 0 last.
        """
        one, other = self.levels(num, "tau"), self.levels(num, "r")
        tau, r = torch.maximum(one, other), torch.minimum(one, other)
        instant = self.part(num, self.instant, "instant")
        whole = min(self.part(num, self.whole, "whole"), num - instant)
        return tau, torch.cat([tau[:instant], r[instant : num - whole], 0 * r[num - whole :]]), instant

    def part(self, num: int, share: float, purpose: str) -> int:
        """The number of samples that are `share` of `num`, rounded at random; no device sync."""
        return int(num * share + self.randint(4096, purpose) / 4096)

    def levels(self, num: int, purpose: str) -> Tensor:
        """Draws `num` levels tau within the student's range, [num]."""
        return self.mapped(self.draw_times(self.student_times, num, purpose))

    def mapped(self, t: Tensor) -> Tensor:
        """The levels tau of times t of the process, mapped onto the student's range."""
        share = (flow_time(self.teacher.process, t) - self.low) / (self.high - self.low)
        return self.low + (self.last - self.low) * share

    # Refusals before work starts

    def on_fit_start(self) -> None:
        self.check_ends(self.student_times)

    def setup(self, stage: str) -> None:
        refuse_half_weights(self)
        super().setup(stage)

    def check(self, data: Any) -> None:
        super().check(data)
        if self.tangent == "jvp":
            self.check_forward_mode(data)

    def check_forward_mode(self, data: Any) -> None:
        """Raises ValueError if an operator of the student's network has no forward derivative."""
        batch = {name: value.to(self.device) for name, value in data.val[torch.arange(1)].items()}
        x, cond = self.teacher.codec.encode(batch), self.told_condition(batch)
        tau = x.new_tensor([(self.low + self.last) / 2])
        velocity = self.average_velocity(cond, tau / 2)
        try_forward_mode(self.student.network, lambda: forward_derivative(velocity, x, tau, x))
