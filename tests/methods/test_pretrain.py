"""Teachers from data, continuous and discrete: the products of a run, and the loss of tokens."""

import pytest
import torch
from helpers import Pairs, at, trainer
from torch import nn

from distillkit import cache
from distillkit.data import DistillData, TensorData
from distillkit.diffusion.process import VarianceExploding
from distillkit.discrete.noise import fresh
from distillkit.discrete.process import Absorbing, Uniform
from distillkit.files import read_tensors
from distillkit.losses.discrete import score_entropy
from distillkit.methods.pretrain import Pretrain
from distillkit.methods.pretrain_tokens import T_MIN, PretrainTokens
from distillkit.networks.ddit import DDiT
from distillkit.networks.mlp import MLP


class Tokens(DistillData):
    """Random tokens."""

    event_shape, classes, num_tokens = (5,), {}, 3

    def load(self):
        made = TensorData({"data": torch.randint(3, (48, 5), generator=torch.Generator().manual_seed(0))})
        return made, made, made

    build_evaluator = media = None


def plane(**settings):
    classes = Pairs.classes
    return Pretrain(MLP([2], width=8, depth=1, classes=classes), VarianceExploding(), [2], classes=classes, **settings)


def tokens(process=Absorbing, **settings):
    network = DDiT(3, mask=process is Absorbing, width=8, depth=1, heads=2, adaln=True, cond_dim=8)
    return PretrainTokens(network, process(3), [5], **settings)


@pytest.mark.parametrize("make, data", [(plane, Pairs), (tokens, Tokens)])
def test_the_folder_holds_the_average_not_what_is_trained(make, data, tmp_path):
    torch.manual_seed(0)
    model = make(ema_rampup=10.0)  # a long average: after five steps it is not where the network is
    trainer(max_steps=5).fit(model, data(batch_size=8))
    raw, average = (dict(module.state_dict()) for module in (model.student, model.ema))
    assert any((raw[name] - value).abs().max() > 1e-4 for name, value in average.items() if value.is_floating_point())
    model.export(tmp_path / "teacher")
    saved = read_tensors(tmp_path / "teacher" / "model.safetensors")
    assert saved and all(torch.equal(value, average[name]) for name, value in saved.items())


def test_samples_of_a_network_that_is_being_trained_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "WORTH", 0.0)
    model, cond = plane(steps=2), {"label": torch.zeros(4).long()}
    with cache.using(cache.SampleCache(tmp_path)):
        validated = model.sample(cond, 4, 1)
        assert not cache.current().entries()
        assert torch.equal(model.product().generate(4, cond, 1), validated) and len(cache.current().entries()) == 1


@pytest.mark.parametrize("process, prediction", [(Absorbing, "mean"), (Absorbing, "ratio"), (Uniform, "mean")])
def test_the_loss_of_tokens_is_the_score_entropy_per_token(process, prediction):
    """d = 5 tokens, at times spread evenly from one random start."""
    torch.manual_seed(0)
    model = at(tokens(process, prediction=prediction), step=3)
    nn.init.normal_(model.student.network.output_layer.linear.weight)
    x_0 = Tokens(batch_size=8).load()[0].tensors["data"][:8]
    t = ((model.rand(1, "t") + torch.arange(8) / 8) % 1).clamp_min(T_MIN)
    noise = fresh(model.generator("noise").initial_seed(), 8, 5)(0)
    entropy = score_entropy(model.student, x_0, t, noise, {})
    assert entropy.shape == (8,) and entropy.mean() > 0
    torch.testing.assert_close(model.student_loss({"data": x_0}), entropy.mean() / 5)
