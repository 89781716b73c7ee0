"""Where tokens come from: worlds, text, digits; and what they look like."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import distil

from distillkit.methods.lsd_tokens import LSDTokens
from domains.discrete import media
from domains.discrete.checkpoints import DDiTCheckpoint
from domains.discrete.data import (
    ALPHABET,
    DigitData,
    TextData,
    TokenData,
    WorldData,
    blocks,
    normalise,
    paragraphs,
    source_text,
    spell,
)
from domains.discrete.evaluation import as_images
from domains.discrete.teacher import Countdown, Potts


def test_text_is_lowered_loses_accents_and_keeps_single_spaces():
    assert normalise("  Déjà vu: 3 x_Y\n\tZ. ") == "deja vu x y z"
    assert normalise("ACGTNNacgt", "-ACGT") == "ACGT"
    assert normalise("a.b-c", ".abc-") == "a.b-c"  # what has a meaning in a pattern is only a symbol here


def test_paragraphs_are_prose_and_never_twice():
    prose = "This is a paragraph that is long enough to be called prose."
    text = f"{prose}\n\n  {prose.upper()}\n\nshort\n\n{prose} And more."
    assert paragraphs(text) == [normalise(prose), normalise(prose) + " and more"]


def test_blocks_cut_and_spell_back():
    tokens = blocks(["abc", "de"], 3)
    assert spell(tokens) == ["abc", " de"] and tokens.dtype == torch.int64
    assert blocks(["abcd"], 3).shape == (1, 3)


def test_the_embedded_text_is_english_and_its_parts_share_no_paragraph():
    data = TextData()
    data.setup()
    sizes = [len(part) for part in (data.train, data.val, data.test)]
    assert sizes[0] > 2000 and min(sizes) > 200 and data.event_shape == (64,) and data.num_tokens == 27
    text = "".join(spell(data.train.tensors["data"]))
    assert set(text) == set(ALPHABET) and "  " not in text
    assert text.count(" the ") > 1000
    long = {row for row in spell(data.train.tensors["data"].unfold(1, 40, 1).flatten(0, 1))}
    held_out = spell(data.test.tensors["data"].unfold(1, 40, 1).flatten(0, 1))
    assert sum(row in long for row in held_out) / len(held_out) < 0.1  # phrases recur, paragraphs do not


def test_a_paragraph_stays_in_its_part_when_others_are_added(tmp_path):
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]

    def paragraph(i: int) -> str:
        return (
            " ".join(words[(i * k + k) % 8] + words[(i // 8 + k) % 8] for k in range(1, 9)) + f" {words[i // 64 % 8]}"
        )

    many = [paragraph(i) for i in range(400)]
    (tmp_path / "some.txt").write_text("\n\n".join(many[:300]))
    few = TextData(str(tmp_path / "some.txt"), length=16)
    few.setup()
    (tmp_path / "others.txt").write_text("\n\n".join(many[300:]))
    more = TextData(str(tmp_path), length=16)
    more.setup()
    assert len(more.train) > len(few.train)
    train = set("".join(spell(more.train.tensors["data"])).split())
    assert set("".join(spell(few.train.tensors["data"])).split()[1:-1]) <= train | {""}


def test_text_that_is_too_short_absent_or_not_utf8(tmp_path):
    (tmp_path / "short.txt").write_text("This is a paragraph that is long enough to be called prose.")
    with pytest.raises(ValueError, match="each needs two"):
        TextData(str(tmp_path / "short.txt")).setup()
    with pytest.raises(ValueError, match="no text file"):
        TextData(str(tmp_path / "none.txt")).setup()
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe caf\xe9")
    with pytest.raises(ValueError, match="not UTF-8"):
        TextData(str(tmp_path / "latin.txt")).setup()
    with pytest.raises(ValueError, match="none twice"):
        TextData(alphabet="aba")
    with pytest.raises(ValueError, match="length must be at least 2"):
        TextData(length=1)


def test_digits_are_their_own_pictures_in_black_and_white():
    from domains.image.data import Digits

    grey, tokens = Digits(), DigitData()
    grey.setup(), tokens.setup()
    batch = tokens.train[torch.arange(5)]
    assert batch["data"].shape == (5, 64) and set(batch["data"].unique().tolist()) == {0, 1}
    assert torch.equal(batch["label"], grey.train[torch.arange(5)]["label"])
    assert ((as_images(batch["data"]) > 0) == (grey.train[torch.arange(5)]["data"] >= 0)).all()


def test_worlds_give_their_own_draws():
    data = WorldData(Countdown(num_tokens=8, length=32), num_samples=64)
    data.setup()
    x = data.train.tensors["data"]
    assert x.shape == (64, 32) and data.num_tokens == 8 and len(data.val) == 1000
    assert torch.where(x[:, :-1] > 0, x[:, 1:] == x[:, :-1] - 1, True).all()
    again = WorldData(Countdown(num_tokens=8, length=32), num_samples=64)
    again.setup()
    assert torch.equal(x, again.train.tensors["data"])


def test_worlds_refuse_what_is_none():
    with pytest.raises(ValueError, match="absorbing or uniform"):
        Potts(noise="gaussian")
    with pytest.raises(ValueError, match="length must be at least 2"):
        Potts(length=1)
    assert Potts().id == "potts-3-5-absorbing" and Countdown(noise="uniform").id == "countdown-32-256-uniform"


# Tokenisers


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A folder with byte pairs learned from the embedded prose, 300 tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [source_text(None)], tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet)
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save(str(folder / "tokenizer.json"))
    return folder


def test_a_tokeniser_cuts_text_into_blocks_and_spells_them_back(tokenizer):
    data = TokenData(str(tokenizer), num_tokens=310)
    data.setup()
    first = data.spell(data.train.tensors["data"][:40])
    assert data.num_tokens == 310 and data.event_shape == (64,) and len(data.train) > 4 * len(data.val)
    assert "".join(first)[:60] in "\n\n".join(data.paragraphs(source_text(None)))
    text = "Déjà vu: a paragraph that is long enough to be prose.\n\nAnother one that is long enough, as well."
    (row,) = TokenData(str(tokenizer), 310, length=len(data.tokenizer.encode(text).ids)).blocks(text.split("\n\n"))
    assert data.spell(row[None]) == [text]


def test_tokenisers_that_do_not_fit_are_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="data.num_tokens=100"):
        TokenData(str(tokenizer), num_tokens=100).setup()
    with pytest.raises(ValueError, match="tokenizer.json does not exist"):
        TokenData(str(tmp_path), num_tokens=300)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="no tokeniser"):
        TokenData(str(tmp_path), num_tokens=300)


def test_a_published_model_is_distilled_on_text_of_its_tokeniser(tokenizer, tmp_path, monkeypatch, capsys):
    """MDLM in its own layout, tiny, by the command line, with evaluation, text and a student."""
    from safetensors.torch import save_file

    from distillkit import load_student
    from distillkit.cli import front
    from distillkit.networks.ddit import DDiT

    model = tmp_path / "mdlm"
    model.mkdir()
    sizes = {"hidden_dim": 16, "cond_dim": 8, "n_blocks": 1, "n_heads": 2, "model_length": 16}
    config = {"model_type": "mdlm", "vocab_size": 301, "time_conditioning": False, **sizes}
    (model / "config.json").write_text(json.dumps(config))
    save_file(DDiT(300, width=16, depth=1, heads=2, adaln=True, cond_dim=8).state_dict(), model / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(DDiTCheckpoint, "best", {"solver": "tweedie", "steps": 8})
    words = ["domain=discrete", "method=lsd", "teacher=ddit", "teacher.path=mdlm", "teacher.length=12", "data=tokens"]
    words += [f"data.tokenizer={tokenizer}", "data.num_tokens=300", "data.length=12", "data.batch_size=4"]
    words += ["model.num_steps=3", "model.num_pairs=8", "model.guard=16", "trainer.max_steps=1"]
    assert front.main(["fit", *words, "vars.callbacks.finish.num_samples=16", "--out", "run"]) == 0
    assert load_student("run", trust=("./mdlm",)).sample(2).shape == (2, 12)
    assert len((tmp_path / "run" / "samples" / "samples.txt").read_text().splitlines()) == 4
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert {row["name"] for row in found["rows"]} >= {"student", "teacher at its best", "real data"}


# Pictures


def dark(image, box) -> int:
    return sum(pixel < 128 for pixel in image.convert("L").crop(box).tobytes())


def test_a_page_shows_each_symbol_in_its_cell():
    pages = media.Pages(spell)
    tokens = torch.tensor([[0, 0, 13, 0], [13, 0, 0, 0]])
    image = pages.picture(tokens)
    cell = (image.width - 16) // 4
    ink = [
        [dark(image, (8 + c * cell, 8 + 18 * r, 8 + (c + 1) * cell, 26 + 18 * r)) > 0 for c in range(4)]
        for r in range(2)
    ]
    assert ink == [[False, False, True, False], [True, False, False, False]]
    long = pages.picture(torch.zeros(2, 100, dtype=torch.long))
    assert long.height == 4 * 18 + 16  # two lines for each


def test_text_is_saved_as_text(tmp_path):
    tokens = torch.tensor([[8, 9, 0], [1, 2, 3]])
    (path,) = media.Pages(spell).save(tokens, {}, tmp_path)
    assert path.read_text() == "hi \nabc\n" and path.suffix == ".txt"
    (path,) = media.Strips(32).save(tokens, {}, tmp_path)
    assert path.read_text() == "8 9 0\n1 2 3\n"


def test_strips_are_dark_for_zero_and_bright_for_the_last():
    image = media.Strips(4).picture(torch.tensor([[0, 3], [3, 0]])).convert("L")
    left, right = image.width // 4, 3 * image.width // 4
    assert image.getpixel((left, 1)) < 60 < 180 < image.getpixel((right, 1))
    assert image.getpixel((left, image.height - 2)) > 180


def test_comparisons_hold_every_model(tmp_path):
    text, numbers = torch.zeros(9, 64, dtype=torch.long), torch.zeros(9, 32, dtype=torch.long)
    assert media.Pages(spell).compare({"a": text, "b": text}).height == 2 * 6 * 18 + 16
    both, one = (media.Strips(4).compare(rows) for rows in ({"a": numbers, "b": numbers}, {"a": numbers}))
    assert both.height == 2 * one.height
    assert media.Bitmaps.compare({"a": text, "b": text}).size[1] == 2 * media.Bitmaps.picture(text[:8]).size[1]
    for maker in (media.Pages(spell), media.Strips(4)):
        with pytest.raises(ValueError, match="nothing to compare"):
            maker.compare({})


def test_curves_draw_one_line_for_each_sampler():
    image = media.curves({"euler": {4: 0.4, 8: 0.1}, "lsd": {4: 0.2, 8: 0.05}}, "error", real=0.01)
    assert image.size == (600, 400) and len(set(image.tobytes())) > 50
    assert media.curves({"euler": {4: 0.4, 8: 0.0}}, "error").size == (600, 400)  # zero has no logarithm
    with pytest.raises(ValueError, match="nothing to draw"):
        media.curves({}, "error")


# The command line


@pytest.mark.slow
def test_a_teacher_of_digits_is_trained_distilled_and_sampled(tmp_path):
    digits = ["domain=discrete", "data=digit_tokens", "vars.callbacks.finish.num_samples=0"]
    tiny = ["network.width=16", "network.depth=1", "model.steps=4", "data.batch_size=16", "trainer.max_steps=4"]
    distil("fit", *digits, *tiny, "method=pretrain", "--out", tmp_path / "teacher")
    made = tmp_path / "teacher" / "teacher"
    assert {"model.safetensors", "teacher.yaml", "README.md"} <= {path.name for path in made.iterdir()}
    teacher = ["teacher=folder", f"teacher.path={made}"]
    lsd = ["method=lsd", "model.num_steps=2", "model.num_pairs=32", "model.guard=0", "data.batch_size=16"]
    distil("fit", *digits, *teacher, *lsd, "trainer.max_steps=1", "--out", tmp_path / "student")
    distil("sample", tmp_path / "student", "-n", "10", "--trust", made, "--out", tmp_path / "samples")
    arrays = np.load(tmp_path / "samples" / "samples.npz", allow_pickle=False)
    assert arrays["samples"].shape == (10, 64) and set(np.unique(arrays["samples"])) <= {0, 1}
    assert (arrays["label"] == np.arange(10)).all() and (tmp_path / "samples" / "samples.png").is_file()


def test_data_and_teacher_with_different_tokens_are_refused():
    data, method = WorldData(Potts(num_tokens=3), num_samples=64), LSDTokens(Potts(num_tokens=4), num_steps=2)
    with pytest.raises(ValueError, match="the data have 3 tokens, the process 4"):
        method.check(data)
