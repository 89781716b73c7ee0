"""Exact discrete diffusion models: any distribution on a small world, Markov chains of any length.

The named distributions have no seed: `potts` is smooth; `countdown` is a hard constraint (each
token is one less than the one before it; any token may follow 0).
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from distillkit import checks
from distillkit.diffusion.process import expand
from distillkit.discrete.denoiser import DiscreteDenoiser, Reading
from distillkit.discrete.laws import entropy
from distillkit.discrete.process import DiscreteProcess
from distillkit.discrete.worlds import positions


class Exact(DiscreteDenoiser):
    """A denoiser in closed form, in float64.

    Attributes:
        length: the number of positions, d.
    """

    length: int

    def forward(self, x_t, t, cond=None):
        t = torch.as_tensor(t, dtype=torch.float64, device=x_t.device)
        emission = self.process.likelihood(x_t, expand(self.process.alpha(t), x_t[..., None]))
        return ExactReading(self.process, x_t, t, self.leave_one_out(emission))

    def _apply(self, fn, recurse: bool = True):
        """Follow the module to another device; stay float64 under `.float()` and `.bfloat16()`."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)

    @abstractmethod
    def leave_one_out(self, emission: Tensor) -> Tensor:
        """`p(x_0^i = y, x_t^{-i})` up to a factor per position, [B, d, S].

        Args:
            emission: `p(x_t^i | x_0^i)`, [B, d, S].
        """

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Log probability of clean sequences [B, d], nats, [B]."""

    @abstractmethod
    def entropy(self) -> Tensor:
        """Entropy of the data, nats."""

    @abstractmethod
    def draw(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """Returns `num` exact clean sequences, [num, d], drawn on the CPU."""

    def _forward_matrix(self, t: float) -> Tensor:
        """`p(x_t | x_0)` of one position, [S, C]."""
        states = torch.arange(self.process.num_states)[None]
        return self.process.likelihood(states, self.process.alpha(torch.tensor(t, dtype=torch.float64)))[0].T


class ExactReading(Reading):
    """The output is `p(x_0^i = y, x_t^{-i})` up to a factor per position, [B, d, S]."""

    def log_mean(self):
        total = self.output.sum(-1, keepdim=True)
        # a context without probability carries no information; samplers of independent positions do
        # reach such contexts
        mean = torch.where(
            total > 0, self.output / total.clamp_min(torch.finfo(total.dtype).tiny), 1 / self.process.num_tokens
        )
        return self.process.carry_over(mean.log(), self.x)


class Table(Exact):
    """A model of any distribution over sequences, given as a table.

    Args:
        probabilities: [S, ..., S] with d axes, normalised to sum to one.
        process: the noising process, on S tokens.
    """

    def __init__(self, probabilities, process: DiscreteProcess):
        super().__init__(process)
        probabilities = torch.as_tensor(probabilities, dtype=torch.float64)
        if set(probabilities.shape) != {process.num_tokens} or (probabilities < 0).any():
            raise ValueError(
                f"a table for {process.num_tokens} tokens needs axes of that length and no negative entry, "
                f"got shape {tuple(probabilities.shape)}"
            )
        self.register_buffer("probabilities", probabilities / probabilities.sum())

    @property
    def length(self) -> int:
        return self.probabilities.ndim

    def leave_one_out(self, emission):
        rows = emission.unbind(1)
        # likelihood of positions i+1 .. d by their clean tokens, [B, S^(d-i)]
        after = [emission.new_ones(len(emission), 1)]
        for row in rows[:0:-1]:
            after.append((row[:, :, None] * after[-1][:, None, :]).flatten(1))
        before, joint = self.probabilities[None], []  # the table, summed over positions 1 .. i-1 as seen
        for row in rows:
            before, tail = before.reshape(len(before), row.shape[1], -1), after.pop()
            joint.append((before @ tail[:, :, None])[..., 0])
            before = (row[:, None, :] @ before)[:, 0]
        return torch.stack(joint, 1)

    def marginal(self, t: float) -> Tensor:
        """The law of x_t, [C, ..., C]."""
        noised, matrix = self.probabilities, self._forward_matrix(t)
        for _ in range(self.length):
            noised = torch.tensordot(noised, matrix, dims=([0], [0]))  # takes the first axis, appends the new one
        return noised

    def log_prob(self, x):
        return self.probabilities.flatten()[positions(x, self.process.num_tokens)].log()

    def entropy(self):
        return entropy(self.probabilities)

    def draw(self, num, generator=None):
        flat = torch.multinomial(self.probabilities.flatten().cpu(), num, replacement=True, generator=generator)
        return torch.stack(torch.unravel_index(flat, self.probabilities.shape), -1)


class MarkovChain(Exact):
    """A first-order Markov chain; its mean takes forward-backward messages, O(d S^2) a sequence.

    Args:
        initial: [S], law of the first token.
        transitions: [S, S], row y: the law of the token after y.
        length: d.
        process: the noising process, on S tokens.
        smoothing: share of a uniform law in the transitions that messages use, so that a context
            without probability still has a posterior. The data (`draw`, `log_prob`, `entropy`,
            `marginal`) are not smoothed.
    """

    def __init__(self, initial, transitions, length: int, process: DiscreteProcess, smoothing: float = 1e-6):
        super().__init__(process)
        initial, transitions = (torch.as_tensor(p, dtype=torch.float64) for p in (initial, transitions))
        size = process.num_tokens
        if initial.shape != (size,) or transitions.shape != (size, size):
            raise ValueError(
                f"a chain of {size} tokens needs initial [{size}] and transitions [{size}, {size}], "
                f"got {tuple(initial.shape)} and {tuple(transitions.shape)}"
            )
        checks.whole(1, length=length)
        checks.within("[0, 1)", smoothing=smoothing)
        self.length, self.smoothing = length, smoothing
        self.register_buffer("initial", initial / initial.sum())
        self.register_buffer("transitions", transitions / transitions.sum(-1, keepdim=True))

    def leave_one_out(self, emission):
        matrix = (1 - self.smoothing) * self.transitions + self.smoothing / self.process.num_tokens
        rows = emission.unbind(1)
        forward, backward = [self.initial.expand(len(emission), -1)], [torch.ones_like(rows[0])]
        for row in rows[:-1]:
            forward.append(_scaled(forward[-1] * row) @ matrix)
        for row in rows[:0:-1]:
            backward.append(_scaled(backward[-1] * row) @ matrix.T)
        return torch.stack(forward, 1) * torch.stack(backward[::-1], 1)

    def marginal(self, t: float) -> Tensor:
        """The law of each position of x_t, [d, C]."""
        return self.clean_marginal() @ self._forward_matrix(t)

    def clean_marginal(self) -> Tensor:
        """The law of each clean token, [d, S]."""
        laws = [self.initial]
        while len(laws) < self.length:
            laws.append(laws[-1] @ self.transitions)
        return torch.stack(laws)

    def log_prob(self, x):
        return self.initial[x[:, 0]].log() + self.transitions[x[:, :-1], x[:, 1:]].log().sum(-1)

    def entropy(self):
        each = -torch.xlogy(self.transitions, self.transitions).sum(-1)
        return entropy(self.initial) + (self.clean_marginal()[:-1] @ each).sum()

    def draw(self, num, generator=None):
        initial, transitions = self.initial.cpu(), self.transitions.cpu()
        tokens = [torch.multinomial(initial, num, replacement=True, generator=generator)]
        while len(tokens) < self.length:
            tokens.append(torch.multinomial(transitions[tokens[-1]], 1, generator=generator)[:, 0])
        return torch.stack(tokens, 1)


def _scaled(message: Tensor) -> Tensor:
    """A message normalised to sum to one, against underflow in long products; zero stays zero."""
    return message / message.sum(-1, keepdim=True).clamp_min(torch.finfo(message.dtype).tiny)


# The named distributions, as chains `(initial, transitions)` and as tables.

MOST_TOKENS = 4096  # of a chain


def countdown_chain(num_tokens: int = 32) -> tuple[Tensor, Tensor]:
    """A uniform first token; y - 1 after y > 0; a uniform token after 0."""
    checks.whole(2, MOST_TOKENS, "all transitions are listed", num_tokens=num_tokens)
    transitions = torch.diag(torch.ones(num_tokens - 1, dtype=torch.float64), -1)
    transitions[0] = 1 / num_tokens
    return torch.full((num_tokens,), 1 / num_tokens, dtype=torch.float64), transitions


def potts_chain(num_tokens: int, beta: float) -> tuple[Tensor, Tensor]:
    """`p ~ exp(beta * number of equal neighbours)` on a line."""
    checks.whole(2, MOST_TOKENS, "all transitions are listed", num_tokens=num_tokens)
    initial = torch.full((num_tokens,), 1 / num_tokens, dtype=torch.float64)
    return initial, (beta * torch.eye(num_tokens, dtype=torch.float64)).softmax(-1)


def chain_table(initial: Tensor, transitions: Tensor, length: int) -> Tensor:
    """The table [S, ..., S] of a chain."""
    table = initial
    for _ in range(length - 1):
        table = table[..., None] * transitions
    return table


def mini_countdown(num_tokens: int, length: int) -> Tensor:
    """The table of a countdown, [S, ..., S]."""
    return chain_table(*countdown_chain(num_tokens), length)


def potts(num_tokens: int, length: int, beta: float) -> Tensor:
    """The table of a Potts line, [S, ..., S]."""
    return chain_table(*potts_chain(num_tokens, beta), length)
