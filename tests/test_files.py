"""Whole files or none, and weights that are never unpickled."""

import hashlib
import os
import pickle
import stat
from pathlib import Path

import pytest
import torch
from torch import nn

from distillkit.files import (
    hash_weights,
    load_weights,
    read_weights,
    read_yaml,
    save_weights,
    write_atomic,
    write_text,
    write_yaml,
)


class Trap:
    """Unpickling this leaves a mark."""

    mark = None

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def listing(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_written_and_nothing_else_is_left(tmp_path):
    path = write_text(tmp_path / "deep" / "a.txt", "é\n")
    assert path.read_text(encoding="utf-8") == "é\n" and listing(path.parent) == ["a.txt"]
    write_text(path, "new")
    assert path.read_text() == "new" and listing(path.parent) == ["a.txt"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_text(tmp_path / "a.txt", "old")

    def half(temporary):
        temporary.write_text("ne")
        assert path.read_text() == "old"  # a reader meanwhile sees the old file
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_atomic(path, half)
    assert path.read_text() == "old" and listing(tmp_path) == ["a.txt"]


def test_an_open_reader_keeps_the_old_file(tmp_path):
    """The new file takes the old one's place; writing into the old one would show a reader both."""
    path = write_text(tmp_path / "a.txt", "old")
    with path.open() as reader:
        write_text(path, "new")
        assert reader.read() == "old" and path.read_text() == "new"


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = write_text(tmp_path / "a.txt", "old")

    def interrupt(temporary):
        temporary.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, interrupt)
    assert path.read_text() == "old" and listing(tmp_path) == ["a.txt"]


def test_the_temporary_file_keeps_the_suffix(tmp_path):
    """Writers of images and arrays look at the suffix; the same folder makes the move atomic."""
    seen = []
    write_atomic(tmp_path / "a.png", seen.append)
    assert seen[0].suffix == ".png" and seen[0].parent == tmp_path and seen[0].name != "a.png"


def test_others_may_read_what_the_umask_allows(tmp_path):
    old = os.umask(0o022)
    try:
        path = write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_weights_round_trip_bit_for_bit(tmp_path):
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3).double())
    module[2].weight.data = module[2].weight.data.T.contiguous().T + 1e-12  # not contiguous, and no float32 numbers
    path = save_weights(tmp_path / "w.safetensors", module)
    stored = read_weights(path)
    assert stored.keys() == module.state_dict().keys()
    assert all(torch.equal(stored[k], v) and stored[k].dtype == v.dtype for k, v in module.state_dict().items())
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3).double())
    load_weights(other, path)
    for name, value in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), f"{name} ({value.dtype}) has changed"


def test_tied_weights_are_written(tmp_path):
    module = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    module[1].weight = module[0].weight
    stored = read_weights(save_weights(tmp_path / "w.safetensors", module))
    assert torch.equal(stored["0.weight"], stored["1.weight"])


def test_half_precision_weights_fill_a_float32_module(tmp_path):
    module = nn.Linear(3, 4)
    path = save_weights(tmp_path / "w.safetensors", nn.Linear(3, 4).bfloat16())
    load_weights(module, path)
    assert module.weight.dtype == torch.float32 and torch.equal(module.weight, read_weights(path)["weight"].float())


def test_the_hash_is_of_names_and_weights():
    """Weights that change places, under the same names or others, are other weights."""

    def digest(**weights):
        module, found = (
            nn.ParameterDict({name: nn.Parameter(value) for name, value in weights.items()}),
            hashlib.sha256(),
        )
        hash_weights(found, module)
        return found.hexdigest()

    one, two = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    assert digest(a=one, b=two) == digest(b=two, a=one)
    others = [digest(a=two, b=one), digest(a=one, c=two), digest(b=one, c=two), digest(a=torch.cat([one, two]))]
    assert len({digest(a=one, b=two), *others}) == 5


def one_sentence(error):
    return "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize(
    "write", [lambda v, p: torch.save(v, p), lambda v, p: p.write_bytes(pickle.dumps(v))], ids=["torch", "pickle"]
)
def test_a_pickle_is_never_opened(write, tmp_path):
    Trap.mark = tmp_path / "sprung"
    path = tmp_path / "model.safetensors"
    write({"weight": Trap()}, path)
    with pytest.raises(ValueError, match="is not a whole safetensors file.*pickles are not read") as error:
        read_weights(path)
    assert one_sentence(error) and not Trap.mark.exists()


@pytest.mark.parametrize("keep", [0, 4, 40, -3])
def test_a_truncated_file_is_refused(keep, tmp_path):
    path = save_weights(tmp_path / "model.safetensors", nn.Linear(3, 4))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="is not a whole safetensors file.*copy it again") as error:
        read_weights(path)
    assert one_sentence(error)


def test_a_missing_file_is_named(tmp_path):
    for read in (read_weights, read_yaml):
        with pytest.raises(ValueError, match=r"nothing\.x does not exist: give a folder written by distillkit"):
            read(tmp_path / "nothing.x")


@pytest.mark.parametrize(
    "written, read, message",
    [
        (nn.Linear(3, 4), nn.Linear(3, 5), "weight"),
        (nn.Linear(3, 4, bias=False), nn.Linear(3, 4), "bias"),
        (nn.Linear(3, 4), nn.Linear(3, 4, bias=False), "bias"),
    ],
    ids=["shape", "missing", "unexpected"],
)
def test_weights_of_another_network_are_refused(written, read, message, tmp_path):
    path = save_weights(tmp_path / "model.safetensors", written)
    with pytest.raises(ValueError, match=f"does not fit the network its folder describes.*{message}") as error:
        load_weights(read, path)
    assert one_sentence(error)


def test_yaml_keeps_the_order_and_plain_types(tmp_path):
    data = {"b": [1.5, 2], "a": {"x": None, "y": True}, "text": "a: b\nc"}
    path = write_yaml(tmp_path / "a.yaml", data)
    assert read_yaml(path) == data and list(read_yaml(path)) == ["b", "a", "text"]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"a: [1", "is not readable as yaml"),
        (b"- 1\n- 2", "should hold a mapping"),
        (b"", "should hold a mapping"),
        (b"\xff\xfe\x00", "is not readable as yaml"),
        (b"a: !!python/object/apply:os.system ['true']", "is not readable as yaml"),
    ],
    ids=["open", "list", "empty", "bytes", "python"],
)
def test_damaged_yaml_is_refused(content, message, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_yaml(path)
    assert one_sentence(error)


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    "content, message",
    [
        (LAUGHS, "more than 1,000,000 values or more than 64 levels"),
        ("a: &a [1, *a]", "more than 1,000,000 values or more than 64 levels"),
        ("a: " + "[" * 1_000_000, "more than 64 levels|is not readable as yaml"),  # the parser has a limit of its own
        ("a: " + "{b: " * 200, "more than 1,000,000 values or more than 64 levels"),
        ("a: [" + "1," * 1_100_000 + "1]", "more than 1,000,000 values or more than 64 levels"),
        ("a: " + "x" * 5_000_000, "has 5,000,003 bytes, more than the 4,194,304 that are read"),
        ("? [1, 2]\n: 3", "is not readable as yaml"),
        ("? {a: b}\n: 3", "is not readable as yaml"),
        ("a: " + "9" * 5000, "is not readable as yaml"),
        ("a: 2001-13-45", "is not readable as yaml"),
        ("a: *nowhere", "is not readable as yaml"),
    ],
    ids=[
        "laughs",
        "itself",
        "lists",
        "mappings",
        "long",
        "large",
        "list key",
        "mapping key",
        "digits",
        "date",
        "alias",
    ],
)
def test_yaml_that_would_fill_memory_or_fail_inside_is_refused(content, message, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"a.yaml.*({message})") as error:
        read_yaml(path)
    assert one_sentence(error)


def test_plain_aliases_are_read(tmp_path):
    """Aliases with which people write something once."""
    (tmp_path / "a.yaml").write_text("a: &a [1, 2]\nb: *a\nc: {d: *a}")
    assert read_yaml(tmp_path / "a.yaml") == {"a": [1, 2], "b": [1, 2], "c": {"d": [1, 2]}}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_weights_must_be_finite(dtype, tmp_path):
    from safetensors.torch import save_file

    save_file({"n": torch.tensor([1, 2]), "w": torch.tensor([1.0, 2.0]).to(dtype)}, tmp_path / "w.safetensors")
    assert read_weights(tmp_path / "w.safetensors").keys() == {"n", "w"}
    save_file({"w": torch.tensor([1.0, float("nan")]).to(dtype)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="holds NaN or infinity in w"):
        read_weights(tmp_path / "w.safetensors")
