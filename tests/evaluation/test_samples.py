"""The evaluators' shared functions: refusals, rounding, and the choice of items."""

import pytest
import torch

from distillkit.data import TensorData
from distillkit.evaluation.samples import (
    OUTSIDE,
    Diverged,
    batches,
    beyond,
    check,
    check_finite,
    eight_bits,
    out_of_range,
    spread,
)


def test_samples_of_another_shape_are_refused():
    check(torch.zeros(3, 2, 4), (2, 4))
    for shape in ((3, 2, 5), (3, 8), (2, 4)):
        with pytest.raises(ValueError, match=r"but this data has \[2, 4\]; give samples in data space"):
            check(torch.zeros(shape), (2, 4))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_samples_that_are_no_numbers_are_refused(value):
    x = torch.zeros(5, 2, 3)
    x[1, 0, 2] = x[1, 1, 0] = x[4, 1, 1] = value
    for refuse in (lambda: check(x, (2, 3)), lambda: check_finite(x)):
        with pytest.raises(Diverged, match="^2 of 5 samples hold NaN or infinity, so their model"):
            refuse()


def test_eight_bits():
    assert eight_bits(torch.tensor([-3.0, -1.0, 1.0, 2.0])).tolist() == [-1, -1, 1, 1]
    levels = eight_bits(torch.linspace(-1, 1, 10_000))
    assert len(levels.unique()) == 256


def test_how_far_values_lie_out_of_range():
    """In widths of the range, of which the first twentieth does not count."""
    near = out_of_range(torch.tensor([[-1.2, -1.05], [1.05, 1.2]]))
    assert near == {"outside": 0.5, "outside_by": pytest.approx(0.1)} and near.keys() == OUTSIDE.keys()
    wreck = out_of_range(torch.tensor([4.0, -4.0, 0.5, 4.0]))
    assert wreck == {"outside": 0.75, "outside_by": pytest.approx(1.5)}
    assert out_of_range(torch.linspace(-1.09, 1.09, 9)) == {"outside": 0, "outside_by": 0}
    assert beyond(torch.tensor([-3.0, 0.0, 2.0, 4.0]), 0.0, 10.0) == {"outside": 0.5, "outside_by": pytest.approx(0.3)}


def test_what_is_looked_at_is_spread_evenly():
    assert spread(5, 48).tolist() == [0, 1, 2, 3, 4] and spread(1, 3).tolist() == [0]
    rows = spread(1000, 48).tolist()
    assert len(set(rows)) == 48 and rows == sorted(rows) and (rows[0], rows[-1]) == (0, 999)
    assert {b - a for a, b in zip(rows, rows[1:], strict=False)} <= {21, 22}


def test_batches_go_through_the_data_in_order():
    data = TensorData({"data": torch.arange(10)})
    assert [batch["data"].tolist() for batch in batches(data, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [batch["data"].tolist() for batch in batches(data, 2, 3)] == [[0, 4], [9]]
    assert [batch["data"].tolist() for batch in batches(data, 8, 99)] == [[*range(8)], [8, 9]]
