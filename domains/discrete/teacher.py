"""Teachers of tokens: worlds whose law is known, and the embedded ones of text."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor

from distillkit import checks
from distillkit.discrete.exact import MarkovChain, chain_table, countdown_chain, potts_chain
from distillkit.discrete.process import Absorbing, DiscreteProcess, Uniform
from distillkit.discrete.schedule import Schedule
from distillkit.discrete.teacher import DiscreteFolderTeacher, DiscreteTeacher
from distillkit.networks.dtypes import Dtype

WEIGHTS = Path(__file__).parent / "weights"
Noise = Literal["absorbing", "uniform"]


def process_of(noise: Noise, num_tokens: int, schedule: Schedule | None) -> DiscreteProcess:
    """The process by its name."""
    if noise not in ("absorbing", "uniform"):
        raise ValueError(f"noise must be absorbing or uniform, got {noise!r}")
    return {"absorbing": Absorbing, "uniform": Uniform}[noise](num_tokens, schedule)


class World(DiscreteTeacher):
    """A Markov chain of tokens, known exactly: its denoiser is a formula, its law is `law`.

    Args:
        chain: (initial [S], transitions [S, S]).
        length: d.
        noise: of the process.
        schedule: of the process; None means log-linear.

    Attributes:
        countdown: whether the rule of the countdown holds in it.
    """

    countdown = False

    def __init__(self, chain: tuple[Tensor, Tensor], length: int, noise: Noise, schedule: Schedule | None):
        checks.whole(2, length=length)
        super().__init__(MarkovChain(*chain, length, process_of(noise, len(chain[0]), schedule)), (length,))

    @property
    def law(self) -> MarkovChain:
        return self.denoiser

    def table(self) -> Tensor:
        """The probability of every sequence, [S, ..., S] with d axes."""
        return chain_table(self.law.initial, self.law.transitions, self.law.length)

    @property
    def id(self) -> str:
        name = type(self).__name__.lower()
        return f"{name}-{self.process.num_tokens}-{self.event_shape[0]}-{type(self.process).__name__.lower()}"


class Potts(World):
    """A smooth world: `p(x) ~ exp(beta * number of equal neighbours)`.

    Args:
        num_tokens: S.
        length: d; up to 4096 sequences the whole law is listed and compared.
        beta: coupling; 0 makes tokens independent.
        noise: `absorbing` or `uniform`.
        schedule: of the process; None means log-linear.
    """

    def __init__(
        self,
        num_tokens: int = 3,
        length: int = 5,
        beta: float = 1.5,
        noise: Noise = "absorbing",
        schedule: Schedule | None = None,
    ):
        checks.finite(beta=beta)
        super().__init__(potts_chain(num_tokens, beta), length, noise, schedule)


class Countdown(World):
    """A hard constraint: x - 1 follows x > 0, after 0 anything may come.

    The synthetic task of Jump-Your-Steps and LSD.

    Args:
        num_tokens: S.
        length: d.
        noise: `absorbing` or `uniform`.
        schedule: of the process; None means log-linear.
    """

    countdown = True

    def __init__(
        self, num_tokens: int = 32, length: int = 256, noise: Noise = "absorbing", schedule: Schedule | None = None
    ):
        super().__init__(countdown_chain(num_tokens), length, noise, schedule)


class Text(DiscreteFolderTeacher):
    """The embedded teachers of English prose (27 characters, blocks of 64).

    Their model cards say how they were trained.

    Args:
        noise: of the process, `absorbing` or `uniform`.
        dtype: see `BaseTeacher`.
    """

    def __init__(self, noise: Noise = "absorbing", dtype: Dtype = "float32"):
        if noise not in ("absorbing", "uniform"):
            raise ValueError(f"noise must be absorbing or uniform, got {noise!r}")
        super().__init__(str(WEIGHTS / f"text_{noise}"), dtype=dtype)
