"""Images with captions as data for pipelines: folders, tar shards, saved data sets; CLIP score."""

import csv
import io
import json
import os
import sys
import tarfile
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

import tiny_pipelines
from helpers import trainer

from distillkit.data import StepLoader
from distillkit.pipelines import shards
from distillkit.pipelines.prompts import read_prompts
from distillkit.spec import Outside, check
from domains.image.captioned import Captioned, HuggingFace, WebDataset
from domains.image.clip import ClipScore
from domains.image.evaluation import ImageEvaluator
from domains.image.prompts import Prompts
from domains.image.reading import cropped
from domains.video.first_frames import captioned
from tests.battery.conftest import build

TEXTS = ["a dog runs", "a cat sleeps", "a dog sleeps", "a cat on the moon"]
SIZE = {"height": 16, "width": 24}


def level(i):
    """The grey level of image i, by which it is known again."""
    return 20 * i


def picture(i, size=(60, 40)):
    return Image.new("RGB", size, (level(i),) * 3)


def encoded(i, kind="PNG"):
    buffer = io.BytesIO()
    picture(i).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_pipelines.stable_diffusion(folder)
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    for i in range(12):
        path = tmp_path / ("even" if i % 2 == 0 else "odd") / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        picture(i).save(path)
    return tmp_path


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def caption(name):
    """The caption of a file by its number."""
    return TEXTS[int(name[-6:-4]) % 4]


def table(folder, kind, leave=()):
    said = [(name, caption(name)) for name in names(folder) if name not in leave]
    if kind == "captions.csv":
        with (folder / kind).open("w", newline="", encoding="utf-8-sig") as file:  # as spreadsheets save it
            csv.writer(file).writerows([("file", "caption"), *said])
    elif kind == "metadata.jsonl":
        rows = [json.dumps({"file_name": f"./{name}", "text": f" {text} "}) for name, text in said]
        (folder / kind).write_text("\n".join(rows))
    else:
        for name, text in said:
            (folder / name).with_suffix(".txt").write_text(f"{text}\n")


def ready(data):
    data.setup()
    return data


def whole(part):
    return part[torch.arange(len(part))]


def agree(data, path, shape=(3, 16, 24)):
    """Every image has the number under which the teacher knows its caption; returns the images."""
    prompts, seen = read_prompts(str(path)), set()
    assert data.classes == {"prompt": len(prompts)} and data.prompts == prompts and data.event_shape == shape
    for part in (data.train, data.val, data.test):
        batch = whole(part)
        assert batch["data"].shape[1:] == shape and batch["prompt"].dtype == torch.int64
        for image, number in zip(batch["data"], batch["prompt"].tolist(), strict=True):
            i = round((float(image.mean()) + 1) * 127.5 / 20)
            assert image.max() == image.min() and prompts[number] == TEXTS[i % 4]
            seen.add(i)
    return seen


# Folders


def test_each_caption_of_an_image_is_a_row_and_none_leaves_its_image(folder, pipeline):
    """As in COCO, five captions an image; evaluation compares with an image once."""
    table(folder, "captions.csv")
    before = ready(Captioned(str(folder), pipeline, SIZE, val=0.25, test=0.25))
    told = {name: [f"{caption(name)} {k}" for k in range(1 + int(name[-6:-4]) % 5)] for name in names(folder)}
    with (folder / "captions.csv").open("w", newline="") as file:
        rows = [(name, text) for k in range(5) for name, texts in told.items() for text in texts[k : k + 1]]
        csv.writer(file).writerows([("file", "caption"), *rows])
    data = ready(Captioned(str(folder), pipeline, SIZE, val=0.25, test=0.25))
    assert data.prompts == [*dict.fromkeys(text for _, text in rows)]
    for part, old in zip((data.train, data.val, data.test), (before.train, before.val, before.test), strict=True):
        batch = whole(part)
        seen = [f"{round((float(x.mean()) + 1) * 127.5 / 20):02}" for x in batch["data"]]
        pairs = sorted(zip(seen, (data.prompts[i] for i in batch["prompt"].tolist()), strict=True))
        files = [path.relative_to(folder).as_posix() for path in old.paths]
        assert pairs == sorted((name[-6:-4], text) for name in files for text in told[name])
        assert [part.paths[i] for i in part.different.tolist()] == old.paths  # the split is of files
    assert len(data.test) > 3 and len(data.evaluator("test").held_out[0]) == 3


@pytest.mark.parametrize("kind", ["captions.csv", "metadata.jsonl", "beside"])
def test_images_have_the_numbers_of_the_teachers_prompts(kind, folder, pipeline):
    table(folder, kind)
    data = ready(Captioned(str(folder), pipeline, SIZE, batch_size=4))
    assert agree(data, folder) == set(range(12)) and [len(p) for p in (data.train, data.val, data.test)] == [10, 1, 1]
    again = ready(Captioned(str(folder), pipeline, SIZE))
    assert torch.equal(whole(again.val)["data"], whole(data.val)["data"])
    asked, shown = data.conditions(3), data.real(3)
    assert torch.equal(asked["prompt"], shown["prompt"]) and len(shown["data"]) == 3 and data.left_out() == {}


def test_the_size_is_the_pipelines_own_and_mirrors_are_added(folder, pipeline):
    table(folder, "captions.csv")
    data = ready(Captioned(str(folder), pipeline, flip=True))
    assert agree(data, folder, (3, 32, 32)) == set(range(12)) and len(data.train) == 20
    with pytest.raises(ValueError, match="must be a multiple of 2"):
        Captioned(str(folder), pipeline, {"height": 15, "width": 24})
    with pytest.raises(ValueError, match="teacher=diffusers teacher.path=DIR"):
        Captioned(str(folder), None)


def test_images_without_a_caption_are_named_and_left_out(folder, pipeline):
    (folder / "even" / "04.png").write_bytes(b"no image")
    table(folder, "metadata.jsonl", leave=["odd/03.png"])
    with pytest.warns(UserWarning, match=r"even/04.png \(holds none of .*odd/03.png \(has no caption\)"):
        data = ready(Captioned(str(folder), pipeline, SIZE))
    assert agree(data, folder) == set(range(12)) - {3, 4}
    (folder / "metadata.jsonl").write_text('{"file_name": "elsewhere.png", "text": "a cat"}')
    with pytest.raises(ValueError, match="holds no image that can be used"), warnings.catch_warnings(action="ignore"):
        ready(Captioned(str(folder), pipeline, SIZE))


def test_images_in_linked_folders_keep_their_captions(pipeline, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for i in range(6):
        for place, text in (("here", "a cat"), ("elsewhere", "a dog")):
            (tmp_path / place / f"{i}.png").write_bytes(encoded(i))
            (tmp_path / place / f"{i}.txt").write_text(text)
    (tmp_path / "here" / "more").symlink_to(tmp_path / "elsewhere")
    data = ready(Captioned(str(tmp_path / "here"), pipeline, SIZE))
    assert data.prompts == ["a cat", "a dog"] and sum(map(len, (data.train, data.val, data.test))) == 12


@pytest.mark.filterwarnings("ignore:.*passed over")
def test_captions_that_are_not_among_the_prompts_are_refused(pipeline, tmp_path):
    """Beside images with .txt files the shards that they came in, whose captions would count."""
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(encoded(i))
        (tmp_path / f"{i}.txt").write_text("a cat" if i else "a dog")
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        add(tar, "0.png", encoded(0))
        add(tar, "0.txt", b"a dog")
    with pytest.raises(ValueError, match="has the caption 'a cat', but its prompts are read from elsewhere"):
        ready(Captioned(str(tmp_path), pipeline, SIZE))
    with pytest.raises(ValueError, match="has the caption 'a cat'"):
        captioned(tmp_path, read_prompts(str(tmp_path)))


def test_the_crop_is_the_largest_of_its_shape_in_the_middle():
    pixels = np.random.RandomState(0).randint(0, 256, (48, 64, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    assert np.array_equal(np.asarray(cropped(image, 48, 32)), pixels[:, 16:48])
    assert np.array_equal(np.asarray(cropped(image, 16, 64)), pixels[16:32])
    half = np.asarray(image.resize((32, 8), Image.Resampling.BICUBIC, box=(0, 16, 64, 32)))
    assert np.array_equal(np.asarray(cropped(image, 8, 32)), half)


# Tar shards


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def tars(tmp_path):
    for number in range(3):
        with tarfile.open(tmp_path / f"part-{number:03}.tar", "w") as tar:
            for i in range(4 * number, 4 * number + 4):
                add(tar, f"deep/{i:02}.PNG" if i % 2 else f"deep/{i:02}.png", encoded(i))
                if i % 2:
                    add(tar, f"deep/{i:02}.txt", f"{TEXTS[i % 4]}\n".encode())
                else:
                    add(tar, f"deep/{i:02}.json", json.dumps({"id": i, "text": TEXTS[i % 4]}).encode())
                add(tar, f"deep/{i:02}.cls", str(i % 3).encode())
    return tmp_path


def test_shards_are_read_in_place(tars, pipeline):
    data = ready(WebDataset(str(tars), pipeline, SIZE, batch_size=2))
    assert agree(data, tars) == set(range(12))
    assert (tars / ".distillkit-shards.json").is_file() and {p.suffix for p in tars.iterdir()} == {".tar", ".json"}
    index = os.stat(tars / ".distillkit-shards.json").st_mtime_ns
    again = ready(WebDataset(str(tars), pipeline, SIZE))
    assert torch.equal(whole(again.test)["data"], whole(data.test)["data"])
    assert os.stat(tars / ".distillkit-shards.json").st_mtime_ns == index  # nothing was looked at again
    whole_epoch = list(StepLoader(data.train, 2))
    resumed = StepLoader(data.train, 2)
    resumed.load_state_dict({"position": 3})
    for batch, same in zip(resumed, whole_epoch[3:], strict=True):
        assert torch.equal(batch["data"], same["data"]) and torch.equal(batch["prompt"], same["prompt"])


def test_patterns_choose_shards(tars):
    def found(pattern):
        return sorted({sample.shard.name for sample in shards.read_shards(f"{tars}/{pattern}")})

    assert found("part-{000..001}.tar") == ["part-000.tar", "part-001.tar"]
    assert found("part-*2.tar") == ["part-002.tar"] and len(found("*.tar")) == 3
    assert read_prompts(f"{tars}/part-{{001..001}}.tar") == TEXTS
    with pytest.raises(ValueError, match="holds no shard"):
        found("part-{00..01}.tar")
    for pattern in ("*.tar", "part-{000..001}.tar"):  # of a stranger's folder
        with pytest.raises(Outside, match=str(tars)):
            check({"class_path": "domains.image.captioned.WebDataset", "init_args": {"path": f"{tars}/{pattern}"}})


def test_classes_stand_in_where_no_sample_has_a_caption(tmp_path, pipeline):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(12):
            add(tar, f"{i:02}.png", encoded(i))
            add(tar, f"{i:02}.cls", str(i % 3).encode())
    data = ready(WebDataset(str(tmp_path), pipeline, SIZE))
    batch = whole(data.train)
    assert data.classes == {"label": 3} and "prompt" not in batch
    assert ready(WebDataset(str(tmp_path), pipeline, SIZE, num_classes=10)).classes == {"label": 10}
    with pytest.raises(ValueError, match="2 classes of 'label', but hold class 2"):
        ready(WebDataset(str(tmp_path), pipeline, SIZE, num_classes=2))
    numbers = ((batch["data"].mean((1, 2, 3)) + 1) * 127.5 / 20).round().long()
    assert torch.equal(batch["label"], numbers % 3) and data.conditions(4)["label"].shape == (4,)


def test_a_class_below_zero_is_no_class(tmp_path, pipeline):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(12):
            add(tar, f"{i:02}.png", encoded(i))
            add(tar, f"{i:02}.cls", str(i - 1).encode())  # -1 is what many data sets say where they do not know
    with pytest.raises(ValueError, match="they have 11 classes of 'label', but hold class -1"):
        ready(WebDataset(str(tmp_path), pipeline, SIZE))


@pytest.mark.parametrize("kept", [700, 3072, 3100])  # in a member, between two, in a header
def test_damaged_shards_and_odd_members_are_left_out(kept, tars):
    content = (tars / "part-001.tar").read_bytes()
    (tars / "part-001.tar").write_bytes(content[:kept])
    with tarfile.open(tars / "part-003.tar", "w") as tar:
        add(tar, "._00.png", b"debris")
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        add(tar, "../../outside.png", encoded(1))
        add(tar, "../../outside.txt", TEXTS[1].encode())
        add(tar, "broken.png", b"no image")
        add(tar, "broken.json", b"[" * 100_000)
    with pytest.warns(UserWarning, match=r"part-001.tar \(is no whole tar file"):
        samples = shards.read_shards(str(tars))
    assert [sample.key for sample in samples][-2:] == ["../../outside", "broken"] and samples[-1].caption is None
    assert len(samples) == 10 and samples[-2].read("png") == encoded(1)  # by its offset: nothing is written outside
    (tars / "part-003.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="outside in .* is cut off"):
        samples[-2].read("png")


@pytest.mark.parametrize("claimed", [2**60, 2**90])  # more than memory, and than an offset
@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_shard_of_absurd_sizes_is_left_out(claimed, kind, tars):
    """Python's tarfile reads long names and extended headers into memory, however long they say."""
    header = bytearray(tarfile.TarInfo("a.png").tobuf(tarfile.USTAR_FORMAT))
    header[124:136], header[156:157] = b"\x80" + claimed.to_bytes(12, "big")[1:], kind
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
    (tars / "part-001.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.warns(UserWarning, match=r"part-001.tar \(is no whole tar file"):
        assert {sample.shard.name for sample in shards.read_shards(str(tars))} == {"part-000.tar", "part-002.tar"}


# Saved data sets


class Rows:
    """What is used of `datasets.Dataset`."""

    def __init__(self, columns, decoded=True):
        self.columns, self.column_names, self.decoded = columns, list(columns), decoded

    def __len__(self):
        return len(self.columns["image"])

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        assert not self.decoded, "images are decoded within bounds, not by the package"
        return {name: values[key] for name, values in self.columns.items()}

    def cast_column(self, name, kind):
        return Rows(self.columns, kind.decode)


def pretend_datasets(monkeypatch, folder, found):
    (folder / "state.json").write_text("{}")
    fake = SimpleNamespace(load_from_disk=lambda path: found, Image=lambda decode: SimpleNamespace(decode=decode))
    monkeypatch.setitem(sys.modules, "datasets", fake)


def test_saved_data_sets(monkeypatch, tmp_path, pipeline):
    images = [{"bytes": encoded(i), "path": None} for i in range(12)]
    captions = [[TEXTS[i % 4], "another"] if i % 2 else TEXTS[i % 4] for i in range(12)]
    pretend_datasets(monkeypatch, tmp_path, Rows({"image": images, "caption": captions, "label": [7] * 12}))
    data = ready(HuggingFace(str(tmp_path), pipeline, SIZE))
    assert agree(data, tmp_path) == set(range(12))
    labelled = Rows({"image": images, "label": [i % 3 for i in range(12)]})
    (tmp_path / "dataset_dict.json").write_text("{}")
    pretend_datasets(monkeypatch, tmp_path, {"train": labelled, "test": None})
    assert ready(HuggingFace(str(tmp_path), pipeline, SIZE)).classes == {"label": 3}
    pretend_datasets(monkeypatch, tmp_path, {"validation": labelled})
    with pytest.raises(ValueError, match="holds the splits validation"):
        ready(HuggingFace(str(tmp_path), pipeline, SIZE))


def test_saved_data_sets_read_nothing_elsewhere(monkeypatch, tmp_path, pipeline):
    picture(1).save(tmp_path / "secret.png")
    images = [{"bytes": None, "path": str(tmp_path / "secret.png")}] * 4
    (tmp_path / "set").mkdir()
    pretend_datasets(monkeypatch, tmp_path / "set", Rows({"image": images, "text": TEXTS}))
    data = ready(HuggingFace(str(tmp_path / "set"), pipeline, SIZE))
    with pytest.raises(ValueError, match="or only the path of one"):
        data.train[torch.arange(1)]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"datasets, which does not import here.*pip install 'distillkit\[hf\]'"):
        read_prompts(str(tmp_path / "set"))


# CLIP score


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny CLIP model in a folder."""
    import transformers

    folder = tmp_path_factory.mktemp("clip") / "tiny"
    torch.manual_seed(0)
    parts = tiny_pipelines.clip()
    text = parts["text_encoder"].config.to_dict()
    vision = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=vision | {"image_size": 16, "patch_size": 4}, projection_dim=8
    )
    model = transformers.CLIPModel(config)
    for p in model.parameters():
        p.data += torch.randn(p.shape) / max(1, p[..., 0].numel() if p.ndim else 1) ** 0.5
    model.save_pretrained(folder)
    parts["tokenizer"].save_pretrained(folder)
    return folder


def images(num, size=(20, 30)):
    return torch.rand(num, 3, *size, generator=torch.Generator().manual_seed(0)) * 2.2 - 1.1


def test_clip_score_is_that_of_the_package_transformers(clip):
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    score, x, prompt = ClipScore(str(clip), TEXTS), images(20), torch.arange(20) % 4
    levels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    pixels = processor([Image.fromarray(each.movedim(0, -1).numpy()) for each in levels], return_tensors="pt")[
        "pixel_values"
    ]
    assert (score.pixels(x) - pixels).abs().max() < 1e-6 and pixels.std() > 0.3  # rounding of (x - mean) / std
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip)
    tokens = tokenizer(
        [TEXTS[i] for i in prompt], padding="max_length", max_length=7, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        out = model(tokens["input_ids"], score.pixels(x), tokens["attention_mask"])
    cosine = (out.image_embeds * out.text_embeds).sum(1)
    assert (cosine < 0).any() and (cosine > 0).any()  # so that the cut at 0 is seen
    assert score(x, prompt) == pytest.approx(100 * float(cosine.clamp_min(0).mean()), abs=1e-4)
    assert abs(score(x, prompt) - score(x, prompt.flip(0))) > 5e-3
    assert len(score.facts["sha256"]) == 64 and score.facts["name"] == "tiny"
    with pytest.raises(ValueError, match="give the folder of one"):
        ClipScore(str(clip.parent), TEXTS)


def test_evaluators_have_the_clip_score(clip, folder, pipeline):
    table(folder, "captions.csv")
    data = ready(Captioned(str(folder), pipeline, SIZE, val=0.3, test=0.3, clip=str(clip)))
    evaluator, cond, x = data.evaluator(), data.conditions(8), images(8, (16, 24))
    found = evaluator(x, cond) | evaluator.thorough(x, cond)
    assert found.keys() == evaluator.better.keys() - set(evaluator.too_few(8)) and evaluator.better["clip"] == "higher"
    assert found["clip"] == pytest.approx(ClipScore(str(clip), data.prompts)(x, cond["prompt"]))
    assert evaluator.describe()["clip"]["sha256"] == ClipScore(str(clip), []).facts["sha256"]
    assert found.keys() - evaluator.floor(8).keys() == {"density", "coverage"}  # of four training images
    asked = Prompts(str(folder), pipeline, SIZE, clip=str(clip))
    assert asked.prompts == data.prompts
    alone = asked.evaluator()
    assert alone.thorough(x, cond) == {"clip": pytest.approx(found["clip"])} and "sha256" in alone.describe()["clip"]
    plain = ready(Captioned(str(folder), pipeline, SIZE)).evaluator()
    assert plain.thorough(x, cond) == {} and "clip" not in plain.better and "clip" not in plain.describe()


def test_the_floor_has_the_score_of_real_images_and_their_own_captions(folder, pipeline):
    class Scores:
        """Stands for a CLIP model: the score is the number of the prompt."""

        def __call__(self, x, prompt):
            return float(prompt.double().mean())

    table(folder, "captions.csv")
    data = ready(Captioned(str(folder), pipeline, SIZE, val=0.3, test=0.3))
    evaluator, real = data.evaluator(), whole(data.test)["prompt"].double()
    evaluator.clip, evaluator.chunk = Scores(), 3
    assert len(real) == 4 and evaluator.floor(8)["clip"] == pytest.approx(float(real.mean()))
    assert evaluator.floor(2)["clip"] == pytest.approx(float(real[[0, 3]].mean()))  # spread over the images


def test_prompts_are_compared_by_inception_too(monkeypatch, tmp_path, folder, pipeline):
    from domains.image import prompts as module

    table(folder, "captions.csv")
    features = lambda x: x.flatten(1)[:, :5]  # noqa: E731 (of a network that is not here)
    monkeypatch.setattr(module, "inception", lambda path, device: module.Extractor({"name": "InceptionV3"}, features))
    evaluator = Prompts(str(folder), pipeline, SIZE, features="inception:weights.pth").evaluator()
    x, y = images(8, (16, 24)), images(8, (16, 24)).flip(0) / 2
    same, other = (evaluator.paired(x, each, {})["frechet"] for each in (x, y))
    assert same == pytest.approx(0, abs=1e-3) and other > 0.1
    assert evaluator.describe()["inception"] == {"name": "InceptionV3"} and evaluator.better["frechet"] == "lower"
    with pytest.raises(ValueError, match="features must be averages or inception"):
        Prompts(str(folder), pipeline, SIZE, features="inception").evaluator()


def test_a_folder_of_a_stranger_asks_for_the_clip_model(clip):
    with pytest.raises(Outside, match=str(clip)):
        check({"class_path": "domains.image.prompts.Prompts", "init_args": {"clip": str(clip)}})


# Runs


def test_large_images_are_measured_a_few_at_a_time():
    class Part:
        def __len__(self):
            return 2

        def __getitem__(self, rows):
            return {"data": torch.zeros(1, 3, 2**11, 2**11)}

    assert ImageEvaluator(None, Part(), {}, "pixels").chunk == 5


def test_methods_that_need_samples_train_on_captions(folder, pipeline):
    table(folder, "captions.csv")
    words = ["domain=image", "method=lcm", "teacher=diffusers", f"teacher.path={pipeline}", "teacher.steps=4"]
    words += ["data=captioned", f"data.path={folder}", "data.batch_size=2", "teacher.height=16", "teacher.width=24"]
    own = build(*words)
    own.model.require(own.data)
    run = trainer(max_steps=2)
    run.fit(own.model, own.data)
    assert run.global_step == 2 and not own.model.bad_steps.any()
    assert own.model.teacher.classes == own.data.classes == {"prompt": 4}
    assert own.model.sample(own.data.conditions(2), 2, 0).shape == (2, 3, 16, 24)
