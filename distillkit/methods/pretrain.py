"""Train a teacher: denoising score matching (score entropy for tokens), condition dropout, an averaged network."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from distillkit import checks
from distillkit.diffusion.denoiser import Cond, Denoiser
from distillkit.diffusion.guidance import drop_condition, null_condition
from distillkit.diffusion.process import Process
from distillkit.diffusion.times import LogNormal, Times
from distillkit.discrete.denoiser import Mean, Ratio
from distillkit.discrete.noise import fresh
from distillkit.discrete.process import Absorbing, DiscreteProcess
from distillkit.discrete.teacher import DiscreteTeacher
from distillkit.losses.denoising import denoising_loss
from distillkit.losses.discrete import score_entropy
from distillkit.methods.base import Adam
from distillkit.methods.few_step import check_tokens
from distillkit.methods.leaves_teacher import TeacherDistiller
from distillkit.spec import Recorded
from distillkit.teachers.base import Teacher

T_MIN = 1e-3  # of tokens: below it the weight of a sample, 1 / t, has no bound


class Pretrain(TeacherDistiller):
    """Fit a denoiser to data (EDM arXiv 2206.00364 for `edm`, DDPM for `eps`, flow matching arXiv 2210.02747 for `flow`).

    On tokens the prediction is `mean` (MDLM, UDLM) or `ratio` (SEDD), and the loss the evidence
    bound, nats a token.

    Args:
        network: the network to train.
        process: the noising process.
        event_shape: shape of one sample.
        classes: categorical conditions, `{batch key: number of classes}`.
        context: batch keys of further conditions, see `Teacher`.
        prediction: what the network predicts, see `Denoiser`; None means `edm`, of tokens `mean`.
        sigma_data: standard deviation of the data; of no meaning for tokens.
        times: distribution of training times; None means EDM's lognormal. Tokens are always trained
            on even times.
        solver, steps: at which the teacher counts as at its best; kept in its folder. None is the
            kind's own solver.
        drop: share of samples trained without their condition, so that guidance is possible.
        student: optimiser of the network (the role is called student, as everywhere).
    """

    requires = frozenset({"data"})

    def __init__(
        self,
        network: nn.Module,
        process: Process | DiscreteProcess,
        event_shape: list[int],
        classes: dict[str, int] | None = None,
        context: list[str] | None = None,
        prediction: Literal["x0", "eps", "v", "flow", "edm", "mean", "ratio"] | None = None,
        sigma_data: float | None = 0.5,
        times: Times | None = None,
        solver: str | None = None,
        steps: int = 18,
        drop: float = 0.1,
        student: Adam = Adam(lr=1e-3),
        **kwargs,
    ):
        super().__init__(**kwargs)
        checks.whole(1, event_shape=event_shape, classes=classes or {})
        checks.whole(1, 10_000, steps=steps)
        made_for = network.recorded().get("event_shape", event_shape) if isinstance(network, Recorded) else event_shape
        if tuple(made_for) != tuple(event_shape):
            raise ValueError(
                f"the network is made for event_shape {list(made_for)}, the run has {list(event_shape)}: say it once, with "
                f"vars.event_shape"
            )
        checks.within("[0, 1)", "a share of 1 would never see its condition", drop=drop)
        self.event_shape, self.classes, self.context = tuple(event_shape), dict(classes or {}), tuple(context or ())
        self.drop, self.times = drop, times or LogNormal()
        self.tokens = isinstance(process, DiscreteProcess)
        if self.tokens:
            if prediction not in (None, "mean", "ratio"):
                raise ValueError(f"a network on tokens predicts their mean or ratio, not {prediction!r}")
            scaled = isinstance(process, Absorbing)
            denoiser = Ratio(network, process, scaled) if prediction == "ratio" else Mean(network, process)
        else:
            denoiser = Denoiser(network, process, prediction or "edm", sigma_data)
        self.teacher_class = kind = DiscreteTeacher if self.tokens else Teacher
        self.surroundings = {"event_shape": self.event_shape, "classes": self.classes, "context": self.context}
        self.best = {"solver": solver or kind.best["solver"], "steps": steps}
        if self.best["solver"] not in kind.solvers:
            raise ValueError(f"there is no solver {solver!r}; there are {', '.join(kind.solvers)}")
        self.add_role("student", student, student=denoiser)
        self.keep_ema()

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """`E w(t) |D(alpha x_0 + sigma eps, t, c) - x_0|^2`; of tokens the score entropy per token."""
        x_0 = batch["data"]
        cond = self.condition(batch)
        if self.classes and self.drop:
            null = null_condition(cond, self.classes)
            cond = drop_condition(cond, null, self.rand(len(x_0), "drop") < self.drop)
        process = self.student.process
        if self.tokens:
            # one uniform number for the whole batch, spread evenly over (0, 1]: less variance than
            # a number for each
            spread = torch.arange(len(x_0), device=self.device) / len(x_0)
            t = ((self.rand(1, "t") + spread) % 1).clamp_min(T_MIN)
            noise = fresh(self.generator("noise").initial_seed(), *x_0.shape, process.num_states, self.device)(0)
            return score_entropy(self.student, x_0, t, noise, cond).mean() / x_0.shape[1]
        t = self.times(self.rand(len(x_0), "t"), process)
        return denoising_loss(self.student, x_0, t, self.randn(x_0.shape, "eps"), cond)

    def condition(self, batch: dict[str, Tensor]) -> Cond:
        return {name: batch[name] for name in (*self.classes, *self.context)}

    def check(self, data) -> None:
        if tuple(data.event_shape) != self.event_shape:
            raise ValueError(
                f"the data have shape {tuple(data.event_shape)}, the network expects {self.event_shape}: set "
                f"vars.event_shape=[{','.join(map(str, data.event_shape))}]"
            )
        check_tokens(self.student.process, data)
        if lacking := sorted(set(self.context) - set(data.context)):
            raise ValueError(f"vars.context says {', '.join(lacking)}, which these data do not have")
