"""A number that cannot be meant is refused before work starts, in one sentence that names it."""

import inspect
import math
import re

import pytest
import torch
from helpers import Pairs, neural, trainer

from distillkit import checks, runs
from distillkit.callbacks.finish import Finish
from distillkit.cli import catalogue, config, front, matrix, pairing
from distillkit.diffusion import process, times
from distillkit.discrete import schedule
from distillkit.discrete.process import Absorbing
from distillkit.discrete.sampling import ThetaRK2, ThetaTrapezoidal
from distillkit.methods.base import Adam
from distillkit.methods.dmd import DMD
from distillkit.methods.lsd import LSD
from distillkit.methods.lsd_tokens import LSDTokens
from distillkit.methods.mdt_dist import MDTDist
from distillkit.methods.pretrain import Pretrain
from distillkit.methods.pretrain_tokens import PretrainTokens
from distillkit.methods.scorelidar import ScoreLiDAR
from distillkit.methods.sid import SiD
from distillkit.networks.ddit import DDiT
from distillkit.networks.dit import DiT
from distillkit.networks.mlp import MLP
from distillkit.networks.pair_transformer import PairTransformer
from distillkit.networks.set_dit import SetDiT
from distillkit.networks.unet import UNet
from distillkit.networks.video_unet import VideoUNet
from domains.discrete.data import TextData, WorldData
from domains.discrete.teacher import Countdown, Potts
from domains.image.data import ImageFolder, NpzImages, TorchvisionData
from domains.protein.data import ChainFile, ProteinData
from domains.protein.folds import IdealFolds
from domains.threed.data import FeaturesData
from domains.threed.mesh_folder import MeshFolder
from domains.threed.solids import Solids
from domains.toy.data import ToyData
from domains.toy.teacher import Circle, Gaussian
from domains.video.data import MovingDigits
from domains.video.folder import VideoFolder

NAN, INF = math.nan, math.inf
TEACHER = Gaussian()
PATH = {"path": "nowhere"}
# every class whose numbers people set, with what it cannot do without
CLASSES = {
    **{cls: {} for cls in (Adam, Finish, Circle, Potts, Countdown, Solids, IdealFolds, MovingDigits, TextData)},
    **{
        getattr(times, name): {}
        for name in ("LogNormal", "KarrasUniform", "Uniform", "LogitNormal", "ShiftedUniform", "LogUniform")
    },
    **{getattr(process, name): {} for name in ("VarianceExploding", "VariancePreserving", "RectifiedFlow", "TrigFlow")},
    process.DiscreteVariancePreserving: {},
    **{getattr(schedule, name): {} for name in ("LogLinear", "Geometric", "MDLMCosine", "DuoCosine")},
    **{cls: {} for cls in (ThetaTrapezoidal, ThetaRK2)},
    **{cls: {"teacher": TEACHER} for cls in (SiD, DMD, ScoreLiDAR, MDTDist, LSD, ToyData)},
    **{cls: {"teacher": Potts()} for cls in (LSDTokens, WorldData)},
    Pretrain: {"network": MLP([2], width=4, depth=1), "process": process.VarianceExploding(), "event_shape": [2]},
    PretrainTokens: {"network": DDiT(4, width=8, depth=1), "process": Absorbing(3), "event_shape": [5]},
    MLP: {"event_shape": [2]},
    DiT: {"event_shape": [1, 8, 8]},
    UNet: {"event_shape": [1, 8, 8]},
    VideoUNet: {"event_shape": [1, 8, 8, 8]},
    SetDiT: {"event_shape": [16, 11]},
    PairTransformer: {"event_shape": [16, 3]},
    DDiT: {"num_tokens": 4},
    **{cls: PATH for cls in (NpzImages, ImageFolder, VideoFolder, MeshFolder, ChainFile)},
    TorchvisionData: {"name": "MNIST", "root": "nowhere"},
    ProteinData: {"chains": IdealFolds()},
    FeaturesData: {"shapes": Solids()},
}


def numbers():
    """Every number in the constructors of `CLASSES`: class, name, type."""
    for cls in CLASSES:
        seen = set()
        for owner in cls.__mro__:
            if "__init__" in vars(owner):
                parameters = inspect.signature(owner.__init__).parameters
                for name, parameter in parameters.items():
                    kind = str(parameter.annotation)
                    if name in getattr(cls, "renamed", {}):
                        continue  # it takes none
                    if name not in seen and re.fullmatch(r"(<class ')?(int|float)('>)?( \| None)?", kind):
                        seen.add(name)
                        yield pytest.param(cls, name, kind, id=f"{cls.__name__}.{name}")
                if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                    break


@pytest.mark.parametrize("cls, name, kind", list(numbers()))
def test_every_number_is_looked_at(cls, name, kind):
    """NaN, infinity, 1.5 and null are refused; a new argument without a check fails here."""
    wrong = [NAN, 1.5] if "int" in kind else [NAN, INF]
    for value in wrong + [None] * ("None" not in kind):
        with pytest.raises(ValueError, match=rf"\b{name}\b"):
            cls(**CLASSES[cls] | {name: value})


@pytest.mark.parametrize(
    "cls, settings, sentence",
    [
        (Adam, {"clip": -1.0}, "clip must be positive, got -1.0 (null leaves gradients as they are)"),
        (Adam, {"lr": 1e9}, "lr must lie in (0, 10], got 1000000000.0"),
        (Adam, {"clip": 0.0}, "clip must be positive, got 0.0 (null leaves gradients as they are)"),
        (Adam, {"betas": (0.9, 1.0)}, "betas must lie in [0, 1), got (0.9, 1.0)"),
        (Adam, {"betas": (-0.1, 0.9)}, "betas must lie in [0, 1), got (-0.1, 0.9)"),
        (Adam, {"weight_decay": -0.01}, "weight_decay must lie in [0, 10000), got -0.01"),
        (Adam, {"lr": 0.1, "weight_decay": 20.0}, "weight_decay must lie in [0, 10), got 20.0"),
        (Adam, {"updates": 10**9}, "updates must be at most 1000, got 1000000000"),
        (SiD, {"warmup": -1}, "warmup must be at least 0, got -1"),
        (SiD, {"ema_halflife": -1.0}, "ema_halflife must not be negative, got -1.0"),
        (SiD, {"ema_rampup": 0.0}, "ema_rampup must be positive, got 0.0"),
        (SiD, {"max_bad_steps": 0}, "max_bad_steps must be at least 1, got 0"),
        (SiD, {"schedule": "cosin"}, "schedule must be constant, linear or cosine, got 'cosin'"),
        (SiD, {"alpha": 50.0}, "alpha must lie in [-1, 2], got 50.0"),
        (SiD, {"noise_scale": -1.0}, "noise_scale must lie in [0, 10], got -1.0"),
        (SiD, {"kappa": -1.0}, "kappa must lie in [0, 1000], got -1.0"),
        (DMD, {"gan": -1.0}, "gan must lie in [0, 1000], got -1.0"),
        (DMD, {"gan": 0.1, "gan_discriminator": 0.0}, "gan=0.1 needs a discriminator that learns"),
        (DMD, {"num_pairs": 0}, "num_pairs must be at least 1, got 0"),
        (MDTDist, {"lambda_vd": -1.0}, "lambda_vd must lie in [0, 1000], got -1.0"),
        (MDTDist, {"lambda_vd": 0.0, "lambda_vm": 0.0}, "lambda_vm and lambda_vd are both 0"),
        (LSD, {"guard": 1}, "guard must be at least 2, got 1 (0 compares nothing)"),
        (Pretrain, {"drop": 1.0}, "drop must lie in [0, 1), got 1.0"),
        (Pretrain, {"steps": 0}, "steps must be at least 1, got 0"),
        (times.LogNormal, {"std": -1.0}, "std must lie in (0, 30], got -1.0"),
        (times.KarrasUniform, {"sigma_min": 90.0}, "sigma_min must lie below sigma_max, got 90.0 and 80.0"),
        (times.KarrasUniform, {"rho": 0.0}, "rho must be positive, got 0.0"),
        (times.ShiftedUniform, {"low": 0.9, "high": 0.1}, "low must lie below high, got 0.9 and 0.1"),
        (process.VarianceExploding, {"rho": -7.0}, "rho must be positive, got -7.0"),
        (process.VariancePreserving, {"beta_min": 30.0}, "beta_min must lie between 0 and beta_max"),
        (process.DiscreteVariancePreserving, {"beta_end": 1.5}, "betas must rise from beta_start and stay below 1"),
        (MLP, {"width": 7}, "width must be even, got 7"),
        (DiT, {"width": 30, "heads": 4}, "width must be even and divisible by heads, got 30 and 4"),
        (DiT, {"depth": 0}, "depth must be at least 1, got 0"),
        (DiT, {"depth": 10**9}, "depth must be at most 1000, got 1000000000"),
        (UNet, {"multipliers": (1, -2)}, "multipliers must be at least 1, got (1, -2)"),
        (UNet, {"classes": {"label": 0}}, "classes must be at least 1, got {'label': 0}"),
        (VideoUNet, {"heads": 5}, "the width of the last level must be divisible by heads, got 64 and 5"),
        (MovingDigits, {"given": 16}, "given must leave something of the 16 frames to make, got 16"),
        (
            ImageFolder,
            {"path": "x", "val": 0.6, "test": 0.5},
            "val and test are shares and leave nothing, got 0.6 and 0.5",
        ),
        (ImageFolder, {"path": "x", "seed": -1}, "seed must be at least 0, got -1"),
        (Circle, {"weights": [NAN] * 8}, "weights must be a finite number"),
        (Finish, {"num_samples": 1}, "num_samples must be at least 2, got 1 (0 leaves the evaluation out)"),
        (Finish, {"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_signs_and_ranges(cls, settings, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        cls(**CLASSES[cls] | settings)


@pytest.mark.parametrize("num", [1, 4])
def test_times_and_their_number_must_not_contradict(num):
    assert DMD(TEACHER, times=[4.0, 1.0]).num_steps == 2 == DMD(TEACHER, num_steps=2, times=[4.0, 1.0]).num_steps
    assert DMD(TEACHER).num_steps == 1 and LSD(TEACHER).num_steps == 6 and DMD(TEACHER, num_steps=3).num_steps == 3
    for method in (DMD, LSD):
        with pytest.raises(ValueError, match=rf"num_steps={num} and the 2 times \[4.0, 1.0\] contradict"):
            method(TEACHER, num_steps=num, times=[4.0, 1.0])
    with pytest.raises(ValueError, match=r"t_init=3.0 and times=\[4.0, 1.0\] contradict"):
        DMD(TEACHER, t_init=3.0, times=[4.0, 1.0])


# Through the door


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(runs.OUT, "")
    monkeypatch.delenv(runs.OUT)

    def run(*words, verb="fit"):
        short = [] if any(word.startswith("trainer.max_steps") for word in words) else ["trainer.max_steps=2"]
        assert front.main([verb, "domain=toy", "method=dmd", *short, *words]) == 2
        assert not [path for path in tmp_path.rglob("*") if path.is_file()], "nothing is left behind"
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
        assert len(lines) == 1
        return lines[0].removeprefix("error: ").strip()

    return run


@pytest.mark.parametrize(
    "words, sentence",
    [
        (
            ["model.student.clip=-1"],
            "model.student.clip must be positive, got -1.0 (null leaves gradients as they are)",
        ),
        (["model.fake_score.lr=null"], "model.fake_score.lr must be a finite number, got null"),
        (["--model.student.betas=[1.5,2]"], "model.student.betas must lie in [0, 1), got (1.5, 2.0)"),
        (["--model.ema_rampup=.nan"], "model.ema_rampup must be a finite number, got nan"),
        (["model.student_times.std=-1"], "model.student_times.std must lie in (0, 30], got -1.0"),
        (["model.num_steps=4", "model.times=[4,1]"], "num_steps=4 and the 2 times [4.0, 1.0] contradict"),
        (["student=fresh", "network.width=null"], "network.width must be a whole number, got null"),
        (["data.batch_size=null"], "data.batch_size must be a whole number, got null"),
        (
            ["vars.callbacks.finish.num_samples=1"],
            "num_samples must be at least 2, got 1 (0 leaves the evaluation out)",
        ),
        (["trainer.max_steps=0"], "trainer.max_steps must be at least 1, got 0 (-1 is no limit)"),
        (["trainer.max_steps=null"], "trainer.max_steps must be a whole number, got null (-1 is no limit)"),
        (
            ["trainer.max_steps=-1"],
            "nothing ends this run: give trainer.max_steps, trainer.max_epochs or trainer.max_time",
        ),
        (["trainer.log_every_n_steps=0"], "trainer.log_every_n_steps must be at least 1, got 0"),
        (["trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches must be at least 1, got 0"),
        (["trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val must not be negative, got -1"),
        (["trainer.gradient_clip_algorithm=value"], "trainer.gradient_clip_algorithm=value is not known here"),
        (["trainer.limit_train_batches=0"], "trainer.limit_train_batches must be positive, got 0"),
        (["trainer.val_check_interval=-3"], "trainer.val_check_interval must be positive, got -3"),
        (["trainer.precision=16-mixed"], "use trainer.precision=bf16-mixed"),
        (["model.student.betas=null"], "model.student.betas must be two decays, got null"),
        (["trainer.max_time='00:00:00:00'"], "trainer.max_time must be a time such as 00:12:00:00, got 00:00:00:00"),
        (["--trainer.max_time={days: -1}"], "trainer.max_time must be a time such as 00:12:00:00, got"),
        (["trainer.accelerator=cpu", "trainer.devices=x"], "these trainer settings make no trainer: `devices`"),
        (["model.guide_fake=null"], "model.guide_fake must be true or false, got null"),
        (["vars.callbacks.finish.pictures=null"], "vars.callbacks.finish.pictures must be true or false, got null"),
        (["trainer.barebones=true"], "trainer.barebones keeps neither metrics nor checkpoints"),
        (["trainer.min_steps=5"], "trainer.min_steps=5 and trainer.max_steps=2 contradict each other"),
        (["trainer.num_sanity_val_steps=-2"], "trainer.num_sanity_val_steps must be at least -1, got -2"),
        (["trainer.num_nodes=2"], "trainer.num_nodes=2 needs processes on every node, which srun or torchrun starts"),
        (["trainer.accelerator=cpu", "trainer.devices=99999"], "trainer.devices=99999 asks for so many processes"),
        (
            ["trainer.max_steps=-1", "trainer.max_time='00:00:00:09'"],
            "schedule=cosine needs to know the end of the run: give trainer.max_steps",
        ),
    ],
)
def test_the_key_is_named_as_it_was_typed(refused, words, sentence):
    assert sentence in refused(*words)


@pytest.mark.parametrize(
    "word, such_as, value",
    [
        ("model.student=1", ", such as model.student.lr,", "1"),
        ("model.student=null", ", such as model.student.lr,", "null"),
        ("--model.fake_score=null", ", such as model.fake_score.lr,", "null"),
        ("model.student=x", ", such as model.student.lr,", "x"),
        ("model.student=[1]", "", "[1]"),
    ],
)
def test_a_value_for_a_key_that_holds_others_is_refused(refused, word, such_as, value):
    key = word.lstrip("-").partition("=")[0]
    assert refused(word) == f"{key} holds further keys{such_as} and cannot be {value}"


def test_a_network_for_other_events_is_refused():
    with pytest.raises(ValueError, match=r"made for event_shape \[3\], the run has \[2\]: say it once"):
        Pretrain(MLP([3], width=4, depth=1), process.VarianceExploding(), [2])


def test_settings_that_are_no_class_take_none(refused):
    assert refused("model.student._target_=x.Y").startswith("model: Adam cannot be another class, got x.Y")


def test_a_number_that_stands_in_two_places_keeps_its_short_name():
    error = checks.Unfit("lr", -1.0, "be positive")
    roles = {"student": {"lr": -1.0}, "fake_score": {"lr": 1.0}}
    assert str(error.with_key({"model": {"init_args": roles}})) == "model.student.lr must be positive, got -1.0"
    roles["fake_score"]["lr"] = -1.0
    assert str(error.with_key({"model": {"init_args": roles}})) == "lr must be positive, got -1.0"


def test_a_library_user_is_refused_too():
    with pytest.raises(ValueError, match="trainer.gradient_clip_val must not be negative, got -1"):
        trainer(2, gradient_clip_val=-1).fit(DMD(neural()), Pairs(batch_size=8))


# Every run ends and is validated


def pairs():
    known = catalogue.groups()
    return [(domain, method) for domain in known["domain"] for method in known["method"]]


@pytest.mark.parametrize("domain, method", pairs())
def test_every_default_run_ends_and_is_validated(domain, method):
    if matrix.compatibility(domain, method) is not None:
        pytest.skip("does not go together")
    flags = config.hand_over(pairing.pair(domain, method))["trainer"]
    assert 0 < flags["val_check_interval"] <= flags["max_steps"], "no end, or no validation"


def test_epochs_end_a_run_and_its_schedule():
    """The learning rate falls to zero over the run, also where epochs say how long it is."""
    model = DMD(neural(), schedule="linear")
    run = trainer(-1, max_epochs=2)
    run.fit(model, Pairs(batch_size=8))  # 48 samples: six steps an epoch
    assert run.global_step == 12 == run.estimated_stepping_batches
    assert torch.tensor([model._lr_factor(step) for step in (0, 6, 12)]).tolist() == [1.0, 0.5, 0.0]
