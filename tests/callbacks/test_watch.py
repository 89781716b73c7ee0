"""Runs are watched from the command line: what is said, written, stopped and gone on with."""

import csv
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import BATCH, UNFINISHED, neural, same

from distillkit import runs
from distillkit.callbacks.watch import ROWS, SHOWN, Watch, crowded, valued
from distillkit.cli import front
from distillkit.data import Rows
from distillkit.methods.base import Adam
from distillkit.methods.dmd import DMD
from distillkit.students.few_step import FewStepStudent
from distillkit.watch.causes import CAUSES
from distillkit.watch.passes import Passes
from distillkit.watch.teacher import BEYOND, SHIFT, SPREADS, doubt
from domains.toy.data import ToyData

# A student that moves and a fake score that does not, validated four times in 48 steps
BLIND = ["domain=toy", "method=dmd", "model.student.lr=0.03", "model.fake_score.lr=1e-8", "data.batch_size=64"]
BLIND += ["model.fake_score.updates=1"]
SHORT = ["trainer.max_steps=48", "trainer.val_check_interval=12", "trainer.log_every_n_steps=3", *UNFINISHED]
SAID = CAUSES["lagging_fake_score"].title
MEND = "raise model.fake_score.updates (now 1) or model.fake_score.lr (now 1e-08)"


def fit(out, *words, code=0):
    assert front.main(["fit", *map(str, words), "--out", str(out)]) == code


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """Nothing of one run reaches the next."""
    monkeypatch.setenv(runs.OUT, "")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", runs.OUT):
        monkeypatch.delenv(name, raising=False)


def checkpoint(out):
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)


def watched(out):
    return checkpoint(out)["callbacks"]["Watch"]


def rows(out):
    with (out / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_says_what_is_wrong_once_and_goes_on_bit_for_bit_after_strict(tmp_path, capsys):
    out = tmp_path / "blind"
    fit(out, *BLIND, *SHORT)
    said = capsys.readouterr()
    assert said.err.count(f"warning: {SAID} (") == 1 and MEND in said.err
    (entry,) = json.loads((out / "warnings.json").read_text())
    assert entry["name"] == "lagging_fake_score" and 0 < entry["step"] <= 48 and entry["said"] in said.err
    # one row and one line for each validation
    facts = [row for row in rows(out) if row["watch/spread"]]
    assert len(facts) == 4 and all(row["val/sliced_w2"] and row["watch/passes_per_second"] for row in facts)
    assert sum(float(row["warning/lagging_fake_score"] or 0) for row in rows(out)) == 1
    lines = [line for line in said.out.splitlines() if "val/" in line]
    assert lines and all("  spread " in line and "fake/teacher error" in line for line in lines)
    # the strip: the beginning, four validations and the teacher
    assert [*watched(out)["strip"]] == [0, 12, 24, 36, 48] and (out / "samples" / "progress.png").is_file()

    strict = tmp_path / "strict"
    fit(strict, *BLIND, *SHORT, "--strict", code=1)
    said = capsys.readouterr()
    assert f"stopped by --strict, {SAID}" in said.err and "warning: " not in said.err
    assert f"{MEND}; to go on all the same: python -m" in said.err
    assert json.loads((strict / "warnings.json").read_text()) == [entry]
    before = (strict / "samples" / "progress.png").read_bytes()
    stopped = checkpoint(strict)["global_step"]
    assert entry["step"] < stopped <= 48
    code = front.main(
        ["fit", "--config", str(strict / "config.yaml"), "--ckpt_path", str(strict / "checkpoints" / "last.ckpt")]
    )
    assert code == 0 and SAID not in capsys.readouterr().err  # said once in a run
    assert same(checkpoint(strict)["state_dict"], checkpoint(out)["state_dict"])
    assert same(watched(strict), watched(out))
    assert before != (strict / "samples" / "progress.png").read_bytes()


def test_watching_changes_nothing_and_can_be_left_out(tmp_path, capsys):
    words = [*BLIND, "trainer.max_steps=6", *UNFINISHED]
    fit(tmp_path / "watched", *words)
    fit(tmp_path / "alone", *words, "vars.callbacks.watch.samples=0")
    one, other = tmp_path / "watched", tmp_path / "alone"
    assert same(checkpoint(one)["state_dict"], checkpoint(other)["state_dict"])
    assert not any(key.startswith("watch/") for key in rows(other)[0]) and not (other / "samples").exists()
    assert "watch/spread" in rows(one)[0]  # a run shorter than an interval is validated too


def test_a_run_of_epochs_shorter_than_an_interval_is_validated_once(tmp_path):
    short = ["data.num_samples=64", "data.batch_size=16", "trainer.max_steps=-1", "trainer.max_epochs=2"]
    fit(tmp_path / "run", "domain=toy", "method=dmd", *short, *UNFINISHED)
    validated = [row["step"] for row in rows(tmp_path / "run") if row.get("watch/moved")]
    assert validated == ["7"] and checkpoint(tmp_path / "run")["global_step"] == 8


def test_two_processes_say_it_once(tmp_path, capfd):
    two = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp_fork"]
    short = ["trainer.max_steps=24", "trainer.val_check_interval=12", *UNFINISHED]
    fit(tmp_path / "two", *BLIND, *short, *two)
    assert capfd.readouterr().err.count(f"warning: {SAID}") == 1
    entries = json.loads((tmp_path / "two" / "warnings.json").read_text())
    assert [entry["name"] for entry in entries] == ["lagging_fake_score"]


LOST = "hold NaN or infinity, so their model has diverged: train it anew with a lower model.student.lr"


@pytest.fixture
def losing(monkeypatch):
    """Samples of students are no numbers where the list is told to hold True."""
    lost, own = [], FewStepStudent.forward
    monkeypatch.setattr(
        FewStepStudent, "forward", lambda self, *given: own(self, *given) * (torch.nan if lost else 1.0)
    )
    return lost


def test_a_student_that_diverges_for_a_while_is_measured_again(tmp_path, capsys, losing, monkeypatch):
    out, start = tmp_path / "run", DMD.on_validation_start
    monkeypatch.setattr(
        DMD,
        "on_validation_start",
        lambda self: (losing.__setitem__(slice(None), [1] * (self.global_step == 4)), start(self)),
    )
    fit(out, "domain=toy", "method=dmd", "trainer.max_steps=6", "trainer.val_check_interval=2", *UNFINISHED)
    said = capsys.readouterr()
    assert re.search(rf"^warning: no metrics at step 4: (\d+) of \1 samples {LOST}$", said.err, re.M)
    assert said.err.count("warning: a role has diverged (samples are no numbers): lower model.student.lr (now ") == 1
    assert "Traceback" not in said.err and re.search(r"^step 4  val/.* nan", said.out, re.M)
    measured = [math.isfinite(float(row["val/sliced_w2"])) for row in rows(out) if row["val/sliced_w2"]]
    assert measured == [True, False, True] and (out / "report.html").is_file()


def test_a_student_that_has_diverged_at_the_end_is_a_failure(tmp_path, capsys, losing):
    losing.append(True)
    words = ["domain=toy", "method=dmd", "trainer.max_steps=2", "trainer.limit_val_batches=0"]
    fit(tmp_path / "run", *words, "vars.callbacks.watch.samples=0", "vars.callbacks.finish.num_samples=64", code=1)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert front.main(["validate", *words[:2], "--ckpt_path", str(last), "--out", str(tmp_path / "v")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-2] == f"error: 64 of 64 samples {LOST}" and re.fullmatch(
        rf"error: (\d+) of \1 samples {LOST}", said[-1]
    )


def test_passes_are_counted_by_role():
    model = DMD(neural())
    passes = Passes(model, batch_size=8)
    model._trainer = None
    for role, loss in (("fake_score", model.fake_score_loss), ("student", model.student_loss)) * 2:
        passes.begin(role)
        loss(BATCH)
        passes.end()
    facts = passes.facts()
    assert facts["passes_fake_score"] == 2  # the student's sample and the fake score
    assert facts["passes_student"] == 3  # the student, the teacher, the fake score
    assert facts["passes_per_second"] == pytest.approx(80 / passes.seconds)
    passes.remove()
    model.student_loss(BATCH)
    assert passes.facts()["passes_student"] == 3 and not model.student._forward_pre_hooks


def test_all_points_are_in_the_strip_and_few_of_larger_samples():
    shown = Watch().shown
    assert shown(torch.zeros(300, 2)).tolist() == [*range(300)]
    assert shown(torch.zeros(80, 1, 8, 8)).tolist() == [10 * i for i in range(SHOWN)]  # of all classes, if sorted
    assert len(shown(torch.zeros(80, 2, dtype=torch.long))) == SHOWN  # tokens are no points
    assert shown(torch.zeros(3, 1, 8, 8)).tolist() == [0, 1, 2]
    assert shown(torch.zeros(1).expand(16, 3, 1024, 1024)).tolist() == [0]


def test_a_long_strip_keeps_its_ends_and_even_steps_between():
    kept: list[int] = []
    for step in range(0, 101):
        kept.append(step)
        if len(kept) > ROWS:
            kept.remove(crowded(kept))
    assert kept[0] == 0 and kept[-1] == 100 and len(kept) == ROWS
    gaps = [b - a for a, b in zip(kept, kept[1:], strict=False)]
    assert max(gaps) <= 40


# The teacher's samples against real ones


def judged(samples, unguided=None, kappa=1.0):
    """Causes that samples [64, 1] of a teacher show beside 64 real ones evenly from -1 to 1."""
    real = torch.linspace(-1, 1, 64)[:, None]
    teacher = neural()
    reference = SimpleNamespace(real=real, teacher=samples, cond={}, teacher_cond={})
    reference.unguided = real if unguided is None else unguided
    return doubt(SimpleNamespace(teacher=teacher, kappa=kappa, proof={"gaussian": {}}), reference)[1]


def test_a_teacher_whose_samples_are_far_from_real_ones_is_doubted():
    real, eps = torch.linspace(-1, 1, 64)[:, None], 1e-3
    assert judged(real) == []
    for good, bad in (
        (real * (SPREADS[0] + eps), real * (SPREADS[0] - eps)),
        (real * 0.6 + SHIFT * 0.57, real * 0.6 + SHIFT * 0.65),  # the deviation of real ones is 0.586
        (torch.cat([real[:-1], torch.tensor([[1.2]])]), torch.cat([real[:-2], torch.tensor([[1.2], [1.2]])])),
    ):
        assert judged(good) == []
        assert [finding.name for finding in judged(bad)] == ["unconverged_teacher"]
    assert 1 / 64 < BEYOND < 2 / 64


def test_guidance_is_to_blame_where_the_teacher_is_good_without():
    real = torch.linspace(-1, 1, 64)[:, None]
    (finding,) = judged(real * 2, kappa=8.0)
    assert finding.name == "over_guided" and "kappa 8" in str(finding) and "lower model.kappa" in str(finding)
    assert [finding.name for finding in judged(real * 2, real[:16] * 2, kappa=8.0)] == ["unconverged_teacher"]
    assert judged(real, real * 2, kappa=8.0) == []


def test_what_cannot_be_compared_is_not_judged():
    tokens = torch.zeros(4, 2, dtype=torch.int64)
    alike, some = torch.ones(4, 2), torch.eye(4)
    for real, teacher in ((None, tokens), (tokens, None), (tokens, tokens), (alike, some[:, :2]), (some, some[:, :3])):
        assert doubt(SimpleNamespace(), SimpleNamespace(real=real, teacher=teacher)) == ({}, [])


# Runs of users


def test_a_teacher_that_makes_no_samples_is_not_looked_at(tmp_path, capsys):
    """The contract of the smallest method asks for no more than what it needs."""
    conf = Path(__file__).resolve().parents[1] / "dummy" / "conf"
    fit(tmp_path / "run", f"hydra.searchpath=[file://{conf}]", "domain=dummy", "method=chase", "~vars.callbacks.finish")
    assert "watch/spread" in rows(tmp_path / "run")[-1] and "error" not in capsys.readouterr().err


def test_one_held_out_sample_has_no_spread_and_is_not_looked_at(tmp_path, capsys, monkeypatch):
    out, load = tmp_path / "run", ToyData.load
    monkeypatch.setattr(
        ToyData, "load", lambda self: (load(self)[0], Rows(load(self)[1], torch.arange(1)), load(self)[2])
    )
    fit(out, "domain=toy", "method=dmd", "trainer.max_steps=2", "trainer.limit_val_batches=0", *UNFINISHED)
    assert "warning" not in capsys.readouterr().err and watched(out)["first"] is None


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_samples_in_another_folder(tmp_path, capsys):
    """What was said stays said, the strip begins anew; so where a checkpoint knows nothing."""
    words = ["domain=toy", "method=dmd", "data.batch_size=16", *UNFINISHED]
    fit(tmp_path / "a", *words, "trainer.max_steps=2")
    fewer, last = "vars.callbacks.watch.samples=4", tmp_path / "a" / "checkpoints" / "last.ckpt"
    fit(tmp_path / "b", *words, "trainer.max_steps=3", fewer, "--strict", "--ckpt_path", last)
    assert (tmp_path / "b" / "warnings.json").read_bytes() == (tmp_path / "a" / "warnings.json").read_bytes()
    assert {step: len(row) for step, row in watched(tmp_path / "b")["strip"].items()} == {2: 4, 3: 4}
    old = torch.load(last, weights_only=True)
    del old["callbacks"]["Watch"]
    torch.save(old, tmp_path / "old.ckpt")
    fit(tmp_path / "c", *words, "trainer.max_steps=3", "--ckpt_path", tmp_path / "old.ckpt")
    assert [*watched(tmp_path / "c")["strip"]] == [2, 3]


def test_a_mend_says_what_its_keys_are_now():
    model = DMD(neural(), kappa=8.0, gan=0.5, student=Adam(lr=0.05))
    for mend, said in (
        ("lower model.student.lr, or model.gan", "lower model.student.lr (now 0.05), or model.gan (now 0.5)"),
        ("lower model.kappa", "lower model.kappa (now 8)"),
        ("say model.kappa=1, or train the teacher with model.drop=0.1",) * 2,
        ("lower its rate, model.ROLE.lr",) * 2,
        ("lower model.other.lr, set model.sigma_data",) * 2,  # it has none
    ):
        assert valued(mend, model) == said


def test_passes_are_counted_whatever_their_inputs_are_called():
    model = DMD(neural())
    passes = Passes(model, batch_size=8)
    passes.begin("student")
    model.student(x_t=torch.zeros(8, 2), t=torch.ones(8), cond={"label": torch.zeros(8, dtype=torch.int64)})
    passes.end()
    assert passes.facts()["passes_student"] == 1


def test_strict_needs_something_that_looks(tmp_path, capsys):
    fit(tmp_path / "run", *BLIND, "vars.callbacks.watch.samples=0", "--strict", code=2)
    assert "looks at nothing in this run: leave one out" in capsys.readouterr().err
