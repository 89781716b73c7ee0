"""Methods from the command line to a step, with and without context frames; the teacher."""

import pytest
import torch
from helpers import trainer, wake

from distillkit import load_student
from distillkit.cli import config
from distillkit.errors import UsageError
from domains.video.teacher import WEIGHTS
from tests.battery.conftest import FEWER, Case, build, by_family, few, goes

SMALL = ["data.train=30", "data.val=10", "data.test=20", "data.batch_size=4"]
CONTEXTS = {"classes": [], "first": ["stage=continuation"]}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """An untrained teacher's folder for each context."""
    folders = {}
    for name, words in CONTEXTS.items():
        own = build("domain=video", "method=pretrain", *SMALL, *words, "network.channels=8")
        wake(own.model.ema)
        folders[name] = tmp_path_factory.mktemp(name)
        own.model.export(folders[name])
    return folders


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("method", by_family())
def test_every_method_takes_steps(method, context, teachers, tmp_path):
    if not goes("video", method):
        pytest.skip("the battery proves that it is refused")
    words = ["network.channels=8", *few(Case(method, "video"), FEWER), *CONTEXTS[context]]
    if method != "pretrain":
        words += ["teacher=folder", f"teacher.path={teachers[context]}"]
    own = build("domain=video", f"method={method}", *SMALL, *words)
    own.model.require(own.data)
    own.data.setup()
    own.model.check(own.data)
    run = trainer(max_steps=3)
    run.fit(own.model, own.data)
    assert run.global_step == 3 and not own.model.bad_steps.any()
    cond = own.data.conditions(5)
    assert ("first" in cond) == (context == "first")
    samples = own.model.sample(cond, 5, 0)
    assert samples.shape == (5, *own.data.event_shape) and samples.isfinite().all()
    if method == "dmd":
        own.model.export(tmp_path)
        student = load_student(tmp_path)
        assert student.num_steps == 4 and torch.equal(student.sample(5, cond), own.model.sample(cond, 5, 0))


def test_a_teacher_that_is_given_the_first_frame_needs_data_that_have_it(teachers):
    own = build("domain=video", "method=dmd", *SMALL, "teacher=folder", f"teacher.path={teachers['first']}")
    own.data.setup()
    with pytest.raises(ValueError, match="the teacher needs first in a batch"):
        own.model.check(own.data)


def test_the_words_for_a_folder_of_videos():
    words = ["domain=video", "method=pretrain", "data=video_folder", "data.path=clips", "data.resolution=64"]
    handed = config.hand_over(config.compose([*words, "vars.classes.label=20", "stage=continuation"])[0])
    model = handed["model"]["init_args"]
    assert (
        model["event_shape"] == [3, 16, 64, 64] and model["classes"] == {"label": 20} and model["context"] == ["first"]
    )
    assert handed["data"]["init_args"]["given"] == 4
    assert model["network"]["init_args"]["given"] == 4
    with pytest.raises(UsageError):
        config.compose(["domain=video", "data=videos"])


@pytest.mark.parametrize("name", ["clips", "clips_continuation"])
def test_the_shipped_weights_are_small(name):
    assert (WEIGHTS / name / "model.safetensors").stat().st_size < 2.5e6
    assert "method=pretrain" in (WEIGHTS / name / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "share"), [("clip", 0.5), ("continuation", 1.0)]
)  # four frames say nearly everything
def test_the_teacher_is_worth_distilling(stage, share):
    """At its best it makes the digit and motion asked for, nearer to real data than in one step."""
    own = build("domain=video", f"stage={stage}", "method=dmd")
    teacher, evaluator = own.model.teacher, own.data.evaluator()
    cond = teacher.condition(own.data.conditions(120))
    noise = torch.randn(teacher.shape(120, cond), generator=torch.Generator().manual_seed(1))
    best, fast = (evaluator(teacher.sample(noise, cond, steps=steps), cond) for steps in (None, 1))
    assert best["class_agreement"] > 0.8 < best["motion_agreement"]
    assert best["frechet"] < share * fast["frechet"]
