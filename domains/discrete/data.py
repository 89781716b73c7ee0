"""Discrete data: `data` [B, d] int64 in 0 .. S-1 and, where there are classes, `label` [B] int64.

N: sequences; B: batch; d: length of a sequence; S: number of tokens, not counting a mask.
"""

from __future__ import annotations

import codecs
import hashlib
import re
import unicodedata
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillkit import checks
from distillkit.data import DistillData, TensorData
from distillkit.discrete.teacher import DiscreteTeacher
from distillkit.errors import optional
from distillkit.sources import Source
from domains.discrete.teacher import World

ALPHABET = " abcdefghijklmnopqrstuvwxyz"  # of text8: whatever is not a letter is a space
PARAGRAPH = 40  # characters of the shortest paragraph that counts as prose
LONGEST = (8192, 4096, 2048, 1024, 512, 256, 128)  # characters of a paragraph: shorter ones where a text has but few
PIECES = 100  # that there must be at least where paragraphs are cut, for each part to have its share
MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32-le", codecs.BOM_UTF32_BE: "utf-32-be"} | {
    codecs.BOM_UTF16_LE: "utf-16-le",  # a mark of UTF-32 begins with it
    codecs.BOM_UTF16_BE: "utf-16-be",
}


class DiscreteData(DistillData):
    """Base of all discrete data.

    Attributes:
        num_tokens: S.
    """

    domain = "discrete"
    provides = frozenset({"data"})
    pictured = 16
    num_tokens: int


class WorldData(DiscreteData):
    """Exact draws from a world whose law is known.

    Args:
        teacher: the world.
        num_samples: of the training set; validation and test have 1000 each.
        batch_size: sequences of one micro-batch.
        seed: of the draws.

    Raises:
        ValueError: the teacher is no world, so the law of the data is not known.
    """

    def __init__(self, teacher: DiscreteTeacher, num_samples: int = 16_384, batch_size: int = 256, seed: int = 0):
        super().__init__(batch_size)
        checks.whole(1, num_samples=num_samples)
        checks.seed(seed=seed)
        if not isinstance(teacher, World):
            raise ValueError(
                f"the law of {teacher.id} is not known: name a world for the data, such as "
                f"'data.teacher={{_target_: domains.discrete.teacher.Potts}}'"
            )
        self.teacher, self.num_samples, self.seed = teacher, num_samples, seed
        self.event_shape, self.classes, self.num_tokens = teacher.event_shape, {}, teacher.process.num_tokens

    def load(self) -> tuple[TensorData, TensorData, TensorData]:
        generator = torch.Generator().manual_seed(self.seed)
        law = self.teacher.law
        return tuple(TensorData({"data": law.draw(num, generator)}) for num in (self.num_samples, 1000, 1000))

    def build_evaluator(self, held_out: Sequence[Any]) -> Any:
        from domains.discrete.evaluation import WorldEvaluator

        return WorldEvaluator(self.teacher)

    @property
    def media(self) -> Any:
        from domains.discrete.media import Strips

        return Strips(self.num_tokens)


class Prose(DiscreteData):
    """Paragraphs as tokens, in blocks.

    Paragraphs end at empty lines, and in a file without any at the ends of lines. Those that are
    too short to be prose, and repeated ones, are left out; very long ones are cut, if need be
    shorter until there are enough for each part. A hash of a paragraph decides which part it
    belongs to (8 : 1 : 1), so no paragraph is in two parts, and none changes its part when others
    come or go.

    A kind says what its `paragraphs` are, how they become `blocks`, and how to `spell` tokens.

    Attributes:
        space: the character that long paragraphs are cut at.

    Args:
        path: a text file, or a folder whose .txt files are read in alphabetical order, in UTF-8, or
            in UTF-16 or UTF-32 with a mark; None is the prose inside CPython's own documentation
            module (`pydoc_data.topics`, which differs a little between versions of Python).
        length: d, tokens of a block.
        num_tokens: S.
        batch_size: blocks of one micro-batch.
    """

    space = " "

    def __init__(self, path: str | None, length: int, num_tokens: int, batch_size: int):
        super().__init__(batch_size)
        checks.whole(2, length=length, num_tokens=num_tokens)
        self.path, self.length, self.num_tokens = path, length, num_tokens
        self.event_shape, self.classes = (length,), {}

    def load(self) -> tuple[TensorData, TensorData, TensorData]:
        paragraphs = self.paragraphs(source_text(self.path))
        for longest in LONGEST:
            pieces = dict.fromkeys(piece for text in paragraphs for piece in cut_text(text, longest, self.space))
            parts: list[list[str]] = [[] for _ in range(10)]
            for piece in pieces:
                digest = hashlib.blake2b(piece.encode(), digest_size=8).digest()
                parts[int.from_bytes(digest, "little") % 10].append(piece)
            *train, val, test = parts
            found = [self.blocks(part) for part in (sum(train, []), val, test)]
            few = len(paragraphs) < len(pieces) < PIECES
            if min(map(len, found)) >= 2 and not few:
                break
        if min(map(len, found)) >= 2:
            return tuple(TensorData({"data": part}) for part in found)
        sizes = " / ".join(str(len(part)) for part in found)
        raise ValueError(
            f"{self.path or 'the embedded prose'} gives {sizes} blocks of {self.length} tokens for training, validation "
            f"and test, but each needs two: give more text or a smaller data.length"
        )

    @abstractmethod
    def paragraphs(self, text: str) -> list[str]:
        """The different paragraphs of a text whose paragraphs end at empty lines, in order."""

    @abstractmethod
    def blocks(self, parts: list[str]) -> Tensor:
        """Paragraphs as tokens [N, length] int64."""

    @abstractmethod
    def spell(self, tokens: Tensor) -> list[str]:
        """Tokens [N, d] as strings."""

    def build_evaluator(self, held_out: Sequence[Any]) -> Any:
        from domains.discrete.evaluation import TextEvaluator

        return TextEvaluator(self.train, held_out, self.num_tokens)

    @property
    def media(self) -> Any:
        from domains.discrete.media import Pages

        return Pages(self.spell)


class TextData(Prose):
    """Characters of English prose, in blocks.

    Letters that the alphabet lacks are lowered and lose their accents, as far as it takes; every
    run of other characters becomes one space.

    Args:
        path, batch_size: as in `Prose`.
        length: d, characters of a block.
        alphabet: the symbols; the first stands for everything that is not among them.
    """

    def __init__(self, path: str | None = None, length: int = 64, alphabet: str = ALPHABET, batch_size: int = 64):
        alphabet = unicodedata.normalize("NFC", alphabet)
        if len(set(alphabet)) != len(alphabet) or len(alphabet) < 2:
            raise ValueError(f"data.alphabet needs at least two symbols, none twice, got {alphabet!r}")
        super().__init__(path, length, len(alphabet), batch_size)
        self.alphabet, self.space = alphabet, alphabet[0]

    def paragraphs(self, text: str) -> list[str]:
        return paragraphs(text, self.alphabet)

    def blocks(self, parts: list[str]) -> Tensor:
        return blocks(parts, self.length, self.alphabet)

    def spell(self, tokens: Tensor) -> list[str]:
        return spell(tokens, self.alphabet)


class TokenData(Prose):
    """Text as the tokens of a tokeniser, for published models and for teachers of your own.

    Paragraphs keep their spelling and are joined by empty lines. Needs the package tokenizers
    (extra `hf`).

    Args:
        tokenizer: a `tokenizer.json`, or a folder that holds one.
        num_tokens: S, the tokens of the model, a mask at the end not counted: 50257 with GPT-2's,
            which SEDD and MDLM use. May be more than the tokeniser knows.
        path, length, batch_size: as in `TextData`; length counts tokens.
    """

    def __init__(self, tokenizer: str, num_tokens: int, path: str | None = None, length: int = 64, batch_size: int = 8):
        super().__init__(path, length, num_tokens, batch_size)
        self.tokenizer = read_tokenizer(tokenizer)

    def paragraphs(self, text: str) -> list[str]:
        found = (part.strip() for part in re.split(r"\n\s*\n", text))
        return list(dict.fromkeys(part for part in found if len(part) >= PARAGRAPH))

    def blocks(self, parts: list[str]) -> Tensor:
        tokens = torch.tensor(self.tokenizer.encode("\n\n".join(parts), add_special_tokens=False).ids, dtype=torch.long)
        if len(tokens) and int(tokens.max()) >= self.num_tokens:
            raise ValueError(
                f"the tokeniser gives token {int(tokens.max())}, but data.num_tokens={self.num_tokens}: give the number of the "
                f"model's tokens"
            )
        return cut(tokens, self.length)

    def spell(self, tokens: Tensor) -> list[str]:
        return self.tokenizer.decode_batch(tokens.tolist(), skip_special_tokens=False)


def read_tokenizer(path: str) -> Any:
    """The tokeniser of a tokenizer.json."""
    tokenizers = optional("tokenizers", "hf", "data=tokens needs")
    file = Path(path).expanduser()
    file = file / "tokenizer.json" if file.is_dir() else file
    if not file.is_file():
        raise ValueError(f"{file} does not exist: give data.tokenizer=/path/to/tokenizer.json, or its folder")
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing more special
        raise ValueError(f"{file} is no tokeniser that the package tokenizers reads: {error}") from None


class DigitData(DiscreteData):
    """Scikit-learn's handwritten digits in black and white, ten classes.

    A sample has d = 64 tokens row by row, 1 where grey >= 8 of 16. The split and the metrics are
    those of the image domain.
    """

    pictured = 64

    def load(self) -> tuple[TensorData, TensorData, TensorData]:
        from domains.image.data import Digits

        self.event_shape, self.classes, self.num_tokens = (64,), {"label": 10}, 2
        return tuple(
            TensorData({"data": (part.tensors["data"].flatten(1) >= 0).long(), "label": part.tensors["label"]})
            for part in Digits().load()
        )

    def build_evaluator(self, held_out: Sequence[Any]) -> Any:
        from domains.discrete.evaluation import DigitEvaluator

        return DigitEvaluator(self.train, held_out, self.classes)

    @property
    def media(self) -> Any:
        from domains.discrete.media import Bitmaps

        return Bitmaps


def source_text(path: str | None) -> str:
    """The text at a path, or CPython's own documentation; paragraphs end at empty lines.

    Files of a folder that are no text are named in a warning and left out.

    Raises:
        ValueError: there is none, or the only file is no text.
    """
    if path is None:
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name] for name in sorted(topics))
    file = Path(path).expanduser()
    if file.is_file():
        try:
            return with_paragraphs(read_text(file))
        except ValueError as error:
            raise ValueError(f"{path} {error}") from None
    if not file.is_dir():
        raise ValueError(f"{path} is no text file and no folder with .txt files; give data.path=/path/to/text")
    source = Source(path, (".txt",), "text")
    texts, faults = {}, {}
    for file in source.files:
        try:
            texts[file] = with_paragraphs(read_text(file))
        except ValueError as error:
            faults[file] = str(error)
    return "\n\n".join(texts[file] for file in source.without(faults))


def read_text(file: Path) -> str:
    """The text in a file; lines end with a line feed.

    Raises:
        ValueError: it is no text in UTF-8, or in UTF-16 or UTF-32 with a mark. Says what is wrong,
            not of which file.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    mark = next((mark for mark in MARKS if data.startswith(mark)), b"")
    encoding = MARKS.get(mark, "utf-8")
    try:
        text = data.removeprefix(mark).decode(encoding)
    except UnicodeDecodeError as error:
        what = f"{error.reason} at byte {error.start + len(mark)}{f' of {encoding}' if mark else ''}"
        raise ValueError(f"is not UTF-8 text ({what}): convert it first") from None
    if "\0" in text:
        raise ValueError("is not UTF-8 text (it holds zeros, as UTF-16 without a mark does): convert it first")
    if not text.strip():
        raise ValueError("is empty")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def with_paragraphs(text: str) -> str:
    """A text in which paragraphs end at empty lines.

    Where it has no empty line, each line long enough to be prose becomes a paragraph.
    """
    if re.search(r"\n\s*\n", text.strip()):
        return text
    return "\n\n".join(gathered(text.strip().split("\n"), PARAGRAPH))


def gathered(lines: Iterable[str], shortest: int) -> list[str]:
    """Lines; a short one is joined to those that follow it."""
    found, short = [], ""
    for line in lines:
        short = f"{short}\n{line}" if short else line
        if len(short) >= shortest:
            found.append(short)
            short = ""
    return [*found, short] if short else found


def cut_text(text: str, longest: int, space: str) -> list[str]:
    """A text in pieces of `longest` characters at most, cut at spaces where there are any."""
    found, start = [], 0
    while len(text) - start > longest:
        end = text.rfind(space, start + longest // 2, start + longest + 1)
        found.append(text[start : end if end > 0 else start + longest])
        start = end + 1 if end > 0 else start + longest
    return [*found, text[start:]]


def paragraphs(text: str, alphabet: str = ALPHABET) -> list[str]:
    """Different paragraphs of prose, in order, spelt with the alphabet."""
    found = (normalise(part, alphabet) for part in re.split(r"\n\s*\n", text))
    return list(dict.fromkeys(part for part in found if len(part) >= PARAGRAPH))


def normalise(text: str, alphabet: str = ALPHABET) -> str:
    """Text spelt with an alphabet, each run of foreign characters one filler."""
    text = unicodedata.normalize("NFC", text)
    plain = text.translate({ord(c): spelt(c, alphabet) for c in set(text)})
    filler, *symbols = alphabet
    return re.sub(f"[^{re.escape(''.join(symbols))}]+", filler, plain).strip(filler)


def spelt(character: str, alphabet: str) -> str:
    """A character in the alphabet's spelling.

    The first that the alphabet has: as it is, in lower case, without accents, both.
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c))
    ways = (character, character.lower(), plain, plain.lower())
    return next((way for way in ways if all(c in alphabet for c in way)), plain.lower())


def blocks(parts: list[str], length: int, alphabet: str = ALPHABET) -> Tensor:
    """Paragraphs, joined by the filler and cut, [N, length] int64; a rest is left out."""
    number = {symbol: i for i, symbol in enumerate(alphabet)}
    return cut(torch.tensor([number[symbol] for symbol in alphabet[0].join(parts)], dtype=torch.long), length)


def cut(tokens: Tensor, length: int) -> Tensor:
    """Tokens [n] as rows [n // length, length]; a rest is left out."""
    return tokens[: len(tokens) // length * length].reshape(-1, length)


def spell(tokens: Tensor, alphabet: str = ALPHABET) -> list[str]:
    """Tokens [N, d] as strings."""
    return ["".join(alphabet[i] for i in row) for row in tokens.tolist()]
