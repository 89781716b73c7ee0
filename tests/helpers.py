"""What several test files build on: one of each process, exact teachers, expectations without sampling error."""

import copy
import signal
import warnings
from types import SimpleNamespace

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from distillkit.codec import Codec
from distillkit.data import DistillData, TensorData
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import (
    DiscreteVariancePreserving,
    RectifiedFlow,
    TrigFlow,
    VarianceExploding,
    VariancePreserving,
)
from distillkit.networks.mlp import MLP
from distillkit.rollouts import Continuation
from distillkit.teachers.base import Teacher
from distillkit.teachers.exact import ExactTeacher, Mixture

CLASSES = {"label": 2}  # of the small neural teacher
BATCH = {"data": torch.randn(8, 2, generator=torch.Generator().manual_seed(5)), "label": torch.arange(8) % 2}
PROCESSES = {
    "ve": VarianceExploding(),
    "vp": VariancePreserving(),
    "ddpm": DiscreteVariancePreserving(),
    "latent": DiscreteVariancePreserving(beta_start=0.00085, beta_end=0.012, schedule="scaled_linear"),
    "cosine": DiscreteVariancePreserving(schedule="cosine"),
    "zero_snr": DiscreteVariancePreserving(
        beta_start=0.00085, beta_end=0.012, schedule="scaled_linear", snr_shift=3.0, zero_snr=True
    ),
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


def wake(module, seed=0):
    """Random weights everywhere, also in layers that start at zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        with torch.no_grad():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return module


def neural(process=None, **surroundings):
    """A small neural teacher with two classes in the plane."""
    network = wake(MLP([2], width=8, depth=1, classes=CLASSES))
    return Teacher(Denoiser(network, process or VarianceExploding(), "edm", 1.0), (2,), CLASSES, **surroundings)


class Affine(Codec):
    """Data are `scale x + 1 + label`, with one more axis: what is decoded twice, never or for others shows."""

    def __init__(self, scale: float = 2.0):
        self.scale = scale

    def encode(self, batch):
        return (batch["data"][..., 0] - 1 - batch["label"][:, None]) / self.scale

    def decode(self, x, cond):
        return (self.scale * x + 1 + cond["label"][:, None])[..., None]

    def data_shape(self, event_shape):
        return (*event_shape, 1)


class Tail(Continuation):
    """What follows a sample is made for its end, the condition `name`; it is not detached, so gradient that flows shows."""

    def __init__(self, name: str = "before", axis: int = 2):
        self.name, self.axis = name, axis

    def __call__(self, cond, x_0):
        shared = self.overlap(cond)
        return {**cond, self.name: x_0.narrow(self.axis, x_0.shape[self.axis] - shared, shared)}

    def overlap(self, cond):
        return cond[self.name].shape[self.axis]


class Pairs(DistillData):
    """A few points in the plane with labels."""

    event_shape, classes = (2,), CLASSES

    def load(self):
        generator = torch.Generator().manual_seed(0)
        data = torch.randn(48, 2, generator=generator)
        made = TensorData({"data": data, "label": torch.arange(48) % 2})
        return made, made, made

    build_evaluator = media = None


class Record(Callback):
    """Everything that can change, before the first step and after each."""

    def on_train_start(self, trainer, model):
        self.states, self.grads = [self.look(trainer, model)], []

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        self.states.append(self.look(trainer, model))

    def on_before_optimizer_step(self, trainer, model, optimizer):
        self.grads.append({role: [p.grad for p in model.role_parameters(role)] for role in model.roles})

    def look(self, trainer, model):
        state = trainer.optimizers[0].state
        return SimpleNamespace(
            weights={role: [p.detach().clone() for p in model.role_parameters(role)] for role in model.roles},
            moments={
                role: [copy.deepcopy(dict(state[p])) for p in model.role_parameters(role) if p in state]
                for role in model.roles
            },
            ema=[p.detach().clone() for p in model.ema.parameters()] if model.ema is not None else [],
            bad=model.bad_steps.tolist(),
        )


def fit(model, max_steps, **settings):
    record = Record()
    run = trainer(max_steps, callbacks=[record], **settings)
    run.fit(model, Pairs(batch_size=8))
    return record.states, run, record


def heed_signals():
    """For `preexec_fn`: whoever started the tests may ignore signals, and what they start inherits that."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def same(one, two):
    """Bit for bit, at every depth."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


def at(model, step=0, rank=0, world=1, accumulate=1, micro=0):
    """The model as it is at this place of a run."""
    model._trainer = SimpleNamespace(
        global_step=step, global_rank=rank, world_size=world, accumulate_grad_batches=accumulate
    )
    model._micro = micro
    return model
