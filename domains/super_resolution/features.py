"""Features to compare photographs by: a small network that tells how an image was damaged.

It looks at parts of about twenty pixels, so images may have any size. `ship.py` trains it.

B: images; H, W: height, width; C: channels.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit.evaluation.samples import eight_bits
from distillkit.progress import counted
from domains.super_resolution.resize import enlarged, shrunk

SHIPPED = Path(__file__).parent / "weights" / "features" / "model.safetensors"
STEPS, BATCH = 900, 32  # of training
BORDER = 4  # pixels cut off damaged squares, where an image's end shows


class Critic(nn.Module):
    """A convolutional classifier of damages whose layers serve as features, one vector a place.

    No layer sees more than its surroundings, and after training none uses statistics of the images.

    Args:
        kinds: number of damages, with none among them.
        width: channels of the first layer.
    """

    def __init__(self, kinds: int, width: int = 24):
        super().__init__()
        self.config = {"kinds": kinds, "width": width}
        sizes = [
            (3, width, 1),
            (width, width, 2),
            (width, 2 * width, 1),
            (2 * width, 2 * width, 2),
            (2 * width, 2 * width, 1),
        ]
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(i, o, 3, s, padding=1, padding_mode="replicate", bias=False), nn.BatchNorm2d(o), nn.SiLU()
            )
            for i, o, s in sizes
        )
        self.head = nn.Linear(2 * width, kinds)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Features of images [B, 3, H, W] in [-1, 1] after each layer, [B, C, h, w]."""
        found = []
        for layer in self.layers:
            found.append(x := layer(x))
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, kinds]: the mean of what is seen at each place."""
        return self.head(self.maps(x)[-1].mean((2, 3)))


def distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Distances [B] of images by their `maps`, as LPIPS without weights (arXiv 1801.03924, eq. 1).

    It is the mean, over layers and places, of the squared distance of the features' directions.
    """
    gaps = [(_unit(a) - _unit(b)).square().sum(1).mean((1, 2)) for a, b in zip(ours, theirs, strict=True)]
    return torch.stack(gaps).mean(0)


def _unit(features: Tensor) -> Tensor:
    return features * (features.square().sum(1, keepdim=True) + 1e-8).rsqrt()


# Damages: images [B, 3, H, W] and a strength in [0, 1] to damaged ones


def resized(scale: int) -> Callable[[Tensor, float], Tensor]:
    return lambda x, strength: enlarged(shrunk(x, scale), x.shape[-2:])


def blurred(x: Tensor, strength: float) -> Tensor:
    """A Gaussian of 0.7 to 2.5 pixels."""
    grid = torch.arange(-6.0, 7.0)
    line = torch.exp(-0.5 * (grid / (0.7 + 1.8 * strength)).square())
    window = (line[:, None] * line / line.sum() ** 2).expand(3, 1, -1, -1)
    return F.conv2d(F.pad(x, (6,) * 4, mode="reflect"), window, groups=3)


def sharpened(x: Tensor, strength: float) -> Tensor:
    """An enlarged image whose edges are exaggerated."""
    small = resized(2)(x, strength)
    return small + (1 + 2 * strength) * (small - blurred(small, 0.3))


def noisy(x: Tensor, strength: float) -> Tensor:
    """White noise, or noise that is smooth over two pixels."""
    noise = torch.randn(x.shape)
    if strength > 0.5:
        noise = 2 * F.avg_pool2d(F.pad(noise, (0, 1, 0, 1), mode="reflect"), 2, 1)
    return x + (0.03 + 0.2 * (2 * strength % 1)) * noise


def grainy(x: Tensor, strength: float) -> Tensor:
    """An enlarged image with noise instead of detail."""
    return noisy(resized(4)(x, strength), strength)


def compressed(x: Tensor, strength: float) -> Tensor:
    """JPEG of quality 60 to 10."""
    levels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).numpy()
    found = []
    for image in levels:
        Image.fromarray(image).save(kept := io.BytesIO(), format="JPEG", quality=round(60 - 50 * strength))
        found.append(np.asarray(Image.open(kept)))
    return torch.from_numpy(np.stack(found)).movedim(-1, 1).float() / 127.5 - 1


def blocky(x: Tensor, strength: float) -> Tensor:
    """Squares of 2 or 4 pixels."""
    side = 2 if strength < 0.5 else 4
    return F.interpolate(F.avg_pool2d(x, side), scale_factor=side, mode="nearest")


DAMAGES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "none": lambda x, strength: x,
    "x2": resized(2),
    "x4": resized(4),
    "blurred": blurred,
    "sharpened": sharpened,
    "noisy": noisy,
    "grainy": grainy,
    "compressed": compressed,
    "blocky": blocky,
}


def damaged(x: Tensor, kinds: Sequence[int], strengths: Sequence[float]) -> Tensor:
    """Each image [B, 3, H, W] with the damage of its kind, in 8 bits and without its border."""
    damages = list(DAMAGES.values())
    rows = [damages[kind](image[None], strength) for image, kind, strength in zip(x, kinds, strengths, strict=True)]
    return eight_bits(torch.cat(rows))[..., BORDER:-BORDER, BORDER:-BORDER]


def train_critic(data: Any, steps: int = STEPS, seed: int = 0) -> Critic:
    """A network fitted to damages of `data`, len() and data[indices] -> {"data"}, on the CPU.

    The global generator is untouched.
    """
    rng = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Critic(len(DAMAGES)).train()
        optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, steps)
        for _ in counted("training the network that photographs are measured with", steps):
            x, kinds = _batch(data, rng)
            loss = F.cross_entropy(net(x), kinds)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(net: Critic, data: Any, batches: int = 20) -> float:
    """The share of damages of `data` that the network names, in [0, 1]."""
    rng, hits = torch.Generator().manual_seed(1), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for _ in range(batches):
            x, kinds = _batch(data, rng)
            hits.append((net(x).argmax(1) == kinds).double().mean())
    return float(torch.stack(hits).mean())


def _batch(data: Any, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Damaged squares and the numbers of their damages."""
    x = data[torch.randint(len(data), (BATCH,), generator=rng)]["data"]
    kinds = torch.randint(len(DAMAGES), (BATCH,), generator=rng)
    return damaged(x, kinds.tolist(), torch.rand(BATCH, generator=rng).tolist()), kinds
