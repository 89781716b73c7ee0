"""Words of the command line: paths as data, mistakes with the word to type, consoles, queues."""

import ast
import io
import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from distillkit import errors, runs
from distillkit.cli import catalogue, config, console, front, grammar, matrix, pairing, refusals
from distillkit.errors import UsageError

ROOT = Path(__file__).parents[2]
CONF = f"hydra.searchpath=[file://{ROOT / 'tests' / 'dummy' / 'conf'}]"
DUMMY = [CONF, "domain=dummy", "method=chase", "~vars.callbacks.finish", "~vars.callbacks.watch"]
FOLDER = ["domain=image", "method=pretrain", "data=image_folder"]
QUEUE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "JSM_NAMESPACE_RANK", *runs.NODES, runs.OUT)
ODD = "epoch=3|photos (1)|fotos/ünï|bilder/é|照片|it's|a[1]|a,b|q#1|two words|{x}|$HOME|${x}|a\\${x}|-x|~x|x:y|%s|a;b&c|*|!|@|😀"
ODD = [*ODD.split("|"), '"', 'say "so"', "\\", "a\\", "a|b", "new\nline", " lead", "2024", "null", "1e-3"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in [*QUEUE, *(name for name in os.environ if name.startswith("SLURM_"))]:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def complaint(capsys, *args):
    """The one sentence that a wrong command gives."""
    code = front.main([*map(str, args)])
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and err.startswith("error: "), (code, err)
    return err.removeprefix("error: ").strip()


def path_of(*words):
    return config.hand_over(config.compose([*FOLDER, *words])[0])["data"]["init_args"]["path"]


# ---- paths


def test_a_path_that_exists_is_taken_as_it_stands():
    names = {f"n{number}_path": name for number, name in enumerate(ODD)}
    for name in ODD:
        Path(name).mkdir(parents=True)
    words = [f"data.{key}={name}" for key, name in names.items()]
    handed = config.hand_over(config.compose([*FOLDER, "data.path=nothing", *words])[0])
    read = yaml.safe_load(config.text(handed))  # as LightningCLI reads it
    for made in (handed, read):
        given = made["data"]["init_args"]
        assert {key: given[key] for key in names} == names


def test_a_path_goes_through_interpolations():
    Path("a ${b} (1)").mkdir()
    words = ["domain=toy", "method=dmd", "teacher=folder", "data=digits", "teacher.path=a ${b} (1)"]
    handed = config.hand_over(config.compose(words)[0])
    assert handed["model"]["init_args"]["teacher"]["init_args"]["path"] == "a ${b} (1)"


def test_home_is_followed():
    home = os.environ["HOME"]
    assert path_of("data.path=~/nothing here yet") == f"{home}/nothing here yet"
    Path("~").mkdir()
    Path("~/photos").mkdir()
    assert path_of("data.path=~/photos") == "~/photos"  # a folder of that name is nearer
    call = front.split(["--out=~/x y", "--ckpt_path", "~/a=b.ckpt", "--trainer.x", "~"])
    assert call.out == f"{home}/x y" and call.value("--ckpt_path") == f"{home}/a=b.ckpt"
    assert front.split(["--config", "~/c.yaml"]).value("--config") == f"{home}/c.yaml"


def test_a_folder_named_like_a_number_changes_no_number():
    for name in ("4", "1e-3", "null", "toy"):
        Path(name).mkdir()
    words = ["domain=toy", "method=dmd", "trainer.max_steps=4", "model.student.lr=1e-3", "model.network=null"]
    handed = config.hand_over(config.compose(words)[0])
    assert handed["trainer"]["max_steps"] == 4 and handed["model"]["init_args"]["student"]["lr"] == 1e-3
    assert handed["model"]["init_args"]["network"] is None


@pytest.mark.parametrize("value", ["it's", "a=b", 'say "so"', "{x", "a[1", "q#1", "照片", "(", "'", "\\'"])
def test_the_error_shows_the_word_to_type(value):
    with pytest.raises(UsageError, match="to have the value as it stands, type ") as error:
        path_of(f"data.path={value}")
    (typed,) = shlex.split(str(error.value).partition(", type ")[2])
    assert path_of(typed) == value


def test_a_comma_in_a_path_is_no_sweep_and_two_paths_are_one():
    for name in ("x,y", "a b", "c(1)"):
        Path(name).mkdir()
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parse = OverridesParser.create().parse_override
    assert not parse(grammar.overrides(["data.path=x,y"])[0]).is_sweep_override()
    both = parse(grammar.overrides(["data.path=a b,c(1)"], sweep=True)[0])
    assert [*both.sweep_string_iterator()] == ['"a b"', '"c(1)"']
    with pytest.raises(UsageError, match=r"^data.path=a b,c\(1\) lists several values: add -m to run them all"):
        grammar.overrides(["data.path=a b,c(1)"])


def test_a_search_path_may_have_an_odd_name(tmp_path):
    (tmp_path / "mine (1)" / "method").mkdir(parents=True)
    (tmp_path / "mine (1)" / "method" / "own.yaml").write_text("# @package _global_\nmodel: {_target_: a.B}\n")
    cfg, choices = config.compose(["hydra.searchpath=[file://mine (1)]", "domain=toy", "method=own"])
    assert choices["method"] == "own" and cfg.model._target_ == "a.B"


# ---- mistakes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--domain=image"], "--domain=image is a word, not a flag: write domain=image"),
        (["--method", "sid"], "--method sid is a word, not a flag: write method=sid"),
        (["--teacher.path=a b"], "--teacher.path=a b is a word, not a flag: write 'teacher.path=a b'"),
        (["--logger=tensorboard"], "write logger=tensorboard"),
        (["domain", "toy"], "cannot read 'domain': write key=value, such as domain="),
        (["Domain=toy"], "no key 'Domain' at the top (did you mean 'domain'?)"),
        (["DOMAIN=toy"], "no key 'DOMAIN' at the top (did you mean 'domain'?)"),
        (["domain="], "domain= chooses nothing; there are: "),
        (["=x"], "cannot read '=x': write key=value, such as domain=toy"),
        (["model..x=1"], "cannot read 'model..x=1': write key=value, such as model.num_steps=4"),
        (["teacher=runs/x/teacher"], "a folder is teacher=folder teacher.path=runs/x/teacher"),
        (["experiment=null"], "null is no choice of a group: '~GROUP' leaves one out"),
        (["\udcff"], "it is not UTF-8"),
    ],
)
def test_one_sentence_says_how_to_mend_it(capsys, words, said):
    assert said in complaint(capsys, "fit", *words, "--show")


def test_a_word_before_any_verb(capsys):
    assert complaint(capsys, "domain=toy") == "'domain=toy' is no verb: say first what to do, such as fit domain=toy"


def test_a_key_given_twice_is_told(capsys):
    assert front.main(["fit", *DUMMY, "trainer.max_steps=3", "trainer.max_steps=2", "--print_config"]) == 0
    shown = capsys.readouterr()
    assert shown.err == "note: trainer.max_steps is given 2 times, and the last one counts\n"
    assert yaml.safe_load(shown.out)["trainer"]["max_steps"] == 2


NEAR = [
    ("model.rrate=3", "model.rate=3"),
    ("--model.rrate=3", "model.rate=3"),
    ("model.student.lrr=1", "model.student.lr=1"),
    ("teacher.plce=3", "teacher.place=3"),
    ("vars.callbacks.checkpoint.evry=3", "vars.callbacks.checkpoint.every=3"),
    ("vars.callbacks.chekpoint.every=3", "vars.callbacks.checkpoint.every=3"),
    ("trainer.max_step=3", "trainer.max_steps=3"),
    ("max_steps=3", "trainer.max_steps=3"),
    ("lr=0.1", "model.student.lr=0.1"),
    ("batch_size=2", "data.batch_size=2"),
    ("var.callbacks.checkpoint.every=3", "vars.callbacks.checkpoint.every=3"),
    ("vars.logger.csv.savedir=x", "vars.logger.csv.save_dir=x"),
]


@pytest.mark.parametrize(("wrong", "right"), NEAR)
def test_the_nearest_key_is_suggested(capsys, wrong, right):
    found = re.search(r"did you mean '([^']+)'", complaint(capsys, "fit", *DUMMY, wrong))
    key = right.partition("=")[0]
    assert found and (key == found[1] or key.startswith(f"{found[1]}.") or key.endswith(f".{found[1]}")), found
    assert found[1] in key and (found[1] == key or wrong.startswith(("vars.callbacks.chek", "var.")))


def test_what_is_suggested_is_accepted():
    rights = dict.fromkeys(right for _, right in NEAR)
    assert front.main(["fit", *DUMMY, *rights, "--print_config"]) == 0


def test_scratch_that_nothing_reads_is_refused(capsys):
    said = complaint(capsys, "fit", "domain=image", "method=dmd", "vars.clases.label=3", "--show")
    assert said == "nothing in this run reads vars.clases.label (did you mean 'vars.classes'?)"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("vars.batch_size=3", "nothing in this run reads vars.batch_size (did you mean 'data.batch_size'?)"),
        (
            "method.kappa=3",
            "method.kappa sets nothing: method=... chooses a file, and its keys are set by their own names",
        ),
        (
            "recipe.trainer.max_steps=3",
            "recipe.trainer.max_steps sets nothing: recipe=... chooses a file, and its keys are set by their own names",
        ),
    ],
)
def test_a_key_in_the_wrong_place_is_told_its_home(word, said, capsys):
    assert complaint(capsys, "fit", "domain=toy", "method=dmd", word, "--show") == said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["domain=toy", "stage=clip"], "this run has no stage: leave stage=... out"),
        (
            ["domain=video", "stage=features"],
            "two of the choices name a network each, so they do not go together: change one of them",
        ),
        (["domain=toy", "~method"], "a run needs a domain and a method: say domain=... method=..."),
    ],
)
def test_choices_that_do_not_go_together_are_refused_in_words(words, said, capsys):
    assert complaint(capsys, "fit", *words) == said


def test_data_of_a_world_ask_for_a_world(capsys):
    said = complaint(capsys, "fit", "domain=discrete", "method=pretrain", "data=world")
    assert said == (
        "network.num_tokens is teacher.num_tokens, which this run does not have: choose another teacher=..., "
        "or give network.num_tokens=..."
    )
    said = complaint(capsys, "fit", "domain=toy", "method=dmd", "data.batch_size=${vars.size}")
    assert said == "data.batch_size is vars.size, which this run does not have: give vars.size=..."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# Mine.\nmodel: {kappa: 1.0}\n", "a file of method reaches no part of the run: begin it with '# @package _"),
        ("# @package _global_\nmodel: {\n", "a configuration file is not readable as yaml: while parsing a flow"),
        ("# @package _global_\ndefaults: [mine]\n", "a configuration file builds on itself: take it out of its own"),
        ("# @package _global_\ndefaults: [nobody]\n", "In 'method/mine': Could not load 'method/nobody'."),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_and_list_goes_on(text, said, tmp_path, capsys):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text(text)
    place = f"hydra.searchpath=[file://{tmp_path}]"
    assert complaint(capsys, "fit", place, "domain=toy", "method=mine").startswith(said)
    assert matrix.methods_of((place,))["mine"][1] == ""
    assert matrix.compatibility("toy", "mine", (place,)).startswith("mine does not compose with toy: ")


def test_a_recipe_that_reaches_nothing_is_refused(tmp_path, capsys):
    (tmp_path / "recipe" / "toy").mkdir(parents=True)
    (tmp_path / "recipe" / "toy" / "msd.yaml").write_text("trainer: {max_steps: 5}\n")
    said = complaint(capsys, "fit", f"hydra.searchpath=[file://{tmp_path}]", "domain=toy", "method=msd", "--show")
    assert said == "a file of recipe reaches no part of the run: begin it with '# @package _global_'"


def test_wrong_values_are_told_with_the_key_as_words_set_it(capsys):
    assert complaint(capsys, "fit", *DUMMY, "teacher.place=x") == "teacher.place must be a float, got x"
    said = complaint(capsys, "fit", *DUMMY, "vars.callbacks.checkpoint.every=x")
    assert said == "vars.callbacks.checkpoint.every must be an int, got x"
    said = complaint(capsys, "fit", *DUMMY, "vars.callbacks.checkpoint._target_=null")
    assert said.startswith("vars.callbacks.checkpoint has no _target_, the class to build")
    assert re.match(
        "trainer.logger must be .* or a list or a bool, got nope",
        complaint(capsys, "fit", *DUMMY, "--trainer.logger=nope"),
    )


ADVICE = re.compile(r"\b(?:set|lower|raise|say|give|or|needs|leave) ([A-Za-z_]\w*(?:\.\w+)*)=")


def test_errors_advise_keys_as_words_set_them():
    """`set gan=0` would be refused where `set model.gan=0` works."""
    tops = {*refusals.HANDED_OVER, *refusals.SCRATCH}
    for file in [*(ROOT / "distillkit").rglob("*.py"), *(ROOT / "domains").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise):
                parts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                for key in ADVICE.findall(" ".join(part for part in parts if isinstance(part, str))):
                    dotted = "." in key and key.partition(".")[0] in tops
                    known = dotted or key in catalogue.groups() or key == "key"
                    assert known, f"{file}:{node.lineno} tells people to type {key}=..."


def test_every_key_in_the_help_exists(capsys):
    text = front.help_text() + front.help_text("fit")
    words = [*dict.fromkeys(re.findall(r"(?<![-\w])[a-z_]+(?:\.[a-z_]+)+=[\w.-]+", text))]
    assert "model.student.lr=1e-4" in words
    assert front.main(["fit", "domain=image", "method=dmd", *words, "--print_config"]) == 0


# ---- consoles, queues


def test_a_finished_run_ends_well_on_a_console_without_utf_8(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    words = ["domain=toy", "method=dmd", "trainer.max_steps=2", "vars.callbacks.finish.num_samples=20", "--out", "run"]
    assert front.main(["fit", *words]) == 0
    out.flush()
    shown = out.buffer.getvalue().decode("ascii")
    assert "Sliced w2 v" in shown and "report: run/report.html" in shown


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", b"v 2.1x - ? ?\n"), ("cp1252", "v 2.1× – ? ?\n".encode("cp1252"))]
)
def test_signs_that_a_console_lacks(encoding, shown, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="surrogateescape")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", None)  # of a Windows program without a console
    console.forgive()
    print("↓ 2.1× – 照 \udcff", flush=True)
    assert out.buffer.getvalue() == shown


SHELLS = [  # what a shell or a script inside an allocation has, when srun started no tasks
    {"SLURM_JOB_NAME": "bash", "SLURM_PROCID": "0"},
    {"SLURM_JOB_NAME": "interactive"},
    {"SLURM_JOB_NAME": "mine", "SLURM_PROCID": "0", "SLURM_NTASKS_PER_NODE": "4"},
]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_inside_an_allocation_is_one_process(shell, monkeypatch):
    for name, value in ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "17", "SLURM_LOCALID": "0"} | shell).items():
        monkeypatch.setenv(name, value)
    assert front.main(["fit", *DUMMY]) == 0
    assert Path("runs/dummy-chase-1/checkpoints/last.ckpt").is_file()


def test_tasks_of_srun_are_several_processes(monkeypatch):
    tasks = {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "mine", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}
    for name, value in tasks.items():
        monkeypatch.setenv(name, value)
    runs.surroundings()
    assert os.environ["SLURM_JOB_NAME"] == "mine" and runs.rank() == 2 and runs.processes_from_outside()


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ({"RANK": "one"}, "the environment says RANK=one, which is no whole number: unset RANK"),
        ({"SLURM_PROCID": ""}, "the environment says SLURM_PROCID=, which is no whole number: unset SLURM_PROCID"),
        ({"JSM_NAMESPACE_RANK": "-"}, "unset JSM_NAMESPACE_RANK"),
        ({"RANK": "1"}, "the environment says RANK=1, but torchrun did not start this: unset RANK"),
        ({"LOCAL_RANK": "2"}, "the environment says LOCAL_RANK=2, but torchrun did not start this: unset LOCAL_RANK"),
        ({"SLURM_PROCID": "1"}, "but srun did not start this: unset SLURM_PROCID"),
        ({"NODE_RANK": "1"}, "the environment says NODE_RANK=1, but torchrun did not start this: unset NODE_RANK"),
        ({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, "unset RANK WORLD_SIZE LOCAL_RANK"),
    ],
)
def test_what_a_parent_shell_left_is_told(left, said, monkeypatch, capsys):
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    assert complaint(capsys, "fit", *DUMMY).endswith(said)


# ---- own folders, extras, commands


def test_list_and_help_show_own_domains_and_methods(capsys, monkeypatch):
    groups = catalogue.groups

    def few(words=()):
        """Our own folder, with three domains and methods of all, so that the test is quick."""
        return {**groups(words), "domain": ["dummy", "toy"], "method": ["chase", "dmd", "picky"]}

    assert front.main(["--help", CONF]) == front.main(["fit", "--help", CONF]) == 0
    assert re.findall(r"^  domain .*\bdummy\b", capsys.readouterr().out, re.M) and "dummy" not in groups()["domain"]
    monkeypatch.setattr(catalogue, "groups", few)
    assert front.main(["list", CONF, "--json"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["domains"]["dummy"] == "One number." and shown["methods"]["chase"] == {
        "paper": "",
        "mechanism": "Chase",
        "about": "Follow the teacher.",
    }
    assert shown["matrix"]["dummy"]["chase"] is None and shown["matrix"]["toy"]["dmd"] is None
    assert shown["matrix"]["dummy"]["picky"] == "Picky needs features, which Point and Numbers do not give"
    matrix._told.cache_clear()


def test_recipes_are_no_choices_but_another_one_can_be_had(capsys):
    assert front.main(["--help"]) == 0
    assert not re.search("^  recipe", capsys.readouterr().out, re.M)
    said = complaint(capsys, "fit", "domain=toy", "recipe=image/sidd", "--show")
    assert said.startswith("no recipe 'image/sidd' (did you mean 'image/sid'") and said.count(",") < 3
    cfg, choices = config.compose(["domain=toy", "method=sid", "recipe=image/sid"])
    other = config.compose(["domain=image", "method=sid"])[0]
    assert choices["recipe"] == "image/sid" and cfg.trainer.max_steps == other.trainer.max_steps


def test_a_preset_takes_the_recipe_of_its_method_unless_it_has_one():
    dmd, msd, brush = (config.compose(["domain=image", f"method={name}"])[0] for name in ("dmd", "msd", "swiftbrush"))
    assert msd.model.gan == dmd.model.gan == 0.01 and msd.trainer == dmd.trainer
    assert brush.model.gan == 0.0 and brush.trainer == dmd.trainer


def test_a_stage_may_have_a_recipe_of_its_own(tmp_path):
    """It comes after that of the domain, for presets too, and in its stage alone."""
    (tmp_path / "recipe" / "video" / "continuation").mkdir(parents=True)
    text = "# @package _global_\nmodel: {kappa: 3.0}\ntrainer: {max_steps: 7}\n"
    (tmp_path / "recipe" / "video" / "continuation" / "dmd.yaml").write_text(text)
    place = f"hydra.searchpath=[file://{tmp_path}]"
    clip = config.compose([place, "domain=video", "method=dmd"])[0]
    assert "kappa" not in clip.model and clip == pairing.pair("video", "dmd", (place,))
    for method in ("dmd", "msd"):
        late = config.compose([place, "domain=video", "stage=continuation", f"method={method}"])[0]
        assert late.model.kappa == 3.0 and late.trainer.max_steps == 7
        assert late.model.student == clip.model.student  # of the domain's recipe
    moved = tmp_path / "recipe" / "video" / "clip"
    moved.mkdir()
    (moved / "sid.yaml").write_text(text)
    assert pairing.pair("video", "sid", (place,)) == config.compose([place, "domain=video", "method=sid"])[0]
    assert pairing.pair("video", "sid", (place,)).trainer.max_steps == 7


def test_a_teacher_may_have_a_recipe_of_its_own():
    """It takes the place of the stage's, for presets too, and no other teacher sees it."""
    own = ["teacher=diffusers", "teacher.path=x", "data=prompts", "data.path=y"]
    for domain in ("image", "video"):
        pipeline, brush, plain = (
            config.compose([f"domain={domain}", *words])[0]
            for words in (["method=dmd", *own], ["method=swiftbrush", *own], ["method=dmd"])
        )
        assert pipeline.model.gan == 0 and pipeline.model.student.lr == 1e-5 and pipeline.trainer.max_steps == 10_000
        assert brush.model.student == pipeline.model.student and brush.trainer == pipeline.trainer
        assert plain.model.student.lr > 1e-4 and plain.trainer.max_steps < 10_000
        assert pipeline.model.fake_times is None and plain == pairing.pair(domain, "dmd")


def test_words_reach_into_what_a_domain_says():
    words = ["domain=threed", "method=sid", "model.fake_times.mean=0.1"]
    model = config.hand_over(config.compose(words)[0])["model"]["init_args"]
    assert model["fake_times"]["init_args"] == {"mean": 0.1, "std": 1.4}
    assert model["student_times"]["init_args"] == {"mean": 0.7, "std": 1.4}
    words = ["domain=threed", "method=sid", "vars.levels.mean=0.2", "model.student_times.std=2.0"]
    model = config.hand_over(config.compose(words)[0])["model"]["init_args"]
    assert model["fake_times"]["init_args"] == {"mean": 0.2, "std": 1.4}
    assert model["student_times"]["init_args"] == {"mean": 0.2, "std": 2.0}


def test_what_only_unread_variables_read_is_read_by_nothing():
    words = ["domain=threed", "method=lsd", "vars.levels.mean=0.2"]  # student_levels reads it, and lsd reads neither
    with pytest.raises(UsageError, match="nothing in this run reads vars.levels.mean"):
        config.compose(words)


def test_list_takes_folders_alone(capsys):
    assert "list: 'domain=toy' changes nothing here" in complaint(capsys, "list", "domain=toy")
    assert "there is no configuration folder pkg://no_such" in complaint(
        capsys, "list", "hydra.searchpath=[pkg://no_such]"
    )


def test_a_missing_package_names_its_extra():
    said = "^videos are read with no_such_av, which does not import here .*: pip install 'distillkit\\[video\\]'$"
    with pytest.raises(UsageError, match=said):
        errors.optional("no_such_av", "video", "videos are read with")
    for file in [*(ROOT / "distillkit").rglob("*.py"), *(ROOT / "domains").rglob("*.py")]:
        assert file.name == "errors.py" or "pip install 'distillkit[" not in file.read_text(encoding="utf-8"), file


def extras():
    text = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    return re.findall(r"^(\w+) = \[", text, re.M)


def test_every_extra_exists_and_is_in_the_readme():
    from distillkit.cli.doctor import OPTIONAL

    assert {extra for _, extra in OPTIONAL.values()} <= {*extras()}
    for file in [*(ROOT / "distillkit").rglob("*.py"), *(ROOT / "domains").rglob("*.py")]:
        for extra in re.findall(r'optional\("[\w.]+", "(\w+)"', file.read_text(encoding="utf-8")):
            assert extra in extras(), f"{file} names the extra {extra}"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(errors.install(extra) in readme for extra in extras() if extra != "dev")


def test_a_command_can_be_pasted():
    words = ["fit", "--config", Path("it's (1)/config.yaml"), "a=b  c"]
    assert shlex.split(errors.pasted(*words)) == ["python", "-m", "distillkit", *map(str, words)]
    assert errors.one_line(f"go on with:\n  {errors.pasted(*words)} ") == f"go on with: {errors.pasted(*words)}"


# ---- the run's own numbers


@pytest.mark.parametrize(
    "flags", [["--trainer.logger=true"], ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=other"]]
)
def test_every_logger_keeps_the_runs_own_metrics(flags):
    assert front.main(["fit", *DUMMY, "trainer.log_every_n_steps=1", *flags, "--out", "run"]) == 0
    assert Path("run/metrics.csv").read_text().startswith("step,seconds,")


def test_a_run_without_a_logger_says_what_will_be_missing(capsys):
    assert front.main(["fit", *DUMMY, "--trainer.logger=false", "--out", "run"]) == 0
    assert "note: there is no logger, so metrics.csv is not written" in capsys.readouterr().err
    assert not Path("run/metrics.csv").exists()


def test_a_logger_whose_package_is_missing(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert complaint(capsys, "fit", *DUMMY, "logger=wandb").endswith("pip install 'distillkit[log]'")


def test_a_pair_that_list_says_no_to_is_refused_in_one_sentence(capsys):
    said = complaint(capsys, "fit", "domain=discrete", "method=dmd", "--out", "run")
    assert said.startswith("DMD needs denoiser, which Text and TextData do not give; ") and said.endswith(
        "list` shows what goes together"
    )
    assert not Path("run").exists()


# ---- numbers, files and sweeps that cannot be meant


@pytest.mark.parametrize(
    "args, said",
    [
        (["sample", "x", "-n", "0"], "sample: argument -n: must be at least 1, got 0 (see --help)"),
        (["sample", "x", "--rollouts", "0"], "sample: argument --rollouts: must be at least 1, got 0 (see --help)"),
        (
            ["sample", "x", "--clips", "3"],
            "sample: argument --clips: it is --rollouts now, so type --rollouts 3 (see --help)",
        ),
        (["sample", "x", "--seed", "-1"], "sample: argument --seed: must be from 0 to 4294967295, got -1 (see --help)"),
        (
            ["evaluate", "x", "--num-samples", "1"],
            "evaluate: argument --num-samples: must be at least 2, got 1 (see --help)",
        ),
        (["doctor", "--timeout", "nan"], "doctor: argument --timeout: must be from 1 to 86400, got nan (see --help)"),
    ],
)
def test_numbers_of_the_other_verbs_are_bounded(capsys, args, said):
    assert complaint(capsys, *args) == said


@pytest.mark.parametrize(
    "text, said",
    [
        ("- 1", "is damaged: it should hold a mapping"),
        ("a: [1", "is not readable as yaml"),
        (
            "a: &a [1]\n"
            + "".join(f"{n}: &{n} [{f'*{m},' * 9}]\n" for m, n in zip("abcdefgh", "bcdefghi", strict=True)),
            "is damaged",
        ),
    ],
    ids=["list", "no yaml", "a small file that unfolds"],
)
def test_a_config_that_is_none_is_refused(capsys, text, said):
    Path("c.yaml").write_text(text)
    assert said in complaint(capsys, "fit", "--config", "c.yaml")


def test_a_config_without_trainer_is_refused(capsys):
    handed = config.hand_over(config.compose(DUMMY)[0])
    Path("c.yaml").write_text(config.text({**handed, "trainer": None}))
    said = "trainer holds further keys, such as trainer.max_steps, and cannot be null"
    assert complaint(capsys, "fit", "--config", "c.yaml") == said


def test_a_sweep_shows_nothing(capsys):
    assert complaint(capsys, "fit", *DUMMY, "-m", "--show").startswith("--show shows one run")


def test_a_sweep_of_no_runs_is_refused_and_leaves_nothing(capsys):
    assert complaint(capsys, "fit", *DUMMY, "model.rate=glob(*)", "-m").startswith("these words make no runs")
    assert not os.listdir()


@pytest.mark.parametrize(
    "error, said",
    [
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: 9"),
            "error: there is not enough memory: ask for fewer",
        ),
        (MemoryError(), "error: there is not enough memory: ask for fewer"),
        (NotADirectoryError(20, "Not a directory", "a/b"), "error: a/b: Not a directory\n"),
    ],
)
def test_what_the_machine_refuses_is_one_sentence(capsys, monkeypatch, error, said):
    def refuse(*_):
        raise error

    monkeypatch.setattr(front, "run", refuse)
    assert front.main(["fit"]) == 1
    assert capsys.readouterr().err.startswith(said)


def test_a_class_path_of_an_earlier_version_is_refused_with_the_new_one(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("trainer: {logger: {class_path: distillkit.logger.MetricsLogger}}\n")
    assert front.main(["fit", "--config", str(tmp_path / "config.yaml")]) == 2
    assert "distillkit.logger.MetricsLogger is distillkit.report.logger.MetricsLogger now" in capsys.readouterr().err


TOKENS = {"class_path": "domains.discrete.teacher.Text"}
DIGITS = {"class_path": "domains.image.teacher.Digits"}


@pytest.mark.parametrize(
    ("path", "arguments", "now"),
    [
        ("lsd.LSD", {"teacher": TOKENS}, "lsd_tokens.LSDTokens"),
        ("lsd.LSDPlus", {"teacher": TOKENS}, "lsd_tokens.LSDTokens with learn_times: true"),
        ("lsd.LSDPlus", {"teacher": DIGITS}, "lsd.LSD with learn_times: true"),
        (
            "pretrain.Pretrain",
            {"process": {"class_path": "distillkit.discrete.process.Absorbing", "init_args": {"num_tokens": 3}}},
            "pretrain_tokens.PretrainTokens",
        ),
    ],
)
def test_a_configuration_of_an_earlier_version_is_told_the_class_of_today(path, arguments, now, tmp_path, capsys):
    file = tmp_path / "config.yaml"
    old = f"distillkit.methods.{path}"
    file.write_text(json.dumps({"model": {"class_path": old, "init_args": arguments}}))
    assert front.main(["fit", "--config", str(file)]) == 2
    assert capsys.readouterr().err == f"error: {old} is distillkit.methods.{now} now: change it in {file}\n"


def test_arguments_that_are_of_tokens_alone_are_told_at_once(capsys):
    said = "objective, rule, couple, ratio and fine are of LSDTokens alone"
    for word in ("rule=tweedie", "fine=64"):
        key = word.partition("=")[0]
        assert (
            complaint(capsys, "fit", "domain=toy", "method=lsd", f"model.{word}")
            == f"no key model.{key} any more: {said}"
        )


def test_all_classes_that_moved_are_told_at_once(tmp_path, capsys):
    file = tmp_path / "config.yaml"
    logger = [{"class_path": "distillkit.logger.MetricsLogger"}]
    model = {"class_path": "distillkit.methods.lsd.LSDPlus", "init_args": {"teacher": DIGITS}}
    file.write_text(json.dumps({"trainer": {"logger": logger}, "model": model}))
    assert front.main(["fit", "--config", str(file)]) == 2
    assert capsys.readouterr().err == (
        "error: distillkit.logger.MetricsLogger is distillkit.report.logger.MetricsLogger and "
        "distillkit.methods.lsd.LSDPlus is distillkit.methods.lsd.LSD with learn_times: true now: "
        f"change them in {file}\n"
    )


@pytest.mark.parametrize("path", ["lsd.LSD", "pretrain.Pretrain"])
def test_classes_that_serve_a_gaussian_process_as_before_are_not_refused(path):
    model = {"class_path": f"distillkit.methods.{path}", "init_args": {"teacher": DIGITS}}
    refusals.refuse_moved({"model": model}, "config.yaml")


def test_a_part_beside_the_model_does_not_tell_that_it_is_of_tokens():
    for part in ("_target_: mine.discrete.Callback", "_target_: distillkit.discrete.Of, path: a/discrete/b"):
        config.compose(["domain=image", "method=pretrain", f"vars.callbacks.mine={{{part}}}"])
    with pytest.raises(UsageError, match=r"Pretrain is distillkit\.methods\.pretrain_tokens\.PretrainTokens now"):
        config.compose(["domain=discrete", "method=pretrain", "model._target_=distillkit.methods.pretrain.Pretrain"])


def test_a_class_typed_by_hand_replaces_what_an_interpolation_brings():
    words = ["domain=toy", "teacher=folder", "teacher.path=x", "data.teacher._target_=domains.toy.teacher.Gaussian"]
    assert config.compose(words)[0].data.teacher == {"_target_": "domains.toy.teacher.Gaussian"}
    assert config.compose(["domain=toy", "method=dmd", "model.fake_times.mean=0.1"])[0].model.fake_times.std == 1.6
