"""Moments of 8 bits: one step by hand, skipped steps, parts of several processes, what goes on."""

# ruff: noqa: E501 (a fault is a row of a table)

import copy
import math
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers import CLASSES, UNMEASURED, ForkedShard, Keep, Pairs, fit, forked_ddp, in_processes, same, trainer, wake
from mutations import Mutation, prove
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from distillkit import optimizers, planning
from distillkit.cli import front
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import VarianceExploding
from distillkit.methods.base import Adam, Distiller
from distillkit.methods.dmd import DMD
from distillkit.networks.mlp import MLP
from distillkit.optimizers import EightBit
from distillkit.teachers.base import Teacher
from tests.methods.test_base import Plain
from tests.test_planning import rehearsal
from tests.test_sharding import Save

eight_bits = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="moments of 8 bits need the extra bitsandbytes"
)
LR, BETAS, DECAY, EPS = 0.01, (0.9, 0.99), 0.1, 1e-8
KEY = "__bnb_optimizer_quant_state__"  # under which bitsandbytes keeps moments in a state


def gaussian(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradient(number, step, shape):
    """Its scale differs by blocks, as that of layers does."""
    rows = torch.logspace(-4, 0, math.prod(shape)).view(shape)
    return rows * gaussian(*shape, seed=100 * step + number)


def stepped(parameters, steps, name="adamw8bit", optimizer=None, spread=lambda x: x):
    """Makes the given steps, and returns the optimiser."""
    if optimizer is None:
        group = {"params": parameters, "lr": LR, "betas": BETAS, "weight_decay": DECAY}
        optimizer = optimizers.make(name, [group])
    for step in steps:
        for number, p in enumerate(parameters):
            p.grad = spread(gradient(number, step, p.shape))
        optimizer.step()
    return optimizer


def parameters(*shapes):
    return [nn.Parameter(gaussian(*shape, seed=number)) for number, shape in enumerate(shapes)]


# ---- one step


@eight_bits
def test_a_first_step_is_adamws_and_leaves_the_nearest_codes():
    """Moments are zero before, so nothing is rounded yet; then each is the nearest of 256.

    On the CPU the library first rounds to one of 65,536 numbers from -1 to 1.
    """
    (p,), (q,) = parameters((48, 100)), parameters((48, 100))  # the last of 19 blocks is not full
    state = stepped([p], [0]).state[p]
    stepped([q], [0], "adamw")
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    g = gradient(0, 0, p.shape)
    for number, exact in ((1, (1 - BETAS[0]) * g), (2, (1 - BETAS[1]) * g.square())):
        blocks = nn.functional.pad(exact.flatten(), (0, 64)).view(19, 256)
        scales = blocks.abs().amax(1)
        torch.testing.assert_close(state[f"absmax{number}"], scales, rtol=1e-6, atol=0)
        unit = (blocks / scales[:, None]).flatten()[: p.numel()]
        values = state[f"qmap{number}"]
        error = (values[state[f"state{number}"].flatten().long()] - unit).abs()
        assert (error <= (values - unit[:, None]).abs().amin(1) + 2 / 65535 + 1e-6).all()
        torch.testing.assert_close(
            optimizers.plain(state, f"state{number}").flatten() / scales.repeat_interleave(256)[: p.numel()],
            values[state[f"state{number}"].flatten().long()],
            rtol=1e-5,
            atol=1e-7,
        )


@eight_bits
def test_a_later_step_is_adamws_on_the_rounded_moments():
    (p,) = parameters((64, 64))
    optimizer = stepped([p], [0])
    m, v = (optimizers.plain(optimizer.state[p], f"state{number}").double() for number in (1, 2))
    g, before = gradient(0, 1, p.shape).double(), p.detach().double()
    m, v = BETAS[0] * m + (1 - BETAS[0]) * g, BETAS[1] * v + (1 - BETAS[1]) * g**2
    unit = (m / (1 - BETAS[0] ** 2)) / ((v / (1 - BETAS[1] ** 2)).sqrt() + EPS)
    stepped([p], [1], optimizer=optimizer)
    torch.testing.assert_close(p.detach().double(), before * (1 - LR * DECAY) - LR * unit, rtol=1e-5, atol=1e-6)


@eight_bits
def test_small_tensors_keep_moments_of_32_bits():
    shapes = (63, 65), (4096,), (7,), (20, 300)  # 4,095, 4,096, 7 and 6,000 numbers
    own, others = parameters(*shapes), parameters(*shapes)
    optimizer = stepped(own, range(5))
    stepped(others, range(5), "adamw")
    kinds = [optimizer.state[p]["state1"].dtype for p in own]
    assert kinds == [torch.float32, torch.uint8, torch.float32, torch.uint8]
    for number in (0, 2):
        torch.testing.assert_close(own[number], others[number], rtol=1e-6, atol=1e-7)
    assert not torch.equal(own[1], others[1])
    codes, scales = 4096 + 6000, 4 * (16 + 24)
    assert planning.moments(optimizer) == 8 * (4095 + 7) + 2 * (codes + scales + 4 * 256)


# ---- steps that are skipped, and roles that wait


@pytest.mark.parametrize("name", ["adamw", pytest.param("adamw8bit", marks=eight_bits)])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_skipped_step_does_not_count(name, steps):
    """A step after it is as if it had not been; nor does a tensor without a gradient move."""
    shapes = (64, 64), (7,), (5000,)
    own, others = parameters(*shapes), parameters(*shapes)
    one, other = stepped(own, range(steps), name), stepped(others, range(steps), name)
    one.found_inf = torch.tensor(1.0)
    before = copy.deepcopy(own)
    for p in own:
        p.grad = torch.full_like(p, math.nan)
    loss = one.step(lambda: torch.tensor(3.0))
    assert loss == 3 and same(before, own)
    one.found_inf = torch.tensor(0.0)
    for parameter, optimizer in ((own, one), (others, other)):
        parameter[2].grad = None
        stepped(parameter[:2], [steps, steps + 1], optimizer=optimizer)
    assert same(own, others)
    assert [int(one.state[p].get("step", 0)) for p in own] == [steps + 2, steps + 2, steps]


class Wide(Plain):
    """`Plain` with tensors of 4,096 numbers."""

    def __init__(self, broken=(), **settings):
        Distiller.__init__(self, **{"optimizer": "adamw8bit", "schedule": "constant"} | settings)
        self.broken = broken
        torch.manual_seed(0)
        for role in ("shadow", "student"):
            layers = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
            self.add_role(role, Adam(lr=0.01, weight_decay=0.5), **{role: layers})
        self.keep_ema()


@eight_bits
def test_a_bad_step_changes_nothing_and_an_idle_role_waits():
    """Weights, moments, the average and the counts of steps; decay would show."""
    states, run, _ = fit(Wide(broken=(0, 3, 5, 6)), 8)
    for step, (before, after) in enumerate(zip(states, states[1:], strict=False)):
        bad, own = step in (0, 3, 5, 6), ("shadow", "student")[step % 2]
        for role in ("shadow", "student"):
            waits = bad or role != own
            assert same(before.weights[role], after.weights[role]) == waits
            assert same(before.moments[role], after.moments[role]) == waits
        assert same(before.ema, after.ema) == (bad or own == "shadow")
    for moments, kept in ((states[-1].moments["shadow"], 2), (states[-1].moments["student"], 2)):
        assert [state["step"] for state in moments] == [kept] * 6
        assert [state["state1"].dtype for state in moments].count(torch.uint8) == 1
        assert all(tensor.isfinite().all() for state in moments for tensor in state.values() if torch.is_tensor(tensor))
    assert {role: both["skipped"] for role, both in run.model.skipped().items()} == {"shadow": 2, "student": 2}


# ---- going on


@eight_bits
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_run_goes_on_to_the_bit(precision, tmp_path):
    straight, short, again = Wide(broken=(0,)), Wide(broken=(0,)), Wide(broken=(0,))
    _, whole, _ = fit(straight, 7, precision=precision)
    _, run, _ = fit(short, 3, precision=precision)
    run.save_checkpoint(tmp_path / "cut.ckpt")
    rest = trainer(7, precision=precision)
    rest.fit(again, Pairs(batch_size=8), ckpt_path=tmp_path / "cut.ckpt", weights_only=True)
    assert same(dict(straight.state_dict()), dict(again.state_dict()))
    one, other = (each.optimizers[0].state_dict() for each in (whole, rest))
    assert same(one["state"], other["state"]) and one["state"][2][KEY]["state1"].dtype is torch.uint8


def test_a_checkpoint_of_the_other_optimiser_is_refused():
    """A checkpoint of earlier versions does not say, and had AdamW."""
    for made, own in (("adamw", "adamw8bit"), ("adamw8bit", "adamw"), (None, "adamw8bit")):
        model, checkpoint = Wide(optimizer=own), {"global_step": 3}
        Wide(optimizer=made or "adamw").on_save_checkpoint(checkpoint)
        if made is None:
            del checkpoint["distillkit"]["optimizer"]
        model._trainer = trainer(9)
        model.on_load_checkpoint(checkpoint)  # to measure it
        model._trainer.state.fn = "fit"
        with pytest.raises(ValueError, match=rf"of {own}: say model\.optimizer={made or 'adamw'}$"):
            model.on_load_checkpoint(checkpoint)


# ---- the command line


WORDS = ["domain=toy", "method=dmd", "data.batch_size=16", "model.schedule=constant", "model.optimizer=adamw8bit"]


def run(*words, code=0):
    assert front.main(["fit", *WORDS, *UNMEASURED, *words]) == code


@eight_bits
def test_a_run_of_the_command_line_goes_on_in_its_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("trainer.max_steps=4", "--out", "whole")
    run("trainer.max_steps=2", "--out", "part")
    run("trainer.max_steps=4", "--out", "part", "--ckpt_path", "last")
    files = [Path(folder, "student/model.safetensors").read_bytes() for folder in ("whole", "part")]
    assert files[0] == files[1]
    run("trainer.max_steps=6", "model.optimizer=adamw", "--out", "part", "--ckpt_path", "last", code=2)
    assert "say model.optimizer=adamw8bit" in capsys.readouterr().err


def test_a_missing_library_is_named_before_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(optimizers, "make", lambda *_: 1 / 0)  # too late
    run("trainer.max_steps=2", "--out", "run", code=2)
    err = capsys.readouterr().err
    assert "error: moments of 8 bits need bitsandbytes, which does not import here" in err
    assert err.endswith("pip install 'distillkit[bitsandbytes]'\n") and not Path("run/checkpoints").exists()
    assert front.main(["plan", *WORDS, "--memory", "1"]) == 2


def test_another_name_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("model.optimizer=adam8bit", code=2)
    assert "model.optimizer" in capsys.readouterr().err
    with pytest.raises(ValueError, match="optimizer must be adamw or adamw8bit, got 'adam8bit'"):
        Wide(optimizer="adam8bit")


# ---- what is planned


def dmd(optimizer="adamw8bit"):
    teacher = Teacher(
        Denoiser(wake(MLP([2], width=64, depth=2, classes=CLASSES)), VarianceExploding(), "edm", 1.0), (2,), CLASSES
    )
    return DMD(teacher, student=Adam(), fake_score=Adam(), optimizer=optimizer)


@eight_bits
def test_the_plan_counts_the_bytes_that_a_run_has():
    plans = {name: planning.plan(rehearsal(dmd(name))) for name in optimizers.NAMES}
    small, large = ({part.name: part for part in plans[name].parts} for name in ("adamw8bit", "adamw"))
    assert not plans["adamw8bit"].real
    _, made, _ = fit(dmd(), 4)
    for number, role in enumerate(("fake_score", "student")):
        assert small[role].moments == planning.moments(made.optimizers[0], number) < 0.4 * large[role].moments
    assert plans["adamw"].peak - plans["adamw8bit"].peak == pytest.approx(
        sum(large[role].moments - small[role].moments for role in ("student", "fake_score")), rel=0.01
    )


@eight_bits
@pytest.mark.slow
def test_a_run_that_does_not_fit_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words, told in ((WORDS, False), (WORDS[:-1], True)):
        assert front.main(["plan", *words, "--memory", "0.001"]) == 2
        assert ("model.optimizer=adamw8bit takes" in capsys.readouterr().err) == told


# ---- several processes


SHAPES = ((128, 64), (5, 1024), (33, 200), (4607,), (7,), (1,))


def shared(rank, world):
    """What parts of processes say of the same steps in one process."""
    mesh = init_device_mesh("cpu", (world,))

    def spread(x):
        return distribute_tensor(x.detach(), mesh, [Shard(0)])

    def parts(whole):
        return [nn.Parameter(spread(p)) for p in whole]

    alone, own = parameters(*SHAPES), parts(parameters(*SHAPES))
    one, several = stepped(alone, range(3)), stepped(own, range(3), spread=spread)
    cut, cut_alone = several.state_dict(), one.state_dict()
    alike = [same(cut["state"][number], cut_alone["state"][number]) for number in range(len(SHAPES))]
    weights = [p.full_tensor().detach().clone() for p in own]
    distances = [(p - q).abs().max().item() for p, q in zip(alone, weights, strict=True)]
    stepped(own, (3, 4), optimizer=several, spread=spread)
    again = parts(weights)
    resumed = stepped(again, ())
    resumed.load_state_dict(cut)
    stepped(again, (3, 4), optimizer=resumed, spread=spread)
    crossed = parts(alone)
    other = stepped(crossed, ())
    other.load_state_dict(cut_alone)
    stepped(crossed, (3, 4), optimizer=other, spread=spread)
    stepped(alone, (3, 4), optimizer=one)
    return {
        "bits": [cut["state"][number][KEY]["state1"].dtype.itemsize * 8 for number in range(len(SHAPES))],
        "shapes": [tuple(cut["state"][number][KEY]["state1"].shape) for number in range(len(SHAPES))],
        "same": alike,
        "distances": distances,
        "steps": [state["step"] for state in several.state.values()],
        "states": len(several.state),
        "resumed": all(torch.equal(p.to_local(), q.to_local()) for p, q in zip(own, again, strict=True)),
        "crossed": [(p.full_tensor() - q).abs().max().item() for p, q in zip(crossed, alone, strict=True)],
    }


@eight_bits
@pytest.mark.parametrize("world, whole", [(2, (8, 8, 32, 8, 32, 32)), (4, (8, 8, 32, 32, 32, 32))])
def test_parts_of_processes_make_the_steps_and_the_file_of_one(world, whole):
    """Parts of whole blocks have 8 bits, to the bit those of one process; others have 32."""
    for found in in_processes(world, shared, world):
        assert not isinstance(found, Exception), found
        assert tuple(found["bits"]) == whole and tuple(found["shapes"]) == SHAPES and found["resumed"]
        assert found["steps"] == [5] * len(SHAPES) and found["states"] == len(SHAPES)
        for number, shape in enumerate(SHAPES):
            alike = whole[number] == 8 or math.prod(shape) < optimizers.SMALLEST
            assert found["same"][number] == alike
            for distance in (found["distances"][number], found["crossed"][number]):
                assert distance == 0 if alike else 0 < distance < LR


def trained(tmp_path, name, settings, checkpoint=None):
    """The weights of a run of six steps, which leaves a checkpoint after step 4."""
    callbacks = [Keep(tmp_path / name), Save(tmp_path / f"{name}.ckpt")]
    resume = {"ckpt_path": checkpoint, "weights_only": True} if checkpoint else {}
    trainer(6, callbacks=callbacks, **settings).fit(dmd(), Pairs(batch_size=8), **resume)
    return torch.load(tmp_path / name, weights_only=True)


@eight_bits
@pytest.mark.slow
@pytest.mark.parametrize("strategy", [ForkedShard, forked_ddp])
def test_two_processes_train_as_one_and_go_on_to_the_bit(strategy, tmp_path):
    """The method takes no data from a batch."""
    one = trained(tmp_path, "one", {"accumulate_grad_batches": 2})
    two = trained(tmp_path, "two", {"devices": 2, "strategy": strategy()})
    again = trained(tmp_path, "again", {"devices": 2, "strategy": strategy()}, tmp_path / "two.ckpt")
    assert same(two, again) and two.keys() == one.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
    states = [
        torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["optimizer_states"][0] for name in ("one", "two")
    ]
    for own, other in zip(states[0]["state"].values(), states[1]["state"].values(), strict=True):
        assert own["step"] == other["step"] == 2
        assert {k: (v.shape, v.dtype) for k, v in own[KEY].items()} == {
            k: (v.shape, v.dtype) for k, v in other[KEY].items()
        }


# ---- the tests notice


SKIPPED, BITS = test_a_skipped_step_does_not_count, test_small_tensors_keep_moments_of_32_bits
PARTS = partial(test_parts_of_processes_make_the_steps_and_the_file_of_one, 2, (8, 8, 32, 8, 32, 32))
MANY = partial(test_parts_of_processes_make_the_steps_and_the_file_of_one, 4, (8, 8, 32, 32, 32, 32))
MUTATIONS = [
    Mutation("no step is skipped", EightBit.step, "not self.found_inf", "True", partial(SKIPPED, "adamw8bit", 2)),
    Mutation("all of 32 bits", EightBit.get_config, "8 if suits", "32 if suits", BITS),
    Mutation("all of 8 bits", optimizers.suits, ">= SMALLEST", ">= 1", BITS),
    Mutation("4,096 is small", optimizers.suits, ">= SMALLEST", "> SMALLEST", BITS),
    Mutation("parts end within blocks", optimizers.suits, " % BLOCK", " % 1", PARTS),
    Mutation("parts rounded down", optimizers.most, "-(-p.shape[0] // p.device_mesh.size())", "(p.shape[0] // p.device_mesh.size())", PARTS),
    Mutation("an empty part does not count", EightBit.update_step, '["step"] += 1', '["step"] += 0', MANY),
    Mutation("a part's state stays", EightBit._part, "del self.state[part]", "pass", PARTS),
    Mutation("every part is the first", optimizers.divided, "p.device_mesh.get_local_rank()", "0", PARTS),
    Mutation("codes without scales", optimizers.plain, "values[codes.long()] *", "values[codes.long()] + 0 *", PARTS),
]  # fmt: skip


@eight_bits
@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_the_tests_notice(mutation):
    prove(mutation)
