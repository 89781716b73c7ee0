"""Training with weights, gradients and moments spread over processes (FSDP2)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from distillkit.modules import blocks

CALLED = ("features", "null")  # of a network, beside its forward


class Shard(ModelParallelStrategy):
    """Every process holds a part of each network, and gathers a block when it computes.

    Results are those of one process with as many accumulated micro-batches. Checkpoints are whole
    files, the same as those of other strategies, which may go on from them.
    """

    def __init__(self):
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    # Checkpoints: what one process would write

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {name: whole(value).cpu() for name, value in self.lightning_module.state_dict().items()}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        state = getattr(optimizer, "_optimizer", optimizer).state_dict()
        moments = {
            number: {name: whole(value).cpu() if isinstance(value, Tensor) else value for name, value in own.items()}
            for number, own in state["state"].items()
        }
        return {**state, "state": moments}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self.lightning_module
        own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        state = {name: like(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            moments = {
                number: {name: like(value, parameters[number]) for name, value in own.items()}
                for number, own in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": moments})


def whole(value: Tensor) -> Tensor:
    """A tensor gathered from all processes, which all must ask for it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def like(value: Any, own: Tensor | None) -> Any:
    """This process's part of a whole tensor, spread as `own` is; other values as they are."""
    if not isinstance(own, DTensor) or not isinstance(value, Tensor) or value.shape != own.shape:
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)


def shard(module: nn.Module, mesh: Any) -> None:
    """Spreads a module over the processes of a mesh, in place, each block of its lists by itself.

    What is spread already, such as a base under adapters, stays as it is. Roots are spread again
    after their pass: roles take turns, and what stays gathered would miss its later steps. The root
    of a denoiser is its network, whose outputs are tensors, and what is left besides.
    """
    root = module.network if denoises(module) else module
    for part in dict.fromkeys((*blocks(root), root, module)):
        if not isinstance(part, FSDPModule) and any(not isinstance(p, DTensor) for p in part.parameters()):
            fully_shard(part, mesh=mesh["data_parallel"], reshard_after_forward=True)
    for part in (root, module):
        for name in CALLED:
            if isinstance(part, FSDPModule) and hasattr(part, name):
                register_fsdp_forward_method(part, name)


def denoises(module: Any) -> bool:
    """Whether a module is a denoiser: a network with its process."""
    return hasattr(module, "network") and hasattr(module, "process")


def bare(module: nn.Module) -> nn.Module:
    """A copy without weights, on the meta device, which `filled` fills."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, memo)


def filled(empty: nn.Module, module: nn.Module) -> nn.Module:
    """The copy that `bare` made, with the weights of the module gathered from all processes."""
    own = dict(empty.named_parameters())
    for name, parameter in module.named_parameters():
        at, _, last = name.rpartition(".")
        if own[name].is_meta:
            setattr(empty.get_submodule(at), last, nn.Parameter(whole(parameter.detach()), parameter.requires_grad))
    for name, buffer in module.named_buffers():
        at, _, last = name.rpartition(".")
        empty.get_submodule(at)._buffers[last] = whole(buffer)
    return empty


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Takes the mean over processes of the gradients of parameters that are whole everywhere."""
    for parameter in parameters:
        if not isinstance(parameter, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
