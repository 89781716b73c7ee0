"""Samplers with a few learned numbers: times, and the coefficients of a deterministic solver.

They follow Bespoke solvers (arXiv 2310.19075), LD3 (arXiv 2405.15506) and S4S (arXiv 2502.17423):
the network stays the teacher's, the numbers are fitted to the ends of its trajectories.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distillkit.diffusion.process import Process
from distillkit.diffusion.sampling import Denoise, Noise, _scales
from distillkit.spec import Recorded


class LearnedTimes(nn.Module):
    """K decreasing times `t_k = t_min + (t_{k-1} - t_min) shrink_k`, the first one fixed; float64.

    Args:
        times: [K], the initial times.
        t_min: lower bound of all times.
        learn: whether the times after the first are trained.
    """

    def __init__(self, times: list[float], t_min: float, learn: bool):
        super().__init__()
        first = torch.tensor(times, dtype=torch.float64)
        if not len(first) or (first.diff() >= 0).any() or first[-1] <= t_min:
            raise ValueError(f"times must fall and stay above {t_min}, got {times}")
        self._first, self.t_min = first, t_min  # no buffer, which half precision would round
        self.shrink = nn.Parameter(torch.zeros(len(first) - 1)) if learn else None

    def forward(self) -> Tensor:
        """The times, [K]."""
        if self.shrink is None:
            return self._first
        above = self._first.to(self.shrink.device) - self.t_min
        shrink = (self._logits(above) + self.shrink.double()).sigmoid()
        return self.t_min + above[0] * torch.cat([torch.ones_like(above[:1]), shrink.cumprod(0)])

    @torch.no_grad()
    def move_to(self, times: Tensor) -> None:
        """Set the times; the first one must be unchanged."""
        above = times.to(self.shrink.device) - self.t_min
        self.shrink.copy_(self._logits(above) - self._logits(self._first.to(above) - self.t_min))

    @staticmethod
    def _logits(above: Tensor) -> Tensor:
        return torch.logit(above[1:] / above[:-1])


class LearnedSolver(Recorded, nn.Module):
    """A multistep solver: DDIM's step from t_k with `sum_j c_kj x_0(x_j, t_j)`, j = 0 .. k, as x_0.

    It starts as DDIM (c the identity); DPM-Solver++(2M) is another special case. It has
    K (K + 1) / 2 coefficients, and the times.

    Args:
        process: the noising process.
        times: [K] decreasing, the initial times.
        learn_times: whether the times are trained.
    """

    def __init__(self, process: Process, times: list[float], learn_times: bool = False):
        super().__init__()
        self.process = process
        self.times = LearnedTimes(times, process.t_min, learn_times)
        # the change of c; entries above the diagonal are not used
        self.change = nn.Parameter(torch.zeros(len(times), len(times)))

    @property
    def coefficients(self) -> Tensor:
        """c, [K, K] lower triangular."""
        return torch.eye(len(self.change), device=self.change.device) + self.change.tril()

    def facts(self) -> dict[str, list]:
        """The learned numbers as plain lists, for reports."""
        rows = [row[: k + 1] for k, row in enumerate(self.coefficients.tolist())]
        return {"times": self.times().tolist(), "coefficients": rows}

    def forward(
        self, denoise: Denoise, process: Process, x: Tensor, times: Tensor | None = None, noise: Noise | None = None
    ) -> Tensor:
        """Run as any solver of `distillkit.diffusion.sampling`, but on the solver's own times."""
        times, coefficients, seen = self.times().to(x.device), self.coefficients.to(x.dtype), []
        for k, t in enumerate(times):
            seen.append(denoise(x, t))
            x_0 = torch.tensordot(coefficients[k, : k + 1], torch.stack(seen), dims=1)
            if k + 1 < len(times):
                (alpha, sigma), (alpha_s, sigma_s) = _scales(process, t, x), _scales(process, times[k + 1], x)
                x = alpha_s * x_0 + sigma_s * (x - alpha * x_0) / sigma
        return x_0
