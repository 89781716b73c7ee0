"""Wan and CogVideoX as teachers: latents [B, C, F, H, W], made for prompts by number."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distillkit import checks
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import DiscreteVariancePreserving, Process, RectifiedFlow
from distillkit.pipelines.files import load, local, read_json
from distillkit.students.base import Student
from distillkit.teachers.base import Teacher
from domains.video.pipelines.decoder import VAE, latent_shape
from domains.video.pipelines.files import DTYPES, embed, read_prompts
from domains.video.pipelines.networks import (
    CogVideoXNetwork,
    Network,
    PipelineBase,
    Texts,
    WanNetwork,
    read_index,
    released,
)


class PipelineTeacher(Teacher):
    """A text-to-video pipeline of the package diffusers.

    Its class `prompt` is the number of a prompt; the null class is the negative prompt. The text
    encoder is run once, at the start, and dropped; the embeddings stay in memory.

    Args:
        path: directory of the pipeline; with `download` also the name of a repository on the hub.
        prompts: file with the prompts, see `read_prompts`; the one that the data read.
        frames, height, width: of a clip in pixels.
        negative_prompt: the prompt that guidance leads away from.
        steps: number of steps with which the teacher counts as at its best.
        dtype: of the pipeline's weights; what is trained is float32.
        checkpointing: recompute activations of what is trained in the backward pass instead of
            keeping them.
        download: fetch the pipeline from the hub.

    Attributes:
        network: its transformers as a network of ours.
        schedulers: the pipeline's own classes of samplers that have our times.
    """

    provides = frozenset({"denoiser", "classes"})
    apart = Teacher.apart | {"codec", "root", "scheduler", "checkpointing", "_base"}
    renamed = {"lora": "adapters are student=lora student.rank=..., of the fake score fake_score=lora"}
    retired = ("lora",)  # in older folders: the rank of its students, which are what they are now without it
    network: type[Network]
    schedulers: tuple[str, ...]

    def __init__(
        self,
        path: str,
        prompts: str | None,
        frames: int,
        height: int,
        width: int,
        negative_prompt: str = "",
        steps: int = 50,
        dtype: Literal["float32", "bfloat16"] = "float32",
        checkpointing: bool = False,
        download: bool = False,
    ):
        if prompts is None:
            raise ValueError("this teacher is asked for prompts: say data=prompts data.path=FILE")
        checks.whole(1, frames=frames, height=height, width=width, steps=steps)
        wanted, root = read_prompts(prompts), local(path, download)
        read_index(root, self.network)
        scheduler = load(root, "scheduler", self.schedulers)
        process, prediction = self.read_scheduler(scheduler)
        shape = latent_shape(root, frames, height, width)
        length = self.network.text_length(read_json(root / "transformer" / "config.json"))
        table = embed(root, self.network.pipeline, [*wanted, negative_prompt], length, DTYPES[dtype])
        network = released(self.network, root, (len(wanted), *table.shape[1:]), DTYPES[dtype])
        network.texts.table = table
        super().__init__(Denoiser(network, process, prediction), shape, {"prompt": len(wanted)}, codec=VAE(str(root)))
        self.best = {"solver": self.best["solver"], "steps": steps}
        self._id, self.root, self.scheduler = Path(path).name, root, scheduler
        self.checkpointing = checkpointing
        num, *size = table.shape
        self._base = PipelineBase(str(root), self.network.__name__, [num - 1, *size], dtype)
        self._base.network = network  # it is in memory already

    @staticmethod
    @abstractmethod
    def read_scheduler(scheduler: Any) -> tuple[Process, str]:
        """The process of a pipeline's sampler, and the quantity that the network predicts."""

    @property
    def id(self) -> str:
        return self._id

    def base(self) -> PipelineBase:
        """The pipeline's own weights, which adapters change."""
        return self._base

    def new_denoiser(self, network: nn.Module | None = None) -> Denoiser:
        """As any teacher's; a full copy is float32."""
        made = super().new_denoiser(network)
        if network is None:
            made.network.models.float()
        for model in getattr(made.network, "models", ()) if self.checkpointing else ():
            model.enable_gradient_checkpointing()
        return made


class Wan(PipelineTeacher):
    """Wan 2.1 and 2.2, text to video (arXiv 2503.20314): a flow with shifted times.

    It is sampled as the pipeline does.

    Args:
        guidance_2: of models with two transformers, guidance scale of the second in sampling; None
            means that of the first.
        path, kwargs: as in `PipelineTeacher`.
    """

    network = WanNetwork
    schedulers = ("FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler")
    best = {"solver": "euler", "steps": 50}

    def __init__(self, path: str, guidance_2: float | None = None, **kwargs):
        super().__init__(path, **kwargs)
        self.guidance_2 = guidance_2
        if type(self.scheduler).__name__ == "UniPCMultistepScheduler":
            self.best = self.best | {"solver": "unipc"}

    @staticmethod
    def read_scheduler(scheduler):
        if not getattr(scheduler.config, "use_flow_sigmas", True):
            raise ValueError("the pipeline's sampler is not one of flows: its scheduler must say use_flow_sigmas")
        for key, known in (
            ("solver_order", 2),
            ("solver_type", "bh2"),
            ("predict_x0", True),
            ("lower_order_final", True),
            ("disable_corrector", []),
        ):
            if (value := scheduler.config.get(key, known)) != known:
                raise ValueError(f"the pipeline's scheduler says {key} = {value!r}; only {known!r} is known here")
        shift = scheduler.config.get("shift") or scheduler.config.get("flow_shift") or 1.0
        return RectifiedFlow(shift=float(shift)), "flow"

    def grid(self, steps: int) -> Tensor:
        """The pipeline's times without the final 0: the last denoising takes the step to it."""
        self.scheduler.set_timesteps(steps)
        return self.scheduler.sigmas[:-1].double()

    def guidance(self, t: Tensor, kappa: float | Tensor) -> float | Tensor:
        boundary = self.denoiser.network.boundary
        if boundary is None or self.guidance_2 is None or float(t) >= boundary:
            return kappa
        if isinstance(kappa, Tensor):
            return torch.where(kappa == 1, kappa, self.guidance_2)
        return kappa if kappa == 1 else self.guidance_2


class CogVideoX(PipelineTeacher):
    """CogVideoX, text to video (arXiv 2408.06072): variance preserving, v-prediction.

    Its highest noise level has no signal left.
    """

    network = CogVideoXNetwork
    schedulers = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
    best = {"solver": "ddim", "steps": 50}

    @staticmethod
    def read_scheduler(scheduler):
        config = scheduler.config
        schedules = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
        predictions = {"v_prediction": "v", "epsilon": "eps", "sample": "x0"}
        if config.trained_betas is not None:
            raise ValueError("the pipeline's scheduler has a table of its own (trained_betas), which is not read")
        process = DiscreteVariancePreserving(
            config.num_train_timesteps,
            config.beta_start,
            config.beta_end,
            schedules[config.beta_schedule],
            config.snr_shift_scale,
            config.rescale_betas_zero_snr,
        )
        return process, predictions[config.prediction_type]

    def grid(self, steps: int) -> Tensor:
        """The pipeline's times."""
        self.scheduler.set_timesteps(steps)
        return self.scheduler.timesteps.double()


def ask(student: Student, prompts: list[str], path: str, negative_prompt: str = "") -> None:
    """Gives a student these prompts as classes.

    The text encoder of the pipeline in `path` reads them.
    """
    network = student.denoiser.network
    table = embed(local(path), network.pipeline, [*prompts, negative_prompt], network.length, network.models[0].dtype)
    texts = Texts(len(prompts), *table.shape[1:])
    texts.table = table.to(network.texts.table.device)
    for each in (network, getattr(network, "tree", network)):  # adapters, and the network that they change
        each.texts = texts
    student.classes = {"prompt": len(prompts)}
