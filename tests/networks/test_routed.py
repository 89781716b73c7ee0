"""Several networks as one: the part that answers for a row, and the part that learns from it."""

import copy

import pytest
import torch
from helpers import wake
from torch import nn

from distillkit import load_student
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import VarianceExploding
from distillkit.networks.adapters import Adapters, TeacherBase
from distillkit.networks.mlp import MLP
from distillkit.networks.pair_transformer import PairTransformer
from distillkit.networks.routed import Routed, dispatch
from distillkit.spec import from_spec, to_spec
from distillkit.students.few_step import FewStepStudent
from domains.image.teacher import Digits

KINDS = {"label": {"by": "label", "owner": [0, 2, 1, 2]}, "time": {"by": "time", "edges": [0.7, 0.3]}}


def parts(num=3):
    return [wake(MLP([3], 16, 2, {"label": 4}), seed) for seed in range(num)]


def batch():
    """Seven rows: all classes and the null class, times on both sides of the edges and on them."""
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    time = torch.tensor([0.3, 0.9, 0.5, 0.7, 0.1, 1.0, 0.31])
    return x, time, {"label": torch.tensor([3, 0, 4, 1, 2, 4, 1])}


EXPECTED = {"label": [2, 0, 0, 2, 1, 0, 2], "time": [2, 0, 1, 1, 2, 0, 1]}  # a time on an edge belongs below it


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_every_row_belongs_to_one_part(kind, dtype):
    x, time, cond = batch()
    if dtype == torch.float64:
        time = torch.tensor([0.3, 0.9, 0.5, 0.7, 0.1, 1.0, 0.31], dtype=dtype)
    network = Routed(parts(), **KINDS[kind])
    assert network.index(time, cond).tolist() == EXPECTED[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["forward", "features"])
def test_rows_are_those_of_their_part_bit_for_bit(kind, what):
    inputs, network = batch(), Routed(parts(), **KINDS[kind])
    found = getattr(network, what)(*inputs)
    index = torch.tensor(EXPECTED[kind])
    for k, part in enumerate(network.parts):
        x, time, cond = inputs
        own = index == k
        expected = getattr(part, what)(x[own], time[own], {"label": cond["label"][own]})
        assert len(expected) and torch.equal(found[own], expected)
        alone = getattr(network, what)(x[own], time[own], {"label": cond["label"][own]})
        assert torch.equal(alone, expected)


def test_each_part_is_called_once_and_only_with_rows():
    calls = []
    made = [lambda x, k=k: calls.append((k, x.tolist())) or 10.0 * (k + 1) + x for k in range(4)]
    out = dispatch(made, torch.tensor([3, 1, 3, 1, 0]), torch.arange(5.0))
    assert calls == [(0, [4.0]), (1, [1.0, 3.0]), (3, [0.0, 2.0])]
    assert out.tolist() == [40.0, 21.0, 42.0, 23.0, 14.0]
    both = dispatch(
        [lambda x, d: [x, d["y"]], lambda x, d: [-x, -d["y"]]],
        torch.tensor([1, 0]),
        *[torch.ones(2)] * 1,
        {"y": torch.tensor([[2.0], [3.0]])},
    )
    assert [each.tolist() for each in both] == [[-1.0, 1.0], [[-2.0], [3.0]]]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_part_that_answered(kind):
    network, (x, time, cond) = Routed(parts(), **KINDS[kind]), batch()
    weight = torch.zeros(7, 1)
    weight[torch.tensor(EXPECTED[kind]) == 1] = 1
    x.requires_grad_(True)
    out = network(x, time, cond)
    (weight * out).square().sum().backward()
    sums = [sum(float(p.grad.abs().sum()) for p in part.parameters() if p.grad is not None) for part in network.parts]
    assert sums[1] > 0 and sums[0] == sums[2] == 0
    assert torch.equal(x.grad.abs().sum(1) > 0, weight[:, 0] > 0)


def test_parts_that_are_not_trained_stay_frozen():
    network = Routed(parts(), **KINDS["time"], only=1)
    made = copy.deepcopy(Denoiser(network, VarianceExploding())).requires_grad_(True).train().network
    for k, part in enumerate(made.parts):
        assert all(p.requires_grad == (k == 1) for p in part.parameters()) and part.training == (k == 1)
    made(*batch()).sum().backward()
    assert {k for k, part in enumerate(made.parts) for p in part.parameters() if p.grad is not None} == {1}
    together = Routed(parts(), **KINDS["time"])
    assert all(p.requires_grad for p in together.parameters()) and all(part.training for part in together.parts)


def test_what_one_part_is_told_all_are():
    network = Routed(parts(), **KINDS["time"])
    before = network(*batch())
    network.embed.tell("step", categories=2)
    x, time, cond = batch()
    assert torch.equal(network(x, time, {**cond, "step": torch.ones(7, dtype=torch.int64)}), before)
    assert sum("told.step" in name for name in network.state_dict()) == 3
    lines = Routed([nn.Linear(2, 2), nn.Linear(2, 2)], by="label", owner=[0, 1])
    assert getattr(lines, "embed", None) is None


def test_parts_must_agree():
    network = Routed([PairTransformer([4, 3], 16, 1, 2, 8) for _ in range(2)], by="time", edges=[0.5])
    assert network.centred is True and network.feature_channels == 16
    assert not hasattr(Routed([nn.Linear(2, 2)], by="time", edges=[]), "centred")
    with pytest.raises(ValueError, match="must agree in centred"):
        Routed([network.parts[0], MLP([3], 16)], by="time", edges=[0.5])
    with pytest.raises(ValueError, match="must agree in feature_channels"):
        Routed([MLP([3], 8), MLP([3], 16)], by="time", edges=[0.5])


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"by": "time"}, "routed by time needs edges and no owner"),
        ({"by": "time", "edges": [0.5], "owner": [0]}, "needs edges and no owner"),
        ({"by": "label", "edges": [0.5]}, "routed by label needs owner and no edges"),
        ({"by": "time", "edges": [0.5, 0.2]}, "2 parts have 1 falling edges between them, got"),
        ({"by": "time", "edges": [float("nan")]}, "edges must be a finite number"),
        ({"by": "label", "owner": [0, 2]}, "owner must be at most 1"),
        ({"by": "label", "owner": [0, -1]}, "owner must be at least 0"),
        ({"by": "label", "owner": [0, 1], "only": 2}, "only must be at most 1"),
    ],
)
def test_what_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Routed(parts(2), **settings)


def test_edges_fall_and_there_is_a_part():
    with pytest.raises(ValueError, match="3 parts have 2 falling edges"):
        Routed(parts(), by="time", edges=[0.3, 0.7])
    with pytest.raises(ValueError, match="at least one part"):
        Routed([], by="time", edges=[])


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_knows_it(kind, tmp_path):
    network = Routed(parts(), **KINDS[kind])
    spec = to_spec(network)
    assert to_spec(from_spec(spec)) == spec and to_spec(copy.deepcopy(network)) == spec
    x, time, cond = batch()
    assert torch.equal(copy.deepcopy(network)(x, time, cond), network(x, time, cond))
    student = FewStepStudent(Denoiser(network, VarianceExploding()).eval(), [2.0, 0.5], (3,), {"label": 4})
    student.save(tmp_path)
    assert torch.equal(load_student(tmp_path).sample(6), student.sample(6))


def test_parts_may_be_adapters_on_one_network(tmp_path):
    teacher = Digits()
    base = TeacherBase(teacher)
    made = teacher.new_denoiser(Routed([Adapters(base, 1), Adapters(base, 2)], by="label", owner=[0, 1] * 5))
    shared = {p.data_ptr() for p in teacher.denoiser.network.parameters()}
    assert all({p.data_ptr() for p in part.tree.parameters()} == shared for part in made.network.parts)
    wake(made.network.parts[1].layers)
    student = FewStepStudent(made.eval(), [2.0], teacher.event_shape, teacher.classes)
    found = student.sample(4)
    student.save(tmp_path)
    assert torch.equal(load_student(tmp_path).sample(4), found)
    plain = teacher.new_denoiser().eval()
    expected = FewStepStudent(plain, [2.0], teacher.event_shape, teacher.classes).sample(4)
    close = (found - expected).abs().flatten(1).amax(1) < 1e-4
    assert close.tolist() == [True, False, True, False]


def test_a_class_that_belongs_to_no_part_is_refused_before_the_network_is_called():
    network = Routed(parts(), **KINDS["label"])
    network.check_context({"label": torch.tensor([0, 4])})  # the last one is the null class
    with pytest.raises(ValueError, match="must hold classes up to 4, which belong to a part"):
        network.check_context({"label": torch.tensor([5])})
