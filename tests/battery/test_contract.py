"""What every method owes to the framework, whatever it computes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import trainer
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy

from distillkit.cli import front
from distillkit.cli.matrix import compatibility
from tests.battery.conftest import DOMAINS, FEW_PAIRS, FOREIGN, TINY, build, compose, file_of, tiny, weights


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_pair_builds_or_is_refused_in_one_sentence(method, domain, tmp_path, monkeypatch, capsys):
    reason = compatibility(domain, method, tuple(FOREIGN))
    if reason is None:
        made = build(f"domain={domain}", f"method={method}")
        made.model.require(made.data)
        made.data.setup()
        made.model.check(made.data)
    else:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(torch.nn.Module, "__init__", lambda *_, **__: pytest.fail("something was built"))
        assert front.main(["fit", *FOREIGN, f"domain={domain}", f"method={method}", "--out", "run"]) == 2
        said, end = capsys.readouterr().err.split("; ")
        assert said == f"error: {reason}" and end == "`python -m distillkit list` shows what goes together\n"
        needed, lacked = re.fullmatch(r"error: (\w+).* needs ([\w ]+), which .*", said).groups()
        model = str(compose(f"domain={domain}", f"method={method}")["model"])
        assert lacked and needed in re.findall(r"'class_path': '[\w.]*?(\w+)'", model)
        assert not [*tmp_path.iterdir()]


def test_max_steps_counts_optimiser_steps(method):
    made, calls = tiny(method), []
    step = made.model.training_step
    made.model.training_step = lambda batch, batch_idx: calls.append(batch_idx) or step(batch, batch_idx)
    run = trainer(max_steps=10)
    run.fit(made.model, made.data)
    assert len(calls) == run.global_step == 10
    assert not made.model.bad_steps.any()  # all finite


@pytest.mark.per_class
def test_only_the_role_in_turn_moves(method):
    made = tiny(method, "model.student.weight_decay=0.1")

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
    cycle = sum(settings.updates for settings in made.model.settings.values())
    trainer(max_steps=2 * cycle, callbacks=[watch]).fit(made.model, made.data)
    assert {role: watch.turns.count(role) for role in made.model.roles} == {
        role: 2 * settings.updates for role, settings in made.model.settings.items()
    }


@pytest.mark.per_class
def test_teacher_is_untouched(method):
    made = tiny(method)
    teacher = getattr(made.model, "teacher", None)
    if teacher is None:
        assert not any(key.startswith("teacher.") for key in made.model.state_dict())
        return
    before = teacher.fingerprint()
    trainer(max_steps=12).fit(made.model, made.data)
    assert teacher.fingerprint() == before
    assert not teacher.training and not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert not any(key.startswith("teacher.") for key in made.model.state_dict())


@pytest.mark.per_class
def test_training_is_deterministic_and_seeded(method):
    runs = []
    for seed in (0, 0, 1):
        made = tiny(method, seed=seed)
        trainer(max_steps=7).fit(made.model, made.data)
        runs.append(weights(made.model))
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])
    assert any(not torch.equal(runs[0][key], runs[2][key]) for key in runs[0])


@pytest.mark.per_class
@pytest.mark.parametrize("cut", [7, 8, 13])  # inside an epoch of eight batches, at its end, in the second
def test_resume_is_bit_equal(method, cut, tmp_path):
    class SaveOnce(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == cut:
                trainer.save_checkpoint(tmp_path / "cut.ckpt")

    straight = tiny(method)
    trainer(max_steps=20, callbacks=[SaveOnce()]).fit(straight.model, straight.data)
    second = tiny(method)
    trainer(max_steps=20).fit(second.model, second.data, ckpt_path=tmp_path / "cut.ckpt", weights_only=True)
    expected, got = weights(straight.model), weights(second.model)
    different = [key for key in expected if not torch.equal(expected[key], got[key])]
    assert not different, f"resumed at step {cut}, these differ: {different[:5]}"


@pytest.mark.per_class
def test_two_processes_equal_one_with_two_micro_batches(method, tmp_path):
    alone = tiny(method)
    trainer(max_steps=6, accumulate_grad_batches=2).fit(alone.model, alone.data)
    together = tiny(method)

    class Keep(Callback):
        def on_train_end(self, trainer, model):
            if trainer.is_global_zero:
                torch.save(weights(model), tmp_path / "weights.pt")

    strategy = DDPStrategy(start_method="fork", find_unused_parameters=True, process_group_backend="gloo")
    trainer(max_steps=6, devices=2, strategy=strategy, callbacks=[Keep()]).fit(together.model, together.data)
    expected, got = weights(alone.model), torch.load(tmp_path / "weights.pt", weights_only=True)
    for key in expected:
        torch.testing.assert_close(
            got[key], expected[key], rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.per_class
def test_killed_and_resumed_from_the_command_line(method, tmp_path):
    """SIGKILL in the middle; the resumed run's last checkpoint equals that of a run that was left alone, bit for bit."""

    def command(out: str, *more: str) -> list[str]:
        words = [
            *FOREIGN,
            "domain=toy",
            f"method={method}",
            *TINY,
            *FEW_PAIRS.get(method, []),
            "vars.callbacks.checkpoint.every=5",
        ]
        words += ["vars.callbacks.finish.num_samples=0", "trainer.limit_val_batches=0"]
        return [
            sys.executable,
            "-m",
            "distillkit",
            "fit",
            *words,
            "trainer.max_steps=600",
            "--out",
            str(tmp_path / out),
            *more,
        ]

    subprocess.run(command("whole"), check=True, capture_output=True, timeout=300)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    process = subprocess.Popen(command("cut"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(3000):
        if last.exists() or process.poll() is not None:
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    step = torch.load(last, weights_only=True)["global_step"]
    assert 0 < step < 600
    resumed = [
        sys.executable,
        "-m",
        "distillkit",
        "fit",
        "--config",
        str(tmp_path / "cut" / "config.yaml"),
        "--ckpt_path",
        str(last),
    ]
    subprocess.run(resumed, check=True, capture_output=True, timeout=300)
    whole, again = (
        torch.load(tmp_path / out / "checkpoints" / "last.ckpt", weights_only=True) for out in ("whole", "cut")
    )
    assert whole["global_step"] == again["global_step"] == 600
    assert all(torch.equal(value, again["state_dict"][key]) for key, value in whole["state_dict"].items())


def test_configuration_is_plain_data(method):
    json.dumps(compose("domain=toy", f"method={method}"))
    assert file_of(method).read_text().startswith("# @package _global_")
