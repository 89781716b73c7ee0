"""Pictures of renders; and scenes as files: turning pictures, meshes, splats, and a page.

N: images; H, W: height, width.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distillkit.evaluation.pictures import save_gif
from distillkit.files import write_atomic, write_text
from distillkit.progress import counted
from distillkit.rendering.cameras import orbit
from distillkit.rendering.gaussians import Gaussians
from distillkit.rendering.splats import write_splats
from distillkit.report import viewer
from distillkit.students.base import Student
from domains.image.media import compare, picture
from domains.text_to_3d.shapes import Scene, mesh, scenes
from domains.threed.media import item_of, trimesh_of
from domains.video.media import save_mp4

__all__ = ["compare", "of_student", "picture", "turntable"]

MOST = 4  # scenes that get files
FRAMES, FPS = 60, 20  # of a turntable, for one turn; shown in a second
SIZE, ZOOM = 64, 2  # pixels along a side that are rendered, and how often each is shown
ELEVATION, DISTANCE, FOVY = math.radians(15), 2.2, math.radians(50)
CHUNK = 10  # views rendered at once
SEEN = 0.1  # opacity of a Gaussian that is worth a ball on the page
NOTE = {
    False: "Surfaces where the fog takes half of the light.",
    True: "Gaussians as balls: opacities and the differences of their axes are not shown.",
}


def of_student(student: Student, cond: dict[str, Tensor], folder: str | Path) -> list[Path]:
    """The scenes of the first prompts in `cond`, at most four; nothing of students without scenes.

    Each as a turning picture (`scene_0.gif`, and `scene_0.mp4` where PyAV is installed), as a mesh
    with colours (.glb, .ply; not where there is no surface) and, if it is made of Gaussians, as
    splats (`scene_0_splats.ply`). On the page scenes.html they can be turned.
    """
    paths, items, made = [], [], scenes(student, cond)[:MOST]
    for i, scene in enumerate(made):
        stem = Path(folder) / f"scene_{i}"
        paths += save_frames(turntable(scene), stem)
        surface = mesh(scene)
        if len(surface.faces):
            exported = trimesh_of(surface)
            paths += [write_atomic(stem.with_suffix(end), exported.export) for end in (".glb", ".ply")]
        if scene.gaussians:
            paths.append(write_splats(stem.with_name(f"{stem.name}_splats.ply"), scene.gaussians))
            items += [balls(scene.gaussians, scene.name)]
        elif len(surface.faces):
            items.append(item_of(surface, scene.name))
    if items := [item for item in items if len(item.vertices)]:
        page = viewer.page(items, "Scenes", NOTE[bool(made[0].gaussians)])
        paths.append(write_text(Path(folder) / "scenes.html", page))
    return paths


def turntable(scene: Scene) -> list[np.ndarray]:
    """One turn around a scene, from the front towards its left: uint8 [side, side, 3] each."""
    azimuth = torch.arange(FRAMES) * (2 * math.pi / FRAMES)
    parts = orbit(azimuth, ELEVATION, DISTANCE, FOVY).split(CHUNK)
    views = torch.cat([scene.render(parts[i], SIZE).cpu() for i in counted(f"turning {scene.name}", len(parts))])
    levels = (views.nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1).numpy()
    return list(levels.repeat(ZOOM, axis=1).repeat(ZOOM, axis=2))


def save_frames(frames: list[np.ndarray], stem: Path) -> list[Path]:
    """Frames as `stem`.gif, and as `stem`.mp4 where PyAV is installed."""
    paths = [write_atomic(stem.with_suffix(".gif"), lambda path: save_gif(frames, path, 1000 / FPS))]
    try:
        import av  # noqa: F401
    except ImportError:
        return paths
    return [*paths, write_atomic(stem.with_suffix(".mp4"), partial(save_mp4, frames, fps=FPS))]


def balls(gaussians: Gaussians, caption: str) -> viewer.Item:
    """The Gaussians that are seen, as balls of one size: the median of their mean scales."""
    seen = gaussians.opacities > SEEN
    radius = (gaussians.scales[seen].prod(-1) ** (1 / 3)).median() if seen.any() else 0.0
    colours = (gaussians.colours[seen] * 255).round().to(torch.uint8).numpy()
    return viewer.Item(caption, gaussians.means[seen].numpy(), colours, radius=float(radius))
