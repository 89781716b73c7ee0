"""The networks of LiDiff (arXiv 2403.13470), with the names of the released weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from distillkit import checks
from distillkit.networks.blocks import Told
from distillkit.spec import Recorded
from domains.lidar.lidiff.sparse import Convolution, Down, Grid, Norm, ReLU, Single, Up, Voxels
from domains.lidar.network import check_scans

CHANNELS = (32, 32, 64, 128, 256, 256, 128, 96, 96)  # after the stem, four stages down and four up
BOTTOM = 4  # level of the coarsest voxels
GATES = {  # where features are scaled: the places in CHANNELS of a gate's inner width and of its output
    "stage1": (4, 0),
    "stage2": (4, 1),
    "stage3": (4, 2),
    "stage4": (4, 3),
    "up1": (4, 4),
    "up2": (5, 5),
    "up3": (6, 6),
    "up4": (7, 7),
}


class Block(nn.Module):
    """A convolution, a norm and a ReLU."""

    def __init__(self, convolution: nn.Module, channels: int):
        super().__init__()
        self.net = nn.Sequential(convolution, Norm(channels), ReLU())

    def forward(self, x: Voxels) -> Voxels:
        return self.net(x)


class Residual(nn.Module):
    """Two convolutions beside a path without neighbours."""

    def __init__(self, inp: int, out: int):
        super().__init__()
        self.net = nn.Sequential(Convolution(inp, out), Norm(out), ReLU(), Convolution(out, out), Norm(out))
        self.downsample = nn.Sequential() if inp == out else nn.Sequential(Single(inp, out), Norm(out))

    def forward(self, x: Voxels) -> Voxels:
        return x.but((self.net(x).features + self.downsample(x).features).relu())


def unscaled(name: str, x: Voxels) -> Voxels:
    """No gate."""
    return x


class Encoder(nn.Module):
    """The way down: a stem and four stages, each on voxels of twice the side.

    Args:
        channels: nine widths, as `CHANNELS`.
    """

    def __init__(self, channels: Sequence[int] = CHANNELS):
        super().__init__()
        checks.network(channels=channels)
        if len(channels) != len(CHANNELS) or channels[-1] % 2:
            raise ValueError(f"channels must be {len(CHANNELS)} widths, the last one even, got {list(channels)}")
        first = channels[0]
        self.stem = nn.Sequential(
            Convolution(3, first), Norm(first), ReLU(), Convolution(first, first), Norm(first), ReLU()
        )
        for i, (inp, out) in enumerate(zip(channels[:4], channels[1:5], strict=True), start=1):
            blocks = Block(Down(inp, inp), inp), Residual(inp, out), Residual(out, out)
            self.add_module(f"stage{i}", nn.ModuleList(blocks))

    def down(self, x: Voxels, gate: Callable[[str, Voxels], Voxels] = unscaled) -> list[Voxels]:
        """Features of levels 0 to 4; a gate scales the input of each stage."""
        found = [self.stem(x)]
        for i in range(1, BOTTOM + 1):
            x = gate(f"stage{i}", found[-1])
            for block in self.get_submodule(f"stage{i}"):
                x = block(x)
            found.append(x)
        return found


class UNet(Encoder):
    """The encoder, four stages up and a small network at each point.

    Args:
        channels: as in `Encoder`.
        out: numbers at each point.
    """

    def __init__(self, channels: Sequence[int] = CHANNELS, out: int = 3):
        super().__init__(channels)
        for i in range(1, BOTTOM + 1):
            inp, wide, skip = channels[BOTTOM + i - 1], channels[BOTTOM + i], channels[BOTTOM - i]
            blocks = nn.Sequential(Residual(wide + skip, wide), Residual(wide, wide))
            self.add_module(f"up{i}", nn.ModuleList([Block(Up(inp, wide), wide), blocks]))
        self.last = mlp(channels[-1], 20, out)

    def at_points(self, points: Tensor, grid: Grid, gate: Callable[[str, Voxels], Voxels] = unscaled) -> Tensor:
        """The network's answer at points [B, N, 3] in metres, [B, N, out]."""
        skips = self.down(grid.voxelised(points.to(self.last[0].weight.dtype)), gate)
        x = skips.pop()
        for i in range(1, BOTTOM + 1):
            up, blocks = self.get_submodule(f"up{i}")
            x, skip = up(gate(f"up{i}", x)), skips.pop()
            x = blocks(x.but(torch.cat([x.features, skip.features], dim=1)))
        return grid.points(x.but(self.last(x.features))).to(points.dtype)


class Gated(UNet):
    """The denoiser, whose features are scaled by the nearest part of the scan and by the time.

    A gate's factors depend on a voxel of the encoded scan and on its time, so they are computed
    there, once, and read by all voxels to which it is nearest.
    """

    def __init__(self, channels: Sequence[int] = CHANNELS):
        super().__init__(channels)
        wide, time = channels[BOTTOM], channels[-1]
        for name, (inner, out) in GATES.items():
            self.add_module(f"latent_{name}", mlp(wide, wide, wide))
            self.add_module(f"{name}_temp", mlp(time, time, wide))
            self.add_module(f"latemp_{name}", mlp(2 * wide, channels[inner], channels[out]))

    def forward(self, points: Tensor, grid: Grid, scan: Voxels, time: Tensor) -> Tensor:
        """The predicted noise [B, N, 3].

        Args:
            points: [B, N, 3] metres.
            grid: their voxels.
            scan: the encoded scans of the B sets.
            time: embedded times [B, channels[-1]].
        """
        sets, known = scan.grid.places(scan.level)[0], {}

        def gate(name: str, x: Voxels) -> Voxels:
            if x.level not in known:
                known[x.level] = grid.nearest(x.level, scan.grid, scan.level)
            seen = self.get_submodule(f"latent_{name}")(scan.features)
            when = self.get_submodule(f"{name}_temp")(time)[sets]
            both = (when, seen) if name == "up1" else (seen, when)  # as it was trained
            factors = self.get_submodule(f"latemp_{name}")(torch.cat(both, dim=1))
            return x.but(x.features * factors[known[x.level]].to(x.features.dtype))

        return self.at_points(points, grid, gate)


class LiDiffNetwork(Recorded, nn.Module):
    """LiDiff's denoiser and the encoder of its condition, which predict the noise of points.

    Samples x and scans `cond["part"]` [B, n, 3] are points in metres. The norms keep the statistics
    of the release in training too.

    Args:
        channels: widths of both networks, see `CHANNELS`.
        size: side of a voxel in metres.
        num_steps: times in the table of the process.
    """

    def __init__(self, channels: Sequence[int] = CHANNELS, size: float = 0.05, num_steps: int = 1000):
        super().__init__()
        checks.positive(size=size)
        checks.whole(2, 1_000_000, num_steps=num_steps)
        self.partial_enc, self.model = Encoder(channels), Gated(channels)
        self.embed = Told(channels[-1])  # nothing at first, so the released weights are all there is
        self.size, self.num_steps, self.width = size, num_steps, channels[-1]

    def train(self, mode: bool = True) -> LiDiffNetwork:
        """As of any module, but that norms stay as they are in sampling."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self

    def null(self, cond: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `WithNull`: all points of the scan at the sensor, as in LiDiff's training."""
        return {**cond, "part": torch.zeros_like(cond["part"])}

    def check_context(self, cond: dict[str, Tensor]) -> None:
        """See `WithContext`: scans must be points in metres."""
        check_scans(cond["part"])

    def forward(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The predicted noise, like x [B, N, 3]; time: [B], a share of the table's length."""
        part, dtype = cond["part"], self.model.last[0].weight.dtype
        emb = embedding(self.num_steps * time, self.width).to(dtype)
        if self.embed:
            emb = emb + self.embed(cond)
        scan = self.partial_enc.down(Grid(part, self.size).voxelised(part.to(dtype)))[-1]
        return self.model(x, Grid(x, self.size), scan, emb)


def mlp(inp: int, inner: int, out: int) -> nn.Sequential:
    """A network of two layers."""
    return nn.Sequential(nn.Linear(inp, inner), nn.LeakyReLU(0.1), nn.Linear(inner, out))


def embedding(t: Tensor, width: int) -> Tensor:
    """Sines, then cosines of t [B] at `width / 2` frequencies, from 1 to 1 / 10,000."""
    half = width // 2
    rates = torch.exp(torch.arange(half, device=t.device).double() * (-math.log(10_000) / max(half - 1, 1)))
    angles = t.float()[:, None] * rates.float()
    return torch.cat([angles.sin(), angles.cos()], dim=1)
