"""Folders of meshes as a source of shapes.

V, F: vertices and faces of a mesh; R: voxels along a side; P: points.
"""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import torch
from scipy.spatial import cKDTree

from distillkit import checks
from distillkit.data import split
from distillkit.sources import Source, drawn, listed
from domains.threed.data import Shapes
from domains.threed.lattice import Volumes, lattice_points
from domains.threed.mesh_files import BESIDE, SUFFIXES, import_trimesh, read_mesh
from domains.threed.meshes import Mesh

SAMPLES = 20_000  # points that stand for a surface until the nearest triangles are known
NEAREST = 8  # of these points, whose triangles the exact distance is taken to
CHUNK = 4096  # faces that all columns of the lattice are tested against at once


class MeshFolder(Shapes):
    """Watertight meshes in a folder: .obj, .ply, .glb, .stl.

    Sub-folders of the first level are the categories, in alphabetical order; meshes lying flat have
    none. Each mesh is moved and scaled so that its bounding box is centred and 0.84 long at its
    longest; each closed part of it has its inside where it is meant to be (see `surfaces.closed`).
    Colours are those of vertices, faces, a texture or the material (grey where there are none);
    textures lie in the folder, and those that are missing are named. What cannot be read or is not
    watertight is named in a warning and left out: it has no inside. Which part of the data a file
    belongs to follows from a hash of its name.

    Args:
        path: the folder.
        up: the axis that points up in the files; glTF and most models for games say y, CAD and
            prints z.
        val, test: shares of the meshes, in (0, 1).
        seed: of the split.
    """

    def __init__(self, path: str, up: Literal["y", "z"] = "z", val: float = 0.1, test: float = 0.1, seed: int = 0):
        checks.shares(val=val, test=test)
        checks.seed(seed=seed)
        self.path, self.up, self.shares, self.seed = path, up, (val, test), seed

    names: list[str] = []

    def load(self, side: int) -> tuple[Volumes, Volumes, Volumes]:
        source = Source(self.path, SUFFIXES, "watertight mesh", beside=BESIDE)
        import_trimesh()
        shapes, faults, facts = {}, {}, []
        for path in source.files:
            said: list[str] = []
            try:
                shapes[path] = on_lattice(read_mesh(path, self.up, source.root, said), side)
            except ValueError as error:
                faults[path] = str(error)
            else:
                facts += [f"{source.name(path)} ({', '.join(said)})"] if said else []
        paths = source.without(faults)
        if facts:
            warnings.warn(
                f"{source.root}: used without what they lack, in their materials' own colour or grey if it is a picture: "
                f"{listed(facts)}",
                stacklevel=2,
            )
        val, test = (max(1, round(share * len(paths))) for share in self.shares)
        if len(paths) - val - test < 1:
            raise ValueError(
                f"{source.root} holds {len(paths)} watertight meshes, too few to train, validate and test on; "
                f"give a folder with at least 3 {', '.join(SUFFIXES)} files"
            )
        self.names, homes = source.classes(paths)
        label = None if homes is None else torch.tensor(homes)
        distance, colour = (torch.from_numpy(np.stack(each)) for each in zip(*map(shapes.get, paths), strict=True))
        order = drawn([source.name(path) for path in paths], self.seed)
        parts = split([0] * len(paths) if homes is None else homes, val, test, order=order)
        return tuple(Volumes(distance[i], colour[i], None if label is None else label[i]) for i in parts)


def on_lattice(mesh: Mesh, side: int) -> tuple[np.ndarray, np.ndarray]:
    """`Volumes.distance` and `Volumes.colour` of one closed mesh, [R+1, R+1, R+1] and [3, R, R, R].

    The distance is exact within three voxels of the surface (to the triangles of the nearest points
    on it) and that to the nearest point farther away; the sign is that of the winding number.
    """
    faces, weights = mesh.places(SAMPLES)
    wide = np.flatnonzero(mesh.areas > 0)  # a triangle without area has no nearest point, and its neighbours cover it
    faces = np.concatenate([faces, wide])  # and the middle of every face
    weights = np.concatenate([weights, np.full((len(wide), 3), 1 / 3, np.float32)])
    tree = cKDTree((weights[..., None] * mesh.vertices[mesh.faces[faces]]).sum(1))
    points = lattice_points(side).numpy().reshape(-1, 3)
    away, nearest = tree.query(points, NEAREST)
    distance, close = away[:, 0], away[:, 0] < 3 / side
    triangles = mesh.corners[faces[nearest[close]]].reshape(-1, 3, 3)
    repeated = points[close].repeat(NEAREST, axis=0)
    on_them = import_trimesh().triangles.closest_point(triangles, repeated)
    exact = np.linalg.norm(on_them - repeated, axis=-1).reshape(-1, NEAREST)
    # of a triangle that is next to a line the nearest point may be NaN
    distance[close] = np.fmin(exact, away[close]).min(1)
    distance = distance.reshape([side + 1] * 3) * np.where(winding(mesh, side) > 0, -1, 1)

    centres = lattice_points(side, centres=True).numpy().reshape(-1, 3)
    colours = np.zeros_like(mesh.vertices) if mesh.colours is None else mesh.colours
    row = tree.query(centres)[1]
    colour = (weights[row][..., None] * colours[mesh.faces[faces[row]]]).sum(1)
    return distance.astype(np.float32), colour.T.reshape(3, side, side, side).astype(np.float32)


def winding(mesh: Mesh, side: int) -> np.ndarray:
    """How often a closed mesh winds around each lattice point, int64 [R+1, R+1, R+1]: positive inside, 0 outside.

    Counted along vertical lines: faces above a point that look up, less those that look down. The
    lines stand a hair beside the lattice, so that they miss edges and corners of shapes that are
    aligned with it.
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
