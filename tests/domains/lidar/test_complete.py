"""`sample --input`: files of scans through a student."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import wake

from distillkit import devices
from distillkit.cli import front
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import DiscreteVarianceExploding
from distillkit.diffusion.start import Start
from distillkit.students.few_step import FewStepStudent
from domains.lidar.codec import Completion
from domains.lidar.complete import Completer, _crowd, _with, covering, evenly, kept
from domains.lidar.files import read_scan, write_bin
from domains.lidar.network import PillarNet
from domains.lidar.views import FARTHEST, NEAREST

REPEAT = 8


def student(noise_scale: float = 1.0, awake: bool = False) -> FewStepStudent:
    """A student for crops of 12.8 m with 50 points; asleep it returns what it starts from."""
    shape = (50 * REPEAT, 3)
    network = PillarNet(shape, bins=2, channels=8, multipliers=(1, 1), width=8, answer=4)
    denoiser = Denoiser(wake(network) if awake else network, DiscreteVarianceExploding(), "eps")
    surroundings = {"context": ("part",), "codec": Completion(REPEAT), "start": Start("part")}
    examples = {"part": torch.zeros(2, 50, 3)}
    made = FewStepStudent(denoiser, [999], shape, noise_scale=noise_scale, examples=examples, **surroundings)
    return made.requires_grad_(False).eval()


def scan(num: int = 3000, seed: int = 0) -> torch.Tensor:
    """Points on the ground around the sensor, denser near it, with a wall."""
    random = np.random.default_rng(seed)
    away, turn = 60 * random.random(num) ** 2, 2 * np.pi * random.random(num)
    points = np.stack([away * np.cos(turn), away * np.sin(turn), np.full(num, -2.0)], 1)
    points[: num // 5] = random.uniform([10, -20, -2], [10, 20, 4], (num // 5, 3))
    return torch.from_numpy(points.astype(np.float32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    quiet = student(noise_scale=0.01)
    return quiet.save(tmp_path_factory.mktemp("student"), quiet.examples)


@pytest.fixture
def sample(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: front.main(["sample", str(folder), "--device", "cpu", *map(str, words)])


# Files


def test_a_folder_of_scans(sample, tmp_path, capsys):
    points = scan()
    (tmp_path / "scans" / "a").mkdir(parents=True)
    write_bin("scans/a/one.bin", points)
    np.save("scans/two.npy", points.numpy())
    np.hstack([points.numpy(), np.zeros((len(points), 2))]).astype("<f4").tofile("scans/three.pcd.bin")
    Path("scans/notes.txt").write_text("no scan")
    Path("scans/cut.bin").write_bytes(b"123")
    assert sample("--input", "scans", "--out", "made") == 1
    names = ["a/one.bin", "a/one.ply", "three.pcd.ply", "three_pcd.bin", "two.bin", "two.ply"]
    assert sorted(path.relative_to("made").as_posix() for path in Path("made").rglob("*.*")) == names
    said = capsys.readouterr()
    assert "3 of 4 files made, in made" in said.out and "1 of 4 files left out: scans/cut.bin" in said.err
    scenes = [read_scan(Path("made") / name).points for name in names]
    assert all(torch.equal(scene, scenes[0]) for scene in scenes)  # equal scans get equal noise
    near = points[(points.norm(dim=1) > NEAREST) & (points.norm(dim=1) < FARTHEST)]
    own, made = scenes[0].split([len(near), len(scenes[0]) - len(near)])
    assert torch.equal(own, near)  # nothing that was measured is lost
    apart = (made[:, None] - near).norm(dim=2).min(1).values
    assert len(made) > 1000 and apart.max() < 0.06  # noise of 1 %, of which none is farther than six times


def test_seeds(sample, tmp_path):
    write_bin("a.bin", scan())
    for name, words in {"one": [], "again": [], "other": ["--seed", 1]}.items():
        assert sample("--input", "a.bin", "--out", name, *words) == 0
    one, again, other = ((tmp_path / name / "a.bin").read_bytes() for name in ("one", "again", "other"))
    assert one == again != other


@pytest.mark.parametrize(
    "words, message",
    [
        (["--tile", 64], "--tile cuts photographs, and a scan is completed as a whole: leave it out"),
        (["--kappa", 2], "this student was not told kappa"),
        (["--input", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_wrong_words_are_one_sentence(sample, tmp_path, capsys, words, message):
    write_bin("a.bin", scan())
    assert sample("--input", "a.bin", "--out", "made", *words) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "made").exists()


def test_scans_of_another_unit_are_refused(sample, capsys):
    write_bin("near.bin", scan() / 100)
    assert sample("--input", "near.bin", "--out", "made") == 1
    assert "near.bin has no point from 3.5 to 50 m away, all are 0." in capsys.readouterr().err


def test_a_flat_scan_is_refused(sample, capsys):
    write_bin("flat.bin", scan() * torch.tensor([1.0, 1.0, 0.0]))
    assert sample("--input", "flat.bin", "--out", "made") == 1
    assert "flat.bin is flat, all its points have one height" in capsys.readouterr().err


# The whole scan at once


def test_each_point_of_the_thinned_scan_is_repeated():
    own, points = Completer(student(0.0), 0, None, None, 0), scan()
    part = evenly(points, own.number, own.square)
    scene = own.made(part, 120.0, "scan")
    assert (own.number, own.square) == (50, pytest.approx(12.8))
    assert torch.equal(scene, part.repeat(REPEAT, 1))


def test_the_grid_covers_the_scan_with_the_same_weights():
    own = student(awake=True)
    wide = covering(own, 100.0)
    assert (
        wide.network.cells.side * wide.network.cells.cell == pytest.approx(100, abs=1) and own.network.cells.side == 32
    )
    ours, theirs = dict(own.named_parameters()), dict(wide.named_parameters())
    assert ours.keys() == theirs.keys() and all(ours[name] is theirs[name] for name in ours)
    assert wide.denoiser is not own.denoiser and wide.denoiser.network is wide.network
    part = scan()[None, :600]
    x = part.repeat(1, REPEAT, 1)
    within = (part[0, :, :2].abs() < 5).all(1).repeat(REPEAT)
    near, far = (made(torch.zeros_like(x), {"part": part}) for made in (own, wide))
    assert not torch.allclose(near[0, ~within], far[0, ~within], atol=0.01)  # outside of the small grid


def test_a_network_deep_in_a_student_is_exchanged():
    """A sampler has its teacher's; parts that are not there stay so."""
    own = torch.nn.Module()
    own.teacher, own.network = student(), None
    own.add_module("lost", None)
    wide = _with(own, own.teacher.network, own.teacher.network.covering(50.0))
    assert wide.teacher.network.cells.side > own.teacher.network.cells.side == 32 and wide.lost is None


def test_scans_are_thinned_to_the_density_of_training():
    points = scan(20_000)
    for number in (20, 100, 400):
        part = evenly(points, number, 12.8)
        assert 0.8 * number < _crowd(part, 12.8) <= number
        assert {*map(tuple, part.tolist())} <= {*map(tuple, points.tolist())}
    few = points[:30]
    assert len(evenly(few, 300, 12.8)) == 30


def test_the_density_is_that_around_a_point():
    """Nine points in one square and one in another: (9 * 9 + 1) / 10."""
    points = torch.tensor([[0.1 * i, 0, 0] for i in range(9)] + [[5.1, 0, 0]])
    assert _crowd(points, 10.0) == pytest.approx(8.2)


def test_what_lidiffs_protocol_keeps():
    points = torch.tensor([[10.0, 0, -2], [10, 0, -2], [10, 0, 0], [10, 0, 2]])  # z: mean -1/2, deviation 1.66
    z = points[:, 2].double().numpy()
    low = z.mean() - 2 * z.std()
    scene = torch.tensor(
        [[49.9, 0, 0], [50.1, 0, 0], [5, 0, low + 0.01], [5, 0, low - 0.01], [5, 0, 1.99], [5, 0, 2.01]]
    )
    assert torch.equal(kept(scene, points), scene[[0, 2, 4]])
    nan = torch.full((1, 3), torch.nan)
    assert len(kept(nan, points)) == 0


# Memory


def test_what_needs_more_memory_than_there_is_is_refused(sample, monkeypatch, capsys):
    write_bin("a.bin", scan())
    monkeypatch.setattr(devices, "free", lambda device: 1_000_000)
    assert sample("--input", "a.bin", "--out", "made") == 1
    said = capsys.readouterr().err
    assert "a.bin needs about" in said and "GB of memory, and 0.001 GB are free: give --device cpu" in said


def test_the_estimate_is_what_it_takes(monkeypatch):
    own, points = Completer(student(), 0, None, None, 0), scan(20_000)
    part = evenly(points, own.number, own.square)
    with devices.Peak() as peak:
        own.made(part, 108.0, "scan")
    monkeypatch.setattr(devices, "free", lambda device: int(1.3 * peak.bytes))
    own._room(part, 108.0, "scan")
    monkeypatch.setattr(devices, "free", lambda device: int(0.8 * peak.bytes))
    with pytest.raises(ValueError, match="scan needs about"):
        own._room(part, 108.0, "scan")


def test_a_full_device_says_so(monkeypatch):
    own = Completer(student(), 0, None, None, 0)
    monkeypatch.setattr(own, "_room", lambda *given: None)
    monkeypatch.setattr(own, "made", lambda *given: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(ValueError, match="needs more memory than the device has: give --device cpu"):
        own.complete(scan())
