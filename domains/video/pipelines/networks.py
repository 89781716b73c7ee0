"""The pipelines' transformers as networks of ours, and adapters on one of them that others share.

B: batch; C: latent channels; F: latent frames; H, W: latent height and width; D: channels of the text encoder.
"""

from __future__ import annotations

import copy
import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit.errors import optional
from distillkit.files import hash_weights
from distillkit.networks.blocks import Told
from distillkit.spec import Recorded
from distillkit.teachers.foreign import check_foreign
from domains.video.pipelines.files import DTYPES, import_diffusers, load, read_json

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # of an attention, to which adapters are added


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
    """A text-to-video transformer, or two: the first for times from `boundary` up, the second below it.

    Args:
        configs: of each, what the pipeline's config.json says.
        texts: `[prompts, tokens, D]`, of the table of embeddings.
        boundary: a time in (0, 1), if there are two.

    Attributes:
        kind, pipeline: classes of the package diffusers.
    """

    kind: str
    pipeline: str

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
        """One of the transformers at time [B] in [0, 1]."""

    def forward(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """x [B, C, F, H, W], time [B] in [0, 1], `cond["prompt"]` int [B]; what the transformer predicts, like x."""
        text = self.texts(cond["prompt"], self.length)
        if self.embed:
            text = text + self.embed(cond)[:, None]
        x, text = (y.to(self.models[0].dtype) for y in (x, text))
        if self.boundary is None:
            return self.call(self.models[0], x, time, text)
        out, high = torch.zeros_like(x), time >= self.boundary
        for model, rows in zip(self.models, (high, ~high), strict=True):
            if rows.any():
                out[rows] = self.call(model, x[rows], time[rows], text[rows])
        return out

    def use_texts(self, table: Tensor) -> None:
        """From now on the prompts are those of `table` [prompts + 1, tokens, D], for this network alone."""
        num, tokens, dim = table.shape
        self.texts = Texts(num - 1, tokens, dim)
        self.texts.table = table

    def sha256(self) -> str:
        """Of the transformers' weights."""
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
        """Rotary embeddings of the places in x, by the pipeline's own function, which tells versions 1.0 and 1.5 apart."""
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


class Adapters(Recorded, nn.Module):
    """Low-rank adapters (LoRA, arXiv 2106.09685) on a frozen network, whose weights all copies share with it.

    Parameters and state are those of the adapters (and the table of prompts). The network comes along when the adapters are
    moved or cast, but is none of their submodules: nobody trains, averages, stores or shards it.

    Args:
        path: directory of the pipeline with the network, where it is looked for when a student is loaded.
        kind: class of the network.
        rank: of the adapters; they begin as zero and have weight 1.
        texts: see `Network`.
        dtype: of the network's weights; the adapters are float32.
        sha256: of the network's weights.
        base: the network, if it is in memory already.
    """

    def __init__(
        self,
        path: str,
        kind: str,
        rank: int,
        texts: list[int],
        dtype: str,
        sha256: str,
        base: Network | None = None,
    ):
        super().__init__()
        self._arguments.pop("base", None)  # folders know it by its path
        if rank < 1:
            raise ValueError(f"the rank of adapters must be at least 1, got {rank}")
        if base is None:
            base = self._read(path, kind, texts, dtype, sha256)
        tree = copy.deepcopy(base, {id(p): p for p in base.parameters()})
        layers = {}
        for model in tree.models:
            _inject(model, rank)
        for name, module in tree.named_modules():
            if isinstance(getattr(module, "lora_A", None), nn.ModuleDict):
                layers[f"{name}.lora_A"], layers[f"{name}.lora_B"] = module.lora_A["default"], module.lora_B["default"]
        self.__dict__["tree"] = tree
        self.layers = _nested(layers).float()
        self.texts, self.embed = tree.texts, tree.embed

    @staticmethod
    def _read(path: str, kind: str, texts: list[int], dtype: str, sha256: str) -> Network:
        if kind not in NETWORKS:
            raise ValueError(f"the folder is damaged: adapters belong to {' or '.join(NETWORKS)}, not to {kind!r}")
        if dtype not in DTYPES:
            raise ValueError(f"the folder is damaged: weights are {' or '.join(DTYPES)}, not {dtype!r}")
        if not Path(path).is_dir():
            raise ValueError(
                f"this student is adapters on the pipeline in {path}, which is not there: put it back, or write its new "
                f"place into `path` in student.yaml"
            )
        base = released(NETWORKS[kind], Path(path), texts, DTYPES[dtype])
        if base.sha256() != sha256:
            raise ValueError(
                f"this student is adapters on other weights than those in {path}: restore them, for on these they mean nothing"
            )
        return base

    def forward(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.tree(x, time, cond)

    def use_texts(self, table: Tensor) -> None:
        """See `Network.use_texts`."""
        self.tree.use_texts(table)
        self.texts = self.tree.texts

    def __deepcopy__(self, memo):
        own = {id(p) for p in self.parameters()}
        memo.update((id(p), p) for p in self.tree.parameters() if id(p) not in own)
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        self.tree._apply(fn, recurse)
        return self


def _inject(model: nn.Module, rank: int) -> None:
    """Put adapters into the attentions of a transformer, in place."""
    peft = optional("peft", "hf", "adapters need")
    peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS), model)


def _nested(modules: dict[str, nn.Module]) -> nn.Module:
    """Modules under their dotted names."""
    root = nn.Module()
    for name, module in modules.items():
        *path, last = name.split(".")
        at = root
        for part in path:
            if part not in at._modules:
                at.add_module(part, nn.Module())
            at = at._modules[part]
        at.add_module(last, module)
    return root
