"""Features to compare images by: a small classifier; `ship.py` trains the shipped one.

N: images; C, H, W: channels, height, width; F: features.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit.evaluation.extractor import once
from distillkit.progress import counted

SHIPPED = Path(__file__).parent / "weights" / "features" / "model.safetensors"
JUDGE = SHIPPED.with_name("judge.safetensors")  # of the reward, see `Digits.reward`
STEPS = 600  # of training, shipped or on the spot
LARGEST = 64  # pixels; larger images are shrunk before the classifier sees them


class Classifier(nn.Module):
    """A small convolutional classifier of images whose last hidden layer serves as features.

    Halves the image until a side is at most 8, then looks once more at full detail; the position is
    kept (no global pooling), because where a stroke lies matters on 8 x 8 pixels. Smooth
    activations: no feature is ever dead.

    Args:
        channels: 1 or 3.
        classes: number of classes.
        size: height and width of the images in pixels, best 8 to 64; larger images are shrunk to
            64.
        width: channels of the first layer.
    """

    num_features = 64

    def __init__(self, channels: int, classes: int, size: int = 8, width: int = 32):
        super().__init__()
        self.config = {"channels": channels, "classes": classes, "size": size, "width": width}
        layers = [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU()]
        size = min(size, LARGEST)
        while size > 8:
            size = (size + 1) // 2
            layers += [nn.Conv2d(width, width, 3, stride=2, padding=1), nn.GroupNorm(8, width), nn.SiLU()]
        layers += [nn.Conv2d(width, 2 * width, 3, padding=1), nn.GroupNorm(8, 2 * width), nn.SiLU()]
        layers += [nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1), nn.GroupNorm(8, 2 * width), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.neck = nn.Sequential(nn.Linear(2 * width * 16, self.num_features), nn.SiLU())
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(self.num_features, classes))

    def features(self, x_NCHW: Tensor) -> Tensor:
        """The 64 units before the head, [N, 64]."""
        return self.neck(self.body(shrunk(x_NCHW, LARGEST)))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Logits [N, classes]."""
        return self.head(self.features(x_NCHW))


@once
def train_classifier(data: Any, classes: int, steps: int = STEPS, seed: int = 0) -> Classifier:
    """A classifier fitted to `data`, len() and data[indices] -> {"data", "label"}.

    It is fitted on the CPU, so that the samples of all devices are measured with the same one. The
    global generator is untouched.

    AdamW with a cosine schedule; every image is shifted by up to an eighth of its side (at least
    one pixel), so the features forgive what the eye forgives.
    """
    rng = torch.Generator().manual_seed(seed)
    image = data[torch.zeros(1, dtype=torch.long)]["data"]
    shift = max(1, image.shape[-1] // 8)
    # An evaluation, which is where it is fitted on the spot, runs without gradients.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Classifier(image.shape[1], classes, image.shape[-1]).train()
        optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in counted("training the classifier that samples are measured with", steps):
            batch = data[torch.randint(len(data), (128,), generator=rng)]
            x_NCHW = _shifted(batch["data"], shift, rng)
            loss = F.cross_entropy(net(x_NCHW), batch["label"], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(net: Classifier, data: Any) -> float:
    """Share of `data` whose label the classifier names, in [0, 1]."""
    hits, device = 0, next(net.parameters()).device
    for rows in torch.arange(len(data)).split(256):
        batch = data[rows]
        hits += int((net(batch["data"].to(device)).argmax(1) == batch["label"].to(device)).sum())
    return hits / len(data)


def shrunk(x_NCHW: Tensor, side: int) -> Tensor:
    """Images whose longer side is at most `side` pixels (antialiased); smaller ones are kept."""
    longest = max(x_NCHW.shape[-2:])
    if longest <= side:
        return x_NCHW
    size = [max(1, round(length * side / longest)) for length in x_NCHW.shape[-2:]]
    return F.interpolate(x_NCHW, size=size, mode="bilinear", antialias=True)


def _shifted(x_NCHW: Tensor, most: int, rng: torch.Generator) -> Tensor:
    """Each image moved by a random whole number of pixels, at most `most` each way.

    The edge pixels are repeated.
    """
    n, _, height, width = x_NCHW.shape
    by = torch.randint(-most, most + 1, (2, n, 1), generator=rng)
    rows = (torch.arange(height) + by[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + by[1]).clamp(0, width - 1)
    index = torch.arange(n)[:, None, None]
    return x_NCHW.movedim(1, -1)[index, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


if __name__ == "__main__":
    raise SystemExit("error: python -m domains.image.features is now python -m domains.image.ship")
