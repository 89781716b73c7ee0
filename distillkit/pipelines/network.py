"""The denoising networks of pipelines as networks of the library, with adapters' places in them.

A family of pipelines is one subclass of `Network`, in the domain of its samples.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.diffusion.process import Process
from distillkit.files import hash_weights
from distillkit.networks.adapters import Base
from distillkit.networks.blocks import Told
from distillkit.networks.dtypes import DTYPES
from distillkit.networks.routed import dispatch
from distillkit.pipelines import schedulers
from distillkit.pipelines.codec import PipelineCodec
from distillkit.pipelines.files import import_diffusers, load, place, read_index, read_json
from distillkit.pipelines.texts import Texts
from distillkit.spec import Recorded

Cond = dict[str, Tensor]


class Network(Recorded, nn.Module, ABC):
    """A pipeline's denoising network, or two: the first from time `boundary` up, the second below.

    Args:
        configs: for each model, its config.json.
        texts: shapes of the tables of embeddings by name, `{"text": [prompts, tokens, D]}`; empty
            for a model that reads no texts. A list is that of the one table `text`.
        boundary: a time in (0, 1), if there are two models.
        settings: further plain facts of the family, see `read_settings`.

    Attributes:
        pipelines: classes of the package diffusers that it reads.
        kinds: classes of the model.
        part: folder of the model; that of a second one ends in `_2`.
        text_parts: beginnings of the names of the folders that texts are embedded with.
        given: `prompt` for a model that reads texts, `label` for one with classes, or empty.
        codec: the class of its codec; None if it works on data.
        scheduler_part: folder of the pipeline's sampler; its name ends in `scheduler`.
        schedulers: classes of the pipeline's samplers that are known.
        steps: the pipeline's own number of steps.
        guide: of a pipeline whose guidance is not linear, `guide(x, x_0, guided)`: the denoised
            samples that the teacher's sampling goes on with, from its input, the samples denoised
            for the prompts and those guided linearly with kappa > 1. Training guides linearly.
        context: batch keys of further conditions (an image), see `BaseTeacher`.
        own_parts: submodules that adapters keep for themselves, see there.
    """

    pipelines: tuple[str, ...]
    kinds: tuple[str, ...]
    part = "transformer"
    text_parts: tuple[str, ...] = ("text_encoder", "tokenizer")
    given = "prompt"
    codec: type[PipelineCodec] | None
    scheduler_part = "scheduler"
    schedulers: tuple[str, ...]
    steps = 50
    guide: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    context: tuple[str, ...] = ()
    own_parts = ("texts",)

    def __init__(
        self,
        configs: list[dict[str, Any]],
        texts: Mapping[str, Sequence[int]] | Sequence[int] | None = None,
        boundary: float | None = None,
        settings: dict[str, Any] | None = None,
    ):
        super().__init__()
        tables = texts if isinstance(texts, Mapping) else {"text": list(texts)} if texts else {}
        self.models = nn.ModuleList(
            getattr(import_diffusers(), _kind(type(self), config)).from_config(_plain(config)) for config in configs
        )
        self.settings = dict(settings or {})
        self.texts, self.boundary = Texts(tables), boundary
        # a vector that is added to all tokens of the text, or without one to all places of x
        self.embed = Told(tables["text"][-1] if "text" in tables else configs[0].get("in_channels", 0))

    # What a family says

    @classmethod
    def variant(cls, root: Path) -> type[Network]:
        """The family of the pipeline in `root`, where one pipeline class stands for several."""
        return cls

    @classmethod
    def model_config(cls, root: Path) -> dict[str, Any]:
        """The configuration of the pipeline's first model."""
        return read_json(place(root, cls.part) / "config.json")

    @classmethod
    def read_settings(cls, root: Path, shape: Sequence[int], asked: Mapping[str, Any]) -> dict[str, Any]:
        """Plain facts that `call` needs and that no model's configuration says.

        Args:
            root: the pipeline's directory.
            shape: of a latent, see `latent_shape`.
            asked: further arguments of the teacher, such as `guidance`.

        Raises:
            ValueError: something is asked for that the pipeline does not have.
        """
        if unknown := [name for name, value in asked.items() if value is not None]:
            raise ValueError(f"the model in {root} is not told its {unknown[0]}: leave teacher.{unknown[0]} null")
        return {}

    @classmethod
    @abstractmethod
    def latent_shape(cls, root: Path, size: Mapping[str, int | float | None]) -> tuple[int, ...]:
        """The shape of a latent of the pipeline in `root`.

        Args:
            root: the pipeline's directory.
            size: of a sample as a user gives it, such as `height` and `width`; None is the
                pipeline's own.

        Raises:
            ValueError: samples of this size cannot be made.
        """

    @classmethod
    def make_codec(cls, root: Path, size: Mapping[str, Any]) -> PipelineCodec | None:
        """The codec of samples of this size (see `latent_shape`); None for a model of data."""
        return None if cls.codec is None else cls.codec(str(root))

    @classmethod
    def scheduler(cls, root: Path) -> Any:
        """The pipeline's scheduler."""
        return load(root, cls.scheduler_part, cls.schedulers)

    @classmethod
    @abstractmethod
    def process(cls, scheduler: Any, shape: Sequence[int]) -> tuple[Process, str]:
        """The process of the pipeline's scheduler, and the quantity that the network predicts."""

    @classmethod
    def grid(cls, scheduler: Any, process: Process, steps: int, shape: Sequence[int]) -> Tensor:
        """The pipeline's own times, float64, see `schedulers.grid`."""
        return schedulers.grid(scheduler, process, steps)

    @classmethod
    def best_steps(cls, scheduler: Any) -> int:
        """The pipeline's own number of steps."""
        return cls.steps

    @classmethod
    def stand_ins(cls, root: Path) -> dict[str, Any]:
        """Replacements by the name of parts that reading texts looks at but does not use.

        All other parts that read no texts are None already.
        """
        return {}

    @classmethod
    def limit(cls, scheduler: Any) -> float | None:
        """The bound of denoised samples' absolute values in the teacher's sampling, if any."""
        return None

    @classmethod
    def wordings(cls, prompts: list[str]) -> list[str]:
        """The texts that stand for prompts; by default each for itself."""
        return prompts

    @classmethod
    def encode(cls, pipeline: Any, prompts: list[str], settings: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tables of embeddings of prompts, [N, ...] each, by the pipeline's own encoders.

        Args:
            pipeline: with its text encoders alone.
            prompts: some texts.
            settings: see `read_settings`.
        """
        raise NotImplementedError(f"{cls.__name__} reads no texts")

    @classmethod
    def encode_negative(cls, pipeline: Any, prompt: str | None, settings: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tables [1, ...] of the negative prompt; None is what the pipeline has without one."""
        return cls.encode(pipeline, [prompt or ""], settings)

    @classmethod
    def trim(cls, tables: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tables without tokens that no prompt uses, where the model does not see them."""
        return tables

    @abstractmethod
    def call(self, model: nn.Module, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The prediction of one of the models, like x.

        Args:
            model: it.
            x: latents [B, ...].
            time: [B] in [0, 1]: the process's `network_time`.
            cond: the tables of the prompts [B, ...] by name, and all other conditions.
        """

    @classmethod
    def classes(cls, network: Network) -> dict[str, int]:
        """The classes of a network that reads no texts."""
        return {}

    # What the pipeline's call has of a student's, see `distillkit.pipelines.export`

    def asked(self, shape: Sequence[int]) -> dict[str, Any]:
        """The arguments of the pipeline's call for one sample without guidance, but for its prompt.

        Args:
            shape: of the sample as data, [C, H, W] or [C, F, H, W].
        """
        size = {"height": shape[-2], "width": shape[-1], **({"num_frames": shape[1]} if len(shape) == 4 else {})}
        return {**size, "guidance_scale": 1.0}

    def packed(self, x: Tensor) -> Tensor:
        """Latents as the pipeline takes and gives them, and as its scheduler draws noise."""
        return x

    def unpacked(self, z: Tensor, shape: Sequence[int]) -> Tensor:
        """The latents [B, *shape] of what is `packed`."""
        return z

    # What all have in common

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The prediction, like x.

        Args:
            x: latents [B, ...].
            time: [B] in [0, 1].
            cond: has `prompt` (its number, int [B]) or `label`, as `given` says.
        """
        known = {**cond, **(self.texts(cond["prompt"]) if self.given == "prompt" else {})}
        if self.embed and "text" in known:
            known["text"] = known["text"] + self.embed(cond)[:, None]
        elif self.embed:
            x = x + self.embed(cond).reshape(len(x), -1, *[1] * (x.ndim - 2))
        dtype = self.models[0].dtype
        x = x.to(dtype)
        known = {name: value.to(dtype) if value.is_floating_point() else value for name, value in known.items()}
        if self.boundary is None:
            return self.call(self.models[0], x, time, known)
        calls = [partial(self.call, model) for model in self.models]
        return dispatch(calls, (time < self.boundary).long(), x, time, known)

    def sha256(self) -> str:
        """The sha256 of the models' weights."""
        digest = hashlib.sha256()
        hash_weights(digest, self.models)
        return digest.hexdigest()


def _kind(cls: type[Network], config: Mapping[str, Any]) -> str:
    """The class of a model, by what its configuration has; it may come from a stranger's folder."""
    kind = config.get("_class_name") or cls.kinds[0]
    if kind not in cls.kinds:
        raise ValueError(
            f"the folder is damaged: a model of {cls.__name__} is a {' or a '.join(cls.kinds)}, not {kind!r:.80}"
        )
    return kind


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the notes of the package diffusers about itself."""
    return {key: value for key, value in config.items() if key[:1] != "_"}


def released(
    cls: type[Network],
    root: Path,
    texts: Mapping[str, Sequence[int]] | Sequence[int] | None,
    dtype: torch.dtype,
    settings: dict[str, Any] | None = None,
) -> Network:
    """The network of the pipeline in `root`, frozen; its tables of texts are empty.

    Raises:
        ValueError: the pipeline is none of the family, or does not load.
    """
    index = read_index(root)
    if index.get("_class_name") not in cls.pipelines:
        raise ValueError(
            f"{root} holds a {index.get('_class_name')}, but what is needed here is a {' or a '.join(cls.pipelines)}"
        )
    second = f"{cls.part}_2"
    two = index.get(second, [None])[0] is not None
    boundary = index.get("boundary_ratio") if two else None
    if two and boundary is None:
        raise ValueError(f"{root / 'model_index.json'} names two transformers but no boundary_ratio between them")
    models = [load(root, part, cls.kinds, dtype) for part in (cls.part, second)[: 1 + two]]
    configs = [_plain(model.config) for model in models]
    if len(cls.kinds) > 1:
        configs = [
            config | {"_class_name": type(model).__name__} for config, model in zip(configs, models, strict=True)
        ]
    with torch.device("meta"):  # the models are there already
        network = cls(configs, texts, boundary, **({"settings": settings} if settings else {}))
    network.models, network.texts = nn.ModuleList(models), Texts(network.texts.shapes)
    return network.requires_grad_(False).eval()


class PipelineBase(Base):
    """The frozen network of a pipeline; nothing else of the pipeline is read.

    Args:
        path: directory of the pipeline.
        kind: class of the network, one of `networks`.
        texts: see `Network`.
        dtype: of the network's weights.
        settings: see `Network`.

    Attributes:
        networks: the classes of networks of a domain by name.
    """

    networks: Mapping[str, type[Network]]

    def __init__(self, path: str, kind: str, texts: Any, dtype: str, settings: dict[str, Any] | None = None):
        if kind not in self.networks:
            raise ValueError(f"the folder is damaged: adapters belong to {' or '.join(self.networks)}, not to {kind!r}")
        if dtype not in DTYPES:
            raise ValueError(f"the folder is damaged: weights are {' or '.join(DTYPES)}, not {dtype!r}")
        self.path, self.kind, self.texts, self.dtype, self.settings = path, kind, texts, dtype, settings

    def read(self) -> Network:
        if not Path(self.path).expanduser().is_dir():
            raise ValueError(
                f"this student is adapters on {self}, which is not there: put it back, or write its new place into `path` in "
                f"student.yaml"
            )
        root = Path(self.path).expanduser().resolve()
        return released(self.networks[self.kind], root, self.texts, DTYPES[self.dtype], self.settings)

    @cached_property
    def sha256(self) -> str:
        return self.network.sha256()

    def __str__(self) -> str:
        return f"the pipeline in {self.path}"
