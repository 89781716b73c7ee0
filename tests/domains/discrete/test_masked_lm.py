"""Masked language models: tiny checkpoints of transformers, LLaDA and Dream, recomputed here."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from distillkit.discrete.denoiser import Mean
from distillkit.discrete.process import Absorbing
from distillkit.spec import Recorded
from domains.discrete.masked_lm import MaskedLM, TransformersTeacher


class Toy(Recorded, nn.Module):
    """Says at each position: the logit of token v is -|v - 2 x - position|."""

    def forward(self, input_ids):
        place = torch.arange(input_ids.shape[1])[None, :, None]
        return SimpleNamespace(logits=-(torch.arange(8.0) - 2 * input_ids[..., None] - place).abs())


def test_the_mask_changes_places_with_the_last_token():
    """Vocabulary 7 with mask 3: our 3 is the model's 6, our mask 6 its 3, others stay."""
    network = MaskedLM(Toy(), mask=3, vocabulary=7)
    x = torch.tensor([[0, 3, 6]])
    theirs = Toy()(torch.tensor([[0, 6, 3]])).logits[..., :7]
    found = network(x, torch.tensor([0.5]), {})
    for ours, model in ((0, 0), (1, 1), (3, 6), (5, 5), (6, 3)):
        assert torch.equal(found[..., ours], theirs[..., model])
    assert torch.equal(network.swap(network.swap(x)), x)
    assert torch.equal(
        Mean(network, Absorbing(6))(x, 0.5).log_mean().exp()[0, :2].argmax(-1), torch.tensor([0, 3])
    )  # shown tokens


def test_shifted_logits_speak_of_the_position_before():
    still, shifted = (MaskedLM(Toy(), 3, 7, shift) for shift in (False, True))
    x, t = torch.tensor([[1, 2, 6, 0]]), torch.tensor([0.5])
    assert torch.equal(shifted(x, t, {})[:, 1:], still(x, t, {})[:, :-1])


def test_masks_outside_the_vocabulary_and_foreign_code_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not among the 7 tokens"):
        MaskedLM(Toy(), 7, 7)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 7}))
    with pytest.raises(ValueError, match="mask_token_id"):
        TransformersTeacher(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"mask_token_id": 3, "auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(ValueError, match="its own code"):
        TransformersTeacher(str(tmp_path))


def test_a_model_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config.mask_token_id = 4
    model = transformers.BertForMaskedLM(config).eval()
    model.save_pretrained(tmp_path)
    teacher = TransformersTeacher(str(tmp_path), length=5)
    masked = torch.full((2, 5), 8)
    expected = model(input_ids=torch.full((2, 5), 4)).logits
    order = torch.tensor([0, 1, 2, 3, 8, 5, 6, 7])
    assert (teacher.denoiser(masked, 0.5).log_mean() - expected[..., order].log_softmax(-1)).abs().max() < 1e-5
    assert teacher.generate(3, {}, 0, times=teacher.grid(2)).shape == (3, 5)


def test_a_model_without_its_head_is_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config.mask_token_id = 4
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not those its config.json describes"):
        TransformersTeacher(str(tmp_path))


# LLaDA and Dream

VOCABULARY, WIDTH, HIDDEN, DEPTH, HEADS, KV_HEADS, LENGTH, THETA = 13, 16, 24, 2, 4, 2, 6, 500.0
LLADA = {
    "model_type": "llada",
    "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"},
    "d_model": WIDTH,
    "n_heads": HEADS,
    "n_kv_heads": KV_HEADS,
    "n_layers": DEPTH,
    "mlp_hidden_size": HIDDEN,
    "activation_type": "silu",
    "block_type": "llama",
    "layer_norm_type": "rms",
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_theta": THETA,
    "include_bias": False,
    "include_qkv_bias": False,
    "weight_tying": False,
    "max_sequence_length": 32,
    "vocab_size": VOCABULARY,
    "embedding_size": VOCABULARY,
    "mask_token_id": 9,
    "torch_dtype": "float32",
}
DREAM = {
    "model_type": "Dream",
    "architectures": ["DreamModel"],
    "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "mask_token_id": 9,
    "max_position_embeddings": 32,
    "max_window_layers": DEPTH,
    "num_attention_heads": HEADS,
    "num_hidden_layers": DEPTH,
    "num_key_value_heads": KV_HEADS,
    "pad_token_id": 1,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": THETA,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": VOCABULARY,
}
# what `logits` below calls a weight: its name in the published files
LLADA_NAMES = {
    "embedding": "model.transformer.wte",
    "head": "model.transformer.ff_out",
    "norm": "model.transformer.ln_f",
    "block": "model.transformer.blocks",
    "norm1": "attn_norm",
    "norm2": "ff_norm",
    **{name: f"{name}_proj" for name in "qkv"},
    "o": "attn_out",
    "gate": "ff_proj",
    "up": "up_proj",
    "down": "ff_out",
}
DREAM_NAMES = {
    "embedding": "model.embed_tokens",
    "head": "lm_head",
    "norm": "model.norm",
    "block": "model.layers",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    **{name: f"self_attn.{name}_proj" for name in "qkvo"},
    **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}


def weights(names: dict[str, str], biases: tuple[str, ...]) -> dict[str, Tensor]:
    """Random weights under the published names."""
    narrow = WIDTH // HEADS * KV_HEADS
    shapes = {
        "q": (WIDTH, WIDTH),
        "k": (narrow, WIDTH),
        "v": (narrow, WIDTH),
        "o": (WIDTH, WIDTH),
        "gate": (HIDDEN, WIDTH),
        "up": (HIDDEN, WIDTH),
        "down": (WIDTH, HIDDEN),
        "norm1": (WIDTH,),
        "norm2": (WIDTH,),
    }
    every = {f"{names[name]}.weight": (VOCABULARY, WIDTH) for name in ("embedding", "head")}
    every[f"{names['norm']}.weight"] = (WIDTH,)
    for n in range(DEPTH):
        every |= {f"{names['block']}.{n}.{names[name]}.weight": shape for name, shape in shapes.items()}
        every |= {f"{names['block']}.{n}.{names[name]}.bias": shapes[name][:1] for name in biases}
    generator = torch.Generator().manual_seed(0)
    return {name: 0.4 * torch.randn(shape, generator=generator) for name, shape in every.items()}


def logits(w: dict[str, Tensor], names: dict[str, str], x: Tensor) -> Tensor:
    """Llama's forward pass with attention in both directions, one head at a time.

    Rotation by complex numbers.
    """

    def norm(h: Tensor, name: str) -> Tensor:
        return h / (h.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]

    size = WIDTH // HEADS
    turns = torch.tensor(
        [[complex(math.cos(a), math.sin(a)) for a in (p * THETA ** (-2 * i / size) for i in range(size // 2))]
         for p in range(x.shape[1])]
    )  # fmt: skip

    def linear(h: Tensor, name: str) -> Tensor:
        return h @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def heads(h: Tensor, turned: bool) -> list[Tensor]:
        parts = h.split(size, -1)
        return [torch.complex(*part.chunk(2, -1)) * turns if turned else part for part in parts]

    h = w[f"{names['embedding']}.weight"][x]
    for n in range(DEPTH):
        block = {name: f"{names['block']}.{n}.{names[name]}" for name in names}
        a = norm(h, block["norm1"])
        q, k = heads(linear(a, block["q"]), True), heads(linear(a, block["k"]), True)
        v = heads(linear(a, block["v"]), False)
        group = HEADS // KV_HEADS
        seen = [
            ((one[:, :, None] * k[i // group][:, None].conj()).real.sum(-1) / math.sqrt(size)).softmax(-1)
            @ v[i // group]
            for i, one in enumerate(q)
        ]
        h = h + linear(torch.cat(seen, -1), block["o"])
        a = norm(h, block["norm2"])
        h = h + linear(nn.functional.silu(linear(a, block["gate"])) * linear(a, block["up"]), block["down"])
    return linear(norm(h, names["norm"]), names["head"])


def written(folder, config: dict, state: dict[str, Tensor], shards: int = 1) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(state)
    files = {f"model-{i + 1:05d}-of-{shards:05d}.safetensors": names[i::shards] for i in range(shards)}
    for file, part in files.items():
        save_file({name: state[name] for name in part}, folder / file, metadata={"format": "pt"})
    where = {name: file for file, part in files.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return str(folder)


KINDS = {"llada": (LLADA, LLADA_NAMES, ()), "dream": (DREAM, DREAM_NAMES, ("q", "k", "v"))}


@pytest.mark.parametrize("kind", KINDS)
def test_llada_and_dream_look_both_ways(tmp_path, kind):
    pytest.importorskip("transformers")
    config, names, biases = KINDS[kind]
    state = weights(names, biases)
    teacher = TransformersTeacher(written(tmp_path / kind, config, state, shards=2), length=LENGTH)
    network = teacher.denoiser.network
    assert network.mask == 9 and network.shift == (kind == "dream")
    x = torch.randint(0, VOCABULARY, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    expected = logits(state, names, x)
    assert (network.model(input_ids=x).logits - expected).abs().max() < 1e-4
    masked = torch.full((1, LENGTH), VOCABULARY - 1)  # our mask
    expected = logits(state, names, torch.full((1, LENGTH), 9))
    if kind == "dream":  # the logits speak of the next position
        expected = torch.cat([expected[:, :1], expected[:, :-1]], 1)
    order = [*range(9), 12, 10, 11]
    assert (teacher.denoiser(masked, 0.5).log_mean() - expected[..., order].log_softmax(-1)).abs().max() < 1e-4
    samples = teacher.generate(3, {}, 0, times=teacher.grid(3))
    assert samples.shape == (3, LENGTH) and int(samples.max()) < VOCABULARY - 1


@pytest.mark.parametrize(
    "change, said",
    [
        ({"block_type": "sequential"}, "block_type = 'sequential'"),
        ({"n_layers": None}, "n_layers"),
        ({"n_layers": 3}, "not those its config.json describes: model.layers.2"),
        ({"n_layers": 1}, "not those its config.json describes: model.layers.1"),
        ({"mlp_hidden_size": 20}, "does not load"),
        ({"attn_implementation": "evil/kernel"}, "attn_implementation = 'evil/kernel', code from a hub"),
        ({"inner": [{"_attn_implementation": {"text": "evil/kernel"}}]}, "code from a hub, which is not run"),
    ],
)
def test_other_kinds_of_llada_are_refused(tmp_path, change, said):
    pytest.importorskip("transformers")
    config = {key: value for key, value in (LLADA | change).items() if value is not None}
    with pytest.raises(ValueError, match=said):
        TransformersTeacher(written(tmp_path / "odd", config, weights(LLADA_NAMES, ())))


def test_an_adapter_that_leads_to_another_model_is_refused(tmp_path):
    pytest.importorskip("transformers")
    folder = written(tmp_path / "odd", LLADA, weights(LLADA_NAMES, ()))
    (tmp_path / "odd" / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')
    with pytest.raises(ValueError, match="would load another model in the place of this one"):
        TransformersTeacher(folder)


def test_a_student_of_llada_finds_its_teacher(tmp_path):
    """The folder of a learned sampler names the checkpoint and loads it again."""
    pytest.importorskip("transformers")
    import distillkit
    from distillkit.discrete.learned import LearnedSampler
    from distillkit.students.sampler import SamplerStudent

    teacher = TransformersTeacher(written(tmp_path / "llada", LLADA, weights(LLADA_NAMES, ())), length=LENGTH)
    student = SamplerStudent(teacher, LearnedSampler(teacher.process, teacher.grid(3).tolist()))
    student.save(tmp_path / "student", method="LSD", domain="discrete")
    again = distillkit.load_student(tmp_path / "student", trust=(str(tmp_path / "llada"),))
    assert torch.equal(again.sample(2, seed=0), student.sample(2, seed=0))
