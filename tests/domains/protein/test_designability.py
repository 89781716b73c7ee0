"""Designability by a program of the user's: here a few lines of Python stand for it."""

import json
import os
import sys
import time

import pytest
import torch

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import RectifiedFlow
from distillkit.errors import Failure
from distillkit.evaluation.protocol import evaluate
from distillkit.networks.pair_transformer import PairTransformer
from distillkit.students.few_step import FewStepStudent
from distillkit.teachers.base import Teacher
from domains.protein.data import ProteinData, lengths
from domains.protein.designability import COMMAND, TIMEOUT, Designability
from domains.protein.folds import IdealFolds

# What it says of a chain is its number of residues over 20.
FOLDS = """
import csv, pathlib, sys
folder = pathlib.Path(sys.argv[-1])
files = sorted(folder.glob("*.pdb"))
with open(folder / "scrmsd.csv", "w", newline="") as out:
    writer = csv.writer(out)
    writer.writerow(["file", "scrmsd"])
    for file in files:
        atoms = [line for line in file.read_text().splitlines() if line.startswith("ATOM")]
        assert all(line[12:16] == " CA " for line in atoms)
        writer.writerow([file.name, len(atoms) / 20])
"""


def program(tmp_path, text: str) -> list[str]:
    file = tmp_path / "program.py"
    file.write_text(text)
    return [sys.executable, str(file)]


def some(residues=(10, 39, 40, 41)) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    cond = lengths(residues, [0] * len(residues), size=64)
    x = torch.randn(len(residues), 64, 3, generator=torch.Generator().manual_seed(0)) * cond["mask"][..., None]
    return x, cond


def test_the_share_below_two_angstrom_is_counted(tmp_path):
    x, cond = some()
    assert Designability(program(tmp_path, FOLDS))(x, cond) == 0.5  # 10 and 39 residues: 0.5 and 1.95
    text = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[-1])
found = {file.name: float("inf") if i else 1.9 for i, file in enumerate(sorted(folder.glob("*.pdb")))}
(folder / "scrmsd.json").write_text(json.dumps(found))
"""
    assert Designability(program(tmp_path, text))(x, cond) == 0.25
    x[1] = 1e4  # nothing that a file could hold
    assert Designability(program(tmp_path, FOLDS))(x, cond) == 0.25


def test_files_are_what_the_samples_are(tmp_path):
    x, cond = some((33,))
    keep = f"import shutil, sys; shutil.copytree(sys.argv[-1], {str(tmp_path / 'kept')!r})"
    Designability(program(tmp_path, FOLDS + keep))(x, cond)
    lines = [line for line in (tmp_path / "kept" / "chain_0000.pdb").read_text().splitlines() if line[:4] == "ATOM"]
    found = torch.tensor([[float(line[i : i + 8]) for i in (30, 38, 46)] for line in lines])
    assert (found - 10 * x[0, :33]).abs().max() < 6e-4


WRONG = {
    "it fails": ("import sys; print('no GPU'); sys.exit(3)", r"ended with exit code 3 \(no GPU\)"),
    "it fails in silence": ("import sys; sys.exit(4)", r"exit code 4 \(it said nothing\)"),
    "it leaves nothing": ("", "left neither scrmsd.csv nor scrmsd.json"),
    "a line is missing": (
        FOLDS.replace("in files:", "in files[1:]:"),
        r"no scRMSD for 1 of 4 files \(chain_0000.pdb\)",
    ),
    "a column is missing": (FOLDS.replace('"scrmsd"]', '"rmsd"]'), "left a scrmsd.csv that cannot be read .KeyError"),
    "a number is none": (FOLDS.replace("len(atoms) / 20", "'x'"), "cannot be read .ValueError"),
    "a number is not one": (FOLDS.replace("len(atoms) / 20", "'nan'"), "scRMSD of chain_0000.pdb is nan"),
    "the json is a list": (
        "import sys; open(sys.argv[-1] + '/scrmsd.json', 'w').write('[1]')",
        "left a scrmsd.json that cannot be read",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_goes_wrong_is_said_in_one_sentence_when(tmp_path, case):
    text, sentence = WRONG[case]
    with pytest.raises(Failure, match=sentence) as error:
        Designability(program(tmp_path, text))(*some())
    assert "\n" not in str(error.value)


def test_a_program_that_hangs_is_ended_with_all_that_it_started(tmp_path):
    text = f"""
import os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path({str(tmp_path / "child")!r}).write_text(str(child.pid))
time.sleep(60)
"""
    start = time.perf_counter()
    with pytest.raises(Failure, match=f"still running after 3 s: raise {TIMEOUT}"):
        Designability(program(tmp_path, text), timeout=3)(*some())
    assert time.perf_counter() - start < 30
    child = int((tmp_path / "child").read_text())
    for _ in range(50):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            break
        with open(f"/proc/{child}/stat") as file:  # dead, and waiting for its new parent to notice
            if file.read().rpartition(")")[2].split()[0] == "Z":
                break
        time.sleep(0.1)
    else:
        pytest.fail("its child is still running")


def test_no_shell_reads_the_words(tmp_path):
    text = FOLDS + f"import pathlib; pathlib.Path({str(tmp_path / 'words')!r}).write_text(repr(sys.argv[1:-1]))"
    Designability([*program(tmp_path, text), "a b; touch x", "$HOME"])(*some())
    assert (tmp_path / "words").read_text() == "['a b; touch x', '$HOME']"


@pytest.mark.parametrize(
    "command, timeout, sentence",
    [
        ('["no-such-program"]', "10", "there is no program 'no-such-program'"),
        ("python program.py", "10", "must be a list of words"),
        ("[]", "10", "must be a list of words"),
        (json.dumps([sys.executable]), "0", "must be a positive number of seconds, got 0"),
        (json.dumps([sys.executable]), "soon", "must be a positive number of seconds, got 'soon'"),
    ],
)
def test_the_environment_is_refused_before_any_work(monkeypatch, command, timeout, sentence):
    monkeypatch.setenv(COMMAND, command)
    monkeypatch.setenv(TIMEOUT, timeout)
    with pytest.raises(ValueError, match=sentence):
        ProteinData(IdealFolds(3, 3, 3))


def test_it_is_off_unless_the_environment_says_so(monkeypatch):
    monkeypatch.delenv(COMMAND, raising=False)
    data = ProteinData(IdealFolds(6, 3, 3))
    assert data.designability is None and "designability" not in data.evaluator().better
    assert "designability" not in data.evaluator().describe()


def test_an_evaluation_has_it_once_for_each_model(monkeypatch, tmp_path):
    """Not for the teacher's candidates, of which one is chosen; not in validation."""
    count = tmp_path / "count"
    command = program(tmp_path, FOLDS + f"open({str(count)!r}, 'a').write('1')")
    monkeypatch.setenv(COMMAND, json.dumps(command))
    data = ProteinData(IdealFolds(24, 4, 4))
    denoiser = Denoiser(PairTransformer((64, 3), width=16, depth=1, heads=2, pair=4), RectifiedFlow(), "flow")
    teacher = Teacher(denoiser, (64, 3), context=("mask",))
    teacher.best = {"solver": "euler", "steps": 3}
    student = FewStepStudent(denoiser, [1.0, 0.5], (64, 3), context=("mask",))
    found = evaluate(data, teacher, student, num_samples=4)
    expected = (data.conditions(4)["mask"].sum(1) / 20 < 2).double().mean().item()
    assert [row["metrics"]["designability"] for row in found["rows"][:3]] == [pytest.approx(expected)] * 3
    assert 0 <= found["rows"][3]["metrics"]["designability"] <= 1 and count.read_text() == "1111"
    assert all("designability" not in tried["metrics"] for tried in found["rows"][2]["tried"])
    assert found["better"]["designability"] == "higher"
    assert found["protocol"]["evaluator"]["designability"] == {"command": command, "below": 2.0}
    assert "designability" not in data.evaluator()(torch.zeros(4, 64, 3), data.conditions(4))
