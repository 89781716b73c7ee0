"""SEDD, RADD and MDLM as teachers, from a directory on this machine.

Nothing is downloaded, no code that comes with a checkpoint is run, and no pickle is trusted: the
networks are built here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillkit import checks
from distillkit.discrete.denoiser import DiscreteDenoiser, Mean, Ratio
from distillkit.discrete.process import Absorbing
from distillkit.discrete.schedule import LogLinear
from distillkit.discrete.teacher import DiscreteTeacher
from distillkit.files import read_weights
from distillkit.networks.ddit import DDiT
from distillkit.networks.dtypes import Dtype
from distillkit.spec import bounded


class DDiTCheckpoint(DiscreteTeacher):
    """SEDD, RADD or MDLM with absorbing noise, from a folder in the layout of the hub.

    The folder holds `config.json` beside the weights.

    The files tell which of the three it is: a flat configuration is MDLM's (told sigma = 0 unless
    it says `time_conditioning`), a nested one is SEDD's, and RADD's where the weights know no time.

    Args:
        path: the folder, with `model.safetensors` or `pytorch_model.bin` (plain tensors only).
        length: d, tokens of a sample; None means the length that the model was trained at.
        dtype: see `BaseTeacher`.
    """

    best = {"solver": "tweedie", "steps": 1024}

    def __init__(self, path: str, length: int | None = None, dtype: Dtype = "float32"):
        folder = Path(path).expanduser()
        if length is not None:
            checks.whole(1, length=length)
        config, state = read_config(folder), read_state(folder)
        state = {
            name.removeprefix("backbone."): value for name, value in state.items() if not name.endswith("inv_freq")
        }
        try:
            with bounded([value.numel() for value in state.values()]):
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
        super().__init__(denoiser, (length or trained,), dtype=dtype)
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
