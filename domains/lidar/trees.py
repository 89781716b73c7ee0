"""Recordings in folders: KITTI's odometry and SemanticKITTI, nuScenes, and any loose files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distillkit.errors import did_you_mean
from distillkit.sources import Source, listed
from domains.lidar.files import BESIDE, SUFFIXES, fault

SCANS = ("velodyne", "velodyne_points/data")  # KITTI's folders of scans, below that of their sequence
OTHERS = ("ring", "voxels", "labels")  # folders of arrays that belong to scans
POSES, CALIB = "poses.txt", "calib.txt"
PASSED = (".txt", ".label", ".json", ".md", ".png", ".jpg", ".invalid", ".occluded")  # what lies beside scans
BENT = 0.01  # by which R^T R of a pose may differ from the identity


class Frame(NamedTuple):
    """A scan of a sequence.

    Attributes:
        name: `sequence/file`, or that of a loose file.
        scan: its file.
        pose: [4, 4] float64, from the sensor to the world, which is one for a sequence; None where
            it is not known.
        labels: the file of its points' classes; None where there is none.
    """

    name: str
    scan: Path
    pose: np.ndarray | None = None
    labels: Path | None = None


def find(path: str | Path, sequences: Sequence[str] | None = None) -> dict[str, list[Frame]]:
    """The frames of each sequence in a folder, in the order of their names.

    A sequence is a folder with `velodyne/*.bin` (KITTI, SemanticKITTI; `poses.txt`, `calib.txt` and
    `labels/*.label` where there are such), the scans of a log in nuScenes' `LIDAR_TOP`, or a folder
    with `poses.txt` beside its scans. Every other file is a sequence of one scan. Files that cannot
    be read are named in a warning and left out.

    Args:
        path: the folder.
        sequences: names of those that are wanted; None for all.

    Raises:
        ValueError: the folder holds no scan, a sequence is not there, or poses do not fit.
    """
    source = Source(Path(path).expanduser().absolute(), SUFFIXES, "scan", beside=PASSED)
    homes = {file: _home(source, file) for file in source.files}
    source.files = [file for file in source.files if homes[file] is not None]
    found: dict[str, list[Path]] = {}
    for file in source.files:
        found.setdefault(_sequence(source, file, homes[file]), []).append(file)
    if sequences is not None:
        for name in sequences:
            if name not in found:
                raise ValueError(
                    f"{source.root} has no sequence {name!r}{did_you_mean(name, found)}: {listed([*found])}"
                )
        found = {name: found[name] for name in sequences}
        source.files = [file for files in found.values() for file in files]
    faults = {file: why for file in source.files if (why := fault(file)) is not None}
    source.without(faults)
    frames = {name: _frames(name, files, homes[files[0]]) for name, files in found.items()}
    kept = {name: [frame for frame in each if frame.scan not in faults] for name, each in frames.items()}
    return {name: each for name, each in kept.items() if each}


def _home(source: Source, file: Path) -> Path | None:
    """The folder of a file's sequence; None for a file that is no scan."""
    folder = file.parent
    if file.name.endswith(BESIDE) or folder.name in OTHERS:
        return None
    for scans in SCANS:
        if folder.as_posix().endswith(f"/{scans}"):
            return folder.parents[scans.count("/")]
        if (folder / scans).is_dir():  # a map beside the scans
            return None
    return folder


def _sequence(source: Source, file: Path, home: Path) -> str:
    """The name of a file's sequence."""
    if file.parent.name == "LIDAR_TOP":
        return file.name.partition("__")[0]
    name = home.resolve().name if home in (source.root, *source.root.parents) else source.name(home)
    if home != file.parent or (home / POSES).is_file():
        return name.removeprefix("dataset/").removeprefix("sequences/")
    return source.name(file).removesuffix("".join(file.suffixes[-2:]) if ".pcd.bin" in file.name else file.suffix)


def _frames(name: str, files: Sequence[Path], home: Path) -> list[Frame]:
    """The frames of a sequence with the given files."""
    places = (home / POSES, home.parent.parent / "poses" / f"{home.name}.txt")  # of KITTI's odometry
    place = next((place for place in places if place.is_file()), None)
    poses = [None] * len(files) if place is None else read_poses(place, home / CALIB)
    if len(poses) != len(files):
        raise ValueError(f"{place} has {len(poses):,} poses for {len(files):,} scans of {name}: give one for each")
    labels = [home / "labels" / f"{file.stem}.label" for file in files]
    several = len(files) > 1 or place is not None
    return [
        Frame(f"{name}/{file.stem}" if several else name, file, pose, label if label.is_file() else None)
        for file, pose, label in zip(files, poses, labels, strict=True)
    ]


def read_poses(poses: Path, calib: Path) -> np.ndarray:
    """Poses of the LiDAR, [n, 4, 4] float64, from those of the left camera P and `Tr` of its calib.

    T_i = Tr^-1 P_i Tr. Without a file `calib` they are poses of the LiDAR already.

    Args:
        poses: a line of 12 numbers for each pose, row after row of [3, 4].
        calib: a file with the line `Tr:` and 12 numbers, from the LiDAR to the camera.

    Raises:
        ValueError: numbers are missing, or a pose is no rigid motion.
    """
    camera = _rigid(poses, _lines(poses))
    if not calib.is_file():
        return camera
    said = [line[1:] for line in _lines(calib) if line[0] == "Tr:"]
    if len(said) != 1:
        raise ValueError(f"{calib} must have one line Tr: with 12 numbers, has {len(said)}; remove it if it is none")
    (tr,) = _rigid(calib, said)
    return np.linalg.inv(tr) @ camera @ tr


def _lines(path: Path) -> list[list[str]]:
    return [words for line in path.read_text("utf-8", "replace").splitlines() if (words := line.split())]


def _rigid(path: Path, lines: Sequence[Sequence[str]]) -> np.ndarray:
    """Matrices [n, 4, 4] of lines of 12 numbers each."""
    matrices = np.tile(np.eye(4), (len(lines), 1, 1))
    for number, words in enumerate(lines):
        try:
            matrices[number, :3] = np.array([float(word) for word in words]).reshape(3, 4)
        except ValueError:
            raise ValueError(
                f"{path} must have 12 numbers in a line, line {number + 1} is {' '.join(words)[:60]!r}"
            ) from None
    turns = matrices[:, :3, :3]
    bent = ~(np.abs(turns.swapaxes(1, 2) @ turns - np.eye(3)).max((1, 2)) < BENT)  # NaN is bent
    bent |= (np.linalg.det(np.nan_to_num(turns)) < 0) | ~np.isfinite(matrices).all((1, 2))
    if bent.any():
        raise ValueError(f"{path} holds what is no rigid motion, in line {bent.argmax() + 1}: give [3, 4] row by row")
    return matrices
