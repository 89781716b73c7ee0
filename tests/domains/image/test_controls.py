"""Controls of images: numbers known by construction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from distillkit.codec import Codec
from distillkit.control.control import Asked
from domains.image.controls import CONTROLS, Brightness, Inpaint, Label, picture
from domains.image.data import Digits


class Other(Codec):
    """Not the identity."""


@pytest.fixture(scope="module")
def digits():
    data = Digits()
    data.setup()
    return data


def asked(data=None, shape=(1, 8, 8)):
    return Asked(shape, data=data)


def test_data_of_images_name_their_controls(digits):
    assert digits.controls is CONTROLS and list(CONTROLS) == ["brightness", "inpaint", "label"]


def test_brightness_is_the_mean_from_black_to_white():
    x = torch.stack([torch.full((1, 8, 8), value) for value in (-1.0, 0.0, 1.0, 3.0)]).requires_grad_()
    control = Brightness.read("0.25", asked())
    assert control.error(x, {}).tolist() == pytest.approx([0.25, 0.25, 0.75, 0.75])
    assert control.loss(x, {}).tolist() == pytest.approx([0.0625, 0.0625, 0.5625, 0.5625])
    control.loss(x, {}).sum().backward()
    slope = x.grad.flatten(1).mean(1)
    assert slope[1].item() == pytest.approx(2 * 0.25 / 2 / 64) and slope[3] == 0


def test_inpaint_compares_what_is_known(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    file = tmp_path / "at @ home.png"  # a name with the sign of the box
    Image.fromarray(levels).save(file)
    control = Inpaint.read(f"{file}@0,4,8,8", asked())
    target = torch.from_numpy(levels).float()[None] / 127.5 - 1
    assert torch.allclose(control.target, target, atol=1e-6)
    assert control.known[0, :4].all() and not control.known[0, 4:].any()
    x = torch.stack([target, target, target]).requires_grad_()
    changed = x + torch.stack([torch.zeros(1, 8, 8), torch.zeros(1, 8, 8), torch.full((1, 8, 8), 0.5)])
    changed = (
        changed
        + torch.cat([torch.zeros(1, 1, 4, 8), torch.ones(1, 1, 4, 8)], 2)
        * torch.tensor([0.0, 9, 0])[:, None, None, None]
    )
    assert control.loss(changed, {}).tolist() == pytest.approx([0, 0, 0.25], abs=1e-9)
    assert control.error(changed[2:], {}).item() == pytest.approx(0.5)
    control.loss(changed, {}).sum().backward()
    assert (x.grad[:, :, 4:] == 0).all() and (x.grad[2, :, :4] != 0).all()


def test_what_is_transparent_is_made_anew(tmp_path):
    levels = np.full((16, 16, 4), 255, np.uint8)
    levels[:, :8, 3] = 0
    Image.fromarray(levels).save(tmp_path / "half.png")
    target, known = picture(str(tmp_path / "half.png"), "", (3, 8, 8))
    assert target.shape == (3, 8, 8) and not known[0, :, :4].any() and known[0, :, 4:].all()


def test_label_is_the_likelihood_of_a_class(digits):
    batch = digits.test[torch.arange(50)]
    own, three = Label.read("", asked(digits)), Label.read("3", asked(digits))
    assert own.error(batch["data"], batch).mean() < 0.5  # nats; guessing has 2.3
    wrong = {"label": (batch["label"] + 1) % 10}
    assert own.error(batch["data"], wrong).mean() > 3 and own.loss(batch["data"], wrong).mean() > 3
    is_three = batch["label"] == 3
    assert three.loss(batch["data"], batch)[is_three].mean() < 0.5 < three.loss(batch["data"], batch)[~is_three].min()
    assert not torch.equal(own.loss(batch["data"], batch), own.error(batch["data"], batch))  # two classifiers
    assert torch.allclose(own.loss(batch["data"], batch), -digits.reward(batch["data"], batch))
    x = (torch.zeros(2, 1, 8, 8)).requires_grad_()
    three.loss(x, {"label": torch.zeros(2, dtype=torch.int64)}).sum().backward()
    assert x.grad.isfinite().all() and (x.grad != 0).any()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("brightness", "", "from 0 .black. to 1"),
        ("brightness", "nan", "from 0 .black. to 1"),
        ("label", "-1", "class from 0 to 9"),
        ("inpaint", "", "there is no picture"),
        ("inpaint", "FILE@1,2,3", "four numbers"),
        ("inpaint", "FILE@1,2,3,x", "four numbers"),
        ("inpaint", "FILE@5,0,5,8", "must lie in the picture"),
        ("inpaint", "FILE@0,0,8,8", "nothing of"),
        ("inpaint", "FILE", "all of"),
        ("inpaint", "TEXT@0,0,1,1", "cannot be decoded"),
    ],
)
def test_targets_without_sense_are_refused(name, text, said, tmp_path, digits):
    Image.new("L", (8, 8)).save(tmp_path / "f.png")
    (tmp_path / "t.png").write_text("no picture")
    text = text.replace("FILE", str(tmp_path / "f.png")).replace("TEXT", str(tmp_path / "t.png"))
    with pytest.raises(ValueError, match=said):
        CONTROLS[name].read(text, asked(digits))


def test_what_has_no_pixels_or_no_classifier_is_refused(digits):
    with pytest.raises(ValueError, match="decodes without gradients"):
        Brightness.read("0.5", Asked((1, 8, 8), Other()))
    with pytest.raises(ValueError, match="digits alone"):
        Label.read("1", asked(digits, (3, 32, 32)))
