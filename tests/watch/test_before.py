"""What is said before the first step: closed forms, and the command line."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
import yaml
from helpers import UNMEASURED, at, gaussian

from distillkit import runs
from distillkit.cli import front
from distillkit.data import TensorData
from distillkit.diffusion.process import DiscreteVariancePreserving, RectifiedFlow, VarianceExploding
from distillkit.discrete.exact import MarkovChain
from distillkit.discrete.process import Absorbing, Uniform
from distillkit.discrete.teacher import DiscreteTeacher
from distillkit.methods.pretrain import Pretrain
from distillkit.networks.mlp import MLP
from distillkit.watch import before
from distillkit.watch.causes import Finding
from distillkit.watch.likeness import RATIOS, Judge, Likeness, deviation, entropy
from domains.toy.teacher import Circle

NUM = 20_000


def normal(mean, std, num=NUM):
    """Samples [num, 1] whose mean and deviation are exact."""
    z = torch.randn(num, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return mean + std * (z - z.mean()) / z.std(unbiased=False)


@pytest.mark.parametrize("process", [VarianceExploding(), RectifiedFlow()])
@pytest.mark.parametrize("mean, std", [(1.0, 0.5), (3.0, 0.5), (1.0, 1.5)])
def test_likeness_of_gaussian_data(process, mean, std):
    """A linear denoiser's error is known: `(1 - a)^2 ((m' - m)^2 + s'^2) + (a r)^2`."""
    judge = Judge(gaussian(1.0, 0.5, process), normal(1.0, 0.5), {}, 5000)
    for likeness, ratio in zip(judge.likeness(normal(mean, std)), RATIOS, strict=True):
        r = 0.5 * ratio  # the noise to the signal
        a = 0.25 / (0.25 + r**2)
        error = (1 - a) ** 2 * ((mean - 1) ** 2 + std**2) + (a * r) ** 2
        assert likeness.own == pytest.approx(error / ((1 - a) ** 2 * 0.25 + (a * r) ** 2), rel=0.02)
        assert likeness.guess == pytest.approx(error / (std**2 * r**2 / (std**2 + r**2)), rel=0.02)


@pytest.mark.parametrize("process", [Absorbing(2), Uniform(2)])
def test_likeness_of_tokens(process):
    """Of independent tokens nothing is learnt from the others: the nats are a cross-entropy."""
    law, other = torch.tensor([0.9, 0.1], dtype=torch.float64), torch.tensor([0.2, 0.8], dtype=torch.float64)
    chain = MarkovChain(law, law.expand(2, 2), 8, process)
    own, real = (
        (torch.rand(20_000, 8, generator=torch.Generator().manual_seed(seed)) < share).long()
        for seed, share in ((1, 0.1), (2, 0.8))
    )
    judge = Judge(DiscreteTeacher(chain, (8,)), own, {}, 20_000)
    crossed, within, free = (-(p * q.log()).sum() for p, q in ((other, law), (law, law), (other, other)))
    for likeness in judge.likeness(real):
        assert likeness.own == pytest.approx(float(crossed / within), rel=0.05)
        assert likeness.guess == pytest.approx(float(crossed / free), rel=0.05)


def test_noise_does_not_depend_on_chunks():
    teacher, own = gaussian(0.0, 1.0), normal(0.0, 1.0, 50)
    whole, parts = (Judge(teacher, own, {}, chunk).errors(own) for chunk in (50, 7))
    assert all(torch.allclose(a, b) for a, b in zip(whole, parts, strict=True))


def test_padding_of_sets_does_not_count():
    mask = torch.tensor([[True, True], [True, False]])
    x = torch.tensor([[[1.0], [5.0]], [[3.0], [99.0]]])
    assert float(deviation(x, mask)) == pytest.approx(math.sqrt(2 / 3))  # of 1 and 3, and of 5 alone
    assert float(deviation(x[:, :1])) == pytest.approx(1.0)
    assert entropy(torch.tensor([[0, 0], [3, 3]])) == pytest.approx(math.log(2))


def test_share_of_the_first_student():
    assert before.kept(10, 4, halflife=20.0, rampup=1e9) == pytest.approx(0.5 ** (10 * 4 / 20))
    harmonic = sum(1 / n for n in range(1, 11))
    assert before.kept(10, 4, halflife=1e9, rampup=0.5) == pytest.approx(0.5 ** (harmonic / 0.5))
    assert before.kept(1000, 64, halflife=500_000, rampup=0.05) < 1e-40  # the default


def test_share_of_the_first_student_is_that_of_the_average():
    """Three updates of an average of ones towards zeros leave that share."""
    model = Pretrain(MLP([2], width=8, depth=1), VarianceExploding(), [2], ema_halflife=20.0, ema_rampup=0.5)
    for module, value in ((model.ema, 1.0), (model.student, 0.0)):
        for parameter in module.parameters():
            parameter.data.fill_(value)
    for step in range(3):
        at(model, step)._trainer.datamodule = SimpleNamespace(batch_size=8)
        model.update_ema()
    left = next(model.ema.parameters()).flatten()[0]
    assert float(left) == pytest.approx(before.kept(3, 8, 20.0, 0.5), rel=1e-5)


def run_of(steps, batch=8, **arguments):
    """What `in_training` says of a run of so many steps."""
    model = Pretrain(MLP([2], width=8, depth=1), VarianceExploding(), [2], **arguments)
    at(model)._trainer.estimated_stepping_batches = steps
    return before.in_training(model, SimpleNamespace(batch_size=batch))


def test_runs_that_are_too_short():
    facts, (finding,) = run_of(9)
    assert facts["updates"] == 9 and finding.name == "few_updates" and "it makes 9" in str(finding)
    assert run_of(10)[1] == [] and run_of(math.inf) == ({}, [])


def test_averages_that_are_too_old():
    facts, found = run_of(100, ema_halflife=8000.0, ema_rampup=1e6)
    assert names(found) == ["long_ema"] and facts["kept"] == pytest.approx(0.5**0.1)
    assert "93 %" in found[0].measured
    assert run_of(100, ema_halflife=8000.0)[1] == []  # the ramp makes it young
    assert run_of(100, ema_halflife=200.0, ema_rampup=1e6)[1] == []  # a sixteenth


def test_averages_are_judged_by_all_samples_of_a_step():
    """Those of all processes and micro-batches; steps that take turns share the updates."""
    model = Pretrain(MLP([2], width=8, depth=1), VarianceExploding(), [2], ema_halflife=8000.0, ema_rampup=1e6)
    trainer = at(model)._trainer
    trainer.estimated_stepping_batches, trainer.world_size, trainer.accumulate_grad_batches = 40, 2, 3
    model.tells_steps, model.num_steps = True, 4
    facts, found = before.in_training(model, SimpleNamespace(batch_size=8))
    assert facts == {"updates": 10, "kept": pytest.approx(before.kept(40, 48, 8000.0, 1e6))}
    assert names(found) == ["long_ema"]
    trainer.estimated_stepping_batches = 39
    assert names(before.in_training(model, SimpleNamespace(batch_size=8))[1]) == ["few_updates"]  # and of no age


@pytest.mark.parametrize(
    "own, guess, itself, gaussian, found",
    [
        (before.OWN + 0.01, before.GUESS + 0.01, 0.5, True, ["unlike_data"]),
        (before.OWN - 0.01, before.GUESS + 9, 0.5, True, []),
        (before.OWN + 9, before.GUESS - 0.01, 0.5, True, []),
        (before.OWN - 0.01, before.GUESS + 9, 0.5, False, ["unlike_data"]),
        (before.OWN_NATS - 0.01, before.GUESS + 9, 0.5, False, []),
        (before.OWN + 0.01, before.GUESS + 0.01, before.LEARNT + 0.01, True, ["unconverged_teacher"]),
    ],
)
def test_data_are_unlike_where_both_measures_say_so_at_one_level(own, guess, itself, gaussian, found):
    """Levels at which one of them alone is large count for nothing."""
    levels = [Likeness(99.0, 0.1, itself), Likeness(own, guess, 1.0), Likeness(0.1, 99.0, 1.0)]
    judge = SimpleNamespace(gaussian=gaussian, likeness=lambda real: levels)
    assert names(before.alike(judge, None)[1]) == found


# Classes


def labelled(num=200):
    """The eight labelled modes: the judge of their teacher, and data."""
    teacher = Circle(labelled=True)
    batch = teacher.exact_samples(num, torch.Generator().manual_seed(0))
    own = teacher.exact_samples(num, torch.Generator().manual_seed(0))["data"]
    return Judge(teacher, own, {"label": batch["label"]}, 100), batch["data"]


def names(found):
    return [finding.name for finding in found]


def test_teacher_that_knows_its_classes():
    judge, data = labelled()
    facts, found = before.guidance(SimpleNamespace(kappa=3.0), judge, data)
    assert 1 < facts["null"] < facts["wrong"] and found == []


def test_teacher_that_ignores_its_classes(monkeypatch):
    judge, data = labelled()
    exact = type(judge.teacher.denoiser).forward
    monkeypatch.setattr(type(judge.teacher.denoiser), "forward", lambda self, x, t, cond=None: exact(self, x, t, None))
    facts, found = before.guidance(SimpleNamespace(kappa=1.0), judge, data)
    assert facts == {"null": 1, "wrong": 1} and names(found) == ["ignored_class"]


@pytest.mark.parametrize("kappa", [1.0, 3.0])
def test_null_branch_that_was_never_trained(monkeypatch, kappa):
    judge, data = labelled()
    monkeypatch.setattr(judge.teacher, "drop", 0, raising=False)
    assert names(before.guidance(SimpleNamespace(kappa=kappa), judge, data)[1]) == ["untrained_null"] * (kappa != 1)


def test_wrong_classes_differ_everywhere():
    cond = {"label": torch.arange(200) % 3, "one": torch.zeros(200, dtype=torch.long), "x": torch.ones(200)}
    changed = before.wrong(cond, {"label": 3, "one": 1})
    assert (changed["label"] != cond["label"]).all() and set(changed["label"].tolist()) == {0, 1, 2}
    assert (changed["one"] == 0).all() and changed["x"] is cond["x"]


def test_classes_without_training_data():
    data = SimpleNamespace(train=TensorData({"label": torch.tensor([0, 2, 2])}))
    _, (finding,) = before.classes(SimpleNamespace(classes={"label": 4}), data)
    assert finding.name == "unseen_class" and finding.measured == "label 1, 3"
    assert before.classes(SimpleNamespace(classes={"label": 1}), data) == ({}, [])
    assert before.classes(SimpleNamespace(classes={"label": 4}, teacher=0), data) == ({}, [])  # meant for some
    for num, shown in ((8, "1, 3, 4, 5, 6 ..."), (7, "1, 3, 4, 5, 6")):
        (finding,) = before.classes(SimpleNamespace(classes={"label": num}), data)[1]
        assert finding.measured == f"label {shown}"


# Copies, starts and scales


@pytest.mark.parametrize("copied", [True, False])
def test_teacher_that_repeats_its_training_data(copied):
    train, held_out, fresh = torch.randn(3, 100, 20, generator=torch.Generator().manual_seed(0))
    made = train[:50] + 0.1 * fresh[:50] if copied else fresh[:50]
    reference = SimpleNamespace(real=held_out[:50], teacher=made, cond={})
    data = SimpleNamespace(train=TensorData({"data": train}), classes={})
    facts, found = before.repeated(reference, data)
    assert names(found) == ["memorised"] * copied
    assert facts["nearest"] < 0.2 if copied else 0.9 < facts["nearest"] < 1.1


@pytest.mark.parametrize("copied", [True, False])
def test_data_are_not_unlike_a_teacher_that_copies_them(copied, monkeypatch):
    """Held-out data are far from what a teacher of a few samples knows; that is no wrong range."""
    for part in ("in_training", "classes", "scale", "start", "guidance"):
        monkeypatch.setattr(before, part, lambda *args: ({}, []))
    monkeypatch.setattr(before, "encoded", lambda *args: torch.zeros(2, 2))
    monkeypatch.setattr(before, "Judge", lambda *args: None)
    monkeypatch.setattr(before, "alike", lambda *args: ({}, [Finding("unlike_data", "")]))
    monkeypatch.setattr(before, "repeated", lambda *args: ({}, [Finding("memorised", "")] * copied))
    reference = SimpleNamespace(teacher=0, unguided=0, cond={}, teacher_cond={})
    _, found = before.look(SimpleNamespace(teacher=0), SimpleNamespace(batch_size=1), reference)
    assert names(found) == (["memorised"] if copied else ["unlike_data"])


@pytest.mark.parametrize(
    "prediction, process, t, said",
    [
        ("eps", DiscreteVariancePreserving(), 999.0, False),
        ("eps", DiscreteVariancePreserving(zero_snr=True), 999.0, True),
        ("v", DiscreteVariancePreserving(zero_snr=True), 999.0, False),
        ("eps", DiscreteVariancePreserving(zero_snr=True), 900.0, False),
        ("eps", RectifiedFlow(), 1.0, True),
    ],
)
def test_first_step_without_signal(prediction, process, t, said):
    denoiser = SimpleNamespace(prediction=prediction, process=process)
    model = SimpleNamespace(
        step_times=torch.tensor([t, t / 4], dtype=torch.float64), teacher=SimpleNamespace(denoiser=denoiser)
    )
    _, found = before.start(model)
    assert names(found) == ["no_start"] * said
    if said:
        mend = float(found[0].mend.rpartition("=")[2])
        assert 90 < float(process.ratio(torch.tensor(mend, dtype=torch.float64))) < 110


@pytest.mark.parametrize("factor, said", [(1.0, False), (2.5, False), (4.0, True), (0.25, True)])
def test_scale_of_data(factor, said):
    model = Pretrain(MLP([1], width=8, depth=1), VarianceExploding(), [1], sigma_data=0.5)
    facts, found = before.scale(model, normal(0.0, 0.5 * factor).float(), None)
    assert facts["std"] == pytest.approx(0.5 * factor, rel=1e-3) and names(found) == ["wrong_scale"] * said
    flow = Pretrain(MLP([1], width=8, depth=1), RectifiedFlow(), [1], prediction="flow", sigma_data=0.5)
    assert before.scale(flow, normal(0.0, 0.5 * factor).float(), None)[1] == []  # it does not count on sigma_data
    assert names(before.scale(flow, normal(0.0, 75.0).float(), None)[1]) == ["wrong_scale"]
    for std, wrong in ((before.UNSCALED * 0.9, []), (before.UNSCALED * 1.1, ["wrong_scale"])):  # times the noise's
        assert names(before.scale(flow, normal(0.0, std).float(), None)[1]) == wrong


def test_scale_of_sets_is_that_of_their_elements():
    mask = torch.tensor([[True, True], [True, False]])
    facts, _ = before.scale(SimpleNamespace(), torch.tensor([[[1.0], [5.0]], [[3.0], [99.0]]]), mask)
    assert facts["mean"] == pytest.approx(3.0)


# From the command line


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """`run(*words, code=0)` in this process: the run folder, and what was said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(runs.OUT, "")
    monkeypatch.delenv(runs.OUT)

    def go(*words, out="run", code=0):
        assert front.main(["fit", "domain=toy", *words, *UNMEASURED, "--out", out]) == code
        return tmp_path / out, capsys.readouterr().err

    return go


def warned(folder):
    return [entry["name"] for entry in json.loads((folder / "warnings.json").read_text())]


ELSEWHERE = "data.teacher={_target_: domains.toy.teacher.Gaussian, mean: [9.0, 9.0]}"


def test_data_of_another_kind_are_refused(run):
    words = ["method=dmd", "trainer.max_steps=2", ELSEWHERE]
    folder, said = run(*words, code=2)
    assert said.splitlines()[-1].startswith("error: the data are unlike the teacher's (its error on them is ")
    assert not folder.exists()
    override = said.split("or say ")[1].strip()
    folder, said = run(*words, override)
    assert "unlike_data" in warned(folder) and "watch/guess" in (folder / "metrics.csv").read_text()


def test_guidance_by_a_null_branch_without_training_is_refused(run):
    modes = "{_target_: domains.toy.teacher.Circle, labelled: true}"
    small = ["teacher=labelled", "vars.classes.label=8", "network.width=16", "network.depth=2", "trainer.max_steps=2"]
    folder, _ = run("method=pretrain", *small, "model.drop=0", out="first")
    assert yaml.safe_load((folder / "teacher" / "teacher.yaml").read_text())["drop"] == 0
    words = ["method=dmd", "teacher=folder", f"teacher.path={folder / 'teacher'}", f"data.teacher={modes}"]
    _, said = run(*words, "trainer.max_steps=2", "model.kappa=2", code=2)
    assert "unconditional branch is untrained" in said and "drop: 0" in said
    folder, _ = run(*words, "trainer.max_steps=2")
    assert "untrained_null" not in warned(folder) and "unconverged_teacher" in warned(folder)


def test_short_run_of_the_wrong_scale(run):
    folder, said = run("method=pretrain", "trainer.max_steps=2", "model.sigma_data=50", "network.width=16")
    assert {"few_updates", "wrong_scale"} <= {*warned(folder)}
    assert "set model.sigma_data=1.3" in said and "raise trainer.max_steps" in said
