"""Data that are read from files: workers get copies that read the same."""

import inspect
import json
import pickle
import pkgutil
import tarfile
from importlib import import_module
from io import BytesIO

import numpy as np
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("av")

import tiny_audio
import tiny_pipelines
import torch
from helpers import same
from photo_files import save, texture

import domains
from distillkit.data import DistillData, StepLoader
from domains.image.captioned import Captioned, HuggingFace, WebDataset
from domains.image.data import ImageFolder
from domains.music.captioned import Captioned as CaptionedSounds
from domains.music.folder import AudioFolder
from domains.scene.realestate import RealEstate
from domains.super_resolution.data import PhotoFolder, PhotoPairs, Photos
from domains.video.folder import VideoFolder
from domains.video.media import save_mp4
from tests.domains.image.test_captioned import Rows, pretend_datasets
from tests.domains.scene.test_realestate import rooms, scenes_of

__all__ = ["rooms"]  # a fixture
TEXTS = ["a dog", "a cat"]
SIZE = {"height": 16, "width": 24}


@pytest.fixture(scope="module")
def made(tmp_path_factory, rooms) -> dict[type, DistillData]:
    """A small one of every data module that takes workers."""
    room = tmp_path_factory.mktemp("files")
    tiny_pipelines.stable_diffusion(room / "pipeline")
    tiny_audio.stable_audio(room / "audio_pipeline")
    tiny_audio.captioned(room / "sounds")
    (room / "chunks").mkdir()
    torch.save(scenes_of(rooms), room / "chunks/000000.torch")
    (room / "videos").mkdir()
    for i in range(8):
        save(room / f"images/{i % 2}/{i}.png", texture(24, 20, i))
        (room / f"images/{i % 2}/{i}.txt").write_text(TEXTS[i % 2])
        save(room / f"pairs/HR/{i}.png", texture(64, 64, i))
        save(room / f"pairs/LR/x4/{i}.png", texture(16, 16, i))
        save_mp4([np.full((16, 24, 3), 20 * i + k, np.uint8) for k in range(20)], room / f"videos/{i}.mp4", 10)
    with tarfile.open(room / "shards.tar", "w") as tar:
        for i in range(8):
            for name, content in (
                (f"{i}.png", (room / f"images/{i % 2}/{i}.png").read_bytes()),
                (f"{i}.json", json.dumps({"text": TEXTS[i % 2]}).encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, BytesIO(content))
    (room / "shards").mkdir()
    (room / "shards.tar").rename(room / "shards/0.tar")
    pipeline = str(room / "pipeline")
    found = [
        ImageFolder(f"{room}/images", resolution=8, flip=True),
        Captioned(f"{room}/images", pipeline, SIZE),
        WebDataset(f"{room}/shards", pipeline, SIZE),
        PhotoFolder(f"{room}/pairs/HR", crop=16, degradation="realesrgan"),
        PhotoPairs(f"{room}/pairs", crop=16),
        Photos(crop=16),
        VideoFolder(f"{room}/videos", frames=4, fps=5.0, resolution=8, given=1),
        AudioFolder(f"{room}/sounds", rate=16_000, frames=2, window=128, given=4),
        CaptionedSounds(f"{room}/sounds", f"{room}/audio_pipeline", {"seconds": 0.006}),
        RealEstate(f"{room}/chunks", frames=4),
    ]
    with pytest.MonkeyPatch.context() as patch:
        pictures = [{"bytes": (room / f"images/{i % 2}/{i}.png").read_bytes(), "path": None} for i in range(8)]
        (room / "saved").mkdir()
        pretend_datasets(patch, room / "saved", Rows({"image": pictures, "text": TEXTS * 4}))
        found.append(HuggingFace(f"{room}/saved", pipeline, SIZE))
        for data in found:
            data.trainer = lambda: None  # which does not pickle
            data.setup()
    return {type(data): data for data in found}


KINDS = [
    ImageFolder, Captioned, WebDataset, HuggingFace, PhotoFolder, PhotoPairs, Photos, VideoFolder, AudioFolder,
    CaptionedSounds, RealEstate,
]  # fmt: skip


def test_these_are_all_data_that_take_workers():
    for package in pkgutil.iter_modules(domains.__path__, "domains."):
        for file in pkgutil.iter_modules(import_module(package.name).__path__, f"{package.name}."):
            if file.name.rpartition(".")[2] in ("data", "captioned", "folder", "realestate", "latents", "range_data"):
                import_module(file.name)

    def takes(kind: type) -> bool:
        chain = [each for each in kind.__mro__ if "__init__" in vars(each)]
        return any("workers" in inspect.signature(each.__init__).parameters for each in chain)

    found, left = set(), [DistillData]
    while left:
        left += (kind := left.pop()).__subclasses__()
        if takes(kind) and kind.__module__.startswith("domains.") and not kind.__subclasses__():
            found.add(kind)
    assert found == {*KINDS}


@pytest.mark.filterwarnings("ignore:there are no data.renders")
@pytest.mark.parametrize("kind", KINDS)
def test_copies_read_the_same(kind, made):
    data = made[kind]
    for part in (data.train, data.val):
        rows = torch.arange(len(part))[:6].flip(0)
        assert same(pickle.loads(pickle.dumps(part))[rows], part[rows])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_workers_read_the_same(kind, made):
    """Real ones, which begin as new interpreters."""
    batches = []
    for workers in (0, 2):
        loader = StepLoader(made[kind].train, 2, seed=1, workers=workers)
        stream = iter(loader)
        batches.append([next(stream) for _ in range(min(3, len(loader)))])
        stream.close()
    assert same(*batches)
