"""The optimisers of training: AdamW (arXiv 1711.05101) with moments of 32 bits, or of 8."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from distillkit.errors import optional

NAMES = ("adamw", "adamw8bit")
BLOCK = 256  # numbers that have a scale in common
SMALLEST = 4096  # tensors of fewer numbers keep moments of 32 bits
SCALES = ("absmax1", "absmax2")  # bitsandbytes' name for the scales of both moments, `state1` and `state2`
VALUES = ("qmap1", "qmap2")  # and for what the 256 codes stand for


def make(name: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """An optimiser that skips a step if its attribute `found_inf`, a tensor, is not 0 by then.

    A skipped step changes neither parameters nor moments nor counts of steps, and no step changes
    those of parameters without a gradient.

    Args:
        name: `adamw`, which decides on the device, or `adamw8bit`, see `EightBit`.
        groups: parameters with their learning rate, betas and decay.

    Raises:
        UsageError: the library of `adamw8bit` does not import.
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, fused=True)  # the fused kernel reads `found_inf`
    return type("AdamW8bit", (EightBit, library().AdamW8bit), {})(groups)


def check(name: str) -> None:
    """Raises UsageError if the optimiser's library does not import."""
    if name == "adamw8bit":
        library()


def library() -> Any:
    """The optimisers of bitsandbytes."""
    return optional("bitsandbytes.optim", "bitsandbytes", "moments of 8 bits need")


class EightBit:
    """What AdamW8bit of bitsandbytes lacks: skipped steps, and parameters that FSDP2 spreads.

    Moments are codes of 8 bits with a scale for each block of 256 (arXiv 2110.02861). Tensors of
    fewer than 4,096 numbers keep moments of 32 bits, and so do those that are spread in parts that
    end within a block. Every step waits for the device, which says whether it is skipped.
    """

    found_inf: Tensor | None = None

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None if closure is None else closure()
        if self.found_inf is None or not self.found_inf:
            super().step()
        return loss

    def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
        bits = 8 if suits(group["params"][pindex]) else 32
        return {**super().get_config(gindex, pindex, group), "optim_bits": bits, "min_8bit_size": 0}

    def init_state(self, group: dict[str, Any], p: nn.Parameter, gindex: int, pindex: int) -> None:
        with self._part(p) as part:
            super().init_state(group, part, gindex, pindex)

    def update_step(self, group: dict[str, Any], p: nn.Parameter, gindex: int, pindex: int) -> None:
        with self._part(p) as part:
            if part.numel():
                super().update_step(group, part, gindex, pindex)
            else:  # more processes than rows
                self.state[part]["step"] += 1

    @contextmanager
    def _part(self, p: nn.Parameter) -> Iterator[Tensor]:
        """This process's part of a parameter, with its gradient and its state."""
        if not isinstance(p, DTensor):
            yield p
            return
        part = p.to_local().detach()
        part.grad, self.state[part] = p.grad.to_local(), self.state[p]
        yield part
        del self.state[part]

    def state_dict(self) -> dict[str, Any]:
        """The state that one process would have; all that share parameters must ask for it."""
        state = super().state_dict()
        for own, p in self._spread(state["state"]):
            own[self._FSDP_WRAPPED_QUANT_STATE_KEY] = gathered(own[self._FSDP_WRAPPED_QUANT_STATE_KEY], p)
        return state

    def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
        state = {number: {**own} for number, own in state_dict["state"].items()}
        for own, p in self._spread(state):
            own[self._FSDP_WRAPPED_QUANT_STATE_KEY] = divided(own[self._FSDP_WRAPPED_QUANT_STATE_KEY], p)
        super().load_state_dict({**state_dict, "state": state}, move_to_device)

    def _spread(self, state: dict[int, dict[str, Any]]) -> Iterator[tuple[dict[str, Any], DTensor]]:
        """The states of parameters that are spread."""
        for number, p in enumerate(chain.from_iterable(group["params"] for group in self.param_groups)):
            if isinstance(p, DTensor) and number in state:
                yield state[number], p


def suits(p: Tensor) -> bool:
    """Whether a parameter has moments of 8 bits; all processes that share it say the same."""
    return p.numel() >= SMALLEST and not (isinstance(p, DTensor) and most(p) % BLOCK)


def most(p: DTensor) -> int:
    """The numbers of the largest part, which the first process has."""
    return -(-p.shape[0] // p.device_mesh.size()) * (p.numel() // p.shape[0])


def gathered(moments: dict[str, Tensor], p: DTensor) -> dict[str, Tensor]:
    """The whole moments, on the CPU, of those of this process's part."""
    found = {}
    for name, value in moments.items():
        if name not in VALUES:
            block = BLOCK if name in SCALES else 1
            padded = nn.functional.pad(value.flatten(), (0, -(-most(p) // block) - value.numel()))
            parts = DTensor.from_local(padded, p.device_mesh, p.placements, run_check=False).full_tensor()
            value = parts[: -(-p.numel() // block)].reshape(p.shape if block == 1 else -1)
        found[name] = value.cpu()
    return found


def divided(moments: dict[str, Tensor], p: DTensor) -> dict[str, Tensor]:
    """The moments of this process's part, of whole ones."""
    if SCALES[0] in moments and not suits(p):  # of a run with other processes
        moments = {name: plain(moments, name) for name in ("state1", "state2")}
    part, found = p.to_local(), {}
    for name, value in moments.items():
        if name not in VALUES:
            block = BLOCK if name in SCALES else 1
            begin = p.device_mesh.get_local_rank() * -(-most(p) // block)
            value = value.flatten()[begin : begin - (-part.numel() // block)].clone()
            value = value.reshape(part.shape if block == 1 else -1)
        found[name] = value
    return found


def plain(moments: dict[str, Tensor], name: str) -> Tensor:
    """A moment of 8 bits, in 32."""
    codes, values, scales = (moments[name.replace("state", each)] for each in ("state", "qmap", "absmax"))
    return values[codes.long()] * scales.repeat_interleave(BLOCK)[: codes.numel()].view(codes.shape)
