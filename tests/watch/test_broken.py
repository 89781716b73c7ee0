"""The runs of benchmarks/broken.py: each cause is provoked, and named from the command line."""

import importlib.util
from pathlib import Path

import pytest

from distillkit.watch.causes import CAUSES

ROOT = Path(__file__).parents[2]


def script(name="broken"):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


broken = script()


def test_every_cause_is_provoked_by_a_run():
    assert {run.cause for run in broken.RUNS.values()} == {None, *CAUSES}


def test_every_curve_is_of_such_a_run_and_on_the_page():
    page = (ROOT / "docs" / "read_your_curves.md").read_text()
    for name, (healthy, facts) in broken.CURVES.items():
        assert broken.RUNS[name].cause and broken.RUNS[healthy].cause is None and facts
        assert f"](curves/{name}.png)" in page and (ROOT / "docs" / "curves" / f"{name}.png").is_file()


@pytest.mark.parametrize(("name", "some"), [("broken", "toy-"), ("unlike", "domain=image")])
def test_a_run_that_there_is_not_is_refused(name, some, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        script(name).main(["--only", "nosuch"])
    said = capsys.readouterr().err
    assert error.value.code == 2 and "'nosuch'" in said and some in said and not any(tmp_path.iterdir())


def test_a_table_of_nothing_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        broken.main(["--table", "--out", str(tmp_path / "none")])
    assert "none has no results yet" in capsys.readouterr().err


SHORT = [
    "toy-dmd-student-rate",
    "toy-dmd-fake-rate",
    "toy-dmd-ema",
    "toy-sid-lag",
    "toy-mixture-dmd-lag",
    "toy-labelled-overguided",
    "toy-pretrain-rate",
    "toy-pretrain-scale",
    "digits-dmd-short",
    "digits-no-start",
    "digits-sid-lag",
    "digits-negative",
    "toy-mixture-dmd",
    "toy-sid",
    "toy-consistency",
    "digits-dmd",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_what_is_provoked_is_named_and_nothing_in_healthy_runs(name, tmp_path):
    broken.prepare(tmp_path)
    record = broken.make(name, broken.RUNS[name], 0, tmp_path)
    assert record["cause"] in broken.named(record) if record["cause"] else broken.named(record) == []
