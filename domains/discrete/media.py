"""Pictures of tokens (text, strips of colour, bitmaps), and curves of quality against steps."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from distillkit.files import write_text
from domains.discrete.evaluation import as_images
from domains.image import media

COLUMN = 64  # characters of a line


class Pages:
    """Text as a page of monospaced lines.

    Args:
        spell: tokens [N, d] to strings.
    """

    def __init__(self, spell: Callable[[Tensor], list[str]]):
        self.spell = spell

    def picture(self, samples: Tensor, cond: dict[str, Tensor] | None = None) -> Image.Image:
        """Samples [N, d], one below the other, at most 16."""
        return page(self._lines(samples[:16]))

    def compare(self, rows: dict[str, Tensor], cond: dict[str, Tensor] | None = None) -> Image.Image:
        """Four samples of each model under its name."""
        if not rows:
            raise ValueError("there is nothing to compare; give at least one set of samples")
        return page([line for name, samples in rows.items() for line in (f"[{name}]", *self._lines(samples[:4]), "")])

    def save(self, samples: Tensor, cond: dict[str, Tensor] | None, folder: Path) -> list[Path]:
        """One .txt file, a sample a line."""
        return [write_text(Path(folder) / "samples.txt", "\n".join(self._texts(samples)) + "\n")]

    def _texts(self, samples: Tensor) -> list[str]:
        """Each in one line."""
        return ["\u23ce".join(text.splitlines()) for text in self.spell(samples)]

    def _lines(self, samples: Tensor) -> list[str]:
        return [text[i : i + COLUMN] for text in self._texts(samples) for i in range(0, len(text), COLUMN)]


class Strips:
    """Each sequence as a row of coloured cells, dark for token 0 and bright for the last.

    Args:
        num_tokens: S.
    """

    def __init__(self, num_tokens: int):
        self.num_tokens = num_tokens

    def picture(self, samples: Tensor, cond: dict[str, Tensor] | None = None) -> Image.Image:
        """Samples [N, d]; a row has at most 32 of them."""
        from matplotlib import colormaps

        shade = samples[:32].double() / max(1, self.num_tokens - 1)
        pixels = torch.from_numpy(colormaps["viridis"](shade.numpy(), bytes=True)[..., :3].copy())
        zoom = max(2, 384 // samples.shape[1])
        size = (pixels.shape[1] * zoom, pixels.shape[0] * min(zoom, 12))
        return Image.fromarray(pixels.numpy()).resize(size, Image.Resampling.NEAREST)

    def compare(self, rows: dict[str, Tensor], cond: dict[str, Tensor] | None = None) -> Image.Image:
        """Eight samples of each model under its name."""
        if not rows:
            raise ValueError("there is nothing to compare; give at least one set of samples")
        strips = {name: self.picture(samples[:8]) for name, samples in rows.items()}
        sheet = Image.new(
            "RGB", (max(s.width for s in strips.values()), sum(s.height + 20 for s in strips.values())), "white"
        )
        pen, top = ImageDraw.Draw(sheet), 0
        for name, strip in strips.items():
            pen.text((2, top + 4), name, fill="black", font=ImageFont.load_default())
            sheet.paste(strip, (0, top + 20))
            top += strip.height + 20
        return sheet

    def save(self, samples: Tensor, cond: dict[str, Tensor] | None, folder: Path) -> list[Path]:
        """One .txt file, the numbers of a sample in a line."""
        lines = (" ".join(map(str, row)) for row in samples.tolist())
        return [write_text(Path(folder) / "samples.txt", "\n".join(lines) + "\n")]


class Bitmaps:
    """Digits of tokens as images."""

    @staticmethod
    def picture(samples: Tensor, cond: dict[str, Tensor] | None = None) -> Image.Image:
        """Samples [N, 64] as a grid."""
        return media.picture(as_images(samples), cond)

    @staticmethod
    def compare(rows: dict[str, Tensor], cond: dict[str, Tensor] | None = None) -> Image.Image:
        """One labelled row for each set of samples."""
        return media.compare({name: as_images(samples) for name, samples in rows.items()}, cond)


def page(lines: Sequence[str]) -> Image.Image:
    """Lines of text as a picture, black on white."""
    font = ImageFont.load_default(14)
    cell, height = int(font.getlength("m")), 18  # the default face is not monospaced: each character has a cell
    width = max((len(line) for line in lines), default=1)
    sheet = Image.new("RGB", (width * cell + 16, len(lines) * height + 16), "white")
    pen = ImageDraw.Draw(sheet)
    for row, line in enumerate(lines):
        for column, symbol in enumerate(line):
            place = (8 + column * cell + cell // 2, 8 + row * height + height // 2)
            pen.text(place, symbol, fill="black", font=font, anchor="mm")
    return sheet


def curves(results: Mapping[str, Mapping[int, float]], metric: str, real: float | None = None) -> Image.Image:
    """A metric against network evaluations, both logarithmic: one line for each sampler.

    Args:
        results: sampler to {network evaluations: value}.
        metric: its name.
        real: the value of real data, drawn dashed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not results:
        raise ValueError("there is nothing to draw; give at least one sampler")
    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for name, values in results.items():
        axis.plot(*zip(*sorted(values.items()), strict=True), marker="o", markersize=4, label=name)
    if real is not None:
        axis.axhline(real, color="black", linestyle="--", linewidth=1, label="real data")
    ticks = sorted({calls for values in results.values() for calls in values})
    positive = all(value > 0 for values in results.values() for value in values.values())
    axis.set(xscale="log", yscale="log" if positive else "linear", xlabel="network calls", ylabel=metric)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.xaxis.minorticks_off()
    axis.legend(fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")
