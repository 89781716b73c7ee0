"""Every metric that says which way is good calls noise worse than real data, in every domain."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from domains.discrete.data import DigitData, TextData, WorldData
from domains.discrete.teacher import Countdown, Potts
from domains.image.data import Digits
from domains.protein.data import ProteinData
from domains.protein.folds import IdealFolds
from domains.threed.data import FeaturesData, StructureData
from domains.threed.solids import Solids
from domains.toy.data import ToyData
from domains.toy.teacher import Circle, Gaussian
from domains.video.data import MovingDigits

FEW = {"train": 60, "val": 40, "test": 40}
NUM = 40
SOURCES = {
    "gaussian": lambda: ToyData(Gaussian()),
    "circle": lambda: ToyData(Circle(labelled=True)),
    "digits": Digits,
    "digit tokens": DigitData,
    "text": TextData,
    "countdown": lambda: WorldData(Countdown(), num_samples=50),
    "potts": lambda: WorldData(Potts(), num_samples=50),
    "video": lambda: MovingDigits(given=4, **FEW),
    "structure": lambda: StructureData(Solids(**FEW)),
    "features": lambda: FeaturesData(Solids(**FEW)),
    "protein": lambda: ProteinData(IdealFolds(**FEW)),
}
# Metrics that noise does not harm: it reaches all modes, its surfaces are closed, its chains turn
# neither way, its tokens are tokens.
SPARED = {
    "circle": {"modes_found"},
    "structure": {"watertight"},
    "features": {"watertight"},
    "protein": {"left_helix"},
    "digit tokens": {"outside", "outside_by"},
}


@dataclass
class Measured:
    """A domain's evaluator, real samples, their conditions, metrics of noise and of real data."""

    evaluator: Any
    samples: Tensor
    cond: dict[str, Tensor]
    noise: dict[str, float]
    real: dict[str, float]


@pytest.fixture(scope="module")
def measured():
    """Measures a source once."""
    known: dict[str, Measured] = {}
    return lambda source: known.get(source) or known.setdefault(source, measure(SOURCES[source]()))


def measure(data: Any) -> Measured:
    data.setup()
    evaluator, cond = data.evaluator(), data.test[torch.arange(NUM)]
    samples, generator = cond.pop("data"), torch.Generator().manual_seed(0)
    if samples.is_floating_point():
        noise = 3 * torch.randn(samples.shape, generator=generator, dtype=samples.dtype)
    else:
        noise = torch.randint(data.num_tokens, samples.shape, generator=generator)
    found, floor = evaluator(noise, cond), evaluator.floor(NUM)
    if hasattr(evaluator, "paired"):
        found |= evaluator.paired(noise, samples, cond)
        floor |= evaluator.paired(samples, samples, cond)
    return Measured(evaluator, samples, cond, found, floor)


def worse(evaluator: Any, name: str, value: float, real: float) -> bool:
    return {"lower": value > real, "higher": value < real}[evaluator.better[name]]


@pytest.mark.parametrize("source", SOURCES)
def test_noise_is_worse_than_real_data(source, measured):
    m = measured(source)
    assert set(m.noise) == set(m.real) == set(m.evaluator.better)
    directed = {name for name, better in m.evaluator.better.items() if better != "target"}
    wrong = [name for name in directed if not worse(m.evaluator, name, m.noise[name], m.real[name])]
    assert set(wrong) == SPARED.get(source, set()), {name: (m.noise[name], m.real[name]) for name in wrong}


@pytest.mark.parametrize("source", ["digits", "video", "structure", "features"])
def test_how_far_noise_lies_out_of_the_range_is_measured_before_it_is_cut(source, measured):
    """Of 3 N(0, 1): the share P(|x| > 1.1), and half of E[|x| - 1 | |x| > 1.1]."""
    m, law, edge = measured(source), torch.distributions.Normal(0.0, 1.0), torch.tensor(1.1 / 3)
    share = 2 * (1 - law.cdf(edge))
    by = (3 * 2 * law.log_prob(edge).exp() / share - 1) / 2
    assert m.noise["outside"] == pytest.approx(float(share), rel=0.05)
    assert m.noise["outside_by"] == pytest.approx(float(by), rel=0.05)


def test_a_sampler_that_has_collapsed_finds_one_mode(measured):
    m = measured("circle")
    found = m.evaluator(m.samples[:1].repeat(NUM, 1), m.cond)["modes_found"]
    assert found == 1 and worse(m.evaluator, "modes_found", found, m.real["modes_found"])


@pytest.mark.parametrize("source", ["structure", "features"])
def test_a_shape_that_is_nothing_is_not_closed(source, measured):
    m = measured(source)
    nothing = -torch.ones_like(m.samples) if source == "structure" else torch.ones_like(m.samples)
    assert worse(m.evaluator, "watertight", m.evaluator(nothing, m.cond)["watertight"], m.real["watertight"])


def test_mirrored_chains_turn_the_wrong_way(measured):
    m = measured("protein")
    assert worse(m.evaluator, "left_helix", m.evaluator(-m.samples, m.cond)["left_helix"], m.real["left_helix"])


def test_novelty_of_real_chains_is_that_of_chains_that_nobody_trained_on():
    data = ProteinData(IdealFolds(train=60, val=20, test=20))
    data.setup()
    evaluator, name = data.evaluator(), "gapless_novelty_tm"
    parts = [part[torch.arange(20)] for part in (data.val, data.test)]
    unseen = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    trained = data.train[torch.arange(40)]
    floor = evaluator.floor(40)[name]
    assert floor == pytest.approx(evaluator(unseen["data"], unseen)[name]) and floor < 0.99
    assert evaluator(trained["data"], trained)[name] == pytest.approx(1, abs=1e-3)  # a chain is its own nearest
