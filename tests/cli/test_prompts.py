"""`sample --prompt` and `--pipeline`: a student of a pipeline is asked for what a text says."""

import json
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

import tiny_pipelines

from distillkit import cache, load_student
from distillkit.cli import front, products
from distillkit.errors import UsageError
from distillkit.pipelines import teacher as room
from distillkit.pipelines.teacher import ask
from distillkit.students.few_step import FewStepStudent
from distillkit.students.makers import Lora
from domains.image.pipelines import ImagePipeline

PROMPTS = ["a cat runs", "a dog sleeps on the moon"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A pipeline, and students of it that are copies and adapters, as runs leave them."""
    folder = tmp_path_factory.mktemp("made")
    tiny_pipelines.stable_diffusion(folder / "sd")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    teacher = ImagePipeline(str(folder / "sd"), str(folder / "prompts.txt"), negative_prompt="blurry")
    torch.manual_seed(0)
    for name, denoiser in {"copy": teacher.new_denoiser(), "lora": Lora(2).make(teacher)}.items():
        for p in denoiser.parameters():
            p.data += 0.02 * torch.randn_like(p)
        student = FewStepStudent(denoiser, [999.0, 400.0], teacher.event_shape, teacher.classes, codec=teacher.codec)
        student.eval().save(folder / name, domain="image")
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, *argv):
    assert front.main(list(argv)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("kind", ["copy", "lora"])
def test_samples_are_what_the_texts_say(kind, made, here):
    words = ["sample", str(made / kind), "--prompt", PROMPTS[1], "--prompt", "a cat", "-n", "3", "--seed", "4"]
    assert front.main([*words, "--pipeline", str(made / "sd"), "--out", "drawn"]) == 0
    found = np.load("drawn/samples.npz")
    assert found["samples"].shape == (3, 3, 32, 32) and found["prompt"].tolist() == [0, 1, 0]
    assert (here / "drawn" / "prompts.txt").read_text() == f"{PROMPTS[1]}\na cat\n{PROMPTS[1]}\n"
    assert (here / "drawn" / "samples.png").is_file()
    student = load_student(made / kind, pipeline=str(made / "sd"))
    assert student.classes == {"prompt": 2}
    own = student.sample(3, {"prompt": torch.tensor([1, 0, 1])}, seed=4)  # it was trained with that text
    assert np.allclose(found["samples"][::2], own[::2].numpy(), atol=1e-5)
    assert np.abs(found["samples"][1] - own[1].numpy()).max() > 1e-4  # and not with that one


@pytest.mark.parametrize("domain", ["nothing", "", "image.media", None, ["image"]])
def test_a_domain_that_is_not_there_has_no_picture(domain, made, here):
    shutil.copytree(made / "copy", here / "student")
    said = (here / "student" / "student.yaml").read_text().replace("domain: image", f"domain: {json.dumps(domain)}")
    (here / "student" / "student.yaml").write_text(said)
    words = ["sample", "student", "--prompt", "a cat", "--pipeline", str(made / "sd"), "--out", "drawn"]
    assert front.main(words) == 0
    assert sorted(file.name for file in (here / "drawn").iterdir()) == ["prompts.txt", "samples.npz"]


def test_a_file_of_prompts_asks_for_one_sample_each(made, here):
    words = ["sample", str(made / "copy"), "--prompts", str(made / "prompts.txt"), "--trust", str(made / "sd")]
    assert front.main([*words, "--out", "drawn"]) == 0
    assert len(np.load("drawn/samples.npz")["samples"]) == 2


def test_the_pipeline_is_found_where_it_went_and_recognised(made, here, capsys):
    words = ["sample", str(made / "copy"), "--prompt", "a cat", "-n", "1"]
    assert f"--trust {made / 'sd'}" in refused(capsys, *words)
    shutil.copytree(made / "sd", here / "elsewhere")
    assert front.main([*words, "--pipeline", "elsewhere", "--out", "drawn"]) == 0
    capsys.readouterr()
    file = here / "elsewhere" / "text_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"layer_norm_eps": 1e-3}))
    assert "holds another pipeline than the one" in refused(capsys, *words, "--pipeline", "elsewhere", "--out", "other")
    assert "/ holds no model_index.json" in refused(capsys, *words, "--pipeline", "/")  # and does not hash the disk
    assert "no directory nowhere" in refused(capsys, *words, "--pipeline", "nowhere")
    with pytest.raises(ValueError, match="holds another pipeline"):
        load_student(made / "copy", pipeline="elsewhere").sample(1)
    assert load_student(made / "copy", pipeline="elsewhere").sample(1, decode=False).shape == (1, 4, 16, 16)


def test_words_that_do_not_go_together(made, here, capsys):
    words = ["sample", str(made / "copy")]
    assert "give one of them" in refused(capsys, *words, "--prompt", "a", "--prompts", "x")
    assert "give --prompt TEXT too" in refused(capsys, *words, "--negative", "a")
    assert "leave out --cond" in refused(capsys, *words, "--prompt", "a", "--cond", "prompt=0")
    assert "no file of prompts nowhere" in refused(capsys, *words, "--prompts", "nowhere")
    assert "say what to make" in refused(capsys, *words, "--prompt", " ", "--pipeline", str(made / "sd"))
    said = refused(capsys, *words, "--prompt", "a", "--negative", "b", "--pipeline", str(made / "sd"))
    assert "guidance is in this student's weights" in said
    for prompts in ([], "a cat"):
        with pytest.raises(ValueError, match="prompts are a list of texts"):
            ask(load_student(made / "copy", pipeline=str(made / "sd")), prompts)


def test_texts_are_embedded_once(made, monkeypatch, tmp_path):
    """And afterwards read from the user's cache, which knows texts, encoder and precision apart."""
    loaded = []
    monkeypatch.setattr(room, "encoders", lambda *args, own=room.encoders: loaded.append(args) or own(*args))
    student = load_student(made / "copy", pipeline=str(made / "sd"))
    with cache.using(cache.SampleCache(tmp_path)):
        drawn = []
        for texts in (["a cat"], ["a cat"], ["a dog"]):
            ask(student, texts)
            drawn.append(student.sample(1, seed=1))
        assert len(loaded) == 2 and torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
        ask(student, ["a cat"], negative_prompt="a dog")
        assert len(loaded) == 3
        (file, *_) = (tmp_path / "texts").iterdir()
        for damaged in (tmp_path / "texts").iterdir():
            damaged.write_bytes(b"no tensors")
        ask(student, ["a cat"])
        assert len(loaded) == 4 and torch.equal(student.sample(1, seed=1), drawn[0])  # made anew
        assert file.is_file()
        index = room.read_index(made / "sd")
        with monkeypatch.context() as other:  # what an empty prompt means stands in the index
            other.setattr(room, "read_index", lambda root: {**index, "force_zeros_for_empty_prompt": True})
            ask(student, ["a cat"])
        with monkeypatch.context() as other:
            other.setattr(room.inspect, "getsource", lambda kind: "")
            ask(student, ["a cat"])
        assert len(loaded) == 6
        ask(student, ["a cat"])
        assert len(loaded) == 6
    assert room.kept({}, lambda: {"made": 1}) == {"made": 1}  # no cache, no file


def test_evaluate_keeps_its_teachers_texts(made, monkeypatch, here):
    seen = []

    def made_with(*_):
        seen.append(cache.current())
        raise UsageError("enough")

    monkeypatch.setenv("DISTILLKIT_CACHE_LIMIT", "1")
    monkeypatch.setattr(products, "made_with", made_with)
    for more in ([], ["--no-cache"]):
        assert front.main(["evaluate", str(made / "copy"), *more]) == 2
    assert isinstance(seen[0], cache.SampleCache) and seen[1] is None
