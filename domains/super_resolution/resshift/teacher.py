"""ResShift from its released files: the residual of VQ latents, conditioned on the observation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import ResShift
from distillkit.files import fill_weights, hash_tensors, hash_weights
from distillkit.networks.dtypes import Dtype
from distillkit.spec import bounded, to_spec
from distillkit.teachers.base import Teacher
from domains.super_resolution.codec import Latent
from domains.super_resolution.resshift.autoencoder import VQModelTorch
from domains.super_resolution.resshift.files import read_config, read_state
from domains.super_resolution.resshift.network import UNetModelSwin


class VQ(Latent):
    """Residuals of latents before the codebook of ResShift's autoencoder.

    Decoding adds the latent of the enlarged observation and takes the nearest vectors of the
    codebook, with gradients passed straight through.

    Args:
        path: its file, .pth or .safetensors.
        scale, multiple: as in `Latent`.
        sizes: arguments of `VQModelTorch`; None means the released ones.
        sha256: hash of its weights, which others are compared with.
    """

    def __init__(
        self,
        path: str,
        scale: int = 4,
        multiple: int = 64,
        sizes: dict[str, Any] | None = None,
        sha256: str | None = None,
    ):
        sizes = dict(sizes or {})
        super().__init__(path, 2 ** (len(sizes.get("ch_mult", (1, 2, 4))) - 1), multiple, scale)
        self.sizes, self.sha256 = sizes, sha256

    def read(self, place: Path) -> nn.Module:
        state = read_state(place)
        if self.sha256 not in (None, found := digest(state)):
            raise ValueError(
                f"{place} holds another autoencoder than the one that this model was made with ({found[:12]} instead of "
                f"{self.sha256[:12]}): restore it"
            )
        return filled(VQModelTorch, self.sizes, state, place)

    def into(self, autoencoder, x):
        return autoencoder.encode(x)

    def out_of(self, autoencoder, z):
        return autoencoder.decode(z)


def digest(state: dict[str, Tensor]) -> str:
    """sha256 of weights by name."""
    made = hashlib.sha256()
    hash_tensors(made, state)
    return made.hexdigest()


def filled(cls: type[nn.Module], sizes: dict[str, Any], state: dict[str, Tensor], source: Any) -> nn.Module:
    """A network of these sizes with these weights; a ValueError if they do not fit each other."""
    try:
        with bounded([value.numel() for value in state.values()]), torch.device("meta"):
            network = cls(**sizes)
    except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"{source} does not fit its configuration: {error}") from None
    with torch.device("cpu"):
        fill_weights(network, state, source)
    return network


class ResShiftTeacher(Teacher):
    """ResShift (arXiv 2307.12348) from a checkpoint and the checkpoint of its autoencoder.

    Batches hold `data` and `low` as everywhere in the domain. Samples are residuals of latents.

    Args:
        path: the network's file (.pth or .safetensors), such as resshift_realsrx4_s15_v1.pth.
        autoencoder: the autoencoder's file, autoencoder_vq_f4.pth.
        scale: scale of the data, which must be the one that the network was made for.
        crop: side of the data's photographs in training.
        steps: times in its table; None means those of `config`, or of the file's name (_s15, _s4).
        config: ResShift's yaml for models of other sizes; None means the released ones.
        dtype: see `BaseTeacher`.
    """

    provides = Teacher.provides | {"decoder"}
    apart = Teacher.apart | {"codec"}  # its weights are in the fingerprint

    def __init__(
        self,
        path: str,
        autoencoder: str,
        scale: int = 4,
        crop: int = 256,
        steps: int | None = None,
        config: str | None = None,
        dtype: Dtype = "float32",
    ):
        state, said = read_state(path), read_config(config, Path(path).name, steps)
        network, vq, own = said["network"], said["autoencoder"], digest(read_state(autoencoder))
        sides = [network.get("image_size", 64), network.get("lq_size", 64)]
        codec = VQ(str(Path(autoencoder).expanduser().resolve()), scale, self._multiple(network, sides), vq, own)
        if codec.factor * sides[0] != scale * sides[1]:
            raise ValueError(
                f"{path} makes photographs {codec.factor * sides[0] / sides[1]:g} times larger, the data are of scale {scale}: "
                f"set data.scale"
            )
        if crop % (scale * codec.multiple):
            raise ValueError(
                f"this ResShift is trained on squares whose sides are multiples of {scale * codec.multiple}, got {crop}: set "
                f"data.crop={max(1, round(crop / scale / codec.multiple)) * scale * codec.multiple}"
            )
        codec.autoencoder(torch.device("cpu"))  # now, so that files that do not fit are refused at the start
        process = ResShift(**said["process"])
        made = filled(UNetModelSwin, {"process": process, "codec": codec, **network}, state, path)
        channels = vq.get("embed_dim", 3)
        shape = (channels, *[crop // codec.factor] * 2)
        super().__init__(Denoiser(made, process, "x0"), shape, context=("low",), codec=codec, dtype=dtype)
        self.best = {"solver": "resshift", "steps": network["steps"]}
        self._id = Path(path).stem

    @staticmethod
    def _multiple(network: dict[str, Any], sides: Sequence[int]) -> int:
        """What divides an observation's sides: whole windows at each size of the features."""
        step = network.get("window_size", 8) * 2 ** (len(network.get("channel_mult", (1, 2, 2, 4))) - 1)
        return min(step, sides[0]) * sides[1] // sides[0]

    @property
    def id(self) -> str:
        return self._id

    def fingerprint(self) -> str:
        """As any teacher's, with the autoencoder's weights, wherever the files lie."""
        network, codec = self.denoiser.network, self.codec
        sizes = {key: value for key, value in network.recorded().items() if key != "codec"}
        said = json.dumps([to_spec(sizes), codec.scale, codec.sizes, codec.sha256, self.begins()], sort_keys=True)
        made = hashlib.sha256(said.encode())
        hash_weights(made, self)
        return made.hexdigest()
