"""A teacher or a codec of another scale than the data's is refused before the first step."""

import pytest
from helpers import trainer

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import RectifiedFlow, ResShift
from distillkit.methods.ctmsr import CTMSR
from distillkit.methods.dmd import DMD
from distillkit.methods.lsd import LSD
from distillkit.methods.pairs import PairDistil
from distillkit.methods.pretrain import Pretrain
from distillkit.methods.reflow import Reflow
from distillkit.teachers.base import Teacher
from domains.super_resolution.codec import Upscale
from domains.super_resolution.data import Photos
from domains.super_resolution.network import PatchNet

SHAPE = (3, 24, 24)
OWN = {"event_shape": SHAPE, "context": ["low"], "codec": Upscale(4)}


def network() -> PatchNet:
    return PatchNet(SHAPE, width=8, depth=1)


def teacher() -> Teacher:
    return Teacher(Denoiser(network(), ResShift(), "edm", 0.1), SHAPE, context=("low",), codec=Upscale(4))


METHODS = {
    "dmd": lambda: DMD(teacher()),
    "pairs": lambda: PairDistil(teacher(), num_pairs=2),
    "reflow": lambda: Reflow(teacher(), num_pairs=2),
    "lsd": lambda: LSD(teacher()),
    "pretrain": lambda: Pretrain(network(), ResShift(), **OWN),
    "ctmsr": lambda: CTMSR(network(), RectifiedFlow(), **OWN),
}


def test_squares_of_another_size_are_taken():
    running = trainer(1)
    running.fit(METHODS["dmd"](), Photos(crop=32, held_out=1, batch_size=2))
    assert running.global_step == 1


@pytest.mark.parametrize("scale, made", [(2, 48), (8, 12)])
@pytest.mark.parametrize("method", METHODS)
def test_another_scale_is_refused_in_a_sentence(method, scale, made):
    says = rf"for low of these data would have shape \[3, {made}, {made}\], the data's is \[3, 24, 24\]: .*scale=4"
    with pytest.raises(ValueError, match=says):
        trainer(1).fit(METHODS[method](), Photos(scale=scale, crop=24, held_out=1, batch_size=2))
