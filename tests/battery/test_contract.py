"""The contract of every method with the framework, whatever it computes."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from functools import cache

import pytest
import torch
from helpers import UNMEASURED, Command, ForkedShard, distil, forked_ddp, trainer
from lightning.pytorch import Callback

from distillkit import load_student
from distillkit.callbacks.checkpoint import Checkpoint
from distillkit.callbacks.watch import Watch
from distillkit.capabilities import imported
from distillkit.cli import config, front, pairing
from distillkit.cli.matrix import compatibility
from distillkit.watch.during import measure
from tests.battery.conftest import (
    DOMAINS,
    FOREIGN,
    cases,
    chosen,
    compose,
    file_of,
    loaded,
    made_of,
    path_of,
    small,
    takes,
    tiny,
    weights,
)


def test_every_class_of_a_pair_is_a_case():
    """A class that is nobody's case owes nothing here, and nobody would notice."""
    own = tuple(FOREIGN)
    pairs = [(domain, method) for domain in DOMAINS for method in chosen(()) if not compatibility(domain, method, own)]
    assert {pairing.target(method, own, domain) for domain, method in pairs} <= {case.path for case in cases()}


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_pair_builds_or_is_refused_in_one_sentence(method, domain, tmp_path, monkeypatch, capsys):
    reason = compatibility(domain, method, tuple(FOREIGN))
    chosen = config.hand_over(pairing.pair(domain, method, tuple(FOREIGN)))
    if reason is None:
        model, data = made_of(chosen, "model").model, loaded(json.dumps(chosen["data"]))
        model.require(data)
        model.check(data)
        return
    parts = re.findall(r"'class_path': '([\w.]+)'", str(chosen["model"]))
    if said := re.fullmatch(r"(\w+).* needs ([\w ]+), which .*", reason):
        assert said[2] and said[1] in [path.rpartition(".")[2] for path in parts]
    else:  # in a sentence of a part's own
        own = [sentence for path in parts for sentence in getattr(imported(path), "refused", {}).values()]
        assert reason in [sentence.format(method=imported(parts[0]).__name__) for sentence in own]
    if method == first_of(path_of(domain, method), domain):  # typed: presets of one class are refused by the same line
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(torch.nn.Module, "__init__", lambda *_, **__: pytest.fail("something was built"))
        assert front.main(["fit", *FOREIGN, f"domain={domain}", f"method={method}", "--out", "run"]) == 2
        said, end = capsys.readouterr().err.split("; ")
        assert said == f"error: {reason}" and end == "`python -m distillkit list` shows what goes together\n"
        assert not [*tmp_path.iterdir()]


@cache
def first_of(path: str, domain: str) -> str:
    """The first method of a class that a domain does not take."""
    own = tuple(FOREIGN)
    return next(m for m in chosen(()) if path_of(domain, m) == path and compatibility(domain, m, own))


def test_every_role_takes_a_finite_step(method, tmp_path):
    """One cycle of turns, which a preset's settings have part in; then the student is read."""
    made = tiny(method)
    trainer(max_steps=cycle(made.model)).fit(made.model, made.data)
    assert not made.model.bad_steps.any()
    folder = made.model.export(tmp_path / "product")
    if (folder / "student.yaml").exists():
        expected, read = made.model.product().state_dict(), load_student(folder).state_dict()
        assert expected.keys() == read.keys() and all(torch.equal(read[key], expected[key]) for key in read)


def cycle(model) -> int:
    """The steps until every role has had its turns."""
    return sum(settings.updates for settings in model.settings.values())


def test_max_steps_counts_optimiser_steps(case):
    made, calls = tiny(case), []
    step = made.model.training_step
    made.model.training_step = lambda batch, batch_idx: calls.append(batch_idx) or step(batch, batch_idx)
    run = trainer(max_steps=10)
    run.fit(made.model, made.data)
    assert len(calls) == run.global_step == 10
    assert not made.model.bad_steps.any()  # all finite


def test_only_the_role_in_turn_moves(case):
    made = tiny(case, *(["model.student.weight_decay=0.1"] if "student" in takes(case.kind) else []))

    class Watch(Callback):
        turns: list = []

        def on_train_batch_start(self, trainer, model, batch, batch_idx):
            self.role = model.turn(model.global_step)
            self.before = {role: [p.detach().clone() for p in model.role_parameters(role)] for role in model.roles}

        def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
            self.turns.append(self.role)
            for role, before in self.before.items():
                moved = any(not torch.equal(p, q) for p, q in zip(model.role_parameters(role), before, strict=True))
                assert moved == (role == self.role), (
                    f"step {model.global_step}: {role} moved={moved} in the turn of {self.role}"
                )

    watch = Watch()
    trainer(max_steps=2 * cycle(made.model), callbacks=[watch]).fit(made.model, made.data)
    assert {role: watch.turns.count(role) for role in made.model.roles} == {
        role: 2 * settings.updates for role, settings in made.model.settings.items()
    }


def test_teacher_is_untouched_and_watched(case):
    made = tiny(case)
    teacher = getattr(made.model, "teacher", None)
    if teacher is None:
        assert not any(key.startswith("teacher.") for key in made.model.state_dict())
        return
    before, watch = teacher.fingerprint(), Watch(samples=2, unlike=True)  # so few say nothing of the law
    trainer(max_steps=12, callbacks=[watch]).fit(made.model, made.data)
    assert all(map(math.isfinite, measure(made.model, watch.reference)[0].values()))
    assert teacher.fingerprint() == before
    assert not teacher.training and not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert not any(key.startswith("teacher.") for key in made.model.state_dict())


def test_training_is_deterministic_and_seeded(case):
    runs = []
    for seed in (0, 0, 1):
        made = tiny(case, seed=seed)
        trainer(max_steps=7).fit(made.model, made.data)
        runs.append(weights(made.model))
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])
    assert any(not torch.equal(runs[0][key], runs[2][key]) for key in runs[0])


def test_resume_is_bit_equal(case, tmp_path):
    cuts = (7, 8, 13)  # inside an epoch of eight batches, at its end, in the second

    class Save(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step in cuts:
                trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    straight = tiny(case)
    trainer(max_steps=20, callbacks=[Save()]).fit(straight.model, straight.data)
    expected = weights(straight.model)
    for cut in cuts:
        second = tiny(case)
        trainer(max_steps=20).fit(second.model, second.data, ckpt_path=tmp_path / f"{cut}.ckpt", weights_only=True)
        got = weights(second.model)
        different = [key for key in expected if not torch.equal(expected[key], got[key])]
        assert not different, f"resumed at step {cut}, these differ: {different[:5]}"


def train_as_one(case, num, strategy, path):
    """Processes train as one with as many micro-batches: weights, and steps of every tensor."""
    alone = tiny(case)
    trainer(max_steps=6, accumulate_grad_batches=num).fit(alone.model, alone.data)
    together = tiny(case)

    class Keep(Callback):
        def on_train_end(self, trainer, model):
            optimizer = trainer.strategy.optimizer_state(trainer.optimizers[0])
            whole = model.gathered()
            if trainer.is_global_zero:
                steps = {number: float(own["step"]) for number, own in optimizer["state"].items()}
                torch.save({"weights": weights(whole), "steps": steps}, path)

    trainer(max_steps=6, devices=num, strategy=strategy, callbacks=[Keep()]).fit(together.model, together.data)
    expected, got = weights(alone.model), torch.load(path, weights_only=True)
    for key in expected:
        torch.testing.assert_close(
            got["weights"][key], expected[key], rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
        )
    steps = alone.model.optimizers().optimizer.state_dict()["state"]
    assert got["steps"] == {number: float(own["step"]) for number, own in steps.items()}


def test_two_processes_equal_one_with_two_micro_batches(case, tmp_path):
    train_as_one(case, 2, forked_ddp(), tmp_path / "weights.pt")


@pytest.mark.slow  # one of them is in tests/test_sharding.py
def test_spread_networks_equal_whole_ones(case, tmp_path):
    train_as_one(case, 2, ForkedShard(), tmp_path / "weights.pt")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [forked_ddp, ForkedShard], ids=["ddp", "shard"])
def test_four_processes_equal_one_with_four_micro_batches(case, strategy, tmp_path):
    train_as_one(case, 4, strategy(), tmp_path / "weights.pt")


def killed(argv: list[str]) -> int:
    """The command line, ended by SIGKILL two steps after the checkpoint of step 15."""
    saved = Checkpoint.on_train_batch_end

    def on_train_batch_end(self, trainer, *args):
        saved(self, trainer, *args)
        if trainer.global_step == 17:
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpoint.on_train_batch_end = on_train_batch_end
    return front.main(argv)


@pytest.mark.per_family
def test_killed_and_resumed_from_the_command_line(case, tmp_path):
    """A run killed by SIGKILL and resumed ends in an undisturbed run's checkpoint, bit for bit."""
    words = [*FOREIGN, *small(case), *UNMEASURED, "trainer.max_steps=30"]
    words += ["vars.callbacks.checkpoint.every=5"]
    distil("fit", *words, "--out", tmp_path / "whole")
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    process = Command("fit", *words, "--out", tmp_path / "cut", work=killed)
    assert process.wait() == -signal.SIGKILL, process.stderr
    assert torch.load(last, weights_only=True)["global_step"] == 15
    distil("fit", "--config", tmp_path / "cut" / "config.yaml", "--ckpt_path", last)
    whole, again = (
        torch.load(tmp_path / out / "checkpoints" / "last.ckpt", weights_only=True) for out in ("whole", "cut")
    )
    assert whole["global_step"] == again["global_step"] == 30
    assert all(torch.equal(value, again["state_dict"][key]) for key, value in whole["state_dict"].items())


def test_configuration_is_plain_data(method):
    json.dumps(compose("domain=toy", f"method={method}"))
    assert file_of(method).read_text().startswith("# @package _global_")
