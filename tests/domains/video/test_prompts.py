"""Prompts as data, what is measured without real videos, and whole runs on the command line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

import tiny_pipelines
from helpers import trainer

from distillkit import load_student, runs
from distillkit.cli import config, front
from distillkit.errors import UsageError
from distillkit.evaluation.samples import Diverged
from distillkit.files import read_yaml
from domains.video.prompts import PromptEvaluator, Prompts
from tests.battery.conftest import build

SIZE = {"frames": 5, "height": 16, "width": 32}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines")
    tiny_pipelines.wan(folder / "wan")
    tiny_pipelines.cogvideox(folder / "cogvideox")
    (folder / "prompts.txt").write_text("a cat runs\na dog sleeps\na cat on the moon\na dog runs")
    return folder


def prompts(pipelines, **settings):
    return Prompts(str(pipelines / "prompts.txt"), str(pipelines / "wan"), SIZE, **settings)


# Data


def test_batches_are_numbers_of_prompts(pipelines):
    data = prompts(pipelines, held_out=1, batch_size=8)
    data.setup()
    assert data.classes == {"prompt": 4} and data.event_shape == (3, 5, 16, 32) and not data.provides
    drawn = torch.cat([batch["prompt"] for batch in data.train_dataloader()])
    assert sorted(set(drawn.tolist())) == [0, 1, 2] and drawn.bincount().float().std() < 5
    assert data.conditions(3)["prompt"].tolist() == [3, 3, 3]
    assert [batch["prompt"].tolist() for batch in data.val_dataloader()] == [[3]]
    everything = prompts(pipelines)
    assert everything.conditions(6)["prompt"].tolist() == [0, 1, 2, 3, 0, 1] and len(everything.trained) == 4


def test_what_data_refuse(pipelines):
    with pytest.raises(ValueError, match="held_out must leave some of the 4 prompts"):
        prompts(pipelines, held_out=4)
    with pytest.raises(ValueError, match="teacher=diffusers"):
        Prompts(str(pipelines / "prompts.txt"), None, SIZE)


# Evaluation and pictures


def clips(num, seed, speed=1.0):
    """[N, 1, 8, 8, 8]: a bar that moves."""
    generator = torch.Generator().manual_seed(seed)
    place = 8 * torch.rand(num, 1, generator=generator) + speed * torch.arange(8)
    away = (torch.arange(8) - place[..., None]) % 8
    return (1 - 2 * torch.minimum(away, 8 - away).clamp_max(1))[:, None, :, None].expand(-1, -1, -1, 8, -1)


def test_students_are_compared_with_the_teachers_clips():
    evaluator = PromptEvaluator((1, 8, 8, 8))
    teacher, alike, still = clips(64, 0), clips(64, 1), clips(64, 2, speed=0.0)
    same, frozen = (evaluator(x, {}) | evaluator.paired(x, teacher, {}) for x in (alike, still))
    assert evaluator.look.cache_info().misses == 3  # the teacher's clips are looked at once
    assert frozen["motion"] == 0 and frozen["motion_gap"] == pytest.approx(1.0) and same["motion_gap"] < 0.1
    assert frozen["distance"] > 5 * same["distance"] and frozen["spectrum"] > 20 > 3 > same["spectrum"]
    assert evaluator.paired(teacher, teacher, {}) == {"distance": 0.0, "motion_gap": 0.0, "spectrum": 0.0}
    assert evaluator.better.keys() <= same.keys() and evaluator.headline == "distance" and evaluator.floor() == {}
    with pytest.raises(Diverged):
        evaluator(teacher * float("nan"), {})
    with pytest.raises(ValueError, match="samples have shape"):
        evaluator(teacher[:, :, 1:], {})


def test_large_clips_are_shown_smaller_but_kept_whole(pipelines, tmp_path):
    av = pytest.importorskip("av")
    shown = prompts(pipelines, fps=12.0).media
    large = torch.rand(2, 3, 5, 200, 400, generator=torch.Generator().manual_seed(0)) * 2 - 1
    picture = shown.picture(large)
    assert picture.size == (5 * 130, 2 * 66) and shown.compare({"student": large}).size[0] >= 5 * 130
    gif, mp4 = shown.save(large, {}, tmp_path)
    with av.open(str(mp4)) as container:
        (stream,) = container.streams.video
        assert (stream.width, stream.height, float(stream.average_rate)) == (804, 202, 12.0)
    with Image.open(gif) as moving:
        assert moving.size == (2 * 258, 130) and moving.n_frames == 5


# The command line


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", runs.OUT):
        monkeypatch.delenv(name, raising=False)


def words(pipelines, kind):
    own = ["domain=video", "method=dmd", "teacher=diffusers", f"teacher.path={pipelines / kind}", "data=prompts"]
    own += [f"data.path={pipelines / 'prompts.txt'}", *(f"teacher.{key}={value}" for key, value in SIZE.items())]
    own += ["teacher.steps=2", "data.batch_size=2", "trainer.max_steps=2", "model.kappa=3", "model.num_steps=2"]
    return [*own, "vars.callbacks.finish.num_samples=3"]


LORA = ["student=lora", "student.rank=2", "fake_score=lora", "fake_score.rank=2"]


@pytest.mark.parametrize(
    "kind, students",
    [
        ("wan", "copies"),
        ("cogvideox", "adapters"),
        pytest.param("wan", "adapters", marks=pytest.mark.slow),
        pytest.param("cogvideox", "copies", marks=pytest.mark.slow),
    ],
)
def test_a_run_from_the_command_line(kind, students, pipelines, here, tmp_path, capsys):
    more = ["data.held_out=1"] if students == "copies" else [*LORA, "teacher.negative_prompt=blurry"]
    assert front.main(["fit", *words(pipelines, kind), *more, "--out", "run"]) == 0
    run = tmp_path / "run"
    result = json.loads((run / "evaluation.json").read_text())
    assert [row["name"] for row in result["rows"]] == ["student", "teacher at its best", "teacher at 2 steps"]
    assert all(np.isfinite(row["metrics"]["distance"]) for row in result["rows"])
    for name in ("comparison.png", "student.png", "student.gif", "clips.gif"):
        assert (run / "samples" / name).is_file()
    assert (run / "report.html").is_file() and (run / "student" / "README.md").is_file()
    trust = ["--trust", str(pipelines)]
    student = load_student("run", tuple(trust[1:]))
    shape = (2, 3, 5 if kind == "wan" else 8, 16, 32)  # CogVideoX makes 8 frames of 2 latent ones
    assert student.sample(2).shape == shape
    assert student.sample(2, decode=False).shape == (2, *student.event_shape)
    capsys.readouterr()
    assert front.main(["sample", "run", "-n", "2", "--out", "nothing"]) == 2  # in one sentence, and before any work
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"--trust {pipelines / kind}" in said and not (tmp_path / "nothing").exists()
    if students == "copies":
        assert "or take samples undecoded, with decode=False" in said
        assert load_student("run").sample(2, decode=False).shape == (2, *student.event_shape)
        # the codec alone may be read: clips, but no picture, for the file of prompts may not
        argv = ["sample", "run", "-n", "2", "--out", "clips", "--trust", str(pipelines / kind)]
        assert front.main(argv) == 0 and "no picture" in capsys.readouterr().out
        assert np.load(tmp_path / "clips" / "samples.npz")["samples"].shape == shape
        assert front.main(["export", "run"]) == 0
        assert f"samples of shape {list(student.event_shape)} undecoded" in capsys.readouterr().out
    assert front.main(["sample", "run", "-n", "2", "--cond", "prompt=1", "--out", "drawn", *trust]) == 0
    assert (tmp_path / "drawn" / "clips.gif").is_file()
    if students == "adapters":
        assert read_yaml(run / "student" / "student.yaml")["denoiser"]["init_args"]["network"]["init_args"]["rank"] == 2
    else:
        assert front.main(["evaluate", "run", "--num-samples", "2", *trust]) == 0


@pytest.mark.parametrize("method, more", [("sid", LORA), ("lsd", ["model.num_pairs=4", "model.guard=2"])])
def test_other_methods_take_steps(method, more, pipelines):
    own = build(*[w for w in words(pipelines, "wan") if w != "method=dmd"], f"method={method}", *more)
    own.model.require(own.data)
    run = trainer(max_steps=2)
    run.fit(own.model, own.data)
    assert run.global_step == 2 and not own.model.bad_steps.any()
    clips = own.model.sample(own.data.conditions(2), 2, 0)
    assert clips.shape == (2, 3, 5, 16, 32) and clips.isfinite().all()  # as validation and the guard see them


def test_words_that_do_not_go_together(pipelines, here, capsys):
    good = words(pipelines, "wan")

    def said(*argv):
        assert front.main(["fit", *argv]) == 2
        return capsys.readouterr().err

    assert "data=prompts data.path=FILE" in said(*[w for w in good if not w.startswith("data")])
    assert "teacher=diffusers teacher.path=DIR" in said("domain=video", "method=dmd", *good[4:6])
    assert "DMD with gan=0.001 needs data and features, which VideoPipeline and Prompts do not give" in said(
        *good, "model.gan=1e-3"
    )
    assert "teacher.download=true" in said(
        *[w if "teacher.path" not in w else "teacher.path=Wan-AI/none" for w in good]
    )
    with pytest.raises(UsageError):
        config.compose(["domain=video", "method=dmd", "teacher=wna"])
