"""What a reconstruction of your own (MVSplat's, say) shows of each scene, read from a folder.

F: frames; H, W: height and width in pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from domains.image.reading import SUFFIXES as PICTURES
from domains.image.reading import cropped, decoded, from_uint8
from domains.video.folder import SUFFIXES as VIDEOS
from domains.video.folder import probe, read, square


class Renders:
    """Coarse clips by the key of their scene.

    A scene's render is a folder `KEY` of pictures in the order of their names, which may lie in
    `KEY/color` as MVSplat writes them, or a video `KEY.mp4` (webm, mkv, mov, avi, gif). It goes
    from the first view to the last; of one with more frames than a clip, some are taken at even
    distances.

    Args:
        path: the folder.
        frames: F.
        resolution: H and W, of a square from the middle.

    Raises:
        ValueError: there is no such folder.
    """

    def __init__(self, path: str | Path, frames: int, resolution: int):
        self.root, self.frames, self.resolution = Path(path).expanduser(), frames, resolution
        if not self.root.is_dir():
            raise ValueError(
                f"{path} is not a folder: give data.renders=FOLDER with a folder or a video for each scene"
            )

    def fault(self, key: str) -> str | None:
        """Why there is no coarse clip of a scene, or None."""
        if key in ("", "..") or key != Path(key).name:
            return "has a key that is no name of a folder, so that its render could lie anywhere"
        if (place := self.place(key)) is None:
            return f"has no render in {self.root}"
        if place.is_dir():
            num = len(pictures(place))
            return f"has a render of {num} pictures, fewer than {self.frames}" if num < self.frames else None
        why = probe(place)["fault"]
        return f"has a render that {why}" if why else None

    def place(self, key: str) -> Path | None:
        """The folder or the video of a scene."""
        folders = self.root / key / "color", self.root / key
        videos = (self.root / f"{key}{suffix}" for suffix in VIDEOS)
        found = (*(place for place in folders if place.is_dir()), *(place for place in videos if place.is_file()))
        return next(iter(found), None)

    def __call__(self, key: str) -> Tensor:
        """The coarse clip of a scene, [3, F, H, W] in [-1, 1].

        Raises:
            ValueError: it cannot be read.
        """
        place = self.place(key)
        if place is None:
            raise ValueError(f"the scene {key} {self.fault(key)}")
        if place.is_dir():
            files = pictures(place)
            shown = [decoded(files[i], 3) for i in spread(len(files), self.frames)]
            frames = [np.asarray(cropped(image, self.resolution)) for image in shown]
        else:
            facts = probe(place)
            times = torch.linspace(facts["start"], facts["end"], self.frames, dtype=torch.float64).tolist()
            frames = read(place, times, lambda frame: square(frame, 3, self.resolution))
        return from_uint8(np.stack(frames), str(place)).movedim(1, 0)


def pictures(folder: Path) -> list[Path]:
    """The picture files of a folder in the order of their names."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURES)


def spread(total: int, num: int) -> list[int]:
    """`num` indices at even distances, from the first of `total` to the last."""
    return torch.linspace(0, total - 1, num, dtype=torch.float64).round().long().tolist()
