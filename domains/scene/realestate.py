"""RealEstate10K and ACID in the chunks of pixelSplat and MVSplat, read without running pickles.

A chunk is a file `.torch`: a list of scenes, dicts of plain data with the keys

- `key`: the scene's name;
- `cameras` [N, 18]: focal lengths and centre in units of the picture's width and height (fx, fy,
  cx, cy), two zeros, then world to camera in OpenCV axes, 3 x 4 row by row;
- `images`: N tensors uint8, each the bytes of a JPEG.

N: frames of a scene; F: frames of a clip; H, W: height and width in pixels.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from distillkit import checks
from distillkit.data import Batch, split
from distillkit.feeding import in_parallel
from distillkit.files import read_checkpoint
from distillkit.rendering import cameras as viewing
from distillkit.sources import Source, drawn, first_whole, listed
from domains.image.reading import cropped, decoded, from_uint8, opened, why
from domains.scene.coarse import ends, reconstructed
from domains.scene.data import SceneData, batch_of
from domains.scene.renders import Renders, spread

ROW = 18  # numbers of a camera
OFF = 0.01  # by which a lens may be off the centre, and pixels off being square
OPEN = 32  # chunks that are kept open
NEAR = 1e-3  # least depth of the plane
TEST = "test"  # the folder of scenes that are not trained on


class Place(NamedTuple):
    """A scene: its chunk, its number there, its key and its number of frames."""

    chunk: Path
    number: int
    key: str
    frames: int


class RealEstate(SceneData):
    """Clips from the chunks in a folder and its sub-folders, [3, F, resolution, resolution].

    A scene gives one clip: `frames` frames at even distances, from its first one to the one `span`
    further on, or to its last. The centre of a frame is cut to a square and resized (antialiased
    bicubic); cameras follow.

    The coarse clip is your reconstruction's, if `renders` is given. Without, the two end frames are
    seen as if each were painted on a plane before its camera, which is a poor reconstruction.

    Scenes in a folder `test` are for validation and test; without one, a hash of a scene's key says
    what it is for. Scenes that cannot be used are named in a warning and left out. All chunks are
    looked at once, and what was found is kept in `.distillkit-chunks.json` in the folder, where it
    may be written; an `index.json` is not needed.

    Args:
        path: the folder.
        renders: the folder of coarse clips, see `domains.scene.renders.Renders`.
        frames: F, at least 2.
        span: frames of a scene from the first view to the last.
        resolution: height and width, in pixels.
        plane: without renders, the depth of the planes in distances of the two end cameras.
        val, test: shares of the scenes, in (0, 1); of a folder `test` both are taken in proportion.
        seed: of the split.
        workers: processes that decode training batches; 0 leaves it to threads, None chooses.
        batch_size, i3d: as in `SceneData`.
    """

    def __init__(
        self,
        path: str,
        renders: str | None = None,
        frames: int = 8,
        span: int = 48,
        resolution: int = 32,
        plane: float = 4.0,
        val: float = 0.1,
        test: float = 0.1,
        seed: int = 0,
        workers: int | None = 0,
        batch_size: int = 8,
        i3d: str | None = None,
    ):
        super().__init__(batch_size, i3d)
        checks.whole(2, 10_000, "a clip lies between two views", frames=frames)
        checks.whole(1, 10_000, resolution=resolution)
        checks.whole(frames - 1, 1_000_000, f"a clip has {frames} frames", span=span)
        checks.positive(plane=plane)
        checks.shares(val=val, test=test)
        checks.seed(seed=seed)
        self.path, self.frames, self.span, self.resolution, self.plane = path, frames, span, resolution, plane
        checks.workers(workers=workers)
        self.shares, self.seed, self.workers = (val, test), seed, workers
        self.renders = None if renders is None else Renders(renders, frames, resolution)
        self.event_shape = (3, frames, resolution, resolution)

    def load(self) -> tuple[Scenes, Scenes, Scenes]:
        source = Source(self.path, (".torch",), "chunk", beside=("index.json",))
        facts = source.facts(look)
        chunks = source.without({path: fact["fault"] for path, fact in facts.items() if fact["fault"]})
        places, faults = [], []
        for path in chunks:
            for number, (key, frames, fault) in enumerate(facts[path]["scenes"]):
                if fault := fault or self.fault(key, frames):
                    faults.append(f"{key} {fault}")
                else:
                    places.append(Place(path, number, key, frames))
        if faults:
            warnings.warn(f"{source.root}: scenes left out: {listed(faults)}", stacklevel=2)
        if self.renders is None:
            warnings.warn(
                "there are no data.renders, so coarse clips are the end frames on planes: say data.renders=FOLDER with a "
                "reconstruction's frames",
                stacklevel=2,
            )
        return tuple(Scenes([places[i] for i in part], self.settings()) for part in self.parts(places, source))

    def fault(self, key: str, frames: int) -> str | None:
        """Why a scene of so many frames cannot be used, or None."""
        if frames < self.frames:
            return f"has {frames} frame{'s' * (frames != 1)}, fewer than the {self.frames} of a clip"
        return self.renders.fault(key) if self.renders else None

    def parts(self, places: Sequence[Place], source: Source) -> list[Tensor]:
        """Which of the scenes are for training, validation and test."""
        apart = [TEST in place.chunk.relative_to(source.root).parts[:-1] for place in places]
        held = [i for i, there in enumerate(apart) if there] or list(range(len(places)))
        val, test = self.shares if not any(apart) else (share / sum(self.shares) for share in self.shares)
        num, test = max(1, round(val * len(held))), max(1, round(test * len(held)))
        num = min(num, len(held) - test) if any(apart) else num
        if num < 1 or len(places) - num - test < 1 or (any(apart) and len(held) == len(places)):
            raise ValueError(
                f"{source.root} holds {len(places)} scenes that can be used, too few to train, validate and test on: give "
                f"more chunks, or lower data.frames"
            )
        found = split([0] * len(held), num, test, order=drawn([places[i].key for i in held], self.seed))
        train, *others = (torch.tensor(held)[part] for part in found)
        train = torch.tensor([i for i, there in enumerate(apart) if not there]) if any(apart) else train
        return [train, *others]


class Scenes:
    """Scenes as a data set: `scenes[indices]` reads these.

    Args:
        places: of the scenes.
        data: what says how clips are made of them.
    """

    together = 2048  # scenes among which the order is random: they lie in a few chunks

    def __init__(self, places: Sequence[Place], data: RealEstate):
        self.places, self.data = list(places), data

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, indices: Tensor) -> Batch:
        read = in_parallel(
            lambda i: first_whole(i, len(self), lambda row: self.clip(self.places[row]))[1], indices.tolist()
        )
        return {name: torch.stack([one[name][0] for one in read]) for name in read[0]}

    def clip(self, place: Place) -> Batch:
        """A batch of one clip."""
        data, scene = self.data, chunk(place.chunk)[place.number]
        rows = spread(min(place.frames, data.span + 1), data.frames)
        try:
            frames = [decoded(io.BytesIO(bytes(scene["images"][i].numpy())), 3, place.key) for i in rows]
        except ValueError as error:
            raise ValueError(f"{place.chunk}: the scene {error}") from None
        cameras = cameras_of(scene["cameras"][rows], frames[0].size)[None]
        small = np.stack([np.asarray(cropped(frame, data.resolution)) for frame in frames])
        clip = from_uint8(small, place.key).movedim(1, 0)[None]
        found = data.renders(place.key)[None] if data.renders else on_planes(clip[:, :, [0, -1]], cameras, data.plane)
        return batch_of(clip, found, cameras)


def on_planes(first: Tensor, cameras: Tensor, plane: float) -> Tensor:
    """End frames [B, 3, 2, H, W], each on a plane before its camera, seen by `cameras` [B, F, 13].

    Args:
        plane: depth of the planes, in distances of the two end cameras.
    """
    first_place, last_place = viewing.pose(ends(cameras))[..., :3, 3].unbind(1)
    away = (plane * (first_place - last_place).norm(dim=-1)).clamp_min(NEAR)
    depth = away[:, None, None, None, None].expand(-1, 1, *first.shape[2:])
    return reconstructed(first, depth, cameras).clamp(-1, 1)


@lru_cache(OPEN)
def chunk(path: Path) -> list[dict[str, Any]]:
    """The scenes of a chunk; pictures stay on disk until they are asked for.

    Raises:
        ValueError: it is damaged, holds something else, or reading it might run code.
    """
    scenes = read_checkpoint(path, (), "chunks of RealEstate10K", "save a list of dicts of tensors and strings")
    if not isinstance(scenes, list) or not all(isinstance(scene, dict) for scene in scenes):
        raise ValueError(f"{path} holds no list of scenes: give chunks as pixelSplat writes them")
    return scenes


def look(path: Path) -> dict[str, Any]:
    """The scenes of a chunk: keys, numbers of frames and faults; and why it cannot be used."""
    try:
        return {"scenes": [seen(number, scene) for number, scene in enumerate(chunk(path))], "fault": None}
    except ValueError as error:
        return {"scenes": [], "fault": str(error).removeprefix(f"{path} ")}


def seen(number: int, scene: dict[str, Any]) -> tuple[str, int, str | None]:
    """A scene's key, its number of frames, and why it cannot be used."""
    key, cameras, images = (scene.get(name) for name in ("key", "cameras", "images"))
    if not isinstance(key, str) or not isinstance(cameras, Tensor) or not isinstance(images, list | tuple):
        return f"scene {number}", 0, "has no key, cameras and images"
    if cameras.shape != (len(images), ROW):
        return (
            key,
            0,
            f"has {len(images)} images and cameras {list(cameras.shape)}: they must be [{len(images)}, {ROW}]",
        )
    if not images:
        return key, 0, "has no frames"
    if not all(map(is_file, images)):
        return key, 0, "has images that are no bytes of a JPEG"
    try:
        with opened(io.BytesIO(bytes(images[0].numpy()))) as image:
            cameras_of(cameras, image.size)
    except Exception as error:  # decoders fail in many ways
        return key, 0, f"cannot be used: {why(error)}"
    return key, len(images), None


def is_file(image: Any) -> bool:
    """Whether an image is the bytes of a file, as many as the chunk holds."""
    kind = isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 1
    return kind and image.is_contiguous()  # strides of 0 would make any number of bytes of one


def cameras_of(rows: Tensor, size: tuple[int, int]) -> Tensor:
    """Cameras [N, 13] of rows [N, 18], for the square from the middle of a picture.

    Args:
        size: width and height of the picture in pixels.

    Raises:
        ValueError: a pose is no rotation, pixels are not square, or a lens is off the centre.
    """
    rows, (width, height) = rows.double(), size
    focal, centre = rows[:, :2] * rows.new_tensor([width, height]), rows[:, 2:4]
    w2c = torch.eye(4, dtype=rows.dtype).repeat(len(rows), 1, 1)
    w2c[:, :3] = rows[:, 6:].unflatten(1, (3, 4))
    turned = w2c[:, :3, :3].mT
    c2w = torch.cat([turned, -turned @ w2c[:, :3, 3:]], 2)
    c2w = viewing.from_opencv(torch.cat([c2w, w2c[:, 3:]], 1))
    cameras = viewing.camera_of(c2w, min(width, height) / 2 / focal[:, 1])
    viewing.check(cameras)
    if (stretched := ~((focal[:, 0] / focal[:, 1] - 1).abs() <= OFF)).any():
        i = int(stretched.nonzero()[0])
        fx, fy = focal[i].tolist()
        raise ValueError(
            f"camera {i} has pixels that are not square (fx {fx:.1f} and fy {fy:.1f} pixels): resize its frames"
        )
    if (shifted := ~((centre - 0.5).abs() <= OFF).all(1)).any():
        i = int(shifted.nonzero()[0])
        x, y = centre[i].tolist()
        raise ValueError(f"the lens of camera {i} is off the centre ({x:.3f}, {y:.3f}): crop its frames around it")
    return cameras.float()
