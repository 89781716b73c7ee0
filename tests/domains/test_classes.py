"""The number of classes is said once and checked for every method; unused classes are named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Pairs
from PIL import Image

from distillkit import runs
from distillkit.cli import front
from distillkit.data import TensorData

PRETRAIN = ["domain=image", "method=pretrain", "network.channels=8", "trainer.max_steps=1", "~vars.callbacks.finish"]
PRETRAIN += ["trainer.limit_val_batches=0"]  # of which there are too many for a step


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Three class folders of four small images, and the same as an .npz file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(runs.OUT, "")
    monkeypatch.delenv(runs.OUT)
    rng = np.random.RandomState(0)
    images = rng.randint(0, 256, (12, 8, 8), np.uint8)
    for i, image in enumerate(images):
        home = tmp_path / "images" / "abc"[i % 3]
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(home / f"{i}.png")
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(12) % 3)


FOLDER = ["data=image_folder", "data.path=images", "data.resolution=8", "data.channels=1", "data.batch_size=2"]
FILE = ["data=npz", "data.path=images.npz", "vars.event_shape=[1,8,8]", "data.batch_size=2"]


@pytest.mark.parametrize("source", [FOLDER, FILE], ids=["folder", "npz"])
@pytest.mark.parametrize("said", [1, 2, 7])
def test_another_number_of_classes_is_refused_before_training(pictures, capsys, tmp_path, source, said):
    assert front.main(["fit", *PRETRAIN, *source, f"vars.classes.label={said}"]) == 2
    error = f"error: this run counts on {said} classes of 'label', the data have 3: say vars.classes.label=3\n"
    assert capsys.readouterr().err == error
    assert not (tmp_path / "runs").exists()


def test_classes_that_are_not_there(pictures, capsys):
    for path in list((Path("images")).rglob("*.png")):
        path.rename(Path("images") / path.name)
    assert front.main(["fit", *PRETRAIN, *FOLDER, "vars.classes.label=3"]) == 2
    assert "3 classes of 'label', the data have none: say ~vars.classes.label" in capsys.readouterr().err


def test_labels_that_are_not_used_are_spoken_of(pictures, capsys):
    said = (
        "the data have 3 classes of 'label', which this run does not use: say vars.classes.label=3 to train with them"
    )
    assert front.main(["fit", *PRETRAIN, *FOLDER, "vars.callbacks.watch.samples=0"]) == 0
    assert f"warning: {said}\n" in capsys.readouterr().err
    assert front.main(["fit", *PRETRAIN, *FOLDER, "vars.classes.label=3", "vars.callbacks.watch.samples=0"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_a_student_needs_its_teachers_classes(pictures, capsys):
    assert front.main(["fit", "domain=image", "method=sid", *FOLDER]) == 2
    assert "the teacher knows 10 classes of 'label', the data have 3: choose a teacher" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [2, -1])
def test_a_class_out_of_range_is_found_when_data_are_loaded(wrong):
    class Mislabelled(Pairs):
        def load(self):
            parts = super().load()
            label = parts[0].tensors["label"].clone()
            label[5] = wrong
            return parts[0], parts[1], TensorData({"data": torch.zeros(48, 2), "label": label})

    with pytest.raises(ValueError, match=f"the data say they have 2 classes of 'label', but hold class {wrong}"):
        Mislabelled(batch_size=8).setup()
