"""Points and meshes to turn with the mouse, on a page that needs no network and no library."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np

from distillkit.report.card import template

PALETTE = (
    (matplotlib.colormaps["turbo"](np.linspace(0.08, 0.92, 256))[:, :3] * 255).round().astype(np.uint8)
)  # low to high
GREY = (178, 178, 178)  # of meshes without colours
ELEVATION = math.radians(30)  # of the first view
ASPECT = 4 / 3  # width of a picture over its height
MOST = 2**16  # vertices of a mesh


@dataclass
class Item:
    """A cloud of points, or a triangle mesh, which is shown with flat faces.

    Attributes:
        caption: its name.
        vertices: [n, 3], z up. The items of a page share unit and origin.
        colours: uint8 [n, 3]; None for points coloured by their height and a mesh in grey.
        faces: int [f, 3] of a mesh with at most 65,536 vertices; None for points.
        radius: of points, in the unit of the vertices; each is a pixel wide at least.
    """

    caption: str
    vertices: np.ndarray
    colours: np.ndarray | None = None
    faces: np.ndarray | None = None
    radius: float = 0.0


def page(items: Sequence[Item], title: str, note: str = "") -> str:
    """The page, on which all items turn together, slowly by themselves until they are touched.

    Coordinates are kept as 16 bits over the largest side of what is shown.

    Args:
        items: what is shown, side by side.
        title, note: of the page, as plain text.

    Raises:
        ValueError: nothing to show, coordinates that are not finite, too many vertices of a mesh,
            or faces of vertices that it does not have.
    """
    _check(items)
    everything = np.concatenate([item.vertices for item in items]).astype(np.float64)
    low, high = everything.min(0), everything.max(0)
    centre, thick = low / 2 + high / 2, max(item.radius for item in items)
    half = max(float((high / 2 - low / 2).max()), thick, 1e-9)
    scene = {
        "items": [_packed(item, centre, half) for item in items],
        "palette": _text(PALETTE),
        "heights": _heights(items, centre, half),
        "reach": _reach((everything - centre) / half) + thick / half,
        "elevation": ELEVATION,
        "aspect": ASPECT,
    }
    return template("viewer.html.j2").render(title=title, note=note, scene=scene)


def by_height(z: np.ndarray, low: float, high: float) -> np.ndarray:
    """Colours uint8 [n, 3] of heights [n] between two that have the first and the last colour."""
    share = (z - low) / max(high - low, 1e-9)
    return PALETTE[(share.clip(0, 1) * 255).round().astype(np.int64)]


def _check(items: Sequence[Item]) -> None:
    if not sum(len(item.vertices) for item in items):
        raise ValueError("there is nothing to show: give at least one item with vertices")
    for item in items:
        if not np.isfinite(item.vertices).all():
            raise ValueError(f"{item.caption}: NaN or infinity among the vertices, which have no place: leave them out")
        if item.faces is None:
            continue
        if len(item.vertices) > MOST:
            raise ValueError(f"{item.caption}: a mesh of {len(item.vertices):,} vertices, at most {MOST:,} are shown")
        if item.faces.size and not 0 <= item.faces.min() <= item.faces.max() < len(item.vertices):
            raise ValueError(f"{item.caption}: faces of vertices that are not among its {len(item.vertices):,}")


def _packed(item: Item, centre: np.ndarray, half: float) -> dict[str, object]:
    """An item for the page's script, with coordinates in [-1, 1] as 0 .. 65535."""
    places = ((item.vertices - centre) / half + 1) * 32767.5
    colours = item.colours
    if colours is None and item.faces is not None:
        colours = np.tile(np.array(GREY, np.uint8), (len(item.vertices), 1))
    return {
        "caption": item.caption,
        "places": _text(places.round().clip(0, 65535).astype("<u2")),
        "colours": None if colours is None else _text(colours.astype(np.uint8)),
        "faces": None if item.faces is None else _text(item.faces.astype("<u2")),
        "radius": item.radius / half,
    }


def _text(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _heights(items: Sequence[Item], centre: np.ndarray, half: float) -> list[float]:
    """Heights of the first and the last colour; nearly all points without colours lie between."""
    z = [item.vertices[:, 2] for item in items if item.colours is None and item.faces is None]
    z = np.concatenate([*z, np.zeros(0)])
    return ((np.quantile(z, [0.01, 0.99]) - centre[2]) / half).tolist() if len(z) else [-1.0, 1.0]


def _reach(x: np.ndarray) -> float:
    """Half of the width that shows all vertices [n, 3] while they turn about z."""
    around, above = np.hypot(x[:, 0], x[:, 1]), np.abs(x[:, 2])
    upright = around * math.sin(ELEVATION) + above * math.cos(ELEVATION)
    return max(1.05 * float(max(around.max(), ASPECT * upright.max())), 1e-9)
