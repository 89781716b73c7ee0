"""Activation checkpointing changes nothing but memory: every network, methods, two processes."""

# ruff: noqa: E501 (a fault is a row of a table)

import copy
from functools import cache

import pytest
import torch
from helpers import CLASSES, ForkedShard, Keep, forked_ddp, trainer, wake
from lightning.pytorch import Callback
from mutations import Mutation, prove
from torch import nn

from distillkit import checkpointing, devices, planning
from distillkit.checkpointing import checkpoint_blocks, checkpoints
from distillkit.data import DistillData, TensorData
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.flow import forward_derivative
from distillkit.diffusion.process import VarianceExploding
from distillkit.methods.base import Adam
from distillkit.methods.dmd import DMD
from distillkit.methods.flow_map import FlowMap
from distillkit.methods.scm import SCM
from distillkit.methods.sid import SiD
from distillkit.networks.dit import DiT
from distillkit.networks.mlp import MLP
from distillkit.networks.routed import Routed
from distillkit.networks.unet import UNet
from distillkit.students.makers import Lora
from distillkit.teachers.base import Teacher
from tests.battery.conftest import weights
from tests.networks.test_adapters import NETWORKS, on

SHAPE = (1, 4, 4)
BLOCKS = {"unet": 8, "video_unet": 8, "dit": 2, "set_dit": 1, "pair_transformer": 2, "ddit": 2}


def network():
    """Of 12 channels, since before a norm of single ones a bias has no gradient but rounding."""
    return wake(UNet(SHAPE, 12, classes=CLASSES))


class Images(DistillData):
    """A few images of 4 x 4 pixels with labels."""

    event_shape, classes = SHAPE, CLASSES

    def load(self):
        data = torch.randn(32, *SHAPE, generator=torch.Generator().manual_seed(0))
        made = TensorData({"data": data, "label": torch.arange(32) % 2})
        return made, made, made

    build_evaluator = media = None


def method(kind=DMD, checkpointing=False, dtype=None, **settings):
    torch.manual_seed(0)
    teacher = Teacher(Denoiser(network(), VarianceExploding(), "edm", 1.0), SHAPE, CLASSES, dtype=dtype)
    return kind(teacher, checkpointing=checkpointing, schedule="constant", **settings)


def inputs_of(name):
    _, shape, cond = NETWORKS[name]
    g = torch.Generator().manual_seed(1)
    x = torch.randint(5, (2, 6), generator=g) if shape is None else torch.randn(2, *shape, generator=g)
    return x, torch.tensor([0.3, 0.8]), {"label": torch.tensor([0, 3]), **cond}


def gradients(network, x, time, cond, call=None):
    """Of all parameters and the input."""
    x = x.clone().requires_grad_(x.is_floating_point())
    (call or network)(x, time, cond).square().sum().backward()
    found = [p.grad for p in network.parameters() if p.requires_grad]
    return [g for g in (*found, x.grad) if g is not None]


def same(found, expected):
    assert len(found) == len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def kept(network, *inputs):
    """Bytes that one pass keeps for the backward pass."""
    held = {}

    def pack(x):
        held[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x

    own = {x.untyped_storage()._cdata for x in planning.held(network)}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = network(*inputs)
    assert out.requires_grad
    return sum(size for key, size in held.items() if key not in own)


@pytest.mark.parametrize("name", BLOCKS)
def test_gradients_are_the_same_to_the_bit(name):
    plain, inputs = wake(NETWORKS[name][0]()), inputs_of(name)
    again = copy.deepcopy(plain)
    assert checkpoint_blocks(again) == BLOCKS[name] and checkpoints(again) and not checkpoints(plain)
    expected = gradients(plain, *inputs)
    same(gradients(again, *inputs), expected)
    plain.zero_grad()
    if hasattr(plain, "features"):
        again.zero_grad()
        same(gradients(again, *inputs, call=again.features), gradients(plain, *inputs, call=plain.features))


def test_blocks_keep_their_inputs_alone():
    plain = wake(DiT([1, 8, 8], 16, 6, 2))
    inputs = torch.randn(4, 1, 8, 8), torch.full((4,), 0.3), {}
    again = copy.deepcopy(plain)
    checkpoint_blocks(again)
    assert kept(again, *inputs) < 0.5 * kept(plain, *inputs)


def test_a_copy_computes_with_its_own_weights():
    one = network()
    checkpoint_blocks(one)
    other = copy.deepcopy(one)
    for parameter in one.parameters():
        nn.init.zeros_(parameter)
    inputs = torch.randn(2, *SHAPE), torch.tensor([0.3, 0.8]), {"label": torch.tensor([0, 1])}
    assert checkpoints(other) and torch.equal(other(*inputs), network()(*inputs))


def test_noise_within_a_block_is_the_same_again():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)) for _ in range(3))

        def forward(self, x, time, cond):
            for block in self.blocks:
                x = block(x)
            return x

    plain, found = wake(Noisy()), []
    again = copy.deepcopy(plain)
    checkpoint_blocks(again)
    for each in (plain, again):
        torch.manual_seed(3)
        found.append(gradients(each, torch.ones(8, 4), None, None))
    same(*found)


def test_blocks_of_the_innermost_lists_are_computed_again_once():
    parts = [network(), network()]
    routed = Routed(parts, "time", edges=[0.5])
    calls = []
    for part in parts:
        part.middle[0].conv0.register_forward_hook(lambda *_: calls.append(1))
    assert checkpoint_blocks(routed) == 2 * BLOCKS["unet"]
    x = torch.randn(2, *SHAPE)
    routed(x, torch.tensor([0.3, 0.8]), {"label": torch.tensor([0, 1])}).sum().backward()
    assert len(calls) == 4  # each part's block twice


def test_adapters_and_the_network_beneath_them():
    inputs = inputs_of("dit")
    plain = on(NETWORKS["dit"][0]())
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.1)
    again = copy.deepcopy(plain)
    assert checkpoint_blocks(again) == BLOCKS["dit"]
    same(gradients(again, *inputs), gradients(plain, *inputs))


def test_derivatives_in_forward_mode_are_as_before():
    plain, (x, time, cond) = wake(NETWORKS["dit"][0]()), inputs_of("dit")
    again = copy.deepcopy(plain)
    checkpoint_blocks(again)
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            found, expected = (
                forward_derivative(lambda y, t, net=net: net(y, t, cond), x, time, x) for net in (again, plain)
            )
        assert torch.equal(found, expected)


# Methods


def fitted(model, steps=4, **settings):
    trainer(steps, **settings).fit(model, Images(batch_size=8))
    return weights(model)


@pytest.mark.parametrize(
    "kind, settings",
    [
        (DMD, {}),
        (DMD, {"student_maker": Lora(2), "fake_score_maker": Lora(2)}),
        (SiD, {}),  # its gradient goes through the teacher
        (SCM, {"tangent_warmup": 0}),
        (FlowMap, {"tangent_warmup": 0}),
    ],
    ids=["dmd", "lora", "sid", "scm", "flow_map"],
)
def test_a_run_trains_the_same_weights(kind, settings):
    plain = fitted(method(kind, **settings))
    model = method(kind, checkpointing=True, **settings)
    again = fitted(model)
    assert plain.keys() == again.keys() and all(torch.equal(value, again[name]) for name, value in plain.items())
    assert checkpoints(model.student) and checkpoints(model.teacher.denoiser)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [forked_ddp, ForkedShard], ids=["ddp", "shard"])
def test_two_processes_train_the_same_weights(strategy, tmp_path):
    alone = fitted(method(), accumulate_grad_batches=2)
    trainer(4, devices=2, strategy=strategy(), callbacks=[Keep(tmp_path / "two")]).fit(
        method(checkpointing=True), Images(batch_size=8)
    )
    two = torch.load(tmp_path / "two", weights_only=True)
    for name, value in alone.items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_a_run_without_blocks_is_refused():
    torch.manual_seed(0)
    teacher = Teacher(Denoiser(MLP(SHAPE, 8, 1, CLASSES), VarianceExploding(), "edm", 1.0), SHAPE, CLASSES)
    with pytest.raises(ValueError, match=r"no network of this run is made of blocks; leave it out"):
        fitted(DMD(teacher, checkpointing=True))


# Plans


def small(checkpointing):
    torch.manual_seed(0)
    teacher = Teacher(Denoiser(wake(DiT(SHAPE, 16, 4, 2)), VarianceExploding(), "edm", 1.0), SHAPE)
    roles = {"student": Adam(), "fake_score": Adam(updates=2)}
    return DMD(teacher, checkpointing=checkpointing, schedule="constant", **roles)


@cache
def planned(checkpointing):
    return planning.plan(planning.Rehearsal(small(checkpointing), Images(batch_size=8), trainer(40)))


@pytest.mark.slow
def test_a_plan_knows_what_is_saved():
    plain, again = planned(False), planned(True)
    for before, after in zip(plain.turns, again.turns, strict=True):
        trained = before.passes[before.role, "train"]
        assert after.passes[before.role, "train, again"] == trained == 8
        assert after.cost == before.cost + trained
        assert after.activations < 0.8 * before.activations
    assert again.parts == plain.parts


def test_a_pass_whose_activations_are_computed_again_costs_one_more():
    plain = network()
    again = copy.deepcopy(plain)
    checkpoint_blocks(again)
    x = torch.zeros(1, *SHAPE, requires_grad=True)
    for trains, name in ((True, "train"), (False, "input gradient")):
        found = [planning.kind(each.requires_grad_(trains), x) for each in (plain, again)]
        assert found == [name, f"{name}, again"]
        assert planning.COST[found[1]] == planning.COST[found[0]] + 1
    with torch.no_grad():
        assert planning.kind(again, x) == "forward"


class Watched(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 0:
            self.peak = devices.Peak(planning.held(pl_module))
            self.peak.__enter__()

    def on_train_end(self, trainer, pl_module):
        self.peak.__exit__(None, None, None)
        held = {x.untyped_storage()._cdata: x.nbytes for x in planning.held(pl_module)}
        self.bytes = sum(held.values()) + self.peak.bytes


def test_the_peak_is_that_of_real_steps():
    watched = Watched()
    fitted(small(True), steps=7, callbacks=[watched])
    assert planned(True).peak == pytest.approx(watched.bytes, rel=0.05)


INNER = test_blocks_of_the_innermost_lists_are_computed_again_once
MUTATIONS = [
    Mutation("other noise", checkpointing._recomputed, "use_reentrant=False", "use_reentrant=False, preserve_rng_state=False", test_noise_within_a_block_is_the_same_again),
    Mutation("nothing is dropped", checkpointing._recomputed, "not torch.is_grad_enabled()", "True", test_blocks_keep_their_inputs_alone),
    Mutation("outer blocks too", checkpointing.checkpoint_blocks, " and not any(map(_parted, blocks(block)))", "", INNER),
    Mutation("registered modules alone", checkpointing.checkpoint_blocks, "for module in modules(root) if isinstance", "for module in root.modules() if isinstance", test_adapters_and_the_network_beneath_them),
    Mutation("a bound forward", checkpointing.checkpoint_blocks, "MethodType(_recomputed, block)", "(lambda *args, own=block: _recomputed(own, *args))", test_a_copy_computes_with_its_own_weights),
    Mutation("no more passes", planning.kind, "AGAIN if", "AGAIN if not", test_a_pass_whose_activations_are_computed_again_costs_one_more),
]  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_the_tests_notice(mutation):
    prove(mutation)
