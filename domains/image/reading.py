"""Image files as viewers show them. N: images; C, H, W: channels, height, width."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # that files hold, whatever their suffix says
MOST_PIXELS = 2**26  # of a file: so large an image takes 256 MB
WHITE = (255, 255, 255, 255)
ORIENTATION = 0x0112  # the key in EXIF data
TURNS = {  # by its values: what viewers do
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def opened(path: Path | BinaryIO) -> Image.Image:
    """An image file, or an open one, not yet decoded.

    Raises:
        ValueError: it has too many pixels.
        Exception: Pillow's many.
    """
    try:
        image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError(f"has more than {MOST_PIXELS} pixels: shrink it") from None
    if image.width * image.height > MOST_PIXELS:
        image.close()
        raise ValueError(f"has {image.width} x {image.height} pixels, more than {MOST_PIXELS}: shrink it")
    return image


def decoded(path: Path | BinaryIO, channels: int, name: object = None) -> Image.Image:
    """A file as viewers show it, 8-bit grey or RGB: turned by its EXIF data, `flat`.

    Args:
        path: the file, or an open one.
        channels: 1 or 3.
        name: of an open one, for errors.

    Raises:
        ValueError: it cannot be decoded; names the file.
    """
    try:
        with opened(path) as image:
            return flat(upright(image), channels)
    except Exception as error:  # decoders fail in many ways
        raise ValueError(f"{name or path} cannot be decoded ({why(error)})") from None


def orientation(image: Image.Image) -> int:
    """The orientation in an image's EXIF data, 1 to 8; 1 where it has none, or damaged ones."""
    try:
        found = image.getexif().get(ORIENTATION)
    except Exception:  # of many kinds, while the pixels are whole
        return 1
    return found if found in TURNS else 1


def upright(image: Image.Image) -> Image.Image:
    """An image as viewers show it, turned by its EXIF data.

    Pillow's own way writes the EXIF data anew too, and fails where they hold what it cannot write.
    """
    turn = TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def fault(path: Path) -> str | None:
    """Why an image file cannot be used, or None.

    Decodes the whole file, a JPEG at an eighth of its size.
    """
    try:
        with opened(path) as image:
            image.draft(None, (1, 1))
            image.load()
    except Exception as error:  # decoders fail in many ways
        return why(error)
    return None


def why(error: Exception) -> str:
    """An error of reading an image in words."""
    if isinstance(error, UnidentifiedImageError):
        return f"holds none of {', '.join(FORMATS)}"
    return str(error) or type(error).__name__


def flat(image: Image.Image, channels: int) -> Image.Image:
    """Any picture as 8-bit grey or RGB: 16 bits are scaled down, transparency goes over white."""
    if image.mode.startswith("I"):
        levels = np.asarray(image).clip(0, 65535).astype(np.uint32)
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
    return image.convert("L" if channels == 1 else "RGB")


def cropped(image: Image.Image, height: int, width: int | None = None) -> Image.Image:
    """The centre of an image in the given shape, as large as possible, resized to these pixels.

    It is cut out while it is resized (antialiased bicubic), so that a long thin image is never
    enlarged as a whole.

    Args:
        image: any picture.
        height, width: in pixels; None is a square.
    """
    sides = (width or height, height)
    tight = min((0, 1), key=lambda axis: image.size[axis] / sides[axis])  # the axis of which nothing is cut off
    whole = [
        max(side, round(length * sides[tight] / image.size[tight]))
        for length, side in zip(image.size, sides, strict=True)
    ]  # all of it, to scale
    box = [
        ((full - side) // 2 + shift * side) * length / full
        for shift in (0, 1)
        for side, length, full in zip(sides, image.size, whole, strict=True)
    ]
    return image.resize(sides, Image.Resampling.BICUBIC, box=tuple(box))


def from_uint8(images: np.ndarray, source: str) -> Tensor:
    """uint8 [N, H, W] or [N, H, W, C] as float32 [N, C, H, W] in [-1, 1].

    Transparency goes over white.
    """
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise ValueError(f"{source} holds NaN or infinity among its pixels; mend the file")
    if images.dtype != np.uint8:
        raise ValueError(
            f"{source} holds pixels of type {images.dtype}, which has no known range; save them as uint8, 0 to 255"
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or 0 in images.shape:
        shape = list(images.shape)
        raise ValueError(f"{source} must hold images [N, H, W] or [N, H, W, C] with C = 1, 3 or 4, got {shape}")
    x_NCHW = torch.from_numpy(images.copy()).movedim(-1, 1).float()
    if x_NCHW.shape[1] == 4:
        x_NCHW = 255 + (x_NCHW[:, :3] - 255) * (x_NCHW[:, 3:] / 255)
    return (x_NCHW / 127.5 - 1).contiguous()
