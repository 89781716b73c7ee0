"""Features to compare shapes by: small classifiers of voxel grids; `ship.py` trains them.

n: shapes; N: voxels of a padded set; C: channels; R: voxels along a side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit.evaluation.extractor import once
from distillkit.progress import counted
from domains.threed.meshes import on_grid

SHIPPED = Path(__file__).parent / "weights" / "features"  # holds structure.safetensors and features.safetensors
STEPS = 200  # of training, shipped or on the spot


class Classifier(nn.Module):
    """A small 3-D convolutional classifier whose first and last hidden layers serve as features.

    Halves the grid twice, then describes every eighth of it separately, because the place of a part
    matters. Smooth activations: no feature is ever dead. The last hidden layer knows which shape it
    is and forgives a rough surface; the mean and deviation of the first one over the grid do not.

    Args:
        channels: 1 for structures, 12 for features on their grid.
        classes: number of classes.
        width: channels of the first layer.
    """

    num_hidden = 64

    def __init__(self, channels: int, classes: int, width: int = 16):
        super().__init__()
        self.config = {"channels": channels, "classes": classes, "width": width}
        layers, before = [], channels
        for after, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            layers += [nn.Conv3d(before, after, 3, stride, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            before = after
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool3d(2), nn.Flatten())
        self.neck = nn.Sequential(nn.Linear(8 * before, self.num_hidden), nn.SiLU())
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(self.num_hidden, classes))

    def features(self, grid: Tensor) -> Tensor:
        """Features [n, 2 width + 64].

        Mean and deviation of the first layer's units, then the 64 units before the head.
        """
        first = self.body[:3](grid)
        last = self.neck(self.body[3:](first))
        return torch.cat([first.flatten(2).mean(-1), first.flatten(2).std(-1), last], -1)

    def logits(self, features: Tensor) -> Tensor:
        """Logits [n, classes] from `features`."""
        return self.head(features[:, -self.num_hidden :])

    def forward(self, grid: Tensor) -> Tensor:
        """Logits [n, classes] from a grid [n, C, R, R, R]."""
        return self.head(self.neck(self.body(grid)))


def as_grid(data: Tensor, cond: dict[str, Tensor], side: int) -> Tensor:
    """The classifier's input.

    A structure [n, 1, R, R, R] as it decodes, -1 or 1; features [n, N, 11] on their voxels, with a
    channel that is 1 where there are any, [n, 12, R, R, R].
    """
    if data.ndim == 5:
        return (data > 0).float() * 2 - 1
    filled = torch.cat([data.float(), torch.ones_like(data[..., :1], dtype=torch.float32)], -1)
    return on_grid(filled, cond["coords"], cond["mask"], side)


@once
def train_classifier(data: Any, classes: int, side: int, steps: int = STEPS, seed: int = 0) -> Classifier:
    """A classifier fitted to `data`, len() and data[indices] -> a batch of either stage.

    It is fitted on the CPU, so that the samples of all devices are measured with the same one. The
    global generator is untouched.

    AdamW with a cosine schedule; every batch is shifted by up to a voxel along each axis, so the
    features forgive that.
    """
    rng = torch.Generator().manual_seed(seed)
    # An evaluation, which is where it is fitted on the spot, runs without gradients.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        channels = as_grid((batch := data[torch.zeros(1, dtype=torch.long)])["data"], batch, side).shape[1]
        net = Classifier(channels, classes).train()
        optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in counted("training the classifier that samples are measured with", steps):
            batch = data[torch.randint(len(data), (64,), generator=rng)]
            shift = (torch.randint(3, (3,), generator=rng) - 1).tolist()
            grid = as_grid(batch["data"], batch, side).roll(shift, (2, 3, 4))
            loss = F.cross_entropy(net(grid), batch["label"], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(net: Classifier, data: Any, side: int) -> float:
    """Share of `data` whose label the classifier names, in [0, 1]."""
    hits, device = 0, next(net.parameters()).device
    for rows in torch.arange(len(data)).split(128):
        batch = {name: value.to(device) for name, value in data[rows].items()}
        hits += int((net(as_grid(batch["data"], batch, side)).argmax(1) == batch["label"]).sum())
    return hits / len(data)


if __name__ == "__main__":
    raise SystemExit("error: python -m domains.threed.features is now python -m domains.threed.ship")
