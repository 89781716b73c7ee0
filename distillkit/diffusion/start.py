"""The input at which sampling starts, shared by teacher, training and student."""

from __future__ import annotations

from torch import Tensor

from distillkit import checks
from distillkit.diffusion.denoiser import Cond
from distillkit.diffusion.process import Process, expand
from distillkit.spec import Recorded


class Start(Recorded):
    """`x = alpha(t) base + sigma(t) eps`: the input of the first network evaluation.

    Without a base it is pure noise, `sigma(t) eps`. A base is a known approximation of the sample:
    the points of a scan, a coarse render.

    Args:
        base: name of the condition that holds the base, shaped like a sample; None for pure noise.
            A base with fewer elements along the first axis (the points of a scan) is repeated as a
            whole.
        level: the time at which sampling starts; None for the process's largest.
    """

    def __init__(self, base: str | None = None, level: float | None = None):
        if level is not None:
            checks.positive(level=level)
        self.base, self.level = base, level

    @property
    def pure(self) -> bool:
        """Whether sampling starts from pure noise at the process's largest time."""
        return self.base is None and self.level is None

    def __call__(self, process: Process, eps: Tensor, t: Tensor, cond: Cond, scale: float = 1.0) -> Tensor:
        """The first input, [B, ...].

        Args:
            process: the noising process.
            eps: unit Gaussian noise, [B, ...].
            t: the first time, [B] or scalar.
            cond: conditions; the base is one of them.
            scale: factor on the noise, see `few_step`.

        Raises:
            ValueError: the base is not shaped like the noise.
        """
        noise = scale * (expand(process.sigma(t).to(eps.dtype), eps) * eps)
        if self.base is None:
            return noise
        return expand(process.alpha(t).to(eps.dtype), eps) * self.repeated(cond[self.base], eps) + noise

    def repeated(self, base: Tensor, like: Tensor) -> Tensor:
        """The base [B, n, ...] as often as it goes into samples [B, N, ...], one after the other.

        Raises:
            ValueError: it does not go into them.
        """
        if base.shape == like.shape:
            return base
        fits = base.ndim == like.ndim == 3 and base.shape[1] and not like.shape[1] % base.shape[1]
        if not fits or base.shape[:1] + base.shape[2:] != like.shape[:1] + like.shape[2:]:
            often = " or go into them a whole number of times" if like.ndim == 3 else ""
            raise ValueError(
                f"cond[{self.base!r}], from which sampling starts, must be shaped like the samples, "
                f"{list(like.shape)}{often}, got {list(base.shape)}"
            )
        return base.repeat(1, like.shape[1] // base.shape[1], *[1] * (base.ndim - 2))

    def check(self, process: Process, context: tuple[str, ...]) -> None:
        """Refuse a base that is no condition and a level outside of the process.

        Raises:
            ValueError: one of these.
        """
        if self.base is not None and self.base not in context:
            raise ValueError(
                f"sampling starts from {self.base!r}, which is not among the conditions {list(context)}: add it to context"
            )
        if self.level is not None:
            checks.within(f"({process.t_min}, {process.t_max}]", level=self.level)
