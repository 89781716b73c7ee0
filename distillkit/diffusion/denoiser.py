"""Denoisers: `denoiser(x_t, t, cond) -> x_0`, in data units, whatever the network predicts."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distillkit import checks
from distillkit.diffusion.process import Process, expand, expand_mask
from distillkit.spec import Recorded

Cond = dict[str, Tensor]
Prediction = Literal["x0", "eps", "v", "flow", "edm"]


def precise(x: Tensor) -> Tensor:
    """x in at least float32.

    A sample rounded to half precision must not meet a division by a small alpha or sigma.
    """
    return x.to(torch.promote_types(torch.float32, x.dtype))


def _safe(scale: Tensor) -> Tensor:
    return scale.clamp_min(1e-6)


# The conversions, for any alpha and sigma (broadcastable tensors).


def eps_from_x0(x_t: Tensor, x_0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """`eps = (x_t - alpha x_0) / sigma`."""
    return (x_t - alpha * x_0) / _safe(sigma)


def x0_from_eps(x_t: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """`x_0 = (x_t - sigma eps) / alpha`."""
    return (x_t - sigma * eps) / _safe(alpha)


def v_from_x0(x_t: Tensor, x_0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """`v = alpha eps - sigma x_0` (arXiv 2202.00512); it needs `alpha^2 + sigma^2 = 1`."""
    return alpha * eps_from_x0(x_t, x_0, alpha, sigma) - sigma * x_0


def x0_from_v(x_t: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """`x_0 = alpha x_t - sigma v`; it needs `alpha^2 + sigma^2 = 1`."""
    return alpha * x_t - sigma * v


def score_from_x0(x_t: Tensor, x_0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """`s = (alpha x_0 - x_t) / sigma^2` (Tweedie)."""
    return (alpha * x_0 - x_t) / _safe(sigma) ** 2


def velocity_from_x0(x_t: Tensor, x_0: Tensor, alpha: Tensor, sigma: Tensor, d_alpha: Tensor, d_sigma: Tensor):
    """`u = alpha' x_0 + sigma' eps`: the velocity of the probability-flow ODE."""
    return d_alpha * x_0 + d_sigma * eps_from_x0(x_t, x_0, alpha, sigma)


def x0_from_velocity(x_t: Tensor, u: Tensor, alpha: Tensor, sigma: Tensor, d_alpha: Tensor, d_sigma: Tensor):
    """`x_0 = ((sigma'/sigma) x_t - u) / ((sigma'/sigma) alpha - alpha')`."""
    slope = d_sigma / _safe(sigma)
    return (slope * x_t - u) / (slope * alpha - d_alpha)


WAVES = "(0, 64]"  # the frequencies of waves of the level; networks are built with 64


class Denoiser(Recorded, nn.Module):
    """A network with its noising process and its prediction type, read as an x_0-prediction.

    Samples may be padded sets of different sizes: `cond["mask"]`, bool [B, *positions], is then
    true at elements and false at padding. Padding enters the network as zero and leaves the
    denoiser as zero.

    A network whose attribute `centred` is true works on sets of points [B, N, C] with mean zero.
    The input loses its mean over the points (which is noise alone), and the output has mean zero.

    A network whose attribute `blind` is true does not look at x, see `networks.base.Blind`. One
    whose attribute `any_number` is true takes sets of other sizes than the one it was built for.

    Args:
        network: `network(x, time, cond) -> tensor like x`; `x` is scaled to order one, `time` is
            `process.network_time(t)`.
        process: the noising process.
        prediction: `x0`, `eps`, `v` (variance preserving only), `flow` (`alpha' x_0 + sigma' eps`)
            or `edm` (preconditioned, EDM eq. 7; works on every process through the ratio sigma /
            alpha).
        sigma_data: standard deviation of the data, used by `edm`.
        told: further conditions of the network, `{name: arguments of tell}`.
        fastest: see `slow`; None leaves the waves as they are.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        prediction: Prediction = "edm",
        sigma_data: float = 0.5,
        told: dict[str, dict[str, Any]] | None = None,
        fastest: float | None = None,
    ):
        super().__init__()
        if prediction not in ("x0", "eps", "v", "flow", "edm"):
            raise ValueError(f"prediction must be x0, eps, v, flow or edm, got {prediction!r}")
        checks.positive("it is the standard deviation of the data", sigma_data=sigma_data)
        if getattr(network, "blind", False) and prediction not in ("x0", "edm"):
            raise ValueError(
                f"{type(network).__name__} does not see the noise, which {prediction} prediction would leave in the samples: "
                f"give a network that sees it"
            )
        if prediction == "v":
            t = torch.tensor([process.t_min, process.t_max], dtype=torch.float64).mean()
            if abs(float(process.alpha(t) ** 2 + process.sigma(t) ** 2) - 1) > 1e-6:
                raise ValueError(f"v prediction needs alpha^2 + sigma^2 = 1, which {process} is not: use flow")
        self.network, self.process, self.prediction, self.sigma_data = network, process, prediction, sigma_data
        self.told: dict[str, dict[str, Any]] = {}
        for name, kind in (told or {}).items():
            self.tell(name, **kind)
        self.fastest = fastest
        if fastest is not None:
            checks.within(WAVES, fastest=fastest)
            for embedding in self._embeddings():
                embedding.fastest = fastest

    def recorded(self):
        """The arguments as they are now; without such, there are no keys `told` and `fastest`."""
        later = {"told": self.told or None, "fastest": self.fastest}
        arguments = {name: value for name, value in super().recorded().items() if name not in later}
        return arguments | {name: value for name, value in later.items() if value is not None}

    @property
    def tellable(self) -> bool:
        """Whether the network can be told further conditions."""
        return hasattr(getattr(self.network, "embed", None), "tell")

    def tell(
        self,
        name: str,
        categories: int | None = None,
        range: Sequence[float] | None = None,
        size: int | None = None,
    ) -> None:
        """Add a further condition `cond[name]` to the network; every call then needs it.

        Its weights belong to the network and start at zero: outputs stay bit for bit the same until
        they are trained.

        Args:
            name: an identifier that no condition of the network has yet.
            categories: their number; `cond[name]` is int64 [B], from 0 (which step of a student is
                judged).
            range: the smallest and the largest value of a number; `cond[name]` is float [B] (kappa,
                the end of a jump).
            size: elements of a vector of order one; `cond[name]` is float [B, size] (a camera).

        Raises:
            ValueError: no kind or several, a name that is taken, a size or a range without sense, a
                network that cannot be told.
        """
        if not self.tellable:
            raise ValueError(
                f"{type(self.network).__name__} cannot be told {name!r}: give the network an `embed` with a method `tell`, such "
                f"as distillkit.networks.blocks.Embedding"
            )
        self.network.embed.tell(name, categories=categories, range=range, size=size)
        given = {"categories": categories, "range": None if range is None else list(range), "size": size}
        self.told[name] = {kind: value for kind, value in given.items() if value is not None}

    def slow(self, fastest: float) -> None:
        """Let the network see the noise level in waves up to `fastest` from now on.

        Fast waves make the derivative in the level large, so that continuous-time consistency runs
        away (sCM, arXiv 2410.11081, section 4). The denoised samples stay nearly the same: first
        layers of embeddings are fitted anew. A network without such embeddings stays as it is, so
        do adapters on a frozen one.

        Args:
            fastest: frequency in the network's time, in units of pi / 2, in (0, 64].

        Raises:
            ValueError: it is out of range.
        """
        checks.within(WAVES, fastest=fastest)
        ends = self.process.network_time(torch.tensor([self.process.t_min, self.process.t_max], dtype=torch.float64))
        if embeddings := self._embeddings():
            for embedding in embeddings:
                embedding.slow(fastest, ends.tolist())
            self.fastest = fastest

    def _embeddings(self) -> list[nn.Module]:
        """The network's embeddings of time whose waves can be made slower."""
        return [module for module in self.network.modules() if hasattr(module, "slow")]

    def with_network(self, network: nn.Module) -> Denoiser:
        """Returns a denoiser on the same process with another network, told the same conditions."""
        return Denoiser(network, self.process, self.prediction, self.sigma_data, self.told, self.fastest)

    def merged(self) -> Denoiser:
        """Returns a denoiser with adapters merged into a plain network, or itself without any."""
        if not hasattr(self.network, "merge"):
            return self
        made = copy.deepcopy(self)
        made.network = made._arguments["network"] = self.network.merge()
        return made

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """The denoised sample E[x_0 | x_t]; x_t: [B, ...]; t: [B] or scalar; at least float32."""
        x_t, t = self._inside(x_t, cond), self._time(x_t, t)
        alpha, sigma = (expand(s(t), x_t) for s in (self.process.alpha, self.process.sigma))
        out = self.network(self._scaled(x_t, alpha, sigma), self.process.network_time(t), cond or {})
        out = self._inside(out.to(x_t.dtype), cond)
        if self.prediction == "edm":
            var = self.sigma_data**2
            total = alpha**2 * var + sigma**2  # variance of x_t
            return alpha * var / total * x_t + sigma * self.sigma_data * total.rsqrt() * out
        if self.prediction == "eps":
            return x0_from_eps(x_t, out, alpha, sigma)
        if self.prediction == "v":
            return x0_from_v(x_t, out, alpha, sigma)
        if self.prediction == "flow":
            return x0_from_velocity(x_t, out, alpha, sigma, *(expand(d, x_t) for d in self.process.derivatives(t)))
        return out

    def features(
        self, x_t: Tensor, t: Tensor, cond: Cond | None = None, layers: Sequence[int] | None = None
    ) -> Tensor | list[Tensor]:
        """Features of the network, for discriminator heads.

        Args:
            x_t, t, cond: as for the denoiser itself.
            layers: indices from 0 of the network's blocks, of which it has as many as
                `feature_widths`.

        Returns:
            The features in the middle, [B, C, *positions]; with `layers` a list of those after each
            of these blocks.

        Raises:
            ValueError: the network has no such blocks.
        """
        if layers is not None and not hasattr(self.network, "feature_widths"):
            raise ValueError(
                f"{type(self.network).__name__} gives the features in its middle alone, got layers={layers}: leave them null"
            )
        x_t, t = self._inside(x_t, cond), self._time(x_t, t)
        alpha, sigma = (expand(s(t), x_t) for s in (self.process.alpha, self.process.sigma))
        chosen = () if layers is None else (layers,)
        return self.network.features(self._scaled(x_t, alpha, sigma), self.process.network_time(t), cond or {}, *chosen)

    def eps(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """The predicted noise."""
        x_t = precise(x_t)
        alpha, sigma = self.scales(x_t, t)
        return eps_from_x0(x_t, self(x_t, t, cond), alpha, sigma)

    def score(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """The score of the noised marginal at t."""
        x_t = precise(x_t)
        alpha, sigma = self.scales(x_t, t)
        return score_from_x0(x_t, self(x_t, t, cond), alpha, sigma)

    def velocity(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """The velocity dx/dt of the probability-flow ODE."""
        x_t, t = precise(x_t), self._time(x_t, t)
        rates = (expand(d, x_t) for d in self.process.derivatives(t))
        return velocity_from_x0(x_t, self(x_t, t, cond), *self.scales(x_t, t), *rates)

    def scales(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """`(alpha, sigma)` at t, shaped to broadcast against x_t."""
        t = self._time(x_t, t)
        return expand(self.process.alpha(t), x_t), expand(self.process.sigma(t), x_t)

    def loss_weight(self, t: Tensor) -> Tensor:
        """Weight [B] of a squared x_0 error that gives the network's regression target unit weight.

        - edm: `1/ratio^2 + 1/sigma_data^2`
        - eps: `1/ratio^2`
        - v: `1 + 1/ratio^2`
        - flow: `(alpha sigma'/sigma - alpha')^2`
        """
        ratio = self.process.ratio(t)
        if self.prediction == "edm":
            return ratio**-2 + self.sigma_data**-2
        if self.prediction == "eps":
            return ratio**-2
        if self.prediction == "v":
            return 1 + ratio**-2
        if self.prediction == "flow":
            d_alpha, d_sigma = self.process.derivatives(t)
            return (d_sigma * self.process.alpha(t) / _safe(self.process.sigma(t)) - d_alpha) ** 2
        return torch.ones_like(ratio)

    def _inside(self, x: Tensor, cond: Cond | None) -> Tensor:
        """x in at least float32, zero at padding (also if NaN), centred if the network is."""
        mask = (cond or {}).get("mask")
        centred = getattr(self.network, "centred", False)
        if mask is None:
            return precise(x) - precise(x).mean(1, keepdim=True) if centred else precise(x)
        seen = expand_mask(mask, x)
        x = torch.where(seen, precise(x), 0)
        if not centred:
            return x
        return torch.where(seen, x - x.sum(1, keepdim=True) / seen.sum(1, keepdim=True).clamp_min(1), 0)

    def _time(self, x_t: Tensor, t: Tensor) -> Tensor:
        """t as [B], at least float32 and at least as precise as x_t."""
        dtype = torch.promote_types(torch.float32, x_t.dtype)
        t = torch.as_tensor(t, device=x_t.device, dtype=dtype)
        return t.expand(x_t.shape[0]) if t.ndim == 0 else t

    def _scaled(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The network's input: unit variance for `edm`, x_t itself otherwise."""
        if self.prediction != "edm":
            return x_t
        return x_t * ((alpha * self.sigma_data) ** 2 + sigma**2).rsqrt()


LARGEST_SAMPLE = 2**26  # numbers in one sample that a folder may ask for


def number(value: Any) -> bool:
    """Whether the value is a finite number that is not negative."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


def numbers(value: Any) -> bool:
    """Whether the value is a list of at least one number."""
    return isinstance(value, list) and bool(value) and all(map(number, value))


def check_facts(config: dict[str, Any], file: Path, denoiser: Any, kind: type = Denoiser) -> None:
    """Refuse a folder whose yaml holds values of the wrong kind, before any of them is used."""
    shape, classes, context = (config.get(key) or {} for key in ("event_shape", "classes", "context"))
    counts = [*classes.values(), 1] if isinstance(classes, dict) else []
    network = getattr(denoiser, "network", None)
    known = network.recorded() if isinstance(network, Recorded) else {}
    tables = dict(known["classes"]) if isinstance(known.get("classes"), dict) else {}
    # a told condition has no null class; a number or a vector has no classes
    tables |= {name: told.get("categories", 1) - 1 for name, told in getattr(denoiser, "told", {}).items()}
    own = known.get("event_shape") or getattr(network, "event_shape", None) or shape
    sets = isinstance(context, list) and "mask" in context or getattr(network, "any_number", False)
    first = 1 if sets else 0  # sets come in all sizes
    sound = {
        "denoiser": isinstance(denoiser, kind),
        "event_shape": numbers(shape)
        and _whole(shape)
        and math.prod(shape) <= LARGEST_SAMPLE
        and shape[first:] == list(own)[first:],
        "classes": numbers(counts)
        and _whole(counts)
        and all(_name(name) and count <= tables.get(name, LARGEST_SAMPLE) for name, count in classes.items())
        and "mask" not in classes,
        "context": not context or isinstance(context, list) and all(map(_name, context)),
    }
    try:
        json.dumps(config)  # as exports hold it
    except TypeError as error:
        raise ValueError(f"{file} is damaged: it holds more than plain values ({error})") from None
    for key, fine in sound.items():
        if not fine:
            raise ValueError(f"{file} is damaged: {key} cannot be {repr(config.get(key))[:80]}")


def _name(value: Any) -> bool:
    """Whether a condition can have this name, which is also the name of an array in an npz file."""
    return isinstance(value, str) and value.isidentifier() and value not in ("samples", "file", "allow_pickle")


def _whole(values: list[float]) -> bool:
    return all(isinstance(value, int) and value > 0 for value in values)
