"""The student folder: it comes back as saved, and runs nothing that a stranger wrote."""

import copy
import subprocess
import sys

import pytest
import torch
import yaml
from helpers import PROCESSES
from torch import nn

import distillkit
from distillkit.cli import front
from distillkit.diffusion.denoiser import Denoiser, check_facts
from distillkit.diffusion.process import RectifiedFlow, VarianceExploding
from distillkit.files import save_weights
from distillkit.methods.sid import SiD
from distillkit.networks.mlp import MLP
from distillkit.students.base import CONFIG, WEIGHTS, load_student
from distillkit.students.few_step import FewStepStudent
from distillkit.students.makers import Fresh
from distillkit.teachers.base import Teacher
from distillkit.teachers.exact import ExactTeacher, Mixture
from distillkit.teachers.folder import FolderTeacher

CLASSES = {"label": 3}


def student(times=(1.0, 0.6, 0.2), renoise="fresh", classes=None, process=None):
    """A student with random weights, so that every sample depends on noise, time and class."""
    classes = CLASSES if classes is None else classes
    network, generator = MLP([2], width=8, depth=1, classes=classes), torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return FewStepStudent(
        Denoiser(network, process or RectifiedFlow(), "edm", 0.8), list(times), (2,), classes, renoise
    )


@pytest.fixture
def folder(tmp_path):
    return student().save(tmp_path / "student")


def edit(folder, change):
    config = yaml.safe_load((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(yaml.safe_dump(config))


# There and back


@pytest.mark.parametrize("times", [(1.0,), (1.0, 0.6, 0.2)], ids=["one step", "three steps"])
@pytest.mark.parametrize("renoise", ["fresh", "implied", "first"])
@pytest.mark.parametrize("classes", [{}, CLASSES], ids=["plain", "classes"])
def test_samples_come_back_bit_for_bit(times, renoise, classes, tmp_path):
    made = student(times, renoise, classes)
    again = load_student(made.save(tmp_path / "s"))
    assert torch.equal(made.sample(20, seed=3), again.sample(20, seed=3))
    assert (again.event_shape, again.classes, again.num_steps, again.renoise) == ((2,), classes, len(times), renoise)
    assert again.times == list(times)


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_comes_back(name, tmp_path):
    process = PROCESSES[name]
    made = student([process.t_max, process.t_max / 3], process=process)
    again = load_student(made.save(tmp_path / "s"))
    assert again.denoiser.process == process and torch.equal(made.sample(5), again.sample(5))


def test_a_student_of_an_exact_teacher_comes_back_bit_for_bit(tmp_path):
    """Its law is kept in float64: reading it through float32 would move every sample a little."""
    law = Mixture([[0.1, 0.3], [-0.7, 0.9]], [[[0.2, 0.05], [0.05, 0.1]]] * 2, [0.3, 0.7])
    method = SiD(
        ExactTeacher(law, VarianceExploding()), student_maker=Fresh(MLP([2], width=8, depth=1)), num_steps=2, t_init=2.5
    )
    made = method.product()
    again = load_student(made.save(tmp_path / "s"))
    for name, value in made.denoiser.state_dict().items():
        assert torch.equal(again.denoiser.state_dict()[name], value), name
    assert torch.equal(made.sample(200), again.sample(200))


def test_the_run_folder_is_enough(folder):
    assert load_student(folder.parent).config == load_student(folder).config


def test_the_folder_says_what_it_is(tmp_path):
    made = student()
    made.save(tmp_path / "s", method="SiD", kappa=1.5, teacher={"id": "x", "hash": "0"})
    config = distillkit.load_student(tmp_path / "s").config
    assert config["distillkit"] == distillkit.__version__
    assert (config["method"], config["kappa"], config["teacher"]) == ("SiD", 1.5, {"id": "x", "hash": "0"})
    assert (config["num_steps"], config["times"], config["event_shape"], config["classes"]) == (
        3,
        [1.0, 0.6, 0.2],
        [2],
        CLASSES,
    )


def test_a_loaded_student_is_frozen_and_in_eval_mode(folder):
    loaded = load_student(folder)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert not loaded.sample(2).requires_grad


@pytest.mark.slow  # a new interpreter; tests/test_end_to_end.py does the same to the student of a run
def test_loading_builds_no_teacher_and_no_trainer(folder):
    """A student is used where nothing trains: Lightning and the teachers stay out."""
    code = (
        f"import sys, distillkit; distillkit.load_student({str(folder)!r}).sample(2)\n"
        "heavy = [m for m in sys.modules if m.split('.')[0] in ('lightning', 'hydra', 'jsonargparse')"
        " or m.startswith(('distillkit.teachers', 'distillkit.methods'))]\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Sampling


def test_samples_are_a_function_of_the_seed():
    made = student()
    one = made.sample(10, seed=1)
    torch.randn(7)
    assert torch.equal(one, made.sample(10, seed=1)) and not torch.equal(one, made.sample(10, seed=2))


@pytest.mark.parametrize("renoise", ["fresh", "implied", "first"])
@pytest.mark.parametrize("batch_size", [1, 3, 10, 99])
def test_chunks_change_nothing(batch_size, renoise):
    made, cond = student(renoise=renoise), {"label": torch.arange(10) % 3}
    torch.testing.assert_close(made.sample(10, cond, 4, batch_size), made.sample(10, cond, 4), rtol=1e-5, atol=1e-6)


def test_steps_are_those_of_the_times():
    made, seen = student(), []
    made.denoiser.register_forward_pre_hook(lambda module, args: seen.append(float(args[1])))
    made.sample(4)
    assert seen == pytest.approx([1.0, 0.6, 0.2])


def test_each_step_has_fresh_noise_and_the_first_the_seeds_own():
    made = student((1.0, 0.5))
    generator = torch.Generator().manual_seed(9)
    first, second = (torch.randn((4, 2), generator=generator) for _ in range(2))
    cond = {"label": torch.zeros(4, dtype=torch.long)}
    x_0 = made.denoiser(first, torch.tensor(1.0), cond)
    expected = made.denoiser(0.5 * x_0 + 0.5 * second, torch.tensor(0.5), cond)
    torch.testing.assert_close(made.sample(4, cond, seed=9), expected.detach())


def test_classes_come_in_turn_by_default():
    made = student()
    assert torch.equal(made.sample(7), made.sample(7, {"label": torch.tensor([0, 1, 2, 0, 1, 2, 0])}))
    assert torch.equal(made.sample(3), made.sample(3, {"label": [0, 1, 2]}))
    null = made.sample(7, {"label": torch.full((7,), 3)})  # without a class
    assert not torch.equal(made.sample(7), null)


def test_no_samples_are_an_empty_tensor():
    assert student().sample(0).shape == (0, 2)


@pytest.mark.parametrize(
    "cond",
    [
        {},
        {"label": [0, 1]},
        {"label": [0, 1, 4]},
        {"label": [0, 1, -1]},
        {"label": 1},
        {"label": [[0, 1, 2]]},
        {"label": [0.0, 1.0, 2.0]},
    ],
    ids=["missing", "short", "too large", "negative", "one number", "two axes", "fractions"],
)
def test_conditions_that_do_not_fit_are_refused(cond):
    with pytest.raises(ValueError, match=r"cond\['label'\] must hold 3 integers from 0 to 2 \(3 means no class\)"):
        student().sample(3, cond)


def test_conditions_that_do_not_exist_are_refused():
    """Ignoring an unknown condition would look like obedience."""
    with pytest.raises(ValueError, match="style"):
        student().sample(3, {"label": [0, 1, 2], "style": [0, 0, 0]})


def test_copies_are_independent():
    made = student()
    other = copy.deepcopy(made)
    with torch.no_grad():
        other.denoiser.network.out.bias.add_(1)
    assert not torch.equal(made.sample(3), other.sample(3))


# Damage and strangers


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no student folder .*nowhere: give the folder that `fit` wrote"):
        load_student(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_missing_file_is_named(name, folder):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name} does not exist"):
        load_student(folder)


@pytest.mark.parametrize("key", ["denoiser", "times", "event_shape", "renoise"])
def test_a_missing_key_is_named(key, folder):
    edit(folder, lambda config: config.pop(key))
    with pytest.raises(ValueError, match=f"student.yaml is damaged: it lacks {key}"):
        load_student(folder)


@pytest.mark.parametrize(
    "key, value",
    [
        ("times", []),
        ("times", "soon"),
        ("times", [0.2, 1.0]),
        ("times", [0.5, 0.5]),
        ("event_shape", 2),
        ("denoiser", "MLP"),
        ("classes", [3]),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(key, value, folder):
    """The error comes when the folder is loaded, not with the first sample."""
    edit(folder, lambda config: config.update({key: value}))
    with pytest.raises(ValueError, match="student.yaml"):
        load_student(folder)


@pytest.mark.parametrize("shape", [[10**9], [10**5, 10**5], [0], [-2], [2.0], [True]])
def test_a_sample_has_bounds_where_the_network_sets_none(shape, tmp_path):
    law = ExactTeacher(Mixture([[0.0, 0.0]], [[[1.0, 0.0], [0.0, 1.0]]]), VarianceExploding())
    check_facts({"event_shape": [2]}, tmp_path / CONFIG, law.denoiser)
    with pytest.raises(ValueError, match="student.yaml is damaged: event_shape cannot be"):
        check_facts({"event_shape": shape}, tmp_path / CONFIG, law.denoiser)


def test_a_pickle_in_place_of_the_weights_is_refused(folder):
    torch.save(student().denoiser.state_dict(), folder / WEIGHTS)
    with pytest.raises(ValueError, match="pickles are not read") as error:
        load_student(folder)
    assert "\n" not in str(error.value)


def test_truncated_weights_are_refused(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_student(folder)


def test_weights_of_another_network_are_refused(folder):
    save_weights(folder / WEIGHTS, Denoiser(MLP([2], width=4, depth=1, classes=CLASSES), RectifiedFlow()))
    with pytest.raises(ValueError, match="does not fit the network its folder describes: size mismatch"):
        load_student(folder)


@pytest.mark.parametrize("path", ["os.system", "builtins.exec", "torch.hub.load"])
def test_a_class_from_elsewhere_is_refused(path, folder):
    edit(folder, lambda config: config["denoiser"]["init_args"].update(network={"class_path": path, "init_args": {}}))
    with pytest.raises(ValueError, match=f"names class {path}, which is outside distillkit, domains"):
        load_student(folder)


def test_python_in_the_yaml_is_refused(folder):
    with (folder / CONFIG).open("a") as file:
        file.write("evil: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ValueError, match="not readable as yaml"):
        load_student(folder)


# Teacher folders share the same gate


def test_a_teacher_folder_comes_back(tmp_path):
    denoiser = student().denoiser
    teacher = Teacher(denoiser, (2,), CLASSES)
    teacher.best = {"solver": "ddim", "steps": 5}
    teacher.save(tmp_path / "t", id="small")
    teacher = FolderTeacher(str(tmp_path / "t"))
    x, t, cond = torch.randn(4, 2), torch.rand(4), {"label": torch.tensor([0, 1, 2, 3])}
    assert torch.equal(teacher.denoiser(x, t, cond), denoiser(x, t, cond))
    assert (teacher.id, teacher.best, teacher.classes, teacher.event_shape) == (
        "small",
        {"solver": "ddim", "steps": 5},
        CLASSES,
        (2,),
    )
    assert not any(p.requires_grad for p in teacher.parameters())
    again = FolderTeacher(str(tmp_path / "t"))
    assert teacher.fingerprint() == again.fingerprint()
    with torch.no_grad():
        again.denoiser.network.out.bias[0] += 1e-6
    assert teacher.fingerprint() != again.fingerprint()


def test_a_missing_teacher_folder_says_how_to_make_one():
    with pytest.raises(ValueError, match="train one with `fit method=pretrain`"):
        FolderTeacher("nowhere")


@pytest.mark.parametrize("key, value", [("denoiser", "MLP"), ("event_shape", 2), ("classes", [3])])
def test_a_damaged_teacher_folder_is_refused(key, value, tmp_path):
    """Teacher folders are checked as students' are."""
    Teacher(student().denoiser, (2,), CLASSES).save(tmp_path)
    path = tmp_path / "teacher.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=f"teacher.yaml is damaged: {key}"):
        FolderTeacher(str(tmp_path))


# Noise modulation


def test_noise_scale_travels_in_the_folder_and_is_checked(folder, tmp_path):
    assert load_student(folder).noise_scale == 1.0
    quiet, loud = student(), load_student(folder)
    quiet.noise_scale = 0.3
    again = load_student(quiet.save(tmp_path / "quiet"))
    assert again.noise_scale == 0.3 and torch.equal(again.sample(9), quiet.sample(9))
    assert not torch.equal(again.sample(9), loud.sample(9))
    loud.noise_scale = 0.3  # samplers may choose
    assert torch.equal(again.sample(9), loud.sample(9))
    edit(folder, lambda config: config.update(noise_scale=-1))
    with pytest.raises(ValueError, match="noise_scale cannot be -1"):
        load_student(folder)
    edit(folder, lambda config: config.pop("noise_scale"))  # of an older version
    assert load_student(folder).noise_scale == 1.0


def test_training_has_the_full_noise_whatever_the_student_will_draw():
    law = Mixture([[0.0, 0.0]], [[[0.2, 0.0], [0.0, 0.1]]])

    def made(scale: float) -> SiD:
        torch.manual_seed(0)
        return SiD(
            ExactTeacher(law, VarianceExploding()),
            student_maker=Fresh(MLP([2], width=8, depth=1)),
            num_steps=2,
            noise_scale=scale,
        )

    plain, quiet = made(1.0), made(0.45)
    batch = {"data": torch.zeros(5, 2)}
    assert torch.equal(plain.rollout(batch, "student")[0], quiet.rollout(batch, "student")[0])
    assert quiet.product().noise_scale == 0.45 and plain.product().noise_scale == 1.0
    with pytest.raises(ValueError, match=r"noise_scale must lie in \[0, 10\], got -0.1"):
        made(-0.1)


def test_a_place_that_takes_no_file_is_refused_before_work(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for verb in ("export", "sample"):
        assert front.main([verb, str(folder), "--out", str(tmp_path / "file" / "x")]) == 2
        assert "file is no folder that takes it; give another place with --out" in capsys.readouterr().err
