"""Stable Diffusion as a teacher of views, on a tiny random one, and scenes that it judges."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_pipelines
from helpers import UNMEASURED

from distillkit import load_student, runs
from distillkit.cli import front
from distillkit.rendering.cameras import orbit
from distillkit.students.makers import Lora
from distillkit.students.makers import Scene as SceneMaker
from domains.image.pipelines import ImagePipeline
from domains.text_to_3d.pipelines import ViewPipeline
from domains.text_to_3d.prompts import ViewPrompts
from domains.text_to_3d.scenes import Scenes
from domains.text_to_3d.views import texts

PROMPTS = ["a cat runs", "a dog sleeps"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    tiny_pipelines.stable_diffusion(folder / "sd")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    (folder / "worded.txt").write_text("\n".join(texts(PROMPTS)))
    return folder


@pytest.fixture(scope="module")
def teacher(folder):
    return ViewPipeline(str(folder / "sd"), str(folder / "prompts.txt"))


def cond(prompts=(1, 0)):
    camera = orbit(torch.tensor([3.0, 1.5]), 0.2, 2.1, 0.9)  # back, side
    return {"prompt": torch.tensor(prompts), "camera": camera}


def test_the_camera_chooses_the_text(folder, teacher):
    plain = ImagePipeline(str(folder / "sd"), str(folder / "worded.txt"))
    assert teacher.classes == {"prompt": 2} and teacher.context == ("camera",)
    x, t = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([400.0, 100.0])
    found = teacher.denoiser(x, t, cond())
    expected = plain.denoiser(x, t, {"prompt": torch.tensor([4 * 1 + 2, 1])})
    assert torch.allclose(found, expected, atol=1e-6)
    null = teacher.denoiser(x, t, teacher.null_condition(cond()))
    assert torch.allclose(null, plain.denoiser(x, t, {"prompt": torch.tensor([8, 8])}), atol=1e-6)
    assert (null - found).abs().max() > 1e-4


def test_gradients_go_through_the_encoder_to_the_scene_alone(folder, teacher):
    scene = Scenes(texts=str(folder / "prompts.txt"), side=16, resolution=6)
    student = SceneMaker(scene).make(teacher)
    x = torch.randn(2, 4, 16, 16)
    out = student(x, torch.tensor(999.0), cond())
    assert out.shape == (2, 4, 16, 16)  # renders of 16 pixels, resized to the 32 that the encoder reads
    out.square().sum().backward()
    grid = student.network.network.field.grid
    assert grid.grad.abs().amax((1, 2, 3, 4)).min() > 0
    assert all(p.grad is None for p in teacher.codec.vae.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    image = student.network.network.eval()(x, None, cond())
    large = torch.nn.functional.interpolate(image, size=(32, 32), mode="bilinear", antialias=True)
    expected = teacher.codec.encode({"data": large})
    assert torch.allclose(student.eval()(x, torch.tensor(999.0), cond()), expected, atol=1e-5)


def test_adapters_are_told_the_camera_too(teacher):
    fake = Lora(rank=2).make(teacher)
    fake.tell("camera", size=13)
    x, t = torch.randn(2, 4, 16, 16), torch.tensor([400.0, 100.0])
    assert torch.allclose(fake(x, t, cond()), teacher.denoiser(x, t, cond()), atol=1e-6)


def test_prompts_are_seen_by_cameras(folder):
    data = ViewPrompts(str(folder / "prompts.txt"), str(folder / "sd"), held_out=1, batch_size=4)
    data.setup()
    batch = data.train[torch.arange(8)]
    assert set(batch) == {"prompt", "camera"} and batch["prompt"].eq(0).all() and batch["camera"].shape == (8, 13)
    assert data.conditions(3)["prompt"].tolist() == [1, 1, 1]


def test_a_scene_for_a_pipeline_from_the_command_line(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(runs.OUT, raising=False)
    words = ["domain=text_to_3d", "method=sds", "teacher=diffusers", f"teacher.path={folder / 'sd'}", "data=prompts"]
    words += [f"data.path={folder / 'prompts.txt'}", "data.batch_size=2", "vars.scene.side=16", *UNMEASURED]
    words += ["trainer.max_steps=2", "trainer.limit_val_batches=0"]
    assert front.main(["fit", *words, "--out", "run"]) == 0, capsys.readouterr().err
    student = load_student("run", trust=(str(folder),))
    made = student.sample(2, {"prompt": torch.tensor([0, 1]), "camera": cond()["camera"]})
    assert made.shape == (2, 3, 32, 32) and made.isfinite().all()
    asked = ["sample", "run", "--prompt", "a dog sleeps", "--out", "dog", "--trust", str(folder)]
    assert front.main(asked) == 0, capsys.readouterr().err
    assert front.main([*asked[:3], "a teapot", *asked[4:-3], "tea", "--trust", str(folder)]) == 2
    assert "no scene of 'a teapot'" in capsys.readouterr().err
