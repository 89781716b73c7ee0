"""No part of the data holds an item of another; validation and test never see each other's."""

import itertools

import numpy as np
import pytest
import torch
from helpers import Pairs, neural, trainer
from PIL import Image

from distillkit.methods.dmd import DMD
from domains.discrete.data import DigitData, TextData, WorldData
from domains.discrete.teacher import Countdown
from domains.image.data import Digits, ImageFolder, NpzImages
from domains.protein.data import ProteinData
from domains.protein.folds import IdealFolds
from domains.threed import features as threed_features
from domains.threed.data import FeaturesData, StructureData
from domains.threed.solids import Solids
from domains.toy.data import ToyData
from domains.toy.teacher import Circle, Gaussian
from domains.video import features as video_features
from domains.video.data import MovingDigits

FEW = {"train": 24, "val": 12, "test": 12}
SOURCES = {
    "digits": Digits,
    "digit tokens": DigitData,
    "text": TextData,
    "video": lambda: MovingDigits(**FEW),
    "continuation": lambda: MovingDigits(given=4, **FEW),
    "structure": lambda: StructureData(Solids(**FEW)),
    "features": lambda: FeaturesData(Solids(**FEW)),
    "protein": lambda: ProteinData(IdealFolds(**FEW)),
}


# Parts of one size: two that are drawn by the same generator would be equal.
ALIKE = {"train": 12, "val": 12, "test": 12}
DISTINCT = {
    "gaussian": lambda: ToyData(Gaussian(), num_samples=5000),
    "circle": lambda: ToyData(Circle(labelled=True), num_samples=5000),
    "countdown": lambda: WorldData(Countdown(), num_samples=1000),
    "digits": Digits,  # as bits some of them are equal, so tokens are not asked
    "text": TextData,
    "video": lambda: MovingDigits(**ALIKE),
    "structure": lambda: StructureData(Solids(**ALIKE)),
    "features": lambda: FeaturesData(Solids(**ALIKE)),
    "protein": lambda: ProteinData(IdealFolds(**ALIKE)),
    "npz": lambda: NpzImages("images.npz", val=0.3, test=0.3),
    "image folder": lambda: ImageFolder("images", resolution=8, channels=1, val=0.3, test=0.3),
}


@pytest.mark.parametrize("source", DISTINCT)
def test_no_item_lies_in_two_parts(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.random.RandomState(0).randint(0, 256, (40, 8, 8), np.uint8)
    np.savez("images.npz", images=images)
    (tmp_path / "images").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    data = DISTINCT[source]()
    data.setup()
    rows = {part: items(getattr(data, part)) for part in ("train", "val", "test")}
    for part, own in rows.items():
        assert len(set(own)) == len(own) > 1, f"{part} holds an item twice"
    for one, other in itertools.combinations(rows, 2):
        assert not set(rows[one]) & set(rows[other]), f"{one} and {other} share items"


def items(part) -> list[bytes]:
    """The items' data as keys."""
    return [row.numpy().tobytes() for row in part[torch.arange(len(part))]["data"]]


@pytest.fixture(autouse=True)
def _quickly_fitted(monkeypatch):
    """A classifier that has to be fitted to so few data is no good, and need not be."""
    for features in (video_features, threed_features):
        monkeypatch.setattr(features, "STEPS", 1)


class Untouchable:
    """Data that nobody may look at."""

    def __getattr__(self, name):
        raise AssertionError("held-out data of the other part were touched")

    __len__ = __getitem__ = __getattr__


@pytest.mark.parametrize("source", SOURCES)
def test_each_part_is_measured_by_itself(source):
    data, found = SOURCES[source](), {}
    data.setup()
    val, test = data.val, data.test
    batch = data.train[torch.arange(12)]
    for part, other in (("val", "test"), ("test", "val")):
        data.val, data.test = val, test
        setattr(data, other, Untouchable())
        found[part] = data.evaluator(part)(batch["data"], batch)
    headline = data.evaluator("val").headline
    assert found["val"][headline] != found["test"][headline]
    data.val, data.test = val, test
    assert data.evaluator() is data.evaluator() is not data.evaluator("val")
    assert data.evaluator("val") is data.evaluator("val") is not data.evaluator("test")


class Told(Pairs):
    """Its evaluator says which data it was given."""

    def load(self):
        made, _, _ = super().load()
        return made, super().load()[0], super().load()[0]

    def build_evaluator(self, held_out):
        which = [self.val, self.test].index(held_out[0]) if len(held_out) == 1 else 2
        return lambda samples, cond: {"which": float(which)}


def test_the_verbs_measure_against_different_data():
    run, data = trainer(2, limit_val_batches=1), Told(batch_size=8)
    model = DMD(neural())
    assert run.validate(model, data, verbose=False) == [{"val/which": 0.0}]
    assert run.test(model, data, verbose=False) == [{"test/which": 1.0}]
