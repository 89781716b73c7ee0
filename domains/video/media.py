"""Pictures of videos: strips of frames, and moving grids as .gif (Pillow) and .mp4 (PyAV).

N: clips; C: channels; T: frames; H, W: height, width.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from distillkit.evaluation.pictures import labelled, save_gif
from distillkit.files import write_atomic

STILL, MOVING = 36, 96  # pixels that a small frame is about enlarged to, in a strip and in a moving grid
LARGE, LARGE_GIF = 128, 256  # pixels that a large frame is shrunk to, in a strip and in a .gif
WIDEST = 16  # frames in a strip, evenly spread over the clip
GAP = 2
GREY = 96
FPS = 8  # at which clips are shown


def picture(samples: Tensor, cond: dict[str, Tensor] | None = None) -> Image.Image:
    """Samples [N, C, T, H, W] in [-1, 1], one below the other, each a strip of its frames."""
    frames = _levels(samples, STILL, LARGE)
    frames = frames[:, np.linspace(0, frames.shape[1] - 1, min(WIDEST, frames.shape[1])).round().astype(int)]
    return Image.fromarray(np.concatenate([_row(list(clip)) for clip in frames]))


def compare(rows: dict[str, Tensor], cond: dict[str, Tensor] | None = None, clips: int = 3) -> Image.Image:
    """The first `clips` samples of each set, labelled.

    Sets are such as a teacher's and a student's from the same noise.
    """
    return labelled({name: picture(samples[:clips]) for name, samples in rows.items()})


def film(samples: Tensor, cond: dict[str, Tensor] | None, path: Path, fps: float = FPS, columns: int = 4) -> Path:
    """All samples side by side, moving, as a .gif; large clips are shrunk."""
    frames = grid(samples, columns, LARGE_GIF)
    return write_atomic(path, lambda path: save_gif(frames, path, 1000 / fps))


def save(
    samples: Tensor, cond: dict[str, Tensor] | None, folder: str | Path, fps: float = FPS, columns: int = 4
) -> list[Path]:
    """All samples side by side, moving: `clips.gif`, and `clips.mp4` where PyAV is installed.

    The .gif of large clips is a small one.
    """
    folder = Path(folder)
    paths = [film(samples, cond, folder / "clips.gif", fps, columns)]
    try:
        import av  # noqa: F401
    except ImportError:
        return paths
    frames = grid(samples, columns)
    return [*paths, write_atomic(folder / "clips.mp4", lambda path: save_mp4(frames, path, fps))]


def grid(samples: Tensor, columns: int = 4, most: int | None = None) -> list[np.ndarray]:
    """Clips as the frames of one moving picture, each uint8 [height, width, 3], both even."""
    levels = _levels(samples, MOVING, most)
    rows = [levels[i : i + columns] for i in range(0, len(levels), columns)]
    empty = np.full_like(levels[0], GREY)
    rows[-1] = np.stack([*rows[-1], *[empty] * (min(columns, len(levels)) - len(rows[-1]))])
    sheets = [np.concatenate([_row([clip[t] for clip in row]) for row in rows]) for t in range(levels.shape[1])]
    return [np.pad(s, ((0, s.shape[0] % 2), (0, s.shape[1] % 2), (0, 0)), constant_values=GREY) for s in sheets]


def save_mp4(frames: Sequence[np.ndarray], path: Path, fps: float) -> None:
    """Frames uint8 [height, width, 3], height and width even, as H.264 of high quality."""
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "18"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())  # what the encoder still holds


def _levels(samples: Tensor, side: int, most: int | None = None) -> np.ndarray:
    """uint8 [N, T, height, width, 3], resized.

    Small frames are enlarged by whole pixels to about `side`, large ones shrunk to `most`.
    """
    if samples.ndim != 5 or samples.shape[1] not in (1, 3) or len(samples) == 0:
        got = list(samples.shape)
        raise ValueError(f"a picture needs samples [N, C, T, H, W] with N >= 1 and C = 1 or 3, got {got}")
    x = samples.detach().float().cpu().nan_to_num(0.0)  # a diverging model is shown, in grey
    if most and (largest := max(x.shape[-2:])) > most:
        size = [max(1, round(length * most / largest)) for length in x.shape[-2:]]
        x = F.adaptive_avg_pool3d(x, (x.shape[2], *size))
    levels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).expand(-1, -1, -1, -1, 3).numpy()
    zoom = max(1, round(side / max(samples.shape[-2:])))
    return levels.repeat(zoom, axis=2).repeat(zoom, axis=3)


def _row(cells: list[np.ndarray]) -> np.ndarray:
    """Frames from left to right with a gap after and below each."""
    around = ((0, GAP), (0, GAP), (0, 0))
    return np.concatenate([np.pad(cell, around, constant_values=GREY) for cell in cells], axis=1)
