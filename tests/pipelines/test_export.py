"""Students of tiny pipelines for the package diffusers: what is written samples as they do."""

import re

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_image_flow
import tiny_pipelines
import tiny_video

from distillkit import load_student
from distillkit.cli import exports, front
from distillkit.errors import Failure
from distillkit.files import read_yaml, write_yaml
from distillkit.networks.adapters import LAYERS
from distillkit.pipelines import export
from distillkit.pipelines.teacher import ask
from distillkit.students.few_step import FewStepStudent
from distillkit.students.makers import Copy, Lora
from domains.image.pipelines import ImagePipeline
from domains.video.pipelines import VideoPipeline

CLIP = {"frames": 5, "height": 16, "width": 32}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Teachers by name, of pipelines in folders of these names."""
    folder = tmp_path_factory.mktemp("pipelines")
    (folder / "prompts.txt").write_text("a cat runs\na dog sleeps")
    tiny_pipelines.stable_diffusion(folder / "sd")
    tiny_pipelines.wan(folder / "wan")
    tiny_pipelines.wan(folder / "wan2", two=True)
    tiny_pipelines.cogvideox(folder / "cogvideox")
    made = {"sd": ImagePipeline(str(folder / "sd"), str(folder / "prompts.txt"))}
    for name in ("wan", "wan2", "cogvideox"):
        made[name] = VideoPipeline(str(folder / name), str(folder / "prompts.txt"), **CLIP)
    return made


def saved(teacher, folder, times, renoise="fresh", maker=None, **more):
    """The folder of a student that is not its teacher."""
    denoiser = (maker or Copy()).make(teacher)
    generator = torch.Generator().manual_seed(1)
    for p in denoiser.parameters():
        p.data += 0.02 * torch.randn(p.shape, generator=generator)
    student = FewStepStudent(
        denoiser, times, teacher.event_shape, teacher.classes, renoise, codec=teacher.codec, **more
    )
    student.save(folder, kappa=3.0)
    return folder


def exported(folder, out, kind="diffusers", *more):
    """The exit code of the command on a folder that may read its pipeline."""
    root = read_yaml(folder / "student.yaml")["codec"]["init_args"]["path"]
    return front.main(["export", str(folder), "--format", kind, "--out", str(out), "--pipeline", root, *more])


def by_the_card(out, root):
    """What the code in README.md makes, as data in [-1, 1]."""
    text = (out / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code = code.replace(f'"{out.name}"', repr(str(out))).replace(f'"{root.name}"', repr(str(root)))
    names = {}
    exec(code.replace("generator=generator,\n)", 'generator=generator,\n    output_type="pt",\n)'), names)
    frames = names["sample"]
    return 2 * (frames.transpose(0, 1) if frames.ndim == 4 else frames) - 1, text


def by_the_student(folder, root):
    """The student's sample of the same prompt and noise, cut as pipelines do."""
    student = load_student(folder, (str(root),)).merged()
    ask(student, [export.PROMPT])
    packed, unpacked, shape = student.network.packed, student.network.unpacked, student.event_shape
    generator = torch.manual_seed(0)
    size = packed(torch.empty(1, *shape)).shape
    noise = [unpacked(torch.randn(size, generator=generator), shape) for _ in range(student.draws)]
    x = student(noise[0], student.default_condition(1), lambda i: noise[i])
    return student.codec.decode(x, {})[0].clamp(-1, 1)


@pytest.mark.parametrize(
    "name, times, renoise, scheduler, told",
    [
        ("sd", [999.0, 499.0], "fresh", "LCMScheduler", "latents=0.997667"),
        ("sd", [999.0, 749.25], "implied", "EulerDiscreteScheduler", "sigmas=[14.6"),
        ("wan", [1.0, 0.75], "fresh", "FlowMatchEulerDiscreteScheduler", "num_inference_steps=2"),
        ("wan", [0.9, 0.5], "implied", "FlowMatchEulerDiscreteScheduler", "sigmas = [0.9, 0.5]"),
        ("wan2", [1.0, 0.9, 0.5], "fresh", "FlowMatchEulerDiscreteScheduler", "num_inference_steps=3"),
        ("cogvideox", [999.0, 400.0], "fresh", "LCMScheduler", "timesteps=[999, 400]"),
    ],
)
def test_the_call_in_the_card_makes_the_samples_of_the_student(
    name, times, renoise, scheduler, told, teachers, tmp_path
):
    teacher = teachers[name]
    folder, out = saved(teacher, tmp_path / "student", times, renoise), tmp_path / "out"
    assert exported(folder, out) == 0
    got, text = by_the_card(out, teacher.root)
    assert told in text and f"kappa {3}" in text and text.count("```") == 2
    assert scheduler in (out / "scheduler" / "scheduler_config.json").read_text()
    assert {file.suffix for file in out.rglob("*") if file.is_file()} <= {".json", ".safetensors", ".md", ".txt"}
    expected = by_the_student(folder, teacher.root)
    # on data in [-1, 1]; without the student's own weights or noise 0.01 and more
    assert got.shape == expected.shape and (got - expected).abs().max() < 2e-5 and expected.std() > 0.02


@pytest.mark.parametrize("times", [None, [1.0, 0.9, 0.5, 0.1]], ids=["own", "others"])
def test_packed_latents_and_times_that_are_shifted_by_size(times, teachers, tmp_path):
    root = tmp_path / "ltx"
    tiny_video.ltx(root)
    size = {"frames": 9, "height": 32, "width": 64}
    teacher = VideoPipeline(str(root), str(teachers["wan"].root.parent / "prompts.txt"), **size)
    folder = saved(teacher, tmp_path / "student", times or teacher.process.grid(4)[:-1].tolist())
    assert exported(folder, tmp_path / "out") == 0
    assert ("sigmas = [1.0, 0.9, 0.5, 0.1]" in (tmp_path / "out" / "README.md").read_text()) == (times is not None)


@pytest.mark.parametrize("name", ["flux", "sana", "stable_diffusion_3"])
def test_families_of_flows(name, teachers, tmp_path):
    root = tmp_path / name
    getattr(tiny_image_flow, name)(root)
    teacher = ImagePipeline(str(root), str(teachers["wan"].root.parent / "prompts.txt"))
    folder = saved(teacher, tmp_path / "student", teacher.process.grid(4)[:-1].tolist())
    assert exported(folder, tmp_path / "out") == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert "sigmas=" not in text and ("guidance_scale=3.5" in text) == (name == "flux")


@pytest.mark.parametrize("name, part, times", [("sd", "unet", [999.0, 499.0]), ("wan2", "transformer", [1.0, 0.75])])
def test_adapters(name, part, times, teachers, tmp_path):
    teacher = teachers[name]
    folder, out = saved(teacher, tmp_path / "student", times, maker=Lora(2)), tmp_path / "out"
    assert exported(folder, out, "lora") == 0
    student = load_student(folder, (str(teacher.root),))
    plain, models = student.merged().network.models, student.network.tree.models
    files = [load_file(out / file) for file in export.FILES[: len(models)]]
    assert len(list(out.glob("*.safetensors"))) == len(models) == (2 if name == "wan2" else 1)
    for tensors, own, changed in zip(files, models, plain, strict=True):
        layers = {name for name, layer in own.named_modules() if type(layer) in LAYERS}
        ends = ("lora_A.weight", "lora_B.weight")
        assert tensors.keys() == {f"{part}.{layer}.{end}" for layer in layers for end in ends}
        for layer in layers:
            down, up = (tensors[f"{part}.{layer}.{end}"] for end in ends)
            weight = own.get_submodule(layer).weight
            change = torch.einsum("or,r...->o...", up.flatten(1), down)
            assert (weight + change - changed.get_submodule(layer).weight).abs().max() < 1e-6
            assert change.abs().max() > 0
    assert "load_lora_weights" in (out / "README.md").read_text()
    assert exported(folder, tmp_path / "whole") == 0  # adapters merged
    assert not [file for file in tmp_path.rglob("*/*.json") if str(teacher.root) in file.read_text()]  # no path of here
    got, _ = by_the_card(tmp_path / "whole", teacher.root)
    assert (got - by_the_student(folder, teacher.root)).abs().max() < 2e-5
    assert ("load_into_transformer_2=True" in (out / "README.md").read_text()) == (name == "wan2")


@pytest.mark.parametrize("name", ["sd", "wan2"])
def test_pipelines_load_the_adapters(name, teachers, tmp_path):
    pytest.importorskip("peft")
    teacher = teachers[name]
    times = [999.0, 499.0] if name == "sd" else [1.0, 0.75]
    folder, out = saved(teacher, tmp_path / "student", times, maker=Lora(2)), tmp_path / "out"
    assert exported(folder, out, "lora") == 0
    got, _ = by_the_card(out, teacher.root)
    assert (got - by_the_student(folder, teacher.root)).abs().max() < 1e-4


def test_what_is_refused(teachers, tmp_path, monkeypatch, capsys):
    sd, out = teachers["sd"], tmp_path / "out"

    def said(folder, kind="diffusers"):
        assert exported(folder, out, kind) == 2 and not out.exists()
        (line,) = capsys.readouterr().err.splitlines()
        return line

    whole = saved(sd, tmp_path / "whole", [999.0, 749.25])
    assert "use --format diffusers" in said(whole, "lora")
    assert "write times: [999, 749] into student.yaml" in said(whole)
    config = read_yaml(whole / "student.yaml")
    write_yaml(whole / "student.yaml", {**config, "times": [999, 749]})
    assert exported(whole, out) == 0 and exported(whole, out) == 2
    assert "exists already" in capsys.readouterr().err
    other = tmp_path / "other"
    assert front.main(["export", str(whole), "--format", "diffusers", "--out", str(other)]) == 2
    assert "--trust" in capsys.readouterr().err and not other.exists()
    out = other
    assert "standard deviation 0.5" in said(saved(sd, tmp_path / "scaled", [999.0], noise_scale=0.5))
    told = Copy().make(sd)
    told.tell("kappa", range=(1, 4))
    student = FewStepStudent(told, [999.0], sd.event_shape, sd.classes, codec=sd.codec)
    student.save(tmp_path / "told")
    assert "was told kappa" in said(tmp_path / "told")
    with monkeypatch.context() as patch:
        patch.setattr(type(sd.denoiser.network), "asked", lambda self, shape: {"seconds": 1})
        assert "StableDiffusionPipeline takes no seconds" in said(saved(sd, tmp_path / "sound", [999.0]))
    first = saved(sd, tmp_path / "first", [999.0, 499.0], "first")
    assert "renoise=first" in said(first)
    assert front.main(["export", str(first), "--format", "onnx", "--push", "me/it"]) == 2
    assert "say --format diffusers or lora" in capsys.readouterr().err


def test_a_pipeline_that_differs_is_not_kept(teachers, tmp_path, monkeypatch):
    folder = saved(teachers["wan"], tmp_path / "student", [1.0, 0.75])
    student = load_student(folder, (str(teachers["wan"].root),))
    found = export.steps_of(student, teachers["wan"].root)
    found.scheduler.register_to_config(stochastic_sampling=False)  # the noise that the sample holds
    monkeypatch.setattr(export, "steps_of", lambda *args: found)
    with pytest.raises(Failure, match="differs from the student by"):
        export.to_pipeline(student, tmp_path / "out", "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".partial*"))
    assert student.network.texts.shapes == {"text": [2, *student.network.texts.text.shape[1:]]}  # its prompts are back


def test_uploading(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    class Api:
        def create_repo(self, name, private, exist_ok):
            asked.append((name, private, exist_ok))
            return type("Url", (), {"repo_id": f"me/{name}"})

        def upload_folder(self, repo_id, folder_path):
            asked.append((repo_id, folder_path))
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(hub, "HfApi", Api)
    assert exports.push(tmp_path, "it") == "https://hub/me/it"
    assert asked == [("it", True, True), ("me/it", tmp_path)]
    monkeypatch.setattr(Api, "create_repo", lambda self, *args, **more: (_ for _ in ()).throw(OSError("no\nnetwork")))
    with pytest.raises(Failure, match=r"is written, but could not be uploaded to it: no network; log in") as raised:
        exports.push(tmp_path, "it")
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_graphs_of_pipelines_take_any_number_of_samples(teachers):
    sd = teachers["sd"]
    student = FewStepStudent(Copy().make(sd), [999.0, 499.0], sd.event_shape, sd.classes, codec=sd.codec).eval()
    module, shown = exports.Flat(student).eval(), exports.arguments(student, 3)
    program = torch.export.export(module, shown, dynamic_shapes=exports.free_sizes(student, *shown)).module()
    others = exports.arguments(student, 5, seed=1)
    with torch.no_grad():
        assert (program(*others) - module(*others)).abs().max() < 1e-4  # measured: 0
