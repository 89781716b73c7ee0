"""LTX-Video and image to video: our samplers against the pipelines', first frames as conditions.

The pipelines are tiny, random and saved by diffusers.
"""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_video
from helpers import trainer

from distillkit import load_student
from distillkit.cli import front
from distillkit.pipelines.teacher import ask
from distillkit.students.few_step import FewStepStudent
from domains.video.first_frames import covering
from domains.video.pipelines import VideoPipeline
from domains.video.prompts import Prompts
from tests.battery.conftest import build

PROMPTS = ["a cat runs", "a dog sleeps on the moon", "a cat on the moon"]
NEGATIVE = "blurry"
WITHIN = 1e-4  # of the pipelines' latents, of std 1 to 6: at most 1.4e-5 was found, rounding of float32
SMALL = {"frames": 9, "height": 16, "width": 32}
WIDE = {"frames": 17, "height": 32, "width": 64}
KINDS = {
    "wan 2.1": (partial(tiny_video.wan_image, looks=True), SMALL),
    "wan 2.2": (partial(tiny_video.wan_image, two=True), SMALL),
    "wan ti2v": (partial(tiny_video.wan_image, per_token=True), SMALL),
    "cogvideox 1.0": (tiny_video.cogvideox_image, SMALL),
    "cogvideox 1.5": (partial(tiny_video.cogvideox_image, newer=True), SMALL | {"frames": 13}),
    "ltx": (tiny_video.ltx, WIDE),
    "ltx image": (partial(tiny_video.ltx, image=True, timed=True), WIDE),
}
IMAGES = [kind for kind in KINDS if kind != "ltx"]
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of 64 x 64 pixels with captions, and pipelines by name."""
    folder = tmp_path_factory.mktemp("video")
    (folder / "frames").mkdir()
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    lines = [f"{i}.png,{PROMPTS[i % 3]}" for i in range(4)]
    (folder / "frames" / "captions.csv").write_text("\n".join(["file,caption", *lines]))
    for i in range(4):
        pixels = np.random.RandomState(i).randint(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "frames" / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def made(folder):
    """`made(kind)`: its pipeline and teacher, built once."""
    known = {}

    def make(kind):
        if kind not in known:
            build, size = KINDS[kind]
            pipeline = build(folder / kind)
            pipeline.set_progress_bar_config(disable=True)
            decode = pipeline.vae.decode
            pipeline.vae.decode = lambda *args, **options: (torch.manual_seed(0), decode(*args, **options))[1]
            path = str(folder / ("prompts.txt" if kind == "ltx" else "frames"))
            known[kind] = pipeline, VideoPipeline(str(folder / kind), path, negative_prompt=NEGATIVE, **size)
        return known[kind]

    return make


@pytest.fixture(autouse=True)
def means(monkeypatch):
    """The pipelines take the means of posteriors, which they draw from otherwise."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


def asked(teacher, num=2):
    """Noise for `num` clips, and their conditions: other texts and first frames."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(num, *teacher.event_shape, generator=generator)
    cond = {"prompt": torch.arange(2, 2 - num, -1)}
    if teacher.context:
        _, _, *sides = teacher.codec.data_shape(teacher.event_shape)
        pixels = torch.randint(0, 256, (num, 3, *sides), generator=generator)
        cond["image"] = pixels / 127.5 - 1
    return noise, cond


def as_image(image):
    return Image.fromarray(((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def theirs(kind, pipeline, noise, cond, row, kappa, steps=4, output_type="latent"):
    """The pipeline's result for a row of `asked`: a clip, or latents in our layout."""
    size, x = KINDS[kind][1], noise[row : row + 1]
    own = {"height": size["height"], "width": size["width"], "num_frames": size["frames"]}
    own |= {"prompt": PROMPTS[cond["prompt"][row]], "negative_prompt": NEGATIVE, "guidance_scale": kappa}
    own |= {"num_inference_steps": steps, "output_type": output_type, "latents": x}
    if "image" in cond:
        own["image"] = as_image(cond["image"][row])
    if kind.startswith("cogvideox"):
        own |= {"latents": x.transpose(1, 2), "max_sequence_length": 16}
    if kind.startswith("ltx"):
        if "image" in cond:  # of given latents it takes the first frame as it is
            vae = pipeline.vae
            with torch.no_grad():
                z = vae.encode(cond["image"][row : row + 1, :, None]).latent_dist.mode()
            first = pipeline._normalize_latents(z, vae.latents_mean, vae.latents_std)
            x = torch.cat([first, x[:, :, 1:]], 2)
        own["latents"] = pipeline._pack_latents(x)
    made = pipeline(**own).frames
    if output_type != "latent":
        return made.transpose(1, 2)
    if kind.startswith("ltx"):
        return pipeline._unpack_latents(made, *noise.shape[2:])
    return made.transpose(1, 2) if kind.startswith("cogvideox") else made


# Samplers and codecs


@kinds
def test_samples_are_the_pipelines(kind, made):
    pipeline, teacher = made(kind)
    noise, cond = asked(teacher)
    ours = teacher.sample(noise, cond, 4, kappa=3.0)
    for row in (0, 1):
        expected = theirs(kind, pipeline, noise, cond, row, 3.0)
        assert expected.std() > 0.5 and (ours[row] - expected[0]).abs().max() < WITHIN
    plain = teacher.sample(noise, cond, 4)
    assert (plain[1] - theirs(kind, pipeline, noise, cond, 1, 1.0)[0]).abs().max() < WITHIN
    assert (plain - ours).abs().max() > 100 * WITHIN
    if teacher.context:
        other = teacher.sample(noise, cond | {"image": cond["image"].flip(0)}, 4)
        assert (plain - other).abs().amax((1, 2, 3, 4)).min() > 100 * WITHIN
    clip = theirs(kind, pipeline, noise, cond, 1, 1.0, output_type="pt")
    decoded = teacher.codec.decode(plain[1:], {})
    assert decoded.shape == clip.shape == (1, *teacher.codec.data_shape(teacher.event_shape))
    assert (((decoded + 1) / 2).clamp(0, 1) - clip).abs().max() < 1e-4 and clip.std() > 0.02


def test_clips_are_encoded_in_the_units_of_ltx(made):
    pipeline, teacher = made("ltx")
    clips = torch.rand(2, 3, 17, 32, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    vae, encoded = pipeline.vae, teacher.codec.encode({"data": clips})
    with torch.no_grad():
        own = vae.encode(clips).latent_dist.mode()
    expected = pipeline._normalize_latents(own, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
    assert encoded.shape == (2, *teacher.event_shape) and (encoded - expected).abs().max() < 1e-5
    assert expected.std() > 0.1


@pytest.mark.parametrize("kind", ["wan ti2v", "ltx image"])
def test_the_first_frame_is_kept(kind, made):
    """It is in every denoised sample, at time 0; the other frames are x - t v."""
    _, teacher = made(kind)
    noise, cond = asked(teacher)
    seen = teacher.codec.conditions(cond, teacher.event_shape)
    first = seen["image"].reshape(noise[:, :, :1].shape)
    t, network = torch.tensor([0.3, 0.9]), teacher.denoiser.network
    found = teacher.denoiser(noise, t, seen)
    assert (found[:, :, :1] - first).abs().max() < 1e-6
    model, x = network.models[0], torch.cat([first, noise[:, :, 1:]], 2)
    texts = network.texts(cond["prompt"])
    tokens = noise[0, 0].numel() // network.patch
    times = 1000 * t[:, None].repeat(1, tokens)
    times[:, : tokens // noise.shape[2]] = 0
    with torch.no_grad():
        if kind == "wan ti2v":
            v = model(x, times, torch.nn.functional.pad(texts["text"], (0, 0, 0, 506)), return_dict=False)[0]
        else:
            packed, places = x.flatten(2).transpose(1, 2), (8 / 25, 32, 32)
            v = model(packed, texts["text"], times, texts["mask"], 3, 1, 2, places, return_dict=False)[0]
            v = v.transpose(1, 2).reshape(x.shape)
    expected = noise - t[:, None, None, None, None] * v
    assert (found - expected)[:, :, 1:].abs().max() < 1e-5


def test_ltx_is_told_the_frames_a_second(made, folder):
    _, teacher = made("ltx")
    noise, cond = asked(teacher)
    slow = VideoPipeline(str(folder / "ltx"), str(folder / "prompts.txt"), fps=8.0, negative_prompt=NEGATIVE, **WIDE)
    assert teacher.denoiser.network.settings == {"places": [8 / 25, 32, 32]}
    assert slow.denoiser.network.settings == {"places": [1.0, 32, 32]}
    assert (slow.sample(noise, cond, 2) - teacher.sample(noise, cond, 2)).abs().max() > 100 * WITHIN
    assert teacher.grid(4)[-1] == pytest.approx(0.1)  # shift_terminal
    longer = VideoPipeline(str(folder / "ltx"), str(folder / "prompts.txt"), **WIDE | {"frames": 801})
    assert longer.process.shift > teacher.process.shift > 1


# First frames as data


def test_of_an_image_with_several_captions_all_are_held_out(made, folder, tmp_path):
    made("wan 2.1")
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (32, 16)).save(tmp_path / name)
    rows = [
        ("a.png", "a cat"),
        ("a.png", "a cat runs"),
        ("b.png", "a dog"),
        ("c.png", "a cow"),
        ("c.png", "a cow eats"),
    ]
    (tmp_path / "captions.csv").write_text("\n".join(["file,caption", *map(",".join, rows)]))
    data = Prompts(str(tmp_path), str(folder / "wan 2.1"), SMALL, held_out=1)
    assert data.classes == {"prompt": 5} and data.first.prompt.tolist() == [0, 1, 2, 3, 4]
    assert data.asked.tolist() == [4] and data.trained.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="held_out must leave an image to train on, got 4"):
        Prompts(str(tmp_path), str(folder / "wan 2.1"), SMALL, held_out=4)


def test_first_frames_are_read_beside_their_captions(made, folder, tmp_path):
    made("wan 2.1")
    data = Prompts(str(folder / "frames"), str(folder / "wan 2.1"), SMALL, held_out=1, batch_size=3)
    data.setup()
    assert data.classes == {"prompt": 3} and data.context == ("image",) and data.event_shape == (3, 9, 16, 32)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (3, 3, 16, 32) and batch["image"].dtype == torch.float32
    held = data.conditions(2)
    assert held["prompt"].tolist() == [0, 0]  # the fourth image has the first caption again
    with Image.open(folder / "frames" / "3.png") as image:
        expected = np.array(image.resize((32, 16), Image.Resampling.BICUBIC, box=(0, 16, 64, 48)))
    assert torch.equal(held["image"][1], torch.from_numpy(expected).permute(2, 0, 1) / 127.5 - 1)
    assert {int(p) for part in data.train_dataloader() for p in part["prompt"]} == {0, 1, 2}

    shutil.copytree(folder / "frames", tmp_path / "beside")
    (tmp_path / "beside" / "captions.csv").unlink()
    for i in range(4):
        (tmp_path / "beside" / f"{i}.txt").write_text(PROMPTS[2 - i % 3])
    for name in ("._0.png", "__MACOSX/1.png"):  # as an archive of macOS brings along
        (tmp_path / "beside" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "beside" / name).write_bytes(b"Mac OS X")
    beside = Prompts(str(tmp_path / "beside"), str(folder / "wan 2.1"), SMALL)
    read = beside.conditions(4)
    assert [beside.prompts[i] for i in read["prompt"]] == [PROMPTS[2 - i % 3] for i in range(4)]
    assert torch.equal(read["image"][3], held["image"][1])

    def refused(said, path):
        with pytest.raises(ValueError, match=said):
            Prompts(str(path), str(folder / "wan 2.1"), SMALL)

    refused("needs a first frame for each prompt.*data.path=FOLDER", folder / "prompts.txt")
    (tmp_path / "beside" / "1.txt").unlink()
    refused("1.png has no caption: write one into 1.txt", tmp_path / "beside")
    (tmp_path / "beside" / "captions.csv").write_text("file,caption\n0.png,a cat\nnone.png,a dog\n")
    refused("there is no image .*none.png", tmp_path / "beside")


def test_images_cover_a_clip():
    """They keep their proportions; what sticks out is cut off evenly."""
    stripes = np.zeros((10, 40, 3), np.uint8)
    stripes[:, 15:25] = 255
    assert (covering(Image.fromarray(stripes), (10, 10)) == 255).all()
    assert covering(Image.fromarray(stripes), (30, 20)).shape == (30, 20, 3)


# Students


def words(folder, kind, *more):
    size = KINDS[kind][1]
    own = ["domain=video", "method=dmd", "teacher=diffusers", f"teacher.path={folder / kind}", "data=prompts"]
    own += [f"data.path={folder / 'frames'}", *(f"teacher.{name}={value}" for name, value in size.items())]
    own += ["teacher.steps=2", "data.batch_size=2", "trainer.max_steps=2", "model.kappa=3", "model.num_steps=2"]
    return [*own, *more]


LORA = ["student=lora", "student.rank=2", "fake_score=lora", "fake_score.rank=2"]


@pytest.mark.parametrize("kind, more", [("wan 2.1", []), ("cogvideox 1.0", LORA), ("ltx image", LORA)])
def test_students_of_first_frames(kind, more, made, folder, tmp_path):
    """The autoencoder is called once for an image of a batch, not in every step."""
    made(kind)
    own = build(*words(folder, kind, *more))
    own.model.require(own.data)
    vae, calls = own.model.teacher.codec.vae, []
    encode = vae.encode
    vae.encode = lambda x: (calls.append(len(x)), encode(x))[1]
    run = trainer(max_steps=2)
    run.fit(own.model, own.data)
    assert run.global_step == 2 and not own.model.bad_steps.any()
    trained = [n for n in calls if n]
    assert sum(trained) == len(trained) and len(trained) % 2 == 0
    student, cond = own.model.product(), own.data.conditions(3)
    calls.clear()
    clips = student.sample(3, cond)
    assert clips.isfinite().all() and clips.shape[0] == len(calls) == 3 and student.num_steps == 2
    encoded = own.model.condition(cond)
    assert encoded["image"].ndim == 2 and torch.equal(student.sample(3, encoded), clips)
    student.save(tmp_path / "student", examples=cond)
    again = load_student(tmp_path / "student", (str(folder / kind),))
    assert (again.sample(3) - clips).abs().max() < 1e-5  # of the examples in its folder
    if not more:
        ask(again, [PROMPTS[0], PROMPTS[2]], str(folder / kind))  # the examples' first frames, new prompts
        assert again.examples["prompt"].tolist() == [0, 1, 0]
        assert (again.sample(1) - student.sample(1, {"prompt": [0], "image": cond["image"][:1]})).abs().max() < 1e-4
        shut = load_student(tmp_path / "student")
        with pytest.raises(ValueError, match="first frames are encoded by the pipeline's autoencoder.*--trust DIR"):
            shut.sample(3, decode=False)
    wrong = cond | {"image": cond["image"][..., :8]}
    with pytest.raises(ValueError, match=r"image of shape \[3, \d+, \d+\], got \[3, \d+, 8\]"):
        again.sample(3, wrong)


def test_a_run_from_first_frames(made, folder, tmp_path, monkeypatch, capsys):
    """On the command line, from fitting to export."""
    made("ltx image")
    monkeypatch.chdir(tmp_path)
    argv = words(folder, "ltx image", "vars.callbacks.finish.num_samples=2", "trainer.max_steps=1")
    assert front.main(["fit", *argv, "--out", "run"]) == 0
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert all(np.isfinite(row["metrics"]["distance"]) for row in result["rows"])
    trust = ["--trust", str(folder)]
    assert front.main(["sample", "run", "-n", "2", "--out", "drawn", *trust]) == 0
    assert (tmp_path / "drawn" / "clips.gif").is_file()
    assert front.main(["export", "run", *trust]) == 0
    capsys.readouterr()
    assert front.main(["sample", "run", "-n", "2", "--out", "none"]) == 2
    assert "--trust" in capsys.readouterr().err


def test_a_student_of_ltx(made, folder, tmp_path):
    _, teacher = made("ltx")
    times = teacher.process.grid(3)[:-1].tolist()
    student = FewStepStudent(teacher.new_denoiser(), times, teacher.event_shape, teacher.classes, codec=teacher.codec)
    student.save(tmp_path / "student")
    clips = student.eval().sample(2)
    assert clips.shape == (2, 3, 17, 32, 64)
    assert torch.equal(load_student(tmp_path / "student", (str(folder / "ltx"),)).sample(2), clips)
    assert load_student(tmp_path / "student").sample(2, decode=False).shape == (2, *teacher.event_shape)


# What is refused


def test_what_is_refused(made, folder, tmp_path):
    def refused(said, kind, path=None, prompts="frames", **changes):
        made(kind)
        with pytest.raises(ValueError, match=said):
            VideoPipeline(str(path or folder / kind), str(folder / prompts), **KINDS[kind][1] | changes)

    refused(r"8 k \+ 1 frames, at least 9, got 16: set teacher.frames", "ltx", frames=16)
    refused("height of a clip must be a multiple of 32, got 48", "ltx", height=48)
    refused("knows clips of 16 x 32 alone: set teacher.height=16 teacher.width=32", "cogvideox 1.0", width=48)
    refused("fps must be", "ltx", fps=0.0)
    made("wan 2.1")
    shutil.copytree(folder / "wan 2.1", tmp_path / "other")
    config = tmp_path / "other" / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 16}))
    refused("takes 16 channels, but WanImageToVideoPipeline gives it 36", "wan 2.1", path=tmp_path / "other")
    teacher = VideoPipeline(str(folder / "wan 2.1"), str(folder / "frames"), **SMALL)
    with pytest.raises(ValueError, match="conditioned on .*'image'"):
        teacher.condition({"prompt": torch.tensor([0])})
    shutil.rmtree(tmp_path / "other" / "image_encoder")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 36}))
    blind = VideoPipeline(str(folder / "wan 2.1"), str(folder / "frames"), **SMALL)
    blind.codec = type(blind.codec)(str(tmp_path / "other"))
    with pytest.raises(ValueError, match="the image encoder in .* does not load"):
        blind.condition(asked(blind)[1])
