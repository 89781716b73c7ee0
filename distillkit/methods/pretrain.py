"""Train a teacher: denoising score matching with condition dropout and an averaged network."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distillkit.diffusion.denoiser import Cond, Denoiser
from distillkit.diffusion.guidance import drop_condition, null_condition
from distillkit.diffusion.process import Process
from distillkit.diffusion.times import LogNormal, Times
from distillkit.losses.denoising import denoising_loss
from distillkit.methods.base import Adam, Distiller
from distillkit.teachers.base import Teacher
from distillkit.teachers.folder import save_teacher


class Pretrain(Distiller):
    """Fit a denoiser to data (EDM arXiv 2206.00364 for `edm`, DDPM for `eps`, flow matching arXiv 2210.02747 for `flow`).

    Args:
        network: the network to train.
        process: the noising process.
        event_shape: shape of one sample.
        classes: categorical conditions, `{batch key: number of classes}`.
        context: batch keys of further conditions, see `Teacher`.
        prediction: what the network predicts, see `Denoiser`.
        sigma_data: standard deviation of the data.
        times: distribution of training times; None means EDM's lognormal.
        steps: of Heun's method, at which the teacher counts as at its best; kept in its folder.
        drop: share of samples trained without their condition, so that guidance is possible.
        student: optimiser of the network (the role is called student, as everywhere).
    """

    requires = frozenset({"data"})

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        event_shape: list[int],
        classes: dict[str, int] | None = None,
        context: list[str] | None = None,
        prediction: Literal["x0", "eps", "v", "flow", "edm"] = "edm",
        sigma_data: float = 0.5,
        times: Times | None = None,
        steps: int = 18,
        drop: float = 0.1,
        student: Adam = Adam(lr=1e-3),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.event_shape, self.classes, self.context = tuple(event_shape), dict(classes or {}), tuple(context or ())
        self.drop, self.times, self.best = drop, times or LogNormal(), {"solver": "heun", "steps": steps}
        self.add_role("student", student, student=Denoiser(network, process, prediction, sigma_data))
        self.keep_ema()

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """`E w(t) |D(alpha x_0 + sigma eps, t, c) - x_0|^2`."""
        x_0 = batch["data"]
        cond = self.condition(batch)
        if self.classes and self.drop:
            null = null_condition(cond, self.classes)
            cond = drop_condition(cond, null, self.rand(len(x_0), "drop") < self.drop)
        t = self.times(self.rand(len(x_0), "t"), self.student.process)
        return denoising_loss(self.student, x_0, t, self.randn(x_0.shape, "eps"), cond)

    def condition(self, batch: dict[str, Tensor]) -> Cond:
        return {name: batch[name] for name in (*self.classes, *self.context)}

    def as_teacher(self) -> Teacher:
        """The averaged network as a teacher."""
        teacher = Teacher(self.best_student, self.event_shape, self.classes, self.context)
        teacher.best = self.best
        return teacher

    def sample(self, cond: Cond, num: int, seed: int) -> Tensor:
        teacher, training = self.as_teacher(), self.training
        noise = torch.randn(teacher.shape(num, cond), generator=torch.Generator().manual_seed(seed)).to(self.device)
        samples = teacher.sample(noise, cond)
        self.thaw(training)
        return samples

    def check(self, data) -> None:
        if tuple(data.event_shape) != self.event_shape:
            raise ValueError(
                f"the data have shape {tuple(data.event_shape)}, the network expects {self.event_shape}: set network.event_shape"
            )

    def export(self, folder: Path, **facts: Any) -> None:
        training = self.training
        save_teacher(folder, self.as_teacher(), **facts)
        self.thaw(training)

    def thaw(self, training: bool) -> None:
        """A teacher freezes what it is made of; training goes on with it."""
        self.focus(None)
        self.train(training)
