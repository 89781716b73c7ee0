"""Learned samples without a network: the scene of worlds whose samples are points or vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distillkit import checks
from distillkit.diffusion.denoiser import Cond
from distillkit.spec import Recorded


def chosen(x: Tensor, num: int) -> Tensor:
    """The one of `num` that noise chooses, int64 [B], each as likely.

    It is where the direction of the first two numbers lies on the circle, which does not depend on
    their spread.

    Args:
        x: Gaussian noise of mean zero, [B, ...], at least two numbers a sample.
        num: number of things to choose among.
    """
    if num == 1:
        return torch.zeros(len(x), dtype=torch.int64, device=x.device)
    first, second = x.flatten(1)[:, :2].unbind(1)
    turn = torch.atan2(second, first) / (2 * math.pi) % 1
    return (turn * num).long().clamp_max(num - 1)


class Particles(Recorded, nn.Module):
    """Samples as parameters, of which noise chooses one: the particles of ProlificDreamer.

    Many of them stand for a distribution (arXiv 2305.16213, section 3.1).

    Args:
        event_shape: of a sample; at least two numbers.
        num: number of particles, of each class.
        classes: a categorical condition, `{name: number of classes}`; of several all pairs have
            particles of their own.
        std: of the Gaussian that they start from.
        seed: of that start.
    """

    blind = True

    def __init__(
        self,
        event_shape: Sequence[int],
        num: int = 1,
        classes: dict[str, int] | None = None,
        std: float = 1.0,
        seed: int = 0,
    ):
        super().__init__()
        checks.whole(1, 2**20, num=num)
        checks.positive(std=std)
        self.num, self.classes = num, dict(classes or {})
        generator = torch.Generator().manual_seed(seed)
        groups = math.prod(self.classes.values())
        self.points = nn.Parameter(std * torch.randn(groups, num, *event_shape, generator=generator))

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        group = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        for name, count in self.classes.items():
            group = group * count + cond[name].clamp_max(count - 1)
        return self.points[group, chosen(x, self.num)].to(x)
