"""How .bin, .ply and .pcd files store their rows, and the reading of their columns.

The `n` rows are points; a column is one number, or a few, of each. trimesh and open3d read such
files too, but are extras, and drop columns that scans have.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

MOST = 2**30  # bytes of a file, and of what it unpacks to
HEADER = 2**16  # bytes of a header, at most
KITTI, NUSCENES = ("x", "y", "z", "intensity"), ("x", "y", "z", "intensity", "ring")
PLY = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4"}
PLY |= {"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "float32": "f4"}
PLY |= {"double": "f8", "float64": "f8"}
ORDERS = {"ascii": "<", "binary_little_endian": "<", "binary_big_endian": ">"}
TYPES = {*PLY.values(), "i8", "u8"}  # of a .pcd file
KINDS = {"ascii": "text", "binary": "rows", "binary_compressed": "lzf"}


class Layout(NamedTuple):
    """How the rows of a file are stored.

    Attributes:
        names: of the columns, in lower case; they may repeat.
        types: of the columns.
        rows: their number.
        start: bytes before the first row.
        kind: `rows` (binary, row after row), `text` (a line each) or `lzf` (packed columns).
    """

    names: Sequence[str]
    types: Sequence[np.dtype]
    rows: int
    start: int
    kind: str

    @property
    def width(self) -> int:
        """Bytes of a row that is binary."""
        return sum(kind.itemsize for kind in self.types)


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """The columns [n] of a .bin, .ply or .pcd file, by name.

    Of several of one name it is the first, and the first number of those that have more.

    Raises:
        ValueError: as `layout`, or rows are missing or damaged.
    """
    found = layout(path)
    with path.open("rb") as file:
        file.seek(found.start)
        columns = {"rows": _rows, "text": _text, "lzf": _packed}[found.kind](file, found)
    return dict(zip(reversed(found.names), reversed(columns), strict=True))


def layout(path: Path) -> Layout:
    """The layout of a .bin, .ply or .pcd file, by its header and its size.

    Raises:
        ValueError: the file is empty, too large, cut off or of another kind; does not name it.
    """
    size = bounded(path.stat().st_size)
    if path.suffix.lower() == ".bin":
        return _bin(path, size)
    with path.open("rb") as file:
        found = _ply(file) if path.suffix.lower() == ".ply" else _pcd(file)
    if found.rows < 1:
        raise ValueError("holds no points")
    if found.kind == "lzf":
        bounded(found.rows * found.width)
    else:  # a number of a text takes a digit and what ends it, but for the end of the file
        least = found.width if found.kind == "rows" else 2 * sum(prod(kind.shape) for kind in found.types)
        if found.start + found.rows * least > size + (found.kind == "text"):
            raise ValueError(f"is cut off: its {size:,} bytes have no room for {found.rows:,} points; copy it again")
    return found


def bounded(size: int) -> int:
    """The size, in bytes; refuses none, and more than `MOST`."""
    if size < 1:
        raise ValueError("is empty")
    if size > MOST:
        raise ValueError(f"has {size:,} bytes, more than the {MOST:,} that are read; split it")
    return size


def _bin(path: Path, size: int) -> Layout:
    """Four numbers in a row (KITTI) or five (nuScenes): by the name, .pcd.bin, or else the size."""
    named = path.name.lower().endswith(".pcd.bin")
    names = NUSCENES if named or (size % 16 and not size % 20) else KITTI
    if size % (4 * len(names)):
        wanted = "20 (x, y, z, intensity, ring)" if named else "16 (x, y, z, remission)"
        raise ValueError(f"has {size:,} bytes, no multiple of {wanted}: it is cut off or of another kind")
    return Layout(names, [np.dtype("<f4")] * len(names), size // (4 * len(names)), 0, "rows")


def _ply(file: BinaryIO) -> Layout:
    """The vertices of a .ply file; what follows them, such as faces, is ignored."""
    first, *lines = _header(file, "end_header")
    order, elements = None, []
    for words in lines:
        match words:
            case ["format", name, _] if name in ORDERS:
                order, text = ORDERS[name], name == "ascii"
            case ["element", name, count]:
                elements.append((name, _whole(count), []))
            case ["property", *parts] if elements:
                elements[-1][2].append(parts)
    if first != ["ply"] or order is None or "vertex" not in [name for name, _, _ in elements]:
        raise ValueError("has a damaged header: a .ply file has a format and an element vertex")
    for name, count, properties in elements:
        if any(len(parts) != 2 or parts[0] not in PLY for parts in properties):
            raise ValueError(f"has a list, or an unknown type, in its {name}: vertices are read from single numbers")
        types = [np.dtype(order + PLY[code]) for code, _ in properties]
        if name == "vertex":
            break
        _skip(file, count, 0 if text else sum(kind.itemsize for kind in types))
    return Layout([column.lower() for _, column in properties], types, count, file.tell(), "text" if text else "rows")


def _pcd(file: BinaryIO) -> Layout:
    facts = {key: values for key, *values in _header(file, "DATA")}
    names, sizes, codes = (facts.get(key, []) for key in ("FIELDS", "SIZE", "TYPE"))
    counts = [*map(_whole, facts.get("COUNT", ["1"] * len(names)))]
    rows = prod(map(_whole, facts.get("POINTS") or facts.get("WIDTH", []) + facts.get("HEIGHT", [])))
    if (
        not names
        or not len(names) == len(sizes) == len(codes) == len(counts)
        or not 0 < min(counts) <= max(counts) < HEADER
    ):
        raise ValueError("has a damaged header: its FIELDS, SIZE, TYPE and COUNT do not fit together")
    types = [code.lower() + size for code, size in zip(codes, sizes, strict=True)]
    kind = KINDS.get(" ".join(facts["DATA"]))
    if kind is None or not TYPES.issuperset(types):
        raise ValueError(f"has unknown DATA or types: {' '.join(facts['DATA'])} of {', '.join(types)}")
    whole = [np.dtype((f"<{code}", (count,))) for code, count in zip(types, counts, strict=True)]
    return Layout([name.lower() for name in names], whole, rows, file.tell(), kind)


def _header(file: BinaryIO, last: str) -> list[list[str]]:
    """The words of each line up to one that begins with `last`; the file stands behind it then."""
    lines: list[list[str]] = []
    while file.tell() < HEADER and (line := file.readline(HEADER)):
        words = line.decode("ascii", "replace").split()
        lines += [words] if words and words[0] != "comment" and words[0][0] != "#" else []
        if words[:1] == [last]:
            return lines
    raise ValueError(f"has no header that ends with {last}")


def _whole(word: str) -> int:
    if not word.isdecimal() or len(word) > 12:
        raise ValueError(f"has a damaged header: {word[:20]!r} is no number of points")
    return int(word)


def _skip(file: BinaryIO, rows: int, width: int) -> None:
    """Pass over rows of `width` bytes each; 0 means lines of a text."""
    if width:
        file.seek(rows * width, 1)
    for _ in range(0 if width else rows):
        if not file.readline():
            break


def _rows(file: BinaryIO, found: Layout) -> list[np.ndarray]:
    table = np.fromfile(file, np.dtype([(f"f{i}", kind) for i, kind in enumerate(found.types)]), found.rows)
    return [_first(table[f"f{i}"], len(table)) for i in range(len(found.types))]


def _text(file: BinaryIO, found: Layout) -> list[np.ndarray]:
    table = read_text(file, found.rows)
    starts = np.cumsum([0, *(prod(kind.shape) for kind in found.types)])
    if table.shape != (found.rows, starts[-1]):
        raise ValueError(f"has {table.shape} numbers instead of {(found.rows, int(starts[-1]))}: copy it again")
    return [table[:, i].astype(kind.base) for i, kind in zip(starts[:-1], found.types, strict=True)]


def _packed(file: BinaryIO, found: Layout) -> list[np.ndarray]:
    """Columns one after another, packed as one block: its size, the size unpacked, its bytes."""
    sizes = np.fromfile(file, "<u4", 2)
    packed = file.read(int(sizes[0])) if len(sizes) == 2 else b""
    if len(sizes) < 2 or len(packed) < sizes[0] or sizes[1] != found.rows * found.width:
        raise ValueError(f"is cut off: its packed part does not hold {found.rows:,} points; copy it again")
    data = unpack_lzf(packed, int(sizes[1]))
    starts = found.rows * np.cumsum([0, *(kind.itemsize for kind in found.types)])
    blocks = zip(starts[:-1], starts[1:], found.types, strict=True)
    return [_first(np.frombuffer(data[a:b], kind.base), found.rows) for a, b, kind in blocks]


def _first(column: np.ndarray, rows: int) -> np.ndarray:
    """The first number of each row."""
    return column.reshape(rows, -1)[:, 0]


def read_text(file: BinaryIO, rows: int | None = None) -> np.ndarray:
    """A table of numbers, float64 [n, columns], between spaces or commas; # begins a comment."""
    lines = (line.replace(b",", b" ").decode("ascii", "replace") for line in file)
    try:
        return np.loadtxt(lines, max_rows=rows, ndmin=2)
    except ValueError as error:
        raise ValueError(f"holds rows that are no table of numbers ({str(error).partition(';')[0]})") from None


def unpack_lzf(packed: bytes, size: int) -> bytes:
    """What LZF has packed: runs of literal bytes, and references to earlier ones (Lehmann, liblzf).

    Raises:
        ValueError: it is damaged, or is not `size` bytes.
    """
    out, at = bytearray(), 0
    try:
        while at < len(packed) and len(out) <= size:
            control, at = packed[at], at + 1
            if control < 32:  # a run of control + 1 bytes
                out += packed[at : at + control + 1]
                at += control + 1
                continue
            length = control >> 5
            if length == 7:
                length, at = length + packed[at], at + 1
            start, at = len(out) - ((control & 31) << 8) - packed[at] - 1, at + 1
            if start < 0:
                raise IndexError
            piece = out[start : start + length + 2]
            out += (piece * (length // len(piece) + 2))[: length + 2]  # it may reach into itself
    except IndexError:
        size = -1
    if len(out) != size:
        raise ValueError("is damaged: its packed points cannot be unpacked; copy it again")
    return bytes(out)
