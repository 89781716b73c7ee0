"""Randomness as data: a draw is a function of its noise, so that two samplers can share it.

Half of every draw is one uniform number, which decides whether the position leaves; only then a
second one decides where it goes, through the inverse distribution function of the other states.
Implementations that race all states at once in low precision, with a floor `eps` under the
exponentials, choose a token of probability P that a step reaches with probability u at a rate too
small by `exp(-eps / (u P))`: a silent temperature that grows with the number of steps (compare
arXiv 2409.02908).

The numbers themselves are a function of seed, call, sequence and position (a counter-based
generator): they are the same however a run is cut into batches, and on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Noise:
    """The random numbers of one network evaluation, float64, uniform in [0, 1).

    `noise[i, j]` are those of some positions.
    """

    move: Tensor  # [B, d]: a position leaves if this is at least its probability of staying
    place: Tensor  # [B, d]: where it goes, as a share of the other states' probability

    def __getitem__(self, where: Any) -> Noise:
        return Noise(self.move[where], self.place[where])


Draws = Callable[[int], Noise]


def draw(kernel: Tensor, x: Tensor, noise: Noise) -> Tensor:
    """The next states [...] from states x [...] under `kernel` [..., C].

    Where a position leaves, the running sum of the other states' entries, in the order of the
    states, is inverted at `noise.place`. A state whose entry is zero is never reached, and a
    position without another state stays.

    Args:
        kernel: rows sum to one; only the entry of the current state has to be a probability, the
            others count by their shares.
        x: current states.
        noise: of shape [...].
    """
    here, num_states = x[..., None], kernel.shape[-1]
    size = math.isqrt(num_states - 1) + 1
    others = kernel.new_empty(*x.shape, size * -(-num_states // size))
    others[..., :num_states], others[..., num_states:] = kernel, 0
    blocks = others.scatter_(-1, here, 0).unflatten(-1, (-1, size))
    # two short running sums, over blocks of states and inside one, in place of a long one: a sum of
    # a block in the kernel's own precision keeps the relative error of its terms, none is negative
    block, place, possible = inverted(blocks.sum(-1), noise.place)
    inside = blocks.gather(-2, block[..., None, None].expand(*x.shape, 1, size))[..., 0, :]
    state, _, _ = inverted(inside, place)
    leaves = (noise.move >= kernel.gather(-1, here)[..., 0]) & possible
    return torch.where(leaves, block * size + state, x)


def inverted(weights: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first entry at which the running sum of the weights exceeds `place` times their sum.

    The sum is one of float64. Rounding cannot lead to an entry of weight zero, nor beyond the last.

    Args:
        weights: [..., n], none negative.
        place: [...], in [0, 1].

    Returns:
        The index [...]; the place inside this entry, in [0, 1]; whether any weight is positive.
    """
    weights = weights.double()
    reached = weights.cumsum(-1).masked_fill(weights <= 0, 0)  # zero exceeds nothing
    total = reached.amax(-1, keepdim=True)
    level = torch.minimum(place[..., None] * total, total.nextafter(torch.zeros_like(total)))
    index = (reached > level).to(torch.uint8).argmax(-1, keepdim=True)  # the first, see torch.argmax
    weight = weights.gather(-1, index)
    inside = (level - reached.gather(-1, index) + weight) / weight
    return index[..., 0], inside[..., 0].clamp(0, 1), total[..., 0] > 0


def fresh(seed: int, num: int, length: int, device: torch.device | str = "cpu", first: int = 0) -> Draws:
    """Independent draws `noise(i)`, i = 0, 1, ... for the sequences from number `first` of a run.

    Args:
        seed: any whole number; it counts modulo 2^64.
        num: B, sequences.
        length: d, positions.
        device: of the noise.
        first: number of the first sequence in its run; its noise is the same in every batch.
    """
    sequences = torch.arange(first, first + num, device=device)[:, None]
    positions = split_mix(torch.arange(2 * length, device=device))
    key = split_mix(torch.tensor((seed + 2**63) % 2**64 - 2**63, device=device))

    def noise(i: int) -> Noise:
        words = split_mix(split_mix(sequences + split_mix(key + i)) + positions)
        uniform = _shifted(words, 11).double() * 2.0**-53
        return Noise(uniform[:, :length], uniform[:, length:])

    return noise


def split_mix(state: Tensor) -> Tensor:
    """The outputs of SplitMix64 in these states, words of 64 bits in int64: a bijection.

    See Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    z = state + (0x9E3779B97F4A7C15 - 2**64)
    z = (z ^ _shifted(z, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ _shifted(z, 27)) * (0x94D049BB133111EB - 2**64)
    return z ^ _shifted(z, 31)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """Words shifted to the right, with zeros from the left."""
    return (words >> bits) & (2 ** (64 - bits) - 1)


def hitting(draws: Draws, fractions: Tensor) -> Draws:
    """One draw for a whole run: position i is unmasked once at most a fraction U_i is masked.

    Runs of an absorbing process on different grids that share `draws(0)` then have the same masks
    at their common times, while each has its own law (hitting-time coupling).

    Args:
        draws: `draws(0)` is the shared noise.
        fractions: [K], the probability of being masked before call k; the first is 1.
    """
    shared = draws(0)
    below_one = 1 - torch.finfo(torch.float64).eps

    def noise(k: int) -> Noise:
        return Noise((shared.move / fractions[k]).clamp_max(below_one), shared.place)

    return noise
