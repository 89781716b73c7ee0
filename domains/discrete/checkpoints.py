"""Published models of tokens as teachers, from a directory on this machine: SEDD, RADD, MDLM, and masked language models.

Nothing is downloaded, no code that comes with a checkpoint is run, and no pickle is trusted: the networks are built here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.discrete.denoiser import DiscreteDenoiser, Mean, Ratio
from distillkit.discrete.process import Absorbing
from distillkit.discrete.schedule import LogLinear
from distillkit.discrete.teacher import DiscreteTeacher
from distillkit.files import read_weights
from distillkit.networks.ddit import DDiT
from distillkit.spec import Recorded


class DDiTCheckpoint(DiscreteTeacher):
    """SEDD, RADD or MDLM with absorbing noise, in the layout of its hub folder: `config.json` beside the weights.

    Which of them it is follows from the files: a flat configuration is MDLM's (told sigma = 0 unless it says
    `time_conditioning`), a nested one is SEDD's, and RADD's where the weights know no time.

    Args:
        path: the folder, with `model.safetensors` or `pytorch_model.bin` (plain tensors only).
        length: d, tokens of a sample; None means the length that the model was trained at.
    """

    best = {"solver": "tweedie", "steps": 1024}

    def __init__(self, path: str, length: int | None = None):
        folder = Path(path).expanduser()
        config, state = read_config(folder), read_state(folder)
        state = {
            name.removeprefix("backbone."): value for name, value in state.items() if not name.endswith("inv_freq")
        }
        try:
            denoiser, trained = _nested(config, state) if "model" in config else _flat(config)
        except KeyError as error:
            raise ValueError(
                f"{folder / 'config.json'} has no {error}: SEDD and RADD have nested keys (tokens, graph, noise, model), MDLM "
                f"flat ones (hidden_dim, n_blocks, vocab_size ...)"
            ) from None
        try:
            denoiser.network.load_state_dict(state)
        except RuntimeError as error:
            detail = str(error).splitlines()[1:2] or [str(error)]
            raise ValueError(
                f"the weights in {folder} are not those its config.json describes: {detail[0].strip()}"
            ) from None
        super().__init__(denoiser, (length or trained,))
        self._id = folder.name

    @property
    def id(self) -> str:
        return self._id


def _nested(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[DiscreteDenoiser, int]:
    """SEDD and RADD: the model and its length."""
    kinds = {"graph.type": (config["graph"]["type"], "absorb"), "noise.type": (config["noise"]["type"], "loglinear")}
    for key, (value, known) in kinds.items():
        if value != known:
            raise ValueError(f"config.json says {key} = {value!r}; only {known!r} is known here")
    model = config["model"]
    process = Absorbing(config["tokens"], LogLinear(config["noise"].get("eps", 1e-3)))
    timed = "sigma_map.mlp.0.weight" in state
    network = DDiT(
        config["tokens"],
        width=model["hidden_size"],
        depth=model["n_blocks"],
        heads=model["n_heads"],
        schedule=process.schedule if timed else None,
        cond_dim=model["cond_dim"] if timed else 0,
    )
    denoiser = Ratio(network, process, scaled=bool(model.get("scale_by_sigma"))) if timed else Mean(network, process)
    return denoiser, model["length"]


def _flat(config: Mapping[str, Any]) -> tuple[DiscreteDenoiser, int]:
    """MDLM: the model and its length."""
    if (kind := config.get("model_type", "mdlm")) != "mdlm":
        raise ValueError(f"config.json says model_type = {kind!r}; of the flat kind only 'mdlm' is known here")
    process = Absorbing(config["vocab_size"] - 1)  # the mask is the last entry
    network = DDiT(
        process.num_tokens,
        width=config["hidden_dim"],
        depth=config["n_blocks"],
        heads=config["n_heads"],
        adaln=True,
        schedule=process.schedule if config["time_conditioning"] else None,
        cond_dim=config["cond_dim"],
    )
    return Mean(network, process), config["model_length"]


class MaskedLM(Recorded, nn.Module):
    """A masked language model as a network of absorbing noise: it looks at x_t alone.

    Our mask is the last state, a model's stands anywhere in its vocabulary: the two change places on the way in and out. So
    its tokens keep their numbers, only the last one is called by the number of the mask.

    Args:
        model: `model(input_ids=[B, d]).logits` [B, d, V]; `Recorded`, as everything that goes into folders.
        mask: the model's number of the mask token.
        vocabulary: V; further entries of the logits are dropped.
        shift: the logits at a position speak of the next one, as in models that began as autoregressive ones (Dream).
    """

    def __init__(self, model: nn.Module, mask: int, vocabulary: int, shift: bool = False):
        super().__init__()
        if not 0 <= mask < vocabulary:
            raise ValueError(f"the mask token {mask} is not among the {vocabulary} tokens of the model")
        self.model, self.mask, self.vocabulary, self.shift = model, mask, vocabulary, shift

    def forward(self, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        logits = self.model(input_ids=self.swap(x_t)).logits[..., : self.vocabulary]
        if self.shift:
            logits = torch.cat([logits[:, :1], logits[:, :-1]], 1)
        order = torch.arange(self.vocabulary, device=logits.device)
        return logits[..., self.swap(order)]

    def swap(self, tokens: Tensor) -> Tensor:
        """The model's numbers of our tokens, and ours of the model's."""
        last = self.vocabulary - 1
        return torch.where(tokens == self.mask, last, torch.where(tokens == last, self.mask, tokens))


class Pretrained(Recorded, nn.Module):
    """A masked language model that the package transformers knows.

    Args:
        path: a local directory with `config.json` and `model.safetensors`.
    """

    def __init__(self, path: str):
        super().__init__()
        try:
            from transformers import AutoModelForMaskedLM
        except ImportError:
            raise ValueError(
                "masked language models need the package transformers: pip install 'distillkit[hf]'"
            ) from None
        try:
            self.model = AutoModelForMaskedLM.from_pretrained(
                path, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} does not load as a masked language model: {str(error).splitlines()[0]}") from None

    def forward(self, input_ids: Tensor) -> Any:
        return self.model(input_ids=input_ids)


class TransformersTeacher(DiscreteTeacher):
    """A masked language model that the package transformers knows, from a local directory.

    Models that bring their own code (LLaDA, Dream) are not loaded here, for that code would have to be run: load them
    yourself and wrap them, `DiscreteTeacher(Mean(MaskedLM(model, mask, vocabulary), Absorbing(vocabulary - 1)), (d,))`.

    Args:
        path: the directory, with `config.json` and `model.safetensors`.
        length: d, tokens of a sample.
        mask: number of the mask token; None takes `mask_token_id` from the configuration.
        shift: see `MaskedLM`.
    """

    best = {"solver": "ancestral", "steps": 256}

    def __init__(self, path: str, length: int = 64, mask: int | None = None, shift: bool = False):
        folder = Path(path).expanduser()
        config = read_config(folder)
        mask = config.get("mask_token_id") if mask is None else mask
        if mask is None:
            raise ValueError(f"{folder / 'config.json'} does not say mask_token_id: give teacher.mask=NUMBER")
        if "auto_map" in config:
            raise ValueError(
                f"{path} brings its own code, which is not run: load the model yourself and wrap it with "
                f"domains.discrete.checkpoints.MaskedLM"
            )
        model = Pretrained(str(folder))
        size = model.model.config.vocab_size
        super().__init__(Mean(MaskedLM(model, mask, size, shift), Absorbing(size - 1)), (length,))
        self._id = folder.name

    @property
    def id(self) -> str:
        return self._id


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give the directory of a checkpoint as teacher.path=...")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable as json: {error}") from None


def read_state(folder: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint, plain tensors only."""
    binary = folder / "pytorch_model.bin"
    if (folder / "model.safetensors").is_file() or not binary.is_file():
        return read_weights(folder / "model.safetensors")
    try:
        return torch.load(binary, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{binary} holds no plain weights ({type(error).__name__}): convert it to safetensors"
        ) from None
