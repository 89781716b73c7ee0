"""The teacher of tokens: a frozen `DiscreteDenoiser` and its slow samplers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from distillkit.diffusion.denoiser import Cond
from distillkit.discrete.denoiser import DiscreteDenoiser, Guided
from distillkit.discrete.noise import BLOCK, Draws, for_rows
from distillkit.discrete.sampling import SAMPLERS, sample
from distillkit.teachers.base import Teacher
from distillkit.teachers.folder import Folder


class DiscreteTeacher(Teacher):
    """A frozen model of sequences of d tokens.

    Args:
        denoiser: `(x_t, t, cond) -> log pi` [B, d, S].
        event_shape: (d,).
        classes, context: as in `Teacher`.
    """

    denoiser_kind = DiscreteDenoiser
    solvers = SAMPLERS
    provides = frozenset({"log_probs"})
    best = {"solver": "tweedie", "steps": 128}

    @torch.no_grad()
    def sample(
        self,
        noise: Draws,
        cond: Cond,
        steps: int | None = None,
        solver: str | None = None,
        kappa: float = 1.0,
        times: Tensor | None = None,
    ) -> Tensor:
        """The slow reference: clean tokens [B, d].

        Args:
            noise: `noise(0)` makes the start, `noise(1 + i)` is the noise of network call i.
            cond: one condition per sample.
            steps, solver: None means the teacher's best; `steps` counts times, the last is for the call that denoises.
            kappa: guidance scale, 1 = none.
            times: the decreasing times to visit, instead of the teacher's grid of `steps`.
        """
        start = self.process.start(noise(0))
        times = (self.grid(steps or self.best["steps"]) if times is None else times).to(start.device)
        denoiser = self.denoiser if kappa == 1 else Guided(self.denoiser, self.null_condition, kappa)
        return sample(denoiser, start, times, lambda i: noise(1 + i), self.solver(solver), cond)

    def generate(self, num, cond, seed, solver=None, times=None, kappa=1.0, chunk=16 * BLOCK):
        parts = []
        for rows in torch.arange(num).split(chunk):
            noise = self.noise(seed, rows, self.device)
            own = {name: value[rows].to(self.device) for name, value in cond.items()}
            parts.append(self.sample(noise, own, None, solver, kappa, times).cpu())
        return torch.cat(parts)

    def noise(self, seed: int, rows: Tensor, device: torch.device | str = "cpu") -> Draws:
        """Of `sample`, for consecutive rows of a run, the first a multiple of `BLOCK`."""
        return for_rows(seed, int(rows[0]), int(rows[-1]) + 1, self.event_shape[0], self.process.num_states, device)

    def new_denoiser(self, network: nn.Module | None = None) -> DiscreteDenoiser:
        own = self.denoiser
        if network is None:
            copied = copy.deepcopy(own)
        else:
            arguments = {name: value for name, value in own._arguments.items() if name != "self"}
            copied = type(own)(**arguments | {"network": copy.deepcopy(network)})
        return copied.requires_grad_(True).train()


class DiscreteFolderTeacher(Folder, DiscreteTeacher):
    """A model of tokens from `model.safetensors` and `teacher.yaml`, see `distillkit.teachers.folder.Folder`."""
