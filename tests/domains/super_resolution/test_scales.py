"""Data of another scale than the teacher's."""

import pytest
import torch
from helpers import trainer

from distillkit.data import DistillData, TensorData
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import ResShift
from distillkit.methods.dmd import DMD
from distillkit.methods.lsd import LSD
from distillkit.methods.pairs import PairDistil
from distillkit.methods.reflow import Reflow
from distillkit.teachers.base import Teacher
from domains.super_resolution.codec import Upscale
from domains.super_resolution.network import PatchNet


class Small(DistillData):
    """Squares of 16 pixels with observations of 8, so at scale 2."""

    domain, context, classes, event_shape = "super_resolution", ("low",), {}, (3, 16, 16)

    def load(self):
        return (TensorData({"data": torch.zeros(4, 3, 16, 16), "low": torch.zeros(4, 3, 8, 8)}),) * 3


@pytest.mark.parametrize("method", [DMD, PairDistil, LSD, Reflow], ids=lambda method: method.__name__)
def test_it_is_refused_before_work(method, tmp_path):
    network = PatchNet((3, 16, 16), width=8, depth=1)
    teacher = Teacher(Denoiser(network, ResShift(), "edm", 0.1), (3, 16, 16), context=("low",), codec=Upscale(4))
    with pytest.raises(ValueError, match=r"for the low of these data the codec asks for samples of \[3, 32, 32\], the"):
        trainer(default_root_dir=tmp_path, max_steps=1).fit(method(teacher), Small(batch_size=2))
