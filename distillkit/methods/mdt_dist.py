"""MDT-dist, marginal-data transport distillation (arXiv 2509.04406)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from distillkit import checks
from distillkit.diffusion.denoiser import Cond
from distillkit.diffusion.flow import (
    Velocity,
    difference_quotient,
    flow_time,
    flow_velocity,
    forward_derivative,
    noised,
)
from distillkit.diffusion.guidance import guided
from distillkit.diffusion.process import expand
from distillkit.diffusion.times import Times
from distillkit.losses.mdt import pull, residual, unit_tangent
from distillkit.losses.reduce import mean
from distillkit.methods.base import WEIGHTS, Adam
from distillkit.methods.derivatives import refuse_half_weights, try_forward_mode
from distillkit.methods.few_step import KAPPAS, FewStepDistiller
from distillkit.teachers.base import Teacher


class MDTDist(FewStepDistiller):
    """Fit the average velocity of the jump to data, without fake score or discriminator.

    Velocity matching (VM) on noised data x minimises
    `|phi(x, tau) - sg[v(x, tau) - tau dphi/dtau]|^2`. phi is the student's and v the teacher's
    velocity in flow coordinates, see `diffusion/flow.py`; sg is the stop-gradient, so there is no
    target network. Velocity distillation (VD) moves the student's one-step sample x_1 against the
    same residual, taken at x_1 noised again. Its gradient is that of
    `2 (1 - tau) <sg[v - phi - tau dphi/dtau], x_1>`: the student stands in for the score of its own
    samples. VD trains the step from the largest time only, however many steps the student has.

    Args:
        teacher: the frozen teacher.
        student_times: noise levels; None means uniform in tau (the paper). `LogNormal(-0.5, 1.0)`
            is a logit-normal in tau on every process and learns the one-step map faster; the
            released code has `LogNormal(1.0, 1.0)`. Levels are mapped in tau from the process's
            range onto the student's: from its largest time down to where a hop still fits (with
            `product` to the end).
        tangent: the estimate of dphi/dtau. `fd`: one hop down the teacher's ODE. `product`: that
            hop for tau phi as a whole, `R = phi + (tau - delta) dphi/dtau - v`; its error is only
            the hop's own, so hops may be long. `jvp`: exact, in forward mode; it needs operators
            with a forward derivative, and a network that becomes the identity near the data by
            itself (`edm`, `flow`).
        delta: length of the hop in tau. No hop fits at the last levels. With `product` VM's target
            there is phi = v, which is right up to O(delta); without a target the jumps of a network
            that predicts x_0 could agree on anything. `fd` leaves these levels out, so there the
            student keeps its initial values: start from the teacher.
        kappa: guidance scale of VM's teacher, 1 = none (TRELLIS: 41; the paper's w is kappa - 1).
        vd_kappa: guidance scale of VD's teacher (TRELLIS: 101); None means kappa.
        lambda_vm, lambda_vd: weights of the losses; with VD alone nothing pulls x_1 back.
        vd_start: the optimiser step from which VD counts; before it VM trains alone.
        normalise_tangent: divide dphi/dtau by its norm, as released. The fixed point is then
            biased; for comparison only.
        unweighted_vd: leave out the factor 1 - tau, as released.
        share_vd_noise: noise x_1 with VM's noise, as released.
        student: settings of the student's optimiser.

    Raises:
        ValueError: a value is out of range, or both weights are 0.
    """

    maps = True
    precise = True
    requires = frozenset({"denoiser", "data"})

    def __init__(
        self,
        teacher: Teacher,
        student_times: Times | None = None,
        tangent: Literal["fd", "product", "jvp"] = "fd",
        delta: float = 1e-2,
        kappa: float = 1.0,
        vd_kappa: float | None = None,
        lambda_vm: float = 1.0,
        lambda_vd: float = 1.0,
        vd_start: int = 0,
        normalise_tangent: bool = False,
        unweighted_vd: bool = False,
        share_vd_noise: bool = False,
        student: Adam = Adam(lr=1e-5, clip=1.0),
        **kwargs,
    ):
        super().__init__(teacher, kappa=kappa, **kwargs)
        checks.finite(delta=delta)
        checks.within(WEIGHTS, lambda_vm=lambda_vm, lambda_vd=lambda_vd)
        if not lambda_vm + lambda_vd:
            raise ValueError("lambda_vm and lambda_vd are both 0, so nothing would train: give one of them a weight")
        if vd_kappa is not None:
            checks.within(KAPPAS, vd_kappa=vd_kappa)
        self.student_times, self.tangent, self.delta = student_times, tangent, delta
        self.vd_kappa = kappa if vd_kappa is None else vd_kappa
        checks.whole(0, vd_start=vd_start)
        self.lambda_vm, self.lambda_vd, self.vd_start = lambda_vm, lambda_vd, vd_start
        self.normalise_tangent, self.unweighted_vd = normalise_tangent, unweighted_vd
        self.share_vd_noise = share_vd_noise
        self.find_range()
        self.add_role("student", student, student=self.make_student())
        self.keep_ema()

    def find_range(self) -> None:
        """Sets the levels tau of the process, `low` to `high`, and of the loss, `first` to `last`.

        Raises:
            ValueError: `delta` is not inside the student's range.
        """
        process = self.teacher.process
        ends = torch.tensor([process.t_min, process.t_max, self.step_times[0]], dtype=torch.float64)
        self.low, self.high, last = flow_time(process, ends).tolist()
        self.first = self.low + (0 if self.tangent == "jvp" else self.delta)  # the first level at which a hop fits
        self.last = min(last, 1 - 1e-4)  # no ratio is infinite
        if not 0 < self.delta < self.last - self.low:
            raise ValueError(
                f"delta must lie between 0 and the student's range {self.last - self.low:.3g}, got {self.delta}"
            )

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        cond, x_0 = self.condition(batch), self.teacher.codec.encode(batch)
        tau, eps = self.levels(len(x_0)), self.randn(x_0.shape, "eps")
        loss = self.lambda_vm * self.velocity_matching(x_0, tau, eps, cond)
        if self.lambda_vd and self.global_step >= self.vd_start:
            again = eps if self.share_vd_noise else self.randn(x_0.shape, "vd eps")
            loss = loss + self.lambda_vd * self.velocity_distillation(tau, again, cond)
        return loss

    def velocity_matching(self, x_0: Tensor, tau: Tensor, eps: Tensor, cond: Cond) -> Tensor:
        """The loss `mean R^2` at noised data; only the bare phi has a gradient."""
        x, student = noised(x_0, tau, eps), self.average_velocity(cond)
        phi = student(x, tau)
        with torch.no_grad():
            R = self.residual(student, x, tau, phi, cond, self.kappa)
            self.note("student/vm", mean(R.square(), cond.get("mask")).sqrt())
        return pull(phi, R, cond.get("mask"))

    def velocity_distillation(self, tau: Tensor, eps: Tensor, cond: Cond) -> Tensor:
        """The loss `mean ((1 - tau) R)^2` at noised samples x_1; only x_1 has a gradient."""
        t, noise = self.step_times[0], self.randn(eps.shape, "vd start")
        student = self.average_velocity(cond)
        with torch.autocast(self.device.type, enabled=False):
            x_1 = self.student(self.start(self.teacher.process, noise, t, cond), t, cond)
        with torch.no_grad():
            x = noised(x_1, tau, eps)
            R = self.residual(student, x, tau, student(x, tau), cond, self.vd_kappa)
            self.note("student/vd", mean(R.square(), cond.get("mask")).sqrt())
            push = R if self.unweighted_vd else expand(1 - tau, R) * R
        return pull(x_1, -push, cond.get("mask"))  # phi = noise - x_1 at the start: phi down is x_1 up

    def average_velocity(self, cond: Cond) -> Velocity:
        """The student's velocity phi, in float32 at any precision of the trainer.

        Differences of rounded numbers would be no derivatives.
        """

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            with torch.autocast(x_t.device.type, enabled=False):
                return self.student(x_t, t, cond)

        return flow_velocity(denoise, self.teacher.process)

    def residual(self, student: Velocity, x: Tensor, tau: Tensor, phi: Tensor, cond: Cond, kappa: float) -> Tensor:
        """The residual `R = phi + tau dphi/dtau - v` along the ODE of the teacher guided by kappa.

        It is `phi - v` at the last levels, where no hop fits.
        """
        teacher, null = self.teacher, self.null(cond)
        v = flow_velocity(lambda x_t, t: guided(teacher.denoiser, x_t, t, cond, null, kappa), teacher.process)(x, tau)
        if self.tangent == "jvp":
            rate = forward_derivative(student, x, tau, v)
        else:
            rate = difference_quotient(student, x, tau.clamp_min(self.first), phi, v, self.delta)
        rate = torch.where(expand(tau < self.first, x), 0, rate)
        if self.normalise_tangent:
            rate = unit_tangent(rate, cond.get("mask"))
        return residual(phi, rate, v, tau - self.delta if self.tangent == "product" else tau)

    def levels(self, num: int) -> Tensor:
        """Draws `num` levels tau within the student's range, [num]."""
        share, process = self.rand(num, "tau"), self.teacher.process
        start = self.low if self.tangent == "product" else self.first
        if self.student_times is not None:
            share = (flow_time(process, self.student_times(share, process)) - self.low) / (self.high - self.low)
        return start + (self.last - start) * share

    def setup(self, stage: str) -> None:
        refuse_half_weights(self)
        super().setup(stage)

    def check(self, data) -> None:
        super().check(data)
        if self.tangent == "jvp":
            batch = {name: value.to(self.device) for name, value in data.val[torch.arange(1)].items()}
            x, velocity = self.teacher.codec.encode(batch), self.average_velocity(self.condition(batch))
            tau = x.new_tensor([(self.first + self.last) / 2])
            try_forward_mode(self.student.network, lambda: forward_derivative(velocity, x, tau, x), "fd")
