"""Controls of clips: numbers known by construction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from distillkit.control.control import Asked
from domains.video.controls import CONTROLS, Inpaint, Intensity, Label, Loop
from domains.video.data import MovingDigits

SHAPE = (1, 16, 16, 16)


@pytest.fixture(scope="module")
def clips():
    data = MovingDigits(2, 2, 30)
    data.setup()
    return data


def asked(data=None):
    return Asked(SHAPE, data=data)


def grey(*levels):
    """A clip whose frames have these brightnesses, [1, 1, 16, 16, 16]."""
    return (2 * torch.tensor(levels) - 1)[None, None, :, None, None].expand(1, *SHAPE).clone()


def test_data_of_clips_name_their_controls(clips):
    assert clips.controls is CONTROLS and list(CONTROLS) == ["intensity", "loop", "inpaint", "label"]


def test_intensity_is_the_brightness_of_each_frame():
    ramp = torch.linspace(0.1, 0.4, 16)
    control, still = Intensity.read("ramp:0.1:0.4", asked()), Intensity.read("0.1", asked())
    x = grey(*ramp.tolist()).requires_grad_()
    assert control.error(x, {}).item() < 1e-6
    assert still.error(x, {}).item() == pytest.approx((ramp - 0.1).square().mean().sqrt().item(), abs=1e-6)
    still.loss(x, {}).sum().backward()
    slope = x.grad[0, 0].mean((1, 2))
    assert torch.allclose(slope, 2 * (ramp - 0.1) / 16 / 2 / 256, atol=1e-8)
    curves = control.curves(x, {})
    assert list(curves) == ["target", "achieved"] and torch.allclose(*curves.values(), atol=1e-6)
    assert control.seconds == 15 / 8


def test_a_loop_ends_as_it_begins():
    control = Loop.read("", asked())
    assert control.error(grey(*[0.3, *[0.9] * 14, 0.3]), {}).item() < 1e-6
    assert control.error(grey(*[0.3, *[0.3] * 14, 0.8]), {}).item() == pytest.approx(1.0, abs=1e-6)


def test_inpaint_compares_one_frame(tmp_path):
    Image.fromarray(np.full((32, 32), 255, np.uint8)).save(tmp_path / "white.png")
    first, last = (Inpaint.read(f"{tmp_path / 'white.png'}{at}", asked()) for at in ("", "@15"))
    x = grey(*[1.0, *[0.0] * 14, 0.5])
    assert first.error(x, {}).item() == 0 and last.error(x, {}).item() == pytest.approx(1.0)


def test_label_is_the_likelihood_of_a_digit(clips):
    batch = clips.test[torch.arange(30)]
    right, wrong = batch, {"label": (batch["label"] + 1) % 10}
    control = Label.read("", asked(clips))
    assert control.loss(batch["data"], right).mean() < 1 < 3 < control.loss(batch["data"], wrong).mean()
    fixed = Label.read("4", asked(clips)).loss(batch["data"], right)
    assert fixed[batch["label"] == 4].mean() < 1 < 3 < fixed[batch["label"] != 4].mean()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("intensity", "ramp:0.1", "ramp:FIRST:LAST"),
        ("intensity", "0.1:0.2", "ramp:FIRST:LAST"),
        ("intensity", "ramp:0:x", "from 0 .black. to 1"),
        ("loop", "2", "takes no target"),
        ("inpaint", "none.png", "there is no picture"),
        ("inpaint", "FILE@16", "from 0 to 15"),
        ("label", "10", "from 0 to 9"),
    ],
)
def test_targets_without_sense_are_refused(name, text, said, tmp_path, clips):
    Image.new("L", (8, 8)).save(tmp_path / "f.png")
    with pytest.raises(ValueError, match=said):
        CONTROLS[name].read(text.replace("FILE", str(tmp_path / "f.png")), asked(clips))
