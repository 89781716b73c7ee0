"""Video data: `data` [B, C, T, H, W] float32 in [-1, 1] and classes int64 [B].

For teachers with context frames batches also have `first`.

N: clips; B: batch; C: channels; T: frames; H, W: height, width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from distillkit import checks
from distillkit.data import Batch, DistillData, TensorData
from domains.video.clip import CLASSES, FRAMES, MOTIONS, SIDE

DIGIT = 8  # pixels along the side of a digit
ROOM = SIDE - DIGIT  # how far a digit can go between the walls
SPEED = (0.75, 1.25)  # pixels a frame: whatever its heading, a digit travels as far as the room is wide
CHUNK = 500  # clips drawn at once


class VideoData(DistillData):
    """Base of all video data: how it is measured and shown, and the context frames.

    Args:
        given: number of context frames, the first ones of a clip; batches then have them as
            `first`, [B, C, given, H, W].
        i3d: path of I3D's weights (`rgb_imagenet.pt`), in whose features clips are then compared,
            see `domains.video.i3d`.
        batch_size: clips in a batch.
    """

    domain = "video"
    pictured = 24
    asks = {"first": "the first frames of each clip, numbers in [-1, 1] of shape [n, channels, frames, height, width]"}

    def __init__(self, given: int = 0, batch_size: int = 32, i3d: str | None = None):
        super().__init__(batch_size)
        checks.whole(0, given=given)
        self.given, self.context, self.i3d = given, ("first",) if given else (), i3d

    def with_first(self, batch: Batch) -> Batch:
        """The batch with its context frames, if any are asked for."""
        return batch | ({"first": batch["data"][:, :, : self.given]} if self.given else {})

    def build_evaluator(self, held_out: Sequence[Any]) -> Any:
        from domains.video.evaluation import VideoEvaluator

        return VideoEvaluator(self.train, held_out, self.classes, self.i3d)

    @property
    def media(self) -> ModuleType:
        """`domains.video.media`."""
        from domains.video import media

        return media

    @property
    def controls(self) -> dict[str, type]:
        """`domains.video.controls`."""
        from domains.video.controls import CONTROLS

        return CONTROLS


class MovingDigits(VideoData):
    """Handwritten digits in motion, [1, 16, 16, 16], white on black; std 0.46.

    The digits are real, the motion is procedural.

    Classes: `label`, the digit, and `motion`:

    - `bounce`: a digit goes straight and bounces off the walls;
    - `crossing`: two different digits of the class pass each other, up and down or left and right,
      and turn at the walls;
    - `drift`: the camera glides along a wall papered with one digit (every 16 pixels), which leaves
      on one side and comes back on the other.

    Places are real numbers, drawn by bilinear interpolation, so a digit keeps its ink. Where two
    overlap the brighter one is seen. Everything is a function of the seed. The parts use different
    digits, those of the image domain's parts. All pairs of classes come in turn.

    Args:
        train, val, test: number of clips.
        seed: of digits and motion.
        given, batch_size, i3d: as in `VideoData`.
    """

    def __init__(
        self,
        train: int = 5000,
        val: int = 500,
        test: int = 500,
        seed: int = 0,
        given: int = 0,
        batch_size: int = 32,
        i3d: str | None = None,
    ):
        super().__init__(given, batch_size, i3d)
        checks.whole(1, train=train, val=val, test=test)
        checks.seed(seed=seed)
        if given >= FRAMES:
            raise ValueError(f"given must leave something of the {FRAMES} frames to make, got {given}")
        self.sizes, self.seed = (train, val, test), seed
        self.event_shape, self.classes = (1, FRAMES, SIDE, SIDE), dict(CLASSES)

    def load(self) -> tuple[TensorData, TensorData, TensorData]:
        from domains.image.data import Digits

        generators = [torch.Generator().manual_seed(3 * self.seed + part) for part in range(3)]
        parts = zip(Digits().load(), self.sizes, generators, strict=True)
        return tuple(TensorData(self.with_first(clips(part.tensors, num, rng))) for part, num, rng in parts)


def clips(digits: Batch, num: int, generator: torch.Generator) -> Batch:
    """`num` clips of the digits `data` [D, 1, 8, 8] with `label` [D].

    Returns:
        `data` [num, 1, T, H, W], `label` and `motion` [num].
    """
    label = torch.arange(num) % 10
    motion = torch.arange(num) % len(MOTIONS)  # 3 and 10 have no common divisor: all pairs come in turn
    images, own = [], (digits["label"] == label[:, None]).float()
    for rows in torch.arange(num).split(CHUNK):
        chosen = own[rows].multinomial(2, generator=generator)  # two different ones of the class
        ink = (digits["data"][:, 0][chosen] + 1) / 2
        ink[:, 1] *= (motion[rows] == MOTIONS.index("crossing"))[:, None, None]
        images.append(drawn(ink, paths(motion[rows], generator)))
    return {"data": torch.cat(images)[:, None].clamp_max(1) * 2 - 1, "label": label, "motion": motion}


def paths(motion: Tensor, generator: torch.Generator) -> Tensor:
    """The upper left corners of two digits, (down, right) in pixels in [0, 16), [N, 2, T, 2]."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    num, time = len(motion), torch.arange(FRAMES).float()
    start, heading, speed = uniform(0, ROOM, num, 2, 2), uniform(0, 2 * math.pi, num), uniform(*SPEED, num)
    place, meeting = uniform(0.25 * ROOM, 0.75 * ROOM, num), uniform(0.25 * FRAMES, 0.75 * FRAMES, num)
    along = torch.stack([heading.sin(), heading.cos()], -1)
    straight = start[:, :, None] + (speed[:, None] * along)[:, None, None] * time[:, None]  # both digits alike

    axis = (along.abs().argmax(-1) == torch.arange(2)[:, None]).T[:, None, None]  # [N, 1, 1, 2]: that of a crossing
    gone = (speed * torch.where(heading < math.pi, 1, -1))[:, None] * (time - meeting[:, None])
    passing = place[:, None, None] + torch.stack([gone, -gone], 1)  # they meet at `place` in frame `meeting`
    crossing = torch.where(axis, passing[..., None], start[:, :, None])

    found = torch.where((motion == MOTIONS.index("crossing"))[:, None, None, None], crossing, straight)
    drifts = (motion == MOTIONS.index("drift"))[:, None, None, None]
    return torch.where(drifts, found % SIDE, folded(found))


def folded(place: Tensor) -> Tensor:
    """Straight motion between walls at 0 and `ROOM` that reflect it: a triangle wave."""
    return ROOM - (place % (2 * ROOM) - ROOM).abs()


def drawn(ink: Tensor, places: Tensor) -> Tensor:
    """Digits [N, 2, 8, 8] in [0, 1] at their places [N, 2, T, 2]: [N, T, 16, 16].

    The edges of the canvas meet.
    """
    offset = torch.arange(SIDE)[:, None] - torch.arange(DIGIT) - places[..., None, None]  # [N, 2, T, 2, 16, 8]
    away = (offset + SIDE / 2) % SIDE - SIDE / 2
    rows, columns = (1 - away.abs()).clamp_min(0).unbind(3)
    return (rows @ ink[:, :, None] @ columns.mT).amax(1)
