"""`compare` and the end of sweeps, from the command line."""

import csv
import errno
import io
import json
import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from distillkit import runs
from distillkit.cli import front, sweeps
from distillkit.files import write_text

NASTY = "</td><script>alert(1)</script>$x$&[red]"


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def written(folder, frechet, lr="0.1", seed=0, passes=1, recall=0.5, **protocol):
    """A run folder as `fit` leaves it, with a student of this headline."""
    facts = {"num_samples": 500, "seed": 1234, "kappa": 1.0, "teacher": {"id": "digits-8", "hash": "aa"}}
    facts |= {"evaluator": {"domain": "image"}, "device": "cpu", "torch_threads": 1, "distillkit": "0.1.0"}
    models = [
        ("student", passes, frechet, recall),
        ("teacher at its best", 35, 0.38, 0.6),
        ("teacher at 1 step", 1, 2.9, 0.1),
    ]
    rows = [
        {
            "name": name,
            "steps": cost,
            "network_passes": cost,
            "ms_per_sample": cost / 10,
            "metrics": {"recall": r, "frechet": f},
        }
        for name, cost, f, r in models
    ]
    evaluation = {
        "protocol": facts | protocol,
        "headline": "frechet",
        "better": {"recall": "higher", "frechet": "lower"},
        "rows": [*rows, {"name": "real data", "metrics": {"recall": 0.9, "frechet": 0.02}}],
    }
    config = {
        "seed_everything": seed,
        "model": {"class_path": "distillkit.methods.dmd.DMD", "init_args": {"student": {"lr": lr}}},
    }
    write_text(Path(folder, "evaluation.json"), json.dumps(evaluation))
    write_text(Path(folder, "config.yaml"), yaml.safe_dump(config))
    write_text(Path(folder, "metrics.csv"), "step,seconds\n9,30\n19,61\n")
    return str(folder)


def compared(capsys, *args, code=0):
    assert front.main(["compare", *map(str, args)]) == code
    shown = capsys.readouterr()
    assert all(len(line) <= 80 for line in shown.out.splitlines())
    return shown.err if code else shown.out


def lines(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def words_of(text):
    """The words of a page or a table, without the breaks of its lines."""
    return " ".join(text.split())


def test_seeds_are_one_row(capsys):
    places = [written(f"runs/{lr}-{i}", value, lr, i) for lr, values in (("a", (1, 2, 3)), ("b", (8, 9, 10)))
              for i, value in enumerate(values)]  # fmt: skip
    out = compared(capsys, *places)
    assert words_of(out).startswith(
        "A clear winner in Frechet: number 1, 2.00 ± 1.00, is 7.00 ahead of number 2, 9.00 ± 1.00,"
    )
    assert re.search(r"1 +model.student.lr=a +3 +1 +0.100 +1 min 1 s +2.00 ± 1.00 \*", out)
    assert re.search(r"2 +model.student.lr=b +3 +1 +0.100 +1 min 1 s +9.00 ± 1.00 +\n", out)
    assert len(re.findall("teacher at its best +35 +3.50 +0.380", out)) == len(re.findall("real data", out)) == 1
    assert out.endswith("comparison: runs/compare-1/compare.html\ntable: runs/compare-1/compare.csv\n")
    assert not os.path.exists("runs/compare-1/.lock") and runs.OUT not in os.environ
    assert "runs/compare-2/compare.csv" in compared(capsys, *places)
    first, second, same, best, real = lines("runs/compare-1/compare.csv")
    assert first["runs"] == "runs/a-0 runs/a-1 runs/a-2" and first["seeds"] == "0 1 2" and first["kind"] == "student"
    assert (first["model.student.lr"], second["model.student.lr"]) == ("a", "b")
    assert [float(second[key]) for key in ("frechet", "frechet_std", "recall", "network_passes")] == [9, 1, 0.5, 1]
    assert float(first["trained_seconds"]) == 61
    assert (same["frechet"], best["frechet"], real["frechet"], real["network_passes"]) == ("2.9", "0.38", "0.02", "")


def test_the_metric_and_the_place_are_chosen(capsys):
    places = [written("a", 1.0, "1", recall=0.2), written("b", 2.0, "2", recall=0.7)]
    out = compared(capsys, *places, "--metric", "recall", "--out", "some/where")
    assert "In front is number 1, 0.700, 0.500 ahead of number 2, 0.200." in words_of(out)
    assert [line["model.student.lr"] for line in lines("some/where/compare.csv")][:2] == ["2", "1"]
    compared(capsys, "b", "--out", "some/where")  # replaced
    assert len(lines("some/where/compare.csv")) == 4
    assert "no metric 'recal' (did you mean 'recall'?); there are: recall, frechet" in compared(
        capsys, *places, "--metric", "recal", code=2
    )


def test_a_folder_of_runs_keeps_their_comparison(capsys):
    for i, value in enumerate((1.0, 2.0)):
        written(f"sweep/{i}", value, str(i))
    out = compared(capsys, "sweep")
    assert out.endswith("comparison: sweep/compare.html\ntable: sweep/compare.csv\n") and not os.path.exists("runs")
    assert [line["runs"] for line in lines("sweep/compare.csv")][:2] == ["0", "1"]
    written("x", 3.0, "x")
    out = compared(capsys, "sweep", "x", Path("x").absolute(), "sweep/0", "--out", "both")
    assert "repeats" not in out  # each run once
    assert [Path(line["runs"]).name for line in lines("both/compare.csv")][:4] == ["0", "1", "x", ""]


def test_a_student_stands_for_its_run(capsys):
    written("a", 1.0, "1")
    write_text(Path("a/student/student.yaml"), "{}")
    written("b", 2.0, "2")
    compared(capsys, "a/student", "b", "--out", "c")
    assert [line["model.student.lr"] for line in lines("c/compare.csv")][:2] == ["1", "2"]


def test_runs_without_an_evaluation_are_named(capsys):
    places = [written(name, 1.0, name) for name in "abc"]
    Path("b/evaluation.json").unlink()
    Path("c/evaluation.json").write_text('{"impossible": "Too few data."}')
    out = compared(capsys, *places, "--out", "x")
    assert "Left out is b: it has no evaluation.json.\nLeft out is c: Too few data.\n" in out
    assert "Left out is b: it has no evaluation.json." in Path("x/compare.html").read_text()
    err = compared(capsys, "b", "c", code=2)
    reasons = "(b: it has no evaluation.json; c: Too few data)"
    assert err == f"error: none of these runs was evaluated, so there is nothing to compare {reasons}\n"


def test_files_that_may_not_be_read_keep_their_run_out(capsys, monkeypatch):
    """Root, who runs some tests, may read everything, so that it is made up."""
    real, refused = Path.read_text, {"b/evaluation.json", "c/config.yaml"}

    def read_text(self, *given, **named):
        if self.as_posix() in refused:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real(self, *given, **named)

    places = [written(name, 1.0, name) for name in "abc"]
    monkeypatch.setattr(Path, "read_text", read_text)
    out = words_of(compared(capsys, *places, "--out", "x"))
    assert "Left out is b: evaluation.json cannot be read (Permission denied)." in out
    assert "Left out is c: it cannot be read (Permission denied)." in out


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["gone"], 2, "error: there is no folder gone: give folders of runs or of a sweep\n"),
        (["empty"], 2, "error: empty holds no run: give folders of runs or of a sweep\n"),
        ([], 2, "error: compare: the following arguments are required: RUN (see --help)\n"),
        (["a", "--out", "a/config.yaml"], 2, "error: --out: a/config.yaml is a file; give a folder\n"),
        (["a", "b"], 2, "error: these runs were not measured alike: num_samples is 500 in a and 9 in b; measure the others anew: "
         "python -m distillkit evaluate b --num-samples 500 --seed 1234\n"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_one_sentence_and_writes_nothing(capsys, args, code, said):
    written("a", 1.0, "1"), written("b", 1.0, "2", num_samples=9)
    os.mkdir("empty")
    assert compared(capsys, *args, code=code) == said
    assert not [*Path().rglob("compare*")] and not os.path.exists("runs")


def test_the_mend_of_a_folder_of_runs_can_be_pasted(capsys):
    written("a b/0", 1.0), written("a b/1", 1.0, num_samples=9)
    err = compared(capsys, "a b", code=2)
    assert (
        "500 in 0 and 9 in 1; measure the others anew: python -m distillkit evaluate 'a b/1' --num-samples 500" in err
    )
    written("a b/2", 1.0), written("a b/3", 1.0, num_samples=7)
    err = compared(capsys, "a b", code=2)
    commands = [f"python -m distillkit evaluate 'a b/{name}' --num-samples 500 --seed 1234" for name in (1, 3)]
    assert err.endswith(f"measure the others anew: {' && '.join(commands)}\n")


def test_a_folder_that_takes_no_files_is_named(capsys):
    written("a", 1.0)
    Path("file").write_text("")
    assert compared(capsys, "a", "--out", "file/x", code=1).startswith(
        "error: cannot write to file/x: Not a directory; give"
    )


def test_the_page_shows_strangers_texts_literally_and_needs_nothing(capsys):
    names = [written("a", 1.0, NASTY, teacher={"id": NASTY, "hash": "a"}), written("b", 2.0, "2")]
    out = compared(capsys, *names, "--out", "x")
    assert words_of(out).count("[red]") == 2  # of the run and of its teacher
    page = Path("x/compare.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    assert not re.search(r"https?://(?!www\.w3\.org)|src=|@import|url\((?!#)", page)
    drawings = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(drawings) == 2  # against passes and against time
    for drawing in drawings:
        said = [text.text for text in ET.fromstring(drawing.replace("xlink:", "")).iter("text")]
        assert {"1", "2", "real data", f"teacher ({NASTY}, kappa 1.0)"} <= {*said}
    assert "Runs" in page and '<td>1</td><td class="label">a</td><td>0</td><td>1 min 1 s</td><td>1.00</td>' in page


def test_times_of_several_machines_are_not_drawn(capsys):
    out = compared(capsys, written("a", 1.0, "1"), written("b", 2.0, "2", device="H200"), "--out", "x")
    assert "Times are of different machines" in out
    assert Path("x/compare.html").read_text().count("<svg") == 1


def test_costs_spread_over_decades_are_drawn_on_logarithmic_axes(capsys):
    compared(capsys, written("a", 1.0, "1"), written("b", 0.5, "2", passes=1000), "--out", "x")
    drawing = re.search(r"<svg.*?</svg>", Path("x/compare.html").read_text(), re.S)[0]
    texts = {text.text: text.get("x") for text in ET.fromstring(drawing.replace("xlink:", "")).iter("text")}
    ten, hundred, thousand = (float(texts[tick]) for tick in ("10", "100", "1000"))
    assert thousand - hundred == pytest.approx(hundred - ten, rel=1e-3)


# ---- sweeps


def swept(monkeypatch, capsys, jobs, *words):
    """Exit code and end of the output of a sweep whose job N calls `jobs[N]` with its folder."""

    class Job:
        def __init__(self, command, stderr, start_new_session):
            folder = Path(command[-1])
            self.returncode = jobs[int(folder.name)](folder) or 0
            self.stderr = io.BytesIO(b"error: no luck\n" if self.returncode else b"")

        __enter__ = __exit__ = lambda self, *_: self

    monkeypatch.setattr(sweeps.subprocess, "Popen", Job)
    code = front.main(["fit", "domain=toy", *words, "-m", "--out", "sweep"])
    return code, capsys.readouterr().out.partition(" in ")[2].partition("sweep\n")[2]


def ended(capsys, codes):
    """What a sweep tells in its end, of jobs with these exit codes."""
    made = sweeps.Sweep("fit", [], Path("sweep"))
    made.jobs = [sweeps.Job(number, f"a.b={number}", code, 1.0, "") for number, code in enumerate(codes)]
    made.tell()
    return capsys.readouterr().out


def test_a_sweep_ends_in_its_comparison(capsys):
    for i in range(6):
        written(f"sweep/{i}", 1.0 + i, "ab"[i // 3], i % 3)
    out = ended(capsys, [0] * 6)
    assert out.startswith("A clear winner in Frechet: number 1, 2.00 ± 1.00,")
    assert "ended" not in out and "comparison: " in out  # no second table of what is in the first
    assert [line["runs"] for line in lines("sweep/compare.csv")][:2] == ["0 1 2", "3 4 5"]
    assert compared(capsys, "sweep") == out


def test_a_sweep_lists_the_jobs_that_are_not_in_its_table(monkeypatch, capsys):
    jobs = [lambda folder: written(folder, 1.0) and 0, lambda folder: 2, lambda folder: None]
    code, out = swept(monkeypatch, capsys, jobs, "model.student.lr=1,2,3")
    assert code == 1
    failed, reason, done = out.splitlines()[1:4]
    assert re.fullmatch(r"  1   failed \(2\)  0 +domain=toy model.student.lr=2", failed) and reason.strip() == "no luck"
    assert re.fullmatch(r"  2   done        0 +domain=toy model.student.lr=3", done)
    assert re.search(r"\n 1 +0 +1 ", out) and "Left out" not in out
    page = Path("sweep/compare.html").read_text()
    assert "Left out is 1: it has no evaluation.json." in page


def test_a_sweep_over_unlike_runs_lists_all_and_says_why(capsys):
    for name in "01":
        written(f"sweep/{name}", 1.0, evaluator={"domain": "ab"[int(name)]})
    out = ended(capsys, [0, 130])
    assert re.findall(r"^  (\d)   (\w+) ", out, re.M) == [("0", "done"), ("1", "interrupted")]
    assert (
        "not compared: these runs were not measured alike: the domain is a in 0 and b in 1; compare those that were"
        in out
    )
    assert not Path("sweep/compare.csv").exists()


def test_a_sweep_without_evaluations_lists_its_jobs(capsys):
    out = ended(capsys, [0, 1])
    assert re.findall(r"^  (\d)   (.*?)  +1", out, re.M) == [("0", "done"), ("1", "failed (1)")]
    assert "compar" not in out and not Path("sweep").exists()


@pytest.mark.slow
def test_a_real_sweep_prints_its_metrics(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    words = [
        "domain=toy",
        "method=dmd",
        "seed_everything=0,1",
        "trainer.max_steps=3",
        "vars.callbacks.finish.num_samples=64",
    ]
    assert front.main(["fit", *words, "vars.callbacks.finish.pictures=false", "-m", "--out", "sweep"]) == 0
    out = capfd.readouterr().out
    assert re.search(r"\n 1 +0, 1 +2 +1 .* ± ", out) and len(lines("sweep/compare.csv")) == 4
    assert Path("sweep/compare.html").is_file()
