"""Noise optimisation (DITTO, arXiv 2401.12179): the noise whose sample is what is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distillkit import checks
from distillkit.control.control import Control
from distillkit.diffusion.denoiser import Cond

STEPS, LR = 70, 0.1  # those of DITTO for intensity; the rate by music, see docs/optimize.md


@dataclass(frozen=True)
class Found:
    """The noise of B samples, and how it was found.

    Attributes:
        noise: [B, ...], of each sample the noise with the smallest loss seen.
        loss: [B], that smallest loss; infinite where no loss was finite.
        history: [B, steps + 1], the loss before each step and after the last; NaN where a sample
            was done earlier, or had no loss.
        taken: [B], steps until the sample was done.
        skipped: [B], steps left out because the gradient was not finite.
        seconds: wall time.
    """

    noise: Tensor
    loss: Tensor
    history: Tensor
    taken: Tensor
    skipped: Tensor
    seconds: float

    @classmethod
    def joined(cls, parts: Sequence[Found]) -> Found:
        """The results of several batches as one, on the CPU."""
        names = ("noise", "loss", "history", "taken", "skipped")
        tensors = (torch.cat([getattr(part, name).cpu() for part in parts]) for name in names)
        return cls(*tensors, sum(part.seconds for part in parts))


class NoiseOptimizer:
    """Adam on the noise of each sample, through a frozen sampler (DITTO, section 3).

    `z* = argmin_z sum_k w_k L_k(sample(z, cond))`. Samples do not influence each other: each has
    its own loss and its own state of Adam, and leaves the batch once its loss is small enough.

    Args:
        sample: `(z, cond) -> x`, differentiable in z, [B, ...] unit noise; x in the space of the
            diffusion.
        controls: what is asked; their losses are added, each times its weight.
        steps: steps of Adam at most.
        lr: of Adam, in units of the noise's standard deviation.
        project: whether each noise is scaled to the norm sqrt(dim) after each step, near which unit
            Gaussian noise of many dimensions lies.
        tolerance: a sample whose loss is not above it is done.
        weights: of the controls; None means 1 for each.
    """

    def __init__(
        self,
        sample: Callable[[Tensor, Cond], Tensor],
        controls: Sequence[Control],
        steps: int = STEPS,
        lr: float = LR,
        project: bool = False,
        tolerance: float = 0.0,
        weights: Sequence[float] | None = None,
    ):
        checks.whole(0, steps=steps)
        checks.finite(tolerance=tolerance)
        self.sample, self.controls, self.steps, self.lr = sample, list(controls), steps, lr
        self.weights = [1.0] * len(self.controls) if weights is None else list(weights)
        checks.positive(lr=lr, weights=self.weights)
        self.project, self.tolerance = project, tolerance

    def loss(self, z: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """The loss [B] of the samples from noise z [B, ...]."""
        x = self.sample(z, cond)
        return sum(w * control.loss(x, cond) for w, control in zip(self.weights, self.controls, strict=True))

    def __call__(self, noise: Tensor, cond: Cond) -> Found:
        """The best noise found from `noise` [B, ...], each with its conditions [B, ...]."""
        began, rows = time.perf_counter(), list(range(len(noise)))
        leaves = [z.detach().clone().requires_grad_() for z in noise]
        optimizer = torch.optim.Adam(leaves, self.lr)
        best, lowest = noise.detach().clone(), torch.full((len(noise),), torch.inf, dtype=torch.float64)
        history = torch.full((len(noise), self.steps + 1), torch.nan, dtype=torch.float64)
        taken, skipped = torch.zeros(2, len(noise), dtype=torch.int64)
        for step in range(self.steps + 1):
            with torch.set_grad_enabled(step < self.steps):
                z = torch.stack([leaves[i] for i in rows])
                loss = self.loss(z, {name: value[rows] for name, value in cond.items()})
            history[rows, step] = seen = loss.detach().double().cpu()
            better = [i for i, value in zip(rows, seen.tolist(), strict=True) if value < lowest[i]]
            for i in better:
                best[i], lowest[i] = leaves[i].detach(), history[i, step]
            left = (seen > self.tolerance) | seen.isnan()
            if step == self.steps or not left.any():
                break
            gradients = torch.autograd.grad(loss.sum(), z)[0]
            finite = gradients.flatten(1).isfinite().all(1).cpu()
            for i, gradient, moves in zip(rows, gradients, left & finite, strict=True):
                leaves[i].grad = gradient if moves else None  # Adam passes over it
            optimizer.step()
            taken[rows] += left.long()
            skipped[rows] += (left & ~finite).long()
            rows = [i for i, goes_on in zip(rows, left, strict=True) if goes_on]
            if self.project:
                self._project(leaves, rows)
        return Found(best, lowest, history, taken, skipped, time.perf_counter() - began)

    @staticmethod
    @torch.no_grad()
    def _project(leaves: Sequence[Tensor], rows: Sequence[int]) -> None:
        """Scale the noise of each row to the norm sqrt(dim)."""
        for i in rows:
            leaves[i].mul_(leaves[i].numel() ** 0.5 / leaves[i].norm())
