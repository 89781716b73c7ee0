"""The classifier of shape, colour and view: what it says, what it forgives, and the shipped one."""

from __future__ import annotations

import pytest
import torch

from distillkit.evaluation.extractor import load_extractor
from domains.text_to_3d import features, ship
from domains.text_to_3d.data import Solids
from domains.text_to_3d.features import Classifier, accuracy, classes, train_classifier, varied
from domains.text_to_3d.solids import PROMPTS


@pytest.fixture(scope="module")
def data():
    made = Solids(train=4, val=4, test=1, side=16)
    made.setup()
    return made


def test_prompts_are_shapes_and_colours():
    """The log-probability of a prompt is the sum of those of its two words."""
    torch.manual_seed(0)
    net = Classifier().eval()
    x = torch.randn(5, 3, 32, 32)
    found, logits = net.prompts(net(x)), net.logits(net(x))
    assert found.shape == (5, 16) and torch.allclose(found.logsumexp(1), torch.zeros(5), atol=1e-5)
    number = PROMPTS.index("a yellow torus")
    expected = logits["shape"].log_softmax(1)[:, 2] + logits["colour"].log_softmax(1)[:, 3]
    assert torch.allclose(found[:, number], expected)


def test_classes_are_the_words_of_a_batch(data):
    batch = data.val[torch.arange(16)]
    found = classes(batch)
    assert [PROMPTS[4 * s + c] for s, c in zip(found["shape"], found["colour"], strict=True)] == list(PROMPTS)
    assert found["view"].shape == (16,)


def test_images_are_moved_over_white_and_blurred():
    x = torch.ones(64, 3, 8, 8)
    x[:, :, 3, 4] = -1
    found = varied(x, torch.Generator().manual_seed(0))
    again = varied(x, torch.Generator().manual_seed(0))
    assert torch.equal(found, again) and found.shape == x.shape
    darkest = found.mean(1).flatten(1).argmin(1)
    rows, columns = darkest // 8, darkest % 8
    assert set(rows.tolist()) <= set(range(1, 6)) and len(set(rows.tolist())) > 3
    assert set(columns.tolist()) <= set(range(2, 7)) and len(set(columns.tolist())) > 3
    corner = found[:, :, 7, 0]
    assert (corner - 1).abs().mean() < 0.1  # background comes in, not what went out at the other side


def test_it_learns_and_disturbs_no_generator(data):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    net = train_classifier(data.train, steps=40)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    assert accuracy(net, data.train)["colour"] > 0.6 > accuracy(Classifier().eval(), data.train)["colour"]


def test_the_shipped_one_is_small_and_knows_solids():
    data = Solids(train=1, val=1, test=4)
    data.setup()
    net = load_extractor(Classifier, features.SHIPPED)
    assert features.SHIPPED.stat().st_size <= 300_000
    found = accuracy(net, data.test)
    assert found["shape"] > 0.97 < found["colour"] and found["view"] > 0.8
    blurred = torch.nn.functional.avg_pool2d(data.test[torch.arange(64)]["data"], 3, stride=1, padding=1)
    right = net.prompts(net(blurred)).argmax(1) == data.test[torch.arange(64)]["prompt"]
    assert right.double().mean() > 0.9


def test_the_script_writes_weights_and_their_card(tmp_path, monkeypatch):
    monkeypatch.setattr(ship, "VIEWS", 4)
    ship.main(["--out", str(tmp_path), "--steps", "2", "--seed", "3"])
    card = (tmp_path / "README.md").read_text()
    assert "4 views of each prompt (64 renders" in card and "2 steps of AdamW" in card and "seed 3" in card
    assert load_extractor(Classifier, tmp_path / "model.safetensors").config == {"width": 16}
