"""Folders of meshes as a source of shapes.

V, F: vertices and faces of a mesh; R: voxels along a side; P: points.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.spatial import cKDTree

from distillkit.data import split
from distillkit.errors import optional
from domains.threed.data import Shapes, Volumes, lattice_points
from domains.threed.meshes import Mesh

SUFFIXES = (".obj", ".ply", ".glb", ".stl")
EXTENT = 0.84  # of the longest side of a shape's bounding box: a voxel of sixteen is left around it
SAMPLES = 20_000  # points that stand for a surface until the nearest triangles are known
NEAREST = 8  # of these points, whose triangles the exact distance is taken to
CHUNK = 4096  # faces that all columns of the lattice are tested against at once


class MeshFolder(Shapes):
    """Watertight meshes in a folder: .obj, .ply, .glb, .stl.

    Sub-folders of the first level are the categories, in alphabetical order; meshes lying flat have none. Each mesh is
    moved and scaled so that its bounding box is centred and 0.84 long at its longest. Colours are those of vertices,
    faces or a texture (grey where there are none). What cannot be read or is not watertight is named in a warning
    and left out: it has no inside. Which part a file belongs to follows from a hash of its name.

    Args:
        path: the folder.
        up: the axis that points up in the files; glTF and most models for games say y, CAD and prints z.
        val, test: shares of the meshes, in (0, 1).
        seed: of the split.
    """

    def __init__(self, path: str, up: Literal["y", "z"] = "z", val: float = 0.1, test: float = 0.1, seed: int = 0):
        for name, share in (("val", val), ("test", test)):
            if not 0 < share < 1:
                raise ValueError(f"{name} is a share of the meshes and must lie in (0, 1), got {share}")
        self.path, self.up, self.shares, self.seed = path, up, (val, test), seed

    names: list[str] = []

    def load(self, side: int) -> tuple[Volumes, Volumes, Volumes]:
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise ValueError(f"{self.path} is not a folder of meshes; give the path of one that exists")
        import_trimesh()
        paths, meshes = self._read(root)
        val, test = (max(1, round(share * len(paths))) for share in self.shares)
        if len(paths) - val - test < 1:
            raise ValueError(
                f"{root} holds {len(paths)} watertight meshes, too few to train, validate and test on; "
                f"give a folder with at least 3 {', '.join(SUFFIXES)} files"
            )
        homes = [path.relative_to(root).parts[0] if path.parent != root else None for path in paths]
        if None in homes and any(homes):
            raise ValueError(f"{root} holds meshes both flat and in class folders; move the flat ones into a folder")
        self.names = sorted(set(homes) - {None})
        label = torch.tensor([self.names.index(home) for home in homes]) if self.names else None
        shapes = [on_lattice(mesh, side) for mesh in meshes]
        distance, colour = (torch.from_numpy(np.stack(values)) for values in zip(*shapes, strict=True))
        keys = [hashlib.blake2b(f"{self.seed}/{p.relative_to(root).as_posix()}".encode()).hexdigest() for p in paths]
        order = sorted(range(len(paths)), key=keys.__getitem__)
        parts = split(label.tolist() if self.names else [0] * len(paths), val, test, order=order)
        return tuple(Volumes(distance[i], colour[i], label[i] if self.names else None) for i in parts)

    def _read(self, root: Path) -> tuple[list[Path], list[Mesh]]:
        """What can be used, in the order of its names."""
        found, meshes, left_out = [], [], []
        for path in sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()):
            try:
                meshes.append(read_mesh(path, self.up))
                found.append(path)
            except ValueError as error:
                left_out.append(f"{path.relative_to(root).as_posix()} ({error})")
        if left_out:
            names = ", ".join(left_out[:10]) + (f" and {len(left_out) - 10} more" if len(left_out) > 10 else "")
            warnings.warn(f"{len(left_out)} files are left out: {names}", stacklevel=3)
        if not found:
            raise ValueError(f"{root} holds no watertight mesh; give a folder with {', '.join(SUFFIXES)} files")
        return found, meshes


def read_mesh(path: Path, up: str = "z") -> Mesh:
    """A watertight mesh from a file, standing upright, centred, 0.84 long at its longest.

    Raises:
        ValueError: the file cannot be read, or what it holds has no inside.
    """
    trimesh = import_trimesh()
    try:
        loaded = trimesh.load_scene(path).to_mesh()
        colours = _colours(loaded)
        loaded.merge_vertices(merge_tex=True, merge_norm=True)  # a seam of the texture is none of the surface
    except Exception as error:  # readers of many formats fail in many ways
        raise ValueError(f"cannot be read: {type(error).__name__}") from None
    if len(loaded.faces) == 0:
        raise ValueError("has no faces")
    mesh = Mesh(np.asarray(loaded.vertices, np.float32), np.asarray(loaded.faces, np.int64))
    if not np.isfinite(mesh.vertices).all():
        raise ValueError("has vertices that are no numbers")
    if not mesh.watertight:
        raise ValueError("is not watertight")
    if mesh.volume < 0:
        mesh.faces = mesh.faces[:, ::-1].copy()
    if colours is not None:  # of the vertices as they were before some were merged
        mesh.colours = colours[1][cKDTree(colours[0]).query(mesh.vertices)[1]]
    if up == "y":
        mesh.vertices = mesh.vertices[:, [0, 2, 1]] * np.array([1, -1, 1], np.float32)
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    mesh.vertices = (mesh.vertices - (low + high) / 2) * (EXTENT / (high - low).max())
    return mesh


def on_lattice(mesh: Mesh, side: int) -> tuple[np.ndarray, np.ndarray]:
    """`Volumes.distance` and `Volumes.colour` of one closed mesh, [R+1, R+1, R+1] and [3, R, R, R].

    The distance is exact within three voxels of the surface (to the triangles of the nearest points on it) and that to
    the nearest point farther away; the sign is that of the winding number.
    """
    faces, weights = mesh.places(SAMPLES)
    faces = np.concatenate([faces, np.arange(len(mesh.faces))])  # and the middle of every face
    weights = np.concatenate([weights, np.full((len(mesh.faces), 3), 1 / 3, np.float32)])
    tree = cKDTree((weights[..., None] * mesh.vertices[mesh.faces[faces]]).sum(1))
    points = lattice_points(side).numpy().reshape(-1, 3)
    away, nearest = tree.query(points, NEAREST)
    distance, close = away[:, 0], away[:, 0] < 3 / side
    triangles = mesh.corners[faces[nearest[close]]].reshape(-1, 3, 3)
    repeated = points[close].repeat(NEAREST, axis=0)
    on_them = import_trimesh().triangles.closest_point(triangles, repeated)
    distance[close] = np.linalg.norm(on_them - repeated, axis=-1).reshape(-1, NEAREST).min(1)
    distance = distance.reshape([side + 1] * 3) * np.where(winding(mesh, side) > 0, -1, 1)

    centres = lattice_points(side, centres=True).numpy().reshape(-1, 3)
    colours = np.zeros_like(mesh.vertices) if mesh.colours is None else mesh.colours
    row = tree.query(centres)[1]
    colour = (weights[row][..., None] * colours[mesh.faces[faces[row]]]).sum(1)
    return distance.astype(np.float32), colour.T.reshape(3, side, side, side).astype(np.float32)


def winding(mesh: Mesh, side: int) -> np.ndarray:
    """How often a closed mesh winds around each lattice point, int64 [R+1, R+1, R+1]: positive inside, 0 outside.

    Counted along vertical lines: faces above a point that look up, less those that look down. The lines stand a hair
    beside the lattice, so that they miss edges and corners of shapes that are aligned with it.
    """
    axis = np.arange(side + 1) / side - 0.5
    x, y = (grid.reshape(-1) for grid in np.meshgrid(axis + 1.37e-5, axis + 2.11e-5, indexing="ij"))
    turns = np.zeros((len(x), side + 2), np.int64)
    for start in range(0, len(mesh.faces), CHUNK):
        a, b, c = mesh.corners[start : start + CHUNK].astype(np.float64).swapaxes(0, 1)[..., None]  # each [faces, 3, 1]

        def edge(p: np.ndarray, q: np.ndarray) -> np.ndarray:
            return (q[:, 0] - p[:, 0]) * (y - p[:, 1]) - (q[:, 1] - p[:, 1]) * (x - p[:, 0])

        parts = np.stack(
            [edge(b, c), edge(c, a), edge(a, b)]
        )  # twice the areas opposite each corner, [3, faces, lines]
        up, down = (parts > 0).all(0), (parts < 0).all(0)
        face, line = np.nonzero(up | down)
        hit = parts[:, face, line]
        z = (hit * np.stack([a[face, 2, 0], b[face, 2, 0], c[face, 2, 0]])).sum(0) / hit.sum(0)
        below = (
            np.ceil((z + 0.5) * side).clip(0, side + 1).astype(np.int64)
        )  # lattice points of the line under the face
        np.add.at(turns, (line, below), np.where(up[face, line], 1, -1))
    return turns[:, ::-1].cumsum(1)[:, ::-1][:, 1:].reshape([side + 1] * 3)


def import_trimesh() -> Any:
    """`trimesh`, or how to get it."""
    return optional("trimesh", "threed", "meshes are read and written with")


def _colours(loaded: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Vertices and their colours in [-1, 1], or None where the file gives none."""
    if loaded.visual.kind is None:
        return None
    visual = loaded.visual.to_color() if loaded.visual.kind == "texture" else loaded.visual
    colours = np.asarray(visual.vertex_colors, np.float32)[:, :3] / 127.5 - 1
    return np.asarray(loaded.vertices, np.float32), colours
