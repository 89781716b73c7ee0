"""Reading ResShift's checkpoints and configurations, without code from them."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillkit.files import read_weights, read_yaml

WRAPPED = ("module.", "_orig_mod.")  # what DDP and torch.compile put before names
COMPUTED = (".relative_position_index", ".attn_mask")  # stored beside the weights, follow from the sizes
STEPS = {15: 0.04, 4: 0.2}  # steps of the released models, and the noise level m of their tables
NETWORK = (
    "image_size",
    "in_channels",
    "model_channels",
    "channel_mult",
    "num_res_blocks",
    "attention_resolutions",
    "num_head_channels",
    "swin_depth",
    "swin_embed_dim",
    "window_size",
    "mlp_ratio",
    "patch_norm",
    "lq_size",
)
AUTOENCODER = ("ch", "ch_mult", "num_res_blocks", "z_channels")
KNOWN = {  # settings of which one value is read
    "model": {
        "use_scale_shift_norm": True,
        "resblock_updown": False,
        "conv_resample": True,
        "cond_lq": True,
        "dims": 2,
    },
    "diffusion": {
        "schedule_name": "exponential",
        "predict_type": "xstart",
        "scale_factor": 1.0,
        "normalize_input": True,
        "latent_flag": True,
        "timestep_respacing": None,
    },
    "ddconfig": {"double_z": False, "attn_resolutions": [], "in_channels": 3, "out_ch": 3},
}


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The weights of a .pth or .safetensors file by their plain names, in float32.

    A .pth file is read as tensors alone: whatever else a pickle may ask for is refused.

    Raises:
        ValueError: the file is missing, damaged or holds more than tensors, or NaN.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(
            f"there is no file {path}: give a checkpoint of ResShift, such as resshift_realsrx4_s15_v1.pth"
        )
    if file.suffix == ".safetensors":
        state = read_weights(file)
    else:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path} holds more than tensors, or is damaged, so it is not read: {str(error).splitlines()[0][:160]}"
            ) from None
        state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} is no dictionary of weights by name: give a checkpoint of ResShift")
    found = {}
    for name, value in state.items():
        name = re.sub(rf"^({'|'.join(map(re.escape, WRAPPED))})+", "", str(name))
        if name.endswith(COMPUTED):
            continue
        if not value.isfinite().all():
            raise ValueError(
                f"{path} holds NaN or infinity in {name}: its network was lost in training, so it is not used"
            )
        found[name] = value
    return found


def read_config(path: str | None, name: str, steps: int | None) -> dict[str, dict[str, Any]]:
    """The arguments of network, autoencoder and process.

    Args:
        path: one of ResShift's yaml files; None means the released sizes.
        name: of the checkpoint, which says its steps as `_s15` or `_s4` if nothing else does.
        steps: times in the table, if not as there.

    Raises:
        ValueError: a setting is not one that is read here, or nothing says the steps.
    """
    config = read_yaml(path) if path else {}
    model, diffusion, autoencoder = (_params(config, part) for part in ("model", "diffusion", "autoencoder"))
    ddconfig = autoencoder.get("ddconfig") or {}
    for part, given in (("model", model), ("diffusion", diffusion), ("ddconfig", ddconfig)):
        for key, value in KNOWN[part].items():
            if given.get(key, value) != value:
                raise ValueError(
                    f"{path} says {key} = {given[key]!r}; of ResShift's models only {value!r} is read here"
                )
    said = re.search(r"_s(\d+)", name)
    steps = steps or diffusion.get("steps") or (int(said[1]) if said else None)
    if steps is None:
        raise ValueError(
            f"nothing says how many steps {name} was trained for: say teacher.steps=15, or give teacher.config"
        )
    noise = diffusion.get("min_noise_level", STEPS.get(steps))
    if noise is None:
        raise ValueError(
            f"released tables have {' or '.join(map(str, STEPS))} steps, not {steps}: give teacher.config, ResShift's yaml"
        )
    sizes = {key: model[key] for key in NETWORK if key in model}
    if isinstance(sizes.get("num_res_blocks"), int):
        sizes["num_res_blocks"] = [sizes["num_res_blocks"]] * len(sizes.get("channel_mult", (1, 2, 2, 4)))
    vq = {key: ddconfig[key] for key in AUTOENCODER if key in ddconfig}
    vq |= {key: autoencoder[key] for key in ("embed_dim", "n_embed") if key in autoencoder}
    power = (diffusion.get("schedule_kwargs") or {}).get("power", 0.3)
    process = {"kappa": diffusion.get("kappa", 2.0), "min_noise": noise, "power": power}
    return {
        "network": sizes | {"steps": steps},
        "autoencoder": vq,
        "process": process | {"t_max": diffusion.get("etas_end", 0.99)},
    }


def _params(config: dict[str, Any], part: str) -> dict[str, Any]:
    """The settings of a part of the yaml."""
    found = (config.get(part) or {}).get("params") or {}
    return found if isinstance(found, dict) else {}
