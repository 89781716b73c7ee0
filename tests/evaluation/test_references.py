"""Which held-out sample a generated one is compared with."""

import pytest
import torch
from mutations import Mutation, prove

from distillkit.data import TensorData
from distillkit.evaluation import references
from distillkit.evaluation.references import References


def made(*observed: int, first: float = 0.0) -> TensorData:
    """Samples that count from `first`, by their observations."""
    data = torch.arange(len(observed)).float()[:, None] + first
    return TensorData({"data": data, "seen": torch.tensor(observed).float()[:, None]})


def whole(observation: torch.Tensor) -> torch.Tensor:
    return observation.round().int()


def found(held_out: list, *observed: float) -> list[float]:
    """The samples of the observations."""
    asked = References(held_out, "seen", whole)
    return asked.samples(asked.rows(torch.tensor(observed)[:, None])).flatten().tolist()


def check_order() -> None:
    """In any order, in either data set, after rounding."""
    held_out = [made(7, 8, 9), made(4, 5, first=10)]
    assert found(held_out, 5, 7, 9.2, 4, 4, 8) == [11, 0, 2, 10, 10, 1]


def check_turns() -> None:
    """Samples of one observation, also of two data sets, take turns."""
    held_out = [made(7, 7, 8), made(7, first=10)]
    assert found(held_out, 7, 8, 7, 7, 7, 8) == [0, 2, 1, 10, 0, 2]


def test_samples_are_known_by_their_observations():
    check_order()


def test_samples_of_one_observation_take_turns():
    check_turns()


def test_observations_are_compared_as_they_are_by_default():
    asked = References([made(7, 8)], "seen")
    assert asked.rows(torch.tensor([[8.0]])) == [(0, 1)]
    with pytest.raises(ValueError, match="none for sample 0"):
        asked.rows(torch.tensor([[8.001]]))


def test_observations_of_another_shape_are_other_ones():
    asked = References([TensorData({"data": torch.zeros(1, 1), "seen": torch.zeros(1, 2, 3)})], "seen", whole)
    assert asked.rows(torch.zeros(1, 2, 3)) == [(0, 0)]
    with pytest.raises(ValueError, match="none for sample 0"):
        asked.rows(torch.zeros(1, 3, 2))


def test_an_unknown_observation_is_refused():
    with pytest.raises(ValueError, match="there is none for sample 1: evaluate with the data that it was made for"):
        found([made(7, 8)], 7, 9)


def test_the_data_are_read_once_in_parts(monkeypatch):
    monkeypatch.setattr(references, "READ", 2)
    data, read = made(*range(5)), []
    monkeypatch.setattr(TensorData, "__getitem__", lambda self, rows: read.append(len(rows)) or {"seen": rows[:, None]})
    asked = References([data], "seen", whole)
    assert asked.rows(torch.tensor([[4], [0]])) == asked.rows(torch.tensor([[4.0], [0.0]])) == [(0, 4), (0, 0)]
    assert read == [2, 2, 1]


FAULTS = [
    ("the order lost", References.batch, "for row in rows), strict", "for row in sorted(rows)), strict", check_order),
    ("the first data set alone", References.batch, "self.held_out[number]", "self.held_out[0]", check_order),
    ("no turns", References.rows, "asked[key] % len(known)", "0", check_turns),
    ("the last alone", References.rows, "asked[key] % len(known)", "-1", check_turns),
]


@pytest.mark.parametrize("fault", [Mutation(*fault) for fault in FAULTS], ids=str)
def test_faults_are_noticed(fault):
    prove(fault)
