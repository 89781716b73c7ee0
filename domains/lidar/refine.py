"""Trains a small refinement network on the embedded streets, and writes its folder.

python -m domains.lidar.refine --out FOLDER

As LiDiff's (arXiv 2403.13470), it sees scenes whose points were moved at random, and learns to put
several points in the place of each such that the set comes near to the scene: the squared Chamfer
distance. It is small enough for a processor, and its voxels are as coarse as the embedded crops.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from distillkit import checks
from distillkit.errors import Arguments, Failure, exit_code, one_line
from distillkit.losses.points import scene_loss
from distillkit.progress import progress
from domains.lidar.crops import Crops
from domains.lidar.data import Streets
from domains.lidar.measures import gaps
from domains.lidar.refinement import Refinement, save_refinement

CHANNELS, SIZE = (16, 16, 24, 32, 48, 48, 32, 24, 16), 0.2
BATCH, STEPS, LR = 2, 600, 1e-3
JITTER, MOST = 0.2, 0.3  # metres: the standard deviation of the moves along each axis, and the largest


def moved(points: Tensor, generator: torch.Generator) -> Tensor:
    """Points moved at random along each axis, as LiDiff's refinement sees them."""
    return points + (JITTER * torch.randn(points.shape, generator=generator)).clamp(-MOST, MOST)


def train(crops: Crops, steps: int, seed: int) -> Refinement:
    """A refinement trained on the scenes of crops."""
    torch.manual_seed(seed)
    network, generator = Refinement(CHANNELS, SIZE).train(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with progress("training", steps) as activity:
        for step in range(steps):
            y = crops[torch.arange(step * BATCH, (step + 1) * BATCH)]["data"]
            optimizer.zero_grad()
            scene_loss(network(moved(y, generator)), y).backward()
            optimizer.step()
            schedule.step()
            activity.advance()
    return network.requires_grad_(False).eval()


def measure(network: Refinement, crops: Crops, seed: int) -> dict[str, float]:
    """The Chamfer distance of moved scenes before and after, in metres: the mean over crops."""
    generator, found = torch.Generator().manual_seed(seed), []
    for i in range(len(crops)):
        y = crops[torch.tensor([i])]["data"]
        x = moved(y, generator)
        found.append([sum(side.mean() for side in gaps(points[0], y[0])) / 2 for points in (x, network(x))])
    before, after = torch.tensor(found).mean(0).tolist()
    return {"moved": round(before, 4), "refined": round(after, 4)}


def command(arguments: Sequence[str]) -> None:
    parser = Arguments(prog="python -m domains.lidar.refine", description="Train a small refinement network.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--steps", type=int, default=STEPS, help="of training (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        checks.whole(1, steps=given.steps)
        checks.seed(seed=given.seed)
        data = Streets(seed=given.seed)
        data.setup()
        network = train(data.train, given.steps, given.seed)
        found = {name: measure(network, part, given.seed) for name, part in (("val", data.val), ("test", data.test))}
        said = f"{parser.prog} --out {given.out} --steps {given.steps} --seed {given.seed}"
        folder = save_refinement(network, given.out, domain="lidar", chamfer=found, command=said)
    except (ValueError, OSError) as error:
        raise Failure(one_line(error)) from error
    print(f"refinement: {folder}\nChamfer distance in metres: {found}\nuse it with vars.codec.refine={folder}")


def main(arguments: Sequence[str]) -> int:
    return exit_code(command, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
