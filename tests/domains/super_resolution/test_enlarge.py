"""`sample --input`: files of photographs through a student, and a student as a graph."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import wake
from PIL import Image, ImageCms

from distillkit import devices
from distillkit.cli import front
from distillkit.cli.answers import found
from distillkit.cli.exports import Flat, arguments, free_sizes
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import ResShift, VarianceExploding
from distillkit.networks.mlp import MLP
from distillkit.students.base import load_student
from distillkit.students.few_step import FewStepStudent
from domains.super_resolution.codec import Upscale
from domains.super_resolution.enlarge import Enlarger, transparent
from domains.super_resolution.network import PatchNet
from domains.super_resolution.photographs import read
from domains.super_resolution.resize import eight_bits, enlarged

SCALE = 4


def student(scale: int = SCALE, times: tuple[float, ...] = (0.99,), awake: bool = True) -> FewStepStudent:
    shape, codec = (3, 5 * scale, 5 * scale), Upscale(scale)
    network = wake(PatchNet(shape, width=8, depth=1)) if awake else PatchNet(shape, width=8, depth=1)
    denoiser = Denoiser(network, ResShift(), "edm", 0.1)
    examples = {"low": torch.rand(3, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1}
    made = FewStepStudent(denoiser, times, shape, context=("low",), codec=codec, examples=examples)
    return made.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A student that adds nothing to the enlarged photograph, but for noise of 1 %."""
    plain = student(awake=False)
    return plain.save(tmp_path_factory.mktemp("student"), plain.examples)


@pytest.fixture
def sample(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: front.main(["sample", str(folder), "--device", "cpu", *map(str, words)])


def pixels(height: int = 6, width: int = 9, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, channels) if channels > 1 else (height, width), dtype=np.uint8)


def psnr(path, image: np.ndarray) -> float:
    """Of a file that was made from an image beside its bicubic enlargement, in decibels."""
    low = torch.from_numpy(image).float().movedim(-1, 0)[None] / 127.5 - 1
    wanted = eight_bits(enlarged(low, [SCALE * side for side in image.shape[:2]]))[0]
    made = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).movedim(-1, 0) / 127.5 - 1
    return float(10 * torch.log10(4 / (made - wanted).square().mean()))


def test_a_folder_keeps_its_names(sample, tmp_path, capsys):
    (tmp_path / "photos" / "trip").mkdir(parents=True)
    for name in ("a.png", "trip/b.webp", "trip/c.bmp", "trip/c.png"):
        Image.fromarray(pixels()).save(tmp_path / "photos" / name, **({"lossless": True} if "webp" in name else {}))
    (tmp_path / "photos" / "notes.txt").write_text("no photograph")
    assert sample("--input", "photos", "--out", "large") == 0
    made = sorted(str(path.relative_to(tmp_path / "large")) for path in (tmp_path / "large").rglob("*.*"))
    assert made == ["a.png", "trip/b.png", "trip/c.bmp.png", "trip/c.png.png"]
    for name in made:
        assert Image.open(tmp_path / "large" / name).size == (36, 24)
        assert psnr(tmp_path / "large" / name, pixels()) > 30
    said = capsys.readouterr()
    assert "4 of 4 files made, in large" in said.out and "1 .txt (notes.txt)" in said.err


def test_a_broken_file_is_named_and_the_others_are_made(sample, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "c.png"):
        Image.fromarray(pixels()).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "b.png").write_bytes((tmp_path / "photos" / "a.png").read_bytes()[:60])
    assert sample("--input", "photos", "--out", "large") == 1
    assert sorted(path.name for path in (tmp_path / "large").iterdir()) == ["a.png", "c.png"]
    said = capsys.readouterr()
    assert "1 of 3 files left out: photos/b.png cannot be decoded" in said.err and "2 of 3 files made" in said.out


def test_seeds_and_tiles(sample, tmp_path):
    Image.fromarray(pixels(20, 31)).save(tmp_path / "a.jpg")
    made = {}
    for name, words in {"one": [], "again": [], "tiled": ["--tile", 64], "other": ["--seed", 1]}.items():
        assert sample("--input", "a.jpg", "--out", name, *words) == 0
        made[name] = np.asarray(Image.open(tmp_path / name / "a.png")).astype(int)
    assert np.array_equal(made["one"], made["again"])
    assert np.abs(made["one"] - made["tiled"]).max() <= 1  # rounding
    assert 0 < np.abs(made["one"] - made["other"]).max() < 40


@pytest.mark.parametrize(
    "words, message",
    [
        (["--tile", 64], "--tile and --overlap say how the files of --input are cut"),
        (["--input", "a.png", "--overlap", 8], "give --input PATH and --tile"),
        (["--input", "a.png", "-n", 3], "leave out -n, --cond and --rollouts"),
        (["--input", "a.png", "--tile", 64, "--overlap", 64], "have fewer than 4 of their own"),
        (["--input", "a.png", "--kappa", 2], "this student was not told kappa"),
        (["--input", ""], "argument --input: is empty: give a file or a folder"),
        (["--input", "nowhere"], "nowhere is not a folder"),
        (["--input", "empty"], "empty holds no image that can be used"),
        (["--input", "a.png", "--out", "empty"], "empty exists already; give another place with --out"),
    ],
)
def test_wrong_words_are_one_sentence(sample, tmp_path, capsys, words, message):
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    assert sample("--out", "large", *words) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "large").exists()


def test_a_student_of_other_samples_reads_no_files(tmp_path, capsys):
    denoiser = Denoiser(MLP([2], width=8, depth=1), VarianceExploding(), "edm", 1.0)
    FewStepStudent(denoiser, [80.0], (2,)).save(tmp_path / "student")
    assert front.main(["sample", str(tmp_path / "student"), "--input", str(tmp_path)]) == 2
    assert "samples of this student are made for no files: leave it out" in capsys.readouterr().err


# Kinds of files


def test_a_turned_photograph_stands_as_viewers_show_it(sample, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(pixels()).save(tmp_path / "a.png", exif=exif)
    assert sample("--input", "a.png", "--out", "large") == 0
    assert (
        Image.open(tmp_path / "large" / "a.png").size == (24, 36)
        and not Image.open(tmp_path / "large" / "a.png").getexif()
    )
    assert psnr(tmp_path / "large" / "a.png", np.rot90(pixels(), -1).copy()) > 30


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_grey_stays_grey(sample, tmp_path, kind):
    grey = pixels(channels=1)
    Image.fromarray(grey.astype(kind) * (257 if kind is np.uint16 else 1)).save(tmp_path / "a.png")
    assert sample("--input", "a.png", "--out", "large") == 0
    assert Image.open(tmp_path / "large" / "a.png").mode == "L"
    assert psnr(tmp_path / "large" / "a.png", np.dstack([grey] * 3)) > 30


def test_transparency_is_enlarged_too(sample, tmp_path):
    image = pixels(channels=4)
    image[..., 3] = np.linspace(0, 255, 9).round()
    Image.fromarray(image).save(tmp_path / "a.png")
    image[..., 3] = 255
    Image.fromarray(image).save(tmp_path / "opaque.png")
    assert sample("--input", ".", "--out", "large") == 0
    assert Image.open(tmp_path / "large" / "opaque.png").mode == "RGB"
    made = Image.open(tmp_path / "large" / "a.png")
    opacity = np.asarray(made.getchannel("A"))
    assert made.mode == "RGBA" and opacity[:, 0].max() < 20 and opacity[:, -1].min() > 235


def test_over_white_a_transparent_picture_is_what_the_student_made():
    """But for rounding."""
    opacity = torch.linspace(0, 1, 9).repeat(6, 1)[None, None]
    alpha = enlarged(opacity, (24, 36))[0, 0].clamp(0, 1).numpy()[..., None]
    colours = np.random.default_rng(0).integers(0, 256, (24, 36, 3))
    made = (255 * (1 - alpha) + colours * alpha).round().astype(np.uint8)
    found = transparent(Image.fromarray(made), opacity)
    white = Image.alpha_composite(Image.new("RGBA", found.size, "white"), found).convert("RGB")
    assert np.abs(np.asarray(white).astype(int) - made).max() <= 2


def test_the_colour_profile_is_kept_where_it_still_holds(sample, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels()).save(tmp_path / "a.jpg", icc_profile=profile)
    Image.fromarray(pixels(channels=4), "CMYK").save(
        tmp_path / "b.jpg", icc_profile=profile[:16] + b"CMYK" + profile[20:]
    )
    assert sample("--input", ".", "--out", "large") == 0
    assert Image.open(tmp_path / "large" / "a.png").info["icc_profile"] == profile
    assert "icc_profile" not in Image.open(tmp_path / "large" / "b.png").info
    assert Image.open(tmp_path / "large" / "b.png").mode == "RGB"


# Memory


def test_what_needs_more_memory_than_there_is_asks_for_tiles(sample, tmp_path, monkeypatch, capsys):
    Image.fromarray(pixels(80, 90)).save(tmp_path / "a.png")
    monkeypatch.setattr(devices, "free", lambda device: 2_000_000)
    assert sample("--input", "a.png", "--out", "large") == 1
    said = capsys.readouterr().err
    assert "a.png needs about" in said and "and 0.002 GB are free: give --tile 512" in said
    assert sample("--input", "a.png", "--tile", 64, "--out", "large") == 0
    monkeypatch.setattr(devices, "free", lambda device: 500_000)
    assert sample("--input", "a.png", "--tile", 64, "--out", "other") == 1
    assert "a.png: 360 x 320 pixels need about 0.000922 GB" in capsys.readouterr().err


def test_no_more_tiles_are_made_at_once_than_there_is_room_for(monkeypatch):
    enlarger, low, calls = Enlarger(student(), SCALE, 0, None, 64, 16), torch.zeros(3, 20, 100), []
    own = enlarger.tiles
    enlarger.tiles = lambda low, corners, size: calls.append(len(corners)) or own(low, corners, size)
    with devices.Peak() as peak:
        own(low, [(0, 0)], (SCALE * 20, SCALE * 64))
    tile = peak.bytes * 64 * 64 // (SCALE**2 * 20 * 64)
    for room, most in ((1.5, 1), (3.5, 3), (100, 8)):
        monkeypatch.setattr(devices, "free", lambda device, room=room: max(int(room * tile), 8 * 80 * 400))
        calls.clear()
        enlarger.enlarge(low)
        assert max(calls[1:]) == most  # after the part that is probed


def test_a_device_without_room_for_one_tile_says_so():
    class Full(FewStepStudent):
        def forward(self, noise, cond=None, draw=None):
            raise torch.OutOfMemoryError

    own = student()
    full = Full(own.denoiser, own.times, own.event_shape, context=("low",), codec=own.codec)
    with pytest.raises(ValueError, match="a.jpg needs more memory than the device has: give a --tile smaller than 48"):
        Enlarger(full, SCALE, 0, None, 48, 8).enlarge(torch.zeros(3, 9, 30), "a.jpg")


def test_the_peak_of_memory_is_of_what_lives_at_once():
    with devices.Peak() as peak:
        x = torch.zeros(1000)
        for _ in range(5):
            x = x + 1  # the one before is let go
        x[:10].view(2, 5)
    assert peak.bytes == 2 * 4000


# Graphs


@pytest.mark.parametrize("scale, times", [(3, (0.99,)), (2, (0.99, 0.5))])
def test_a_graph_of_every_size(scale, times):
    """Batch, height and width are free; the graph gives photographs."""
    own = student(scale, times)
    shown = arguments(own, 3)
    graph = torch.export.export(Flat(own).eval(), shown, dynamic_shapes=free_sizes(own, *shown)).module()
    for num, larger in ((1, 0), (5, 3), (2, 6)):
        others = arguments(own, num, larger, seed=1)
        assert others[0].shape == (num, len(times), 3, scale * (5 + larger), scale * (5 + larger))
        torch.testing.assert_close(graph(*others), Flat(own)(*others), rtol=0, atol=1e-5)
    cond = {"low": others[1]}
    noise = others[0]
    torch.testing.assert_close(graph(*others), own.codec.decode(own(noise[:, 0], cond, lambda i: noise[:, i]), cond))


def test_weights_and_facts_in_one_file(folder, tmp_path, capsys):
    assert front.main(["export", str(folder), "--out", str(tmp_path / "student.safetensors")]) == 0
    assert "largest difference from the student 0.0e+00" in capsys.readouterr().out


def test_a_student_without_examples_is_not_exported(folder, tmp_path, capsys):
    plain = load_student(folder)
    plain.examples = {}
    plain.save(tmp_path / "student")
    assert front.main(["export", str(tmp_path / "student")]) == 2
    assert (
        "asked about low cannot be exported without examples in its folder: use its folder" in capsys.readouterr().err
    )


@pytest.mark.full
def test_the_graph_runs_elsewhere(folder, tmp_path, capsys):
    assert front.main(["export", str(folder), "--format", "onnx", "--out", str(tmp_path / "student.onnx")]) == 0
    assert "undecoded" not in capsys.readouterr().out


def test_files_are_read_as_in_training(tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    assert torch.equal(read(tmp_path / "a.png"), torch.from_numpy(pixels()).movedim(-1, 0).float() / 127.5 - 1)


def test_no_two_files_make_one(tmp_path):
    """A name that is kept whole may be the short one of another file, such as `a.jpg.bmp`."""
    for name in ("a.jpg", "a.webp", "a.jpg.bmp", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    asked = SimpleNamespace(suffixes=(".jpg", ".webp", ".bmp", ".png"), noun="image", ending=".png")
    targets = {file.name: str(target) for file, target in found(tmp_path, asked).items()}
    assert targets == {"a.jpg": "a.jpg.png", "a.webp": "a.webp.png", "a.jpg.bmp": "a.jpg.bmp.png", "b.png": "b.png"}


def test_tiles_that_are_too_small_for_some_photographs_are_refused_for_all():
    """Of 76 pixels, photographs 3 times larger and a patch of 4 leave 66 in the worst case."""
    Enlarger(student(3), 3, 0, None, tile=76, overlap=54)
    with pytest.raises(ValueError, match="have fewer than 12 of their own"):
        Enlarger(student(3), 3, 0, None, tile=76, overlap=55)
