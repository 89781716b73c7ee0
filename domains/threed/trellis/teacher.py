"""TRELLIS's two flows as teachers, read from a local folder in the released layout.

The folder holds `pipeline.json` and, for each model it names, `NAME.json` (class and arguments)
beside `NAME.safetensors`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillkit import checks
from distillkit.diffusion.denoiser import Cond, Denoiser
from distillkit.diffusion.process import RectifiedFlow, expand_mask
from distillkit.files import fill_weights, read_weights, sizes
from distillkit.networks.dtypes import Dtype
from distillkit.spec import bounded
from distillkit.teachers.base import Teacher
from domains.threed.trellis.networks import SLatFlowModel, SparseStructureDecoder, SparseStructureFlowModel

NAMES = {"ElasticSLatFlowModel": "SLatFlowModel"}  # the same network, with a memory controller for training
PICKLES = (".pt", ".pth", ".ckpt", ".bin")


def rescaled_times(steps: int, rescale_t: float = 1.0) -> Tensor:
    """TRELLIS's grid `r t / (1 + (r - 1) t)` over uniform t, float64 [steps].

    t goes from 1 down in `steps` steps, without the final 0.

    A solver that ends by denoising at the last time thereby takes the last Euler step, to 0.
    """
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]
    return rescale_t * t / (1 + (rescale_t - 1) * t)


# Reading a folder


def read_json(file: Path) -> dict[str, Any]:
    """The content of one of TRELLIS's json files: `name`, a class, and `args`, a mapping."""
    if not file.is_file():
        raise ValueError(f"{file} does not exist: give a folder with pipeline.json, or the .json of one model")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not readable as json: {error}") from None
    if not isinstance(data, dict) or "name" not in data or not isinstance(data.get("args"), dict):
        raise ValueError(f"{file} is damaged: it should hold a name and args")
    return data


def load(path: str, role: str, kind: type[nn.Module]) -> tuple[nn.Module, dict[str, Any]]:
    """The network that plays `role`, in float32, and the content of pipeline.json.

    The latter is empty for a single model.

    Args:
        path: a folder with pipeline.json, or one model's .json or .safetensors.
        role: its name among the pipeline's models.
        kind: the class that is expected.
    """
    model, pipeline = Path(path), {}
    if model.suffix in PICKLES:
        raise ValueError(f"{path} is a pickle, which is never opened: give TRELLIS's .safetensors with its .json")
    if model.is_dir():
        pipeline = read_json(model / "pipeline.json")
        model = named(model, role, pipeline["args"].get("models", {}))
    elif model.suffix in (".json", ".safetensors"):
        model = model.with_suffix("")
    config, weights = (model.with_name(model.name + end) for end in (".json", ".safetensors"))
    described = read_json(config)
    if NAMES.get(described["name"], described["name"]) != kind.__name__:
        raise ValueError(f"{config} describes a {described['name']}, but what is needed here is a {kind.__name__}")
    arguments = {k: v for k, v in described["args"].items() if k not in ("use_fp16", "use_checkpoint")}
    if not weights.is_file():
        pickles = [end for end in PICKLES if weights.with_suffix(end).is_file()]
        why = f"; {weights.with_suffix(pickles[0]).name} is a pickle, which is never opened" if pickles else ""
        raise ValueError(f"{weights} does not exist{why}: copy it there from the TRELLIS release")
    try:
        with bounded(sizes(weights)), torch.device("meta"):  # the weights come from the file
            network = kind(**arguments)
    except TypeError as error:
        raise ValueError(f"{config} does not fit a {kind.__name__}: {error}") from None
    fill_weights(network, read_weights(weights), weights)
    return network, pipeline


def named(folder: Path, role: str, models: Any) -> Path:
    """The file of the model that plays `role`, by pipeline.json's `models`, without its ending."""
    models = models if isinstance(models, dict) else {}
    if role not in models:
        raise ValueError(f"{folder / 'pipeline.json'} names no {role}; it names {', '.join(sorted(models)) or 'none'}")
    model = folder / str(models[role])
    if not model.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{folder} looks for its {role} outside of itself ({models[role]}): copy it into the folder")
    if not model.with_name(f"{model.name}.json").is_file():
        raise ValueError(
            f"{folder} lacks {models[role]}.json, its {role}: copy it there, or give the .json of that model as the path"
        )
    return model


def load_decoder(path: str) -> SparseStructureDecoder:
    """The decoder from the first stage's latent to logits of occupancy.

    `occupied` turns the logits into the conditions of the second stage.

    Args:
        path: a folder with pipeline.json, or the decoder's own .json (the text models share the
            image model's).
    """
    return load(path, "sparse_structure_decoder", SparseStructureDecoder)[0].requires_grad_(False).eval()


# The teachers


class Trellis(Teacher):
    """Base of both stages: a rectified flow that predicts its velocity.

    It is guided against a null condition.

    Attributes:
        kappa: the released guidance scale: `teacher.sample(noise, cond, kappa=teacher.kappa)` is
            the released sampler.
        interval: the times between which `sample` guides; set it to change it.
    """

    guidable = True
    provides = Teacher.provides | {"classes"}
    best = {"solver": "euler", "steps": 25}

    def __init__(
        self,
        network,
        pipeline: dict[str, Any],
        stage: str,
        event_shape,
        context,
        empty_prompt: str | None,
        dtype: Dtype,
    ):
        denoiser = Denoiser(network, RectifiedFlow(), "flow")
        super().__init__(denoiser, event_shape, context=(*context, "cond"), dtype=dtype)
        settings = pipeline.get("args", {}).get(stage, {})
        released = {"steps": 50, "rescale_t": 1.0, "cfg_interval": (0.0, 1.0)} | settings.get("params", {})
        strength = released.get("cfg_strength", 0.0 if settings.get("name") in (None, "FlowEulerSampler") else 3.0)
        self.rescale_t = float(released["rescale_t"])
        self.best = {"solver": "euler", "steps": int(released["steps"])}
        self.interval, self.kappa = tuple(released["cfg_interval"]), 1 + float(strength)
        if empty_prompt is None and pipeline.get("name") == "TrellisTextTo3DPipeline":
            raise ValueError(
                "a text model needs teacher.empty_prompt=FILE.safetensors, with the features of the empty prompt"
            )
        self.register_buffer("empty", None if empty_prompt is None else self._read(empty_prompt, network.cond_channels))

    @staticmethod
    def _read(file: str, channels: int) -> Tensor:
        empty = read_weights(file).get("cond")
        if empty is None or empty.ndim != 2 or empty.shape[1] != channels:
            raise ValueError(f"{file} must hold `cond`, the features of the empty prompt, [tokens, {channels}]")
        return empty.float()

    def null_condition(self, cond: Cond) -> Cond:
        """The empty prompt for text models, zeros for image models; voxels stay."""
        features = cond["cond"]
        if self.empty is None:
            return {**cond, "cond": torch.zeros_like(features)}
        if features.shape[1:] != self.empty.shape:
            raise ValueError(
                f"conditions are {list(features.shape[1:])}, those of the empty prompt {list(self.empty.shape)}"
            )
        return {**cond, "cond": self.empty.to(features.dtype).expand_as(features)}

    def grid(self, steps: int) -> Tensor:
        return rescaled_times(steps, self.rescale_t)

    def guidance(self, t: Tensor, kappa: float | Tensor) -> float | Tensor:
        """The guidance scale at a time: `kappa` while t lies in `interval`, else 1.

        TRELLIS writes guidance as `(1 + w) v_c - w v_0`; kappa = 1 + w.
        """
        low, high = self.interval
        return kappa if low <= float(t) <= high else 1.0


class TrellisStructure(Trellis):
    """The first stage: features of an image or a text to the latent of a structure.

    Batches hold `cond`, the features [B, tokens, channels]: of an image DINOv2 ViT-L/14 with
    registers, layer-normed, at 518 pixels; of a text CLIP ViT-L/14's last hidden state, 77 tokens.

    Args:
        path: a folder with pipeline.json, or one model's .json or .safetensors.
        empty_prompt: for text models, a safetensors file with the features of the empty prompt as
            `cond` [tokens, channels].
        dtype: see `BaseTeacher`.
    """

    def __init__(self, path: str, empty_prompt: str | None = None, dtype: Dtype = "float32"):
        network, pipeline = load(path, "sparse_structure_flow_model", SparseStructureFlowModel)
        shape = (network.in_channels, *[network.resolution] * 3)
        super().__init__(network, pipeline, "sparse_structure_sampler", shape, (), empty_prompt, dtype)

    @property
    def id(self) -> str:
        return "trellis-structure"


class TrellisFeatures(Trellis):
    """The second stage: features of the voxels of a given structure.

    They are in units of the data's standard deviation.

    Batches hold `coords` int [B, N, 3], the voxels; `mask` bool [B, N]; `cond` as in the first
    stage.

    Args:
        path, empty_prompt, dtype: as in `TrellisStructure`.
        max_voxels: N of the data; TRELLIS was trained with up to 32768.
    """

    provides = frozenset({"denoiser", "classes"})

    def __init__(self, path: str, max_voxels: int = 32768, empty_prompt: str | None = None, dtype: Dtype = "float32"):
        network, pipeline = load(path, "slat_flow_model", SLatFlowModel)
        checks.whole(1, max_voxels=max_voxels)
        shape = (max_voxels, network.in_channels)
        super().__init__(network, pipeline, "slat_sampler", shape, ("coords", "mask"), empty_prompt, dtype)
        units = pipeline.get("args", {}).get("slat_normalization", {})
        for name in ("mean", "std"):
            value = torch.tensor(units[name], dtype=torch.float32) if name in units else None
            if value is not None and value.shape != (network.in_channels,):
                raise ValueError(
                    f"slat_normalization's {name} must be {network.in_channels} numbers, got {units[name]}"
                )
            self.register_buffer(name, value)

    @property
    def id(self) -> str:
        return "trellis-features"

    def _units(self) -> tuple[Tensor, Tensor]:
        if self.mean is None or self.std is None:
            raise ValueError("the units of the features stand in pipeline.json: give its folder instead of one model")
        return self.mean, self.std

    def normalise(self, feats: Tensor, mask: Tensor) -> Tensor:
        """Encoded features [B, N, C] in the units of the flow's training, zero in the padding."""
        mean, std = self._units()
        return torch.where(expand_mask(mask, feats), (feats - mean) / std, 0)

    def denormalise(self, feats: Tensor, mask: Tensor) -> Tensor:
        """Samples [B, N, C] in the units that TRELLIS's decoders read, zero in the padding."""
        mean, std = self._units()
        return torch.where(expand_mask(mask, feats), feats * std + mean, 0)
