"""The pipelines' transformers as networks of the library, with adapters' places in them.

B: batch; C: latent channels; F: latent frames; H, W: latent height and width; D: channels of the
text encoder.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit.files import hash_weights
from distillkit.networks import adapters
from distillkit.networks.adapters import Base
from distillkit.networks.blocks import Told
from distillkit.networks.routed import dispatch
from distillkit.pipelines.files import import_diffusers, load, read_json
from distillkit.spec import Recorded
from distillkit.teachers.foreign import check_foreign
from domains.video.pipelines.files import DTYPES

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # the layers of an attention


class Texts(nn.Module):
    """Embeddings of the prompts, by number. Copies of a network share them.

    Args:
        num: prompts; number `num` is the negative prompt.
        tokens, dim: shape of an embedding.
    """

    def __init__(self, num: int, tokens: int, dim: int):
        super().__init__()
        self.register_buffer("table", torch.zeros(num + 1, tokens, dim))

    def __deepcopy__(self, memo):
        return self

    def forward(self, prompt: Tensor, length: int) -> Tensor:
        """[B] to [B, length, D], zeros after the last token."""
        found = self.table[prompt]
        return F.pad(found, (0, 0, 0, length - found.shape[1]))


class Network(Recorded, nn.Module):
    """A text-to-video transformer, or two: the first from time `boundary` up, the second below.

    Args:
        configs: for each transformer, its config.json.
        texts: shape `[prompts, tokens, D]` of the table of embeddings.
        boundary: a time in (0, 1), if there are two.

    Attributes:
        kind, pipeline: classes of the package diffusers.
        own_parts: submodules that adapters keep for themselves, see there.
    """

    kind: str
    pipeline: str
    own_parts = ("texts",)

    def __init__(self, configs: list[dict[str, Any]], texts: Sequence[int], boundary: float | None = None):
        super().__init__()
        kind = getattr(import_diffusers(), self.kind)
        self.models = nn.ModuleList(
            kind.from_config({k: v for k, v in config.items() if k[:1] != "_"}) for config in configs
        )
        self.texts, self.length, self.boundary = Texts(*texts), self.text_length(configs[0]), boundary
        self.embed = Told(texts[2])  # a vector that is added to all tokens of the text

    @staticmethod
    @abstractmethod
    def text_length(config: dict[str, Any]) -> int:
        """Tokens of a prompt, padding included."""

    @abstractmethod
    def call(self, model: nn.Module, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        """The output of one of the transformers at time [B] in [0, 1]."""

    def forward(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The transformer's prediction, like x.

        Args:
            x: [B, C, F, H, W].
            time: [B] in [0, 1].
            cond: has `prompt`, int [B].
        """
        text = self.texts(cond["prompt"], self.length)
        if self.embed:
            text = text + self.embed(cond)[:, None]
        x, text = (y.to(self.models[0].dtype) for y in (x, text))
        if self.boundary is None:
            return self.call(self.models[0], x, time, text)
        calls = [partial(self.call, model) for model in self.models]
        return dispatch(calls, (time < self.boundary).long(), x, time, text)

    def sha256(self) -> str:
        """The sha256 of the transformers' weights."""
        digest = hashlib.sha256()
        hash_weights(digest, self.models)
        return digest.hexdigest()


class WanNetwork(Network):
    """Wan 2.1 and 2.2, text to video (arXiv 2503.20314): predicts the velocity of a flow."""

    kind, pipeline = "WanTransformer3DModel", "WanPipeline"

    @staticmethod
    def text_length(config):
        return 512  # what the released models were trained with; no configuration says it

    def call(self, model, x, time, text):
        return model(x, 1000 * time, text, return_dict=False)[0]


class CogVideoXNetwork(Network):
    """CogVideoX, text to video (arXiv 2408.06072); it wants frames before channels."""

    kind, pipeline = "CogVideoXTransformer3DModel", "CogVideoXPipeline"

    @staticmethod
    def text_length(config):
        return config["max_text_seq_length"]

    def call(self, model, x, time, text):
        rotary = self.rotary(model, x) if model.config.use_rotary_positional_embeddings else None
        x = x.transpose(1, 2)
        out = model(x, text, 1000 * time, image_rotary_emb=rotary, return_dict=False)[0]
        return out.transpose(1, 2)

    def rotary(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary embeddings of the places in x.

        The pipeline's own function makes them, which tells versions 1.0 and 1.5 apart.
        """
        frames, height, width = x.shape[2:]
        own = SimpleNamespace(transformer=model, vae_scale_factor_spatial=1)
        make = import_diffusers().CogVideoXPipeline._prepare_rotary_positional_embeddings
        return make(own, height, width, frames, x.device)


NETWORKS = {cls.__name__: cls for cls in (WanNetwork, CogVideoXNetwork)}


def released(cls: type[Network], root: Path, texts: Sequence[int], dtype: torch.dtype) -> Network:
    """The network of the pipeline in `root`, frozen."""
    index = read_index(root, cls)
    two = "transformer_2" in index and index["transformer_2"][0] is not None
    boundary = index.get("boundary_ratio") if two else None
    if two and boundary is None:
        raise ValueError(f"{root / 'model_index.json'} names two transformers but no boundary_ratio between them")
    models = [load(root, part, (cls.kind,), dtype) for part in ("transformer", "transformer_2")[: 1 + two]]
    configs = [{k: v for k, v in model.config.items() if k[:1] != "_"} for model in models]
    for config in configs:
        if config["in_channels"] != (config["out_channels"] or config["in_channels"]):
            raise ValueError(f"{root} wants more than a text (an image): only text-to-video pipelines are read here")
    with torch.device("meta"):  # the transformers are there already
        network = cls(configs, list(texts), boundary)
    network.models = nn.ModuleList(models)
    network.texts, network.embed = Texts(*texts), Told(texts[2])
    return network.requires_grad_(False).eval()


def read_index(root: Path, cls: type[Network]) -> dict[str, Any]:
    """model_index.json, of the right class, of a pipeline that brings no code."""
    check_foreign(root)
    index = read_json(root / "model_index.json")
    if index.get("_class_name") != cls.pipeline:
        raise ValueError(f"{root} holds a {index.get('_class_name')}, but what is needed here is a {cls.pipeline}")
    return index


class PipelineBase(Base):
    """The frozen network of a pipeline; nothing else of the pipeline is read.

    Args:
        path: directory of the pipeline.
        kind: class of the network.
        texts: see `Network`.
        dtype: of the network's weights.
    """

    def __init__(self, path: str, kind: str, texts: list[int], dtype: str):
        if kind not in NETWORKS:
            raise ValueError(f"the folder is damaged: adapters belong to {' or '.join(NETWORKS)}, not to {kind!r}")
        if dtype not in DTYPES:
            raise ValueError(f"the folder is damaged: weights are {' or '.join(DTYPES)}, not {dtype!r}")
        self.path, self.kind, self.texts, self.dtype = path, kind, texts, dtype

    def read(self) -> Network:
        if not Path(self.path).is_dir():
            raise ValueError(
                f"this student is adapters on {self}, which is not there: put it back, or write its new place into `path` in "
                f"student.yaml"
            )
        return released(NETWORKS[self.kind], Path(self.path), self.texts, DTYPES[self.dtype])

    @cached_property
    def sha256(self) -> str:
        return self.network.sha256()

    def __str__(self) -> str:
        return f"the pipeline in {self.path}"


class Adapters(adapters.Adapters):
    """Adapters of student folders written before every network could have them.

    The arguments are theirs.
    """

    def __init__(self, path: str, kind: str, rank: int, texts: list[int], dtype: str, sha256: str):
        super().__init__(PipelineBase(path, kind, texts, dtype), rank, TARGETS, sha256)

    def recorded(self):
        return Recorded.recorded(self)

    def _load_from_state_dict(self, state, prefix, *args):
        """Translates the names `down` and `up` from the package peft's."""
        for name in [name for name in state if name.startswith(f"{prefix}layers.")]:
            state[name.replace(".lora_A.", ".down.").replace(".lora_B.", ".up.")] = state.pop(name)
        super()._load_from_state_dict(state, prefix, *args)
