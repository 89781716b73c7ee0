"""SDS, score distillation sampling (arXiv 2209.14988), and ASD, asynchronous (arXiv 2407.02040)."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit import checks
from distillkit.diffusion.denoiser import Cond
from distillkit.diffusion.times import TableUniform, Times
from distillkit.losses.sds import sds_loss
from distillkit.methods.base import Adam
from distillkit.methods.few_step import FewStepDistiller
from distillkit.teachers.base import Teacher


class SDS(FewStepDistiller):
    """Make samples of a scene likely for the teacher at all noise levels, without a fake score.

    A sample x_g is noised, `x_t = alpha x_g + sigma eps`, and moves against the noise that the
    guided teacher sees in x_t too much, `w (eps_phi(x_t, t) - eps)`. It climbs the density of the
    noised data and has no term that keeps samples apart: on data N(m, S^2) a student of width s is
    narrowed by `w sigma alpha s / V` at every level, V = alpha^2 S^2 + sigma^2.

    ASD puts the teacher itself in the place of eps, unguided, at the later time
    `t + u eta (t - t_min)` with u uniform in [0, 1) and the same eps: `w (eps_phi(x_t, t) -
    eps_phi(x_s, s))`. Before the scene is a likely one that is closer to its own score, which VSD
    learns, and nothing is trained for it. Without guidance the pull on data N(m, S^2) is that of
    `h(u) - h(u_s)`, `h(u) = u / (S^2 + u^2)`, u = sigma / alpha: towards m where u > S, and away
    from it below.

    Args:
        teacher: the frozen teacher.
        eta: the largest share of a time by which ASD's second look is later, in [0, 1]; None
            compares with the noise itself (SDS).
        student_times: noise levels; None means uniform in the table of Stable Diffusion without
            its outer 2 % at either end.
        student: settings of the scene's optimiser.

    Raises:
        ValueError: a value is out of range.
    """

    requires = frozenset({"denoiser", "scene"})
    allows = frozenset({"judge", "start"})
    proof = {}  # it seeks a mode, not a law

    def __init__(
        self,
        teacher: Teacher,
        eta: float | None = None,
        student_times: Times | None = None,
        student: Adam = Adam(lr=1e-2, betas=(0.9, 0.99)),
        **kwargs,
    ):
        super().__init__(teacher, **kwargs)
        if eta is not None:
            checks.within("[0, 1]", "null is SDS", eta=eta)
        self.eta, self.student_times = eta, student_times or TableUniform(0.02, 0.98)
        self.add_role("student", student, student=self.make_student())
        self.keep_ema()

    def on_fit_start(self) -> None:
        self.check_ends(self.student_times)

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        num, cond, process = len(next(iter(batch.values()))), self.condition(batch), self.teacher.process
        x_g = self.generate(self.teacher.shape(num, cond), cond, "student", 0)
        t = self.draw_times(self.student_times, num, "student t")
        eps = self.randn(x_g.shape, "student eps")
        s = None if self.eta is None else self.later(t)
        with torch.no_grad():
            real, later = self.heard(x_g, eps, t, s, cond)
        return sds_loss(x_g, real, process.ratio(t), later, None if s is None else process.ratio(s), cond.get("mask"))

    def later(self, t: Tensor) -> Tensor:
        """Times [B] after t, by up to the share eta of what has passed since the process began."""
        process = self.teacher.process
        passed = self.rand(len(t), "student later") * (t - process.t_min)
        return (t + self.eta * passed).clamp_max(process.t_max)

    def heard(self, x_g: Tensor, eps: Tensor, t: Tensor, s: Tensor | None, cond: Cond) -> tuple[Tensor, Tensor | None]:
        """The teacher's guided samples at t and its unguided ones at s, by one call of it.

        Both [B, ...]; the second is None without s.
        """
        process, guides = self.teacher.process, self.guides and cond
        rows = [(t, cond)] + [(t, self.null(cond))] * bool(guides) + [(s, cond)] * (s is not None)
        x = torch.cat([process.add_noise(x_g, eps, time) for time, _ in rows])
        given = {name: torch.cat([known[name] for _, known in rows]) for name in cond}
        said = self.teacher.denoiser(x, torch.cat([time for time, _ in rows]), given).chunk(len(rows))
        real = said[1] + self.kappa * (said[0] - said[1]) if guides else said[0]
        return real, said[-1] if s is not None else None
