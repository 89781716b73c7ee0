"""Objects that say how they were made, and the gate through which a folder may name classes."""

import copy
import json
import pickle

import pytest
import torch
import yaml
from torch import nn

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import DiscreteVariancePreserving, Process, TrigFlow, VarianceExploding
from distillkit.diffusion.times import KarrasUniform
from distillkit.networks.dit import DiT
from distillkit.networks.mlp import MLP
from distillkit.networks.unet import UNet
from distillkit.spec import Outside, Recorded, check, from_spec, named, to_spec
from distillkit.teachers.exact import CorrectedDenoiser, ExactDenoiser, Mixture

MIXTURE = Mixture([[0.1, 0.2], [1.0, -1.0]], [torch.eye(2).tolist()] * 2, [0.3, 0.7], [0, 1])
OBJECTS = {
    "process": TrigFlow(sigma_data=0.3),
    "table": DiscreteVariancePreserving(100, schedule="cosine"),
    "times": KarrasUniform(0.1, 0.7),
    "mlp": MLP((2,), width=8, depth=1, classes={"label": 3}),
    "unet": UNet((1, 8, 8), channels=8, multipliers=(1, 2), attention=False),
    "dit": DiT([1, 4, 4], width=8, depth=1, heads=2),
    "denoiser": Denoiser(MLP([2], 8, 1), VarianceExploding(rho=5.0), "eps"),
    "corrected": CorrectedDenoiser(ExactDenoiser(MIXTURE, VarianceExploding(), "label"), MLP([2], 8, 1, {"label": 2})),
}


@pytest.mark.parametrize("value", OBJECTS.values(), ids=OBJECTS)
def test_round_trip_through_yaml(value):
    spec = to_spec(value)
    again = from_spec(yaml.safe_load(yaml.safe_dump(spec)))
    assert type(again) is type(value) and to_spec(again) == spec
    assert json.loads(json.dumps(spec)) == spec
    if isinstance(value, nn.Module):
        again.load_state_dict(value.state_dict())
    if isinstance(value, Process):
        assert again == value


@pytest.mark.parametrize("value", OBJECTS.values(), ids=OBJECTS)
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))], ids=["deepcopy", "pickle"]
)
def test_copies_remember_too(value, duplicate):
    """Averages, students and processes on other devices are copies."""
    assert to_spec(duplicate(value)) == to_spec(value)


def test_a_copy_is_described_by_its_own_parts():
    original = OBJECTS["denoiser"]
    other = copy.deepcopy(original)
    assert other._arguments["network"] is other.network is not original.network


def test_subclasses_with_keyword_arguments():
    class Base(Recorded):
        def __init__(self, a, b=2):
            self.a, self.b = a, b

    class Child(Base):
        def __init__(self, c, **kwargs):
            super().__init__(**kwargs)
            self.c = c

    assert to_spec(Child(1, a=[3, {"x": (4,)}]))["init_args"] == {"c": 1, "a": [3, {"x": [4]}]}
    assert to_spec(Base(1))["init_args"] == {"a": 1}


def test_what_cannot_be_written_is_refused():
    with pytest.raises(
        ValueError, match="Linear cannot be written to a folder: derive it from distillkit.spec.Recorded"
    ):
        to_spec(Denoiser(nn.Linear(2, 2), VarianceExploding()))


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "torch.nn.Linear",
        "distillkit_evil.Thing",
        "system",
        "",
        ".distillkit.X",
    ],
)
def test_classes_of_others_are_refused_before_they_are_imported(path, monkeypatch):
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"imported {name}"))
    with pytest.raises(ValueError, match="which is outside distillkit, domains: pass trust="):
        from_spec({"class_path": path, "init_args": {}})


def test_the_refusal_reaches_every_depth():
    spec = to_spec(OBJECTS["denoiser"])
    spec["init_args"]["network"]["init_args"]["classes"] = {
        "label": [{"class_path": "os.system", "init_args": {"command": "true"}}]
    }
    with pytest.raises(ValueError, match="names class os.system"):
        from_spec(spec)


@pytest.mark.parametrize(
    "path",
    [
        "distillkit.files.write_text",  # a function that writes
        "distillkit.spec.importlib",  # a module
        "distillkit.students.base.Student",  # no class of a folder
        "distillkit.data.TensorData",
        "distillkit.networks.mlp.MPL",
    ],
)
def test_only_recorded_classes_are_built(path):
    with pytest.raises(
        ValueError, match=f"the folder names {path}, which is no class that distillkit writes to folders"
    ):
        from_spec({"class_path": path, "init_args": {"path": "/nowhere"}})


@pytest.mark.parametrize(
    "spec",
    [
        {"class_path": "distillkit.networks.nothing.MLP", "init_args": {}},
        {"class_path": "distillkit.MLP", "init_args": {}},
        {"class_path": 5},
        {"class_path": "distillkit.diffusion.process.TrigFlow", "init_args": {"sigma": 1.0}},
        {"class_path": "distillkit.diffusion.process.TrigFlow", "init_args": [1.0]},
        {"class_path": "distillkit.diffusion.process.Process", "init_args": {}},
    ],
    ids=["no module", "no class", "no text", "unknown argument", "a list", "abstract"],
)
def test_damaged_specs_are_refused_in_one_sentence(spec):
    """Specs of a newer version or a bad copy raise an error for people, in one sentence."""
    with pytest.raises(ValueError) as error:
        from_spec(spec)
    assert "\n" not in str(error.value)


def test_a_folder_cannot_extend_whom_its_reader_trusts(tmp_path):
    """A teacher named by a folder reads its own folder with the reader's trust, not the yaml's."""
    (tmp_path / "teacher.yaml").write_text("{denoiser: {class_path: evil.Denoiser}, event_shape: [2]}")
    teacher = "distillkit.teachers.folder.FolderTeacher"
    with pytest.raises(ValueError, match="names class evil.Denoiser, which is outside"):
        from_spec({"class_path": teacher, "init_args": {"path": str(tmp_path), "trust": ["evil"]}}, home=tmp_path)


@pytest.mark.parametrize(
    "path, key, value",
    [
        ("distillkit.networks.mlp.MLP", "width", "8"),
        ("distillkit.networks.mlp.MLP", "width", 8.0),
        ("distillkit.networks.mlp.MLP", "depth", True),
        ("distillkit.networks.mlp.MLP", "event_shape", 2),
        ("distillkit.networks.mlp.MLP", "event_shape", ["2"]),
        ("distillkit.networks.mlp.MLP", "classes", [3]),
        ("distillkit.networks.mlp.MLP", "classes", {"label": None}),
        ("domains.discrete.teacher.Potts", "noise", "gaussian"),
        ("domains.discrete.teacher.Potts", "schedule", to_spec(TrigFlow())),
        ("domains.image.data.NpzImages", "path", None),
        ("domains.image.data.NpzImages", "val", "0.1"),
        ("domains.toy.data.ToyData", "seed", [0]),
        ("domains.video.pipelines.teacher.Wan", "frames", "5"),  # an argument that it hands on to its parent
    ],
)
def test_arguments_are_of_the_kind_that_the_class_says(path, key, value):
    """Before the class is called: many take what they are given and fail when they use it."""
    needed = {"MLP": {"event_shape": [2]}, "NpzImages": {"path": "nowhere"}, "Wan": {"path": "nowhere"}}.get(
        path.rpartition(".")[2], {}
    )
    if "Toy" in path:
        needed = {"teacher": {"class_path": "domains.toy.teacher.Gaussian"}}
    with pytest.raises(ValueError, match=f"{path} cannot be built: {key} cannot be"):
        from_spec({"class_path": path, "init_args": {**needed, key: value}})


def test_what_is_wrong_is_said_with_the_file(tmp_path):
    """Whatever kind of ValueError a constructor raises."""
    for error in (
        ValueError("x"),
        Outside("x"),
        UnicodeDecodeError("utf-8", b"", 0, 1, "x"),
        json.JSONDecodeError("x", "", 0),
    ):
        with pytest.raises(ValueError, match=r"a\.yaml: .*x") as raised, named(tmp_path / "a.yaml"):
            raise error
        assert isinstance(raised.value, Outside) == isinstance(error, Outside)


def test_metrics_that_fetch_their_weights_need_a_permission():
    spec = {"class_path": "domains.image.data.Digits", "init_args": {"no_reference": ["musiq"]}}
    with pytest.raises(Outside, match=r"--trust pyiqa"):
        check(spec)
    assert check(spec, ("pyiqa",)) == []


def test_trusted_packages_may_be_named():
    """`torch` is trusted here, and still only classes that record themselves are built."""
    with pytest.raises(ValueError, match="no class that distillkit writes"):
        from_spec({"class_path": "torch.nn.Linear", "init_args": {}}, trust=("torch",))


def test_a_class_without_arguments_takes_none():
    with pytest.raises(ValueError, match="LastFrames.* takes no arguments, got 'axis'"):
        from_spec({"class_path": "domains.video.continuation.LastFrames", "init_args": {"axis": 99}})
