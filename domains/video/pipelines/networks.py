"""The families of video pipelines by name, and the records of their frozen networks."""

from __future__ import annotations

from distillkit.networks import adapters
from distillkit.pipelines import network
from distillkit.spec import Recorded
from domains.video.pipelines.cogvideox import CogVideoXImageNetwork, CogVideoXNetwork
from domains.video.pipelines.ltx import LTXImageNetwork, LTXNetwork
from domains.video.pipelines.wan import WanImageNetwork, WanNetwork, WanTokenNetwork

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # the layers of an attention
FAMILIES = (
    WanNetwork,
    WanTokenNetwork,  # a variant of the next one, which answers for their pipeline
    WanImageNetwork,
    CogVideoXNetwork,
    CogVideoXImageNetwork,
    LTXNetwork,
    LTXImageNetwork,
)
NETWORKS = {cls.__name__: cls for cls in FAMILIES}


class PipelineBase(network.PipelineBase):
    """The frozen network of a video pipeline."""

    networks = NETWORKS


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
