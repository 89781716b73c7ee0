"""`sample --cond` takes a class by its number or by the name that its folder keeps."""

from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from helpers import neural

from distillkit import load_student
from distillkit.callbacks.finish import MOST_NAMES, called
from distillkit.cli import front
from distillkit.cli.products import class_of
from distillkit.errors import UsageError
from distillkit.methods.dmd import DMD

NAMES = ["saw", "sine\x1b[31m: [a]"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return DMD(neural()).product().save(tmp_path / "student", names={"label": NAMES})


def sampled(folder, word, code=0):
    """The classes of three samples, or None."""
    if front.main(["sample", str(folder), "-n", "3", "--cond", word, "--out", f"out-{len(word)}"]) != code or code:
        return None
    return np.load(f"out-{len(word)}/samples.npz")["label"].tolist()


@pytest.mark.parametrize(("word", "number"), [("saw", 0), (NAMES[1], 1), ("1", 1)])
def test_a_class_has_a_number_and_a_name(folder, word, number):
    assert sampled(folder, f"label={word}") == [number] * 3
    assert load_student(folder).names == {"label": NAMES}


@pytest.mark.parametrize("word", ["Saw", "2", "-1", "1.0", "", "٣"])
def test_an_unknown_class_is_refused_with_those_that_there_are(folder, word, capsys):
    sampled(folder, f"label={word}", code=2)
    said = capsys.readouterr().err
    assert f"--cond label={word} is not possible; label is a number from 0 to 1, or 'saw', 'sine\\x1b[31m: [a]'" in said


def test_of_many_classes_the_first_are_named():
    names = [f"class {i}" for i in range(10)]
    with pytest.raises(UsageError, match=r"from 0 to 9, or 'class 0', .*'class 7' and 2 more$"):
        class_of("label", "none", 10, names)
    with pytest.raises(UsageError, match=r"label is a number from 0 to 9$"):
        class_of("label", "none", 10, ())


def test_a_number_that_is_the_name_of_another_class_is_a_number_and_this_is_said(capsys):
    names = ["1", "10", "2"]
    assert class_of("label", "2", 3, ["0", "1", "2"]) == 2 and not capsys.readouterr().err
    assert class_of("label", "10", 3, names) == 1 and not capsys.readouterr().err
    assert class_of("label", "1", 3, names) == 1
    assert (
        "label=1 is class number 1, which is called '10'; the one that is called '1' is number 0"
        in capsys.readouterr().err
    )


def test_accents_may_be_typed_in_one_sign_or_apart():
    together, apart = "\u00c9lan", "E\u0301lan"
    assert class_of("label", together, 2, ["a", apart]) == class_of("label", apart, 2, ["a", together]) == 1


def test_a_class_is_said_once(folder, capsys):
    words = ["--cond", "label=0", "--cond", "label=1"]
    assert front.main(["sample", str(folder), "-n", "2", *words, "--out", "twice"]) == 2
    assert "--cond label=1 comes after another class for all samples: give label once" in capsys.readouterr().err


@pytest.mark.parametrize(
    "names", ["saw", ["saw"], {"label": "saw"}, {"label": ["saw"]}, {"label": [1, 2]}, {"x": NAMES}]
)
def test_damaged_names_are_none(folder, names):
    file = folder / "student.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"names": names}))
    assert load_student(folder).names == {}
    assert sampled(folder, "label=1") == [1] * 3


def test_a_run_keeps_the_names_of_its_data_as_plain_text():
    def kept(names, classes, known=None):
        student = SimpleNamespace(classes=classes, network=SimpleNamespace(known=known))
        return called(student, SimpleNamespace(names=names))

    assert kept({"label": ("a", "caf\udce9")}, {"label": 2}) == {"names": {"label": ["a", "caf\\udce9"]}}
    assert kept({"label": ["a"], "pitch": ["A4"]}, {"pitch": 1}) == {"names": {"pitch": ["A4"]}}
    assert kept({}, {"label": 2}) == kept({"label": ["a"]}, {"label": 2}) == {}  # of another run's data
    assert kept({"label": ["a"] * (MOST_NAMES + 1)}, {"label": MOST_NAMES + 1}) == {}
    assert kept({}, {}, known=["a red cone"]) == {"prompts": ["a red cone"]}
