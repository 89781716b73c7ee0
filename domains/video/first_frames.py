"""First frames from a folder of images with captions. H, W: height and width of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distillkit.data import Batch
from distillkit.pipelines.captions import CAPTIONS, alike, captions_of, numbered, said, table
from distillkit.sources import Source
from domains.image.reading import SUFFIXES, decoded, from_uint8


class FirstFrames:
    """Images and the numbers of their captions: `frames[indices]` reads these as a batch.

    A batch holds `prompt` int64 [B] and `image` float32 [B, 3, H, W] in [-1, 1]. An image is
    resized until it covers H x W (antialiased bicubic), and its centre is kept.

    Args:
        pairs: an image file and the number of its caption, for each sample.
        size: H and W.
    """

    def __init__(self, pairs: Sequence[tuple[Path, int]], size: tuple[int, int]):
        self.files, self.size = [file for file, _ in pairs], size
        self.prompt = torch.tensor([number for _, number in pairs])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, indices: Tensor) -> Batch:
        images = [covering(decoded(self.files[i], 3), self.size) for i in indices.tolist()]
        return {"prompt": self.prompt[indices], "image": from_uint8(np.stack(images), "an image")}

    def at(self, rows: Tensor) -> FirstFrames:
        """Those of these rows."""
        return FirstFrames([(self.files[i], int(self.prompt[i])) for i in rows.tolist()], self.size)


def covering(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """The centre of an image with the sides' ratio of `size`, resized to it: uint8 [H, W, 3]."""
    height, width = size
    scale = min(image.width / width, image.height / height)
    left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
    box = (left, top, left + scale * width, top + scale * height)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))


def captioned(folder: Path, prompts: Sequence[str]) -> list[tuple[Path, int]]:
    """The images of a folder, once for each caption, with its number among the prompts.

    Captions stand where `captions_of` finds them: in a table of the folder, or beside each image.

    Raises:
        ValueError: it is no folder, or an image or a caption is missing.
    """
    if not folder.is_dir():
        raise ValueError(
            f"image to video needs a first frame for each prompt, which {folder} does not give: say data.path=FOLDER with "
            f"images and a captions.csv (columns file and caption)"
        )
    source = Source(folder, SUFFIXES, "image", beside=(*CAPTIONS, ".txt"))
    names = sorted(map(source.name, source.without({})))
    captions = dict(zip(names, captions_of(folder, names), strict=True))
    if (file := table(folder)) is None:
        if lacking := [name for name, texts in captions.items() if not texts]:
            name = Path(lacking[0])
            raise ValueError(
                f"{folder / name} has no caption: write one into {name.with_suffix('.txt').name} beside it"
            )
    else:
        described = [name for name, text in said(file) if text]
        if None in described:
            raise ValueError(f"{file} must have a first line `file,caption` and a line for every image")
        known = {*map(alike, names)}
        if lacking := [name for name in described if alike(name) not in known and not (folder / name).is_file()]:
            raise ValueError(
                f"there is no image {folder / lacking[0]}, which has a caption: put it back, or remove the caption"
            )
    pairs = [(name, text) for name, texts in captions.items() for text in texts]
    numbers = numbered([text for _, text in pairs], prompts, folder)
    return [(folder / name, number) for (name, _), number in zip(pairs, numbers, strict=True)]
