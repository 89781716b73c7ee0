"""Both stages from the command line to a step of training, and their embedded teachers."""

import pytest
import torch
from helpers import trainer
from safetensors.torch import load_file

from distillkit.cli import config
from distillkit.errors import UsageError
from domains.threed.teacher import WEIGHTS
from tests.battery.conftest import FEWER, Case, build, by_family, few, goes

SMALL = ["data.shapes.train=40", "data.shapes.val=10", "data.shapes.test=20", "data.batch_size=4"]
STAGES = ("structure", "features")


def made(stage: str, *words: str):
    return build("domain=threed", f"stage={stage}", *SMALL, *words)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("method", by_family())
def test_every_method_takes_steps_in_both_stages(method, stage):
    if not goes("threed", method):
        pytest.skip("the battery proves that it is refused")
    own = made(stage, f"method={method}", "network.width=16", *few(Case(method, "threed"), FEWER))
    own.model.require(own.data)
    own.data.setup()
    own.model.check(own.data)
    run = trainer(max_steps=3)
    run.fit(own.model, own.data)
    assert run.global_step == 3 and not own.model.bad_steps.any()
    cond = {name: value for name, value in own.data.conditions(5).items()}
    samples = own.model.sample(cond, 5, 0)
    assert samples.shape == (5, *own.data.event_shape) and samples.isfinite().all()
    if stage == "features":
        assert (samples[~cond["mask"]] == 0).all()


def test_the_stage_decides_what_the_shapes_become():
    chosen = {stage: config.hand_over(config.compose(["domain=threed", f"stage={stage}"])[0]) for stage in STAGES}
    for stage, handed in chosen.items():
        assert handed["data"]["class_path"] == f"domains.threed.data.{stage.title()}Data"
        assert handed["data"]["init_args"]["shapes"]["class_path"] == "domains.threed.solids.Solids"
        assert handed["model"]["init_args"]["teacher"]["class_path"] == f"domains.threed.teacher.Solids{stage.title()}"
    words = ["domain=threed", "stage=features", "data=mesh_folder", "data.shapes.path=meshes", "method=pretrain"]
    model = config.hand_over(config.compose(words)[0])["model"]["init_args"]
    assert model["context"] == ["coords", "mask"] and model["event_shape"] == [1024, 11] and model["classes"] == {}
    assert (
        config.hand_over(config.compose(["domain=image", "method=pretrain"])[0])["model"]["init_args"]["context"] == []
    )
    with pytest.raises(UsageError, match="stage"):
        config.compose(["domain=image", "stage=features"])


@pytest.mark.parametrize("stage", STAGES)
def test_the_shipped_weights_are_small_and_half_precision(stage):
    file = WEIGHTS / f"solids_{stage}" / "model.safetensors"
    assert file.stat().st_size < 2.5e6
    assert {value.dtype for value in load_file(file).values()} == {torch.float16}
    assert f"stage={stage} method=pretrain" in (WEIGHTS / f"solids_{stage}" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_the_teacher_is_worth_distilling(stage):
    """At its best it makes the class asked for, nearer to real data than in one step."""
    own = build("domain=threed", f"stage={stage}", "method=dmd")
    teacher, evaluator = own.model.teacher, own.data.evaluator()
    cond = teacher.condition(own.data.conditions(150))
    noise = torch.randn(teacher.shape(150, cond), generator=torch.Generator().manual_seed(1))
    best, fast = (evaluator(teacher.sample(noise, cond, steps=steps), cond) for steps in (None, 1))
    assert best["class_agreement"] > 0.9
    assert best["frechet"] < fast["frechet"] / 2
