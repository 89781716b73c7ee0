"""A stranger's student or teacher folder may not choose the code, the files or the size it uses."""

import copy
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from helpers import wake
from safetensors.torch import load_file

from distillkit import load_student
from distillkit.cli import front
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import VarianceExploding
from distillkit.errors import UsageError
from distillkit.files import save_tensors, save_weights
from distillkit.networks.mlp import MLP
from distillkit.networks.set_dit import SetDiT
from distillkit.networks.video_unet import VideoUNet
from distillkit.students.few_step import FewStepStudent
from distillkit.students.provenance import made_with, set_up
from distillkit.teachers.base import Teacher
from distillkit.teachers.folder import FolderTeacher
from domains.toy.teacher import Gaussian

CLASSES = {"label": 3}
TRAP = "stranger_trap"
MODULE = """
import pathlib
pathlib.Path(__file__).with_suffix(".sprung").touch()
from distillkit.networks.mlp import MLP
from domains.toy.data import ToyData
from domains.toy.teacher import Gaussian
class Net(MLP):
    pass
class Own(Gaussian):
    pass
class Data(ToyData):
    pass
"""
EXACT = {"class_path": "domains.toy.teacher.Gaussian", "init_args": {"mean": [1.0, -1.0], "process": None}}
EXACT["init_args"]["process"] = {"class_path": "distillkit.diffusion.process.VarianceExploding", "init_args": {}}
RUN = {
    "teacher": EXACT,
    "data": {"class_path": "domains.toy.data.ToyData", "init_args": {"teacher": EXACT, "num_samples": 200, "seed": 0}},
}


def network():
    return wake(Denoiser(MLP([2], width=8, depth=1), VarianceExploding(), "edm", 0.8))


@pytest.fixture
def folder(tmp_path):
    """A whole student folder, as `fit` leaves it."""
    student = FewStepStudent(network(), [2.0, 0.5], (2,))
    origin = {"id": "toy", "hash": Gaussian().fingerprint()}
    return student.save(
        tmp_path / "student", domain="toy", method="DMD", kappa=1.0, teacher=origin, run=copy.deepcopy(RUN)
    )


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module that leaves a mark when it is imported."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{TRAP}.py").write_text(MODULE)
    yield tmp_path / f"{TRAP}.sprung"
    sys.modules.pop(TRAP, None)


def put(folder, at, value, file="student.yaml"):
    """Change one value of a folder; what `at` leads through may be missing."""
    config = yaml.safe_load((folder / file).read_text())
    *way, last = at.split("/")
    inner = config
    for key in way:
        inner = inner[int(key)] if isinstance(inner, list) else inner.setdefault(key, {})
    inner[last] = value
    (folder / file).write_text(yaml.safe_dump(config, sort_keys=False))


def words(verb, folder, tmp_path):
    more = {"sample": ["-n", "4"], "evaluate": ["--num-samples", "20"], "export": []}[verb]
    return [verb, str(folder), *more, "--out", str(tmp_path / f"out-{verb}")]


def refused(capsys, *argv):
    """The one-sentence error of a command with exit code 2."""
    code = front.main([str(word) for word in argv])
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1, (code, err)
    return err


@pytest.fixture
def built(monkeypatch):
    """`evaluate` up to the measurement, which takes seconds."""
    made = []
    monkeypatch.setattr("distillkit.evaluation.protocol.evaluate", lambda *objects: made.append(objects) or {})
    monkeypatch.setattr("distillkit.report.quality.evaluation_table", lambda *told: "")
    return made


def test_the_folder_itself_is_fine(folder, built, tmp_path):
    for verb in ("sample", "evaluate", "export"):
        assert front.main(words(verb, folder, tmp_path)) == 0


# Code that runs


@pytest.mark.parametrize(
    "verb, at, value",
    [
        ("sample", "denoiser", "Net"),
        ("export", "denoiser/init_args/network", "Net"),
        ("sample", "denoiser/init_args/process", "Net"),
        ("sample", "denoiser/init_args/network/init_args/classes/label", "Net"),
        ("sample", "run/data", "Data"),
        ("evaluate", "run/data", "Data"),
        ("evaluate", "run/teacher", "Own"),
        ("evaluate", "run/data/init_args/teacher", "Own"),
        ("evaluate", "run/teacher/init_args/process", "Net"),
        ("evaluate", "run/teacher/init_args/mean/0", "Net"),
        ("evaluate", "run/data/dict_kwargs/more", "Net"),
        ("evaluate", "run/data/dict_kwargs", "Net"),
    ],
)
def test_a_class_of_another_package_is_never_imported(verb, at, value, folder, trap, tmp_path, capsys):
    config = yaml.safe_load((folder / "student.yaml").read_text())
    if at.endswith("/0"):
        at, config["run"]["teacher"]["init_args"]["mean"] = at[:-2], [{"class_path": f"{TRAP}.{value}"}]
        (folder / "student.yaml").write_text(yaml.safe_dump(config))
    else:
        put(folder, at, {"class_path": f"{TRAP}.{value}", "init_args": {}})
    said = refused(capsys, *words(verb, folder, tmp_path))
    assert TRAP in said and f"--trust {TRAP}" in said
    assert TRAP not in sys.modules and not trap.exists()


@pytest.mark.parametrize("value", [f"{TRAP}.Own", f"{{class_path: {TRAP}.Own}}", f"import {TRAP}"])
@pytest.mark.parametrize(
    "at", ["run/teacher", "run/teacher/init_args/process", "denoiser", "denoiser/init_args/network"]
)
def test_text_in_the_place_of_an_object_is_no_class(at, value, folder, trap, tmp_path, capsys):
    """Parsers of command lines take a text for the name of a class, or for yaml."""
    put(folder, at, value)
    refused(capsys, *words("evaluate", folder, tmp_path))
    assert TRAP not in sys.modules and not trap.exists()


@pytest.mark.parametrize("path", ["distillkit.__main__.MLP", "distillkit.spec.importlib", "domains..MLP", "distillkit"])
def test_modules_that_run_when_they_are_imported_are_refused(path, folder, tmp_path, capsys):
    put(folder, "denoiser/init_args/network/class_path", path)
    assert "which is no class that distillkit writes" in refused(capsys, *words("sample", folder, tmp_path))


@pytest.mark.parametrize(
    "at, path",
    [
        ("run/teacher", "domains.toy.data.ToyData"),
        ("run/data", "domains.toy.teacher.Gaussian"),
        ("denoiser", "domains.toy.teacher.Gaussian"),
        ("denoiser/init_args/process", "distillkit.networks.mlp.MLP"),
        ("run/data/init_args/teacher", "distillkit.diffusion.process.VarianceExploding"),
    ],
)
def test_a_class_of_another_kind_is_refused(at, path, folder, tmp_path, capsys):
    arguments = {"event_shape": [2]} if "MLP" in path else {"teacher": EXACT} if "ToyData" in path else {}
    put(folder, at, {"class_path": path, "init_args": arguments})
    refused(capsys, *words("evaluate", folder, tmp_path))


def test_whoever_types_the_command_may_trust_a_package(folder, built, trap, tmp_path, capsys):
    """A student of one's own network, with one's own teacher and data."""
    for at, name in (("denoiser/init_args/network", "Net"), ("run/teacher", "Own"), ("run/data", "Data")):
        put(folder, f"{at}/class_path", f"{TRAP}.{name}")
    for verb in ("sample", "evaluate", "export"):
        argv = words(verb, folder, tmp_path)
        assert f"--trust {TRAP}" in refused(capsys, *argv) and not trap.exists()
    for verb in ("sample", "evaluate", "export"):
        assert front.main([*words(verb, folder, tmp_path), "--trust", "another", "--trust", TRAP]) == 0, verb
    assert trap.exists() and load_student(folder, trust=(TRAP,)).num_steps == 2


def test_a_folder_does_not_choose_whom_to_trust(folder, built, trap, tmp_path, capsys):
    """Its own `trust` counts neither for it nor for its teacher's folder; the caller's for both."""
    teacher = folder / "teacher"
    Teacher(network(), (2,)).save(teacher)
    put(teacher, "denoiser/init_args/network/class_path", f"{TRAP}.Net", "teacher.yaml")
    put(folder, "trust", [TRAP])
    named = {"path": str(teacher), "trust": [TRAP]}
    put(folder, "run/teacher", {"class_path": "distillkit.teachers.folder.FolderTeacher", "init_args": named})
    assert f"{TRAP}.Net, which is outside distillkit, domains" in refused(capsys, *words("evaluate", folder, tmp_path))
    assert not trap.exists()
    del named["trust"]
    put(folder, "run/teacher/init_args", named)
    put(folder, "teacher/hash", FolderTeacher(str(teacher), trust=[TRAP]).fingerprint())
    assert front.main([*words("evaluate", folder, tmp_path), "--trust", TRAP]) == 0


def test_the_teacher_of_a_sampler_passes_the_same_gate(tmp_path, trap, capsys):
    from distillkit.diffusion.learned import LearnedSolver
    from distillkit.students.sampler import SamplerStudent

    teacher = Gaussian()
    folder = SamplerStudent(teacher, LearnedSolver(teacher.process, [4.0, 1.0])).save(tmp_path / "student")
    assert front.main(words("sample", folder, tmp_path)) == 0
    put(folder, "teacher/class_path", f"{TRAP}.Own")
    assert f"--trust {TRAP}" in refused(capsys, *words("sample", folder, tmp_path)) and not trap.exists()
    put(folder, "teacher/class_path", "domains.toy.teacher.Gaussian")
    put(folder, "sampler/class_path", f"{TRAP}.Own")
    assert f"--trust {TRAP}" in refused(capsys, *words("sample", folder, tmp_path)) and not trap.exists()


@pytest.mark.parametrize("name", ["base.Student", "base.Product", "makers.Copy"])
def test_a_student_folder_names_a_student_that_can_be_made(name, folder, tmp_path, capsys):
    put(folder, "class_path", f"distillkit.students.{name}")
    for verb in ("sample", "export"):
        assert "which is no Student that can be made" in refused(capsys, *words(verb, folder, tmp_path))


def test_nothing_is_imported_from_the_folder_that_one_stands_in(folder):
    for name in ("difflib", "argparse", "json"):  # what the command line itself imports first
        (folder / f"{name}.py").write_text("open('sprung', 'w')")
    done = subprocess.run([sys.executable, "-m", "distillkit", "--version"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (folder / "sprung").exists()


# Files that are read


@pytest.fixture
def secret(tmp_path):
    """Images of somebody's, beside the student folder."""
    path = tmp_path / "secret" / "images.npz"
    path.parent.mkdir()
    np.savez(path, images=np.zeros((40, 8, 8), np.uint8))
    return path


def npz(path, **more):
    return {"class_path": "domains.image.data.NpzImages", "init_args": {"path": str(path), **more}}


@pytest.mark.parametrize("of", ["run/data", "run/teacher"])
def test_no_path_is_the_folder_that_one_stands_in(of, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    kind = "domains.discrete.data.TextData" if of == "run/data" else "distillkit.teachers.folder.FolderTeacher"
    put(folder, of, {"class_path": kind, "init_args": {"path": ""}})
    assert f"--trust {tmp_path}" in refused(capsys, *words("evaluate", folder, tmp_path))


@pytest.mark.parametrize("kind", ["absolute", "relative", "dots", "link", "folder link", "bare word"])
def test_what_lies_outside_is_asked_for(kind, folder, secret, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(secret.parent if kind == "bare word" else tmp_path)
    (folder / "images.npz").symlink_to(secret)
    (folder / "images").symlink_to(secret.parent)
    path = {
        "absolute": secret,
        "relative": "secret/images.npz",
        "dots": folder / ".." / "secret" / "images.npz",
        "link": folder / "images.npz",
        "folder link": folder / "images" / "images.npz",
        "bare word": "images.npz",
    }[kind]
    monkeypatch.setattr("numpy.load", lambda *args, **kwargs: pytest.fail("it was read"))
    put(folder, "run/data", npz(path))
    assert f"--trust {secret}" in refused(capsys, *words("evaluate", folder, tmp_path))


def test_weights_of_features_are_asked_for_too(folder, secret, tmp_path, capsys):
    inside = folder / "data.npz"
    inside.write_bytes(secret.read_bytes())
    put(folder, "run/data", npz(inside, features=f"inception:{secret}"))
    assert f"--trust {secret}" in refused(capsys, *words("evaluate", folder, tmp_path))


@pytest.mark.parametrize(
    ("verb", "at", "kind", "argument"),
    [
        ("evaluate", "run/data", "domains.music.data.Tones", "clap"),
        ("optimize", "run/data", "domains.music.data.Tones", "clap"),
        ("optimize", "run/data", "domains.music.prompts.Prompts", "clap"),
        ("sample", "codec/init_args/vocoder", "domains.music.vocoder.HifiGan", "path"),
        ("optimize", "codec/init_args/vocoder", "domains.music.vocoder.HifiGan", "path"),
    ],
)
def test_models_that_hear_or_speak_are_asked_for(verb, at, kind, argument, folder, secret, tmp_path, capsys):
    (folder / "near").symlink_to(secret.parent)
    put(folder, "codec/class_path", "domains.music.codec.Mel" if "codec" in at else "distillkit.codec.Codec")
    put(folder, at, {"class_path": kind, "init_args": {argument: str(folder / "near")}})
    if "codec" in at:
        put(folder, "run/data", {"class_path": "domains.music.data.Tones", "init_args": {}})
    asked = ["optimize", folder, "--control", "loop", "--out", tmp_path / "out-optimize"]
    argv = asked if verb == "optimize" else words(verb, folder, tmp_path)
    assert f"--trust {secret.parent}" in refused(capsys, *argv) and not (tmp_path / f"out-{verb}").exists()


def test_a_link_inside_of_a_folder_that_is_brought_along_leads_nowhere(folder, secret, tmp_path, capsys):
    teacher = Teacher(network(), (2,)).save(folder / "teacher")
    (teacher / "more").symlink_to(secret)
    named = {"class_path": "distillkit.teachers.folder.FolderTeacher", "init_args": {"path": str(teacher)}}
    put(folder, "run/teacher", named)
    assert f"--trust {secret}" in refused(capsys, *words("evaluate", folder, tmp_path))


def test_the_command_says_yes_to_what_lies_outside(folder, built, tmp_path, capsys):
    """The common case: a teacher of one's own in another run, and the flag to paste."""
    teacher = Teacher(network(), (2,)).save(tmp_path / "runs" / "teacher")
    named = {"class_path": "distillkit.teachers.folder.FolderTeacher", "init_args": {"path": str(teacher)}}
    put(folder, "run/teacher", named)
    put(folder, "teacher/hash", FolderTeacher(str(teacher)).fingerprint())
    argv = words("evaluate", folder, tmp_path)
    assert f"--trust {teacher}" in refused(capsys, *argv)
    assert front.main([*argv, "--trust", f"{tmp_path}/runs"]) == 0


def test_what_the_folder_brings_along_is_read(folder, built, tmp_path):
    teacher = Teacher(network(), (2,)).save(folder / "teacher")
    named = {"class_path": "distillkit.teachers.folder.FolderTeacher", "init_args": {"path": str(teacher)}}
    put(folder, "run/teacher", named)
    put(folder, "teacher/hash", FolderTeacher(str(teacher)).fingerprint())
    assert front.main(words("evaluate", folder, tmp_path)) == 0


def test_samples_are_drawn_without_the_data_and_the_picture_says_why(folder, secret, tmp_path, capsys):
    put(folder, "run/data", npz(secret))
    assert front.main(words("sample", folder, tmp_path)) == 0
    assert f"no picture: the folder wants to read {secret}" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out-sample").iterdir()] == ["samples.npz"]


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors", "clip.dat"])
@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_that_is_brought_along_is_not_read(name, legacy, folder, tmp_path, capsys):
    torch.save({"x": torch.zeros(2)}, folder / name, _use_new_zipfile_serialization=not legacy)
    digits = {"class_path": "domains.video.data.MovingDigits", "init_args": {"i3d": str(folder / name)}}
    put(folder, "run/data", digits)
    assert "which is a pickle" in refused(capsys, *words("evaluate", folder, tmp_path))


@pytest.mark.parametrize("yes", [True, 1, "yes"])
def test_nothing_is_fetched_for_a_folder(yes, folder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: pytest.fail("it was fetched"))
    (folder / "prompts.txt").write_text("a cat")
    size = {"frames": 5, "height": 16, "width": 16, "download": yes}
    wan = {"path": "evil/model", "prompts": str(folder / "prompts.txt"), **size}
    put(folder, "run/teacher", {"class_path": "domains.video.pipelines.teacher.Wan", "init_args": wan})
    assert "--trust evil/model" in refused(capsys, *words("evaluate", folder, tmp_path))
    data = {"path": str(folder / "prompts.txt"), "pipeline": "evil/model", **size}
    put(folder, "run/data", {"class_path": "domains.video.prompts.Prompts", "init_args": data})
    assert "--trust evil/model" in refused(capsys, *words("evaluate", folder, tmp_path))


# How much


@pytest.mark.parametrize(
    "at, value",
    [
        ("denoiser/init_args/network/init_args/depth", 10**9),
        ("denoiser/init_args/network/init_args/depth", 10**6),
        ("denoiser/init_args/network/init_args/width", 10**9),
        ("denoiser/init_args/network/init_args/width", 50_000),
        ("denoiser/init_args/network/init_args/event_shape", [10**6, 4]),
        ("denoiser/init_args/network/init_args/classes", {"label": 10**6}),
        ("denoiser/init_args/process", {"class_path": "distillkit.diffusion.process.DiscreteVariancePreserving",
                                        "init_args": {"num_steps": 4 * 10**6}}),
        ("event_shape", [10**9]),
        ("event_shape", [10**5, 10**5]),
        ("classes", {"label": 10**9}),
        ("times", [float(i) for i in range(20_000, 0, -1)]),
        ("run/data/init_args/num_samples", 10**12),
        ("run/teacher", {"class_path": "domains.discrete.teacher.Potts", "init_args": {"num_tokens": 60_000}}),
    ],
)  # fmt: skip
def test_absurd_sizes_are_refused_before_memory_or_time_is_spent(at, value, folder, tmp_path, capsys):
    put(folder, at, value)
    before = time.process_time()
    refused(capsys, *words("evaluate", folder, tmp_path))
    assert time.process_time() - before < 10


@pytest.mark.parametrize("sampler", [True, False])
def test_a_teacher_without_weights_is_no_larger_than_what_it_reads(sampler, folder, tmp_path, capsys):
    """A few words ask for gigabytes; `sample` (of a sampler) and `evaluate` refuse them."""
    from distillkit.diffusion.learned import LearnedSolver
    from distillkit.spec import to_spec
    from distillkit.students.sampler import SamplerStudent

    large = to_spec(Teacher(network(), (2,)))
    large["init_args"]["denoiser"]["init_args"]["network"]["init_args"]["width"] = 20_000
    if sampler:
        teacher = Gaussian()
        folder = SamplerStudent(teacher, LearnedSolver(teacher.process, [4.0, 1.0])).save(tmp_path / "sampler")
        for key, value in large.items():
            put(folder, f"teacher/{key}", value)
    else:
        put(folder, "run/teacher", large)
    assert "far larger than" in refused(capsys, *words("sample" if sampler else "evaluate", folder, tmp_path))


def test_data_that_would_fill_the_memory_end_early(folder, monkeypatch):
    monkeypatch.setattr("distillkit.students.provenance.MOST_DATA", 10**7)
    put(folder, "run/data/init_args/num_samples", 4 * 10**6)
    student = load_student(folder)
    with pytest.raises(UsageError, match="the student's data cannot be read"):
        set_up(made_with(student.config, folder, (), "data")["data"])


# Values in the folder


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1.0])
@pytest.mark.parametrize("at", ["times", "noise_scale", "kappa", "denoiser/init_args/sigma_data"])
def test_numbers_without_sense_are_refused(at, value, folder, tmp_path, capsys):
    put(folder, at, [2.0, value] if at == "times" else value)
    said = refused(capsys, *words("sample", folder, tmp_path))
    assert at.rpartition("/")[2] in said and "student.yaml" in said


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("file", ["student", "teacher"])
def test_weights_that_are_no_numbers_are_refused(file, value, folder, tmp_path, capsys):
    lost = network()
    with torch.no_grad():
        lost.network.out.bias[1] = value
    if file == "student":
        save_weights(folder / "model.safetensors", lost)
        said = refused(capsys, *words("sample", folder, tmp_path))
    else:
        Teacher(lost, (2,)).save(tmp_path / "t")
        with pytest.raises(ValueError) as error:
            FolderTeacher(str(tmp_path / "t"))
        said = str(error.value)
    assert "model.safetensors holds NaN or infinity in network.out.bias" in said


@pytest.mark.parametrize(
    "at, value",
    [("classes", {name: 3}) for name in ("../../x", "file", "samples", "mask", "a b", "\x1b[2J")]
    + [("context", ["../x"]), ("context", [3])],
)
def test_conditions_have_names_that_a_file_can_hold(at, value, folder, tmp_path, capsys):
    put(folder, at, value)
    assert f"{at} cannot be" in refused(capsys, *words("sample", folder, tmp_path))


@pytest.mark.parametrize(
    "verb, at, value",
    [("evaluate", "classes", {"label": 3}), ("evaluate", "context", ["first"]), ("sample", "context", ["first"])],
)
def test_a_student_that_its_own_data_do_not_fit_is_one_sentence(verb, at, value, folder, tmp_path, capsys):
    put(folder, at, value)
    assert "cannot be asked what its data say" in refused(capsys, *words(verb, folder, tmp_path))


@pytest.mark.parametrize("value", ["2020-01-01", "!!binary aGk=", "!!set {a, b}", "{2020-01-01: 3}"])
def test_values_that_distillkit_never_writes_are_refused(value, folder, tmp_path, capsys):
    with (folder / "student.yaml").open("a") as file:
        file.write(f"more: {value}\n")
    assert "more than plain values" in refused(capsys, *words("export", folder, tmp_path))


def test_what_a_folder_says_does_nothing_to_the_console(folder, tmp_path, capsys):
    put(folder, "denoiser/class_path", "\x1b]0;owned\x07\x1b[2Jevil.Net")
    assert "\x1b" not in refused(capsys, *words("sample", folder, tmp_path))


def test_nothing_is_written_through_a_link_that_leads_nowhere(folder, tmp_path, capsys):
    (folder / "samples-0").symlink_to(tmp_path / "elsewhere" / "new")
    assert "exists already" in refused(capsys, "sample", folder, "-n", 2)
    assert not (tmp_path / "elsewhere").exists()


VALUES = [None, -1, 0, 3, 10**9, 1.5, float("nan"), "x", True, [], [[1]], ["a"], {}, {"a": 1}, {1: 2},
          {"class_path": "os.system"}, {"class_path": "distillkit.networks.mlp.MLP"}]  # fmt: skip


def places(value, at=()):
    yield at
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*at, key))


@pytest.mark.parametrize("file", ["student.yaml", "teacher.yaml"])
def test_any_value_of_the_wrong_kind_anywhere_is_one_sentence(file, folder, tmp_path):
    """Any value in any place either loads or is refused for a reason; nothing fails inside."""
    Teacher(network(), (2,)).save(tmp_path / "t")
    at = folder if file == "student.yaml" else tmp_path / "t"
    config = yaml.safe_load((at / file).read_text())
    spots = [spot for spot in places(config) if spot]
    assert len(spots) > 15
    for number, (*way, last) in enumerate(spots):
        for value in VALUES[number % 4 :: 4]:
            changed = inner = copy.deepcopy(config)
            for key in way:
                inner = inner[key]
            inner[last] = value
            (at / file).write_text(yaml.safe_dump(changed))
            try:
                if file == "teacher.yaml":
                    FolderTeacher(str(at))
                else:
                    set_up(made_with(load_student(at).config, at, (), "teacher", "data")["data"])
            except ValueError as error:
                assert "\n" not in str(error), (way, last, value)


# Example conditions


def given(at, kind):
    """A student folder with a context and examples of it: sets of voxels, or videos that go on."""
    process, event_shape = VarianceExploding(), {"voxels": (8, 3), "video": (1, 4, 4, 4)}[kind]
    if kind == "voxels":
        net, context = (
            SetDiT(event_shape, side=4, width=8, depth=1, heads=1, patch=2, classes=CLASSES),
            ("coords", "mask"),
        )
        mask = torch.arange(8) < torch.tensor([[3], [8]])
        examples = {"coords": torch.arange(24).reshape(8, 3).remainder(4).expand(2, -1, -1), "mask": mask}
    else:
        net, context = VideoUNet(event_shape, 8, [1], heads=0, classes=CLASSES, given=2), ("first",)
        examples = {"first": torch.zeros(2, 1, 2, 4, 4)}
    student = FewStepStudent(wake(Denoiser(net, process)), [2.0], event_shape, CLASSES, context=context)
    return student.save(
        at, examples={"label": torch.tensor([2, 1]), **examples}, asks=dict.fromkeys(context, "its voxels")
    )


CONDITIONS = {
    "names": ("voxels", lambda c: c.pop("label"), r"it holds \['coords', 'mask'\], this student is asked about"),
    "more names": ("voxels", lambda c: c.update(more=c["label"]), "it holds"),
    "lengths": ("voxels", lambda c: c.update(label=c["label"][:1]), "must hold 2 integers from 0 to 2"),
    "lengths of a context": ("voxels", lambda c: c.update(mask=c["mask"][:1]), r"needs cond\['mask'\] for 2 samples: its voxels"),
    "none": ("voxels", lambda c: c.update({k: v[:0] for k, v in c.items()}), "must hold 1 to 16 conditions, got 0"),
    "numbers": ("voxels", lambda c: c.update({k: v.sum() for k, v in c.items()}), "must hold 1 to 16 conditions, got 0"),
    "a class that there is not": ("voxels", lambda c: c.update(label=torch.tensor([2, 4])), "must hold 2 integers from 0 to 2"),
    "fractions": ("voxels", lambda c: c.update(label=c["label"].float()), "must hold 2 integers from 0 to 2"),
    "a mask of numbers": ("voxels", lambda c: c.update(mask=c["mask"].long()), r"true or false .* got int64 \[2, 8\]"),
    "a flat mask": ("voxels", lambda c: c.update(mask=c["mask"][:, 0]), r"got bool \[2\]"),
    "a deep mask": ("voxels", lambda c: c.update(mask=c["mask"][:, :, None, None]), r"got bool \[2, 8, 1, 1\]"),
    "too many places": (
        "voxels",
        lambda c: c.update({k: v.repeat_interleave(100, 1) for k, v in c.items() if k != "label"}),
        r"\[800\] places, more than samples of \[8, 3\]",
    ),
    "voxels outside": ("voxels", lambda c: c.update(coords=c["coords"] + 1), "each from 0 to 3 where the mask is true"),
    "voxels below": ("voxels", lambda c: c.update(coords=c["coords"] - 1), "each from 0 to 3 where the mask is true"),
    "broken voxels": ("voxels", lambda c: c.update(coords=c["coords"].float()), r"got float32 \[2, 8, 3\]"),
    "fewer voxels": ("voxels", lambda c: c.update(coords=c["coords"][:, :7]), r"int64 \[2, 8, 3\].*got int64 \[2, 7, 3\]"),
    "NaN": ("video", lambda c: c["first"].fill_(float("nan")), r"cond\['first'\] holds NaN or infinity"),
    "infinity": ("video", lambda c: c["first"].fill_(float("inf")), r"cond\['first'\] holds NaN or infinity"),
    "other frames": ("video", lambda c: c.update(first=c["first"][:, :, :1]), r"first 2 frames .*, 4, 4\], got \[2, 1, 1, "),
    "too large": ("video", lambda c: c.update(first=torch.zeros(2, 2**25)), "more than 134,217,728 bytes are not read"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions_that_no_student_has_are_one_sentence(name, tmp_path, capsys):
    kind, change, said = CONDITIONS[name]
    folder = given(tmp_path / "student", kind)
    assert front.main(words("sample", folder, tmp_path)) == 0  # as it is, it is fine
    capsys.readouterr()
    conditions = load_file(folder / "conditions.safetensors")
    change(conditions)
    save_tensors(folder / "conditions.safetensors", conditions)
    found = refused(capsys, "sample", folder, "-n", 2, "--out", tmp_path / "again")
    assert "conditions.safetensors is damaged" in found and re.search(said, found), found


@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"x" * 100])
def test_conditions_that_are_no_tensors_are_one_sentence(content, tmp_path, capsys):
    folder = given(tmp_path / "student", "video")
    (folder / "conditions.safetensors").write_bytes(content)
    assert "is not a whole safetensors file" in refused(capsys, *words("sample", folder, tmp_path))
