"""The scripts that train the shipped extractors: what they write, and that the cards are theirs."""

import hashlib
import re
import runpy
from importlib import import_module
from pathlib import Path

import pytest
import torch

from distillkit.evaluation.extractor import arguments, load_extractor, ship
from domains.image import features
from domains.image import ship as image_ship

DOMAINS = ("image", "threed", "video")
# Of the weights in the repository. Numbers that were measured with others are not comparable.
SHA256 = {
    "image/weights/features/judge.safetensors": "50c5e71fe5f0588bb2409090a0f7af953e1612ea2b240f2afa9b83503585df98",
    "image/weights/features/model.safetensors": "8449686cbc9dcfde428a909b43331ed6cf7a8787f9735615012e8df78c53e6d4",
    "music/weights/features/model.safetensors": "8772af839eae9ef9068694dc813401cfe084ddf4f84a9d7010614614ae590d41",
    "super_resolution/weights/features/model.safetensors": "7d4f21f5b125100323b5fdba353b322d45c484a7af83c45487c7896b8a8846b9",
    "text_to_3d/weights/features/model.safetensors": "6f20502a6a890b1d62ebb3f6b1ee1fedb1560325e35bf8aeb610d81709901dc7",
    "threed/weights/features/features.safetensors": "9334389af464555808bd7d49ad504d6120bb52d66b80cc5763759551fe312f76",
    "threed/weights/features/structure.safetensors": "2230194745155cba7350cefc95d36b34ff12bf145dbcb3b66c7592e884afdb27",
    "video/weights/features/model.safetensors": "fc53daa8dc0e4e7bc6819ffa87ad4f0ecb2fbba09bb01342245e00d08bed2a56",
}
ROOT = Path(features.__file__).parents[1]


def test_the_weights_are_those_that_published_numbers_were_measured_with():
    found = {path.relative_to(ROOT).as_posix(): path for path in ROOT.glob("*/weights/features/*.safetensors")}
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()} == SHA256


def test_a_script_writes_weights_and_their_card(tmp_path, capsys):
    image_ship.main(["--out", str(tmp_path / "new"), "--steps", "2", "--seed", "3"])
    card = (tmp_path / "new" / "README.md").read_text()
    judge, file = (tmp_path / "new" / f"{name}.safetensors" for name in ("judge", "model"))
    hashes = [hashlib.sha256(each.read_bytes()).hexdigest() for each in (judge, file)]
    assert hashes[0] != hashes[1] and all(each in card for each in hashes)
    assert "2 steps of AdamW" in card and "seed 3" in card
    assert f"    python -m domains.image.ship --out {tmp_path / 'new'} --steps 2 --seed 3\n" in card
    assert str(file) in capsys.readouterr().out
    net = load_extractor(features.Classifier, file)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        start = features.Classifier(1, 10, 8)
    assert sum(p.numel() for p in net.parameters()) == 122_314
    moved = [not torch.equal(a, b) for a, b in zip(net.parameters(), start.parameters(), strict=True)]
    assert all(moved)


def test_facts_are_those_of_the_network(tmp_path):
    torch.manual_seed(0)
    net, facts = ship(tmp_path / "a" / "b.safetensors", lambda: features.Classifier(3, 7))
    size = (tmp_path / "a" / "b.safetensors").stat().st_size
    assert facts["kilobytes"] == size / 1000 and facts["seconds"] >= 0
    assert facts["parameters"] == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("domain", [*DOMAINS, "super_resolution", "text_to_3d"])
def test_the_shipped_card_is_what_its_script_writes(domain):
    """Up to the numbers: else a change of the one would be lost when the other is made again."""
    script = import_module(f"domains.{domain}.ship")
    lines = "\n".join([script.LINE] * 2) if hasattr(script, "LINE") else ""
    pieces = re.split(r"\{[^}]*\}", script.CARD.replace("{lines}", lines))
    card = (ROOT / domain / "weights" / "features" / "README.md").read_text()
    assert re.fullmatch(".*?".join(map(re.escape, pieces)), card, re.DOTALL)
    assert (
        f"python -m domains.{domain}.ship --out domains/{domain}/weights/features --steps {script.STEPS} --seed 0"
        in card
    )


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_the_old_command_names_the_new_one(domain):
    with pytest.raises(SystemExit, match=f"^error: .* is now python -m domains.{domain}.ship$"):
        runpy.run_module(f"domains.{domain}.features", run_name="__main__")


def test_the_words_of_a_script():
    args = arguments("domains.x.ship", 70, ["--out", "here"])
    assert (args.out, args.steps, args.seed) == (Path("here"), 70, 0)
    assert args.command == "python -m domains.x.ship --out here --steps 70 --seed 0"
    with pytest.raises(SystemExit):
        arguments("domains.x.ship", 70, [])
