"""Cuts faces of more than three corners into triangles inside their outlines.

trimesh, which reads the files afterwards, would cut them into fans. The rest of a file stays as it
is.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from domains.threed.surfaces import triangulated

OBJ_POLYGON = re.compile(r"^f(?:(?:[ \t]+\S+){4}|[ \t]+-)", re.MULTILINE)  # or corners that are counted from the end
PLY_TYPES = {  # struct's letters
    **dict.fromkeys(("char", "int8"), "b"),
    **dict.fromkeys(("uchar", "uint8"), "B"),
    **dict.fromkeys(("short", "int16"), "h"),
    **dict.fromkeys(("ushort", "uint16"), "H"),
    **dict.fromkeys(("int", "int32"), "i"),
    **dict.fromkeys(("uint", "uint32"), "I"),
    **dict.fromkeys(("float", "float32"), "f"),
    **dict.fromkeys(("double", "float64"), "d"),
}
Elements = dict[str, tuple[int, list[list[str]]]]  # of a .ply file: how many, and the words of each property
Row = list[list]  # of an element in a .ply file, for each of its properties the values: one, or those of a list


def cut_obj(data: bytes) -> bytes:
    """An .obj file whose faces are triangles.

    Corners counted from the end become those counted from the start.
    """
    text = data.decode("utf-8", errors="replace").replace("\r\n", "\n").replace("\\\n", " ")
    if not OBJ_POLYGON.search(text):
        return text.encode()
    lines = text.split("\n")
    counts, places = {"v": 0, "vt": 0, "vn": 0}, []
    rows, faces = [], []
    for row, line in enumerate(lines):
        words = line.split()
        if not words:
            continue
        if words[0] in counts:
            counts[words[0]] += 1
            places += [[float(word) for word in words[1:4]]] if words[0] == "v" else []
        elif words[0] == "f" and (len(words) > 4 or "-" in line):
            rows.append(row)
            faces.append([_from_start(word, list(counts.values())) for word in words[1:]] if "-" in line else words[1:])
    outlines = [[int(word.partition("/")[0]) - 1 for word in face] for face in faces]
    cut = _cut(np.array(places, np.float64).reshape(-1, 3), outlines)
    for row, face, triangles in zip(rows, faces, cut, strict=True):
        lines[row] = "\n".join("f " + " ".join(face[i] for i in triangle) for triangle in triangles.tolist())
    return "\n".join(lines).encode()


def cut_ply(data: bytes) -> bytes:
    """A .ply file, text or binary, whose faces are triangles."""
    head, mark, _ = data.partition(b"end_header")
    if not mark:
        raise ValueError("its header has no end")
    start = data.index(b"\n", len(head)) + 1
    lines = [line.split() for line in head.decode("ascii", errors="replace").splitlines()]
    order = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}[
        next(words[1] for words in lines if words[:1] == ["format"])
    ]
    elements: Elements = {}
    for words in lines:
        if words[:1] == ["element"]:
            elements[words[1]] = (int(words[2]), [])
        elif words[:1] == ["property"]:
            elements[list(elements)[-1]][1].append(words[1:])
    if "face" not in elements or _only_triangles(data, start, order, elements):
        return data
    take, put = _binary(data, start, order) if order else _text(data[start:])
    found = {name: list(take(count, kinds)) for name, (count, kinds) in elements.items()}
    kinds = elements["face"][1]
    corners = next(i for i, kind in enumerate(kinds) if kind[-1] in ("vertex_index", "vertex_indices"))
    outlines = [[int(corner) for corner in row[corners]] for row in found["face"]]
    axes = [next(i for i, kind in enumerate(elements["vertex"][1]) if kind[-1] == axis) for axis in "xyz"]
    vertices = np.array([[row[axis][0] for axis in axes] for row in found["vertex"]], np.float64).reshape(-1, 3)
    found["face"] = [
        [_of_corners(values, triangle, len(outline)) for values in row]
        for row, outline, triangles in zip(found["face"], outlines, _cut(vertices, outlines), strict=True)
        for triangle in triangles.tolist()
    ]
    title = re.sub(rb"(element face) \d+", b"\\1 %d" % len(found["face"]), head)
    return title + b"end_header\n" + b"".join(put(row, elements[name][1]) for name in elements for row in found[name])


def _only_triangles(data: bytes, start: int, order: str, elements: Elements) -> bool:
    """Whether all faces are seen at a glance to be triangles; false where it takes reading."""
    before = list(elements.values())[: list(elements).index("face")]
    count, kinds = elements["face"]
    if len(kinds) == 0 or [kind[0] == "list" for kind in kinds] != [True] + [False] * (len(kinds) - 1):
        return False
    if not order:
        rows = data[start:].split(b"\n")[sum(count for count, _ in before) :][:count]
        return all(row.split(None, 1)[:1] == [b"3"] for row in rows)
    if any(kind[0] == "list" for _, others in before for kind in others):
        return False
    start += sum(n * struct.calcsize(order + "".join(PLY_TYPES[k[0]] for k in others)) for n, others in before)
    fields = [("count", order + PLY_TYPES[kinds[0][1]]), ("corners", order + PLY_TYPES[kinds[0][2]], 3)]
    row = np.dtype(fields + [(kind[1], order + PLY_TYPES[kind[0]]) for kind in kinds[1:]])
    return len(data) >= start + count * row.itemsize and bool(
        (np.frombuffer(data, row, count, start)["count"] == 3).all()
    )


def _from_start(word: str, counts: Sequence[int]) -> str:
    """A corner `v/vt/vn` of an .obj file, counted from the start.

    Its negative numbers count back from what came so far.
    """
    return "/".join(
        str(count + 1 + int(number)) if number.startswith("-") else number
        for number, count in zip(word.split("/"), counts, strict=False)
    )


def _cut(vertices: np.ndarray, outlines: list[list[int]]) -> list[np.ndarray]:
    if any(outline and not 0 <= min(outline) <= max(outline) < len(vertices) for outline in outlines):
        raise ValueError("a face has vertices that are not there")
    if not np.isfinite(vertices).all():
        raise ValueError("a vertex is no number")
    whole = [i for i, outline in enumerate(outlines) if len(outline) > 2]
    found = [np.zeros((0, 3), np.int64)] * len(outlines)  # lines and points are no faces
    for i, triangles in zip(whole, triangulated([vertices[outlines[i]] for i in whole]), strict=True):
        found[i] = triangles
    return found


def _of_corners(values: list, triangle: list[int], corners: int) -> list:
    """A property of a face for one of its triangles.

    Lists with equally much for each corner keep the part of the triangle's corners.
    """
    if len(values) < corners or len(values) % corners or len(values) == 1:
        return values
    each = len(values) // corners
    return [value for corner in triangle for value in values[corner * each : (corner + 1) * each]]


Reader = Callable[[int, list[list[str]]], Iterator[Row]]
Writer = Callable[[Row, list[list[str]]], bytes]


def _text(body: bytes) -> tuple[Reader, Writer]:
    words = iter(body.decode("ascii", errors="replace").split())

    def value(kind: str) -> float:
        word = next(words, None)
        if word is None:
            raise ValueError("it is cut off")
        return float(word) if PLY_TYPES[kind] in "fd" else int(word)

    def take(count: int, kinds: list[list[str]]) -> Iterator[Row]:
        for _ in range(count):
            yield [
                [value(kind[2]) for _ in range(int(value(kind[1])))] if kind[0] == "list" else [value(kind[0])]
                for kind in kinds
            ]

    def put(row: Row, kinds: list[list[str]]) -> bytes:
        parts = (
            [len(values), *values] if kind[0] == "list" else values for kind, values in zip(kinds, row, strict=True)
        )
        return " ".join(repr(value) for values in parts for value in values).encode() + b"\n"

    return take, put


def _binary(data: bytes, place: int, order: str) -> tuple[Reader, Writer]:
    def take(count: int, kinds: list[list[str]]) -> Iterator[Row]:
        nonlocal place
        plain = (
            None
            if any(kind[0] == "list" for kind in kinds)
            else struct.Struct(order + "".join(PLY_TYPES[kind[0]] for kind in kinds))
        )
        for _ in range(count):
            if plain is not None:
                row = [[value] for value in plain.unpack_from(data, place)]
                place += plain.size
            else:
                row = []
                for kind in kinds:
                    size, letter = 1, PLY_TYPES[kind[-2]]
                    if kind[0] == "list":
                        (size,) = struct.unpack_from(order + PLY_TYPES[kind[1]], data, place)
                        place += struct.calcsize(order + PLY_TYPES[kind[1]])
                    row.append(list(struct.unpack_from(f"{order}{size}{letter}", data, place)))
                    place += struct.calcsize(f"{order}{size}{letter}")
            yield row

    def put(row: Row, kinds: list[list[str]]) -> bytes:
        parts = []
        for kind, values in zip(kinds, row, strict=True):
            if kind[0] == "list":
                parts.append(struct.pack(order + PLY_TYPES[kind[1]], len(values)))
            parts.append(struct.pack(f"{order}{len(values)}{PLY_TYPES[kind[-2]]}", *values))
        return b"".join(parts)

    return take, put
