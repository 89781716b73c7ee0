"""Meshes from files: .obj, .ply, .glb and .stl, by trimesh.

V, F: vertices and faces of a mesh; n: corners of a polygon.
"""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distillkit.errors import one_line, optional
from domains.threed.meshes import Mesh
from domains.threed.polygons import cut_obj, cut_ply
from domains.threed.surfaces import closed

SUFFIXES = (".obj", ".ply", ".glb", ".stl")
BESIDE = (".mtl", ".bin", ".png", ".jpg", ".jpeg", ".bmp", ".tga", ".webp")  # materials and pictures that they name
EXTENT = 0.84  # of the longest side of a shape's bounding box: a voxel of sixteen is left around it
MERGED = 6  # digits in which vertices that are the same may differ: seams of textures, triangles of an .stl
GRAINS = 256  # steps along a shape, at least, for it not to be bent
CUT = {"obj": cut_obj, "ply": cut_ply}  # the kinds of files that may hold faces of more than three corners
logging.getLogger("trimesh").addHandler(logging.NullHandler())  # else it prints tracebacks of what it goes on without


def read_mesh(path: Path, up: str = "z", root: Path | None = None, said: list[str] | None = None) -> Mesh:
    """A watertight mesh from a file, standing upright, centred, 0.84 long at its longest.

    Args:
        path: the file.
        up: its axis that points up, y or z.
        root: the folder that materials and pictures may come from; that of the file where it is
            None.
        said: what the mesh lacks although it can be used, which is added to: materials and pictures
            (it has the material's own colour then, or none), and digits.

    Raises:
        ValueError: the file cannot be read, or what it holds has no inside.
    """
    beside = Beside(path, path.parent if root is None else root)
    vertices, faces, colours = _used(path, beside)
    low, high = vertices.min(0), vertices.max(0)
    extent = (high / 2 - low / 2).max() * 2
    if not 0 < extent < np.inf:
        raise ValueError(f"is {extent:g} long at its longest")
    grain = 0 if path.suffix.lower() == ".obj" else _grain(vertices)
    # in float64: far from the origin float32 has no digits left
    vertices = (vertices - (low / 2 + high / 2)) * (EXTENT / extent)
    kept, faces = _closed(vertices, faces)
    vertices, colours = vertices[kept], None if colours is None else colours[kept]
    if up == "y":
        vertices = vertices[:, [0, 2, 1]] * [1, -1, 1]
    if said is not None:
        said += [f"{name} is not there or cannot be used" for name in dict.fromkeys(beside.lost)]
        said += [f"where it lies its 32-bit numbers are {grain:g} apart"] if grain > extent / GRAINS else []
    return Mesh(vertices.astype(np.float32), faces.astype(np.int64), colours)


def _used(path: Path, beside: Beside) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """As `_surface`, with only the vertices that faces have, all of them numbers."""
    try:
        vertices, faces, colours = _surface(path, beside)
    except Exception as error:  # readers of many formats fail in many ways
        reason = one_line(str(error) or type(error).__name__, 100)
        raise ValueError(f"cannot be read: {reason}") from None
    if len(faces) == 0:
        raise ValueError("cannot be read: it holds no faces")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError("cannot be read: a face has vertices that are not there")
    used, faces = np.unique(faces, return_inverse=True)
    vertices, colours = vertices[used], None if colours is None else colours[used]
    if not np.isfinite(vertices).all():
        raise ValueError("cannot be read: a vertex is no number")
    return vertices, faces.reshape(-1, 3), colours


def _closed(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Closed surfaces of the faces [F, 3], and which vertices they have.

    Where needed, vertices at one place become one.
    """
    try:
        return np.arange(len(vertices)), closed(vertices, faces)
    except ValueError:
        kept, merged = import_trimesh().grouping.unique_rows(vertices, digits=MERGED)
        return kept, closed(vertices[kept], merged.reshape(-1)[faces])


def _grain(vertices: np.ndarray) -> float:
    """The spacing of the 32-bit numbers that a file has for its vertices.

    0 where they have more digits.
    """
    with np.errstate(over="ignore"):
        short = vertices.astype(np.float32)
    return float(np.spacing(np.abs(short).max())) if np.array_equal(short, vertices) else 0


class Beside:
    """The files that a mesh's file names, as trimesh asks for them; none from outside the folder.

    Attributes:
        lost: names of files that are missing or cannot be used.
    """

    def __init__(self, path: Path, root: Path):
        self.folder, self.root, self.file_name = path.parent, root.resolve(), path.name
        self.lost: list[str] = []

    def get(self, name: str) -> bytes:
        """The bytes of a file: where the name says, or beside the mesh.

        Pictures are decoded to see whether they are whole.
        """
        plain = str(name).strip().replace("\\", "/")
        if plain.startswith("-"):  # behind options, as in `map_Kd -s 1 1 1 wood.png`
            plain = plain.split()[-1]
        for place in (self.folder / plain, self.folder / plain.rpartition("/")[2]):
            try:
                place = place.resolve()
                if not place.is_relative_to(self.root) or not place.is_file():
                    continue
                data = place.read_bytes()
                if place.suffix.lower() not in (".mtl", ".bin"):
                    with warnings.catch_warnings():
                        warnings.simplefilter("error", Image.DecompressionBombWarning)
                        Image.open(io.BytesIO(data)).load()
                return data
            except Exception:  # names and pictures can be wrong in many ways
                continue
        self.lost.append(plain)
        raise FileNotFoundError(f"it names {plain}, which is not there")

    __getitem__ = get


def import_trimesh() -> Any:
    """The package `trimesh`, or an error that says how to get it."""
    return optional("trimesh", "threed", "meshes are read and written with")


def _surface(path: Path, beside: Beside) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """All surfaces in a file: vertices float64 [V, 3], faces [F, 3], the vertices' colours [V, 3].

    The colours are None where there are none.
    """
    kind, data = path.suffix.lower().removeprefix("."), path.read_bytes()
    if not data.strip():
        raise ValueError("it is empty")
    data = CUT.get(kind, bytes)(data)
    trimesh = import_trimesh()
    scene = trimesh.load_scene(io.BytesIO(data), file_type=kind, resolver=beside, process=False)
    found = []
    for mesh in scene.dump():
        if not isinstance(mesh, trimesh.Trimesh):
            continue
        found.append((np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces), _colours(mesh, beside.lost)))
    if not found:
        raise ValueError("it holds no faces")
    starts = np.cumsum([0, *(len(vertices) for vertices, _, _ in found)])
    coloured = any(colours is not None for _, _, colours in found)
    grey = [np.zeros((len(vertices), 3), np.float32) if colours is None else colours for vertices, _, colours in found]
    return (
        np.concatenate([vertices for vertices, _, _ in found]),
        np.concatenate([faces + start for (_, faces, _), start in zip(found, starts[:-1], strict=True)]),
        np.concatenate(grey) if coloured else None,
    )


def _colours(mesh: Any, lost: list[str]) -> np.ndarray | None:
    """The vertices' colours [V, 3] in [-1, 1], or None.

    They come from a picture, the material, the vertices or the faces.
    """
    visual = mesh.visual
    if visual.kind is None:
        return None
    if visual.kind != "texture":
        colours = np.asarray(visual.vertex_colors)
    else:
        colours, material = None, visual.material
        try:
            colours = (
                visual.to_color().vertex_colors if _picture(material) is not None and visual.uv is not None else None
            )
        except Exception:  # a picture inside the file that is damaged
            lost.append("a picture inside it")
        if colours is None:
            own = getattr(material, "kwargs", {}).get("kd", getattr(material, "baseColorFactor", None))
            if own is None:
                return None
            colours = np.tile(material.main_color, (len(mesh.vertices), 1))
    colours = np.asarray(colours, np.float32)
    return colours[:, :3] / 127.5 - 1 if len(colours) == len(mesh.vertices) else None


def _picture(material: Any) -> Any:
    """The picture of a material, unless it is one that trimesh made up."""
    found = getattr(material, "image", None) or getattr(material, "baseColorTexture", None)
    return found if getattr(found, "format", None) else None
