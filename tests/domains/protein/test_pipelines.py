"""RFD4-Proteina as a teacher: our samples against the pipeline's own, on tiny random ones."""

import pytest
import torch

pytest.importorskip("diffusers")

import tiny_proteina
from helpers import trainer
from safetensors.torch import save_file

from distillkit import load_student
from domains.image.pipelines import ImagePipeline
from domains.protein.pipelines import Designs, ProteinPipeline, read_designs
from domains.protein.pipelines.codec import CA
from domains.protein.pipelines.design import features, latent_mask
from domains.protein.pipelines.residues import ATOMS, KINDS, UNKNOWN_KIND, kinds_of
from tests.battery.conftest import build

GIVEN, BARE = 2, 1  # tokens of the first design
NAMED = ("padding_mask", "is_in_context_conditioning", "supports_local_latent", "token_type", "atom37_mask")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline and three designs: parts given, of fewer tokens, and with its whole sequence."""
    folder = tmp_path_factory.mktemp("proteina")
    tiny_proteina.proteina(folder / "pipeline")
    (folder / "designs").mkdir()
    tiny_proteina.design(folder / "designs" / "a.safetensors", 12, GIVEN, BARE)
    tiny_proteina.design(folder / "designs" / "b.safetensors", 9, seed=1)
    whole = {"condition_sequence_1_residue": 1 + torch.arange(12)[None] % 22}
    tiny_proteina.design(folder / "whole.safetensors", 12, GIVEN, BARE, **whole)
    return folder


@pytest.fixture(scope="module")
def pipeline(folder):
    import diffusers

    found = diffusers.RFD4ProteinaPipeline.from_pretrained(str(folder / "pipeline"))
    found.set_progress_bar_config(disable=True)
    return found


def teacher_of(folder, designs="designs", **settings):
    return ProteinPipeline(str(folder / "pipeline"), str(folder / designs), **settings)


def asked(path, rows):
    return {name: value[torch.tensor(rows)] for name, value in read_designs(str(path)).items()}


def unit(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run(pipeline, cond, teacher, noise, draw, monkeypatch):
    """The pipeline's own output from the same first state and the same draws."""
    import diffusers

    def drawn(shape, **_):
        one = shape[-1] == 3
        scheduler = pipeline.bb_ca_scheduler if one else pipeline.local_latents_scheduler
        return draw(scheduler.step_index + 1)[..., :3] if one else draw(scheduler.step_index + 1)[..., 3:]

    monkeypatch.setattr(diffusers.schedulers.scheduling_rfd4_proteina, "randn_tensor", drawn)
    t = teacher.grid(teacher.best["steps"])[0].float()
    positions, latents, _ = teacher.denoiser.network.apart(t * noise, t.expand(len(noise)), cond)
    known = features(cond)
    own = {name: known.pop(name) for name in NAMED}
    return pipeline(**own, conditioning_features=known, latents_bb_ca=positions, latents_local_latents=latents)


# Samples


@pytest.mark.parametrize("lead", [1.0, 5.0])
def test_samples_are_the_pipelines(lead, folder, pipeline, monkeypatch):
    teacher, cond = teacher_of(folder, "whole.safetensors", lead=lead), asked(folder / "whole.safetensors", [0, 0])
    assert teacher.best == {"solver": "tsr", "steps": 6} and teacher.event_shape == (12, 7)
    noise, draw = unit(0, 2, 12, 7), lambda i: unit(i, 2, 12, 7)
    ours = teacher.sample(noise, cond, draw=draw)
    theirs = run(pipeline, cond, teacher, noise, draw, monkeypatch)
    for x, own in ((ours[..., :3], theirs.bb_ca), (lead * ours[..., 3:], theirs.local_latents)):
        assert own.std() > 0.3 and (x - own).abs().max() < 2e-5
    other = teacher.sample(noise, cond, draw=lambda i: unit(i + 1, 2, 12, 7))
    assert (other - ours).abs().max() > 0.05  # there is noise on the way
    data, mask = teacher.codec.decode(ours, cond), cond["mask"]
    assert data.shape == (2, *teacher.codec.data_shape(teacher.event_shape)) == (2, 12, 37, 5)
    assert (data[..., 3].bool() == theirs.atom_mask & mask[..., None]).all()
    assert (data[..., :3] - theirs.coords_nm)[mask].abs().max() < 2e-5 and not data[~mask].any()
    named = [KINDS[int(kind)] for kind in data[0, :, CA, 4]]
    assert named[BARE:6] == ["TYR", "TRP", "THR", "SER", "PRO"] and named[:BARE] == ["UNK"]


def test_the_pipelines_number_of_steps(folder, tmp_path, monkeypatch):
    """The released finer end and depths; fewer steps have the same schedule without that end."""
    pipeline = tiny_proteina.proteina(tmp_path, [2] * 3 + [1] * 19, tail_steps=10)
    teacher = ProteinPipeline(str(tmp_path), str(folder / "designs"))
    cond, noise, draw = asked(folder / "designs", [1]), unit(0, 1, 12, 7), lambda i: unit(i, 1, 12, 7)
    ours, theirs = teacher.sample(noise, cond, draw=draw), run(pipeline, cond, teacher, noise, draw, monkeypatch)
    assert (ours[..., :3] - theirs.bb_ca).abs().max() < 2e-5
    assert (ours[..., 3:] - theirs.local_latents).abs().max() < 2e-5
    for steps, places, num in ((11, range(11), 11), (22, [0, 2, *range(4, 24)], 24)):  # halved from the third step on
        rest = 10 ** (0.001 - 2.001 * torch.tensor(places, dtype=torch.float64) / num)
        assert (teacher.grid(steps) - (rest - 0.01) / (10**0.001 - 0.009)).abs().max() < 1e-6
    assert teacher.sample(noise, cond, 3).isfinite().all()


# The network


def test_both_modalities_have_their_own_time(folder, pipeline):
    """`x_0 = x + t v` of each at its time, between the times of any grid."""
    teacher, cond = teacher_of(folder, lead=3.0, passes=2), asked(folder / "designs", [0, 0])
    t, x_0, eps = torch.tensor([0.37, 0.83]), unit(0, 2, 12, 7), unit(1, 2, 12, 7)
    at, late = t[:, None, None], (3 * t / (1 + 2 * t))[:, None, None]
    x = (1 - at) * torch.cat([x_0[..., :3], x_0[..., 3:] / 3], -1) + at * eps
    mask, full = cond["mask"][..., None], latent_mask(cond)[..., None]
    positions = ((1 - at) * x_0 + at * eps)[..., :3] * mask
    latents = ((1 - late) * x_0 + late * eps)[..., 3:] * full  # as the pipeline noises them
    known = features(cond)
    padding, kind, atoms = (known.pop(name) for name in ("padding_mask", "token_type", "atom37_mask"))
    v = pipeline.transformer(
        positions, latents, 1 - t, 1 - late[:, 0, 0], padding, kind, atoms, conditioning=known, recycle_depth=2
    )
    expected = torch.cat([positions + at * v.backbone, (latents + late * v.local_latents) / 3], -1)
    ours = teacher.denoiser(x, t, cond)
    assert (ours - expected).abs().max() < 2e-6 and expected.std() > 0.3
    assert not ours[~cond["mask"]].any() and ours[:, :BARE, 3:].abs().max() < 1e-6
    assert (
        teacher.denoiser(x, t, cond) - teacher_of(folder, lead=3.0, passes=1).denoiser(x, t, cond)
    ).abs().max() > 0.01


def test_padding_changes_nothing(folder):
    teacher, alone = teacher_of(folder), asked(folder / "designs" / "b.safetensors", [0])
    padded = asked(folder / "designs", [1])
    assert padded["mask"].shape == (1, 12) and alone["mask"].shape == (1, 9)
    x, t = unit(0, 1, 12, 7), torch.tensor([0.5])
    ours = teacher.denoiser(x, t, padded)
    assert (ours[:, :9] - teacher.denoiser(x[:, :9], t, alone)).abs().max() < 2e-6 and not ours[:, 9:].any()


def test_the_codec_has_the_autoencoders_units(folder, pipeline):
    teacher, cond = teacher_of(folder, lead=2.0), asked(folder / "designs", [0])
    data = torch.cat([unit(0, 1, 12, 37, 3), torch.ones(1, 12, 37, 1), torch.zeros(1, 12, 37, 1)], -1)
    x = teacher.codec.encode({**cond, "data": data})
    known = features(cond) | {"atom37_mask": torch.ones(1, 12, 37)}
    own = {name: known.pop(name) for name in ("padding_mask", "token_type", "atom37_mask")}
    mean = pipeline.vae.encode(data[..., :3], **own, conditioning=known).mean
    assert torch.equal(2 * x[..., 3:], mean) and mean.std() > 0.1
    assert torch.equal(x[..., :3], data[..., CA, :3] * cond["mask"][..., None])
    back = teacher.codec.decode(x, cond)
    assert torch.equal(back[..., CA, :3], x[..., :3]) and torch.equal(back[..., CA, 3], cond["mask"].float())
    sidechains = pipeline.vae.decode(mean, x[..., :3], **own, conditioning=known).coordinates[:, BARE:-GIVEN]
    assert torch.equal(back[:, BARE:-GIVEN, ..., :3], sidechains)


# Designs and files


def test_designs_keep_what_is_missing(folder):
    cond = read_designs(str(folder / "designs"))
    assert all(value.isfinite().all() for value in cond.values()) and "coords_nm" not in cond
    assert cond["mask"].sum(1).tolist() == [12 - GIVEN, 9] and "condition_rasa__binned_1_atom" not in cond
    known = features(cond)["condition_coordinate_1_atom"]
    assert known[0, : 12 - GIVEN].isnan().all() and known[0, 12 - GIVEN :].isfinite().all()
    data = Designs(str(folder / "designs"), batch_size=2)
    data.setup()
    assert len(data.train) == 1000 and data.train[torch.tensor([999])]["mask"].sum() == 9
    assert data.event_shape == (12, 37, 5) and not data.provides and data.real(2) is None


def test_groups_are_numbered_and_only_the_shuffle_is_left_out(tmp_path):
    groups = torch.full((1, 12, 37), -1)
    groups[0, 0, :3], groups[0, 1, 0] = 7, 4
    tiny_proteina.design(tmp_path / "a.safetensors", condition_CoordinateGroup_1_atom=groups)
    found = read_designs(str(tmp_path / "a.safetensors"))["_prepared_coord_group_seq"]
    assert found[0, 0, :4].tolist() == [1, 1, 1, -1] and found[0, 1, 0] == 0 and found.unique().tolist() == [-1, 0, 1]


def test_residues_are_known_by_their_atoms():
    """The twenty, in whatever order; not what only another token has, nor what has other atoms."""
    atoms, allowed = tiny_proteina.vocabulary()
    found = kinds_of({"atom37_mask": atoms, "allowed_residue_types": allowed})
    assert found == [UNKNOWN_KIND, *reversed(range(20)), *[UNKNOWN_KIND] * 3] and len(KINDS) == 21


def test_files_have_all_atoms(folder, tmp_path):
    gemmi = pytest.importorskip("gemmi")
    teacher, cond = teacher_of(folder, "whole.safetensors"), asked(folder / "whole.safetensors", [0])
    data = teacher.generate(1, cond, 0)
    media = Designs(str(folder / "whole.safetensors")).media
    page, pdb, cif = media.save(data, cond, tmp_path)
    assert page.name == "designs.html" and media.picture(data, cond).size[0] > 0
    one, *others = (gemmi.read_structure(str(file))[0] for file in (pdb, cif))
    residues = [residue for chain in one for residue in chain]
    assert [len(chain) for chain in one] == [6, 4] and residues[BARE].name == "TYR"
    kinds = data[0, cond["mask"][0], CA, 4].int().tolist()
    assert [residue.name for residue in residues] == [KINDS[kind] for kind in kinds] and UNKNOWN_KIND in kinds
    for residue, atoms in zip(residues, data[0, cond["mask"][0]], strict=True):
        for atom in residue:
            assert torch.tensor(atom.pos.tolist()).sub(10 * atoms[ATOMS.index(atom.name), :3]).abs().max() < 6e-4
        there = 1 if residue.name == "UNK" else int(atoms[:, 3].sum())
        assert len(residue) == there
    large = torch.tensor([1e3, 1e3, 1e3, 1, 1])
    (far,) = [file for file in media.save(data * large, cond, tmp_path / "far") if file.suffix != ".html"]
    assert far.suffix == ".cif"  # too large for the columns of the other
    assert [atom.name for chain in others[0] for residue in chain for atom in residue] == [
        atom.name for residue in residues for atom in residue
    ]


# Students


LORA = ["student=lora", "student.rank=2", "fake_score=lora", "fake_score.rank=2"]


@pytest.mark.parametrize("method, more", [("dmd", []), ("sid", LORA)])
def test_students_take_steps(method, more, folder, tmp_path):
    words = ["domain=protein", "teacher=diffusers", f"teacher.path={folder / 'pipeline'}", "data=designs"]
    words += [f"data.path={folder / 'designs'}", "data.batch_size=2", "model.times=[0.9,0.3]", f"method={method}"]
    own = build(*words, *more)
    own.model.require(own.data)
    fitted = trainer(max_steps=2)
    fitted.fit(own.model, own.data)
    assert fitted.global_step == 2 and not own.model.bad_steps.any()
    cond = own.data.conditions(2)
    made = own.model.product()
    made.save(tmp_path / "student", examples=cond)
    student = load_student(tmp_path / "student", (str(folder / "pipeline"),))
    x = student.sample(2, cond, decode=False)
    assert torch.equal(x, made.sample(2, cond, decode=False)) and x.shape == (2, 12, 7) and x.isfinite().all()
    data = student.sample(2)  # the examples in its folder
    assert data.shape == (2, 12, 37, 5) and (data[..., CA, 3].bool() == cond["mask"]).all()
    evaluator = own.data.evaluator()
    found = evaluator(data, cond) | evaluator.paired(data, own.model.teacher.generate(2, cond, 1), cond)
    assert found.keys() >= evaluator.better.keys() and found["distance"] > 0
    assert evaluator.paired(data, data, cond) == {"distance": 0.0}


# Refusals


def test_what_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="data=designs data.path=FILE"):
        ProteinPipeline(str(folder / "pipeline"))
    with pytest.raises(ValueError, match="there are no designs in"):
        read_designs(str(tmp_path))
    made = tiny_proteina.design(tmp_path / "a.safetensors")
    tiny_proteina.design(tmp_path / "b.safetensors", is_aromatic=torch.zeros(1, 12, 12))
    with pytest.raises(ValueError, match="differ in is_aromatic: prepare all designs in the same way"):
        read_designs(str(tmp_path))
    tiny_proteina.design(tmp_path / "b.safetensors", given=12)
    with pytest.raises(ValueError, match="leaves nothing to design"):
        read_designs(str(tmp_path / "b.safetensors"))
    lacking, wrong = dict(made), {**made, "padding_mask": made["padding_mask"].long()}
    del lacking["molecule_iid"]
    for odd, said in ((lacking, "no molecule_iid"), (wrong, r"padding_mask as int64 \[1, 12\]")):
        save_file({name: value.contiguous() for name, value in odd.items()}, str(tmp_path / "b.safetensors"))
        with pytest.raises(ValueError, match=f"b.safetensors holds {said}: save the features"):
            read_designs(str(tmp_path / "b.safetensors"))
    for settings in ({"lead": 0.0}, {"passes": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            teacher_of(folder, **settings)
    index = (folder / "pipeline" / "model_index.json").read_text()
    (tmp_path / "model_index.json").write_text(index.replace('"recycle_depths": [', '"recycle_depths": ["evil", '))
    with pytest.raises(ValueError, match="only parts of diffusers and transformers are read"):
        ProteinPipeline.family(tmp_path)
    with pytest.raises(ValueError, match="samples of the domain protein: say domain=protein"):
        ImagePipeline.family(folder / "pipeline")
