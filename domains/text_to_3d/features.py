"""Features to compare renders by: a small classifier of shape, colour, view; trained by `ship.py`.

N: images; H, W: height, width; D: features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit.progress import counted
from domains.text_to_3d.solids import COLOURS, SHAPES
from domains.text_to_3d.views import VIEWS, view_of

SHIPPED = Path(__file__).parent / "weights" / "features" / "model.safetensors"
STEPS = 1500  # of training
BATCH = 64  # renders
SHIFT, NOISE = 2, 0.1  # pixels that renders are moved by in training, and deviation of noise, at most
KINDS = {"shape": len(SHAPES), "colour": len(COLOURS), "view": len(VIEWS)}


class Classifier(nn.Module):
    """A small classifier of images whose last hidden layer serves as features.

    Halves the image three times, and describes every quarter of it separately, because the place of
    a part tells the view. Smooth activations: no feature is ever dead.

    Args:
        width: channels of the first layer.
    """

    num_features = 64

    def __init__(self, width: int = 16):
        super().__init__()
        self.config = {"width": width}
        layers, before = [], 3
        for after, stride in ((width, 1), (2 * width, 2), (3 * width, 2), (3 * width // 2, 2)):
            layers += [nn.Conv2d(before, after, 3, stride, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            before = after
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.neck = nn.Sequential(nn.Linear(16 * before, self.num_features), nn.SiLU())
        self.heads = nn.ModuleDict({kind: nn.Linear(self.num_features, num) for kind, num in KINDS.items()})

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, 64] of images [N, 3, H, W] in [-1, 1]."""
        return self.neck(self.body(x))

    def logits(self, features_ND: Tensor) -> dict[str, Tensor]:
        """Logits of shape, colour and view, [N, 4] each."""
        return {kind: head(features_ND) for kind, head in self.heads.items()}

    def prompts(self, features_ND: Tensor) -> Tensor:
        """Log-probabilities [N, 16] of the prompts: those of their shape and their colour."""
        logits = self.logits(features_ND)
        shape, colour = (logits[kind].log_softmax(1) for kind in ("shape", "colour"))
        return (shape[:, :, None] + colour[:, None]).flatten(1)


def train_classifier(data: Any, steps: int = STEPS, seed: int = 0) -> Classifier:
    """A classifier fitted to renders, len() and data[indices] -> {"data", "prompt", "camera"}.

    Renders are moved, blurred and made noisy by random amounts: the features forgive what a coarse
    scene lacks. The global generator is untouched.
    """
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Classifier().train()
        optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, steps)
        for _ in counted("training the classifier that samples are measured with", steps):
            batch = data[torch.randint(len(data), (BATCH,), generator=rng)]
            logits, wanted = net.logits(net(varied(batch["data"], rng))), classes(batch)
            loss = sum(F.cross_entropy(logits[kind], wanted[kind], label_smoothing=0.05) for kind in KINDS)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval().requires_grad_(False)


def classes(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Shape, colour and view of a batch, int64 [N] each."""
    shape, colour = batch["prompt"] // len(COLOURS), batch["prompt"] % len(COLOURS)
    return {"shape": shape, "colour": colour, "view": view_of(batch["camera"])}


def varied(x: Tensor, rng: torch.Generator) -> Tensor:
    """Images [N, 3, H, W], each moved by whole pixels, blurred, with noise of another strength."""
    moves = [torch.randint(-SHIFT, SHIFT + 1, (2,), generator=rng).tolist() for _ in x]
    padded = F.pad(x, [SHIFT] * 4, value=1.0)  # what comes in from outside is background
    cut = slice(SHIFT, -SHIFT)
    x = torch.stack([one.roll(move, (1, 2))[:, cut, cut] for one, move in zip(padded, moves, strict=True)])
    share, strength = torch.rand(2, len(x), 1, 1, 1, generator=rng)
    blurred = F.avg_pool2d(F.pad(x, [1] * 4, mode="replicate"), 3, stride=1)
    return torch.lerp(x, blurred, share) + NOISE * strength * torch.randn(x.shape, generator=rng)


@torch.no_grad()
def accuracy(net: Classifier, data: Any) -> dict[str, float]:
    """Share of `data` whose shape, colour and view the classifier names, in [0, 1] each."""
    hits, device = dict.fromkeys(KINDS, 0), next(net.parameters()).device
    for rows in torch.arange(len(data)).split(256):
        batch = data[rows]
        logits, wanted = net.logits(net(batch["data"].to(device))), classes(batch)
        for kind in KINDS:
            hits[kind] += int((logits[kind].argmax(1).cpu() == wanted[kind].cpu()).sum())
    return {kind: count / len(data) for kind, count in hits.items()}
