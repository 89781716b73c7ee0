"""What a run takes, counted by hand and measured in real steps; and the verb that says so."""

# ruff: noqa: E501 (a fault is a row of a table)

import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import BATCH, neural, trainer
from lightning.pytorch import Callback
from mutations import Mutation, prove
from torch import nn

from distillkit import devices, pairs, planning
from distillkit.cli import front
from distillkit.cli import plan as verb
from distillkit.data import DistillData, TensorData
from distillkit.methods.base import Adam
from distillkit.methods.dmd import DMD
from distillkit.methods.pairs import PairDistil
from distillkit.planning import Part, Plan, Rehearsal, Turn
from distillkit.students.makers import Lora
from distillkit.watch.passes import Passes

SIZE = 8
SMALL = ["domain=toy", "method=dmd", "data.batch_size=64", "data.num_samples=256"]


class Data(DistillData):
    domain, event_shape, classes, media, build_evaluator = "toy", (2,), {"label": 2}, None, None

    def load(self):
        return (TensorData({name: value.repeat(8, *[1] * (value.ndim - 1)) for name, value in BATCH.items()}),) * 3


def dmd(**settings) -> DMD:
    arguments = {"student": Adam(), "fake_score": Adam(updates=3)} | settings
    return DMD(neural(), **arguments)


def rehearsal(method=None, size=SIZE, devices=1, **settings) -> Rehearsal:
    return Rehearsal(method or dmd(), Data(size), trainer(**{"max_steps": 40} | settings), devices)


def planned(*args, **settings) -> Plan:
    return planning.plan(rehearsal(*args, **settings))


def by_name(plan):
    return {part.name: part for part in plan.parts}, {turn.role: turn for turn in plan.turns}


# ---- what is held


def test_a_run_holds_weights_moments_and_the_average():
    plan = planned()
    parts, _ = by_name(plan)
    weights = list(neural().parameters())
    num = sum(p.numel() for p in weights)
    moments = 8 * num + 4 * len(weights)  # of each weight two numbers, of each tensor its steps
    for role in ("student", "fake_score"):
        assert (parts[role].trained, parts[role].frozen) == (num, 0)
        assert (parts[role].weights, parts[role].gradients, parts[role].moments) == (4 * num, 4 * num, moments)
    for name in ("teacher", "ema"):
        assert (parts[name].trained, parts[name].frozen, parts[name].weights) == (0, num, 4 * num)
        assert parts[name].gradients == parts[name].moments == 0
    assert parts.keys() == {"teacher", "student", "fake_score", "ema", "other"}
    assert plan.held == 16 * num + 2 * moments + parts["other"].weights


def test_adapters_are_trained_on_weights_that_the_teacher_holds():
    parts, _ = by_name(planned(dmd(student_maker=Lora(rank=1))))
    whole, _ = by_name(planned())
    assert 0 < parts["student"].trained < whole["student"].trained and parts["student"].frozen == 0
    assert parts["student"].weights == parts["student"].gradients == 4 * parts["student"].trained
    assert parts["teacher"] == replace(whole["teacher"], whole=True) and not whole["teacher"].whole


def test_half_precision_halves_all_but_the_average():
    half, whole = (by_name(planned(precision=name))[0] for name in ("bf16-true", "32-true"))
    for name in ("teacher", "student", "fake_score"):
        assert (2 * half[name].weights, 2 * half[name].gradients) == (whole[name].weights, whole[name].gradients)
    assert half["ema"] == whole["ema"]


def test_a_block_is_gathered_and_what_is_in_none():
    inner = nn.ModuleList([nn.Linear(9, 9, bias=False) for _ in range(3)])
    root = nn.Module()
    root.first, root.blocks = nn.Linear(10, 10, bias=False), nn.ModuleList([nn.Module(), nn.Linear(7, 7, bias=False)])
    root.blocks[0].inner = inner
    assert planning.gathered(root) == 4 * (100 + 81)  # a list within an entry divides it
    root.blocks[1] = nn.Linear(20, 7, bias=False)
    assert planning.gathered(root) == 4 * (100 + 140)
    assert planning.gathered(root.first) == 4 * 100


# ---- passes


def test_the_passes_are_those_of_the_papers_loss():
    _, turns = by_name(planned())
    assert turns["fake_score"].passes == {("student", "forward"): SIZE, ("fake_score", "train"): SIZE}
    judged = {("teacher", "forward"): SIZE, ("fake_score", "forward"): SIZE}
    assert turns["student"].passes == {("student", "train"): SIZE, **judged}
    assert (turns["fake_score"].cost, turns["student"].cost) == (4 * SIZE, 5 * SIZE)


def test_the_passes_are_those_that_a_run_counts():
    """`watch/passes_ROLE` of a run can be held against the plan."""
    _, turns = by_name(planned())
    method = dmd()
    counted = Passes(method, SIZE)
    for role, loss in (("fake_score", method.fake_score_loss), ("student", method.student_loss)):
        counted.begin(role)
        loss({name: value.repeat(8, *[1] * (value.ndim - 1))[:SIZE] for name, value in BATCH.items()})
        counted.end()
        assert counted.facts()[f"passes_{role}"] == sum(turns[role].passes.values()) / SIZE


def test_passes_of_a_student_of_several_steps_are_those_of_the_mean_step():
    _, turns = by_name(planned(dmd(num_steps=4)))
    assert turns["student"].passes["student", "forward"] == 1.5 * SIZE  # (0 + 1 + 2 + 3) / 4
    assert turns["fake_score"].passes["student", "forward"] == 2.5 * SIZE


def test_samples_that_are_reused_are_made_once_in_a_cycle():
    _, turns = by_name(planned(dmd(reuse=True)))
    assert turns["fake_score"].passes["student", "forward"] == pytest.approx(SIZE * 2 / 3)


def test_micro_batches_are_passes_of_the_same_step():
    plan = planned(accumulate_grad_batches=3)
    assert by_name(plan)[1]["student"].cost == 15 * SIZE and plan.samples == 3 * SIZE


def test_the_steps_of_the_run_are_the_turns():
    plan = planned(dmd(student=Adam(start=20)), max_steps=41)
    _, turns = by_name(plan)
    assert {role: turn.steps for role, turn in turns.items()} == {"fake_score": 36, "student": 5}
    assert plan.passes == (36 * 4 + 5 * 5) * SIZE
    alone = planned(dmd(student=Adam(start=20)), max_steps=20).turns
    assert [(turn.role, turn.steps) for turn in alone] == [("fake_score", 20)]


def test_a_run_whose_end_is_not_known_has_no_sum():
    plan = planned(dmd(schedule="constant"), max_steps=-1, max_time="00:00:01:00")
    assert math.isinf(plan.passes) and all(math.isinf(turn.steps) for turn in plan.turns)


def test_epochs_end_a_run():
    found = rehearsal(max_steps=-1, max_epochs=3, accumulate_grad_batches=2)
    assert found.total == 3 * (64 // SIZE // 2)
    for limit, steps in ((3, 2), (0.25, 1), (99, 4)):  # of 8 batches
        found = rehearsal(max_steps=-1, max_epochs=3, accumulate_grad_batches=2, limit_train_batches=limit)
        assert found.total == 3 * steps
    for nothing in ({"max_steps": 0}, {"max_epochs": 0}, {"limit_train_batches": 0}):
        with pytest.raises(ValueError, match=r"makes no step: raise trainer\.max_steps"):
            rehearsal(**nothing)


# ---- the peak


class Watched(Callback):
    """The bytes of a real run from its second cycle on."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 0 and batch_idx == 0:
            self.peak = devices.Peak(planning.held(pl_module))
            self.peak.__enter__()

    def on_train_end(self, trainer, pl_module):
        self.peak.__exit__(None, None, None)
        weights = {x.untyped_storage()._cdata: x.nbytes for x in planning.held(pl_module)}
        self.bytes = sum(weights.values()) + self.peak.bytes


def reached(method, size, **settings):
    """The peak of real steps."""
    watched = Watched()
    trainer(max_steps=9, callbacks=[watched], **settings).fit(method, Data(size))
    return watched.bytes


@pytest.mark.parametrize(
    "settings", [{}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}], ids=["plain", "mixed", "accumulated"]
)
def test_the_peak_is_that_of_real_steps(settings):
    assert planned(size=32, **settings).peak == pytest.approx(reached(dmd(), 32, **settings), rel=0.05)


def test_a_step_without_content_is_a_real_one(monkeypatch):
    plan = planned(size=16)
    assert not plan.real
    monkeypatch.setattr(planning, "fake", lambda method: 1 / 0)
    line = planned(size=16)
    assert line.real and line.parts == plan.parts
    assert line.peak == pytest.approx(plan.peak, rel=0.05)
    assert [turn.passes for turn in line.turns] == [turn.passes for turn in plan.turns]


def test_copies_without_content_are_planned_alike(monkeypatch):
    plan = planned()
    monkeypatch.setattr(planning, "LARGE", 1)
    teacher = neural()
    with planning.Copies():
        method = DMD(teacher, student=Adam(), fake_score=Adam(updates=3))
    made = {name for name, x in method.named_parameters() if isinstance(x, planning.FakeTensor)}
    assert made == {name for name, _ in method.named_parameters() if not name.startswith("teacher.")}
    assert planned(method) == plan
    monkeypatch.setattr(
        DMD,
        "student_loss",
        lambda self, batch: (
            self.teacher.denoiser(batch["data"], 1.0, batch) * 0 + float(next(self.student.parameters()).sum())
        ),
    )
    with pytest.raises(Exception, match="_local_scalar_dense"):
        planned(method)


def test_an_error_of_the_step_itself_is_raised(monkeypatch):
    monkeypatch.setattr(DMD, "student_loss", lambda self, batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        planned()


def test_nothing_moves():
    method = dmd()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    plan = planned(method)
    assert not plan.real
    after = method.state_dict()
    assert all(type(value) is torch.Tensor and torch.equal(value, before[name]) for name, value in after.items())
    assert "randint" not in vars(method) and "forward" not in vars(method.student.network)


def test_seconds_are_of_real_steps():
    found = planning.seconds(rehearsal(), "cpu")
    assert found.keys() == {"student", "fake_score"} and all(0 < second < 60 for second in found.values())


def arithmetic():
    """A plan by hand: a teacher of 1000 bytes, roles of 100 and of 40."""
    parts = (
        Part("teacher", weights=1000, gathered=300),
        Part("a", 25, 0, 100, 100, 200, 60),
        Part("b", 10, 0, 40, 40, 80, 9),
    )
    return Plan(parts, (Turn("a", 1, 10, 500), Turn("b", 1, 10, 570)), 4)


def test_the_sums():
    plan = arithmetic()
    assert plan.held == 1420
    assert (plan.largest.role, plan.peak) == ("b", 1420 + 610)  # 570 + 40 is more than 500 + 100
    assert plan.bucket == 140
    assert plan.sharded(1) == plan.peak
    assert plan.sharded(4) == (1420 + 40) // 4 + 300 + 570
    whole = replace(plan, parts=(replace(plan.parts[0], whole=True), *plan.parts[1:]))
    assert whole.sharded(4) == 1000 + (420 + 40) // 4 + 60 + 570


# ---- pairs


def test_pairs_are_counted_and_not_made(monkeypatch):
    method = PairDistil(neural(), num_pairs=100, steps=4)
    monkeypatch.setattr(pairs.Pairs, "_made", lambda *args: 1 / 0)
    plan = planned(method)
    assert plan.pairs == 100 * (2 * 2 * 4 + 8)  # noise, sample, label
    steps = PairDistil(neural(), num_pairs=100, steps=4).pairs
    assert plan.first == steps.passes() == 100 * steps.teacher.calls_per_sample(steps.solver, range(4), 1.0)
    assert plan.turns[0].passes == {("student", "train"): SIZE}


# ---- the command line


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))


def said(capsys, *words, code=0):
    assert front.main(["plan", *SMALL, *words]) == code
    return capsys.readouterr()


def test_the_verb_says_what_a_fit_takes_and_writes_nothing(here, capsys):
    out = said(capsys, "--memory", "1", "--devices", "2", "--speed", "1000").out
    for word in (
        "teacher",
        "fake_score",
        "student",
        "ema",
        "On 2 devices with DDP",
        "It fits:",
        "1,000 passes a second",
    ):
        assert word in out
    assert not [*Path().iterdir()]


def test_a_laptop_plans_for_gpus_and_nodes(here, capsys):
    assert "On 4 devices with DDP" in said(capsys, "trainer=gpus", "trainer.devices=2", "trainer.num_nodes=2").out


@pytest.mark.slow
def test_devices_that_share_the_weights_need_less(here, capsys):
    out = said(capsys, "trainer=shard", "--devices", "4", "--memory", "1").out
    shared = re.search(r"with trainer=shard (\S+ \S+)\.", out)[1]
    assert f"It fits: {shared} of 1.00 GiB" in out
    err = said(capsys, "trainer=gpus", "--memory", "0.0035", code=2).err
    assert re.search(r"trainer=shard trainer.devices=(2|4|8) takes \S+ \S+$", err.strip())


@pytest.mark.slow
def test_a_run_that_does_not_fit_is_refused_with_words_that_help(here, capsys):
    err = said(capsys, "--memory", "0.001", code=2).err
    assert err.count("\n") == 1 and "on a device, which has 1.02 MiB" in err
    first = err.split(": ", 2)[2].split(";")[0]  # words takes N MiB
    words, _, takes = first.partition(" takes ")
    assert words == "data.batch_size=32 trainer.accumulate_grad_batches=2"
    other = [word for word in SMALL if "batch_size" not in word]
    assert front.main(["plan", *other, *words.split(), "--memory", "1"]) == 0
    assert f"It fits: {takes} of" in capsys.readouterr().out
    assert "student=lora takes" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model.num_steps=0"], "num_steps must be at least 1"),
        (["data.batch_size=4096"], "exceeds the 256 training samples"),
        (["-m"], "plan looks at one run"),
        (["--memory", "none"], "argument --memory"),
        (["domain=nowhere"], "no domain 'nowhere'"),
    ],
)
def test_what_fit_refuses_plan_refuses(here, capsys, words, sentence):
    assert sentence in said(capsys, *words, code=2).err
    assert not [*Path().iterdir()]


def test_a_change_takes_the_place_of_the_word():
    call = front.split(["domain=toy", "data.batch_size=64"])
    assert verb.changed(call, {"data.batch_size": "32"}).words == ["domain=toy", "data.batch_size=32"]
    again = front.split(["--config", "run/config.yaml"])
    assert verb.changed(again, {"data.batch_size": "32"}).flags == [
        ["--config", "run/config.yaml"],
        ["--data.batch_size=32"],
    ]


# ---- the tests notice


def patched(test):
    """Runs a test that asks for `monkeypatch`."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        test(monkeypatch)


SEVERAL = test_passes_of_a_student_of_several_steps_are_those_of_the_mean_step
HELD = test_a_run_holds_weights_moments_and_the_average
MUTATIONS = [
    Mutation("no moments", Plan.held.fget, "part.weights + part.moments", "part.weights", test_the_sums),
    Mutation("the wrong step", Plan.largest.fget, "turn.activations + self", "self", test_the_sums),
    Mutation("no gradients", Plan.peak.fget, " + self.gradients[self.largest.role]", "", test_the_sums),
    Mutation("no block", Plan.sharded, " + gathered", "", test_the_sums),
    Mutation("a whole part in parts", Plan.sharded, "self.held - whole", "self.held", test_the_sums),
    Mutation("every pass alike", Turn.cost.fget, "COST[kind] * number", "number", test_the_passes_are_those_of_the_papers_loss),
    Mutation("no mean", planning.rehearsed, "/ 2", "/ 1", SEVERAL),
    Mutation("a step too early", planning._cycle, "high - 1", "high - 2", SEVERAL),
    Mutation("a step too many", planning._cycle, ".updates - 1", ".updates", test_samples_that_are_reused_are_made_once_in_a_cycle),
    Mutation("two micro-batches", planning._cycle, "* micro / min(micro, 2)", "", test_micro_batches_are_passes_of_the_same_step),
    Mutation("shared twice", planning.parts_of, "not in counted", "not in ()", test_adapters_are_trained_on_weights_that_the_teacher_holds),
    Mutation("numbers for bytes", planning.gradients, "parameter.nbytes", "parameter.numel()", HELD),
    Mutation("numbers for bytes", planning.moments, "x.nbytes", "x.numel()", HELD),
    Mutation("one step less", planning.rehearsed, "int(total)", "int(total) - 1", test_the_steps_of_the_run_are_the_turns),
    Mutation("a role that never joins", Rehearsal.turns, "edge < self.total", "edge <= self.total", test_the_steps_of_the_run_are_the_turns),
    Mutation("a list in a list", planning.gathered, " if child not in entries", "", test_a_block_is_gathered_and_what_is_in_none),
    Mutation("few pairs", Rehearsal._pretend, "num * size", "pairs.num * size", partial(patched, test_pairs_are_counted_and_not_made)),
    Mutation("straight but late", planning.extended, "size - FEW[0]", "size - FEW[1]", partial(patched, test_a_step_without_content_is_a_real_one)),
    Mutation("no restoring", planning.fake, "store.update(own)", "pass", test_nothing_moves),
]  # fmt: skip


@pytest.mark.slow  # each runs a test of real steps
@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_the_tests_notice(mutation):
    prove(mutation)
