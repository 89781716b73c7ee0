"""A network for point sets of any size: a U-Net on the pillars that they stand in."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit import checks
from distillkit.networks import unet
from distillkit.networks.features import Features
from distillkit.spec import Recorded

NOWHERE = 1e6  # metres: coordinates of a scan that was not made


class CellNorm(nn.Module):
    """Root-mean-square norm over the channels of each cell.

    A norm over cells (GroupNorm) would mix a cell with the whole scene, and a crop would be treated
    otherwise than within its scene.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(1, keepdim=True) + 1e-6).rsqrt() * self.weight[:, None, None]


class Block(unet.Block):
    """A residual block without statistics of the scene."""

    norm = CellNorm


class Cells:
    """A grid of pillars, square cells of the ground with a column of bins each, around x = y = 0.

    Args:
        side: pillars along each side of the grid.
        cell: side of a pillar in metres.
        heights: lower and upper end of its bins in metres; points beyond count for the last bins.
        bins: bins of a pillar.
    """

    def __init__(self, side: int, cell: float, heights: tuple[float, float], bins: int):
        self.side, self.cell, self.heights, self.bins = side, cell, heights, bins

    def units(self, points: Tensor) -> Tensor:
        """Points [B, N, 3] in metres as places in the grid: pillars from 0, bins from 0."""
        (x, y, z), (low, high), half = points.unbind(-1), self.heights, self.side / 2
        return torch.stack([x / self.cell + half, y / self.cell + half, (z - low) * self.bins / (high - low)], -1)

    def places(self, units: Tensor) -> tuple[Tensor, Tensor]:
        """The cell of each point, one index [B, N], and its place in it, in [-1/2, 1/2].

        Points outside of the grid lie in the cells at its border, further out. NaN has a cell too,
        for a device stops at an index that is none.
        """
        sides = (self.side, self.side, self.bins)
        whole = [axis.nan_to_num().floor().clamp(0, num - 1) for axis, num in zip(units.unbind(-1), sides, strict=True)]
        i, j, k = (axis.long() for axis in whole)
        return (i * self.side + j) * self.bins + k, units - torch.stack(whole, -1) - 0.5

    def gathered(self, values: Tensor, place: Tensor) -> Tensor:
        """The means of values [B, N, C] in each cell, and how many: [B, bins (C + 1), side, side].

        A number n of points is given as log(1 + n). Sums have 32 bits at least, for 16 lose count.
        """
        cells = self.side**2 * self.bins
        known = torch.cat([values, torch.ones_like(values[..., :1])], -1)
        known = known.to(torch.promote_types(known.dtype, torch.float32))
        index = place[..., None].expand_as(known)
        total = known.new_zeros(len(known), cells, known.shape[-1]).scatter_add(1, index, known)
        num = total[..., -1:]
        found = torch.cat([total[..., :-1] / num.clamp_min(1), num.log1p()], -1)
        return rearrange(found.to(values.dtype), "b (i j k) c -> b (k c) i j", i=self.side, j=self.side)

    def read(self, volume: Tensor, units: Tensor) -> Tensor:
        """Values [B, N, C] at points of a volume [B, C, bins, side, side], trilinear."""
        x, y, z = units.unbind(-1)
        place = torch.stack([y / self.side, x / self.side, z / self.bins], -1)  # the volume's axes are z, x, y
        grid = (2 * place - 1)[:, None, None]
        found = F.grid_sample(volume.to(grid.dtype), grid, padding_mode="border", align_corners=False)
        return found[:, :, 0, 0].transpose(1, 2)


class PillarNet(Recorded, Features, nn.Module):
    """A U-Net on a grid in which points and scan are gathered, read at each point.

    Points of the sample and of the scan `cond["part"]` [B, n, 3] are gathered separately: the means
    of what a small network says of each, by bin of each pillar. A U-Net looks at the ground plan,
    with bins as channels. Its answer, a volume, is read at the points (trilinear), and a network
    joins it with the point's own place and time. So the order of points changes nothing, and away
    from the border shifts by whole cells of the coarsest level commute with it.

    Args:
        event_shape: (N, 3) in training; other numbers of points work too, see `covering`.
        cell: side of a pillar in metres.
        extent: side of the grid in metres; points outside count for its border.
        heights: lower and upper end of the pillars in metres.
        bins: bins of a pillar.
        channels: width of the first level of the U-Net.
        multipliers: width of each level in units of `channels`.
        width: of the networks of points.
        answer: channels of the volume that is read.
        classes: categorical conditions, `{name: number of classes}`.
    """

    any_number = True  # of points

    def __init__(
        self,
        event_shape: Sequence[int],
        cell: float = 0.4,
        extent: float = 12.8,
        heights: Sequence[float] = (-3.0, 4.0),
        bins: int = 8,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 1, 1),
        width: int = 64,
        answer: int = 12,
        classes: dict[str, int] | None = None,
    ):
        super().__init__()
        checks.network(event_shape=event_shape, bins=bins, channels=channels, width=width, answer=answer)
        checks.positive(cell=cell, extent=extent)
        if len(event_shape) != 2 or event_shape[1] != 3:
            raise ValueError(f"a PillarNet needs samples (points, 3), got {tuple(event_shape)}")
        self.multiple = 2 ** (len(multipliers) - 1)
        self.cells = Cells(self._side(extent, cell), cell, tuple(heights), bins)
        self.own, self.scan = (nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, 8)) for _ in range(2))
        self.ground = Ground(2 * 9 * bins, answer * bins, channels, multipliers, classes)
        self.feature_widths, self.feature_layer = self.ground.feature_widths, self.ground.feature_layer
        self.time = nn.Linear(self.ground.embed.width, width)
        self.into, self.mid = nn.Linear(answer + 4, width), nn.Linear(width, width)
        self.out = nn.Linear(width, 3)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def _side(self, extent: float, cell: float) -> int:
        return math.ceil(extent / cell / self.multiple - 1e-6) * self.multiple

    @property
    def embed(self) -> nn.Module:
        """The embedding of the U-Net."""
        return self.ground.embed

    @property
    def extent(self) -> float:
        """The side of the grid in metres."""
        return self.cells.side * self.cells.cell

    def covering(self, extent: float) -> PillarNet:
        """A network with the same weights, not copied, whose grid has this extent in metres."""
        made = copy.copy(self)
        cells = self.cells
        made.cells = Cells(self._side(extent, cells.cell), cells.cell, cells.heights, cells.bins)
        return made

    def null(self, cond: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `WithNull`: a scan without points."""
        return {**cond, "part": torch.full_like(cond["part"], NOWHERE)}

    def check_context(self, cond: dict[str, Tensor]) -> None:
        """See `WithContext`: scans must be points in metres."""
        check_scans(cond["part"])

    def forward(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        units, own, plan = self._enter(x, cond)
        volume = rearrange(self.ground(plan, time, cond), "b (k c) i j -> b c k i j", k=self.cells.bins)
        h = self.into(torch.cat([self.cells.read(volume, units).to(own.dtype), own], -1))
        h = F.silu(h + self.time(self.embed(time, cond))[:, None])
        return self.out(F.silu(self.mid(h)) + h)

    def activations(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Iterator[Tensor]:
        """Features of the ground plan after each residual block, [B, C, side, side]."""
        yield from self.ground.activations(self._enter(x, cond)[2], time, cond)

    def _enter(self, x: Tensor, cond: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Places of the sample's points, their own values [B, N, 4], and the ground plan."""
        dtype = self.into.weight.dtype
        units = self.cells.units(x)
        place, own = self._seen(units, x, dtype)
        part = cond["part"].to(x)
        known = (part[..., :1].abs() < NOWHERE / 2).to(dtype)
        part_place, part_own = self._seen(self.cells.units(part), part, dtype)
        points = self.cells.gathered(self.own(own), place)
        scan = self.cells.gathered(self.scan(part_own) * known, part_place)
        return units, own, torch.cat([points, scan * known.amax(1)[..., None, None]], 1)

    def _seen(self, units: Tensor, points: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cells of points, and what is seen of each: its place in the cell and its height."""
        place, within = self.cells.places(units)
        low, high = self.cells.heights
        height = (2 * points[..., 2:] - low - high) / (high - low)
        return place, torch.cat([within.clamp(-4, 4), height.clamp(-4, 4)], -1).to(dtype)


class Ground(unet.UShape):
    """The U-Net on the ground plan."""

    Block, convolution = Block, staticmethod(unet.convolution)

    def __init__(self, inp: int, out: int, channels: int, multipliers: Sequence[int], classes: dict[str, int] | None):
        super().__init__()
        self.build(inp, out, channels, multipliers, 1, 0, classes)
        self.norm = CellNorm(channels * multipliers[0])


def check_scans(part: Tensor) -> None:
    """Refuse what cannot be scans, points [n, points, 3] in metres, with a ValueError."""
    if part.ndim != 3 or part.shape[-1] != 3 or not part.is_floating_point() or not part.shape[1]:
        raise ValueError(
            f"cond['part'] must hold scans, numbers [n, points, 3] in metres, got "
            f"{str(part.dtype).removeprefix('torch.')} {list(part.shape)}"
        )
    if not bool((part.abs() < 1e4).all()):
        raise ValueError("cond['part'] must hold metres, within 10 km of the sensor and finite: check its unit")
