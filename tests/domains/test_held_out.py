"""Validation never sees test data, a test never validation data; what both are, a finished run sees."""

import pytest
import torch
from helpers import Pairs, neural, trainer

from distillkit.methods.dmd import DMD
from domains.discrete.data import DigitData, TextData
from domains.image.data import Digits
from domains.protein.data import ProteinData
from domains.protein.folds import IdealFolds
from domains.threed import features as threed_features
from domains.threed.data import FeaturesData, StructureData
from domains.threed.solids import Solids
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
