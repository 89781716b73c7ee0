"""The image evaluator on digits: it tells good from bad, diverse from collapsed, new from copy."""

import hashlib
import sys

import pytest
import torch

from distillkit.data import TensorData
from distillkit.evaluation import metrics
from distillkit.evaluation.extractor import load_extractor, packed
from distillkit.evaluation.samples import Diverged, eight_bits
from domains.image import features as extractors
from domains.image import media
from domains.image.data import Digits
from domains.image.evaluation import ImageEvaluator


@pytest.fixture(scope="module")
def digits():
    data = Digits()
    data.setup()
    return data


@pytest.fixture(scope="module")
def evaluator(digits):
    return digits.evaluator()


@pytest.fixture(scope="module")
def floor(evaluator):
    return evaluator.floor()


def images(digits, num=500):
    batch = digits.train[torch.arange(num)]
    return batch["data"], {"label": batch["label"]}


def test_real_data_is_good(floor, evaluator):
    assert set(floor) == set(evaluator.better)
    assert floor["frechet"] < 2 and abs(floor["kernel"]) < 0.05
    assert min(floor[name] for name in ("precision", "recall", "coverage")) > 0.8
    assert floor["density"] == pytest.approx(1.0, abs=0.2)
    assert floor["class_agreement"] > 0.98
    assert floor["nearest_train"] > 1  # held-out data against training data: new, though of one kind


def test_the_floor_depends_on_the_number_of_samples(evaluator, floor):
    assert evaluator.floor(100)["frechet"] > 1.5 * floor["frechet"]
    assert evaluator.floor(500) == floor == evaluator.floor()


def test_noise_and_blur_are_bad(digits, evaluator, floor):
    x, cond = images(digits)
    noise = evaluator(torch.randn(500, 1, 8, 8, generator=torch.Generator().manual_seed(0)), cond)
    assert noise["frechet"] > 10 * floor["frechet"] and noise["kernel"] > 0.3
    assert noise["recall"] < 0.5 and noise["coverage"] < 0.5 and noise["class_agreement"] < 0.2
    blurred = evaluator(torch.nn.functional.avg_pool2d(x, 3, stride=1, padding=1), cond)
    assert blurred["frechet"] > 10 * floor["frechet"]


def test_collapse_costs_recall_and_coverage(digits, evaluator):
    x, cond = images(digits)
    found = evaluator(x[cond["label"] == 3], {"label": cond["label"][cond["label"] == 3]})
    assert found["class_agreement"] > 0.95 and found["precision"] > 0.8
    assert found["recall"] < 0.2 and found["coverage"] < 0.2 and found["frechet"] > 10


def test_copies_are_unmasked(digits, evaluator, floor):
    found = evaluator(*images(digits))
    assert found["frechet"] < 1.5 * floor["frechet"]  # all the rest is fine
    assert found["nearest_train"] < 1e-3 * floor["nearest_train"]


def test_what_leaves_the_range_is_cut_as_in_a_file_and_said(digits, evaluator, floor):
    x, cond = images(digits)
    near, far = evaluator(1.05 * x, cond), evaluator(4 * x, cond)
    assert near["outside"] == floor["outside"] == 0
    assert far["outside"] == float((4 * x.abs() > 1.1).double().mean()) > 0.5
    assert far["outside_by"] > 1 > near["outside_by"]
    assert far["frechet"] == evaluator((4 * x).clamp(-1, 1), cond)["frechet"]


def test_classes_are_those_asked_for(digits, evaluator):
    x, cond = images(digits)
    wrong = {"label": (cond["label"] + 1) % 10}
    assert evaluator(x, cond)["class_agreement"] > 0.98 and evaluator(x, wrong)["class_agreement"] < 0.02
    assert "class_agreement" not in evaluator(x, {})


def test_it_is_deterministic_and_ignores_what_a_file_would_lose(digits, evaluator):
    x, cond = images(digits)
    found = evaluator(x, cond)
    assert evaluator(x, cond) == found
    lost = evaluator(torch.where(x == 1, torch.tensor(7.0), eight_bits(x) + 1e-4), cond)
    assert lost.pop("outside") > found.pop("outside") == found.pop("outside_by") == 0
    assert lost.pop("outside_by") == pytest.approx(3) and lost == found  # (7 - 1) / 2


def test_what_belongs_to_the_reference_is_found_once(digits, evaluator, floor, monkeypatch):
    x, cond = images(digits, 40)
    evaluator(x, cond)
    found = []
    for module, name in ((metrics, "_nearest"), (torch.linalg, "eigh")):
        plain = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, of=name, plain=plain: (found.append(of), plain(*args))[1])
    plain = evaluator.extractor.features
    monkeypatch.setattr(evaluator.extractor, "features", lambda x: (found.append(len(x)), plain(x))[1])
    evaluator(x, cond)
    assert found == [40, "eigh", "_nearest"]  # of the samples; classes are read from the same features
    found.clear()
    evaluator.floor(40)
    assert found == ["eigh", "_nearest"]


def test_bad_samples_are_refused(digits, evaluator):
    x, cond = images(digits, 20)
    with pytest.raises(ValueError, match=r"shape \[1, 4, 16\], but this data has \[1, 8, 8\]"):
        evaluator(x.reshape(20, 1, 4, 16), cond)
    x[3, 0, 0, 0] = float("nan")
    with pytest.raises(Diverged, match="1 of 20 samples hold NaN"):
        evaluator(x, cond)


def test_the_protocol_names_the_shipped_extractor(evaluator):
    sha256 = hashlib.sha256(extractors.SHIPPED.read_bytes()).hexdigest()
    facts = evaluator.describe()
    assert facts["features"]["sha256"] == sha256 and facts["num_reference"] == 500 and facts["num_train"] == 1297
    card = (extractors.SHIPPED.parent / "README.md").read_text()
    assert sha256 in card and extractors.SHIPPED.stat().st_size <= 600_000


def test_the_card_tells_the_accuracy(digits):
    net = load_extractor(extractors.Classifier, extractors.SHIPPED)
    card = (extractors.SHIPPED.parent / "README.md").read_text()
    val, test = extractors.accuracy(net, digits.val), extractors.accuracy(net, digits.test)
    assert min(val, test) > 0.98
    assert f"{val:.3f} on the validation split" in card and f"{test:.3f} on the test split" in card


def test_training_is_reproducible_and_leaves_the_global_generator_alone(digits):
    before = torch.get_rng_state()
    first, second = (extractors.train_classifier.__wrapped__(digits.train, 10, steps=3) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert packed(first) == packed(second)
    other = extractors.train_classifier.__wrapped__(digits.train, 10, steps=3, seed=1)
    assert packed(first) != packed(other)


@pytest.mark.parametrize("channels, size", [(1, 8), (3, 8), (3, 32), (1, 28), (3, 64), (3, 100)])
def test_the_classifier_takes_many_shapes(channels, size):
    net = extractors.Classifier(channels, 7, size)
    x = torch.zeros(2, channels, size, size)
    assert net(x).shape == (2, 7) and net.features(x).shape == (2, 64)
    assert sum(p.numel() for p in net.parameters()) < 160_000


def test_a_damaged_classifier_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(extractors.SHIPPED.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is no classifier of domains.image.features"):
        load_extractor(extractors.Classifier, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no classifier at .*; train it by"):
        load_extractor(extractors.Classifier, tmp_path / "nothing.safetensors")


def shapes(num, seed):
    """16 x 16 pictures of two classes, a bright left or a bright right half, with noise."""
    rng = torch.Generator().manual_seed(seed)
    label = torch.arange(num) % 2
    x = 0.3 * torch.randn(num, 1, 16, 16, generator=rng)
    x[label == 0, :, :, :8] += 0.5
    x[label == 1, :, :, 8:] += 0.5
    return TensorData({"data": x.clamp(-1, 1), "label": label})


def test_other_labelled_data_gets_its_own_classifier(monkeypatch):
    monkeypatch.setattr(extractors, "STEPS", 30)
    evaluator = ImageEvaluator(shapes(200, 0), shapes(100, 1), {"label": 2})
    with torch.inference_mode():  # as inside Lightning's validation, before anything else has asked for the features
        evaluator(shapes(20, 2).tensors["data"], {})
    facts = evaluator.describe()["features"]
    assert "classifier fitted to the training data (30 steps" in facts["name"] and len(facts["sha256"]) == 64
    assert facts["held_out_accuracy"] > 0.95
    assert evaluator.floor()["class_agreement"] == pytest.approx(facts["held_out_accuracy"], abs=1e-4)


def test_digits_with_other_labels_do_not_get_the_shipped_extractor(digits, monkeypatch):
    def relabelled(part):
        return TensorData(part.tensors | {"label": (part.tensors["label"] + 1) % 10})

    monkeypatch.setattr(extractors, "STEPS", 3)
    evaluator = ImageEvaluator(relabelled(digits.train), relabelled(digits.val), {"label": 10})
    assert "fitted to the training data" in evaluator.describe()["features"]["name"]


def test_without_labels_pixels_are_compared():
    def plain(part):
        return TensorData({"data": part.tensors["data"].repeat(1, 1, 2, 2)})

    evaluator = ImageEvaluator(plain(shapes(200, 0)), [plain(shapes(60, 1)), plain(shapes(40, 2))], {})
    facts = evaluator.describe()
    assert facts["features"]["name"].startswith("pixels") and facts["features"]["dimensions"] == 256
    assert not facts["features"]["standardised"] and facts["num_reference"] == 100
    assert "class_agreement" not in evaluator.better and "class_agreement" not in evaluator.floor()


@pytest.mark.parametrize("held_out, left", [(1, 6), (2, 4), (3, 4), (5, 2), (6, 0)])
def test_metrics_that_need_more_images_than_there_are_are_left_out(held_out, left):
    """A folder of twelve images: what can be measured is measured."""
    train, few = (TensorData({"data": torch.rand(num, 3, 8, 8)}) for num in (10, held_out))
    evaluator = ImageEvaluator(train, few, {})
    measured = evaluator(torch.rand(20, 3, 8, 8), {})
    assert len(evaluator.too_few(20)) == left and not set(evaluator.too_few(20)) & measured.keys()
    assert (
        measured.keys() | set(evaluator.too_few(20))
        == evaluator.better.keys()
        == evaluator.floor(20).keys() | set(evaluator.too_few(20))
    )


def test_the_choice_of_features_is_checked(digits, tmp_path, monkeypatch):
    def build(features):
        return ImageEvaluator(digits.train, [digits.val], digits.classes, features)

    for wrong in ("resnet", "inception", "pixels:/x"):
        with pytest.raises(ValueError, match="features must be auto, pixels or inception:/path"):
            build(wrong)
    with pytest.raises(ValueError, match="no Inception weights at"):
        build(f"inception:{tmp_path}/none.pth").describe()
    (tmp_path / "some.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="holds no plain weights"):
        build(f"inception:{tmp_path}/some.pth").describe()
    torch.save({"hook": print}, tmp_path / "some.pth")  # a pickle that would call something
    with pytest.raises(ValueError, match="holds no plain weights"):
        build(f"inception:{tmp_path}/some.pth").describe()
    torch.save({"a": torch.zeros(1)}, tmp_path / "some.pth")
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match=r"pip install 'distillkit\[vision\]'"):
        build(f"inception:{tmp_path}/some.pth").describe()


def test_picture_is_a_grid_in_reading_order():
    x = torch.full((10, 1, 8, 8), -1.0)
    x[9] = 1
    grid = media.picture(x, {}, columns=4)
    assert grid.size == (4 * 57 + 1, 3 * 57 + 1)
    middle = [(57 * c + 29, 57 * r + 29) for r in range(3) for c in range(4)]
    seen = [grid.getpixel(place) for place in middle]
    assert seen[:9] == [(0, 0, 0)] * 9 and seen[9] == (255, 255, 255) and seen[10] == media.GREY


@pytest.mark.parametrize("size, cell", [(8, 56), (28, 56), (32, 64), (64, 64), (256, 256)])
def test_small_images_are_enlarged_by_whole_pixels(size, cell):
    assert media.picture(torch.zeros(1, 3, size, size)).size == (cell + 2, cell + 2)


def test_compare_puts_rows_under_each_other():
    rows = {"teacher": torch.full((3, 1, 8, 8), -1.0), "one step": torch.full((3, 1, 8, 8), 1.0)}
    sheet = media.compare(rows)
    assert sheet.height == 2 * 58
    assert media.compare({name: x.repeat(9, 1, 1, 1) for name, x in rows.items()}, columns=3).size == sheet.size
    assert sheet.getpixel((sheet.width - 20, 29)) == (0, 0, 0)
    assert sheet.getpixel((sheet.width - 20, 58 + 29)) == (255, 255, 255)
    margin = sheet.crop((0, 0, sheet.width - 3 * 57 - 1, 58)).convert("L")
    assert margin.getextrema()[0] < 100  # the label is written on it


def test_pictures_show_divergence_and_refuse_what_is_no_image():
    x = torch.full((1, 3, 8, 8), float("nan"))
    assert media.picture(x).getpixel((20, 20)) == (128, 128, 128)
    with pytest.raises(ValueError, match=r"got \[4, 2, 8, 8\]"):
        media.picture(torch.zeros(4, 2, 8, 8))
