"""Networks of spectrograms and of sounds: shapes, beginnings, refusals."""

import pytest
import torch

from domains.music.codec import Mel
from domains.music.network import MelUNet
from domains.music.wave_unet import WaveUNet


def mel(given: int = 8, codec: Mel | None = None) -> MelUNet:
    return MelUNet([1, 64, 32], channels=8, classes={"pitch": 3}, given=given, codec=codec or Mel())


def wave(given: int = 256) -> WaveUNet:
    return WaveUNet([1, 1024], channels=8, multipliers=(1, 2), classes={"pitch": 3}, given=given)


@pytest.mark.parametrize(("make", "shape", "num"), [(mel, (1, 64, 32), 2_048), (wave, (1, 1_024), 256)])
def test_beginnings_are_sounds_that_change_what_is_made(make, shape, num):
    torch.manual_seed(0)
    net = make()
    torch.nn.init.normal_(net.out.weight, std=0.1)
    cond = {"pitch": torch.tensor([0, 2]), "first": torch.rand(2, 1, num) - 0.5}
    x, t = torch.randn(2, *shape), torch.rand(2)
    out = net(x, t, cond)
    assert out.shape == x.shape
    assert not torch.equal(out, net(x, t, {**cond, "first": cond["first"].flip(0)}))
    net.check_context(cond)
    with pytest.raises(ValueError, match=f"must hold the first {num} samples .* got \\[2, 1, {num - 1}\\]"):
        net.check_context({"first": cond["first"][..., 1:]})


def test_refusals():
    with pytest.raises(ValueError, match="needs the codec"):
        MelUNet([1, 64, 32], channels=8, given=8)
    with pytest.raises(ValueError, match="needs sounds .* divisible by 32"):
        WaveUNet([1, 1000], channels=8, multipliers=(1, 2))
    with pytest.raises(ValueError, match="below 1024 samples"):
        wave(1_024)
