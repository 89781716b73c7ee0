"""A user's scans, completed by a student."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from distillkit import devices
from distillkit.progress import calls
from distillkit.students.base import Student
from domains.lidar.files import SUFFIXES, read_scan
from domains.lidar.media import framed, write_scene
from domains.lidar.views import FARTHEST, NEAREST
from domains.lidar.voxels import thinned

FINEST, COARSEST = 0.05, 5.0  # metres, of voxels that thin a scan
HALVINGS = 8  # of the range of their sizes
MARGIN = 4.0  # metres of the grid beyond the scan
PART = 4  # times smaller, along each side, is the part by which memory is estimated


class Completer:
    """Files of scans as files of complete scenes, see `distillkit.codec.Answering`.

    A scan is cut to LiDiff's range, thinned to the density of training and completed as a whole. A
    file has the points of the scan, then the student's. Beside each .ply file lies the same scene
    as KITTI's .bin.

    Args:
        student: the student.
        seed, kappa: as in `Student.sample`. Equal scans get equal noise.
        tile, overlap: of photographs; there must be none.

    Raises:
        ValueError: a tile, or a kappa that the student does not take.
    """

    noun, ending = "scan", ".ply"
    suffixes = SUFFIXES

    def __init__(self, student: Student, seed: int, kappa: float | None, tile: int | None, overlap: int):
        if tile is not None:
            raise ValueError("--tile cuts photographs, and a scan is completed as a whole: leave it out")
        self.student, self.seed, self.kappa = (student := student.merged()), seed, kappa
        self.number = student.event_shape[0] // student.codec.repeat
        self.square = getattr(student.network, "extent", 2 * FARTHEST)
        student.checked_condition(1, {"part": torch.zeros(1, 1, 3)}, kappa)

    def __call__(self, source: Path, target: Path) -> None:
        points = read_scan(source).points
        away = points.norm(dim=1)
        points = points[(away > NEAREST) & (away < FARTHEST)]
        if not len(points):
            raise ValueError(
                f"{source} has no point from {NEAREST:g} to {FARTHEST:g} m away, all are {away.min():.3g} to {away.max():.3g} m "
                f"away: give a scan in metres that sees as far"
            )
        if points[:, 2].min() == points[:, 2].max():
            raise ValueError(f"{source} is flat, all its points have one height: give a scan of several beams")
        scene = self.complete(points, source.name)
        if not len(scene):
            raise ValueError(
                f"{source}: nothing is left of its scene within {FARTHEST:g} m and the scan's heights; give another student"
            )
        write_scene(target, torch.cat([points, scene]), framed([points.numpy()]))

    def complete(self, points: Tensor, name: str = "the scan") -> Tensor:
        """The scene [m, 3] around a scan [n, 3], metres in the sensor's frame.

        Raises:
            ValueError: it takes more memory than there is.
        """
        part = evenly(points, self.number, self.square)
        extent = 2 * (float(part[:, :2].abs().max()) + MARGIN)
        self._room(part, extent, name)
        try:
            scene = self.made(part, extent, name)
        except torch.OutOfMemoryError:
            raise ValueError(f"{name} needs more memory than the device has: give --device cpu") from None
        return kept(scene, points)

    @torch.no_grad()
    def made(self, part: Tensor, extent: float, name: str) -> Tensor:
        """The student's points [m, 3] around those of `part` [n, 3], on a grid of this extent."""
        student = covering(self.student, extent)
        cond = student.checked_condition(1, {"part": part[None]}, self.kappa)
        shape = student.codec.shape(1, student.event_shape, cond)
        cond = {key: value.to(student.device) for key, value in cond.items()}
        scan = part.numpy().tobytes()

        def draw(i: int) -> Tensor:
            digest = hashlib.blake2b(repr((self.seed, i)).encode() + scan, digest_size=8).digest()
            stream = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
            return torch.randn(shape, generator=stream).to(student.device)

        with calls(name, student.network, student.num_steps):
            return student.codec.decode(student(draw(0), cond, draw), cond)[0].cpu()

    def _room(self, part: Tensor, extent: float, name: str) -> None:
        """Refuse what would take more memory than there is.

        What the student needs for a small part tells what it needs for the whole.
        """
        there = devices.free(self.student.device)
        if there is None or len(part) < PART**2:
            return
        with devices.Peak() as peak:
            self.made(part[:: PART**2] / PART, extent / PART, name)
        if (need := PART**2 * peak.bytes) > there:
            raise ValueError(
                f"{name} needs about {need / 1e9:.3g} GB of memory, and {there / 1e9:.3g} GB are free: give --device cpu, or "
                f"a part of the scan"
            )


def covering(student: Student, extent: float) -> Student:
    """The student on a grid of this extent in metres around the sensor, with the same weights."""
    network = student.network
    return _with(student, network, network.covering(extent)) if hasattr(network, "covering") else student


def _with(module: nn.Module | None, old: nn.Module, new: nn.Module) -> nn.Module | None:
    """A module in which another stands for one of its parts; they share all others' weights."""
    if module is None or module is old:
        return module and new
    made = copy.copy(module)
    made._modules = {name: _with(part, old, new) for name, part in module._modules.items()}
    return made


def evenly(points: Tensor, number: int, square: float) -> Tensor:
    """The points [n, 3] thinned by voxels, as finely as the density of training allows.

    Args:
        points: a scan.
        number: points in a square of the ground, at most, on average over the points.
        square: its side in metres.
    """
    low, high, found = FINEST, COARSEST, None
    for _ in range(HALVINGS):
        side = (low * high) ** 0.5
        some = thinned(points, side)
        if _crowd(some, square) <= number:
            high, found = side, some
        else:
            low = side
    return thinned(points, COARSEST) if found is None else found


def _crowd(points: Tensor, square: float) -> float:
    """The number of points in the square of a point, on average over the points."""
    x, y = (points[:, :2] / square + 0.5).floor().long().unbind(1)  # the sensor stands in the middle of one
    num = (2**20 * x + y).unique(return_counts=True)[1].double()
    return float(num.square().sum() / num.sum())


def kept(scene: Tensor, scan: Tensor) -> Tensor:
    """The points [m, 3] that LiDiff's protocol keeps of a scene made for a scan [n, 3].

    They lie within 50 m, lower than the highest point of the scan, and not more than two standard
    deviations below its mean height.
    """
    z = scan[:, 2]
    low, high = z.mean() - 2 * z.std(correction=0), z.max()
    return scene[(scene.norm(dim=1) < FARTHEST) & (scene[:, 2] < high) & (scene[:, 2] > low)]
