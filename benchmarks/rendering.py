"""What views of scenes cost, forward and backward.

    OMP_NUM_THREADS=1 python benchmarks/rendering.py [--views 4] [--repeats 12]

Times are CPU seconds of this process, the least of the repeats, so that other load of the machine
counts little.
"""

from __future__ import annotations

import argparse
import time

import torch

from distillkit.rendering.cameras import orbit
from distillkit.rendering.gaussians import GaussianField
from distillkit.rendering.triplane import TriplaneField
from distillkit.rendering.voxels import VoxelField

ROWS = (  # what is rendered, and pixels along a side
    ("24^3 voxels, 32 samples", VoxelField, {}, 32),
    ("32^3 voxels, 32 samples", VoxelField, {"side": 32}, 32),
    ("24^3 voxels, 48 samples", VoxelField, {"samples": 48}, 64),
    ("48^3 voxels, 64 samples", VoxelField, {"side": 48, "samples": 64}, 64),
    ("planes of 24^2, 32 samples", TriplaneField, {}, 32),
    ("64 Gaussians", GaussianField, {"count": 64}, 32),
    ("256 Gaussians", GaussianField, {}, 32),
    ("512 Gaussians", GaussianField, {"count": 512}, 32),
    ("256 Gaussians", GaussianField, {}, 64),
)


def seconds(field: torch.nn.Module, camera: torch.Tensor, size: int, repeats: int, backward: bool) -> float:
    """CPU seconds of the views of one scene, the least of the repeats."""
    scene, times = torch.zeros(len(camera), dtype=torch.int64), []
    for _ in range(repeats):
        field.zero_grad()
        begin = time.process_time()
        with torch.set_grad_enabled(backward):
            loss = field.render(camera, scene, size, size).image.square().mean()
            if backward:
                loss.backward()
        times.append(time.process_time() - begin)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=12)
    options = parser.parse_args()
    turn = torch.arange(options.views) / options.views
    camera = orbit(6.28 * turn, 0.6 * turn, 2.15, 0.87)
    print(f"| {options.views} views of | pixels | forward, ms | and backward, ms |\n|---|---|---|---|")
    for name, kind, words, size in ROWS:
        field = kind(**words)
        forward, both = (1000 * seconds(field, camera, size, options.repeats, each) for each in (False, True))
        print(f"| {name} | {size} x {size} | {forward:.0f} | {both:.0f} |", flush=True)


if __name__ == "__main__":
    main()
