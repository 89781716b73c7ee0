"""sCM, continuous-time consistency (arXiv 2410.11081), on data or on the teacher's trajectories.

With `states=trajectory` it is TBCM (arXiv 2511.20410), with `gan` SANA-Sprint (arXiv 2503.09641).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distillkit import checks
from distillkit.diffusion import trig
from distillkit.diffusion.denoiser import Cond, Denoiser
from distillkit.diffusion.guidance import guided
from distillkit.diffusion.process import expand
from distillkit.diffusion.times import LogNormal, Times
from distillkit.errors import Failure
from distillkit.losses.reduce import mean
from distillkit.losses.tangent import Normaliser, normalised, residual, tangent_loss
from distillkit.methods.adversarial import Discriminator
from distillkit.methods.base import WEIGHTS, Adam
from distillkit.methods.derivatives import SLOW, refuse_half_weights, slowed, try_forward_mode
from distillkit.methods.few_step import FewStepDistiller
from distillkit.networks.blocks import sinusoids, zero
from distillkit.students.makers import Copy
from distillkit.teachers.base import Teacher

PUBLISHED = 0.5  # the data's standard deviation for which sCM states its levels


class LogVariance(nn.Module):
    """A number for each angle, [B] to [B]: linear in sinusoids of its log ratio, zero at first."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.width, self.out = width, zero(nn.Linear(width, 1))

    def forward(self, tau: Tensor) -> Tensor:
        return self.out(sinusoids(tau.tan().log() / 4, self.width).to(self.out.weight.dtype)).squeeze(1)


class TangentConsistency(FewStepDistiller):
    """The consistency loss of sCM as a part of methods; what else they train is theirs.

    A method calls `keep_log_variance` once its student is in place, and `consistency(batch)` in the
    student's loss.

    Args:
        teacher: the frozen teacher.
        states: where the loss is taken. `data`: at noised data. `trajectory`: at all states but the
            first of the teacher's own DDIM chain from noise, in `chain` calls at random levels, one
            in each cell of its grid (TBCM). Then batches need no data, and one of B conditions
            makes B (chain - 1) states.
        chain: number of the teacher's calls in a trajectory.
        tangent_times: noise levels of the loss with `states=data`; None means sCM's
            `LogNormal(-1, 1.4)` for data of std 0.5, moved to the teacher's std. Small levels must
            be among them: what the student learns there moves up to the large ones.
        tangent: the derivative of the student along the teacher's ODE. `jvp`: exact, in forward
            mode, which all its operators must have. `quotient`: from two calls, `delta` to either
            side in log(sigma / alpha).
        delta: see `tangent`; in (0, 1].
        tangent_warmup: steps of the student in which the tangent's share r rises from 0 to 1. With
            r = 0 the student learns the teacher's own field, which a copy has already.
        normaliser: each sample's residual is divided by its `rms` or by its `norm` (as published),
            plus 0.1; None leaves it as it is.
        prior: weight of a level: `tan` is sCM's `1 / (sd tan(tau))`, `none` is 1.
        log_variance: learn the logarithm of the loss at each level and divide by what it stands
            for, so that all levels count alike.
        sigma_data: sd, the scale of the coordinates; None means the teacher's.
        fastest: the fastest wave in which the student's network sees the level, see
            `Denoiser.slow`, in (0, 64]; None leaves them as they are.
        max_residual: a root mean square of the residual beyond which a step counts as runaway, in
            units of sd. After `max_bad_steps` of them in a row the run is stopped.

    Raises:
        ValueError: a value is out of range.
    """

    maps = True
    precise = True
    ranged = True

    def __init__(
        self,
        teacher: Teacher,
        states: Literal["data", "trajectory"] = "data",
        chain: int = 16,
        tangent_times: Times | None = None,
        tangent: trig.Tangent = "jvp",
        delta: float = 2e-3,
        tangent_warmup: int = 1000,
        normaliser: Normaliser | None = "rms",
        prior: Literal["tan", "none"] = "tan",
        log_variance: bool = True,
        sigma_data: float | None = None,
        fastest: float | None = SLOW,
        max_residual: float = 1e3,
        **kwargs,
    ):
        self.fastest = fastest
        super().__init__(teacher, **kwargs)
        for name, value, known in (
            ("states", states, ("data", "trajectory")),
            ("tangent", tangent, ("jvp", "quotient")),
            ("normaliser", normaliser, ("rms", "norm", None)),
            ("prior", prior, ("tan", "none")),
        ):
            if value not in known:
                raise checks.Unfit(name, value, f"be {' or '.join(str(one or 'null') for one in known)}")
        checks.whole(2, 10_000, chain=chain)
        checks.within("(0, 1]", delta=delta)
        checks.whole(0, tangent_warmup=tangent_warmup)
        checks.positive(max_residual=max_residual)
        if sigma_data is not None:
            checks.positive(sigma_data=sigma_data)
        self.states, self.chain, self.tangent, self.delta = states, chain, tangent, delta
        self.tangent_warmup, self.normaliser, self.prior = tangent_warmup, normaliser, prior
        self.max_residual = max_residual
        self.sd = teacher.denoiser.sigma_data if sigma_data is None else sigma_data
        self.tangent_times = tangent_times or LogNormal(-1.0 + math.log(self.sd / PUBLISHED), 1.4)
        self.learns_log_variance = log_variance
        self.register_buffer("runaway", torch.zeros((), dtype=torch.int64))  # consecutive steps
        ends = torch.tensor([teacher.process.t_min, self.step_times[0]], dtype=torch.float64)
        self.low, self.high = trig.angle(teacher.process, ends, self.sd).tolist()

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """The needs of the base; states at data need data."""
        return super().needs(arguments) | ({"data"} if arguments.get("states", "data") == "data" else set())

    def ask(self, **arguments: Any) -> None:
        """Sets `requires` to the needs with the states, the kappa and these arguments."""
        self.requires = self.needs({"kappa": self.kappa_range or self.kappa, "states": self.states, **arguments})

    def make_student(self) -> Denoiser:
        """The base's student, whose network sees the level in slow waves."""
        return slowed(super().make_student(), self.fastest)

    def add_student(self, settings: Adam, student: Denoiser) -> None:
        """Adds the role `student`, or gives it anew, with the log-variance head beside it."""
        beside = {"log_variance": LogVariance()} if self.learns_log_variance else {}
        self.add_role("student", settings, student=student, **beside)

    # The loss

    def consistency(self, batch: dict[str, Tensor]) -> Tensor:
        """The consistency loss of the student at the states of this batch (a scalar)."""
        with torch.no_grad():
            x, tau, dx, cond = self.at_data(batch) if self.states == "data" else self.on_trajectories(batch)
        return self.pull(x, tau, dx, cond)

    def pull(self, x: Tensor, tau: Tensor, dx: Tensor, cond: Cond) -> Tensor:
        """The loss at these states; only the bare field F has a gradient."""
        mask = cond.get("mask")
        F = trig.trig_field(lambda x_t, t: self.student(x_t, t, cond), self.teacher.process, self.sd)(x, tau)
        with torch.no_grad():
            F_sg, rate = self.rate(x, tau, dx, cond)
            g = residual(F_sg, rate, x, tau, dx, self.sd, self.warmth)
            size = mean(g.square(), mask).sqrt()
            self.note("student/residual", size)
            self.watch(size)
            g = normalised(g, self.normaliser, mask)
        weight = 1 / (self.sd * tau.tan()) if self.prior == "tan" else None
        a = self.log_variance(tau) if self.learns_log_variance else None
        return tangent_loss(F, g, weight, a, mask)

    @property
    def warmth(self) -> float:
        """The share r of the tangent in this step of the student."""
        if not self.tangent_warmup:
            return 1.0
        return min(1.0, self.updates_before("student", self.global_step) / self.tangent_warmup)

    def rate(self, x: Tensor, tau: Tensor, dx: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """The student's field and its derivative `cos sin dF/dtau` along the teacher's ODE.

        Both are in float32 at any precision of the trainer: differences of rounded numbers would be
        no derivatives.
        """

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            with torch.autocast(x_t.device.type, enabled=False):
                return self.student(x_t, t, cond)

        F = trig.trig_field(denoise, self.teacher.process, self.sd)
        if self.tangent == "jvp":
            return trig.exact_rate(F, x, tau, dx)
        return trig.quotient_rate(F, x, tau, dx, self.delta, tau.new_tensor(self.low), tau.new_tensor(self.high))

    # States (x, tau, dx/dtau) and their conditioning

    def at_data(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Cond]:
        """Noised data at random levels."""
        x_0 = self.teacher.codec.encode(batch)
        cond, tau = self.with_kappa(self.condition(batch), len(x_0), "kappa"), self.levels(len(x_0))
        x = trig.noised(x_0, tau, self.randn(x_0.shape, "eps"), self.sd)
        return x, tau, self.velocity(x, tau, cond), cond

    def on_trajectories(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Cond]:
        """All states but the first of the teacher's DDIM chain from noise, one after the other.

        Each level is uniform between two neighbours of the teacher's grid, so the chain is that of
        a solver with `chain` steps and its states are nearly, not quite, those of the ODE.
        """
        process, start = self.teacher.process, self.step_times[0]
        num = len(next(iter(batch.values())))
        cond = self.with_kappa(self.condition(batch), num, "kappa")
        eps = self.randn(self.teacher.shape(num, cond), "eps")
        edges = trig.angle(process, process.grid(self.chain, float(start)), self.sd).to(eps)
        share = self.rand(num * (self.chain - 1), "tau").reshape(self.chain - 1, num).to(eps)
        levels = edges[:-1, None] + share * edges.diff()[:, None]  # [chain - 1, num], falling
        x, tau = self.start(process, eps, start, cond), edges[0].expand(num)
        x = x / trig.scale(process, start, self.sd).to(x)
        dx, visited = self.velocity(x, tau, cond), []
        for after in levels:
            x, tau = trig.hop(x, dx, tau - after), after
            dx = self.velocity(x, tau, cond)
            visited.append((x, tau, dx))
        x, tau, dx = (torch.cat(parts) for parts in zip(*visited, strict=True))
        return x, tau, dx, {name: torch.cat([value] * len(visited)) for name, value in cond.items()}

    def velocity(self, x: Tensor, tau: Tensor, cond: Cond) -> Tensor:
        """The velocity dx/dtau of the guided teacher's ODE, in float32."""
        null, kappa = self.null(cond), cond.get("kappa", self.kappa)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            with torch.autocast(x_t.device.type, enabled=False):
                return guided(self.teacher.denoiser, x_t, t, cond, null, kappa)

        return self.sd * trig.trig_field(denoise, self.teacher.process, self.sd)(x, tau)

    def levels(self, num: int) -> Tensor:
        """Draws `num` angles within the student's range, [num]."""
        t = self.tangent_times(self.rand(num, "tau"), self.teacher.process)
        return trig.angle(self.teacher.process, t, self.sd).clamp(self.low, self.high)

    # Refusals

    def watch(self, size: Tensor) -> None:
        """Counts consecutive steps whose residual ran away, on the device."""
        if self.training:
            self.runaway.copy_(torch.where(size > self.max_residual * self.sd, self.runaway + 1, 0))

    def check_steps(self, ended: bool = False) -> None:
        """Stops the run if the residual of its last steps ran away, see `max_residual`.

        Raises:
            Failure: it did, on any process, or the base's.
        """
        super().check_steps(ended)
        reached = self.trainer.strategy.reduce((self.runaway >= self.max_bad_steps).float())
        if reached > 0:
            raise Failure(
                f"the student's derivative along the teacher's ODE ran away: the residual of the last {int(self.runaway)} steps "
                f"was beyond {self.max_residual:g} of the data's standard deviation; {self.way_back}"
            )

    @property
    def way_back(self) -> str:
        """What keeps the residual smaller and is not set."""
        ways = ["lower model.student.lr", "raise model.tangent_warmup"]
        if self.normaliser != "rms":
            ways.append("set model.normaliser=rms")
        if self.tangent == "jvp":
            ways.append("bound the derivative with model.tangent=quotient model.delta=0.2")
        return f"{', '.join(ways[:-1])} or {ways[-1]}"

    def setup(self, stage: str) -> None:
        refuse_half_weights(self)
        super().setup(stage)
        if stage == "fit" and self.tangent == "jvp":
            self.check_forward_mode(self.trainer.datamodule.train[torch.arange(1)])

    def check_forward_mode(self, batch: dict[str, Tensor]) -> None:
        """Differentiates the student once in forward mode, at the conditions of one sample.

        Raises:
            ValueError: one of its operators has no such derivative.
        """
        cond = self.with_kappa(self.condition(batch), 1, "kappa")
        x, tau = torch.zeros(self.teacher.shape(1, cond)), torch.tensor([(self.low + self.high) / 2])
        try_forward_mode(self.student.network, lambda: self.rate(x, tau, torch.ones_like(x), cond))


class SCM(TangentConsistency):
    """Fit the jump to data whose derivative along the teacher's ODE is zero (sCM).

    The loss is `1 / (sd tan(tau)) e^-a |F - sg[F + g]|^2 + a`, see `losses/tangent.py`: F is the
    student in TrigFlow coordinates, g its residual along the teacher's ODE, a the learned
    log-variance, sg the stop-gradient. So there is neither a target network nor a fake score. With
    `gan` a discriminator compares the student's samples with data besides (SANA-Sprint).

    Args:
        teacher: the frozen teacher.
        gan: weight of the adversarial loss against real data (SANA-Sprint: 0.5); 0 needs none.
        largest: probability that a sample of the adversarial loss starts from noise, as at
            inference; the others start from noised data at levels of `tangent_times`.
        discriminator: the discriminator's features and loss.
        gan_times: noise levels at which the discriminator sees samples; None means SANA's
            `LogNormal(-0.6, 1.0)`.
        student, heads: settings of the two roles' optimisers; `heads` only with `gan`.

    Raises:
        ValueError: a value is out of range, or the discriminator looks at a fake score, which there
            is none.
    """

    def __init__(
        self,
        teacher: Teacher,
        gan: float = 0.0,
        largest: float = 0.5,
        discriminator: Discriminator = Discriminator(taps="teacher", loss="hinge"),
        gan_times: Times | None = None,
        student: Adam = Adam(lr=1e-4, betas=(0.9, 0.99), clip=1.0),
        heads: Adam = Adam(lr=1e-4, betas=(0.9, 0.99)),
        **kwargs,
    ):
        super().__init__(teacher, **kwargs)
        checks.within(WEIGHTS, gan=gan)
        checks.within("[0, 1]", largest=largest)
        self.ask(gan=gan)
        self.gan, self.largest, self.discriminator = gan, largest, discriminator
        self.gan_times = gan_times or LogNormal(-0.6, 1.0)
        if gan and discriminator.taps != "teacher":
            raise ValueError(
                "SCM has no fake score whose features heads could see: set model.discriminator.taps=teacher"
            )
        self.add_student(student, self.make_student())
        if gan:
            if not hasattr(teacher.denoiser.network, "feature_channels"):  # an exact teacher
                self.trunk = Copy().make(teacher).requires_grad_(False).eval()
            self.add_role("heads", heads, heads=discriminator.heads(self.tapped))
        self.keep_ema()

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """The needs of the base; `gan` adds data and features."""
        return super().needs(arguments) | ({"data", "features"} if arguments.get("gan") else set())

    @property
    def tapped(self) -> Denoiser:
        """Whose features the heads see: the teacher's, or of one without a network its copy's."""
        return self.trunk if "trunk" in self._modules else self.teacher.denoiser

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        loss = self.consistency(batch)
        if self.gan:
            fake = self.logits(*self.samples(batch, "student"), "student gan")
            loss = loss + self.gan * self.discriminator.generator_loss(fake)
        return loss

    def heads_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The heads' loss on student samples and on the batch's own, at the same levels."""
        with torch.no_grad():
            x_g, cond = self.samples(batch, "heads")
        x_0 = self.teacher.codec.encode(batch)
        fake = self.logits(x_g, cond, "heads gan")
        if not self.discriminator.r1:
            return self.discriminator.discriminator_loss(fake, self.logits(x_0, cond, "heads gan", "real"))
        x_t, t = self.diffused(x_0, "heads gan", "real")
        real, penalty = self.discriminator.penalised(self.heads, self.tapped, x_t, t, cond)
        return self.discriminator.discriminator_loss(fake, real) + penalty

    def samples(self, batch: dict[str, Tensor], purpose: str) -> tuple[Tensor, Cond]:
        """One-call samples of the student for the discriminator, and their conditioning."""
        process, start = self.teacher.process, self.step_times[0]
        x_0 = self.teacher.codec.encode(batch)
        cond, eps = self.with_kappa(self.condition(batch), len(x_0), "kappa"), self.randn(x_0.shape, f"{purpose} x")
        t = self.tangent_times(self.rand(len(x_0), f"{purpose} x t"), process).clamp_max(float(start))
        noise = self.rand(len(x_0), f"{purpose} x largest") < self.largest
        x_t = torch.where(expand(noise, x_0), self.start(process, eps, start, cond), process.add_noise(x_0, eps, t))
        return self.student(x_t, torch.where(noise, start.to(t), t), cond), cond

    def logits(self, x_0: Tensor, cond: Cond, purpose: str, noise: str = "") -> Tensor:
        """The discriminator's logits of x_0 noised at random levels, [B, heads]."""
        x_t, t = self.diffused(x_0, purpose, noise)
        return self.discriminator.logits(self.heads, self.tapped, x_t, t, cond)

    def diffused(self, x_0: Tensor, purpose: str, noise: str = "") -> tuple[Tensor, Tensor]:
        """`(x_t, t)` at levels of `purpose`; other `noise` is other noise at the same levels."""
        t = self.gan_times(self.rand(len(x_0), f"{purpose} t"), self.teacher.process)
        return self.teacher.process.add_noise(x_0, self.randn(x_0.shape, f"{purpose} eps {noise}"), t), t
