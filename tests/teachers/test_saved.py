"""A teacher folder of either kind under one word: its capabilities and what is made of it."""

import sys

import pytest
import torch
from helpers import Tail, neural

from distillkit.capabilities import imported, lacking
from distillkit.cli import declarations, front
from distillkit.discrete.denoiser import Mean
from distillkit.discrete.process import Absorbing
from distillkit.discrete.teacher import DiscreteFolderTeacher, DiscreteTeacher
from distillkit.files import read_yaml, write_yaml
from distillkit.methods.dmd import DMD
from distillkit.methods.lsd_tokens import LSDTokens
from distillkit.networks.ddit import DDiT
from distillkit.spec import from_spec, to_spec
from distillkit.teachers.folder import FolderTeacher
from distillkit.teachers.saved import SavedTeacher
from tests.battery.conftest import build

PATH = "distillkit.teachers.saved.SavedTeacher"
END = "; `python -m distillkit list` shows what goes together\n"


def tokens():
    network = DDiT(27, width=8, depth=1, heads=2, adaln=True, cond_dim=8)
    return DiscreteTeacher(Mean(network, Absorbing(27)), (64,))


@pytest.fixture(params=["new", "old"])
def folders(request, tmp_path):
    """One of each kind; those of an earlier version do not say what they provide."""
    made = {"plane": neural().save(tmp_path / "plane"), "tokens": tokens().save(tmp_path / "tokens")}
    for folder in made.values():
        config = read_yaml(folder / "teacher.yaml")
        said = config.pop("provides")
        assert said == (["log_probs"] if folder.name == "tokens" else ["denoiser", "features"])
        if request.param == "old":
            write_yaml(folder / "teacher.yaml", config)
    return made


def test_the_folder_says_what_is_made_of_it(folders):
    for name, kind in (("plane", FolderTeacher), ("tokens", DiscreteFolderTeacher)):
        path = str(folders[name])
        teacher = SavedTeacher(path)
        assert type(teacher) is kind and teacher.fingerprint() == kind(path).fingerprint()
        again = from_spec({"class_path": PATH, "init_args": {"path": path}}, (path,))
        assert type(again) is kind
        recorded = to_spec(again)
        assert recorded["class_path"] == f"{kind.__module__}.{kind.__name__}"  # which older student.yaml's have
        assert type(from_spec(recorded, (path,))) is kind


@pytest.mark.parametrize("find", [declarations.read, imported], ids=["source", "class"])
def test_what_it_offers_is_read_before_anything_is_built(folders, find, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda *_, **__: pytest.fail("something was built"))

    def gap(method, name):
        teacher = {"class_path": PATH, "init_args": {"path": str(folders[name])}}
        return lacking(
            {"model": {"class_path": f"distillkit.methods.{method}", "init_args": {"teacher": teacher}}}, find
        )

    assert gap("dmd.DMD", "plane") is None and gap("lsd_tokens.LSDTokens", "tokens") is None
    assert gap("dmd.DMD", "tokens").startswith("DMD needs denoiser, which SavedTeacher does not give")
    assert gap("lsd.LSD", "tokens").startswith("LSD needs denoiser")
    assert gap("lsd_tokens.LSDTokens", "plane").startswith("LSDTokens needs log_probs")


def test_a_folder_of_the_other_kind_is_refused_in_one_sentence(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "distillkit.cli.lightning", None)  # importing it fails
    words = ["teacher=folder", f"teacher.path={folders['tokens']}", "--out", "run"]
    assert front.main(["fit", "domain=discrete", "method=dmd", *words]) == 2
    assert capsys.readouterr().err == f"error: DMD needs denoiser, which SavedTeacher and TextData do not give{END}"
    words[1] = f"teacher.path={folders['plane']}"
    assert front.main(["fit", "domain=discrete", "method=lsd", *words]) == 2
    assert capsys.readouterr().err.startswith("error: LSDTokens needs log_probs, which SavedTeacher and")


def test_one_word_serves_both_kinds(folders):
    made = build("domain=discrete", "method=lsd", "teacher=folder", f"teacher.path={folders['tokens']}")
    assert isinstance(made.model, LSDTokens) and type(made.model.teacher) is DiscreteFolderTeacher
    exact = "data.teacher={_target_: domains.toy.teacher.Gaussian}"
    made = build("domain=toy", "method=dmd", "teacher=folder", f"teacher.path={folders['plane']}", exact)
    assert isinstance(made.model, DMD) and type(made.model.teacher) is FolderTeacher


def test_a_teacher_of_a_world_is_distilled_on_draws_from_the_world(tmp_path):
    """Its law is that of a world, which the data name beside it."""
    network = DDiT(3, width=8, depth=1, heads=2, adaln=True, cond_dim=8)
    folder = DiscreteTeacher(Mean(network, Absorbing(3)), (5,)).save(tmp_path / "t")
    words = ["domain=discrete", "method=lsd", "data=world", "teacher=folder", f"teacher.path={folder}"]
    with pytest.raises(ValueError, match="the law of t is not known: name a world for the data, such as 'data.teacher"):
        build(*words)
    made = build(*words, "data.teacher={_target_: domains.discrete.teacher.Potts}")
    assert made.data.teacher.id == "potts-3-5-absorbing" and type(made.model.teacher) is DiscreteFolderTeacher


def test_a_folder_that_cannot_be_read_is_left_to_its_constructor(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ValueError, match=r"does not exist"):
            SavedTeacher(str(path))
    assert SavedTeacher.offers({"path": str(tmp_path)}) >= {"denoiser", "log_probs"}


def test_the_former_word_names_the_one_that_serves_both(capsys):
    assert front.main(["fit", "domain=discrete", "method=lsd", "teacher=discrete_folder", "teacher.path=x"]) == 2
    assert capsys.readouterr().err == (
        "error: teacher=discrete_folder is teacher=folder now, which tells by the folder what it holds\n"
    )


def test_how_a_teacher_goes_on_is_in_its_folder(tmp_path):
    teacher = neural(continuation=Tail())
    folder = str(teacher.save(tmp_path / "t"))
    assert isinstance(SavedTeacher(folder, ["helpers"]).continuation, Tail)
