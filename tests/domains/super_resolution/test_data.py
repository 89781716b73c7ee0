"""Data of super-resolution: what is read, how it is split and degraded, what is refused."""

import os
import warnings
from pathlib import Path

import pytest
import torch
from helpers import trainer
from mutations import Mutation, prove
from photo_files import save, texture
from PIL import Image

from distillkit.diffusion.process import ResShift
from distillkit.methods.pretrain import Pretrain
from domains.super_resolution import data as module
from domains.super_resolution.codec import Upscale
from domains.super_resolution.data import PhotoFolder, PhotoPairs, Photos, SuperResolutionData
from domains.super_resolution.degradation import DEGRADATIONS
from domains.super_resolution.network import PatchNet
from domains.super_resolution.resize import eight_bits, shrunk

KODAK = Path(os.environ.get("DISTILLKIT_TEST_DATA", "")) / "sr" / "kodak"
SMALL = {"crop": 16, "held_out": 6, "batch_size": 4}


def ready(data):
    data.setup()
    return data


def whole(part, num=6):
    return part[torch.arange(num)]


def names(part) -> set[str]:
    return {path.name for paths in part.photographs.paths for path in paths}


def folder(root: Path, num: int = 10) -> Path:
    for k in range(num):
        save(root / ("deep/er" if k % 2 else "") / f"{k}.png", texture(24 + k, 20, k))
    return root


def pairs(root: Path, num: int = 6, scale: int = 4, behind: str = "x4") -> Path:
    """High and low in which a pixel of one is every fourth of the other."""
    for k in range(num):
        high = texture(28 + k % 4, 20, k)
        save(root / "HR" / f"{k:04}.png", high)
        low = high[: 20 // scale * scale, : (28 + k % 4) // scale * scale][::scale, ::scale]
        save(root / "LR" / f"x{scale}" / f"{k:04}{behind}.png", low)
    return root


# ---- the embedded photographs


def test_photos_are_split_once_and_no_scene_is_in_two_parts():
    data = ready(Photos(**SMALL))
    assert names(data.val) == {"coffee.png"} and names(data.test) == {"china.jpg", "chelsea.png"}
    assert len(names(data.train)) == 12 and {"motorcycle_left.png", "motorcycle_right.png"} <= names(data.train)
    assert len(names(data.train) | names(data.val) | names(data.test)) == 15
    for number, size in enumerate(data.train.photographs.sizes):
        width, height = size[0]
        assert data.train.photographs.kept(number)[0].shape == (height, width, 3) and min(width, height) >= 300


def test_a_batch_of_photos():
    data = ready(Photos(batch_size=4, held_out=8))
    assert data.event_shape == (3, 48, 48) and data.context == ("low",) and data.classes == {}
    for batch in (whole(data.train, 4), whole(data.val, 4), whole(data.test, 4)):
        assert {name: tuple(value.shape) for name, value in batch.items()} == {
            "data": (4, 3, 48, 48),
            "low": (4, 3, 12, 12),
        }
        for value in batch.values():
            assert value.dtype == torch.float32 and value.abs().max() <= 1 and torch.equal(value, eight_bits(value))
        assert torch.equal(batch["low"], shrunk(batch["data"], 4))
    conditions = data.conditions(10)
    assert list(conditions) == ["low"] and torch.equal(conditions["low"], data.test[torch.arange(10) % 8]["low"])
    assert torch.equal(data.real(10)["data"][8:], data.test[torch.arange(2)]["data"])


def test_photos_without_their_packages(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"coffee.png .*: pip install 'scikit-image>=0.22' scikit-learn, or give"):
        module.shipped(["coffee.png"])
    with pytest.raises(ValueError, match="crop must be at most 300, got 304 .the smallest photograph"):
        Photos(crop=304)


# ---- degradations


@pytest.mark.parametrize("degradation", DEGRADATIONS)
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_every_degradation_at_every_scale(degradation, scale):
    data = ready(Photos(scale=scale, degradation=degradation, crop=48, held_out=2))
    one, two = (ready(Photos(scale=scale, degradation=degradation, crop=48, held_out=2)) for _ in range(2))
    batch = data.train[torch.tensor([5, 9])]
    assert batch["low"].shape == (2, 3, 48 // scale, 48 // scale)
    assert torch.equal(batch["low"], eight_bits(batch["low"]))
    alone = torch.cat([one.train[torch.tensor([i])]["low"] for i in (5, 9)])
    assert torch.equal(alone, batch["low"]) and torch.equal(two.val[torch.tensor([1])]["low"], data.val[[1]]["low"])
    assert torch.equal(batch["low"], shrunk(batch["data"], scale)) == (degradation == "bicubic")


def test_squares_are_degraded_by_their_seeds():
    data = Photos(degradation="realesrgan_light")
    image = torch.from_numpy(texture(48, 48)).movedim(-1, 0)[None].float() / 127.5 - 1
    low = data.finish([image.expand(3, -1, -1, -1)], [1, 2, 1])["low"]
    assert torch.equal(low[0], low[2]) and not torch.equal(low[0], low[1])


def check_tower(degradation="realesrgan_light"):
    data = Photos(scale=8, tower=[2, 4], degradation=degradation)
    image = torch.from_numpy(texture(48, 48)).movedim(-1, 0)[None].float() / 127.5 - 1
    batch = data.finish([image], [7])
    assert list(batch) == ["data", "low_2", "low_4", "low"] and data.context == ("low",)
    assert torch.equal(batch["low_2"], DEGRADATIONS[degradation](image, 2, [7]))
    assert torch.equal(batch["low_4"], shrunk(batch["low_2"], 2))
    assert torch.equal(batch["low"], shrunk(batch["low_4"], 2))


@pytest.mark.parametrize("degradation", DEGRADATIONS)
def test_each_observation_of_a_tower_is_made_from_the_one_before(degradation):
    check_tower(degradation)


FINISH = [
    ("each is made from the photograph", "degrade(last,", "degrade(data,"),
    ("each is degraded anew", "if reached == 1 else bicubic", "if True else bicubic"),
    ("the first is not degraded", "reached == 1", "reached == 0"),
]


@pytest.mark.parametrize("says, old, new", FINISH)
def test_the_fault_is_noticed(says, old, new):
    prove(Mutation(says, SuperResolutionData.finish, old, new, check_tower))


def test_a_tower_in_the_loaders():
    data = ready(Photos(scale=4, tower=[2], held_out=4))
    for part in (data.train, data.val, data.test):
        batch = whole(part, 4)
        assert batch["low_2"].shape == (4, 3, 24, 24) and torch.equal(batch["low"], shrunk(batch["low_2"], 2))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"scale": 5}, "scale must be 2, 3, 4 or 8, got 5"),
        ({"scale": "4"}, "scale must be 2, 3, 4 or 8, got 4"),
        ({"crop": 50}, "crop must be divisible by the scale 4, got 50"),
        ({"crop": 8}, "crop must be at least 16, got 8"),
        ({"crop": 48.0}, "crop must be a whole number, got 48.0"),
        ({"degradation": "realesrgan_lite"}, r"one of bicubic, .*, got 'realesrgan_lite' \(did you mean 'realesrgan_l"),
        ({"tower": [4]}, r"tower must be rising scales, each a divisor of the next, below 4, got \[4\]"),
        ({"tower": [3]}, "tower must be rising scales"),
        ({"scale": 8, "tower": [4, 2]}, "tower must be rising scales"),
        ({"tower": [1]}, "tower must be at least 2"),
        ({"held_out": 0}, "held_out must be at least 1, got 0"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        Photos(**settings)


# ---- folders


def test_a_folder_is_split_by_the_hash_of_names(tmp_path):
    data = ready(PhotoFolder(str(folder(tmp_path)), val=0.2, test=0.3, **SMALL))
    parts = [names(part) for part in (data.train, data.val, data.test)]
    assert [len(part) for part in parts] == [5, 2, 3] and len(set.union(*parts)) == 10
    again = ready(PhotoFolder(str(tmp_path), val=0.2, test=0.3, **SMALL))
    assert names(again.test) == parts[2]
    assert names(ready(PhotoFolder(str(tmp_path), val=0.2, test=0.3, seed=1, **SMALL)).test) != parts[2]
    assert torch.equal(whole(again.train)["data"], whole(data.train)["data"])
    assert torch.equal(whole(again.test)["low"], whole(data.test)["low"])


def test_what_cannot_be_used_is_named_and_left_out(tmp_path):
    folder(tmp_path)
    save(tmp_path / "tiny.png", texture(24, 15))
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:-300])
    (tmp_path / "page.jpg").write_text("<!doctype html>")
    save(tmp_path / "scan.tif", texture(24, 20))
    for _ in range(2):  # the second time the folder's index tells it
        with pytest.warns(UserWarning) as said:
            data = ready(PhotoFolder(str(tmp_path), **SMALL))
        (text,) = (str(warning.message) for warning in said)
        for part in (
            "cut.png (",
            "page.jpg (holds none of",
            "tiny.png (has 24 x 15 pixels, too few for a square of 16)",
        ):
            assert part in text
        assert "1 .tif (scan.tif)" in text
        assert len(names(data.train) | names(data.val) | names(data.test)) == 10
    assert (tmp_path / ".distillkit-photos.json").is_file()


def test_an_absurdly_large_photograph_is_never_decoded(tmp_path, monkeypatch):
    folder(tmp_path, 3)
    monkeypatch.setattr("domains.image.reading.MOST_PIXELS", 25 * 20)
    with pytest.warns(UserWarning, match="left out: 2.png .has 26 x 20 pixels, more than 500: shrink it"):
        pytest.raises(ValueError, ready, PhotoFolder(str(tmp_path), **SMALL))


def test_a_photograph_that_stands_upright_by_its_camera_is_large_enough(tmp_path):
    """Its squares come from the photograph as it is shown: the size that is kept is that one."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for k in range(3):
        save(tmp_path / f"{k}.jpg", texture(40, 16, k), exif=exif, quality=95)
    data = ready(PhotoFolder(str(tmp_path), **SMALL))
    assert data.train.photographs.sizes == [([16, 40],)] and whole(data.train)["data"].shape == (6, 3, 16, 16)


def test_folders_without_enough(tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        ready(PhotoFolder(str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="holds no photo that can be used: give a folder with .png, .jpg"):
        ready(PhotoFolder(str(tmp_path)))
    folder(tmp_path, 2)
    with pytest.raises(ValueError, match="holds 2 photographs that can be used, too few to train, .* at least 3"):
        ready(PhotoFolder(str(tmp_path), crop=16))
    with pytest.raises(ValueError, match="holds no photo that can be used.*too few for a square of 48"):
        ready(PhotoFolder(str(tmp_path)))
    with pytest.raises(ValueError, match="val and test are shares and leave nothing"):
        PhotoFolder(str(tmp_path), val=0.5, test=0.5)


# ---- pairs


@pytest.mark.parametrize("behind", ["x4", ""])
def test_pairs_are_found_by_their_names_and_nothing_is_degraded(tmp_path, behind):
    root = pairs(tmp_path, behind=behind)
    data = ready(PhotoPairs(str(root), **SMALL))
    other = ready(PhotoPairs(high=str(root / "HR"), low=str(root / "LR" / "x4"), **SMALL))
    assert sum(len(part.photographs) for part in (data.train, data.val, data.test)) == 6
    for part in ("train", "val", "test"):
        batch = whole(getattr(data, part))
        assert torch.equal(batch["low"], whole(getattr(other, part))["low"])
        assert batch["data"].shape == (6, 3, 16, 16) and batch["low"].shape == (6, 3, 4, 4)
        pixel = {tuple(rows[:2]) for rows in _corners(batch)}  # of the corner, by the turn of the square
        assert pixel <= {(0, 0), (0, 3), (3, 0), (3, 3)} and (part == "train" or pixel == {(0, 0)})


def _corners(batch):
    """Yields for each square the place in all its blocks of 4 x 4 that the observation shows."""
    blocks = batch["data"].unfold(2, 4, 4).unfold(3, 4, 4)  # [n, 3, 4, 4, 4, 4]
    for square, low in zip(blocks, batch["low"], strict=True):
        (place,) = (square == low[..., None, None]).all(0).all(0).all(0).nonzero().tolist()
        yield place


def test_pairs_of_scale_two_of_div2k_with_its_capital(tmp_path, monkeypatch):
    root = pairs(tmp_path, scale=2, behind="x2")
    (root / "LR" / "x2").rename(root / "LR" / "X2")
    monkeypatch.setenv("HOME", str(root.parent))
    for path in (str(root), f"~/{root.name}"):
        data = ready(PhotoPairs(path, scale=2, **SMALL))
        assert whole(data.train)["low"].shape == (6, 3, 8, 8)


def test_pairs_that_do_not_fit_are_named_and_left_out(tmp_path):
    root = pairs(tmp_path, 12)
    high, low = root / "HR", root / "LR" / "x4"
    (low / "0000x4.png").unlink()
    save(low / "0001.png", texture(7, 5))
    save(high / "0002.jpg", texture(28, 20))
    save(high / "0003.png", texture(32, 20))
    save(high / "0004.png", texture(27, 20))
    (low / "0005x4.png").write_bytes(b"")
    save(high / "0006.png", texture(60, 15))
    save(low / "0006x4.png", texture(15, 3))
    save(low / "9999.png", texture(7, 5))
    save(low / "0007x2.png", texture(7, 5))
    with pytest.warns(UserWarning) as said:
        data = ready(PhotoPairs(str(root), **SMALL))
    first, second = (str(warning.message) for warning in said)
    for part in (
        f"0000.png (has no observation in {low})",
        "0001.png (its name is not that of one pair: 0001.png, 0001.png, 0001x4.png)",
        "0002.jpg (its name is not that of one pair: 0002.jpg, 0002.png, 0002x4.png)",
        "0003.png (has 32 x 20 pixels, not 4 times the 7 x 5 of its observation)",
        "0004.png (has 27 x 20 pixels, not 4 times the 7 x 5 of its observation)",
        "0005.png (its observation 0005x4.png holds none of PNG",
        "0006.png (has 60 x 12 pixels, too few for a square of 16)",
    ):
        assert part in first
    assert second.startswith(f"{low}: left out: 0007x2.png (belongs to no file in {high}), 9999.png (belongs")
    assert sum(len(part.photographs) for part in (data.train, data.val, data.test)) == 5


def test_pairs_without_a_partner_or_a_folder(tmp_path):
    root = pairs(tmp_path)
    with pytest.raises(ValueError, match="HR holds no photo that can be used.*0000.png .has no observation in .*other"):
        ready(PhotoPairs(high=str(root / "HR"), low=str(save(tmp_path / "other" / "a.png", texture(8, 8)).parent)))
    with pytest.raises(ValueError, match="x8 is not a folder"):
        ready(PhotoPairs(str(root), scale=8))
    for given in ({}, {"high": "a"}, {"low": "a"}, {"path": "a", "high": "a", "low": "b"}):
        with pytest.raises(ValueError, match="give data.high and data.low, the two folders, or data.path, the folder"):
            PhotoPairs(**given)
    for given in ({"degradation": "realesrgan"}, {"tower": [2]}):
        with pytest.raises(ValueError, match=f"{[*given][0]} has no meaning for pairs"):
            PhotoPairs(str(root), **given)


# ---- all of them


@pytest.mark.parametrize("kind", ["photos", "photo_folder", "photo_pairs"])
def test_a_run_takes_two_steps(tmp_path, kind):
    data = {
        "photos": lambda: Photos(**SMALL),
        "photo_folder": lambda: PhotoFolder(str(folder(tmp_path)), **SMALL),
        "photo_pairs": lambda: PhotoPairs(str(pairs(tmp_path)), **SMALL),
    }[kind]()
    network = PatchNet(data.event_shape, width=8, depth=1)
    model = Pretrain(network, ResShift(), [3, 16, 16], context=["low"], codec=Upscale(4), sigma_data=0.1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(2).fit(model, datamodule=data)
    assert any(not torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.skipif(not KODAK.is_dir(), reason="DISTILLKIT_TEST_DATA names no folder with it")
def test_kodak(tmp_path):
    (tmp_path / "kodak").symlink_to(KODAK)  # the index may be written
    data = ready(PhotoFolder(str(tmp_path), held_out=8))
    assert [len(part.photographs) for part in (data.train, data.val, data.test)] == [20, 2, 2]
    batch = whole(data.train)
    assert batch["data"].std() > 0.2 and batch["low"].isfinite().all()


@pytest.mark.parametrize(
    "words, said",
    [({"lpips": "missing.pth"}, "no weights at missing.pth"), ({"no_reference": ["musiq"]}, "pip install pyiqa")],
)
def test_what_a_run_cannot_be_measured_with_is_told_before_it_trains(words, said):
    with pytest.raises(ValueError, match=said):
        Photos(**SMALL, **words).setup("fit")


def test_observations_of_another_scale_are_named_with_the_word_to_say(tmp_path):
    pairs(tmp_path)
    with pytest.raises(
        ValueError, match="0000.png .has no observation in .* at this scale, but at 4: say data.scale=4"
    ):
        PhotoPairs(high=str(tmp_path / "HR"), low=str(tmp_path / "LR" / "x4"), scale=2, **SMALL).load()
