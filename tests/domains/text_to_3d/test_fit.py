"""Scenes from the command line: made, asked for by text, refused."""

from pathlib import Path

import pytest
import torch
import yaml
from helpers import UNMEASURED

from distillkit import load_student, runs
from distillkit.cli import front

QUICK = [*UNMEASURED, "data.train=4", "data.test=1", "data.batch_size=2", "trainer.max_steps=2"]
QUICK += ["trainer.limit_val_batches=0", "trainer.val_check_interval=null"]


@pytest.fixture
def door(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(runs.OUT, raising=False)

    def call(*words, code=0):
        assert front.main([*map(str, words)]) == code, capsys.readouterr().err
        return capsys.readouterr().err

    return call


def test_a_scene_is_made_and_asked_for_by_its_text(door):
    door("fit", "domain=text_to_3d", "method=asd", "data.only=[a red cone, a blue torus]", *QUICK, "--out", "run")
    student = load_student("run")
    assert student.config["method"] == "asd" and student.config["mechanism"] == "SDS"
    card = Path("run/student/README.md").read_text()
    assert card.startswith("# text\\_to\\_3d-asd: one-step student") and ", made by asd (SDS) from the teacher" in card
    assert "- `camera`: where each" in card
    assert "- `prompt`: the class of each sample, a number from 0 to 15: 10 a blue torus, 12 a red cone\n" in card
    assert len(student.network.field.grid) == 2
    door("sample", "run", "--prompt", "a blue torus", "-n", 2, "--out", "torus")
    said = door("sample", "run", "--prompt", "a red cube", "--out", "cube", code=2)
    assert "there is no scene of 'a red cube' here: the run made 'a red cone', 'a blue torus'" in said
    cond = {"prompt": torch.tensor([12]), "camera": student.examples["camera"][:1]}
    near = cond["camera"].clone()
    near[:, [3, 7, 11]] *= 0.1
    with pytest.raises(ValueError, match="inside of the object"):
        student.sample(1, cond | {"camera": near})
    with pytest.raises(ValueError, match=r"one camera, \[B, 13\], got \[1, 2, 13\]"):
        student.sample(1, cond | {"camera": cond["camera"][:, None].expand(1, 2, 13)})
    file = Path("run/student/student.yaml")
    sound = file.read_text()
    for key, tampered, said in (
        ("side", 64, "event_shape cannot be"),
        ("texts", ["a red cone", "a blue torus"], "there are 2 prompts, from 0 to 1, got the number 12"),
    ):
        told = yaml.safe_load(sound)
        told["denoiser"]["init_args"]["network"]["init_args"][key] = tampered
        file.write_text(yaml.safe_dump(told))
        with pytest.raises(ValueError, match=said):
            load_student("run").sample(1, cond)


@pytest.mark.slow
def test_a_run_goes_on_from_the_scenes_of_another(door):
    words = ["fit", "domain=text_to_3d", "data.only=[a red cone, a blue torus]", *QUICK]
    door(*words, "method=sds", "vars.scene.kind=gaussians", "vars.scene.resolution=64", "--out", "run")
    door(*words, "method=asd", "model.student.lr=0.01", "student=folder", "student.path=run", "--out", "on")
    old, new = (load_student(run).network.field.means for run in ("run", "on"))
    assert new.shape == (2, 64, 3) and 0 < (new - old).abs().max() < 0.03  # two steps of 0.01
    words = ["fit", "domain=text_to_3d", *QUICK, "student=folder", "student.path=run", "--out", "no"]
    said = door(*words, "method=sds", "data.only=[a red cone, a green cube]", code=2)
    assert "there is no scene of 'a green cube' here: the run made 'a red cone', 'a blue torus'" in said
    said = door(*words, "method=rcm", code=2)
    assert "the student to go on from makes its samples without noise, and RCM learns a map from noise" in said
    file = Path("run/student/student.yaml")
    told = yaml.safe_load(file.read_text())
    told["denoiser"]["init_args"]["network"]["init_args"]["texts"][15] = "a pink cone"
    file.write_text(yaml.safe_dump(told))
    said = door(*words, "method=sds", "data.only=[a red cone]", code=2)
    assert "is 'a yellow cone' in the data, and 'a pink cone' to the student" in said


def test_the_generator_is_asked_for_prompts_that_it_was_not_trained_on(door):
    words = ["domain=text_to_3d", "stage=amortised", "method=sds", "data.only=[a red cone, a blue torus, a red torus]"]
    door("fit", *words, "data.held_out=[a red torus]", *QUICK, "--out", "run")
    said = door("sample", "run", "--prompt", "a blue cone", "--out", "cone")
    assert said.count("not trained on 'a blue cone'") == 1
    said = door("sample", "run", "--prompt", "a blue teapot", "--out", "teapot", code=2)
    assert "never saw the word 'teapot'" in said


@pytest.mark.parametrize("method", ["consistency", "rcm", "mdt_dist", "reflow"])
def test_methods_that_learn_from_noise_are_refused(door, method):
    said = door("fit", "domain=text_to_3d", f"method={method}", "--out", "run", code=2)
    assert "a scene makes its samples without noise" in said


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("data.only=[]", "there are no prompts"),
        ("data.only=[a pink sphere]", "'a pink sphere', which is none of the 16 prompts, such as 'a red sphere'"),
        ("data.orbits.distance=[0.5,2.0]", "would stand inside of the objects"),
        ("vars.scene.kind=clay", "kind"),
        ("vars.scene.resolution=1", "error: vars.scene.resolution must be at least 2, got 1\n"),
        ("vars.scene.side=16", "the scene makes samples of shape (3, 16, 16), "),
        ("data.held_out=[a red sphere]", "a prompt that is held out gets no scene where each has its own"),
    ],
)
def test_bad_words_are_refused_before_work_starts(door, word, said):
    assert said in door("fit", "domain=text_to_3d", "method=asd", word, *QUICK, "--out", "run", code=2)
