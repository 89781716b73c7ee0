"""What images can be asked for, `optimize --control NAME=TARGET`.

B: batch; C, H, W: channels, height, width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distillkit.codec import Codec
from distillkit.control.control import Asked, Control
from distillkit.evaluation.extractor import load_extractor
from domains.image.features import JUDGE, SHIPPED, Classifier
from domains.image.reading import cropped, decoded, from_uint8, opened, upright, why

KNOWN = 128  # of 255: the opacity from which a pixel is known


class Pixels(Control):
    """Base of the controls that look at samples as they are."""

    def __init__(self, asked: Asked):
        super().__init__(asked)
        if type(self.codec) is not Codec:
            raise ValueError(
                f"{self.name} looks at pixels, which {type(self.codec).__name__} decodes without gradients: give a model whose "
                f"samples are pixels"
            )
        self.shape = asked.event_shape


class Brightness(Pixels):
    """`brightness=0.3`: the mean of all pixels, from 0 (black) to 1."""

    name = "brightness"

    def __init__(self, asked: Asked, target: float):
        super().__init__(asked)
        self.target = target

    @classmethod
    def read(cls, text, asked):
        return cls(asked, share(text))

    def loss(self, x, cond):
        """`(mean - target)^2`; what lies outside of [-1, 1] counts as its end."""
        return self.error(x, cond).square()

    def error(self, x, cond):
        return ((x.clamp(-1, 1).flatten(1).mean(1) + 1) / 2 - self.target).abs()


class Inpaint(Pixels):
    """`inpaint=FILE@x0,y0,x1,y1`: the picture, but for a part that is made anew.

    The part is a box in the file's pixels, or what is transparent in it.
    """

    name = "inpaint"
    unit = "RMS"

    def __init__(self, asked: Asked, target: Tensor, known: Tensor):
        super().__init__(asked)
        self.target, self.known = target, known

    @classmethod
    def read(cls, text, asked):
        place, _, box = text.rpartition("@") if "@" in text and not Path(text).is_file() else (text, "", "")
        return cls(asked, *picture(place, box, asked.event_shape))

    def loss(self, x, cond):
        """`sum m (x - y)^2 / sum m`, m = 1 where the picture is known."""
        known = self.known.to(x).expand(self.target.shape)
        return ((x - self.target.to(x)).square() * known).flatten(1).sum(1) / known.sum()

    def error(self, x, cond):
        return self.loss(x, cond).sqrt()


class Label(Pixels):
    """`label=3`: what a classifier of digits sees; without a number each sample's own class.

    The loss is that of the classifier of rewards, the error that of the one which measures, so that
    noise which only deceives the first shows.
    """

    name = "label"
    unit = "nats"

    def __init__(self, asked: Asked, label: int | None):
        super().__init__(asked)
        self.label, self.judge, self.measure = (
            label,
            load_extractor(Classifier, JUDGE),
            load_extractor(Classifier, SHIPPED),
        )

    @classmethod
    def read(cls, text, asked):
        config = load_extractor(Classifier, SHIPPED).config
        if asked.event_shape != (config["channels"], config["size"], config["size"]) or asked.data.classes != {
            "label": config["classes"]
        }:
            raise ValueError("there is a classifier of scikit-learn's digits alone: leave label out")
        return cls(asked, whole(text, config["classes"]))

    def loss(self, x, cond):
        """`-log p(label | x)`."""
        return self._surprise(self.judge, x, cond)

    def error(self, x, cond):
        return self._surprise(self.measure, x, cond)

    def _surprise(self, net: Classifier, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        label = cond["label"] if self.label is None else torch.full_like(cond["label"], self.label)
        return -net.to(x.device)(x.clamp(-1, 1)).log_softmax(1).gather(1, label[:, None])[:, 0]


CONTROLS: dict[str, type[Control]] = {control.name: control for control in (Brightness, Inpaint, Label)}


# ---- targets


def share(text: str) -> float:
    """A number from 0 to 1.

    Raises:
        ValueError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"the target must be a number from 0 (black) to 1 (white), got {text!r}")
    return value


def whole(text: str, classes: int) -> int | None:
    """The number of one of the classes; None for no text.

    Raises:
        ValueError: there is no such class.
    """
    if text and not (text.isdecimal() and int(text) < classes):
        raise ValueError(f"the target must be a class from 0 to {classes - 1}, got {text!r}")
    return int(text) if text else None


def picture(place: str, box: str, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """A picture [C, H, W] in [-1, 1] and which of its pixels are known, bool [1, H, W].

    Both are cut to the shape of samples, the largest centred part.

    Args:
        place: the file.
        box: `x0,y0,x1,y1` in its pixels, the part that is not known; empty for what is transparent.
        shape: C, H and W.

    Raises:
        ValueError: it cannot be read, or all or nothing of it is known.
    """
    if not Path(place).is_file():
        raise ValueError(f"there is no picture {place!r}: write --control inpaint=FILE@x0,y0,x1,y1")
    try:
        with opened(Path(place)) as image:
            opacity = upright(image).convert("RGBA").getchannel("A")
    except Exception as error:  # decoders fail in many ways
        raise ValueError(f"{place} cannot be decoded ({why(error)})") from None
    if box:
        opacity.paste(0, corners(box, opacity.size))
    pixels = cropped(decoded(Path(place), shape[0]), *shape[1:])
    known = torch.from_numpy(np.array(cropped(opacity, *shape[1:])))[None] >= KNOWN
    if known.all() or not known.any():
        much = "all" if known.all() else "nothing"
        raise ValueError(
            f"{much} of {place} is known: say which part to make anew, --control inpaint={place}@x0,y0,x1,y1"
        )
    return from_uint8(np.asarray(pixels)[None], place)[0], known


def corners(box: str, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box `x0,y0,x1,y1` in a picture of this width and height.

    Raises:
        ValueError: it is no box, or does not lie in the picture.
    """
    parts = box.split(",")
    values = [int(part) for part in parts if part.strip().isdecimal()]
    if len(values) != len(parts) or len(values) != 4:
        raise ValueError(f"the part to make anew must be four numbers of pixels x0,y0,x1,y1, got {box!r}")
    left, top, right, bottom = values
    if not (left < right <= size[0] and top < bottom <= size[1]):
        raise ValueError(f"the part {box} must lie in the picture of {size[0]} x {size[1]} pixels, x0 < x1 and y0 < y1")
    return left, top, right, bottom
