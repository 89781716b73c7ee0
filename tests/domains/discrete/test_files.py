"""Text as people have it: on one line, a paragraph a line, in other encodings and alphabets."""

import codecs
import hashlib
import sys
import unicodedata
import warnings

import numpy as np
import pytest

from distillkit.cli.front import main
from domains.discrete.data import (
    ALPHABET,
    LONGEST,
    TextData,
    cut_text,
    normalise,
    read_text,
    source_text,
    with_paragraphs,
)

GERMAN = ALPHABET + "äöü"
WORDS = (
    "the harbour lit small lamps along quiet shore while rain falls on hills and boats leave früh singen vögel schön"
)


def prose(paragraphs, words=25, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS.split(), words)) for _ in range(paragraphs)]


def loaded(path, **facts):
    data = TextData(str(path), **facts)
    data.setup()
    return data


def sizes(data):
    return [len(part) for part in (data.train, data.val, data.test)]


# ---- what is a paragraph


@pytest.mark.parametrize("between", [" ", "\n", "\r\n", "\n\n", "\r\n\r\n", "\r", "\n \n"])
@pytest.mark.parametrize("seed", range(4))
def test_however_the_lines_end_it_trains(tmp_path, between, seed):
    """One giant line, a paragraph a line, empty lines between: 130 paragraphs of 150 characters."""
    (tmp_path / "a.txt").write_bytes(between.join(prose(130, seed=seed)).encode())
    found = sizes(loaded(tmp_path / "a.txt"))
    assert min(found) >= 2 and found[0] > 4 * max(found[1:])


def test_lines_are_paragraphs_where_there_are_no_empty_ones():
    lines = prose(20)
    assert with_paragraphs("\n".join(lines)) == "\n\n".join(lines)
    assert with_paragraphs("\n\n".join(lines)) == "\n\n".join(lines)
    mixed = "\n".join(lines[:5]) + "\n\n" + lines[5]
    assert with_paragraphs(mixed) == mixed
    assert (
        with_paragraphs("one\ntwo\n" + "x" * 40 + "\n" + "y" * 40 + "\nrest")
        == "one\ntwo\n" + "x" * 40 + "\n\n" + "y" * 40 + "\n\nrest"
    )


def test_a_paragraph_a_line_is_in_one_part(tmp_path):
    """Lines long enough are not cut where there are many: no test line begins in training."""
    lines = [f"{unicodedata.normalize('NFKD', line)}" for line in prose(400, words=30)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    data = loaded(tmp_path / "a.txt", length=16)
    text = {name: "".join(data.spell(getattr(data, name).tensors["data"])) for name in ("train", "val", "test")}
    homes = [[name for name, part in text.items() if normalise(line)[:100] in part] for line in lines]
    assert {name for home in homes for name in home} == set(text) and max(map(len, homes)) == 1


def test_long_texts_are_cut_at_spaces():
    text = " ".join(prose(300))
    pieces = cut_text(text, 128, " ")
    assert " ".join(pieces) == text and max(map(len, pieces)) <= 128 and min(map(len, pieces[:-1])) >= 64
    assert cut_text("x" * 300, 128, " ") == ["x" * 128, "x" * 128, "x" * 44]
    assert cut_text("short", 128, " ") == ["short"]


def test_the_embedded_text_is_what_it_was():
    """As it was before long paragraphs were cut: its own are shorter than what is cut first."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("other versions of Python have other documentation")
    data = TextData()
    data.setup()
    digest = [
        hashlib.sha256(part.tensors["data"].numpy().tobytes()).hexdigest()[:12] for part in (data.train, data.val)
    ]
    paragraphs = data.paragraphs(source_text(None))
    assert max(map(len, paragraphs)) < LONGEST[0] and digest == ["1bd1bc9aeb90", "c9c5693a1751"]


# ---- encodings


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_marks_say_the_encoding(tmp_path, mark, encoding):
    (tmp_path / "a.txt").write_bytes(mark + "Vögel\r\nsingen früh".encode(encoding))
    assert read_text(tmp_path / "a.txt") == "Vögel\nsingen früh"


BAD = {
    "cp1252": ("Vögel singen".encode("cp1252"), "is not UTF-8 text"),
    "unmarked": ("Birds sing".encode("utf-16-le"), "is not UTF-8 text"),
    "odd": (codecs.BOM_UTF16_LE + b"odd", "is not UTF-8 text"),
    "gzip": (b"\x1f\x8b\x08\x00abc", "is not UTF-8 text"),
    "empty": (b" \n", "is empty"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_is_no_text_is_named(tmp_path, kind):
    data, reason = BAD[kind]
    (tmp_path / "bad.txt").write_bytes(data)
    with pytest.raises(ValueError, match=rf"bad\.txt.*{reason}"):
        loaded(tmp_path / "bad.txt")
    with pytest.raises(ValueError, match=rf"holds no text.*bad\.txt \({reason}"):
        loaded(tmp_path)
    (tmp_path / "good.txt").write_text("\n".join(prose(130)))
    with pytest.warns(UserWarning, match=rf"left out: bad\.txt \({reason}") as said:
        found = sizes(loaded(tmp_path))
    assert len(said) == 1 and found == sizes(loaded(tmp_path / "good.txt"))


def test_one_rule_for_folders(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(prose(130)))
    (tmp_path / "B.TXT").write_text("\n".join(prose(130, seed=1)))
    (tmp_path / "._a.txt").write_bytes(b"\x00\x05\x16\x07debris")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "a.txt").write_text("debris")
    (tmp_path / "sub.txt").mkdir()
    (tmp_path / "sub.txt" / "c.txt").write_text("\n".join(prose(130, seed=2)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = source_text(str(tmp_path))
    assert [text.find(prose(1, seed=seed)[0]) for seed in (1, 0, 2)] == sorted(
        text.find(prose(1, seed=s)[0]) for s in range(3)
    )
    assert "debris" not in text and all(prose(1, seed=seed)[0] in text for seed in range(3))


# ---- alphabets


@pytest.mark.parametrize(
    ("text", "alphabet", "expected"),
    [
        ("Schöne Vögel, ÜBER Ägypten à la carte", GERMAN, "schöne vögel über ägypten a la carte"),
        ("Schöne Vögel", ALPHABET, "schone vogel"),
        ("Scho\u0308ne Vo\u0308gel", GERMAN, "schöne vögel"),  # as macOS writes them
        ("Éa éa Ba", " abÉ", "Éa Éa ba".replace("Éa Éa", "Éa a")),
        ("Abc ABC", " abcA", "Abc Abc"),
        ("Ελλάδα", " άαδελ", "ελλάδα"),
        ("Привет, Ёж", " абвгдеёжзийклмнопрстуфхцчшщъыьэюя", "привет ёж"),
        ("Привет, Ёж", " абвгдежзийклмнопрстуфхцчшщъыьэюя", "привет еж"),
        ("½ ﬁn", " 12fin", "1 2 fin"),
    ],
)
def test_letters_of_the_alphabet_are_kept(text, alphabet, expected):
    assert normalise(text, alphabet) == expected


def test_an_alphabet_may_be_typed_in_two_ways(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(prose(130)), encoding="utf-8")
    data = loaded(tmp_path / "a.txt", alphabet=unicodedata.normalize("NFD", GERMAN))
    assert data.num_tokens == 30 and set("äöü") & set("".join(data.spell(data.train.tensors["data"]))) == set("öü")
    for alphabet in ("", "a", "aba"):
        with pytest.raises(ValueError, match="at least two symbols, none twice"):
            TextData(alphabet=alphabet)


@pytest.mark.slow
def test_a_folder_from_the_command_line(tmp_path, capsys):
    (tmp_path / "one.txt").write_text(" ".join(prose(200)))
    (tmp_path / "bad.txt").write_bytes(BAD["cp1252"][0])
    words = ["fit", "domain=discrete", "method=pretrain", "data=text", f"data.path={tmp_path}", "data.batch_size=4"]
    words += ["vars.callbacks.finish.num_samples=0", "--trainer.max_steps=2", "--out", f"{tmp_path}/run"]
    assert main(words) == 0
    assert "warning: " in (said := capsys.readouterr().err) and "bad.txt" in said
