"""Turns in closed form, against a simulation that counts them out."""

import pytest
import torch
from helpers import UNMEASURED, Pairs, at, fit, same, trainer
from lightning.pytorch import Callback
from torch import nn

from distillkit import checks
from distillkit.cli import front
from distillkit.methods.base import Adam, Distiller
from distillkit.methods.turns import Turns

MIXES = [
    {"a": (1, 0)},
    {"a": (5, 0), "b": (1, 0)},
    {"a": (5, 0), "b": (1, 20)},  # DMD whose fake score warms up
    {"a": (1, 7), "b": (3, 0)},  # the first in order comes late
    {"a": (2, 0), "b": (3, 4), "c": (1, 4)},  # two together, at the end of a cycle
    {"a": (2, 9), "b": (3, 0), "c": (1, 5)},  # inside a cycle, twice
    {"a": (1, 1), "b": (4, 0), "c": (2, 2), "d": (1, 0)},
]


def counted(mix, steps):
    """`(role, cycle)` of each step, by a queue of the joined roles that a newcomer rebuilds."""
    made, queue, cycle = [], [], -1
    for step in range(steps):
        if not queue or any(start == step for _, start in mix.values() if step):
            queue = [role for role, (updates, start) in mix.items() if start <= step for _ in range(updates)]
            cycle += 1
        made.append((queue.pop(0), cycle))
    return made


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_turns_are_those_that_one_counts_out(mix):
    turns = Turns({role: Adam(updates=updates, start=start) for role, (updates, start) in mix.items()})
    made = counted(mix, 60)
    assert [(turns.role(step), turns.cycle(step)) for step in range(60)] == made
    for step in range(61):
        so_far = [role for role, _ in made[:step]]
        assert {role: turns.before(role, step) for role in mix} == {role: so_far.count(role) for role in mix}


def test_without_late_roles_cycles_are_whole():
    turns = Turns({"a": Adam(updates=5), "b": Adam()})
    assert [turns.cycle(step) for step in range(40)] == [step // 6 for step in range(40)]


class Three(Distiller):
    """Three roles that follow the data, one of them late."""

    def __init__(self, start=5, **kwargs):
        super().__init__(**kwargs)
        self.add_role("shadow", Adam(lr=0.01, weight_decay=0.1, updates=2), shadow=nn.Linear(2, 2))
        self.add_role("student", Adam(lr=0.01, weight_decay=0.1, start=start), student=nn.Linear(2, 2))
        self.add_role("third", Adam(lr=0.01), third=nn.Linear(2, 2))
        self.keep_ema()
        self.keep_target(0.5)

    def loss_of(self, module, batch):
        goal = self.randint(1000, "goal") / 1000  # shared by a cycle
        return (module(batch["data"]) - goal + self.randn(batch["data"].shape, "noise")).square().mean()

    def student_loss(self, batch):
        return self.loss_of(self.student, batch)

    def shadow_loss(self, batch):
        return self.loss_of(self.shadow, batch)

    def third_loss(self, batch):
        return self.loss_of(self.third, batch)

    export = sample = condition = None


def test_a_role_is_bit_identical_until_it_joins_and_is_counted_from_then_on():
    """Weights, moments, average and target; the first step it makes is the one that was given."""
    states, run, _ = fit(Three(), 9)
    for state in states[:6]:  # before each of the steps 0 to 5
        assert same(state.weights["student"], states[0].weights["student"]) and same(state.ema, states[0].ema)
        assert state.moments["student"] in ([], [{}] * 2)
    turns = [run.model.turn(step) for step in range(9)]
    assert turns == ["shadow", "shadow", "third"] + ["shadow"] * 2 + ["shadow"] * 2 + ["student", "third"]
    assert same(states[7].weights["student"], states[0].weights["student"])
    assert not same(states[8].weights["student"], states[0].weights["student"]) and not same(
        states[8].ema, states[0].ema
    )
    assert run.model.skipped()["student"] == {"skipped": 0, "steps": 1}


def test_all_turns_of_a_cycle_share_their_integer_and_cycles_do_not():
    model, drawn = Three(), {}
    for step in range(60):
        drawn.setdefault(model.turns.cycle(step), set()).add(at(model, step).randint(10**6, "stop"))
    assert all(len(values) == 1 for values in drawn.values())
    assert len(set.union(*drawn.values())) == len(drawn) == 2 + 14  # three and two steps, then 55 of four


@pytest.mark.parametrize("cut", [3, 5, 6])
def test_a_run_that_is_cut_around_a_start_resumes_bit_equal(cut, tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == cut:
                trainer.save_checkpoint(tmp_path / "cut.ckpt")

    torch.manual_seed(3)
    straight = Three()
    trainer(12, callbacks=[Save()]).fit(straight, Pairs(batch_size=8))
    again = Three()
    trainer(12).fit(again, Pairs(batch_size=8), ckpt_path=tmp_path / "cut.ckpt", weights_only=True)
    assert same(dict(straight.state_dict()), dict(again.state_dict()))


def test_a_run_that_nobody_begins_is_refused_by_the_names_of_its_arguments():
    class Late(Three):
        def __init__(self):
            Distiller.__init__(self)
            self.add_role("fake_score", Adam(start=3), fake_score=nn.Linear(2, 2))
            self.add_role("student", Adam(start=20), student=nn.Linear(2, 2))
            self.keep_ema()

    with pytest.raises(ValueError, match="model.fake_score.start=3 and model.student.start=20 would leave nobody"):
        fit(Late(), 2)
    with pytest.raises(checks.Unfit, match="start must be at least 0, got -1"):
        Adam(start=-1)


def test_from_the_command_line_the_fake_score_warms_up_first(tmp_path, monkeypatch):
    turns = []
    step = Distiller.training_step
    monkeypatch.setattr(
        Distiller,
        "training_step",
        lambda self, batch, batch_idx: turns.append(self.turn(self.global_step)) or step(self, batch, batch_idx),
    )
    words = ["domain=toy", "method=dmd", "model.student.start=20", "network.width=8", "network.depth=1"]
    words += ["data.batch_size=8", "data.num_samples=64", "trainer.max_steps=24", "trainer.limit_val_batches=0"]
    assert front.main(["fit", *words, *UNMEASURED, "--out", str(tmp_path / "run")]) == 0
    assert turns == ["fake_score"] * 20 + ["fake_score", "fake_score", "student", "fake_score"]
