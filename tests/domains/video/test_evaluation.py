"""Metrics of videos: motion against closed forms, evaluator, refusals, pictures and files."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from distillkit.evaluation.extractor import load_extractor, packed
from distillkit.evaluation.samples import Diverged
from domains.video import evaluation, features, media, ship
from domains.video.data import MovingDigits
from domains.video.motion import ROUNDING, change, flicker, spectrum


def wave(frequency, frames=16, amplitude=0.5):
    """A clip whose pixels all swing together."""
    swing = amplitude * torch.cos(2 * math.pi * frequency * torch.arange(frames, dtype=torch.float64) / frames)
    return swing[None, None, :, None, None].expand(1, 1, frames, 4, 4)


def test_change_and_flicker_in_closed_form():
    ramp = (0.1 * torch.arange(8, dtype=torch.float64))[None, None, :, None, None].expand(1, 1, 8, 3, 3)
    assert torch.allclose(change(ramp), torch.tensor(0.1, dtype=torch.float64)) and change(ramp).shape == (1, 7)
    assert flicker(ramp).item() == pytest.approx(0, abs=1e-9)
    alternating = ramp * 0 + 0.5 * (-1) ** torch.arange(8)[None, None, :, None, None]
    assert change(alternating).mean().item() == pytest.approx(1) and flicker(alternating).item() == pytest.approx(4)
    noise = torch.randn(20, 1, 200, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert flicker(noise).mean().item() == pytest.approx(3, rel=0.02)  # E (a - 2 b + c)^2 / E (a - b)^2 = 6 / 2
    flash = torch.zeros(1, 1, 9, 2, 2)
    flash[:, :, 4] = 1
    assert flicker(flash).item() == pytest.approx((6 / 7) / (2 / 8))
    still = torch.rand(2, 1, 1, 4, 4).expand(2, 1, 8, 4, 4)
    assert not change(still).any() and flicker(still).tolist() == [0, 0]


@pytest.mark.parametrize("frequency", [1, 3, 8])
def test_a_swing_has_its_power_at_its_frequency(frequency):
    """cos has the power T a^2 / 4 at its frequency, and T a^2 at the highest one.

    There its two halves fall together.
    """
    found, floor = spectrum(wave(frequency)), 10 * math.log10(ROUNDING)
    assert found.shape == (8,) and found.argmax() == frequency - 1
    expected = 16 * 0.25 / (1 if frequency == 8 else 4)
    assert found.max().item() == pytest.approx(10 * math.log10(expected))
    assert torch.allclose(found[torch.arange(8) != frequency - 1], torch.tensor(floor, dtype=torch.float64))


@pytest.fixture(scope="module")
def data():
    made = MovingDigits(train=60, val=200, test=120, given=1)
    made.setup()
    return made


@pytest.fixture(scope="module")
def real(data):
    """The metrics of test clips."""
    batch = data.test[torch.arange(120)]
    return batch, data.evaluator()(batch["data"], batch)


def test_the_shipped_classifier_is_used_and_told_of(data):
    described = data.evaluator().describe()
    assert described["features"]["name"] == "moving digits classifier" and len(described["features"]["sha256"]) == 64
    assert min(described["features"]["held_out_accuracy"].values()) > 0.9
    assert features.SHIPPED.stat().st_size < 1e6


def test_every_metric_has_a_direction_and_real_data_do_well(data, real):
    floor = data.evaluator().floor(120)
    assert floor == real[1] and set(floor) == set(data.evaluator().better)
    assert floor["class_agreement"] > 0.9 < floor["motion_agreement"]
    assert floor["motion_gap"] < 0.1 and floor["spectrum"] < 1.5
    assert floor["first_error"] < 0.01  # 8 bits
    assert all(math.isfinite(value) for value in floor.values())


def test_a_still_video_scores_badly(data, real):
    batch, good = real
    found = data.evaluator()(batch["data"][:, :, :1].expand_as(batch["data"]), batch)
    assert found["motion"] == 0 and found["flicker"] == 0 and found["motion_gap"] == pytest.approx(1, rel=1e-3)
    assert found["spectrum"] > 20 and found["frechet"] > 3 * good["frechet"]
    assert found["motion_agreement"] < 0.8  # two digits in a frame are a crossing, half a digit is a drift
    assert found["first_error"] == good["first_error"]


def test_frames_in_disorder_are_seen_though_each_is_real(data, real):
    batch, good = real
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    found = data.evaluator()(batch["data"][:, :, order], batch)
    assert found["frame_frechet"] == pytest.approx(good["frame_frechet"], rel=1e-3)
    assert found["frechet"] > 2 * good["frechet"] and found["flicker"] > 1.5 * good["flicker"]
    assert found["motion_gap"] > 0.2 and found["spectrum"] > 3


def test_other_speeds_noise_and_blur_are_seen(data, real):
    batch, good = real
    evaluator, x = data.evaluator(), batch["data"]
    slow = torch.cat([x[:, :, :8].repeat_interleave(2, 2)], 2)
    assert evaluator(slow, batch)["motion"] < 0.7 * good["motion"]
    noisy = (x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    found = evaluator(noisy, batch)
    assert found["flicker"] > 1.2 * good["flicker"] and found["frame_frechet"] > 2 * good["frame_frechet"]
    assert found["frechet"] > 2 * good["frechet"] and found["spectrum"] > 2
    faint = evaluator(x * 0.5 - 0.5, batch)
    assert faint["motion"] == pytest.approx(0.5 * good["motion"], rel=0.02) and faint["frechet"] > good["frechet"]


def test_collapse_wrong_classes_and_copies_are_seen(data, real):
    batch, good = real
    evaluator = data.evaluator()
    one = evaluator(batch["data"][:1].expand_as(batch["data"]), batch)
    assert one["coverage"] < 0.1 and one["frechet"] > 3 * good["frechet"] and one["class_agreement"] < 0.2
    wrong = {name: (batch[name] + 1) % num for name, num in data.classes.items()}
    found = evaluator(batch["data"], wrong)
    assert found["class_agreement"] < 0.1 > found["motion_agreement"] and "first_error" not in found
    train = data.train[torch.arange(60)]
    assert evaluator(train["data"], {})["nearest_train"] < 0.01 * good["nearest_train"]


def test_what_is_no_sample_is_refused(data, real):
    evaluator, x = data.evaluator(), real[0]["data"][:4].clone()
    x[:3, 0, 5] = torch.nan
    with pytest.raises(Diverged, match="3 of 4 samples hold NaN"):
        evaluator(x, {})
    with pytest.raises(ValueError, match="give samples in data space"):
        evaluator(torch.zeros(4, 1, 16, 16), {})


def test_without_classes_parts_of_the_clip_are_compared(real):
    train, val, test = MovingDigits(train=20, val=40, test=40).load()
    evaluator = evaluation.VideoEvaluator(train, [val, test], {})
    floor = evaluator.floor(40)
    assert set(floor) < set(evaluator.better) and "class_agreement" not in floor
    still = evaluator(test.tensors["data"][:, :, :1].expand_as(test.tensors["data"]), {})
    assert still["frechet"] > 2 * floor["frechet"]
    assert evaluator.describe()["features"]["name"].startswith("averages")


def test_a_classifier_is_fitted_where_the_shipped_one_cannot_read(monkeypatch):
    monkeypatch.setattr(features, "STEPS", 2)
    train, val, test = MovingDigits(train=40, val=10, test=10).load()
    evaluator = evaluation.VideoEvaluator(train, [val, test], {"label": 10})
    before = torch.random.get_rng_state()
    with torch.inference_mode():
        facts = evaluator.describe()["features"]
    assert "fitted to the training data" in facts["name"] and set(facts["held_out_accuracy"]) == {"label"}
    assert torch.equal(before, torch.random.get_rng_state())


def test_weights_come_back_and_the_command_writes_them(tmp_path, monkeypatch):
    net = features.Classifier(3, {"label": 4}, size=32)
    (tmp_path / "c.safetensors").write_bytes(packed(net))
    again = load_extractor(features.Classifier, tmp_path / "c.safetensors")
    x = torch.randn(2, 3, 8, 32, 32)
    assert torch.equal(again.clip(again.frames(x)), net.eval().clip(net.frames(x)))
    assert again.clip(again.frames(x)).shape == (2, 128)
    with pytest.raises(ValueError, match="python -m domains.video.ship --out"):
        load_extractor(features.Classifier, tmp_path / "none.safetensors")
    original = MovingDigits.__init__
    monkeypatch.setattr(MovingDigits, "__init__", lambda self: original(self, train=40, val=10, test=10))
    ship.main(["--out", str(tmp_path / "made"), "--steps", "2"])
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["README.md", "model.safetensors"]
    assert "--steps 2 --seed 0" in (tmp_path / "made" / "README.md").read_text()


# ---- pictures


def test_pictures_are_strips_of_frames():
    x = torch.linspace(-1, 1, 16)[None, None, :, None, None].expand(3, 1, 16, 16, 16)
    image = media.picture(x)
    assert image.size == (16 * (32 + media.GAP), 3 * (32 + media.GAP))
    line = np.asarray(image)[10, 16 :: 32 + media.GAP, 0]
    assert line.tolist() == [round(255 * k / 15) for k in range(16)]
    long = media.picture(torch.zeros(1, 3, 40, 64, 64))
    assert long.size == (media.WIDEST * (64 + media.GAP), 64 + media.GAP)
    sheet = media.compare({"teacher": x, "student": x * torch.nan}, clips=2)
    assert sheet.height == 4 * (32 + media.GAP) and sheet.width > image.width
    with pytest.raises(ValueError, match=r"N, C, T, H, W\]"):
        media.picture(torch.zeros(3, 1, 16, 16))


def test_files_hold_the_clips(tmp_path, real):
    x = real[0]["data"][:5]
    frames = media.grid(x)
    assert len(frames) == 16 and frames[0].shape == (2 * (96 + media.GAP), 4 * (96 + media.GAP), 3)
    av = pytest.importorskip("av")
    paths = media.save(x, {}, tmp_path)
    assert [path.name for path in paths] == ["clips.gif", "clips.mp4"]
    with Image.open(paths[0]) as moving:
        assert moving.n_frames == 16 and moving.info["duration"] == 120 and moving.info["loop"] == 0
        shown = []
        for k in range(16):
            moving.seek(k)
            shown.append(np.asarray(moving.convert("RGB"), float))
    assert np.abs(np.stack(shown) - np.stack(frames)).mean() < 3
    with av.open(str(paths[1])) as container:
        assert float(container.streams.video[0].average_rate) == media.FPS
        shown = [frame.to_ndarray(format="rgb24").astype(float) for frame in container.decode(video=0)]
    assert len(shown) == 16 and np.abs(np.stack(shown) - np.stack(frames)).mean() < 3


def test_odd_sizes_are_padded_and_without_pyav_there_is_a_gif(tmp_path, monkeypatch):
    x = torch.zeros(1, 3, 4, 99, 99)
    frame = media.grid(x)[0]
    assert frame.shape == (102, 102, 3) and (frame[:99, :99] == 128).all() and (frame[101] == media.GREY).all()
    monkeypatch.setitem(sys.modules, "av", None)
    assert [path.name for path in media.save(x, {}, tmp_path)] == ["clips.gif"]


def test_a_run_shows_its_clips_moving(tmp_path, real):
    """`finish` leaves strips, a moving picture of each set and the student's files."""
    from distillkit.callbacks.finish import _show

    def generate(num, cond, seed, *rest, **options):
        return real[0]["data"][:num]

    teacher = SimpleNamespace(
        condition=lambda batch: {}, generate=generate, few_step_choices=lambda num: [(None, None)] * 2
    )
    student = SimpleNamespace(num_steps=4, sample=generate)
    held_out = {"data": real[0]["data"][5:10]}
    data = SimpleNamespace(pictured=5, conditions=lambda num: {}, real=lambda num: held_out, media=media)
    _show(data, teacher, student, tmp_path, "student", 0, 1.0)
    for name in ("student", "teacher_best", "teacher_same_steps", "real"):
        with Image.open(tmp_path / "samples" / f"{name}.gif") as moving:
            assert moving.n_frames == 16 and moving.size == (4 * (96 + media.GAP), 2 * (96 + media.GAP))
        assert (tmp_path / "samples" / f"{name}.png").is_file()
    assert (tmp_path / "samples" / "clips.gif").is_file() and (tmp_path / "student" / "samples.png").is_file()
