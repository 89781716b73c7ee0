"""Adapters on one frozen pipeline: memory, training, what is kept, what a student needs."""

import re
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")

import tiny_pipelines
from helpers import trainer

from distillkit import load_student
from distillkit.checkpointing import checkpoint_blocks, checkpoints
from distillkit.methods.base import Adam
from distillkit.methods.dmd import DMD
from distillkit.networks.adapters import Adapters
from distillkit.spec import from_spec, to_spec
from distillkit.students.few_step import FewStepStudent
from distillkit.students.makers import Lora
from domains.video.pipelines import TARGETS, VideoPipeline, ask
from domains.video.prompts import Prompts

SIZE = {"frames": 5, "height": 16, "width": 16}
KINDS = {"wan": (tiny_pipelines.wan, VideoPipeline), "cogvideox": (tiny_pipelines.cogvideox, VideoPipeline)}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("a cat runs\na dog sleeps\na cat on the moon")
    return str(file)


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    """The folder of a pipeline, named after its kind."""
    folder = tmp_path_factory.mktemp("pipelines") / request.param
    KINDS[request.param][0](folder)
    return folder


def teacher_of(folder, prompts, **settings):
    return KINDS[folder.name][1](str(folder), prompts=prompts, **SIZE, **settings)


def adapters(teacher):
    return Adapters(teacher.base(), 2, TARGETS)


def distiller(teacher, **settings):
    torch.manual_seed(0)
    roles = {"student": Adam(lr=1e-2), "fake_score": Adam(lr=1e-2, updates=1)}
    lora = Lora(2, TARGETS)
    made = {"student_maker": lora, "fake_score_maker": lora, "num_steps": 2, "kappa": 3.0, "ema_halflife": 1.0}
    return DMD(teacher, **made, **roles, **settings)


def storages(module):
    return {p.untyped_storage().data_ptr() for p in module.parameters()}


def test_the_base_is_in_memory_once_and_nobody_trains_it(folder, prompts):
    teacher = teacher_of(folder, prompts)
    model = distiller(teacher)
    base, num = teacher.denoiser.network.models, sum(1 for _ in teacher.denoiser.network.models.parameters())
    roles = {"student": model.student, "fake_score": model.fake_score, "ema": model.ema}
    for name, module in roles.items():
        tree = module.network.tree
        assert tree is not teacher.denoiser.network and tree.models[0] is not base[0], name
        shared = [p for p in tree.models.parameters() if p.untyped_storage().data_ptr() in storages(base)]
        assert len(shared) == num and not any(p.requires_grad for p in shared), name
        assert not storages(module) & storages(base), name  # what it calls its own
    assert not storages(model.student) & storages(model.fake_score) and not storages(model.student) & storages(
        model.ema
    )
    everything = {p.untyped_storage().data_ptr() for m in roles.values() for p in m.network.tree.parameters()}
    own = storages(model.student) | storages(model.fake_score) | storages(model.ema)
    assert everything | own == storages(base) | own
    tables = {id(module.network.texts.text) for module in roles.values()}
    assert tables == {id(teacher.denoiser.network.texts.text)}
    model.double()  # as a move to another device does: all follow, and stay together
    assert all(storages(base) <= storages(m.network.tree.models) for m in roles.values())


def test_a_student_begins_as_its_teacher_and_the_teacher_stays_as_it_is(folder, prompts, tmp_path):
    teacher = teacher_of(folder, prompts)
    x = torch.randn(2, *teacher.event_shape, generator=torch.Generator().manual_seed(1))
    t, cond = torch.tensor([0.3, 0.9]) * teacher.process.t_max, {"prompt": torch.tensor([0, 2])}
    before, hash_before = teacher.denoiser(x, t, cond), teacher.fingerprint()
    model = distiller(teacher)
    assert torch.equal(model.student(x, t, cond), before) and torch.equal(model.ema(x, t, cond), before)
    assert torch.equal(model.fake_score(x, t, {**cond, "step": torch.tensor([0, 1])}), before)
    data = Prompts(prompts, str(folder), SIZE, batch_size=2)
    run = trainer(max_steps=4)
    run.fit(model, data)
    assert run.global_step == 4 and not model.bad_steps.any()
    assert torch.equal(teacher.denoiser(x, t, cond), before) and teacher.fingerprint() == hash_before
    with torch.no_grad():
        trained = [net(x, t, cond) for net in (model.student, model.ema)]
    assert min(float((a - b).abs().max()) for a, b in ((trained[0], before), (trained[1], before), trained)) > 1e-6
    step = model.fake_score.network.embed["step"].weight
    assert step.abs().max() > 0  # it learnt to tell the steps apart

    # what is kept: adapters, and the table of prompts
    kept = {name for name in model.state_dict() if name.split(".")[0] in ("student", "ema", "fake_score")}
    assert all(".down." in n or ".up." in n or ".texts." in n or ".told." in n for n in kept)
    model.eval().export(tmp_path / "student", domain="video")
    weights = load_file(tmp_path / "student" / "model.safetensors")
    adapters = {name: value for name, value in weights.items() if name != "network.texts.text"}
    attentions = [m for m in teacher.denoiser.network.modules() if hasattr(m, "to_out")]
    assert adapters.keys() < weights.keys() and len(adapters) == 8 * len(attentions)
    assert all(2 in value.shape and value.dtype == torch.float32 for value in adapters.values())

    # and what it takes to have the student again
    expected = model.product().eval().sample(3, seed=5)
    trust = (str(folder),)
    assert torch.equal(load_student(tmp_path / "student", trust).sample(3, seed=5), expected)
    with pytest.raises(ValueError, match=re.escape(f"pass trust=({str(folder)!r},) if that is right")):
        load_student(tmp_path / "student")
    away = folder.with_name("away")
    shutil.move(folder, away)
    try:
        with pytest.raises(ValueError, match=f"adapters on the pipeline in {folder}, which is not there"):
            load_student(tmp_path / "student", trust)
        shutil.copytree(away, folder)
        KINDS[folder.name][0](folder, seed=1)
        with pytest.raises(ValueError, match="on other weights"):
            load_student(tmp_path / "student", trust)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.move(away, folder)


def test_a_resumed_run_goes_on_as_it_would_have(folder, prompts, tmp_path):
    def run(steps, **settings):
        model = distiller(teacher_of(folder, prompts), schedule="constant")  # runs of different length
        data = Prompts(prompts, str(folder), SIZE, batch_size=2)
        own = trainer(max_steps=steps)
        own.fit(model, data, **settings)
        own.save_checkpoint(tmp_path / "last.ckpt")
        return {name: value.clone() for name, value in model.state_dict().items()}

    whole = run(4)
    run(2)
    size = (tmp_path / "last.ckpt").stat().st_size
    resumed = run(4, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    base = sum(p.numel() for p in teacher_of(folder, prompts).denoiser.network.models.parameters())
    assert size < 4 * 3 * base  # three full copies would be larger


def test_a_base_in_half_precision_and_activations_that_are_made_again(folder, prompts):
    """Adapters stay in float32; with checkpointing the gradients are the same."""
    teacher = teacher_of(folder, prompts, dtype="bfloat16")
    own = teacher.new_denoiser(adapters(teacher))
    assert {p.dtype for p in own.parameters()} == {torch.float32}
    assert torch.bfloat16 in {p.dtype for p in teacher.denoiser.network.models.parameters()}
    x = torch.randn(1, *teacher.event_shape, generator=torch.Generator().manual_seed(1))
    t, cond = torch.tensor([0.5]) * teacher.process.t_max, {"prompt": torch.tensor([1])}
    assert own(x, t, cond).dtype == torch.float32 and own(x, t, cond).isfinite().all()

    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        teacher = teacher_of(folder, prompts)
        net = teacher.new_denoiser(adapters(teacher))
        assert checkpoint_blocks(net) == len(net.network.tree.models) if checkpointing else not checkpoints(net)
        assert net.network.tree.models[0].is_gradient_checkpointing == checkpointing
        net(x, t, cond).square().sum().backward()
        grads.append([p.grad for p in net.parameters() if p.grad is not None])
    assert len(grads[0]) > 0 and all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


def woken(teacher, network=None):
    """A student whose adapters say something."""
    denoiser = teacher.new_denoiser(network or adapters(teacher)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return FewStepStudent(denoiser, [teacher.process.t_max], teacher.event_shape, teacher.classes)


def test_adapters_on_any_layer_and_merged(folder, prompts):
    """All linear layers and convolutions, as of any network; merged they need no pipeline."""
    teacher = teacher_of(folder, prompts)
    student = woken(teacher, Adapters(teacher.base(), 1))
    network = student.denoiser.network
    kinds = {m.weight.ndim for name, m in network.named_modules() if name.endswith(".down")}
    assert kinds == ({2, 5} if folder.name == "wan" else {2, 4})
    expected, plain = student.sample(2), teacher.new_denoiser(network.merge()).eval()
    assert type(plain.network) is type(teacher.denoiser.network)
    merged = FewStepStudent(plain, student.times, teacher.event_shape, teacher.classes).sample(2)
    assert (merged - expected).abs().max() < 1e-4 * expected.abs().max()
    with network.merged():
        assert torch.equal(student.sample(2), merged)
    assert torch.equal(student.sample(2), expected)


def test_new_prompts_are_those_of_one_student(folder, prompts):
    teacher = teacher_of(folder, prompts)
    student, other = (woken(teacher) for _ in range(2))
    before = student.sample(3)
    ask(student, ["a cat on the moon", "a cat runs"], str(folder))
    assert (student.sample(1, {"prompt": [0]}) - other.sample(1, {"prompt": [2]})).abs().max() < 1e-5
    assert "texts.text" in student.denoiser.network.state_dict()
    assert len(student.denoiser.network.state_dict()["texts.text"]) == 3
    assert torch.equal(other.sample(3), before) and len(teacher.denoiser.network.texts.text) == 4


def test_folders_that_were_written_before_every_network_could_have_adapters(folder, prompts, tmp_path):
    """Another class, with the base's arguments among its own, and the names of the package peft."""
    student = woken(teacher_of(folder, prompts))
    expected = student.sample(3, seed=5)
    student.save(tmp_path)
    file = tmp_path / "student.yaml"
    config = yaml.safe_load(file.read_text())
    made = config["denoiser"]["init_args"]["network"]["init_args"]
    old = {
        **made["base"]["init_args"],
        "texts": [*made["base"]["init_args"]["texts"]["text"]],
        "rank": made["rank"],
        "sha256": made["sha256"],
    }
    old.pop("settings", None)  # a later argument
    assert old.keys() == {"path", "kind", "rank", "texts", "dtype", "sha256"}
    old = {"class_path": "domains.video.pipelines.networks.Adapters", "init_args": old}
    config["denoiser"]["init_args"]["network"] = old
    file.write_text(yaml.safe_dump(config))
    state = load_file(tmp_path / "model.safetensors")
    renamed = {n.replace(".down.", ".lora_A.").replace(".up.", ".lora_B."): v for n, v in state.items()}
    block = "transformer_blocks.0.attn1" if folder.name == "cogvideox" else "blocks.0.attn1"
    assert f"network.layers.models.0.{block}.to_out.0.lora_A.weight" in renamed
    save_file(renamed, tmp_path / "model.safetensors")
    again = load_student(tmp_path, (str(folder),))
    assert torch.equal(again.sample(3, seed=5), expected)
    teacher = to_spec(teacher_of(folder, prompts))
    teacher["init_args"]["lora"] = 2  # as `evaluate` finds it there
    assert from_spec(teacher, (str(folder.parent), prompts)).classes == {"prompt": 3}
    again.save(tmp_path / "again")  # in today's names
    assert torch.equal(load_student(tmp_path / "again", (str(folder),)).sample(3, seed=5), expected)
