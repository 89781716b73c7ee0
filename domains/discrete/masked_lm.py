"""Masked language models from a local directory as teachers: transformers', LLaDA, Dream.

Nothing is downloaded and no code that comes with a checkpoint is run: LLaDA is Llama and Dream is
Qwen2, both of transformers, with attention in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillkit import checks
from distillkit.discrete.denoiser import Mean
from distillkit.discrete.process import Absorbing
from distillkit.discrete.teacher import DiscreteTeacher
from distillkit.errors import optional
from distillkit.networks.dtypes import Dtype
from distillkit.spec import Recorded
from distillkit.teachers.foreign import check_foreign
from domains.discrete.checkpoints import read_config


class MaskedLM(Recorded, nn.Module):
    """A masked language model as a network of absorbing noise; it sees x_t alone.

    Our mask is the last state, a model's stands anywhere in its vocabulary: the two change places
    on the way in and out. Tokens keep their numbers, except the last one, which takes the mask's.

    Args:
        model: `model(input_ids=[B, d]).logits` [B, d, V]; `Recorded`, as everything that goes into
            folders.
        mask: the model's number of the mask token.
        vocabulary: V; further entries of the logits are dropped.
        shift: whether the logits at a position are those of the next one, as in models that began
            as autoregressive ones (Dream).
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
        """Our tokens by the model's numbers, and the model's by ours."""
        last = self.vocabulary - 1
        return torch.where(tokens == self.mask, last, torch.where(tokens == last, self.mask, tokens))


class Pretrained(Recorded, nn.Module):
    """A masked language model from a directory: one that transformers knows, LLaDA, or Dream.

    Args:
        path: a local directory with `config.json` and safetensors, in one file or in shards.
    """

    def __init__(self, path: str):
        super().__init__()
        transformers = optional("transformers", "hf", "masked language models need")
        check_foreign(Path(path), own_code=True)
        config = read_config(Path(path))
        kind = config.get("model_type")
        self.both_ways = kind in ARCHITECTURES  # networks that look only back unless told otherwise
        cls, options = transformers.AutoModelForMaskedLM, {"trust_remote_code": False}
        if self.both_ways:
            name, translate, names = ARCHITECTURES[kind]
            try:
                settings = translate(config)
            except KeyError as error:
                raise ValueError(f"{path}/config.json has no {error}, which {kind} needs") from None
            cls = getattr(transformers, f"{name}ForCausalLM")
            options = {"config": getattr(transformers, f"{name}Config")(**settings), "key_mapping": names}
        try:
            self.model, found = cls.from_pretrained(
                path, local_files_only=True, use_safetensors=True, dtype="auto", output_loading_info=True, **options
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} does not load as a masked language model: {str(error).splitlines()[0]}") from None
        foreign = sorted(found["missing_keys"]) or (self.both_ways and sorted(found["unexpected_keys"]))
        if foreign:
            raise ValueError(f"the weights in {path} are not those its config.json describes: {foreign[0]}")

    def forward(self, input_ids: Tensor) -> Any:
        if not self.both_ways:
            return self.model(input_ids=input_ids)
        length = input_ids.shape[1]
        every = torch.ones(1, 1, length, length, dtype=torch.bool, device=input_ids.device).expand(
            len(input_ids), -1, -1, -1
        )
        return self.model(input_ids=input_ids, attention_mask=every, use_cache=False)


def llada(config: Mapping[str, Any]) -> dict[str, Any]:
    """LLaDA's configuration as Llama's."""
    known = {
        "block_type": "llama",
        "layer_norm_type": "rms",
        "activation_type": "silu",
        "rope": True,
        "alibi": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "attention_layer_norm": False,
        "input_emb_norm": False,
        "scale_logits": False,
    }
    for key, value in known.items():
        if config.get(key, value) != value:
            raise ValueError(f"config.json says {key} = {config[key]!r}; of LLaDA only {value!r} is known here")
    heads = config["n_heads"]
    return {
        "vocab_size": config.get("embedding_size") or config["vocab_size"],
        "hidden_size": config["d_model"],
        "intermediate_size": config.get("mlp_hidden_size") or config.get("mlp_ratio", 4) * config["d_model"],
        "num_hidden_layers": config["n_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("n_kv_heads") or heads,
        "max_position_embeddings": config["max_sequence_length"],
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
        "rope_theta": config.get("rope_theta", 10_000.0),
        "tie_word_embeddings": config.get("weight_tying", True),
        "dtype": config.get("torch_dtype", config.get("dtype")),
    }


def dream(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dream's configuration is Qwen2's."""
    foreign = ("model_type", "auto_map", "architectures")
    return {key: value for key, value in config.items() if key not in foreign}


BLOCK = r"^model\.transformer\.blocks\.(\d+)\."
LLADA_NAMES = {
    r"^model\.transformer\.wte\.": "model.embed_tokens.",
    r"^model\.transformer\.ln_f\.": "model.norm.",
    r"^model\.transformer\.ff_out\.": "lm_head.",
    **{BLOCK + rf"{x}_proj\.": rf"model.layers.\1.self_attn.{x}_proj." for x in "qkv"},
    BLOCK + r"attn_out\.": r"model.layers.\1.self_attn.o_proj.",
    BLOCK + r"ff_proj\.": r"model.layers.\1.mlp.gate_proj.",
    BLOCK + r"up_proj\.": r"model.layers.\1.mlp.up_proj.",
    BLOCK + r"ff_out\.": r"model.layers.\1.mlp.down_proj.",
    BLOCK + r"attn_norm\.": r"model.layers.\1.input_layernorm.",
    BLOCK + r"ff_norm\.": r"model.layers.\1.post_attention_layernorm.",
}
# model_type: the architecture of transformers, its configuration, names of weights
ARCHITECTURES: dict[str, tuple[str, Callable[[Mapping[str, Any]], dict[str, Any]], dict[str, str]]] = {
    "llada": ("Llama", llada, LLADA_NAMES),
    "Dream": ("Qwen2", dream, {}),
}


class TransformersTeacher(DiscreteTeacher):
    """A masked language model from a local directory: one of transformers', LLaDA, or Dream.

    Others that bring their own code are not loaded, for that code would have to be run. Load them
    yourself and wrap them: `DiscreteTeacher(Mean(MaskedLM(model, mask, vocabulary),
    Absorbing(vocabulary - 1)), (d,))`.

    Args:
        path: the directory, with `config.json` and safetensors.
        length: d, tokens of a sample.
        mask: number of the mask token; None takes `mask_token_id` from the configuration.
        shift: see `MaskedLM`; None means for Dream alone.
        dtype: see `BaseTeacher`; None is that of the files.
    """

    best = {"solver": "ancestral", "steps": 256}

    def __init__(
        self,
        path: str,
        length: int = 64,
        mask: int | None = None,
        shift: bool | None = None,
        dtype: Dtype | None = None,
    ):
        folder = Path(path).expanduser()
        config = read_config(folder)
        checks.whole(1, length=length)
        mask = config.get("mask_token_id") if mask is None else mask
        if mask is None:
            raise ValueError(f"{folder / 'config.json'} does not say mask_token_id: give teacher.mask=NUMBER")
        kind = config.get("model_type")
        if "auto_map" in config and kind not in ARCHITECTURES:
            raise ValueError(
                f"{path} brings its own code, which is not run: load the model yourself and wrap it with "
                f"domains.discrete.masked_lm.MaskedLM"
            )
        model = Pretrained(str(folder))
        size = model.model.config.vocab_size
        checks.whole(0, size - 1, mask=mask)
        shift = kind == "Dream" if shift is None else shift
        super().__init__(Mean(MaskedLM(model, mask, size, shift), Absorbing(size - 1)), (length,), dtype=dtype)
        self._id = folder.name

    @property
    def id(self) -> str:
        return self._id
