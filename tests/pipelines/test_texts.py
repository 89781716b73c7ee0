"""Files of prompts, and tables of their embeddings."""

import json

import pytest
import torch

from distillkit.pipelines import texts
from distillkit.pipelines.captions import captions_of
from distillkit.pipelines.prompts import read_prompts
from distillkit.pipelines.texts import Texts, in_chunks, padded, trimmed


def test_prompts_are_read_from_all_that_holds_texts(tmp_path):
    (tmp_path / "lines.txt").write_text("a cat\n\n  a dog \na cat\n")
    (tmp_path / "table.csv").write_text('file,caption\n1.png,"a cat, running"\n2.png,a dog\n')
    (tmp_path / "rows.jsonl").write_text('{"text": "a cat"}\n\n"a dog"\n{"prompt": "a cat"}\n')
    folder = tmp_path / "folder"
    (folder / "b").mkdir(parents=True)
    for name, text in (("b/1.txt", "a dog"), ("a.txt", "a cat\n"), ("b/2.txt", "a cat"), (".hidden.txt", "no")):
        (folder / name).write_text(text)
    assert read_prompts(str(tmp_path / "lines.txt")) == ["a cat", "a dog"]
    assert read_prompts(str(tmp_path / "table.csv")) == ["a cat, running", "a dog"]
    assert read_prompts(str(tmp_path / "rows.jsonl")) == ["a cat", "a dog"]
    assert read_prompts(str(folder)) == ["a cat", "a dog"]
    (folder / "metadata.jsonl").write_text('{"file_name": "x.png", "text": "a bird"}\n')
    assert read_prompts(str(folder)) == ["a bird"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("empty.txt", "\n \n", "has no prompts: write one a line"),
        ("other.csv", "file,label\n1,2\n", "must have a column `caption`"),
        (
            "commas.csv",
            "file,caption\n1.png,a dog\n2.png,a cat, running\n",
            "line 3 of .*commas.csv has too many cells",
        ),
        ("broken.jsonl", '{"caption": "a"}\n{"caption"\n', "line 2 of .*broken.jsonl holds no caption or prompt"),
        ("other.jsonl", '{"label": 3}\n', "line 1 of"),
        ("long.csv", f"caption\n{'a' * 200_000}\n", "long.csv cannot be read .field larger than"),
        ("old.txt", "a caf\xe9\n", "old.txt cannot be read .*: save it as UTF-8"),
    ],
)
def test_files_without_prompts_are_refused(name, text, said, tmp_path):
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=said):
        read_prompts(str(tmp_path / name))
    folder = tmp_path / "beside"
    folder.mkdir()
    (folder / "0.txt").write_bytes(b"a caf\xe9")
    for read in (lambda: read_prompts(str(folder)), lambda: captions_of(folder, ["0.png"])):
        with pytest.raises(ValueError, match="0.txt cannot be read"):
            read()
    with pytest.raises(ValueError, match="there is no file of prompts"):
        read_prompts(str(tmp_path / "none.txt"))


@pytest.mark.parametrize("name", ["captions.csv", "metadata.jsonl"])
def test_a_table_may_have_several_captions_of_a_file(name, tmp_path):
    """By the same path, written in another way, too; each counts once."""
    rows = [("a/1.png", "a cat"), ("2.png", "a dog"), ("./a//1.png", "a cat runs"), ("a/1.png", "a cat"), ("2.png", "")]
    if name.endswith(".csv"):
        lines = ["file,caption", *(f"{file},{text}" for file, text in rows)]
    else:
        lines = [json.dumps({"file_name": file, "text": text}) for file, text in rows]
    (tmp_path / name).write_text("\n".join(lines))
    assert captions_of(tmp_path, ["2.png", "a/1.png", "3.png"]) == [["a dog"], ["a cat", "a cat runs"], []]
    assert read_prompts(str(tmp_path)) == ["a cat", "a dog", "a cat runs"]


def test_blanks_behind_commas_and_a_last_comma_are_no_part_of_a_table(tmp_path):
    (tmp_path / "captions.csv").write_text('file, caption\n1.png, "a cat, running"\n 2.png ,a dog,\n')
    assert captions_of(tmp_path, ["1.png"]) == [["a cat, running"]]
    assert read_prompts(str(tmp_path)) == ["a cat, running", "a dog"]


def test_names_of_files_may_be_written_as_another_system_does(tmp_path):
    """With the slashes of Windows, and accents in one sign or apart, as macOS stores them."""
    accented = ("caf\u00e9.png", "cafe\u0301.png")
    for stored, written in (accented, accented[::-1]):
        (tmp_path / "captions.csv").write_text(f"file,caption\n{written},a cat\na b\\{written},a dog\n")
        assert captions_of(tmp_path, [stored, f"a b/{stored}", "cafe.png"]) == [["a cat"], ["a dog"], []]


def tables():
    return {"text": torch.arange(24.0).reshape(3, 4, 2), "text_mask": torch.tensor([[True] * 2 + [False] * 2] * 3)}


def test_tables_are_looked_up_by_number():
    made = Texts.of(tables())
    found = made(torch.tensor([2, 0]))
    assert torch.equal(found["text"], tables()["text"][[2, 0]]) and found["text_mask"].dtype == torch.bool
    empty = Texts(made.shapes)  # of a student's folder
    assert made.shapes == {"text": [2, 4, 2], "text_mask": [2, 4]}
    empty.load_state_dict(made.state_dict())
    assert torch.equal(empty.text, made.text) and torch.equal(empty.text_mask, made.text_mask)
    old = Texts({"text": [2, 4, 2]})  # of an earlier version's folder
    old.load_state_dict({"table": tables()["text"]})
    assert torch.equal(old.text, made.text)


def test_large_tables_stay_where_they_are(monkeypatch):
    assert Texts.of(tables()).to("meta").text.device.type == "meta"
    monkeypatch.setattr(texts, "RESIDENT", 100)
    assert torch.nn.ModuleList([Texts.of(tables())]).to("meta")[0].text.device.type == "cpu"


def test_tokens_that_nobody_uses_are_cut_and_put_back():
    cut = trimmed(tables(), tables()["text_mask"], ["text", "text_mask"])
    assert cut["text"].shape == (3, 2, 2) and cut["text_mask"].all()
    assert (
        torch.equal(padded(cut["text"], 4)[:, :2], tables()["text"][:, :2]) and not padded(cut["text"], 4)[:, 2:].any()
    )
    assert trimmed(tables(), torch.zeros(3, 4, dtype=torch.bool), ["text"])["text"].shape == (3, 1, 2)


def test_prompts_are_encoded_a_few_at_a_time(monkeypatch):
    seen = []

    def encode(some):
        seen.append(len(some))
        return {"text": torch.tensor([[float(len(text))] for text in some])}

    monkeypatch.setattr(texts, "CHUNK", 2)
    found = in_chunks(encode, ["a", "bb", "ccc"])
    assert seen == [2, 1] and found["text"].flatten().tolist() == [1, 2, 3]
