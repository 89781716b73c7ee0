"""What several test files build on: one of each process, exact teachers, expectations without sampling error."""

import warnings

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from distillkit.diffusion.process import (
    DiscreteVariancePreserving,
    RectifiedFlow,
    TrigFlow,
    VarianceExploding,
    VariancePreserving,
)
from distillkit.teachers.exact import ExactTeacher, Mixture

PROCESSES = {
    "ve": VarianceExploding(),
    "vp": VariancePreserving(),
    "ddpm": DiscreteVariancePreserving(),
    "latent": DiscreteVariancePreserving(beta_start=0.00085, beta_end=0.012, schedule="scaled_linear"),
    "cosine": DiscreteVariancePreserving(schedule="cosine"),
    "flow": RectifiedFlow(),
    "trig": TrigFlow(),
}


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gaussian(mean: float, std: float, process=None) -> ExactTeacher:
    """A teacher N(mean, std^2) in one dimension."""
    return ExactTeacher(Mixture([[mean]], [[[std**2]]]), process or VarianceExploding())


def sigma_points() -> tuple[Tensor, Tensor]:
    """(z, eps), [4, 1] each: their plain average is the expectation over two unit Gaussians for every cubic polynomial."""
    root = 2**0.5
    return f64(root, -root, 0, 0)[:, None], f64(0, 0, root, -root)[:, None]


def trainer(max_steps: int, **settings) -> Trainer:
    """A silent trainer on one CPU."""
    warnings.filterwarnings("ignore", module="lightning")
    defaults = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    defaults |= {
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "max_epochs": -1,
        "use_distributed_sampler": False,
    }
    return Trainer(max_steps=max_steps, **(defaults | settings))


class Line(torch.nn.Module):
    """The student of the closed forms: x_g = mu + s z."""

    def __init__(self, mu: float, s: float):
        super().__init__()
        self.mu, self.s = (torch.nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (mu, s))

    def forward(self, z: Tensor) -> Tensor:
        return self.mu + self.s * z

    def best_response(self, process):
        """The fake score that has learnt the student as it is now: a constant of the loss."""
        return gaussian(self.mu.item(), self.s.item(), process).denoiser

    def gradient(self, loss: Tensor) -> list[float]:
        """`[dL/dmu, dL/ds]`."""
        return [g.item() for g in torch.autograd.grad(loss, [self.mu, self.s])]
