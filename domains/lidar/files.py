"""Scans from files and back: .bin of KITTI and nuScenes, .ply, .pcd, .npy, .npz, .xyz.

n: points. All coordinates are metres in the sensor's frame.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from distillkit.files import read_npz, write_atomic
from domains.lidar.layouts import NUSCENES, bounded, layout, read_columns, read_text
from domains.lidar.views import Scan

SUFFIXES = (".bin", ".ply", ".pcd", ".npy", ".npz", ".xyz")
BESIDE = "_ring.npy"  # behind the name of a scan: its rings
FARTHEST = 1000.0  # metres; no sensor sees as far
INTENSITIES = ("intensity", "remission", "reflectivity", "reflectance", "scalar_intensity", "i")
RINGS = ("ring", "channel", "beam", "laser_id", "scalar_ring")
NUMBERS = "fiu"  # kinds of dtypes
BEAMS = 2**16  # rings are below; no sensor has as many
STATIC = (2, 251)  # classes of SemanticKITTI that are neither unknown nor moving, first and last

Columns = Mapping[str, np.ndarray]


def read_scan(path: str | Path, labels: str | Path | None = None) -> Scan:
    """A scan from a file; rows that are not finite, or at the origin, are no returns and left out.

    Rings are those of the file, else those in `ring/NAME.npy` or `NAME_ring.npy` beside it, turned
    where the sensor counts from below. Intensities become numbers in [0, 1]: integers of 8 or 16
    bits are divided by the largest of their type, others by 255 where one is above 1.

    Args:
        path: the file.
        labels: SemanticKITTI's classes of its points, a .label file; only points of static classes
            are read then.

    Raises:
        ValueError: the file cannot be read, has no return, or one farther than a kilometre; names
            it.
    """
    path = Path(path)
    try:
        columns = _columns(path)
        if missing := {"x", "y", "z"} - columns.keys():
            raise ValueError(f"has no column {', '.join(sorted(missing))}, only {', '.join(columns)}")
        points = np.stack([columns[axis] for axis in "xyz"], 1).astype(np.float32)
        kept = np.isfinite(points).all(1) & (points != 0).any(1)
        if not kept.any():
            raise ValueError(f"has no return: all {len(points):,} rows are zero or not finite")
        if (far := np.abs(points[kept]).max()) > FARTHEST:
            raise ValueError(f"has a coordinate of {far:,.0f} m; metres in the sensor's frame are read")
        if labels is not None:
            kept &= _static(Path(labels), len(kept))
        points, ring = points[kept], _ring(path, columns, len(kept))
        intensity = next((columns[name] for name in INTENSITIES if name in columns), None)
        return Scan(
            torch.from_numpy(points),
            None if intensity is None else torch.from_numpy(_share(path, intensity)[kept]),
            None if ring is None else torch.from_numpy(_from_above(ring[kept], points)),
        )
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error).removeprefix(f"{path} ")
        raise ValueError(f"{path} {why}") from None


def fault(path: Path) -> str | None:
    """Why a file cannot be read, as far as its header and its size tell, or None."""
    try:
        if path.suffix.lower() in (".bin", ".ply", ".pcd"):
            layout(path)
        elif path.suffix.lower() == ".npy":
            _array(path)
        elif path.suffix.lower() == ".npz":
            _archive(path)
        else:
            bounded(path.stat().st_size)
    except (OSError, ValueError) as error:
        return str(error.strerror if isinstance(error, OSError) else error)
    return None


def write_ply(path: str | Path, points: torch.Tensor, colours: torch.Tensor | None = None) -> Path:
    """Write points [n, 3], and their colours, uint8 [n, 3], as a binary .ply file, atomically."""
    columns = [(axis, "<f4", "float", points[:, i]) for i, axis in enumerate("xyz")]
    if colours is not None:
        columns += [(name, "u1", "uchar", colours[:, i]) for i, name in enumerate(("red", "green", "blue"))]
    table = np.empty(len(points), [(name, code) for name, code, _, _ in columns])
    for name, _, _, values in columns:
        table[name] = values
    properties = "".join(f"property {kind} {name}\n" for name, _, kind, _ in columns)
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(table)}\n{properties}end_header\n"
    return write_atomic(path, lambda temporary: temporary.write_bytes(head.encode() + table.tobytes()))


def write_bin(path: str | Path, points: torch.Tensor, intensity: torch.Tensor | None = None) -> Path:
    """Write points [n, 3] and intensities [n] in [0, 1], or zeros, as KITTI's .bin, atomically."""
    table = np.zeros((len(points), 4), "<f4")
    table[:, :3] = points
    if intensity is not None:
        table[:, 3] = intensity
    return write_atomic(path, table.tofile)


def _columns(path: Path) -> Columns:
    """The columns [n] of a file of any kind."""
    match path.suffix.lower():
        case ".bin" | ".ply" | ".pcd":
            return read_columns(path)
        case ".npy":
            return _named(_array(path))
        case ".npz":
            _archive(path)
            arrays = read_npz(path, ("points", *INTENSITIES, *RINGS))
            named = _named(arrays.pop("points"))
            for name, each in arrays.items():
                if each.shape != named["x"].shape or each.dtype.kind not in NUMBERS:
                    raise ValueError(
                        f"has {len(named['x']):,} points, but {each.dtype} of the shape {list(each.shape)} as {name}"
                    )
            return {**named, **arrays}
        case ".xyz":
            bounded(path.stat().st_size)
            with path.open("rb") as file:
                return _named(read_text(file))
    raise ValueError(f"is none of {', '.join(SUFFIXES)}")


def _named(table: np.ndarray) -> Columns:
    """The columns of a table [n, 3..6]: x, y, z; intensity if there are 4 or 5; ring if 5.

    Six are x, y, z and a normal or a colour.
    """
    if table.ndim != 2 or not 3 <= table.shape[1] <= 6 or table.dtype.kind not in NUMBERS or not len(table):
        raise ValueError(f"holds {table.dtype} of the shape {list(table.shape)}; numbers [n, 3] to [n, 6] are read")
    names = NUSCENES[: 3 if table.shape[1] == 6 else None]
    return dict(zip(names, table.T, strict=False))


def _array(path: Path) -> np.ndarray:
    """The array of an .npy file, read when it is used; pickles are not opened."""
    bounded(path.stat().st_size)
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)  # np.load would open an archive too
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged file fails in many ways
        why = str(error).partition(".")[0]  # what follows advises to open pickles
        raise ValueError(f"is no whole .npy file of a plain array ({why}); write it with np.save") from None


def _archive(path: Path) -> None:
    """Refuse an .npz file without points, or too large when unpacked."""
    bounded(path.stat().st_size)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile as error:
        raise ValueError(f"is no whole .npz file ({error}); write it with np.savez") from None
    bounded(sum(entry.file_size for entry in entries))
    if "points.npy" not in (names := [entry.filename for entry in entries]):
        raise ValueError(f"has no array points, only {', '.join(names)}: give it that name")


def _static(path: Path, rows: int) -> np.ndarray:
    """Which rows are of a known class that stands still, bool [rows]; see `STATIC`."""
    if (size := path.stat().st_size) != 4 * rows:
        raise ValueError(f"has {rows:,} points, but {path} has {size:,} bytes, which are 4 for each label")
    classes = np.fromfile(path, "<u4") & 0xFFFF  # the high half is the instance
    return (classes >= STATIC[0]) & (classes <= STATIC[1])


def _share(path: Path, intensity: np.ndarray) -> np.ndarray:
    """Intensities as float32 in [0, 1]."""
    values = np.nan_to_num(intensity.astype(np.float32), posinf=0, neginf=0)
    if intensity.dtype.kind in "iu" and intensity.itemsize <= 2:  # wider ones hold whatever the table does
        values = values / np.iinfo(intensity.dtype).max
    elif path.name.lower().endswith(".pcd.bin") or values.max() > 1:
        values = values / 255
    return values.clip(0, 1)


def _ring(path: Path, columns: Columns, rows: int) -> np.ndarray | None:
    """The rings as they are given, int64 [rows]; None where none are."""
    ring = next((columns[name] for name in RINGS if name in columns), None)
    places = (path.with_name(path.stem + BESIDE), *(home / "ring" / f"{path.stem}.npy" for home in path.parents[:2]))
    for place in places if ring is None else ():
        if place.is_file():
            ring = _array(place)
            if ring.shape != (rows,) or ring.dtype.kind not in NUMBERS:
                raise ValueError(f"has {rows:,} points, but {place} has {ring.dtype} of the shape {list(ring.shape)}")
            break
    if ring is None or not ((ring >= 0) & (ring < BEAMS) & (ring == np.floor(ring))).all():  # NaN is none
        return None
    return ring.astype(np.int64)


def _from_above(ring: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Rings counted from the highest beam on."""
    if len(ring) == 0 or ring.min() == ring.max():
        return ring
    slope = points[:, 2] / np.hypot(points[:, 0], points[:, 1]).clip(1e-6)
    rises = ((ring - ring.mean()) * np.arctan(slope)).mean() > 0
    return ring.max() - ring if rises else ring
