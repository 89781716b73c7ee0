"""Pictures of shapes, and files of them.

The renderer is our own; it needs neither a display nor a graphics card.

n: shapes; N: voxels of a padded set; R: voxels along a side; P: points of a mesh; S: pixels along a
side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from distillkit.evaluation.pictures import labelled, save_gif
from distillkit.files import write_atomic, write_text
from distillkit.report import viewer
from domains.threed.meshes import Mesh, feature_meshes, structure_meshes

CELL = 96  # pixels along each side of one shape
FRAMES = 18  # of a turntable, for one turn
BACKGROUND = 255
ELEVATION = math.radians(25)  # of the camera above the ground
AZIMUTH = math.radians(35)
LIGHT = np.array([0.29, -0.6, 0.745], np.float32)  # in the camera's frame: right, forward, up
REACH = 0.5  # half the width that the camera sees
SUPER = 2  # pixels drawn for each shown, along each side
GREY = 0.7  # of shapes without colours
SHOWN = 20_000  # vertices of a mesh on the page to turn it on, at most


def meshes(samples: Tensor, cond: dict[str, Tensor] | None = None) -> list[Mesh]:
    """Meshes of the samples of either stage.

    Structures are [n, 1, R, R, R], features [n, N, 11] with coords and mask.
    """
    samples = samples.detach().float().nan_to_num(0.0)  # a diverging model is shown, as nothing
    if samples.ndim == 5:
        return structure_meshes(samples)
    if not cond or not {"coords", "mask"} <= cond.keys():
        raise ValueError("features make a shape only with their voxels: give cond with coords and mask")
    return feature_meshes(samples, cond["coords"], cond["mask"], grid_side(cond["coords"]))


def grid_side(coords: Tensor) -> int:
    """The number of voxels along a side that holds all indices: 16, 32, 64 ..."""
    return max(16, 1 << int(coords.max() if coords.numel() else 0).bit_length())


def render(mesh: Mesh, azimuths: Sequence[float] = (AZIMUTH,), size: int = CELL) -> list[np.ndarray]:
    """A mesh in parallel projection, seen from each of the azimuths (radians): uint8 [S, S, 3].

    Every face is covered with points closer than a pixel, and of the points in one pixel the
    nearest is shown: a depth buffer without rasterisation, which suits meshes of many small faces.
    One lamp and the sky light the mesh.
    """
    pixels = size * SUPER
    points, normals, colours = _covered(mesh, pixels) if len(mesh.faces) else [np.zeros((0, 3), np.float32)] * 3
    images = []
    for azimuth in azimuths:
        camera = _camera(azimuth)
        facing = normals @ camera[1] < 0.2  # normals are blends, so what just turns away may still be seen
        right, forward, up = (points[facing] @ camera.T).T
        x, y = ((1 + right / REACH) / 2 * pixels).astype(np.int64), ((1 - up / REACH) / 2 * pixels).astype(np.int64)
        pixel = y.clip(0, pixels - 1) * pixels + x.clip(0, pixels - 1)
        order = np.argsort(-forward)  # the last one written to a pixel is the nearest
        shade = 0.45 + 0.15 * normals @ camera[2] + 0.45 * (normals @ (LIGHT @ camera)).clip(0)
        lit = ((colours * shade[:, None])[facing] * 255).clip(0, 255)
        image = np.full((pixels * pixels, 3), BACKGROUND, np.float32)
        image[pixel[order]] = lit[order]
        images.append(image.reshape(size, SUPER, size, SUPER, 3).mean((1, 3)).round().astype(np.uint8))
    return images


def picture(samples: Tensor, cond: dict[str, Tensor] | None = None, columns: int = 8) -> Image.Image:
    """The samples as shapes in a grid, row by row."""
    if len(samples) == 0:
        raise ValueError("a picture needs at least one sample")
    return _sheet([render(mesh)[0] for mesh in meshes(samples, cond)], columns)


def compare(rows: dict[str, Tensor], cond: dict[str, Tensor] | None = None, columns: int = 10) -> Image.Image:
    """One labelled row for each set of samples, such as teacher and student from the same noise.

    Shows the first `columns` samples of each.
    """
    first = {name: value[:columns] for name, value in (cond or {}).items()}
    return labelled({name: picture(samples[:columns], first, columns) for name, samples in rows.items()})


def save(samples: Tensor, cond: dict[str, Tensor] | None, folder: str | Path) -> list[Path]:
    """Three files for every sample, and the page shapes.html, on which all of them can be turned.

    A mesh (.glb), 4096 coloured points of its surface (.ply) and a turning picture (.gif).
    """
    paths, made = [], meshes(samples, cond)
    for i, mesh in enumerate(made):
        paths += save_mesh(mesh, Path(folder) / f"shape_{i}")
    if items := [item_of(mesh, f"shape {i}") for i, mesh in enumerate(made) if len(mesh.faces)]:
        paths.append(write_text(Path(folder) / "shapes.html", viewer.page(items, "Shapes")))
    return paths


def save_mesh(mesh: Mesh, stem: Path) -> list[Path]:
    """One mesh as `stem`.glb, .ply and .gif.

    A mesh without faces has no .glb, because the format knows no empty one.
    """
    frames = render(mesh, [AZIMUTH + 2 * math.pi * k / FRAMES for k in range(FRAMES)])
    paths = [write_atomic(stem.with_suffix(".gif"), lambda path: save_gif(frames, path, 80))]
    if len(mesh.faces):
        write = (lambda path: trimesh_of(mesh).export(path)), (lambda path: _points(mesh).export(path))
        paths += [write_atomic(stem.with_suffix(end), save) for end, save in zip((".glb", ".ply"), write, strict=True)]
    return paths


def _camera(azimuth: float) -> np.ndarray:
    """The camera's axes as rows: right, forward, up.

    It stands at `azimuth` about z, from the x axis, and looks down a little.
    """
    c, s, lift, drop = math.cos(azimuth), math.sin(azimuth), math.sin(ELEVATION), math.cos(ELEVATION)
    return np.array([[-s, c, 0], [-drop * c, -drop * s, -lift], [-lift * c, -lift * s, drop]], np.float32)


def _covered(mesh: Mesh, pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points [P, 3] that cover every face, unit normals [P, 3], colours [P, 3] in [0, 1]."""
    a, b, c = mesh.corners.swapaxes(0, 1)
    outward = np.cross(b - a, c - a)
    normals = np.zeros_like(mesh.vertices)
    np.add.at(normals, mesh.faces.reshape(-1), np.repeat(outward, 3, axis=0))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True).clip(1e-12)
    longest = max(np.linalg.norm(side, axis=-1).max() for side in (b - a, c - b, a - c))
    steps = min(64, math.ceil(longest / (2 * REACH / pixels)) + 1)
    u, v = np.meshgrid(np.arange(steps + 1), np.arange(steps + 1), indexing="ij")
    inside = u + v <= steps
    weights = (np.stack([steps - u - v, u, v], -1)[inside] / steps).astype(np.float32)  # [points of a face, 3]
    given = np.full_like(mesh.vertices, GREY) if mesh.colours is None else (mesh.colours + 1) / 2
    found = [(weights @ values[mesh.faces]).reshape(-1, 3) for values in (mesh.vertices, normals, given)]
    return found[0], found[1] / np.linalg.norm(found[1], axis=-1, keepdims=True).clip(1e-12), found[2]


def _sheet(cells: list[np.ndarray], columns: int) -> Image.Image:
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    size = cells[0].shape[0]
    sheet = Image.new("RGB", (columns * size, rows * size), (BACKGROUND,) * 3)
    for i, cell in enumerate(cells):
        sheet.paste(Image.fromarray(cell), (i % columns * size, i // columns * size))
    return sheet


def _bytes(colours: np.ndarray | None, num: int) -> np.ndarray:
    """Colours in [-1, 1] as uint8 [n, 3]."""
    given = np.full((num, 3), 2 * GREY - 1) if colours is None else colours
    return ((given.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)


def item_of(mesh: Mesh, caption: str) -> viewer.Item:
    """A mesh for the page; a large one as points of its surface."""
    if len(mesh.vertices) > SHOWN:
        points, colours = mesh.sample(SHOWN)
        return viewer.Item(caption, points, _bytes(None if mesh.colours is None else colours, SHOWN), radius=0.004)
    return viewer.Item(caption, mesh.vertices, _bytes(mesh.colours, len(mesh.vertices)), mesh.faces)


def trimesh_of(mesh: Mesh) -> Any:
    """A mesh with colours as a `trimesh.Trimesh`, which writes files."""
    from domains.threed.mesh_files import import_trimesh

    colours = _bytes(mesh.colours, len(mesh.vertices))
    return import_trimesh().Trimesh(mesh.vertices, mesh.faces, vertex_colors=colours, process=False)


def _points(mesh: Mesh):
    from domains.threed.mesh_files import import_trimesh

    points, colours = mesh.sample(4096)
    return import_trimesh().PointCloud(points, _bytes(None if mesh.colours is None else colours, len(points)))
