"""The comparisons of the protocol, also for students with a context, and their files."""

from __future__ import annotations

import inspect
import json
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dummy.parts import Places, PlacesMedia
from helpers import gaussian, trainer, wake

from distillkit import cache
from distillkit.callbacks.finish import finish
from distillkit.cli import exports
from distillkit.cli import products as student_verbs
from distillkit.data import TensorData
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import RectifiedFlow, VarianceExploding
from distillkit.errors import UsageError
from distillkit.evaluation import metrics
from distillkit.evaluation.protocol import evaluate
from distillkit.methods.ctmsr import CTMSR
from distillkit.methods.dmd import DMD
from distillkit.methods.sid import SiD
from distillkit.networks.mlp import MLP
from distillkit.networks.particles import Particles
from distillkit.report.numbers import number
from distillkit.report.verdict import verdict
from distillkit.students.base import load_student
from distillkit.students.makers import Copy, Fresh, FromFolder, Leap, Lora, Routed
from distillkit.teachers.base import Teacher


def teacher() -> Teacher:
    torch.manual_seed(0)
    network = MLP([2], width=8, depth=1)
    torch.nn.init.normal_(network.out.weight)  # zero at first, and then nothing would depend on the noise
    made = Teacher(Denoiser(network, VarianceExploding()), (2,), context=("place",))
    made.best = {"solver": "heun", "steps": 5}
    return made


def rows(evaluation: dict) -> dict[str, dict]:
    return {row["name"]: row["metrics"] for row in evaluation["rows"]}


def test_student_and_teacher_are_compared_one_by_one_from_the_same_noise():
    own = teacher()
    student = SiD(own).product().eval()  # a copy: the teacher at one step
    found = rows(evaluate(Places(), own, student, num_samples=20))
    assert (
        found["student"]["gap"] == pytest.approx(found["teacher at 1 step"]["gap"], rel=1e-5)
        and "gap" not in found["real data"]
    )
    # the teacher at its best is compared with itself from other noise, not with itself
    assert found["student"]["gap"] > 0 and found["teacher at its best"]["gap"] > 0
    assert found["teacher at its best"]["gap"] != pytest.approx(found["student"]["gap"], rel=1e-2)


class Sure(Places):
    """The same places, and two guesses that need no model."""

    def build_evaluator(self, held_out):
        evaluator = super().build_evaluator(held_out)
        evaluator.baselines = lambda cond: {name: cond["place"][:, None] * torch.ones(2) for name in ("here", "there")}
        evaluator.thorough = lambda samples, cond: {"size": len(samples)}
        return evaluator


def test_what_plays_is_timed_against_its_length():
    """Seconds that a sample plays over seconds that it took; only models' were made."""
    data = Sure()
    data.setup()
    evaluator, own = data.evaluator(), teacher()
    assert not any("real_time" in row for row in evaluate(data, own, num_samples=8)["rows"])
    data.build_evaluator = lambda held_out: evaluator
    evaluator.seconds = 1.5
    found = evaluate(data, own, SiD(own).product().eval(), num_samples=8)["rows"]
    for row in found[:3]:
        assert row["real_time"] == pytest.approx(1.5 / (row["ms_per_sample"] / 1000))
    assert not any("real_time" in row for row in found[3:])


def test_baselines_are_measured_like_models_and_named():
    own = teacher()
    found = evaluate(Sure(), own, SiD(own).product().eval(), num_samples=20)["rows"]
    names = ["student", "teacher at its best", "teacher at 1 step", "here", "there", "real data"]
    assert [row["name"] for row in found] == names
    place = Places().conditions(20)["place"]
    best = own.generate(20, {"place": place}, 1234)
    for row in found[3:5]:
        assert row["kind"] == "baseline" and "steps" not in row and "ms_per_sample" not in row
        assert row["metrics"]["gap"] == pytest.approx(float((place[:, None] - best).abs().mean()), rel=1e-5)
        assert row["metrics"]["size"] == 20 and set(row["metrics"]) == {"spread", "gap", "size"}
    assert all("kind" not in row for row in (*found[:3], found[5]))


class Itself(Places):
    """The same places, of which a student is measured and saved itself."""

    def build_evaluator(self, held_out):
        evaluator = super().build_evaluator(held_out)
        evaluator.of_student = lambda student, cond: {"weight": student.network.out.bias.sum() + len(cond["place"])}
        return evaluator

    @property
    def media(self):
        def of_student(student, cond, folder):
            (folder / "itself.txt").write_text(f"{type(student).__name__} of {len(cond['place'])}")
            return [folder / "itself.txt"]

        return SimpleNamespace(
            **{name: getattr(PlacesMedia, name) for name in ("picture", "compare", "save")}, of_student=of_student
        )


def test_what_a_student_is_itself_stands_in_its_row_alone():
    own = teacher()
    student = SiD(own).product().eval()
    found = evaluate(Itself(), own, student, num_samples=20)["rows"]
    expected = float(student.network.out.bias.sum()) + 20
    assert found[0]["name"] == "student" and found[0]["metrics"]["weight"] == pytest.approx(expected)
    assert "spread" in found[0]["metrics"] and not any("weight" in row["metrics"] for row in found[1:])
    assert not any("weight" in row["metrics"] for row in evaluate(Itself(), own, num_samples=20)["rows"])


def test_what_a_student_is_itself_is_saved_by_a_run_and_by_sample(tmp_path, monkeypatch, capsys):
    run, out = tmp_path / "run", tmp_path / "samples"
    run.mkdir()
    data = {"class_path": "test_protocol.Itself"}
    (run / "config.yaml").write_text(json.dumps({"model": {"init_args": {}}, "data": data}))
    monkeypatch.setitem(sys.modules, "test_protocol", sys.modules[__name__])
    finish(SiD(teacher()), Itself(), run, num_samples=0)
    assert (run / "samples" / "itself.txt").read_text() == "FewStepStudent of 6"
    assert student_verbs.sample([str(run), "-n", "5", "--trust", "test_protocol", "--out", str(out)]) == 0
    assert (out / "itself.txt").read_text() == "FewStepStudent of 5"
    assert f"file: {out / 'itself.txt'}" in capsys.readouterr().out


def test_the_teacher_also_tries_the_times_of_the_student():
    own = teacher()
    plain, chosen = (SiD(own, **settings).product() for settings in ({"num_steps": 3}, {"times": [80.0, 3.0, 0.7]}))
    assert len(own.few_step_choices(3, plain.times)) == 6  # its times are one of the two grids already
    grids = [times.tolist() for _, times in own.few_step_choices(3, chosen.times)]
    assert len(grids) == 9 and grids.count([80.0, 3.0, 0.7]) == 3


def test_a_teacher_with_a_grid_of_its_own_is_evaluated_on_it():
    own = teacher()
    own.grid = lambda steps: torch.linspace(9, 1, steps, dtype=torch.float64)
    best, one, two, _ = evaluate(Places(), own, num_samples=8)["rows"]
    assert (best["last_time"], one["last_time"]) == (1, 9)
    assert two["last_time"] in (1, 5)  # its grid of two, or of three without the last


def test_what_a_run_leaves_for_a_student_with_a_context(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    data = {"class_path": "dummy.parts.Places"}
    (run / "config.yaml").write_text(json.dumps({"model": {"init_args": {}}, "data": data}))
    finish(SiD(teacher()), Places(), run, num_samples=16)
    assert load_student(run).context == ("place",)
    assert sorted(path.name for path in (run / "samples").glob("*.txt")) == [f"place_{i}.txt" for i in range(4)]
    assert (run / "samples" / "real.png").is_file()

    assert student_verbs.sample([str(run), "-n", "5", "--trust", "dummy", "--out", str(tmp_path / "samples")]) == 0
    held_out = Places()
    held_out.setup()
    with np.load(tmp_path / "samples" / "samples.npz") as file:
        assert file["samples"].shape == (5, 2)
        assert file["place"].tolist() == held_out.test.tensors["place"][:5].tolist()
    assert (tmp_path / "samples" / "place_3.txt").is_file() and not (tmp_path / "samples" / "place_4.txt").exists()

    with pytest.raises(UsageError, match="comes from the examples in its folder"):
        student_verbs.sample([str(run), "--trust", "dummy", "--cond", "place=3", "--out", str(tmp_path / "no")])
    assert exports.export([str(run), "--trust", "dummy"]) == 0


def untaught() -> CTMSR:
    """A method without a teacher."""
    torch.manual_seed(0)
    network = MLP([2], width=8, depth=1)
    torch.nn.init.normal_(network.out.weight)
    return CTMSR(network, RectifiedFlow(), [2], context=["place"])


def test_a_student_without_a_teacher_stands_beside_real_data():
    """There is nobody to be compared with one by one, and no kept samples are asked for."""
    found = evaluate(Places(), None, untaught().eval().product(), num_samples=20)
    student, real = found["rows"]
    assert (student["name"], real["name"]) == ("student", "real data")
    assert "spread" in student["metrics"] and "gap" not in student["metrics"] and student["ms_per_sample"] > 0
    assert "teacher" not in found["protocol"] and not found["protocol"]["few_step_solvers"]
    spread = number(student["metrics"]["spread"])
    assert verdict(found) == f"Spread {spread} with 1 network pass, without a teacher; real data scores 1.00."


def test_what_a_run_without_a_teacher_leaves(tmp_path, capsys):
    """Every verb works on its folder, and no file speaks of a teacher's mistakes."""
    run = tmp_path / "run"
    run.mkdir()
    data = {"class_path": "dummy.parts.Places"}
    (run / "config.yaml").write_text(json.dumps({"model": {"init_args": {}}, "data": data}))
    finish(untaught(), Places(), run, num_samples=16)
    config = load_student(run).config
    assert "teacher" not in config and [*config["run"]] == ["data"] and config["method"] == "CTMSR"
    shown = {path.stem for path in (run / "samples").glob("*.png")}
    assert shown == {"student", "real", "comparison"}
    card, page = ((run / name).read_text() for name in ("student/README.md", "report.html"))
    assert "places-ctmsr: one-step student\n" in card and "teacher's mistakes" not in card and "Few steps" in card
    assert "1 network pass" in page and "for the teacher" not in page

    assert student_verbs.sample([str(run), "-n", "5", "--trust", "dummy", "--out", str(tmp_path / "samples")]) == 0
    for words, num in (([], 16), (["--num-samples", "8"], 8)):
        (run / "evaluation.json").unlink()
        assert student_verbs.evaluate([str(run), *words, "--trust", "dummy"]) == 0
        found = json.loads((run / "evaluation.json").read_text())
        assert [row["name"] for row in found["rows"]] == ["student", "real data"]
        assert found["protocol"]["num_samples"] == num


@pytest.mark.parametrize(
    ("said", "num"), [(64, 64), (2, 2), (1, 1000), (10**9, 1000), (True, 1000), ("9", 1000), (None, 1000)]
)
def test_a_folder_may_say_how_many_samples_are_measured(said, num):
    assert student_verbs._num_samples(SimpleNamespace(config={"num_samples": said})) == num


class Labelled(Places):
    """The same places in two classes."""

    classes = {"label": 2}

    def load(self):
        return tuple(TensorData(part.tensors | {"label": torch.arange(len(part)) % 2}) for part in super().load())


def test_what_is_kept_is_looked_at_once(tmp_path, monkeypatch):
    """Another run keeps samples between two looks."""
    own, looks = teacher(), []
    monkeypatch.setattr(Teacher, "kept", lambda self, *asked: looks.append(asked) or len(looks) > 1)
    with cache.using(cache.SampleCache(tmp_path)):
        evaluate(Places(), own, SiD(own).product().eval(), num_samples=80)
    assert len(looks) == 3  # two noises at its best and one step


def test_kept_samples_are_measured_and_timed_like_those_that_were_made(tmp_path, monkeypatch):
    """Only the reference is asked for again in the first run; in the second nothing is made."""
    monkeypatch.setattr(cache, "WORTH", 0.0)
    make, made, now = Teacher.make, [], [0.0]
    monkeypatch.setattr(cache, "time", SimpleNamespace(perf_counter=lambda: now[0], time=time.time))

    def watched(self, num, cond, seed, solver, times, *rest):
        made.append(num)
        now[0] += len(times)  # a second a time
        return make(self, num, cond, seed, solver, times, *rest)

    monkeypatch.setattr(Teacher, "make", watched)
    own = teacher()
    student = SiD(own).product().eval()
    plain = evaluate(Places(), own, student, num_samples=80)
    assert sorted(made) == [64, 80, 80, 80] and made[0] == 64  # a warm-up, then two noises at its best and one step
    first, again = [], []
    for found in (first, again):
        made.clear()
        with cache.using(cache.SampleCache(tmp_path)):
            found += evaluate(Places(), own, student, num_samples=80)["rows"]
    assert made == []
    timed = [[row.pop("timed", None) for row in found] for found in (first, again)]
    assert timed == [[None] * 4, [None, "earlier", "earlier", None]]
    for found in (first, again):
        assert [row["ms_per_sample"] for row in found[1:3]] == [1000 * 5 / 80, 1000 * 1 / 80]
    for ours, theirs, bare in zip(first, again, plain["rows"], strict=True):
        assert ours["metrics"] == theirs["metrics"] == bare["metrics"]
    kept = {**plain, "rows": [{**row, "timed": "earlier"} if i == 1 else row for i, row in enumerate(plain["rows"])]}
    assert "Timed in an earlier run" not in verdict(plain)
    assert "Timed in an earlier run on the same kind of machine, which kept the samples: teacher" in verdict(kept)


def test_a_guided_run_is_evaluated_and_pictured_with_its_guidance(tmp_path):
    network = MLP([2], width=8, depth=1, classes={"label": 2})
    guidable = Teacher(Denoiser(wake(network), VarianceExploding()), (2,), {"label": 2}, ("place",))
    guidable.best = {"solver": "heun", "steps": 5}
    own, generate, kappas = SiD(guidable, kappa=2.0), guidable.generate, []

    def watched(*args, **kwargs):
        kappas.append(inspect.signature(generate).bind(*args, **kwargs).arguments["kappa"])
        return generate(*args, **kwargs)

    guidable.generate = watched
    finish(own, Labelled(), tmp_path, num_samples=16)
    assert set(kappas) == {2.0} and len(kappas) > 3
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["protocol"]["kappa"] == 2 and [row.get("kappa") for row in found["rows"]] == [None, 2, 2, None]
    assert "teacher's" in verdict(found) and "(guided, kappa 2" in verdict(found)
    guided, plain = (rows(evaluate(Labelled(), guidable, num_samples=16, kappa=kappa)) for kappa in (2.0, 1.0))
    best = "teacher at its best"
    assert rows(found)[best] == pytest.approx(guided[best]) and guided[best] != pytest.approx(plain[best], rel=1e-2)


def measured_with_noise(data: Places) -> Places:
    """The data, whose evaluator knows what each sample does to its headline."""
    data.setup()
    evaluator = data.evaluator()
    measure = type(evaluator).__call__
    evaluator_type = type("Noisy", (type(evaluator),), {})
    evaluator_type.__call__ = lambda self, samples, cond: {
        **measure(self, samples, cond),
        "spread": metrics.Estimate.mean(samples.square().sum(1)),
    }
    evaluator.__class__ = evaluator_type
    data.build_evaluator = lambda held_out: evaluator
    return data


def test_rows_say_what_noise_may_do_to_them():
    """To the student's own headline, and to the difference of others from it, sample by sample."""
    own, data = teacher(), measured_with_noise(Places())
    student = SiD(own).product().eval()
    found = evaluate(data, own, student, num_samples=20)
    cond = {"place": Places().conditions(20)["place"]}
    ours, best = student.sample(20, cond, 1234), own.generate(20, cond, 1234)
    ours, best = (x.double().square().sum(1) for x in (ours, best))
    student_row, best_row, same_row, real = found["rows"]
    half = 1.96 / 20**0.5
    assert student_row["margins"]["spread"] == pytest.approx(half * float(ours.std()))
    assert best_row["margins"]["spread"] == pytest.approx(half * float(best.std()))
    assert best_row["margins_to_student"]["spread"] == pytest.approx(half * float((best - ours).std()))
    assert same_row["margins_to_student"]["spread"] == pytest.approx(0, abs=1e-5)  # the same model
    assert "margins_to_student" not in student_row and not {"margins", "margins_to_student"} & real.keys()
    assert "gap" not in best_row["margins"] and json.loads(json.dumps(found)) == found
    assert all(type(value) is float for row in found["rows"] for value in row["metrics"].values())


def test_a_copy_of_the_teacher_begins_as_the_teacher(tmp_path):
    """Other makers leave a student that is measured as it was; it is made once more, the same."""
    own, network = teacher(), MLP([2], width=16, depth=1)
    torch.nn.init.normal_(network.out.weight)
    for maker in (None, Copy(), Lora(), Routed(by="time", edges=[1.0])):
        assert SiD(own, student_maker=maker).untrained() is None
    fresh, place = SiD(own, student_maker=Fresh(network)), Places().conditions(20)
    began = fresh.product().sample(20, place, 5)
    with torch.no_grad():
        for weight in fresh.best_student.parameters():
            weight.add_(1.0)
    assert not torch.allclose(fresh.sample(place, 20, 5), began)
    assert torch.equal(fresh.untrained().eval().sample(20, place, 5), began)

    SiD(own).export(tmp_path / "student", examples=place)
    for maker in (FromFolder(tmp_path / "student"), Leap("place"), Routed(by="time", edges=[1.0], part=Fresh(network))):
        assert not maker.copies


def test_a_run_that_began_elsewhere_is_compared_with_its_beginning(tmp_path):
    own, network = teacher(), MLP([2], width=16, depth=1)
    (tmp_path / "warnings.json").write_text('[{"name": "lagging_fake_score", "step": 3, "said": "it lags: help it"}]')
    finish(SiD(own, student_maker=Fresh(network)), Places(), tmp_path, num_samples=20, pictures=False)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    names = ["student", "teacher at its best", "teacher at 1 step", "untrained student", "real data"]
    assert [row["name"] for row in found["rows"]] == names
    student, before = (found["rows"][i] for i in (0, 3))
    assert student["metrics"] == before["metrics"] and before["kind"] == "before"  # nothing was trained
    assert student["network"] == before["network"] == "own"
    card, page = ((tmp_path / name).read_text() for name in ("student/README.md", "report.html"))
    for text in (card, page):
        assert "no better than before training: nothing is learned yet." in text
        assert "Warned: lagging fake score (step 3)." in text and "it lags" in text
    assert "faster per sample" not in card


@pytest.mark.parametrize(
    "network, kind",
    [
        (lambda: MLP([2], width=8, depth=1), None),
        (lambda: MLP([2], width=16, depth=1), "own"),
        (lambda: Particles([2], num=3), "blind"),
    ],
)
def test_rows_say_whose_network_a_student_has(network, kind):
    own = teacher()
    student = DMD(own, student_maker=Fresh(network())).product().eval()
    rows = evaluate(Places(), own, student, num_samples=8)["rows"]
    assert rows[0].get("network") == kind and not any("network" in row for row in rows[1:])


def test_pictures_and_evaluation_can_be_left_out(tmp_path):
    own = SiD(teacher())
    own.teacher.generate = None  # no sampling
    (tmp_path / "config.yaml").write_text("data: {}")
    finish(own, Places(), tmp_path, num_samples=0, pictures=False)
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "student", "report.html"} and load_student(
        tmp_path
    )


def test_a_run_whose_held_out_data_are_too_few_leaves_all_but_the_evaluation(tmp_path, monkeypatch, capsys):
    def measure(self, samples, cond):
        return {"spread": metrics.frechet_distance(samples, samples[:1])}

    monkeypatch.setattr("dummy.parts.PlacesEvaluator.__call__", measure)
    finish(SiD(teacher()), Places(), tmp_path, num_samples=16, pictures=False)
    said = "left out, for there are too few held-out data: this metric needs at least 2 points in each set, got 1."
    card, page = ((tmp_path / name).read_text() for name in ("student/README.md", "report.html"))
    assert said in capsys.readouterr().out and said in page and "was interrupted" not in page
    assert "too few held\\-out data" in card or "too few held-out data" in card
    assert load_student(tmp_path)


def test_what_was_never_trained_is_reported_on_all_the_same(tmp_path):
    """`max_steps=0` leaves neither a configuration nor metrics."""
    finish(SiD(teacher()), Places(), tmp_path, num_samples=0, pictures=False)
    assert {path.name for path in tmp_path.iterdir()} == {"student", "report.html"}
    assert "fit --config" not in (tmp_path / "student" / "README.md").read_text()


def test_a_student_folder_without_its_data_says_so(tmp_path):
    SiD(teacher()).export(tmp_path / "student")
    with pytest.raises(UsageError, match="does not say which data .* give the run folder"):
        student_verbs.sample([str(tmp_path / "student")])


def test_the_pairs_of_a_regression_are_made_for_the_contexts_of_the_data():
    own, data = teacher(), Places(batch_size=8)
    model = DMD(own, regression=0.25, num_pairs=40)
    trainer(max_steps=6).fit(model, data)
    noise, y, cond = model.pairs.draw(torch.arange(40))
    assert torch.equal(cond["place"], data.train.tensors["place"][torch.arange(40) % 32])
    assert torch.equal(y, own.sample(noise, cond))


@pytest.mark.parametrize("as_sets", [True, False])
def test_sets_are_compared_with_the_teachers_of_other_noise(as_sets):
    """Samples of the same noise are nearer than two draws of one law."""
    teacher, seen = gaussian(0.0, 1.0), []

    def paired(samples, reference, cond):
        seen.append(reference)
        return {"distance": float((samples - reference).abs().mean())}

    facts = {"headline": "distance", "better": {"distance": "lower"}, "as_sets": as_sets, "paired": paired}
    looks = type("Looks", (), {"__call__": lambda *_: {}, "describe": dict, "floor": lambda *_: {}})()
    vars(looks).update(facts)
    data = SimpleNamespace(evaluator=lambda device: looks, conditions=lambda num: {}, left_out=dict)
    evaluate(data, teacher, None, 8, seed=3)
    made = [teacher.generate(8, {}, seed) for seed in (3, 4)]
    assert torch.equal(seen[0], made[1])  # the teacher at its best, always
    assert len(seen) > 2 and all(torch.equal(other, made[1 if as_sets else 0]) for other in seen[1:])
