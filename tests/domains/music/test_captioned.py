"""Sounds with captions as data for pipelines: their form, their numbers, and runs on them."""

import csv
import json
import shutil
import warnings
import wave

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("av")
pytest.importorskip("soundfile")

import tiny_audio
from helpers import trainer
from tiny_audio import RATE, TEXTS

from distillkit import runs
from distillkit.cli import front
from distillkit.pipelines.prompts import read_prompts
from domains.music.captioned import Captioned
from domains.music.evaluation import MusicEvaluator
from tests.battery.conftest import build

SIZE = {"seconds": 0.006}  # 96 samples


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """Pipelines and a folder of sounds of 320 samples, each with its caption beside it."""
    folder = tmp_path_factory.mktemp("captioned")
    tiny_audio.stable_audio(folder / "stable_audio")
    tiny_audio.audioldm2(folder / "audioldm2")
    tiny_audio.captioned(folder / "sounds")
    return folder


@pytest.fixture
def sounds(room, tmp_path):
    """The sounds, to be changed."""
    return shutil.copytree(room / "sounds", tmp_path / "sounds")


def ready(room, sounds, pipeline="stable_audio", **settings):
    data = Captioned(str(sounds), str(room / pipeline), **{"size": SIZE} | settings)
    data.setup()
    return data


def whole(part):
    return part[torch.arange(len(part))]


def files_of(part):
    return [path.name for path in part.paths]


def parts(data):
    return [files_of(part) for part in (data.train, data.val, data.test)]


def told(x):
    """The file and the first sample of each clip, by what its left channel says."""
    left = (x[:, 0, 0] * 32768).round().long()
    return list(zip((left // 1000 - 1).tolist(), (left % 1000).tolist(), strict=True))


def agree(data, sounds):
    """Every clip has its file's caption under the teacher's number; returns the files."""
    prompts, seen = read_prompts(str(sounds)), set()
    assert data.prompts == prompts and data.classes == {"prompt": len(prompts)}
    for part in (data.train, data.val, data.test):
        batch = whole(part)
        assert batch["data"].shape[1:] == data.event_shape == (2, 96) and batch["prompt"].dtype == torch.int64
        for (i, start), clip, number in zip(told(batch["data"]), batch["data"], batch["prompt"].tolist(), strict=True):
            left = 1000 * (i + 1) + start + torch.arange(96)
            assert torch.equal(clip, torch.stack([left, left // 2]) / 32768)
            assert prompts[number] == TEXTS[i % 3] and f"{i:02}.wav" in files_of(part)
            seen.add(i)
    return seen


@pytest.mark.parametrize("kind", ["beside", "captions.csv", "metadata.jsonl"])
def test_clips_have_the_pipelines_form_and_the_numbers_of_the_teachers_prompts(kind, room, sounds):
    if kind != "beside":
        said = [(f"{i:02}.wav", TEXTS[i % 3]) for i in range(12)]
        for file in sounds.glob("*.txt"):
            file.unlink()
        with (sounds / kind).open("w", newline="", encoding="utf-8") as file:
            if kind == "captions.csv":
                csv.writer(file).writerows([("file", "caption"), *said])
            else:
                file.writelines(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in said)
    data = ready(room, sounds)
    assert data.rate == RATE and agree(data, sounds) == {*range(12)}
    assert [len(part) for part in (data.train, data.val, data.test)] == [30, 3, 3]  # 320 samples of 96
    assert [start for _, start in told(whole(data.test)["data"])] == [0, 96, 192]
    drawn = [start for _, start in told(whole(data.train)["data"])]
    assert len({*drawn}) > 15 and max(drawn) <= 320 - 96
    still = ready(room, sounds, random_crop=False)
    assert {start for _, start in told(whole(still.train)["data"])} == {0, 96, 192}


def test_each_caption_of_a_sound_is_a_row_and_none_leaves_its_sound(room, sounds):
    """As in AudioCaps and Clotho; evaluation compares with a sound once."""
    plain = parts(ready(room, sounds))
    told = {f"{i:02}.wav": [TEXTS[i % 3], f"again {i}", "a sound"][: 1 + i % 3] for i in range(12)}
    for file in sounds.glob("*.txt"):
        file.unlink()
    rows = [(name, text) for k in range(3) for name, texts in told.items() for text in texts[k : k + 1]]
    with (sounds / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "caption"), *rows])
    data = ready(room, sounds)
    assert parts(data) == plain  # the split is of files
    for part in (data.train, data.val, data.test):
        captions = [data.prompts[number] for number in part.prompt.tolist()]
        seen = {(place.name, place.start, text) for place, text in zip(part._places, captions, strict=True)}
        assert seen == {(name, start, text) for name in files_of(part) for start in (0, 96, 192) for text in told[name]}
        assert len(seen) == len(part)
        batch = whole(part)
        assert batch["prompt"].tolist() == part.prompt.tolist()
    held_out = data.evaluator("test").reference
    assert len(held_out) == 3 * len(files_of(data.test)) < len(data.test) or len(told[files_of(data.test)[0]]) == 1
    assert len({place for place in (data.train._places[i][1:4:2] for i in data.train.different.tolist())}) == 30


def test_evaluation_asks_for_what_held_out_sounds_are(room, sounds):
    data = ready(room, sounds, test=0.5)
    asked, shown = data.conditions(6), data.real(6)
    files = {i for i, _ in told(shown["data"])}
    assert torch.equal(asked["prompt"], shown["prompt"]) and files <= {int(name[:2]) for name in files_of(data.test)}
    assert len(data.test) == 18 and len(files) > 2  # not all clips of two files first
    assert data.left_out() == {} and data.pictured == 4


def test_parts_follow_from_names_whatever_is_said_of_them(room, sounds):
    """As groups, captions that are said once would all be in the training part."""
    alike = parts(ready(room, sounds, test=0.3))
    for i in range(8):
        (sounds / f"{i:02}.txt").write_text(f"a dog runs {i} times")
    assert parts(ready(room, sounds, test=0.3)) == alike


def test_sounds_have_the_channels_of_the_pipeline(room, tmp_path):
    mono = tiny_audio.captioned(tmp_path / "mono", 3, channels=1)
    batch = whole(ready(room, mono).train)["data"]
    assert batch.shape[1] == 2 and torch.equal(batch[:, 0], batch[:, 1]) and batch.std() > 0
    data = ready(room, room / "sounds", "audioldm2")
    assert data.event_shape[0] == 1 and data.rate == RATE
    clip, number = whole(data.test)["data"][0, 0], int(files_of(data.test)[0][:2])
    left = 1000 * (number + 1) + torch.arange(len(clip))
    assert torch.equal(clip, (left + left // 2) / 65536)


def test_short_sounds_go_on_with_silence_and_are_told(room, sounds, recwarn):
    agree(ready(room, sounds), sounds)
    assert not [str(warning.message) for warning in recwarn if "silence" in str(warning.message)]
    tiny_audio.captioned(sounds, 6, 80)
    with pytest.warns(UserWarning, match=r"6 of 12 sounds are shorter than the 0.006 seconds.*of all has 0.02: lower"):
        data = ready(room, sounds)
    found = dict(zip([i for i, _ in told(whole(data.train)["data"])], whole(data.train)["data"], strict=True))
    short = next(i for i in found if i < 6)
    left = 1000 * (short + 1) + torch.arange(80)
    assert torch.equal(found[short], torch.stack([torch.cat([x, torch.zeros(16)]) for x in (left, left // 2)]) / 32768)


def test_what_is_left_out_and_refused(room, sounds):
    (sounds / "03.txt").unlink()
    (sounds / "04.wav").write_bytes(b"no sound")
    with pytest.warns(UserWarning, match=r"left out: 03.wav \(has no caption\), 04.wav \(holds no sound"):
        assert agree(ready(room, sounds), sounds) == {*range(12)} - {3, 4}
    for file in sounds.glob("*.txt"):
        file.unlink()
    (sounds / ".distillkit-sounds.json").unlink()
    with pytest.raises(
        ValueError, match="has no prompts: write a captions.csv with the columns file and caption, or a"
    ):
        ready(room, sounds)
    assert not (sounds / ".distillkit-sounds.json").exists()  # before all files are decoded
    (sounds / "captions.csv").write_text("file,caption\nelsewhere.wav,a cat\n")
    with pytest.raises(ValueError, match=r"holds no sound that can be used.*00.wav \(has no caption\)"):
        ready(room, sounds)
    with pytest.raises(ValueError, match="give teacher=diffusers teacher.path=DIR"):
        Captioned(str(sounds), None)
    with pytest.raises(ValueError, match="last 0.008 seconds at most, got 1.0: set teacher.seconds"):
        ready(room, sounds, size={"seconds": 1.0})


def test_pipelines_that_read_no_sounds_give_no_samples_to_learn_from(room):
    for kind, given in (("stable_audio", {"data", "numbers"}), ("audioldm2", set())):
        data = Captioned(str(room / "sounds"), str(room / kind))
        assert data.provides == Captioned.offers({"pipeline": str(room / kind)}) == given
    assert Captioned.offers({"pipeline": "on/the-hub"}) == {"data", "numbers"}  # what it is shows when it is there


def test_evaluators_without_training_sounds_measure_the_others_alike(room):
    data = ready(room, room / "sounds", val=0.3, test=0.3)
    data.setup()
    ours = MusicEvaluator(None, [data.val, data.test], data.classes, data.rate)
    whole_one = data.evaluator()
    x, cond = data.real(6)["data"].flip(-1), data.conditions(6)
    found, expected = ours(x, cond), whole_one(x, cond)
    assert expected.pop("nearest_train") > 0 and found == expected and "num_train" not in ours.describe()
    assert dict(whole_one.better.items() - ours.better.items()) == {"nearest_train": "target"}
    assert ours.floor(6).keys() == found.keys()
    labelled = MusicEvaluator(None, [data.val], {"label": 3}, data.rate)
    assert labelled.extractor[0] is None and labelled.better == ours.better
    whole_one.chunk, whole_one.look = 2, whole_one._looked
    for name, value in whole_one(x, cond).items():
        assert value == pytest.approx((expected | {"nearest_train": value})[name], rel=1e-5)


def test_long_sounds_are_measured_a_few_at_a_time(room):
    class Part:
        def __len__(self):
            return 3

        def __getitem__(self, rows):
            return {"data": torch.zeros(1, 2, 2**22)}

    assert MusicEvaluator(None, [Part()], {}, 44_100).chunk == 8


# Runs


def words(room, kind, method, *more):
    own = ["domain=music", "teacher=diffusers", "data=captioned", f"method={method}", f"teacher.path={room / kind}"]
    own += [f"data.path={room / 'sounds'}", "teacher.seconds=0.006", "teacher.steps=2", "data.batch_size=2"]
    return [*own, "data.val=0.3", "data.test=0.3", "trainer.max_steps=2", *more]


@pytest.fixture
def clap(tmp_path):
    import transformers

    parts = tiny_audio.clap()
    parts["text_encoder"].save_pretrained(tmp_path / "clap")
    transformers.ClapProcessor(parts["feature_extractor"], parts["tokenizer"]).save_pretrained(tmp_path / "clap")
    return tmp_path / "clap"


def test_a_run_from_the_command_line(room, clap, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", runs.OUT):
        monkeypatch.delenv(name, raising=False)
    asked = ["vars.callbacks.finish.num_samples=4", f"data.clap={clap}", "vars.callbacks.watch.unlike=true"]
    assert front.main(["fit", *words(room, "stable_audio", "lcm", *asked), "--out", "run"]) == 0
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    names = ["student", "teacher at its best", "teacher at 2 steps", "real data"]
    assert [row["name"] for row in result["rows"]] == names and result["headline"] == "frechet"
    assert result["protocol"]["evaluator"]["sample_rate"] == RATE and result["protocol"]["evaluator"]["num_train"] == 12
    for row in result["rows"]:
        assert {"frechet", "nearest_train", "clap_frechet", "clap_score"} <= row["metrics"].keys()
    with wave.open(str(tmp_path / "run" / "samples" / "student" / "sound_0.wav")) as file:
        assert file.getparams()[:4] == (2, 2, RATE, 96)
    places = [str(room / "stable_audio"), str(room / "sounds"), str(clap)]
    trust = [word for place in places for word in ("--trust", place)]
    before = result["rows"][0]["metrics"]
    assert front.main(["evaluate", "run", *trust, "--num-samples", "4"]) == 0
    again = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert again["rows"][0]["metrics"] == before


def test_a_pipeline_that_reads_no_sounds_is_distilled_and_measured_with_them(room, capsys):
    assert front.main(["fit", *words(room, "audioldm2", "lcm")]) == 2
    assert "needs data, which MusicPipeline and Captioned do not give" in capsys.readouterr().err
    own = build(*words(room, "audioldm2", "sid"))
    own.model.require(own.data)
    run = trainer(max_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(own.model, own.data)
    assert run.global_step == 2 and not own.model.bad_steps.any()
    cond = own.data.conditions(4)
    assert "frechet" in own.data.evaluator()(own.model.sample(cond, 4, 0), cond)
