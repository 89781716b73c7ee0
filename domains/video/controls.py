"""What clips can be asked for, `optimize --control NAME=TARGET`.

B: batch; C: channels; T: frames; H, W: height, width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distillkit.control.control import Asked, Control
from distillkit.evaluation.extractor import load_extractor
from domains.image.controls import Pixels, share, whole
from domains.image.reading import cropped, decoded, from_uint8
from domains.video.clip import CLASSES, FRAMES, SIDE
from domains.video.features import SHIPPED, Classifier
from domains.video.media import FPS


class Clip(Pixels):
    """Base of the controls that look at frames as they are."""

    def __init__(self, asked: Asked):
        super().__init__(asked)
        self.seconds = (self.shape[1] - 1) / FPS


class Intensity(Clip):
    """`intensity=ramp:0.1:0.3`, or one number: the brightness of each frame, from 0 to 1."""

    name = "intensity"
    unit = "RMS"

    def __init__(self, asked: Asked, target: Tensor):
        super().__init__(asked)
        self.target = target

    @classmethod
    def read(cls, text, asked):
        ends = [share(part) for part in text.removeprefix("ramp:").split(":")]
        if len(ends) != (2 if text.startswith("ramp:") else 1):
            raise ValueError(f"the target must be ramp:FIRST:LAST, such as ramp:0.1:0.3, or one number, got {text!r}")
        return cls(asked, torch.linspace(ends[0], ends[-1], asked.event_shape[1]))

    def loss(self, x, cond):
        """`mean_t (brightness_t - target_t)^2`."""
        return (self._brightness(x) - self.target.to(x)).square().mean(1)

    def error(self, x, cond):
        return self.loss(x, cond).sqrt()

    def curves(self, x, cond):
        return {"target": self.target, "achieved": self._brightness(x)[0]}

    @staticmethod
    def _brightness(x: Tensor) -> Tensor:
        """The mean of each frame's pixels, [B, T]; what is outside of [-1, 1] counts as its end."""
        return (x.clamp(-1, 1).mean((1, 3, 4)) + 1) / 2


class Loop(Clip):
    """`loop`: the last frame is the first."""

    name = "loop"
    unit = "RMS"

    @classmethod
    def read(cls, text, asked):
        if text:
            raise ValueError(f"loop takes no target, got {text!r}")
        return cls(asked)

    def loss(self, x, cond):
        """`mean (x_T - x_1)^2`."""
        return (x[:, :, -1] - x[:, :, 0]).square().flatten(1).mean(1)

    def error(self, x, cond):
        return self.loss(x, cond).sqrt()


class Inpaint(Clip):
    """`inpaint=FILE@K`: frame K is the picture, by default the first; the others are made."""

    name = "inpaint"
    unit = "RMS"

    def __init__(self, asked: Asked, target: Tensor, frame: int):
        super().__init__(asked)
        self.target, self.frame = target, frame

    @classmethod
    def read(cls, text, asked):
        place, _, number = text.rpartition("@") if "@" in text and not Path(text).is_file() else (text, "", "0")
        channels, frames, *size = asked.event_shape
        if not Path(place).is_file():
            raise ValueError(
                f"there is no picture {place!r}: write --control inpaint=FILE or --control inpaint=FILE@FRAME"
            )
        image = cropped(decoded(Path(place), channels), *size)
        frame = whole(number, frames) if number else 0
        return cls(asked, from_uint8(np.asarray(image)[None], place)[0], frame)

    def loss(self, x, cond):
        """`mean (x_k - y)^2`."""
        return (x[:, :, self.frame] - self.target.to(x)).square().flatten(1).mean(1)

    def error(self, x, cond):
        return self.loss(x, cond).sqrt()


class Label(Clip):
    """`label=3`: what the classifier of moving digits sees; without a number its own class."""

    name = "label"
    unit = "nats"

    def __init__(self, asked: Asked, label: int | None):
        super().__init__(asked)
        self.label, self.net = label, load_extractor(Classifier, SHIPPED)

    @classmethod
    def read(cls, text, asked):
        if asked.event_shape != (1, FRAMES, SIDE, SIDE) or asked.data.classes != CLASSES:
            raise ValueError("there is a classifier of moving digits alone: leave label out")
        return cls(asked, whole(text, CLASSES["label"]))

    def loss(self, x, cond):
        """`-log p(label | x)`."""
        net = self.net.to(x.device)
        label = cond["label"] if self.label is None else torch.full_like(cond["label"], self.label)
        logits = net.logits(net.clip(net.frames(x.clamp(-1, 1))))["label"]
        return -logits.log_softmax(1).gather(1, label[:, None])[:, 0]


CONTROLS: dict[str, type[Control]] = {control.name: control for control in (Intensity, Loop, Inpaint, Label)}
