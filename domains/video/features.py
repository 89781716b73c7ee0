"""Features to compare videos by: a small space-time classifier; `ship.py` trains the shipped one.

N: clips; C: channels; T: frames; H, W: height, width; D: features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit.evaluation.extractor import once
from distillkit.progress import counted
from domains.image.features import LARGEST, shrunk
from domains.image.features import Classifier as Frames

SHIPPED = Path(__file__).parent / "weights" / "features" / "model.safetensors"
STEPS = 600  # of training, shipped or on the spot
BATCH = 32


class Classifier(nn.Module):
    """A small classifier of videos whose hidden layers serve as features: space first, then time.

    Every frame goes through the image domain's network; convolutions along time read its 64
    features of each frame.

    Args:
        channels: 1 or 3.
        classes: `{name: number of classes}`, at least one name; the frames by themselves are asked
            for the first.
        size: height and width in pixels, best 8 to 64; larger videos are shrunk to 64.
        width: channels of the first layer.
    """

    num_features = 64

    def __init__(self, channels: int, classes: dict[str, int], size: int = 16, width: int = 16):
        super().__init__()
        self.config = {"channels": channels, "classes": classes, "size": size, "width": width}
        self.classes, d = classes, self.num_features
        self.frame = Frames(channels, next(iter(classes.values())), size, width)
        self.time = nn.Sequential(
            nn.Conv1d(d, d, 3, padding=1),
            nn.SiLU(),
            nn.Conv1d(d, d, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool1d(2),
            nn.Flatten(),
        )
        self.neck = nn.Sequential(nn.Linear(2 * d, d), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(d, num) for name, num in classes.items()})

    def frames(self, x: Tensor) -> Tensor:
        """Features of each frame by itself, [N, T, 64]."""
        found = self.frame.features(shrunk(rearrange(x, "n c t h w -> (n t) c h w"), LARGEST))
        return rearrange(found, "(n t) d -> n t d", n=len(x))

    def clip(self, frames_NTD: Tensor) -> Tensor:
        """Features of a clip, [N, 128]: the 64 units before the heads, and the frames' changes.

        The first know what is seen and how it moves, and forgive a flicker; the others do not.
        """
        return torch.cat([self.neck(self.time(frames_NTD.mT)), frames_NTD.diff(dim=1).abs().mean(1)], -1)

    def logits(self, clip_ND: Tensor) -> dict[str, Tensor]:
        """Logits of every kind of class, [N, classes], from `clip`."""
        return {name: head(clip_ND[:, : self.num_features]) for name, head in self.heads.items()}


@once
def train_classifier(data: Any, classes: dict[str, int], steps: int = STEPS, seed: int = 0) -> Classifier:
    """A classifier fitted to `data`, len() and data[indices] -> {"data", *classes}.

    It is fitted on the CPU, so that the samples of all devices are measured with the same one. The
    global generator is untouched.
    """
    rng = torch.Generator().manual_seed(seed)
    shape, first = data[torch.zeros(1, dtype=torch.long)]["data"].shape, next(iter(classes))
    # An evaluation, which is where it is fitted on the spot, runs without gradients.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Classifier(shape[1], classes, shape[-1]).train()
        optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, steps)
        for _ in counted("training the classifier that samples are measured with", steps):
            batch = data[torch.randint(len(data), (BATCH,), generator=rng)]
            frames = net.frames(batch["data"])
            loss = F.cross_entropy(net.frame.head(frames.mean(1)), batch[first], label_smoothing=0.05)
            for name, logits in net.logits(net.clip(frames)).items():
                loss = loss + F.cross_entropy(logits, batch[name], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(net: Classifier, data: Any) -> dict[str, float]:
    """Share of `data` whose class the classifier names, in [0, 1], for every kind of class."""
    hits, device = dict.fromkeys(net.classes, 0), next(net.parameters()).device
    for rows in torch.arange(len(data)).split(128):
        batch = {name: value.to(device) for name, value in data[rows].items()}
        for name, logits in net.logits(net.clip(net.frames(batch["data"]))).items():
            hits[name] += int((logits.argmax(1) == batch[name]).sum())
    return {name: count / len(data) for name, count in hits.items()}


if __name__ == "__main__":
    raise SystemExit("error: python -m domains.video.features is now python -m domains.video.ship")
