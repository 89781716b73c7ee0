"""Missing capabilities of a composed configuration: found before anything is built."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from distillkit import capabilities
from distillkit.capabilities import gap, imported, lacking
from distillkit.cli import catalogue, config, declarations, front, pairing
from distillkit.cli.matrix import compatibility
from distillkit.errors import UsageError
from distillkit.files import write_yaml

TESTS = Path(__file__).parent
CONF = f"hydra.searchpath=[file://{TESTS / 'dummy' / 'conf'}]"


def part(class_path: str, **arguments):
    return {"class_path": class_path, "init_args": arguments}


def run(teacher, method: str = "dmd.DMD", data: str = "domains.toy.data.ToyData", **arguments):
    """A configuration of a method, a teacher and data."""
    return {"model": part(f"distillkit.methods.{method}", teacher=teacher, **arguments), "data": part(data)}


GAUSSIAN = part("domains.toy.teacher.Gaussian")
DIGITS = part("domains.image.teacher.Digits")
WAN = part("domains.video.pipelines.VideoPipeline", path="nowhere", prompts=None)
TRELLIS = part("domains.threed.trellis.TrellisFeatures", path="nowhere")
PROMPTS = "domains.video.prompts.Prompts"
END = "; `python -m distillkit list` shows what goes together"


@pytest.fixture(params=[declarations.read, imported], ids=["source", "class"])
def find(request):
    return request.param


@pytest.mark.parametrize(
    ("handed", "said"),
    [
        (run(GAUSSIAN), None),
        (run(GAUSSIAN, gan=0.1), None),
        (run(part("domains.discrete.teacher.Text")), "DMD needs denoiser: Text, ToyData"),
        (run(WAN, data=PROMPTS), None),
        (run(WAN, data=PROMPTS, gan=0), None),
        (run(WAN, data=PROMPTS, gan=0.1), "DMD with gan=0.1 needs data and features: VideoPipeline, Prompts"),
        (run(WAN, gan=0.1), "DMD with gan=0.1 needs features: VideoPipeline, ToyData"),
        (run(DIGITS, data=PROMPTS, gan=0.1), "DMD with gan=0.1 needs data: Digits, Prompts"),
        (run(WAN, "sid.SiD", PROMPTS, gan=1e-4), "SiD with gan=0.0001 needs data and features: VideoPipeline, Prompts"),
        (run(WAN, "mdt_dist.MDTDist", PROMPTS), "MDTDist needs data: VideoPipeline, Prompts"),
        (run(GAUSSIAN, kappa=1), None),
        (run(GAUSSIAN, kappa=None), None),  # no number: its type is refused
        (run(GAUSSIAN, kappa=2.0), "DMD with kappa=2.0 needs classes: Gaussian, ToyData"),
        (run(GAUSSIAN, kappa=0.0), "DMD with kappa=0.0 needs classes: Gaussian, ToyData"),
        (run(GAUSSIAN, "sid.SiD", guidance="zero"), "SiD with guidance=zero needs classes: Gaussian, ToyData"),
        (run(DIGITS, "sid.SiD", guidance="zero", kappa=2.0), None),
        (run(WAN, kappa=2.0), None),
        (run(TRELLIS, kappa=2.0), None),
        (run(part("domains.threed.teacher.SolidsFeatures"), kappa=2.0), None),
        (run(part("distillkit.teachers.exact.ExactTeacher", classes={"label": 2}), kappa=2.0), None),
        (
            run(part("distillkit.teachers.exact.ExactTeacher", classes={}), kappa=2.0),
            "DMD with kappa=2.0 needs classes: ExactTeacher, ToyData",
        ),
    ],
)
def test_one_sentence_says_what_lacks(find, handed, said):
    assert lacking(handed, find) == (said and re.sub(r": (\w+), (\w+)", r", which \1 and \2 do not give", said) + END)


def test_a_folder_s_classes_are_read_without_its_weights(find, tmp_path):
    for classes, said in (({"label": 3}, False), ({}, True), (None, True)):
        write_yaml(tmp_path / "teacher.yaml", {"classes": classes})
        teacher = part("distillkit.teachers.folder.FolderTeacher", path=str(tmp_path))
        assert bool(lacking(run(teacher, kappa=2.0), find)) == said, classes
    fold = part("domains.protein.proteina.Proteina", path=str(tmp_path))
    write_yaml(tmp_path / "teacher.yaml", {"classes": {"cath_c": 5}})
    assert "needs classes, which Proteina and" in lacking(run(fold, kappa=2.0), find)
    assert lacking(run(part(fold["class_path"], path=str(tmp_path), folds=True), kappa=2.0), find) is None


@pytest.mark.parametrize("path", ["nowhere", None, 3, "damaged"])
def test_an_unreadable_folder_is_left_to_the_constructor(find, tmp_path, path):
    (tmp_path / "teacher.yaml").write_text("- 1")
    path = str(tmp_path) if path == "damaged" else path
    teacher = part("distillkit.teachers.folder.FolderTeacher", path=path)
    assert lacking(run(teacher), find) is None
    assert "needs classes" in lacking(run(teacher, kappa=2.0), find)


def test_every_class_of_the_configuration_counts(find, tmp_path, monkeypatch):
    """Those of a method's other roles too, whether they need or give."""
    (tmp_path / "makers_here.py").write_text(
        "class Hooks:\n    requires = frozenset({'hooks'})\n\n\n"
        "class Hooked:\n    provides = frozenset({'hooks'})\n\n\n"
        "class Loose:\n    @classmethod\n    def needs(cls, arguments):\n"
        "        return {'hooks'} if arguments.get('rank') else set()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    hooks, hooked = part("makers_here.Hooks"), part("makers_here.Hooked")
    said = "Hooks needs hooks, which Gaussian and ToyData do not give" + END
    assert lacking(run(GAUSSIAN, student_maker=hooks), find) == said
    assert lacking(run(GAUSSIAN, several=[1, {"inner": hooks}]), find) == said
    assert lacking(run(GAUSSIAN, student_maker=hooks, network=hooked), find) is None
    loose = part("makers_here.Loose", rank=4)
    assert lacking(run(GAUSSIAN, student_maker=loose), find).startswith("Loose with rank=4 needs hooks, which Gaussian")
    assert lacking({"model": hooks}, find) == "Hooks needs hooks, which no part gives" + END


def test_a_class_that_needs_its_module_is_imported(tmp_path, monkeypatch):
    (tmp_path / "made_here.py").write_text(
        "def words():\n    return {'w' + 'ords'}\n\n\n"
        "class Odd:\n    @classmethod\n    def needs(cls, arguments):\n        return words()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    handed = {"model": part("made_here.Odd")}
    with pytest.raises(NameError):
        lacking(handed, declarations.read)
    assert gap(handed, declarations.read) == "Odd needs words, which no part gives"


def test_the_source_declares_what_the_class_does():
    """The two agree for every class that a default run names."""
    known, paths = catalogue.groups(), set()
    for domain in catalogue.groups()["domain"]:
        for method in known["method"]:
            handed = config.hand_over(pairing.pair(domain, method))
            paths |= {path for path, _ in capabilities._parts([handed["model"], handed["data"]])}
    assert len(paths) > 20
    for path in paths:
        read, real = declarations.read(path), imported(path)
        for name in ("requires", "provides", "home"):
            assert getattr(read, name, None) == getattr(real, name, None), (path, name)
        for name in ("needs", "offers"):
            for arguments in ({}, {"gan": 1.0, "kappa": 3.0, "classes": {"label": 2}}):
                pair = [getattr(kind, name)(arguments) if hasattr(kind, name) else None for kind in (read, real)]
                assert pair[0] == pair[1], (path, name)
        assert (
            read.__name__ == real.__name__
            and (read.__doc__ or "").split("\n")[0] == (real.__doc__ or "").split("\n")[0]
        )


def test_a_pair_is_what_hydra_composes(tmp_path):
    known = catalogue.groups()
    domains = known["domain"]
    for domain in domains:
        for method in known["method"][:: 2 * len(domains) - 1]:
            composed = config.compose([f"domain={domain}", f"method={method}"])[0]
            assert config.hand_over(pairing.pair(domain, method)) == config.hand_over(composed), (domain, method)


def test_a_recipe_serves_a_pair_that_goes_together():
    """Those of a domain alone; what a stage or a teacher has more needs its files."""
    told = {}
    for file in sorted((Path(config.__file__).parents[2] / "conf" / "recipe").glob("*/*.yaml")):
        told[file.parent.name, file.stem] = compatibility(file.parent.name, file.stem)
    assert len(told) > 80 and {pair: said for pair, said in told.items() if said} == {}


@pytest.mark.parametrize("recipe", ["defaults: [/stage: late]", "teacher: {modes: 3}", "model: {gan: 0.7}"])
def test_a_recipe_may_choose_groups(tmp_path, recipe):
    for group, name, text in (
        ("method", "follow", "model:\n  _target_: distillkit.methods.dmd.DMD\n  teacher: ${teacher}\n"),
        ("stage", "late", "teacher: {_target_: domains.toy.teacher.Circle}\n"),
        ("recipe/toy", "follow", f"{recipe}\ndata: {{seed: 7}}\n"),
    ):
        (tmp_path / group).mkdir(parents=True)
        (tmp_path / group / f"{name}.yaml").write_text(f"# @package _global_\n{text}")
    words = (f"hydra.searchpath=[file://{tmp_path}]",)
    handed = config.hand_over(config.compose([*words, "domain=toy", "method=follow"])[0])
    assert handed["data"]["init_args"]["seed"] == 7
    assert ("Circle" in str(handed)) == ("late" in recipe)
    assert config.hand_over(pairing.pair("toy", "follow", words)) == handed


# Typed


@pytest.mark.parametrize(
    "files",
    [
        {"method/follow": "defaults: [_self_, dmd]\nmodel: {gan: 1.0, teacher: null}"},
        {"method/follow": "defaults: [dmd, {override /student: mine}]", "student/mine": "defaults: [copy]\nrank: 1"},
        {"method/follow": "defaults: [dmd, {override /data: late}]", "domain/own": "data: {batch_size: 7}"},
        {"method/follow": "defaults: [dmd]", "domain/own": "student: {rank: 8}"},
        {"method/follow": "defaults: [{/teacher: potts}]"},
    ],
)
def test_what_hydra_orders_in_another_way_is_as_it_composes(tmp_path, files):
    """Its own keys first; a choice that builds on another, that a domain changes, of a later group.

    The last one chooses twice, which Hydra refuses.
    """

    def outcome(work):
        try:
            return work()
        except UsageError as error:
            return str(error)

    head = {"domain/own": "defaults: [/data: early, /teacher: gaussian, /network: mlp]\n"}
    plain = {"data/early": "_target_: domains.toy.data.ToyData", "data/late": "_target_: domains.image.data.Digits"}
    for name, text in {"domain/own": "", **plain, **files}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        package = "# @package _global_\n" if name.startswith(("method", "domain")) else ""
        (tmp_path / f"{name}.yaml").write_text(f"{package}{head.get(name, '')}{text}\n")
    words = (f"hydra.searchpath=[file://{tmp_path}]",)
    composed = outcome(lambda: config.compose([*words, "domain=own", "method=follow"])[0])
    assert outcome(lambda: pairing.pair("own", "follow", words)) == composed


def test_list_needs_no_torch():
    code = "import sys; from distillkit.cli import front; front.main(['list']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert not {"torch", "lightning", "numpy", "jsonargparse", "pygments"} & {*done.stderr.split()}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["domain=discrete", "method=dmd"], "DMD needs denoiser, which Text and TextData do not give"),
        (
            ["domain=toy", "method=sid", "model.kappa=2"],
            "SiD with kappa=2 needs classes, which Gaussian and ToyData do not give",
        ),
        (
            [
                "domain=video",
                "teacher=diffusers",
                "data=prompts",
                "teacher.path=x",
                "data.path=y",
                "method=dmd",
                "model.gan=0.1",
            ],
            "DMD with gan=0.1 needs data and features, which VideoPipeline and Prompts do not give",
        ),
    ],
)
@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_words_are_refused_before_torch(verb, words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "distillkit.cli.lightning", None)  # importing it fails
    assert front.main([verb, *words, "--out", "run"]) == 2
    assert capsys.readouterr().err == f"error: {said}{END}\n"
    assert not [*tmp_path.iterdir()]


def test_flags_and_files_are_refused_before_anything_is_built(tmp_path, monkeypatch, capsys):
    """Where words alone do not say it, the parsed configuration does."""
    monkeypatch.chdir(tmp_path)
    handed = config.hand_over(config.compose(["domain=toy", "method=dmd"])[0])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(handed))
    for command in (["domain=toy", "method=dmd"], ["--config", "config.yaml"]):
        assert front.main(["fit", *command, "--model.kappa=3", "--out", "run"]) == 2
        assert capsys.readouterr().err == (
            f"error: DMD with kappa=3.0 needs classes, which Gaussian and ToyData do not give{END}\n"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_flag_can_mend_what_the_words_lack(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [CONF, "domain=dummy", "method=picky", "~vars.callbacks.finish"]
    mend = ["--model", "dummy.parts.Chase", "--model.teacher", "dummy.parts.Point", "--out", "run"]
    assert front.main(["fit", *words, *mend]) == 0, capsys.readouterr().err
