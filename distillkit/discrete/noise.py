"""Randomness as data: a draw is a function of its noise, so that two samplers can share it.

Half of every draw is one uniform number, which decides whether the position leaves; only then a
race among the other states decides where it goes. Implementations that race all states at once in
low precision, with a floor `eps` under the exponentials, choose a token of probability P that a
step reaches with probability u at a rate too small by `exp(-eps / (u P))`: a silent temperature
that grows with the number of steps (compare arXiv 2409.02908).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Noise:
    """The random numbers of one network evaluation."""

    move: Tensor  # [B, d], uniform in [0, 1): a position leaves if this is at least its probability of staying
    race: Tensor  # [B, d, C], unit exponentials: argmax of weight / race is a draw from the weights


Draws = Callable[[int], Noise]


def draw(kernel: Tensor, x: Tensor, noise: Noise) -> Tensor:
    """The next states [B, d] from states x [B, d] under `kernel` [B, d, C] (rows sum to one)."""
    here = x[..., None]
    target = (kernel.scatter(-1, here, 0) / noise.race).argmax(-1)
    return torch.where(noise.move < kernel.gather(-1, here)[..., 0], x, target)


def fresh(seed: int, num: int, length: int, num_states: int, device: torch.device | str = "cpu") -> Draws:
    """Independent float64 draws `noise(i)`, i = 0, 1, ...; the same i gives the same draw again."""

    def noise(i: int) -> Noise:
        generator = torch.Generator(device).manual_seed((seed * 1_000_003 + i) % 2**63)
        like = {"dtype": torch.float64, "device": device}
        move = torch.rand(num, length, generator=generator, **like)
        return Noise(move, torch.empty(num, length, num_states, **like).exponential_(generator=generator))

    return noise


BLOCK = 16


def for_rows(
    seed: int, start: int, stop: int, length: int, num_states: int, device: torch.device | str = "cpu"
) -> Draws:
    """The noise of samples `start .. stop` of a long run, however the run is cut into batches.

    `start` is a multiple of `BLOCK`. The noise is drawn on the CPU, so that every device sees the
    same numbers.
    """
    blocks = range(start // BLOCK, -(-stop // BLOCK))
    parts = [fresh(seed * 1_000_003 + block + 1, BLOCK, length, num_states) for block in blocks]

    def noise(i: int) -> Noise:
        drawn = [part(i) for part in parts]
        move, race = torch.cat([n.move for n in drawn]), torch.cat([n.race for n in drawn])
        return Noise(move[: stop - start].to(device), race[: stop - start].to(device))

    return noise


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
        return Noise((shared.move / fractions[k]).clamp_max(below_one), shared.race)

    return noise
