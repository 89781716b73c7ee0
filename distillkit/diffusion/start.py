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
    the repeated points of a scan, a coarse render.

    Args:
        base: name of the condition that holds the base, shaped like a sample; None for pure noise.
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
        if cond[self.base].shape != eps.shape:
            raise ValueError(
                f"cond[{self.base!r}], from which sampling starts, must be shaped like the samples, {list(eps.shape)}, got "
                f"{list(cond[self.base].shape)}"
            )
        return expand(process.alpha(t).to(eps.dtype), eps) * cond[self.base] + noise

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
