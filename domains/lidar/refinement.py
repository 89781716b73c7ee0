"""Refinement: more points, nearer to the surfaces, of a completed scene."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from distillkit import checks
from distillkit.files import load_weights, read_yaml, save_weights, write_yaml
from distillkit.spec import Recorded, from_spec, named, to_spec
from domains.lidar.lidiff.network import CHANNELS, UNet
from domains.lidar.lidiff.sparse import Grid

WEIGHTS, CONFIG = "model.safetensors", "refinement.yaml"


class Refinement(Recorded, UNet):
    """LiDiff's refinement network: `factor` points for each one, at most 1 m away along each axis.

    Args:
        channels: widths, see `domains.lidar.lidiff.network.CHANNELS`.
        size: side of a voxel in metres.
        factor: number of points made of each.
    """

    def __init__(self, channels: Sequence[int] = CHANNELS, size: float = 0.05, factor: int = 6):
        checks.whole(1, 1000, factor=factor)
        checks.positive(size=size)
        super().__init__(channels, 3 * factor)
        self.last.append(nn.Tanh())
        self.size, self.factor = size, factor

    def forward(self, points: Tensor) -> Tensor:
        """Points [B, factor N, 3] of points [B, N, 3], in metres; those of one stand together."""
        offsets = self.at_points(points, Grid(points, self.size)).unflatten(-1, (self.factor, 3))
        return (points[:, :, None] + offsets).flatten(1, 2)


def save_refinement(network: Refinement, folder: str | Path, **facts: Any) -> Path:
    """Write a refinement folder; `facts` join refinement.yaml."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / WEIGHTS, network)
    write_yaml(folder / CONFIG, {**facts, "network": to_spec(network)})
    return folder


def load_refinement(folder: str | Path) -> Refinement:
    """Read a refinement folder, frozen.

    Raises:
        ValueError: it is none, or damaged; the message says how to get one.
    """
    folder = Path(folder).expanduser()
    if not (folder / CONFIG).is_file():
        raise ValueError(
            f"{folder} holds no refinement: convert refine_net.ckpt by python -m domains.lidar.lidiff.convert, or train "
            f"one by python -m domains.lidar.refine"
        )
    with named(folder / CONFIG):
        network = from_spec(read_yaml(folder / CONFIG).get("network"), home=folder, weights=folder / WEIGHTS)
    if not isinstance(network, Refinement):
        raise ValueError(f"{folder / CONFIG} is damaged: network is no refinement")
    load_weights(network, folder / WEIGHTS)
    return network.requires_grad_(False).eval()
