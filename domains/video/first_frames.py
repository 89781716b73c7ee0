"""First frames from a folder of images with captions. H, W: height and width of a clip."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distillkit.data import Batch
from distillkit.pipelines.prompts import COLUMNS
from domains.image.reading import SUFFIXES, decoded, from_uint8

CAPTIONS = "captions.csv"


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
    """The images of a folder with the numbers of their captions among the prompts.

    A file `captions.csv` names them in its column `file`, else each image has its caption in a .txt
    file of the same name beside it.

    Raises:
        ValueError: it is no folder, or an image or a caption is missing.
    """
    if not folder.is_dir():
        raise ValueError(
            f"image to video needs a first frame for each prompt, which {folder} does not give: say data.path=FOLDER with "
            f"images and a captions.csv (columns file and caption)"
        )
    said = _table(folder) if (folder / CAPTIONS).is_file() else _beside(folder)
    if lacking := [file for file in said if not file.is_file()]:
        raise ValueError(f"there is no image {lacking[0]}, which has a caption: put it back, or remove the caption")
    number = {text: i for i, text in enumerate(prompts)}
    return [(file, number[text]) for file, text in said.items()]


def _table(folder: Path) -> dict[Path, str]:
    """The captions of captions.csv by image."""
    with (folder / CAPTIONS).open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    column = next((name for name in COLUMNS if rows and name in rows[0]), "caption")
    if not rows or "file" not in rows[0]:
        raise ValueError(f"{folder / CAPTIONS} must have a first line `file,{column}` and a line for every image")
    return {folder / row["file"]: row[column].strip() for row in rows if (row[column] or "").strip()}


def _beside(folder: Path) -> dict[Path, str]:
    """The captions in .txt files by the image of the same name."""
    found = {}
    for file in sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES):
        caption = file.with_suffix(".txt")
        if not caption.is_file() or not (text := caption.read_text(encoding="utf-8").strip()):
            raise ValueError(f"{file} has no caption: write one into {caption.name} beside it")
        found[file] = text
    return found
