"""The door: what is a word, what is a flag, what is said when something is wrong."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from helpers import heed_signals
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from distillkit import cache, runs
from distillkit.cli import catalogue, config, front, grammar, matrix, pairing, refusals, sweeps
from distillkit.cli.messages import condense
from distillkit.errors import UsageError

TESTS = Path(__file__).resolve().parents[1]
DUMMY = [
    f"hydra.searchpath=[file://{TESTS / 'dummy' / 'conf'}]",
    "domain=dummy",
    "method=chase",
    "~vars.callbacks.finish",
    "~vars.callbacks.watch",
]
HEAVY = ("torch", "lightning", "hydra", "omegaconf", "yaml", "jsonargparse", "numpy")


def door(*args, cwd, code=None, timeout=120):
    """Run `python -m distillkit ...` (or the Python `code`) in a fresh process."""
    env = {k: v for k, v in os.environ.items() if k not in ("DISTILLKIT_OUT", "LOCAL_RANK", "RANK", "WORLD_SIZE")}
    env["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS), env.get("PYTHONPATH", "")])
    start = ["-c", code] if code else ["-m", "distillkit"]
    command = [sys.executable, *start, *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def complaint(capsys, *args):
    """The exit code and the one line that a wrong command gives."""
    code = front.main([*map(str, args)])
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("error: ") and "Traceback" not in err
    return code, err.removeprefix("error: ").strip()


# ---- words and flags


@pytest.mark.parametrize(
    ("line", "words", "flags"),
    [
        ("a.b=c --x.y=1 d=e", ["a.b=c", "d=e"], [["--x.y=1"]]),
        ("--x 1 a=b", ["a=b"], [["--x", "1"]]),
        ("--x a=b", ["a=b"], [["--x"]]),
        ("--x -3", [], [["--x", "-3"]]),
        ("--x -.5e3 -inf", ["-inf"], [["--x", "-.5e3"]]),
        ("--x=1 2", ["2"], [["--x=1"]]),
        ("--x ~a.b", ["~a.b"], [["--x"]]),
        ("--ckpt_path runs/epoch=0-step=3.ckpt", [], [["--ckpt_path", "runs/epoch=0-step=3.ckpt"]]),
        ("--show toy", ["toy"], []),
        ("--trainer.callbacks+ Timer", [], [["--trainer.callbacks+", "Timer"]]),
        ("--out here a=b --out=there", ["a=b"], []),
    ],
)
def test_split(line, words, flags):
    call = front.split(line.split())
    assert (call.words, call.flags) == (words, flags)


token = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=8)


@given(st.lists(st.one_of(token, token.map(lambda t: f"--{t}"), token.map(lambda t: f"a.b={t}"), st.just("-3"))))
def test_split_loses_and_reorders_nothing(tokens):
    tokens = [t for t in tokens if t.partition("=")[0] != "--out" and t not in front.SWITCHES]
    call = front.split(tokens)
    flat = [t for flag in call.flags for t in flag]
    assert sorted(call.words + flat) == sorted(tokens)
    order = iter(tokens)
    assert all(t in order for t in flat)  # a subsequence
    order = iter(tokens)
    assert all(t in order for t in call.words)
    assert all(flag[0].startswith("-") and len(flag) <= 2 for flag in call.flags)
    for flag in call.flags:  # a value stood right after its flag
        if len(flag) == 2:
            assert any(tokens[i : i + 2] == flag for i in range(len(tokens)))


def test_out_is_taken_out():
    assert front.split(["--out", "a=b", "--x", "1"]).out == "a=b"
    assert front.split(["--out=a", "--out", "b"]).out == "b"
    with pytest.raises(UsageError, match="--out needs a folder"):
        front.split(["x=1", "--out"])


@pytest.mark.parametrize(
    ("word", "override"),
    [
        ("model.lr=1e-4", "++model.lr=1e-4"),
        ("seed_everything=3", "++seed_everything=3"),
        ("trainer=fast", "trainer=fast"),
        ("trainer.max_steps=3", "++trainer.max_steps=3"),
        ("+x=1", "+x=1"),
        ("++x=1", "++x=1"),
        ("~x.y", "~x.y"),
        ("logger=null", "logger=null"),
        ("trainer=fast,slow", "trainer=fast,slow"),
        ("hydra/launcher=basic", "hydra/launcher=basic"),
        ("hydra.verbose=true", "hydra.verbose=true"),
    ],
)
def test_to_override(word, override):
    assert grammar.to_override(word, {"trainer": ["fast", "slow"], "logger": ["csv"]}) == override


def test_to_override_refuses_unknown_choices():
    with pytest.raises(UsageError, match=r"no trainer 'fsat' \(did you mean 'fast'\?\); there are: fast, slow"):
        grammar.to_override("trainer=fsat", {"trainer": ["fast", "slow"]})
    with pytest.raises(UsageError, match="cannot read 'fast': write key=value, such as trainer=fast"):
        grammar.to_override("fast", {"trainer": ["fast", "slow"]})


def test_to_class_path():
    given = {"_target_": "a.B", "x": [{"_target_": "c.D"}, 3], "y": {"z": {"_target_": "e.F", "k": None}}, "n": 1}
    inner = {"class_path": "c.D", "init_args": {}}
    deep = {"class_path": "e.F", "init_args": {"k": None}}
    assert config.to_class_path({"model": given}) == {
        "model": {"class_path": "a.B", "init_args": {"x": [inner, 3], "y": {"z": deep}, "n": 1}}
    }


def test_composed_config_has_no_scratch():
    cfg, choices = config.compose([*DUMMY, "teacher=far", "model.rate=1e-3"])
    handed = config.hand_over(cfg)
    assert set(handed) == {"model", "data", "trainer", "seed_everything"}
    assert handed["model"]["init_args"]["teacher"] == {"class_path": "dummy.parts.Point", "init_args": {"place": 3.0}}
    assert handed["model"]["init_args"]["rate"] == 1e-3
    assert isinstance(handed["trainer"]["callbacks"], list) and isinstance(handed["trainer"]["logger"], list)
    assert (choices["teacher"], choices["method"]) == ("far", "chase")


def test_every_logger_choice_composes():
    for logger in catalogue.groups()["logger"]:
        loggers = config.hand_over(config.compose([*DUMMY, f"logger={logger}"])[0])["trainer"]["logger"]
        assert loggers[0]["class_path"] == "distillkit.report.logger.MetricsLogger"
        assert len(loggers) == (1 if logger == "csv" else 2)


def test_unused_scratch_is_told():
    cfg, _ = config.compose([*DUMMY, "model.teacher=null", "teacher=far"])
    assert refusals.unused(cfg, ["teacher=far", "model.rate=1"]) == ["teacher"]
    assert refusals.unused(config.compose([*DUMMY])[0], ["teacher.place=1"]) == []


# ---- help, speed of the door


def test_help_is_light(tmp_path):
    code = (
        "import sys, distillkit, distillkit.cli.front as f, distillkit.cli.matrix;"
        "f.main(['--help']); f.main(['fit', '--help']);"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = door(cwd=tmp_path, code=code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    for verb in front.VERBS:
        assert re.search(rf"^  {verb} ", done.stdout, re.M)
    for group, names in catalogue.groups().items():
        assert not names or group == "recipe" or re.search(rf"^  {group} +{' '.join(names)}$", done.stdout, re.M)
    assert done.stdout.count("  python -m distillkit fit ") >= 3


def test_help_has_no_side_effects_and_is_the_default(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert front.main([]) == front.main(["--help"]) == 0
    first, second = capsys.readouterr().out.split("usage:")[1:]
    assert first == second
    assert not any(tmp_path.iterdir())


def test_show_needs_no_torch(tmp_path):
    code = (
        f"import sys, distillkit.cli.front as f; code = f.main(['fit', '--show', 'teacher.place=7', *{DUMMY}]);"
        "print([m for m in ('torch', 'lightning', 'jsonargparse') if m in sys.modules], code)"
    )
    done = door(cwd=tmp_path, code=code)
    assert done.stdout.splitlines()[-1] == "[] 0", done.stderr
    assert "place: 7" in done.stdout and "method=chase" in done.stdout and "domain=dummy" in done.stdout
    assert not any(tmp_path.iterdir())


# ---- wrong usage that is found before torch


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["fitt"], r"no verb 'fitt' \(did you mean 'fit'\?\); there are: fit, validate, test, sample"),
        (["fit", "domain=dumy", *DUMMY[:1]], r"no domain 'dumy' \(did you mean 'dummy'.*\); there are: .*dummy, "),
        (["fit", "method=chaise", *DUMMY[:1]], r"no method 'chaise' \(did you mean 'chase'"),
        (["fit", *DUMMY, "metod=chase"], r"no key 'metod' at the top \(did you mean 'method'"),
        (["fit", *DUMMY, "dummy"], r"cannot read 'dummy': write key=value, such as domain=dummy"),
        (["fit", *DUMMY, "model.rate=1,2"], r"model.rate=1,2 lists several values: add -m"),
        (["fit", *DUMMY, "model.x={"], r"cannot read 'model.x=\{'"),
        (["fit", *DUMMY, "model.rate=${nothing}"], r"nothing"),
        (["fit", *DUMMY, "model.rate=???"], r"model.rate has no default: say model.rate=..."),
        (["fit", "hydra.searchpath=[file:///no/where]"], r"there is no configuration folder file:///no/where"),
        (["fit", *DUMMY, "--config", "x.yaml"], r"change it with flags, not words"),
        (["fit", "--config", "x.yaml"], r"--config: there is no file x.yaml"),
        (["fit", "--config", '{"seed_everything": 0}'], r"--config: there is no file \{\"seed_everything\": 0\}"),
        (["fit", "--config", "x.yaml", "-m"], r"leave one of them out"),
        (
            ["fit", *DUMMY, "model.rate=1,2", "--chain"],
            r"--chain is a row of runs: list them in a word, .*, and add -m",
        ),
        (["validate", *DUMMY, "model.rate=1,2", "-m", "--chain"], r"validate trains none: it goes with fit"),
        (["sample", "somewhere", "--chain"], r"sample: unrecognized arguments: --chain"),
        (
            ["fit", *DUMMY, "-m", "--chain"],
            r"exactly one word lists several values, and none of these does: list the runs",
        ),
        (
            ["fit", *DUMMY, "model.rate=1,2", "seed_everything=0,1", "-m", "--chain"],
            r"and 2 of these do: list the runs",
        ),
        (["fit", "method=sid,dmd", "student=folder", "-m", "--chain"], r"of the one before: leave student=folder out"),
        (["fit", "method=sid,dmd", "student.path=x", "-m", "--chain"], r"of the one before: leave student.path=x out"),
        (
            ["fit", "method=sid,dmd", "model.student_maker.path=x", "-m", "--chain"],
            r"of the one before: leave model.student_maker.path=x out",
        ),
        (
            ["fit", "method=sid,dmd", "-m", "--chain", "--ckpt_path", "x.ckpt"],
            r"--ckpt_path goes on with one run, .*: continue the one that stopped without --chain",
        ),
        (["fit", *DUMMY, "--ckpt_path", "x=1.ckpt"], r"--ckpt_path: there is no file x=1.ckpt"),
        (["fit", *DUMMY, "--ckpt_path=last"], r"--ckpt_path=last needs --out"),
        (["fit", *DUMMY, "--out"], r"--out needs a folder"),
        (["list", "--nope"], r"list: unrecognized arguments: --nope"),
    ],
)
def test_wrong_usage(tmp_path, capsys, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    code, text = complaint(capsys, *args)
    assert code == 2
    assert re.search(said, text), text
    assert not any(tmp_path.iterdir())


def test_words_with_config_name_the_flag(tmp_path, capsys):
    code, text = complaint(capsys, "fit", "trainer.max_steps=5", "--config", tmp_path / "x.yaml")
    assert code == 2 and text.endswith("--trainer.max_steps=5")


def test_wrong_usage_before_torch_is_quick(tmp_path):
    code = "import sys, distillkit.cli.front as f; print(f.main(['fit', 'method=x']), 'torch' in sys.modules)"
    assert door(cwd=tmp_path, code=code).stdout.strip() == "2 False"


# ---- jsonargparse's errors


def test_condense_takes_the_deepest_complaint():
    text = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'a.Base'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'a.B':
        Parser key "teacher":
          Problem with given class_path 'a.T':
            Parser key "std":
              Expected a <class 'float'>. Got value: abc
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {'class_path': 'a.B'}"""
    assert condense(text) == "model.teacher.std must be a float, got abc"


def test_condense_joins_alternatives():
    text = """Parser key "seed":
  Does not validate against any of the Union subtypes
  Errors:
    - Expected a <class 'bool'>
    - Expected a typing.Literal['a', 'b']
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: x"""
    assert condense(text) == "seed must be a bool or 'a' or 'b', got x"


def test_condense_keeps_what_it_does_not_know():
    assert condense("something new\nhappened") == "something new"
    assert condense("") == ""


def test_a_place_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    code, text = complaint(capsys, "fit", *DUMMY, "--out", tmp_path / "file" / "x", "-m")
    assert code == 1 and re.search(r"cannot write to .*: Not a directory; give another folder with --out", text)


def test_only_a_run_keeps_samples_and_only_if_it_may(monkeypatch, tmp_path):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("DISTILLKIT_CACHE_LIMIT", "1")
    seen = []
    monkeypatch.setattr("distillkit.cli.lightning.run", lambda *args, **given: seen.append(cache.current()) or 0)
    for flags in ([], ["--no-cache"]):
        assert front.main(["fit", *DUMMY, *flags]) == 0 and cache.current() is None
    assert seen[0].folder == tmp_path / "samples" and seen[1] is None
    monkeypatch.setenv("DISTILLKIT_CACHE_LIMIT", "little")
    assert front.main(["fit", *DUMMY]) == 2 and len(seen) == 2
    assert front.main(["fit", *DUMMY, "--no-cache"]) == 0


# ---- sweeps


def test_sweep_runs_each_job_in_a_fresh_process(tmp_path):
    words = ["domain=toy", "method=sid", "model.kappa=2,3", "teacher=gaussian,mixture", "-m", "--out", "sweep"]
    done = door("fit", *words, cwd=tmp_path)  # each is refused before torch is imported
    assert done.returncode == 1
    for kappa, teacher in (("2", "Gaussian"), ("2", "Circle"), ("3", "Gaussian"), ("3", "Circle")):
        assert done.stderr.count(f"error: SiD with kappa={kappa} needs classes, which {teacher} and") == 1
    assert "4 runs in" in done.stdout
    rows = re.findall(r"^  (\d)   failed \(2\) .* model.kappa=(\d) teacher=(\w+)$", done.stdout, re.M)
    assert rows == [("0", "2", "gaussian"), ("1", "2", "mixture"), ("2", "3", "gaussian"), ("3", "3", "mixture")]


def test_sweep_hands_on_words_flags_and_folders(tmp_path, capsys, monkeypatch):
    commands = []

    class Process:
        """A job that writes two lines to standard error and fails, but for the first."""

        def __init__(self, command, stderr, start_new_session):
            commands.append(command)
            self.stderr, self.returncode = io.BytesIO(b"a warning\nerror: no luck\n"), len(commands) - 1

        __enter__ = __exit__ = lambda self, *_: self

    monkeypatch.setattr(sweeps.subprocess, "Popen", Process)
    out = tmp_path / "s w"
    args = [*DUMMY, "model.rate=1,2", "-m", "--debug", "--no-cache", "--trainer.max_steps", "3", "--out", out]
    assert front.main(["fit", *map(str, args)]) == 1
    assert [command[1:4] for command in commands] == [["-m", "distillkit", "fit"]] * 2
    assert [command[-2:] for command in commands] == [["--out", f"{out}/{n}"] for n in range(2)]
    for command, rate in zip(commands, (1, 2), strict=True):
        assert (
            f"++model.rate={rate}" in command and "domain=dummy" in command and any("dummy/conf" in w for w in command)
        )
        assert command[-6:-2] == ["--trainer.max_steps", "3", "--no-cache", "--debug"]
    shown = capsys.readouterr()
    assert "0   done" in shown.out and re.search(r"1   failed \(1\) .* model.rate=2\n +no luck\n", shown.out)
    assert shown.err.count("error: no luck") == 2


class Trained:
    """A job that ends with the next code of `codes`; its command is kept in `commands`."""

    def __init__(self, command, stderr, start_new_session):
        self.commands.append(command)
        self.returncode = self.codes.pop(0)
        self.stderr = io.BytesIO(b"error: no luck\n" if self.returncode else b"")

    __enter__ = __exit__ = lambda self, *_: self


def chained(monkeypatch, out, codes):
    """The exit code of a chain of three jobs that end with `codes`, and their words by job."""
    monkeypatch.setattr(sweeps.subprocess, "Popen", type("Job", (Trained,), {"commands": [], "codes": [*codes]}))
    words = ["domain=toy", "method=hyper_sd,feedback,dmd", "model.student.lr=0.5", "-m", "--chain", "--out", out]
    code = front.main(["fit", *map(str, words)])
    return code, [command[4:-2] for command in sweeps.subprocess.Popen.commands]


def test_each_job_of_a_chain_begins_with_the_student_of_the_one_before(tmp_path, capsys, monkeypatch):
    out = tmp_path / "a b"
    code, jobs = chained(monkeypatch, out, (0, 0, 0))
    assert code == 0 and "\n3 runs in" in capsys.readouterr().out
    for number, (words, method) in enumerate(zip(jobs, ("hyper_sd", "feedback", "dmd"), strict=True)):
        assert words[:3] == ["domain=toy", f"method={method}", "++model.student.lr=0.5"]
        before = [word for word in words if word.startswith("student")]
        assert before == (["student=folder", f"student.path={out}/{number - 1}"] if number else [])
    given = config.compose([word for word in jobs[1] if not word.startswith("++")])[0]
    assert given.model.student_maker.path == f"{out}/0"


def test_a_chain_ends_where_a_job_fails(tmp_path, capsys, monkeypatch):
    code, jobs = chained(monkeypatch, tmp_path / "chain", (0, 1))
    shown = capsys.readouterr().out
    assert code == 1 and len(jobs) == 2 and not (tmp_path / "chain" / "2").exists()
    assert "the chain ends where a run failed: 2 runs in" in shown
    assert re.search(r"0   done .*method=hyper_sd .*\n  1   failed \(1\) .*\n +no luck\n$", shown)


def test_the_table_of_a_sweep_shows_how_its_jobs_ended(tmp_path):
    made = sweeps.Sweep("fit", [], tmp_path)
    made.jobs = [sweeps.Job(0, "a.b=1", 0, 61.2, "a warning"), sweeps.Job(1, "'a.b=x y'", 2, 3.4, "a.b must be an int")]
    assert made.table().splitlines() == [
        "      ended       seconds  words",
        "  0   done        61       a.b=1",
        "  1   failed (2)  3        'a.b=x y'",
        "      a.b must be an int",
    ]
    assert made.table({"0"}).splitlines()[1:] == ["  1   failed (2)  3        'a.b=x y'", "      a.b must be an int"]
    assert made.table({"0", "1"}) == ""


@pytest.mark.slow
def test_a_sweep_that_is_stopped_says_what_is_done(tmp_path):
    """The job that runs gets the signal once, so it saves its state; no other is started."""
    env = {k: v for k, v in os.environ.items() if k != runs.OUT} | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    words = [*DUMMY, "~vars.callbacks.checkpoint", "model.crash=null,sleep,null", "-m", "--out", "sweep"]
    command = [sys.executable, "-m", "distillkit", "fit", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, preexec_fn=heed_signals, **pipes)
    while "asleep" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in err
    assert "stopped after 2 runs in" in out and re.search(r"0   done.*\n  1   interrupted ", out)
    assert not (tmp_path / "sweep" / "2").exists()


def test_sweep_over_an_unknown_choice_starts_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text = complaint(capsys, "fit", *DUMMY, "teacher=point,fra", "-m")
    assert code == 2 and "no teacher 'fra' (did you mean 'far'?)" in text
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_sweep_trains(tmp_path):
    done = door("fit", *DUMMY, "model.rate=1,-1", "trainer.max_steps=2", "-m", cwd=tmp_path)
    assert done.returncode == 1
    assert (tmp_path / "runs/sweep-1/0/checkpoints/last.ckpt").is_file()
    assert not (tmp_path / "runs/sweep-1/1").exists()
    assert re.search(r"0   done.*\n  1   failed \(2\)", done.stdout)


# ---- list, doctor


def test_list_json(capsys, monkeypatch):
    """Its cost grows by neither a composition of Hydra's nor a reading of a file for each pair.

    A domain that overrides a group, such as its students' maker, is composed by itself.
    """
    for kept in (pairing._common, pairing.domain_alone, pairing.parts_of, config.read, config._lineage, matrix._told):
        kept.cache_clear()
    composed, read = [], Counter()
    compose, load = config.composed, OmegaConf.load
    for place in (config, pairing):
        monkeypatch.setattr(place, "composed", lambda *given: composed.append(given) or compose(*given))

    def counted(file):
        if isinstance(file, Path):  # Hydra, which composes once, gives open files
            read[file] += 1
        return load(file)

    monkeypatch.setattr(OmegaConf, "load", counted)
    assert front.main(["list", "--json"]) == 0
    own = [
        file
        for file in Path(config.__file__).parents[2].joinpath("conf", "domain").glob("*.yaml")
        if "override /" in file.read_text()
    ]
    assert len(composed) == 1 + len(own) and len(read) > 40 and max(read.values()) == 1
    shown = json.loads(capsys.readouterr().out)
    known = catalogue.groups()
    assert [*shown["domains"]] == known.get("domain", []) and [*shown["methods"]] == known.get("method", [])
    facts = shown["methods"]["swiftbrush"]
    assert (
        facts["paper"] == "arXiv 2312.05239" and facts["mechanism"] == "DMD" and facts["about"].startswith("SwiftBrush")
    )
    assert all(entry["paper"] and entry["about"] for entry in shown["methods"].values())
    for row in shown["matrix"].values():
        assert [*row] == [*shown["methods"]]
        assert all(reason is None or isinstance(reason, str) for reason in row.values())


def test_the_list_says_where_methods_run_in_words_that_name_no_class(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert front.main(["list"]) == 0
    said = capsys.readouterr().out
    rows, _, reasons = said.partition("runs with the default teacher and data of")[2].partition("\n\n")
    assert "\nlsd                   all domains " in rows
    assert "\nconsistency           all domains but discrete [1], text_to_3d [3] " in rows
    assert re.search(r"\nsds +text_to_3d toy; not discrete \[1\], image lidar music ", rows)
    assert re.search(r"\nyonos_decoder +none; not discrete \[1\], image", rows)
    assert reasons.startswith(
        "[1] it needs a teacher that takes Gaussian noise away\n[2] it needs a scene as student\n"
    )
    numbers = [int(number) for number in re.findall(r"^\[(\d+)\]", reasons, re.MULTILINE)]
    assert numbers == [*range(1, len(numbers) + 1)] and len(numbers) < 20
    assert {int(number) for number in re.findall(r"\[(\d+)\]", rows)} == {*numbers}
    assert not re.search(r"[a-z][A-Z]|\b(SDS|SCM|RCM|DMD|FlowMap|TextData)\b", rows + reasons.partition("run one")[0])


def test_every_word_of_a_gap_has_words_for_people():
    from distillkit import capabilities

    words = set(re.findall(r"^- `(\w+)`:", capabilities.__doc__, re.MULTILINE))
    assert words - {"judge", "start"} == {*capabilities.MEANS}  # whose sentences are the makers'


def test_compatibility_names_what_is_missing():
    places = (f"hydra.searchpath=[file://{TESTS / 'dummy' / 'conf'}]",)
    assert matrix.compatibility("dummy", "chase", places) is None
    said = "Picky needs features, which Point and Numbers do not give"
    assert matrix.compatibility("dummy", "picky", places) == said


def test_doctor_names_a_broken_package(capsys, monkeypatch):
    from distillkit.cli import doctor

    broken = {"torchvision": "RuntimeError: operator torchvision::nms does not exist"}
    monkeypatch.setattr(doctor, "import_problems", lambda modules, timeout: (broken.get(name, "") for name in modules))
    monkeypatch.setattr(doctor, "_version", lambda package: "0.28.0")
    assert front.main(["doctor"]) == 0  # the core is fine
    out = capsys.readouterr().out
    assert "torchvision    0.28.0  INSTALLED BUT NOT IMPORTABLE: RuntimeError: operator" in out
    assert "mend: torchvision was built for another torch" in out and "pip uninstall torchvision" in out
    broken["hydra"] = "ImportError: no"
    assert front.main(["doctor"]) == 1


def test_doctor_says_what_is_kept(capsys, monkeypatch, tmp_path):
    from distillkit.cli import doctor

    monkeypatch.setattr(doctor, "import_problems", lambda modules, timeout: iter([""] * len(modules)))
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("DISTILLKIT_CACHE_LIMIT", "0.5")
    (tmp_path / "samples").mkdir()
    for name in ("a.safetensors", "b.safetensors", "notes.txt"):
        (tmp_path / "samples" / name).write_bytes(bytes(2**22 * 5 // 4))
    assert front.main(["doctor"]) == 0
    assert f"samples kept   {tmp_path / 'samples'}: 2 entries, 0.01 of 0.5 GiB" in capsys.readouterr().out
    monkeypatch.setenv("DISTILLKIT_CACHE_LIMIT", "all")
    assert front.main(["doctor"]) == 1
    assert "mend: DISTILLKIT_CACHE_LIMIT must be a number of GiB" in capsys.readouterr().out


def test_the_doctor_names_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    from distillkit.cli import doctor

    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "file"))
    monkeypatch.delenv("DISTILLKIT_CACHE_LIMIT", raising=False)
    assert doctor.kept().startswith(f"none: {tmp_path / 'file' / 'samples'} cannot be written")


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_each_package_answers_for_its_own_import(start, tmp_path, monkeypatch):
    from distillkit.cli import doctor

    for name, text in {
        "fails": "print('first')\nimport no_such_module_here",
        "crashes": "import os\nos.write(2, b'no such chip')\nos.kill(os.getpid(), 9)",
        "leaves": "import os\nos._exit(3)",
        "hangs": "import time\ntime.sleep(60)",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "START", start)
    monkeypatch.setattr(doctor, "AT_ONCE", 3)
    said = {
        "json": "",
        "fails": "ModuleNotFoundError: No module named 'no_such_module_here'",
        "crashes": "the import was ended by signal 9 (Killed): no such chip",
        "leaves": "the import ended with code 3",
        "csv": "",
    }
    assert dict(zip(said, doctor.import_problems([*said], 60), strict=True)) == said
    assert [*doctor.import_problems(["hangs"], 0.5)] == ["the import took more than 0.5 s"]
    assert [*doctor.apart([os.getcwd], 60)] == [("", os.getcwd())]
