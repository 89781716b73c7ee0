"""Teachers in closed form, mixtures of Gaussians, on which methods are proved.

Under `x_t = alpha x_0 + sigma eps` a component N(m, C) becomes N(alpha m, alpha^2 C + sigma^2 I).
So the denoiser, the score, the density and (for one Gaussian) the probability-flow map are
formulas.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distillkit import checks
from distillkit.diffusion.denoiser import Cond, Denoiser, precise
from distillkit.diffusion.process import Process, expand
from distillkit.networks.mlp import MLP
from distillkit.spec import Recorded
from distillkit.teachers.base import BaseTeacher, Teacher


class Mixture(Recorded, nn.Module):
    """A mixture of Gaussians in D dimensions, float64 inside.

    Args:
        means: [K][D], finite.
        covariances: [K][D][D], positive definite.
        weights: [K], positive, scaled to sum to one; None means equal.
        labels: [K], the class of each component; conditioning on a class keeps its components. None
            means one class for all.

    Raises:
        ValueError: a value or a shape is not as described.
    """

    def __init__(self, means, covariances, weights=None, labels=None):
        super().__init__()
        means = torch.as_tensor(means, dtype=torch.float64)
        covariances = torch.as_tensor(covariances, dtype=torch.float64)
        if not (means.isfinite().all() and covariances.isfinite().all()):
            raise ValueError("means and covariances of a mixture must be finite numbers")
        num, size = means.shape
        if covariances.shape != (num, size, size):
            raise ValueError(
                f"{num} means in {size} dimensions need covariances [{num}, {size}, {size}], got {tuple(covariances.shape)}"
            )
        weights = torch.ones(num) if weights is None else torch.as_tensor(weights, dtype=torch.float64)
        weights = weights.to(torch.float64)
        if (weights <= 0).any() or weights.shape != (num,):
            raise ValueError(f"a mixture of {num} components needs {num} positive weights, got {weights.tolist()}")
        checks.positive(weights=weights.tolist())
        values, vectors = torch.linalg.eigh(covariances)
        if (values <= 0).any():
            raise ValueError("every covariance must be positive definite")
        labels = [0] * num if labels is None else labels
        state = {"means": means, "log_weights": (weights / weights.sum()).log(), "variances": values, "axes": vectors}
        for name, value in state.items():
            self.register_buffer(name, value)
        self.register_buffer("labels", torch.as_tensor(labels))

    def _apply(self, fn, recurse: bool = True):
        """Follows the module to another device, but stays in float64 whatever the cast."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)

    @property
    def weights(self) -> Tensor:
        return self.log_weights.exp()

    @property
    def mean(self) -> Tensor:
        """The mean of the whole mixture, [D]."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        """The covariance of the whole mixture, [D, D]."""
        centred = self.means - self.mean
        within = torch.einsum("k,kde,ke,kfe->df", self.weights, self.axes, self.variances, self.axes)
        return within + torch.einsum("k,kd,ke->de", self.weights, centred, centred)

    def _responsibilities(self, x: Tensor, alpha: Tensor, sigma: Tensor, label: Tensor | None):
        """The log joint density of x [B, D] and component, [B, K].

        Also returns the coordinates of x along each component's axes and their variances, both
        [B, K, D].
        """
        local = torch.einsum("bkd,kde->bke", x[:, None] - alpha[:, :, None] * self.means, self.axes)  # [B, K, D]
        variance = alpha[:, :, None] ** 2 * self.variances + sigma[:, :, None] ** 2
        log = self._log_weights(label) - 0.5 * (local**2 / variance + (2 * math.pi * variance).log()).sum(-1)
        return log, local, variance

    def _log_weights(self, label: Tensor | None) -> Tensor:
        """The log weights given the class, [B, K], or [K] without labels.

        A class without components (the null class) keeps them all.
        """
        if label is None:
            return self.log_weights
        own = self.labels == label[:, None]
        return self.log_weights.masked_fill(~(own | ~own.any(1, keepdim=True)), -math.inf).log_softmax(-1)

    def _flat(self, x: Tensor, alpha: Tensor, sigma: Tensor):
        alpha, sigma = (torch.as_tensor(s, dtype=torch.float64, device=x.device).reshape(-1, 1) for s in (alpha, sigma))
        return x.flatten(1).to(torch.float64), alpha, sigma

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """The posterior mean `E[x_0 | alpha x_0 + sigma eps = x]`, in shape and type of x.

        Args:
            x: noised samples, [B, ...].
            alpha, sigma: signal and noise level, [B] or scalars.
            label: classes [B]; None means the whole mixture.
        """
        flat, alpha, sigma = self._flat(x, alpha, sigma)
        log, local, variance = self._responsibilities(flat, alpha, sigma, label)
        shrunk = alpha[:, :, None] * self.variances / variance * local
        posterior = self.means + torch.einsum("bke,kde->bkd", shrunk, self.axes)
        out = torch.einsum("bk,bkd->bd", log.softmax(-1), posterior)
        return out.reshape(x.shape).to(x.dtype)

    def log_prob(self, x: Tensor, alpha=1.0, sigma=0.0, label: Tensor | None = None) -> Tensor:
        """The log density of the noised mixture at x [B, ...], [B]."""
        return self._responsibilities(*self._flat(x, alpha, sigma), label)[0].logsumexp(-1)

    def log_posterior(self, x: Tensor, label: Tensor) -> Tensor:
        """The log probability [B] that a clean sample x [B, ...] is of the class `label` [B]."""
        log = self._responsibilities(*self._flat(x, 1.0, 0.0), None)[0]
        return log.masked_fill(self.labels != label[:, None], -math.inf).logsumexp(-1) - log.logsumexp(-1)

    def sample(self, num: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draws `num` exact samples, [num, D], and their components, [num], on the CPU."""
        weights, means, axes, variances = (v.cpu() for v in (self.weights, self.means, self.axes, self.variances))
        component = torch.multinomial(weights, num, replacement=True, generator=generator)
        noise = torch.randn((num, means.shape[1]), generator=generator, dtype=torch.float64)
        local = variances[component].sqrt() * noise
        return means[component] + torch.einsum("bde,be->bd", axes[component], local), component


class ExactDenoiser(Denoiser):
    """The closed-form denoiser of a mixture.

    Args:
        mixture: the data distribution.
        process: the noising process.
        condition: name of the class that selects components; None means unconditional.
    """

    def __init__(self, mixture: Mixture, process: Process, condition: str | None = None):
        sigma_data = float(mixture.covariance.diagonal().mean().sqrt())
        super().__init__(nn.Identity(), process, "x0", sigma_data)
        self.mixture, self.condition = mixture, condition

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        x_t, t = precise(x_t), self._time(x_t, t)
        label = (cond or {}).get(self.condition) if self.condition else None
        return self.mixture.denoise(x_t, self.process.alpha(t), self.process.sigma(t), label)


class CorrectedDenoiser(Denoiser):
    """A trainable denoiser that starts as the exact one: `D = exact + c_out F(c_in x_t)`.

    F is zero at the start. It stands in for the copy of a neural teacher's weights.
    """

    def __init__(
        self,
        exact: ExactDenoiser,
        network: nn.Module,
        told: dict[str, dict[str, Any]] | None = None,
        fastest: float | None = None,
    ):
        super().__init__(network, exact.process, "edm", exact.sigma_data, told, fastest)
        self.exact = exact

    def with_network(self, network):
        return CorrectedDenoiser(self.exact, network, self.told, self.fastest)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        x_t, t = precise(x_t), self._time(x_t, t)
        alpha, sigma = (expand(s(t), x_t) for s in (self.process.alpha, self.process.sigma))
        correction = self.network(self._scaled(x_t, alpha, sigma), self.process.network_time(t), cond or {})
        scale = sigma * self.sigma_data * ((alpha * self.sigma_data) ** 2 + sigma**2).rsqrt()
        return self.exact(x_t, t, cond) + scale * correction


class ExactTeacher(Teacher):
    """A teacher that is a mixture of Gaussians.

    Args:
        mixture: the data distribution.
        process: the noising process.
        event_shape: shape of a sample, with D elements; None means [D].
        classes: `{name: number of classes}` if the mixture's components are labelled.
    """

    best = {"solver": "heun", "steps": 40}
    apart = Teacher.apart | {"_network"}

    def __init__(
        self,
        mixture: Mixture,
        process: Process,
        event_shape: Sequence[int] | None = None,
        classes: dict[str, int] | None = None,
    ):
        shape = tuple(event_shape or mixture.mean.shape)
        super().__init__(ExactDenoiser(mixture, process, next(iter(classes or {}), None)), shape, classes)

    @property
    def mixture(self) -> Mixture:
        return self.denoiser.mixture

    def frozen_network(self) -> MLP:
        """The correction network F: drawn with a fixed seed, for there are no weights to copy."""
        if not hasattr(self, "_network"):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.__dict__["_network"] = MLP(self.event_shape, 96, classes=self.classes).requires_grad_(False)
        return self._network

    def new_denoiser(self, network: nn.Module | None = None) -> Denoiser:
        network = copy.deepcopy(self.frozen_network() if network is None else network)
        return CorrectedDenoiser(self.denoiser, network).requires_grad_(True).train()

    def exact_samples(self, num: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draws a batch of real data: float32 `data`, [num, *event_shape], and classes, [num]."""
        samples, component = self.mixture.sample(num, generator)
        batch = {"data": samples.reshape(num, *self.event_shape).float()}
        return batch | {name: self.mixture.labels.cpu()[component] for name in self.classes}

    def flow_map(self, x: Tensor, t: float, s: float) -> Tensor:
        """The exact solution at time s of the probability-flow ODE from x [B, ...] at time t.

        Raises:
            ValueError: the mixture has more than one component.
        """
        if len(self.mixture.means) != 1:
            raise ValueError(
                f"only a single Gaussian has a closed flow map, this mixture has {len(self.mixture.means)} components"
            )
        process, (mean,), (axes,) = self.process, self.mixture.means, self.mixture.axes
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (
            (process.alpha(u), process.sigma(u)) for u in torch.tensor([t, s], dtype=torch.float64)
        )
        variance = self.mixture.variances[0]
        gain = ((alpha_s**2 * variance + sigma_s**2) / (alpha_t**2 * variance + sigma_t**2)).sqrt()
        local = (x.flatten(1).double() - alpha_t * mean) @ axes * gain
        return (alpha_s * mean + local @ axes.T).reshape(x.shape).to(x.dtype)


def exact(teacher: BaseTeacher) -> ExactTeacher:
    """The exact teacher itself, or the one that a teacher with a `CorrectedDenoiser` corrects.

    Raises:
        ValueError: the teacher has no closed form.
    """
    if isinstance(teacher, ExactTeacher):
        return teacher
    if not isinstance(teacher.denoiser, CorrectedDenoiser):
        raise ValueError(
            f"the law of {teacher.id} is not known: name an exact teacher for the data, such as "
            f"'data.teacher={{_target_: domains.toy.teacher.Gaussian}}'"
        )
    own = teacher.denoiser.exact
    return ExactTeacher(own.mixture, own.process, teacher.event_shape, teacher.classes)
