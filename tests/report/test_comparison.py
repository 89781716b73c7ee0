"""Runs side by side: their statistics, the words in which they differ, what makes them unlike."""

import json
import math
import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest

from distillkit.cli.compare import tell
from distillkit.errors import UsageError
from distillkit.report.comparison import SideBySide, is_clear, spread, standard_error
from distillkit.report.comparison_page import cells, page
from distillkit.report.evaluated import Run, read, refuse_unlike, runs_in
from distillkit.report.words import differing

PROTOCOL = {
    "num_samples": 500,
    "seed": 1234,
    "kappa": 1.0,
    "teacher": {"id": "digits-8", "hash": "aa", "solver": "heun", "steps": 18},
    "evaluator": {"domain": "image", "features": {"sha256": "f1"}, "seed": 0},
    "device": "cpu",
    "torch_threads": 1,
    "distillkit": "0.1.0",
}


def measured(*rows, **protocol):
    """evaluation.json of rows (name, passes, metrics)."""
    return {
        "protocol": PROTOCOL | protocol,
        "headline": "frechet",
        "better": {"frechet": "lower", "recall": "higher", "ink": "target"},
        "rows": [{"name": name, "network_passes": passes, "metrics": metrics} for name, passes, metrics in rows],
    }


def run(name, frechet, lr="1", seed=0, evaluation=None, **metrics):
    evaluation = evaluation or measured(
        ("student", 1, {"frechet": frechet, **metrics}),
        ("teacher at its best", 35, {"frechet": 0.38}),
        ("teacher at 1 step", 1, {"frechet": 2.9}),
        ("real data", None, {"frechet": 0.02, "ink": 0.3}),
    )
    return Run(name, Path(name), {"seed_everything": seed, "lr": lr}, evaluation)


def seeds(lr, *values):
    return [run(f"{lr}-{i}", value, lr, i) for i, value in enumerate(values)]


# ---- statistics


def test_three_seeds_in_closed_form():
    a, b = np.array([1.0, 2.0, 3.0]), np.array([4.0, 6.0, 8.0])
    assert spread(a) == (2.0, 1.0) and spread(b) == (6.0, 2.0)
    assert spread(a[:1]) == (1.0, None)
    # squares 2 + 8 over 4 degrees of freedom, times 1/3 + 1/3
    assert standard_error(a, b) == pytest.approx(math.sqrt(10 / 4 * 2 / 3))
    # of unequal numbers: squares 2 + 2 over 3 degrees of freedom, times 1/3 + 1/2
    assert standard_error(a, np.array([5.0, 7.0])) == pytest.approx(math.sqrt(4 / 3 * 5 / 6))


@pytest.mark.parametrize(
    ("a", "b", "clear"),
    [
        ((1, 2, 3), (2.64, 3.64, 4.64), True),  # 1.64 apart; twice the standard error is 2 sqrt(2/3) = 1.633
        ((1, 2, 3), (2.62, 3.62, 4.62), False),
        ((4, 5, 6), (1, 2, 3), False),  # behind
        ((1, 2), (8, 9, 10), False),  # two seeds
        ((1, 2, 3), (8, 9), False),
        ((1, 1, 1), (1, 1, 1), False),
        ((1, 1, 1), (1.5, 1.5, 1.5), True),
    ],
)
def test_a_clear_difference_takes_three_seeds_and_two_standard_errors(a, b, clear):
    assert is_clear(np.array(a, dtype=float), np.array(b, dtype=float)) is clear


@pytest.mark.parametrize(
    ("runs", "best", "said"),
    [
        (seeds("x", 1, 2, 3) + seeds("y", 8, 9, 10), "x", "A clear winner in Frechet: number 1, 2.00 ± 1.00, is 7.00 ahead "
         "of number 2, 9.00 ± 1.00, and 2 standard errors are 1.63."),
        (seeds("x", 2, 3, 4) + seeds("y", 1, 2, 3), None, "No clear winner in Frechet: number 1, 2.00 ± 1.00, is 1.00 ahead "
         "of number 2, 3.00 ± 1.00, but 2 standard errors are 1.63."),
        (seeds("x", 1) + seeds("y", 9), None, "No clear winner in Frechet: that takes 3 seeds of each "
         "(seed_everything=0,1,2 -m). In front is number 1, 1.00, 8.00 ahead of number 2, 9.00."),
        (seeds("x", 1, 2, 3) + seeds("y", 80, 90), None, "of each (seed_everything=0,1,2 -m), and there are fewer of number 2."),
        (seeds("x", 1, 2, 3) + seeds("y", 8, 9, 10) + seeds("z", 1, 20, 60), None, "but another one scatters too far"),
        (seeds("x", 1, 2, 3), None, ""),
    ],
)  # fmt: skip
def test_a_winner_is_named_only_where_it_is_clear(runs, best, said):
    table = SideBySide(runs)
    winner = table.winner("frechet")
    assert (winner and winner.words["lr"]) == best
    assert said in table.conclusion() and bool(said) == bool(table.conclusion())


def test_metrics_are_ranked_in_their_own_direction():
    runs = [
        run("a", 1, "1", recall=0.2, ink=0.9),
        run("b", 2, "2", recall=0.6, ink=0.1),
        run("c", 3, "3", recall=0.4, ink=0.35),
    ]
    order = {
        name: [group.words["lr"] for group in SideBySide(runs, name).groups] for name in ("frechet", "recall", "ink")
    }
    assert order == {
        "frechet": ["1", "2", "3"],
        "recall": ["2", "3", "1"],
        "ink": ["3", "2", "1"],
    }  # ink of real data: 0.3
    with pytest.raises(
        UsageError, match=r"no metric 'recal' \(did you mean 'recall'\?\); there are: frechet, recall, ink"
    ):
        SideBySide(runs, "recal")


def test_a_lost_seed_keeps_its_group_from_the_ranking():
    table = SideBySide(seeds("x", 1, 2, math.nan) + seeds("y", 8, 9, 10) + seeds("z", 18, 19, 20))
    assert [group.words["lr"] for group in table.groups] == ["y", "z", "x"]
    assert table.winner("frechet") is table.groups[0]
    assert table.notes == ["Not ranked: number 3, without a finite Frechet."]


def test_the_same_seed_twice_is_no_second_seed():
    table = SideBySide([*seeds("x", 1, 2), run("again", 1, "x", 1)])
    assert [len(group.runs) for group in table.groups] == [2]
    assert table.notes == ["again repeats x-1, seed and all, so it is left out."]


def test_runs_without_a_config_are_rows_of_their_own():
    runs = [Run(name, Path(name), {}, run(name, i + 1.0).evaluation) for i, name in enumerate("ab")]
    table = SideBySide([*runs, *seeds("x", 5, 6)])
    assert [group.label for group in table.groups] == ["a", "b", "x-0, x-1"]


def test_references_stand_once_and_teachers_at_their_best_cost_by_cost():
    runs = seeds("x", 1) + seeds("y", 2)
    runs[1].evaluation["rows"][2]["metrics"]["frechet"] = 1.9  # with the student's own times
    runs[1].evaluation["rows"].append({"name": "bicubic", "kind": "baseline", "metrics": {"frechet": 4.0}})
    table = SideBySide(runs)
    assert [name for name, _ in table.references] == ["teacher at its best", "bicubic", "real data"]
    assert [[row["metrics"]["frechet"] for row in rows] for rows in table.teachers.values()] == [[1.9, 0.38]]
    runs[1].evaluation["protocol"]["kappa"] = 4.0
    names = [name for name, _ in SideBySide(runs).references]
    assert names[:2] == ["teacher at its best (digits-8, kappa 1.0)", "teacher at its best (digits-8, kappa 4.0)"]


# ---- words


def asked(path="pkg.dmd.DMD", lr=1, teacher="pkg.Digits", seed=0, **more):
    arguments = {"student": {"lr": lr}, "teacher": {"class_path": teacher, "init_args": {"path": None}}, **more}
    return {
        "seed_everything": seed,
        "trainer": {"max_steps": 10, "callbacks": [seed], "logger": {"save_dir": str(seed)}},
        "model": {"class_path": path, "init_args": arguments},
        "data": {"class_path": "pkg.Data", "init_args": {"teacher": {"class_path": teacher}}},
    }


@pytest.mark.parametrize(
    ("configs", "words"),
    [
        ([asked(), asked(seed=1)], [{}, {}]),
        ([asked(lr=1), asked(lr=2)], [{"model.student.lr": "1"}, {"model.student.lr": "2"}]),
        ([asked(teacher="pkg.A"), asked(teacher="pkg.B")], [{"teacher": "A"}, {"teacher": "B"}]),  # data name it too
        ([asked(gan=0.5), asked()], [{"model.gan": "0.5"}, {"model.gan": "-"}]),
        ([asked(), asked(student_maker={"class_path": "x.LoRA", "init_args": {"rank": 4}})],
         [{"student": "-"}, {"student": "LoRA"}]),
        # another class has other keys, which say nothing; among its own runs they do
        ([asked("p.A", x=1), asked("p.B", y=2)], [{"method": "A"}, {"method": "B"}]),
        ([asked("p.A", x=1), asked("p.A", x=2), asked("p.B", y=2)],
         [{"method": "A", "model.x": "1"}, {"method": "A", "model.x": "2"}, {"method": "B"}]),
        ([asked("p.A", x=1), asked("p.A", x=2), asked("p.B", lr=3)],  # the rate of p.B is its own
         [{"method": "A", "model.x": "1"}, {"method": "A", "model.x": "2"}, {"method": "B"}]),
        ([asked("p.A", lr=1), asked("p.A", lr=2), asked("p.B", lr=3)],
         [{"method": "A", "model.student.lr": "1"}, {"method": "A", "model.student.lr": "2"},
          {"method": "B", "model.student.lr": "3"}]),
    ],
)  # fmt: skip
def test_runs_differ_in_words(configs, words):
    assert differing(configs) == words


# ---- protocols


def other(name="b", **protocol):
    found = run(name, 2.0, "2")
    return Run(name, Path(name), found.config, found.evaluation | {"protocol": PROTOCOL | protocol})


@pytest.mark.parametrize(
    ("unlike", "said"),
    [
        ({"num_samples": 2000}, r"alike: num_samples is 500 in a, c and 2000 in b; measure the others anew: python -m distillkit "
         "evaluate b --num-samples 500 --seed 1234$"),
        ({"seed": 7}, r"alike: seed is 1234 in a, c and 7 in b; .* evaluate b --num-samples 500 --seed 1234$"),
        ({"distillkit": "0.0.9"}, r"distillkit is 0.1.0 in a, c and 0.0.9 in b; .* evaluate b"),
        ({"evaluator": PROTOCOL["evaluator"] | {"features": {"sha256": "f2"}}},
         r"evaluator.features.sha256 is f1 in a, c and f2 in b; compare those that were$"),
        ({"evaluator": PROTOCOL["evaluator"] | {"seed": 1}}, r"evaluator.seed is 0 in a, c and 1 in b"),
        ({"evaluator": {"domain": "toy"}, "num_samples": 9}, r"alike: the domain is image in a, c and toy in b; compare"),
        ({"left_out": {"label": [3]}}, r"left_out.label is not recorded in a, c and \[3\] in b"),
    ],
)  # fmt: skip
def test_runs_that_were_measured_otherwise_are_refused(unlike, said):
    with pytest.raises(UsageError, match=said):
        refuse_unlike([run("a", 1.0), other(**unlike), run("c", 3.0)])


def test_teachers_machines_and_guidance_may_differ():
    runs = [
        run("a", 1.0),
        other(teacher={"id": "B", "hash": "bb"}, kappa=3.0, device="H200", few_step_solvers=["ddim"]),
    ]
    refuse_unlike(runs)
    several, machines = SideBySide(runs).notes
    assert several.startswith("The runs have several teachers")
    assert (
        machines == "Times are of different machines and not to be compared: cpu with 1 threads, H200 with 1 threads."
    )


def test_real_data_tell_whether_the_held_out_data_are_the_same():
    near, far, none = (deepcopy(run("b", 2.0).evaluation) for _ in range(3))
    near["rows"][3]["metrics"]["frechet"] = 0.0201
    far["rows"][3]["metrics"]["frechet"] = 0.021
    del none["rows"][3]
    first = run("a", 1.0)
    refuse_unlike([first, run("b", 2.0, evaluation=near)])
    with pytest.raises(UsageError, match=r"same held-out data: Frechet of real data is 0.0200 in a and 0.0210 in b"):
        refuse_unlike([first, run("b", 2.0, evaluation=far)])
    with pytest.raises(UsageError, match=r"0.0200 in a and missing in b"):
        refuse_unlike([first, run("b", 2.0, evaluation=none)])
    alone = [run(name, 2.0, evaluation=none) for name in "ab"]
    refuse_unlike(alone)
    foreign = none | {"protocol": PROTOCOL | {"teacher": {"id": "B", "hash": "bb"}}}
    with pytest.raises(
        UsageError, match="the teacher is digits-8 aa in a, b and B bb in c; compare students of one teacher"
    ):
        refuse_unlike([*alone, run("c", 2.0, evaluation=foreign)])


def test_another_definition_of_the_metrics_is_refused():
    changed = run("a", 1.0).evaluation | {"better": {"frechet": "lower", "recall": "lower", "ink": "target"}}
    with pytest.raises(UsageError, match="better.recall is higher in a and lower in b"):
        refuse_unlike([run("a", 1.0), run("b", 1.0, evaluation=changed)])


# ---- folders


def test_runs_are_found_in_folders_in_their_order(tmp_path):
    for name in ("10", "2", "0/student", "note"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("10", "2", "0"):
        (tmp_path / name / "config.yaml").write_text("{}")
    (tmp_path / "0/student/student.yaml").write_text("{}")
    assert [path.name for path in runs_in(tmp_path)] == ["0", "2", "10"]
    assert runs_in(tmp_path / "2") == [tmp_path / "2"]
    assert runs_in(tmp_path / "0/student") == [tmp_path / "0"]
    for place, said in ((tmp_path / "note", "holds no run"), (tmp_path / "gone", "there is no folder")):
        with pytest.raises(UsageError, match=said):
            runs_in(place)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "it has no evaluation.json"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ("[" * 100_000, "damaged"),
        ('{"impossible": "The evaluation was left out."}', "The evaluation was left out."),
        (json.dumps(measured(("real data", None, {"frechet": 1}))), "damaged"),
        (json.dumps(measured(("student", 1, 3))), "damaged"),
        (json.dumps(measured(("student", "many", {}))), "damaged"),
        (json.dumps(measured(("student", 1, {"frechet": "low"}))), "damaged"),
        (json.dumps(measured(("student", 1, {})) | {"better": {"frechet": []}}), "damaged"),
        (json.dumps(measured(("student", 1, {})) | {"protocol": None}), "damaged"),
        (json.dumps(measured(("student", 1, {})) | {"headline": ["x"]}), "damaged"),
        (json.dumps(measured(("student", 1, {})) | {"headline": "\x1b[2J"}), "damaged"),
        (json.dumps(measured(("student", 1, {}), ("\ud800", 1, {}))), "damaged"),
        (json.dumps(measured(("student", 1, {"a\nb": 1.0}))), "damaged"),
        (json.dumps(measured(("student", 1, {}), z=json.loads("[" * 90 + "]" * 90))), "damaged"),
    ],
)
def test_a_run_without_an_evaluation_says_why(tmp_path, text, reason):
    if text is not None:
        (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(ValueError, match=reason):
        read(tmp_path, "a")


def test_numbers_that_no_float_holds_are_infinite(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps(measured(("student", 10**400, {"frechet": 10**400}))))
    found = read(tmp_path, "a")
    assert found.row["metrics"] == {"frechet": math.inf} and found.row["network_passes"] == math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = SideBySide([found, Run("b", tmp_path, {}, found.evaluation)])
        assert (
            cells(table) and page(table, {}) and table.notes == ["Not ranked: number 1, 2, without a finite Frechet."]
        )


def test_damaged_metrics_have_no_time(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps(measured(("student", 1, {"frechet": 0.4}))))
    (tmp_path / "metrics.csv").write_text(f"step,seconds\n1,{'9' * 200_000}\n")
    assert read(tmp_path, "a").seconds is None


def test_what_is_shown_of_a_machine_or_teacher_is_one_printable_line(capsys):
    runs = [run("a", 1.0), other(device="\x1b[2J\nH200", teacher={"id": "\x1b[2J", "hash": "bb"})]
    table = SideBySide(runs)
    tell(table)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\\x1b[2J H200 with 1" in shown
    assert {*table.teachers} == {("digits-8", "aa", "1.0"), ("\\x1b[2J", "bb", "1.0")}


def test_words_that_measure_anew_are_numbers():
    with pytest.raises(UsageError, match="num_samples is 500 in a and null in b; compare those that were$"):
        refuse_unlike([run("a", 1.0), other(num_samples=None)])


def test_a_metric_named_like_markup_is_shown(tmp_path, capsys):
    found = run("a", 1.0, evaluation=measured(("student", 1, {"[/red]": 1.0})) | {"headline": "[/red]"})
    found.evaluation["better"]["[/red]"] = "lower"
    tell(SideBySide([found]))
    assert "[/red]" in capsys.readouterr().out


def test_a_run_of_a_teacher_is_measured_by_its_teacher(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps(measured(("teacher at its best", 35, {"frechet": 0.4}))))
    (tmp_path / "metrics.csv").write_text("step,seconds,x\n1,2.5,3\n2,7.25,\nx,nan,junk\n3,,1\n")
    found = read(tmp_path, "a")
    assert found.row["metrics"] == {"frechet": 0.4} and found.teacher is None and found.seconds == 7.25
