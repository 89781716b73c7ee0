"""Views of solids: `data` [B, 3, S, S] in [-1, 1] on white, `prompt` int64 [B], `camera` [B, 13].

A camera is 13 numbers, see `distillkit.rendering.cameras`. N: views; S: pixels along a side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from distillkit import checks
from distillkit.data import DistillData, TensorData
from distillkit.rendering.cameras import orbit
from distillkit.spec import Recorded
from domains.text_to_3d.solids import COLOURS, PROMPTS, REACH, SHAPES, painted, seen

OVERHEAD = 0.15  # share of views from above
ABOVE = (62.0, 85.0)  # their elevations in degrees
ASKS = {
    "camera": "where each sample is seen from, 13 numbers as distillkit.rendering.cameras.orbit makes them: a pose in OpenGL "
    "axes and the tangent of half the field of view"
}


class Orbits(Recorded):
    """Cameras around the origin, at which they look, with azimuths in strata.

    A part `OVERHEAD` of them looks from above.

    Args:
        distance: of the cameras from the origin, the least and the largest.
        fovy: vertical field of view in degrees, the least and the largest.
        elevation: of the other cameras in degrees above the horizon, the least and the largest.

    Raises:
        ValueError: a range is none, or a camera could stand inside of the objects.
    """

    def __init__(
        self,
        distance: Sequence[float] = (1.9, 2.4),
        fovy: Sequence[float] = (45.0, 55.0),
        elevation: Sequence[float] = (-10.0, 45.0),
    ):
        for name, bounds in {"distance": distance, "fovy": fovy, "elevation": elevation}.items():
            checks.finite(**{name: list(bounds)})
            if len(bounds) != 2 or bounds[0] > bounds[1]:
                raise ValueError(f"{name} is a least and a largest value, such as [1.9, 2.4], got {list(bounds)}")
        checks.within("(0, 170]", fovy=list(fovy))
        checks.within("[-90, 90]", elevation=list(elevation))
        if distance[0] <= REACH:
            raise ValueError(
                f"a camera at distance {distance[0]:g} would stand inside of the objects, which reach {REACH} from the origin: "
                f"say data.orbits.distance=[1.9,2.4] or more"
            )
        self.distance, self.fovy, self.elevation = tuple(distance), tuple(fovy), tuple(elevation)

    def draw(self, num: int, seed: int) -> Tensor:
        """`num` cameras [num, 13] in random order, one in each of as many sectors of azimuth."""
        generator = torch.Generator().manual_seed(seed)

        def between(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(num, generator=generator)

        azimuth = (torch.randperm(num, generator=generator) + between(0, 1)) / num * 2 * math.pi
        above = between(0, 1) < OVERHEAD
        elevation = torch.where(above, between(*ABOVE), between(*self.elevation)).deg2rad()
        return orbit(azimuth, elevation, between(*self.distance), between(*self.fovy).deg2rad())


class Solids(DistillData):
    """Renders of sixteen coloured solids, see `domains.text_to_3d.solids`; std 0.7.

    Training, validation and test views have different cameras; the colours of a shape share
    theirs. The prompts come in turn.

    Args:
        only: the prompts that a run is about, of `PROMPTS`; None means all.
        held_out: prompts among them that are not trained on; evaluation and pictures ask for them.
            Without any, they ask for all.
        train, val, test: views of each prompt.
        side: pixels along a side of a render.
        seed: of the cameras.
        orbits: the cameras; None means those of `Orbits`.
        batch_size: views in a batch.
        clip: folder of a CLIP model, see `ClipScore`; None leaves its metrics out.

    Raises:
        ValueError: there are no prompts, or one is unknown.
    """

    domain = "text_to_3d"
    pictured = 16
    context, asks = ("camera",), ASKS

    def __init__(
        self,
        only: Sequence[str] | None = None,
        held_out: Sequence[str] = (),
        train: int = 192,
        val: int = 8,
        test: int = 16,
        side: int = 32,
        seed: int = 0,
        orbits: Orbits | None = None,
        batch_size: int = 16,
        clip: str | None = None,
    ):
        super().__init__(batch_size)
        checks.whole(1, train=train, val=val, test=test, side=side)
        checks.seed(seed=seed)
        asked = numbers_of(PROMPTS if only is None else only)
        self.asked = numbers_of(held_out) if held_out else asked
        if strange := [PROMPTS[i] for i in self.asked if i not in asked]:
            raise ValueError(f"data.held_out has {strange[0]!r}, which is not among data.only: add it there")
        self.trained = [i for i in asked if not held_out or i not in self.asked]
        if not self.trained:
            raise ValueError("data.held_out leaves no prompt to train on: hold out fewer")
        self.prompts, self.sizes, self.seed = list(PROMPTS), (train, val, test), seed
        self.orbits, self.clip = orbits or Orbits(), clip
        self.event_shape, self.classes = (3, side, side), {"prompt": len(PROMPTS)}
        self.names = {"prompt": self.prompts}

    def load(self) -> tuple[TensorData, TensorData, TensorData]:
        parts = zip((self.trained, self.asked, self.asked), self.sizes, strict=True)
        return tuple(self.part(prompts, num, 3 * self.seed + k) for k, (prompts, num) in enumerate(parts))

    def part(self, prompts: list[int], num: int, seed: int) -> TensorData:
        """`num` views of each of the prompts, in turn."""
        kinds = len(COLOURS)
        cameras = [self.orbits.draw(num, len(SHAPES) * seed + k) for k in range(len(SHAPES))]
        shapes = sorted({prompt // kinds for prompt in prompts})
        looks = {shape: seen(shape, cameras[shape], self.event_shape[-1]) for shape in shapes}
        data = [painted(looks[p // kinds], torch.full([num], p % kinds)) for p in prompts]
        rows = {
            "data": torch.stack(data, 1),
            "prompt": torch.tensor(prompts).expand(num, -1),
            "camera": torch.stack([cameras[p // kinds] for p in prompts], 1),
        }
        return TensorData({name: value.flatten(0, 1) for name, value in rows.items()})

    def left_out(self) -> dict[str, list[int]]:
        """Nothing: a run is about its own prompts, and the others are not missing."""
        return {}

    def build_evaluator(self, held_out: Sequence[Any]) -> Any:
        from domains.image.clip import ClipScore
        from domains.text_to_3d.evaluation import Evaluator

        return Evaluator(self.train, held_out, ClipScore(self.clip, self.prompts) if self.clip else None)

    @property
    def media(self) -> ModuleType:
        """`domains.text_to_3d.media`."""
        from domains.text_to_3d import media

        return media


def numbers_of(prompts: Sequence[str]) -> list[int]:
    """The numbers in `PROMPTS` of some of them, each once.

    Raises:
        ValueError: there are none, or one is unknown.
    """
    if isinstance(prompts, str) or not prompts:
        raise ValueError(
            f"there are no prompts: say data.only=null for all, or a list of them such as data.only=[{PROMPTS[0]}]"
        )
    if unknown := [prompt for prompt in prompts if prompt not in PROMPTS]:
        raise ValueError(
            f"there is no solid {unknown[0]!r} in these data: take a colour of {', '.join(COLOURS)} and a shape of "
            f"{', '.join(SHAPES)}, such as {PROMPTS[0]!r}"
        )
    return list(dict.fromkeys(PROMPTS.index(prompt) for prompt in prompts))
