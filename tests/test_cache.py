"""What is kept is given back bit for bit; what is damaged, too large or not writable is made."""

import os
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from distillkit import cache
from distillkit.cache import SampleCache
from distillkit.errors import UsageError

KEY, SHAPE = {"seed": 1}, (4, 3)
SAMPLES = torch.arange(12.0).reshape(SHAPE)


@pytest.fixture(autouse=True)
def everything(monkeypatch):
    """Also keep what takes no time."""
    monkeypatch.setattr(cache, "WORTH", 0.0)


def recall(kept, key=KEY, samples=SAMPLES):
    """What the cache gives, and whether it was made."""
    made = []
    found = kept.recall(lambda: key, tuple(samples.shape), lambda: made.append(1) or samples.clone())
    return found, bool(made)


def only(kept):
    """The file of the only entry."""
    (entry,) = kept.entries()
    return entry[-1]


@pytest.mark.parametrize("samples", [SAMPLES, SAMPLES.half(), SAMPLES.long(), SAMPLES.double() / 3, SAMPLES > 5])
def test_the_same_bits_are_given_back_and_made_once(samples, tmp_path):
    assert recall(SampleCache(tmp_path), samples=samples)[1]
    found, made = recall(SampleCache(tmp_path), samples=samples)
    assert not made and found.dtype == samples.dtype and torch.equal(found, samples)
    assert recall(SampleCache(tmp_path), {"seed": 2}, samples)[1]


def test_what_this_process_made_itself_is_of_no_earlier_run(tmp_path):
    for hits in (0, 2):
        kept = SampleCache(tmp_path)
        recall(kept)
        assert not recall(kept)[1] and kept.hits == hits


def test_what_is_given_back_is_the_callers_own(tmp_path):
    recall(SampleCache(tmp_path))
    recall(SampleCache(tmp_path))[0].zero_()
    assert torch.equal(recall(SampleCache(tmp_path))[0], SAMPLES)


def test_what_is_made_at_once_or_has_no_key_or_another_shape_is_not_kept(tmp_path, monkeypatch):
    kept = SampleCache(tmp_path)
    assert recall(kept, None)[1] and recall(kept, None)[1]
    kept.recall(lambda: KEY, (5, 3), lambda: SAMPLES)
    monkeypatch.setattr(cache, "WORTH", 60.0)
    recall(kept)
    assert not kept.entries() and not kept.holds(KEY) and not kept.holds(None)


def flip(file, place=-2):
    """One bit: of the last number, or elsewhere."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def another(file):
    """A whole entry, of another key."""
    recall(SampleCache(file.parents[1]), {"seed": 2}, SAMPLES + 1)
    (os.replace(path, file) for _, _, path in SampleCache(file.parents[1]).entries() if path != file).__next__()


def folder(file):
    file.unlink()
    file.mkdir()


def link(file):
    """A link to the entry itself, whose content is right."""
    file.rename(file.with_name("elsewhere"))
    file.symlink_to(file.with_name("elsewhere"))


def timeless(file):
    """A whole entry, by its checksum, whose time is no number."""
    with safe_open(file, "pt") as opened:
        says = opened.metadata() | {"seconds": "soon"}
    save_file({"samples": SAMPLES}, file, says | {"sha256": cache._sum(SAMPLES, says["key"], "soon")})


HARM = {
    "a bit": flip,
    "the end": lambda file: file.write_bytes(file.read_bytes()[:-4]),
    "all": lambda file: file.write_bytes(b""),
    "another entry": another,
    "text": lambda file: file.write_text("these are no samples"),
    "a huge header": lambda file: file.write_bytes((2**40).to_bytes(8, "little") + bytes(100)),
    "its time": lambda file: flip(file, file.read_bytes().index(b'"seconds":"') + 11),
    "no facts": lambda file: save_file({"samples": SAMPLES}, file),
    "a time of another": timeless,
    "a link": link,
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_what_is_damaged_is_made_anew_with_a_line(harm, tmp_path, capsys):
    recall(SampleCache(tmp_path))
    file = only(SampleCache(tmp_path))
    harm(file)
    found, made = recall(SampleCache(tmp_path))
    assert made and torch.equal(found, SAMPLES)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and said[0].startswith(str(file)) and said[0].endswith("its samples are made anew")
    found, made = recall(SampleCache(tmp_path))
    assert not made and torch.equal(found, SAMPLES)  # it has taken the place of what was there


@pytest.mark.parametrize("place", ["samples", "entry"])
def test_a_folder_that_takes_no_files_stops_nothing_and_is_named_once(place, tmp_path, capsys):
    if place == "samples":
        (tmp_path / "samples").write_text("in the way")
    else:
        recall(SampleCache(tmp_path))
        folder(only(SampleCache(tmp_path)))
    kept = SampleCache(tmp_path)
    for _ in range(2):
        found, made = recall(kept)
        assert made and torch.equal(found, SAMPLES)
    said = capsys.readouterr().out
    assert said.count("note: no samples are kept in") == 1 and not list(tmp_path.rglob(".partial*"))


def test_what_was_used_longest_ago_goes_first(tmp_path):
    kept = SampleCache(tmp_path, 1e9)
    for seed in range(6):
        recall(kept, {"seed": seed})
        file = kept._file(f'{{"seed": {seed}}}')
        os.utime(file, (1000 + seed, 1000 + seed))
    size = sum(size for _, size, _ in kept.entries())
    assert not recall(kept, {"seed": 0})[1]  # used again
    recall(SampleCache(tmp_path, size), {"seed": 6})  # seven where six find room
    left = [seed for seed in range(7) if kept.holds({"seed": seed})]
    assert left == [0, 3, 4, 5, 6] and sum(size for _, size, _ in kept.entries()) <= 0.9 * size
    recall(SampleCache(tmp_path, size), {"seed": 7}, torch.zeros(10**5))
    assert left == [seed for seed in range(8) if kept.holds({"seed": seed})]  # too large for all of it


def test_debris_is_removed_when_it_is_old(tmp_path):
    kept = SampleCache(tmp_path)
    kept.folder.mkdir()
    old, young = (kept.folder / f".partial-{name}" for name in ("old", "young"))
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (1000, 1000))
    recall(kept)
    assert young.exists() and not old.exists()


def test_the_clock_goes_as_if_all_were_made_and_nothing_kept(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(cache, "time", SimpleNamespace(perf_counter=lambda: now[0], time=time.time))

    def after(seconds, value):
        now[0] += seconds
        return value

    for real in (7.0, 2.0):  # the key takes two seconds, the samples five
        with cache.using(SampleCache(tmp_path)):
            begun, start = now[0], cache.clock()
            cache.current().recall(lambda: after(2.0, KEY), SHAPE, lambda: after(5.0, SAMPLES))
            assert now[0] - begun == real and cache.clock() - start == 5.0


def test_it_is_off_until_it_is_switched_on(tmp_path):
    assert cache.current() is None
    with cache.using(SampleCache(tmp_path)):
        with cache.using(None):
            assert cache.current() is None
        assert cache.current().folder == tmp_path / "samples"
    assert cache.current() is None


@pytest.mark.parametrize(
    "variables, where",
    [
        ({"DISTILLKIT_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a/samples"),
        ({"DISTILLKIT_CACHE": "~/a"}, "/home/me/a/samples"),
        ({"DISTILLKIT_CACHE": "", "XDG_CACHE_HOME": "/b"}, "/b/distillkit/samples"),
        ({}, "/home/me/.cache/distillkit/samples"),
    ],
)
def test_where_it_is(variables, where, monkeypatch):
    for name in ("DISTILLKIT_CACHE", "XDG_CACHE_HOME", "DISTILLKIT_CACHE_LIMIT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/me"} | variables).items():
        monkeypatch.setenv(name, value)
    assert cache.of_the_user().folder.as_posix() == where and cache.of_the_user().limit == 4 * 2**30


def test_how_large_it_is(monkeypatch):
    monkeypatch.setenv("DISTILLKIT_CACHE_LIMIT", "0.5")
    assert cache.of_the_user().limit == 2**29
    monkeypatch.setenv("DISTILLKIT_CACHE_LIMIT", "0")
    assert cache.of_the_user() is None
    for wrong in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv("DISTILLKIT_CACHE_LIMIT", wrong)
        with pytest.raises(UsageError, match="must be a number of GiB, 0 for no cache, got"):
            cache.of_the_user()
