"""The codecs between photographs and the space of the diffusion."""

from __future__ import annotations

import copy
import json
from abc import abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from weakref import WeakValueDictionary, ref

import torch
from torch import Tensor, nn

from distillkit import checks
from distillkit.codec import Codec
from distillkit.diffusion.denoiser import precise
from distillkit.spec import to_spec
from domains.super_resolution.resize import enlarged


class Upscale(Codec):
    """Photographs, or what they add to their enlarged observation; of the size that it asks for.

    Args:
        scale: how many times larger than its observation a photograph is.
        residual: whether samples are `data - enlarged(low)`, as ResShift's process needs it, or the
            photographs themselves.

    Attributes:
        factor: pixels along the side of what is diffused, one number for each.
    """

    factor = 1
    in_graph = True
    free = {"low": (2, 3)}

    def __init__(self, scale: int = 4, residual: bool = True):
        checks.whole(1, 64, scale=scale)
        self.scale, self.residual = scale, residual

    def base(self, cond: Mapping[str, Tensor]) -> Tensor | float:
        """What is taken from encoded photographs: the enlarged observation, or nothing."""
        if not self.residual:
            return 0.0
        low = precise(cond["low"])
        return enlarged(low, [self.scale * side for side in low.shape[-2:]])

    def encode(self, batch):
        return batch["data"] - self.base(batch)

    def decode(self, x, cond):
        return x + self.base(cond)

    def rebase(self, x, alpha, old, new):
        """See `Codec.rebase`; observations of any scale, also another one than the codec's."""
        if not self.residual:
            return x
        ours, theirs = (enlarged(precise(cond["low"]), x.shape[-2:]) for cond in (old, new))
        return x + alpha * (ours - theirs)

    def shape(self, num: int, event_shape: Sequence[int], cond: Mapping[str, Tensor]) -> tuple[int, ...]:
        return num, event_shape[0], *(self.scale * side for side in cond["low"].shape[-2:])

    def answering(self, student, seed, kappa, tile, overlap):
        from domains.super_resolution.enlarge import Enlarger

        return Enlarger(student, self.scale, seed, kappa, tile, overlap)


class Shared:
    """The part of a codec that equal ones have once: a network's, its copies' and a student's.

    Attributes:
        autoencoder: the autoencoder, once it has been read.
        bases: the last observations (by reference), each with its version, the size to which it was
            enlarged, and its latent.
    """

    def __init__(self):
        self.autoencoder: nn.Module | None = None
        self.bases: deque[tuple] = deque(maxlen=2)


_shared: WeakValueDictionary[str, Shared] = WeakValueDictionary()


class Latent(Upscale):
    """Photographs as latents of an autoencoder, whose weights lie in files of their own.

    The files are read when they are needed first. The autoencoder works in float32 on the device of
    what it gets. It is never trained itself, but a copy of its decoder may be. Observations whose
    sides are no multiples of `multiple` are continued by reflection, and photographs are cut back.

    Args:
        path: the file or directory; if it is missing, only its use raises an error.
        factor: pixels along the side of a latent.
        multiple: what the sides of observations must be divisible by.
        scale, residual: as in `Upscale`; the base is then the latent of the enlarged observation.
    """

    tunable, in_graph, free = True, False, {}

    def __init__(self, path: str, factor: int = 4, multiple: int = 1, scale: int = 4, residual: bool = True):
        super().__init__(scale, residual)
        checks.whole(1, 4096, factor=factor, multiple=multiple)
        if scale * multiple % factor:
            raise ValueError(
                f"latents of {factor} x {factor} pixels do not fit photographs of multiples of {scale * multiple}"
            )
        place = Path(path).expanduser()
        self.path, self.factor, self.multiple = path, factor, multiple
        self._place = place.resolve() if place.exists() else None  # now: what a folder may read is checked before

    def __deepcopy__(self, memo):
        return self

    def decoder(self):
        """The autoencoder without its encoder; a codebook is not trained."""
        made = copy.deepcopy(self.autoencoder(torch.device("cpu")))
        for name in ("encoder", "quant_conv"):
            delattr(made, name)
        for name, parameter in made.named_parameters():
            parameter.requires_grad_(not name.startswith("quantize."))
        return made.train()

    @abstractmethod
    def read(self, place: Path) -> nn.Module:
        """The autoencoder, read from its place."""

    @abstractmethod
    def into(self, autoencoder: nn.Module, x: Tensor) -> Tensor:
        """Photographs [B, 3, H, W] in [-1, 1] as latents [B, C, H / factor, W / factor]."""

    @abstractmethod
    def out_of(self, autoencoder: nn.Module, z: Tensor) -> Tensor:
        """Latents as photographs, with gradients to the latents."""

    @cached_property
    def shared(self) -> Shared:
        """What it has in common with equal codecs."""
        return _shared.setdefault(json.dumps([str(self._place), to_spec(self)]), Shared())

    def autoencoder(self, device: torch.device) -> nn.Module:
        """The autoencoder, frozen, on this device."""
        if self.shared.autoencoder is None:
            if self._place is None:
                raise ValueError(
                    f"there is no {self.path}, whose autoencoder makes photographs of latents: put it back, or write its "
                    f"new place into the folder's yaml"
                )
            self.shared.autoencoder = self.read(self._place).requires_grad_(False).eval()
        return self.shared.autoencoder.to(device)

    @torch.no_grad()
    def latents(self, x: Tensor) -> Tensor:
        """Photographs as latents, in float32 within any autocast."""
        with torch.autocast(x.device.type, enabled=False):
            return self.into(self.autoencoder(x.device), x.float())

    def observed(self, cond: Mapping[str, Tensor]) -> Tensor:
        """The observations, continued to sides divisible by `multiple`."""
        return reflected(cond["low"].float(), self.multiple)

    def base(self, cond: Mapping[str, Tensor]) -> Tensor | float:
        """As in `Upscale`; kept while the same tensors of observations are asked about."""
        if not self.residual:
            return 0.0
        sides = (-(-side // self.multiple) * self.multiple for side in cond["low"].shape[-2:])
        return self._base(cond, [self.scale * side for side in sides])

    def rebase(self, x, alpha, old, new):
        """See `Codec.rebase`; observations of any scale whose sizes `encode` takes."""
        if not self.residual:
            return x
        ours, theirs = (self._base(cond, [self.factor * side for side in x.shape[-2:]]) for cond in (old, new))
        return x + alpha * (ours - theirs)

    def _base(self, cond: Mapping[str, Tensor], size: list[int]) -> Tensor:
        """The latent of observations enlarged to this size in pixels."""
        low = cond["low"]
        version = None if low.is_inference() else low._version
        for of, *facts, z in self.shared.bases:
            if of() is low and facts == [version, size]:
                return z
        z = self.latents(enlarged(self.observed(cond), size))
        self.shared.bases.append((ref(low), version, size, z))
        return z

    def encode(self, batch):
        data, step = batch["data"], self.scale * self.multiple
        if any(side % step for side in data.shape[-2:]):
            raise ValueError(
                f"photographs of {data.shape[-1]} x {data.shape[-2]} pixels cannot be encoded: their sides must be multiples "
                f"of {step}, so set data.crop"
            )
        return self.latents(data) - self.base(batch)

    def decode(self, x, cond):
        height, width = (self.scale * side for side in cond["low"].shape[-2:])
        with torch.autocast(x.device.type, enabled=False):
            decoder = self.autoencoder(x.device) if self.tuned is None else self.tuned.to(x.device)
            made = self.out_of(decoder, x.float() + self.base(cond))
        return made[..., :height, :width]

    def data_shape(self, event_shape):
        return 3, *(self.factor * side for side in event_shape[-2:])

    def shape(self, num: int, event_shape: Sequence[int], cond: Mapping[str, Tensor]) -> tuple[int, ...]:
        sides = (-(-side // self.multiple) * self.multiple for side in cond["low"].shape[-2:])
        return num, event_shape[0], *(self.scale * side // self.factor for side in sides)


def reflected(images: Tensor, multiple: int) -> Tensor:
    """Images [B, C, H, W] continued to the right and below by reflection, as often as it takes."""
    for dim in (-2, -1):
        size = images.shape[dim]
        if size % multiple:
            place = torch.arange(-(-size // multiple) * multiple, device=images.device)
            place = place % max(2 * (size - 1), 1)
            images = images.index_select(dim, torch.where(place < size, place, 2 * (size - 1) - place))
    return images
