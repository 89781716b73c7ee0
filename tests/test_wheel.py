"""A built wheel carries configuration and weights and works without the checkout."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_a_wheel_works_outside_the_checkout(tmp_path):
    pytest.importorskip("build")
    pytest.importorskip("hatchling", reason="the build back end is not installed; `make setup` brings it")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "distillkit/conf/config.yaml" in names and "domains/image/weights/digits/model.safetensors" in names
    assert "distillkit/report/templates/report.html.j2" in names and not any(
        name.startswith(("tests/", "conf/")) for name in names
    )

    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = subprocess.run([str(python), "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
    zipfile.ZipFile(wheel).extractall(site)
    packages = [path for path in sys.path if path.endswith("site-packages")]
    Path(site, "dependencies.pth").write_text("\n".join(packages))  # ours come first, as in an ordinary installation
    words = [
        "domain=image",
        "method=dmd",
        "data.batch_size=4",
        "trainer.max_steps=3",
        "vars.callbacks.finish.num_samples=16",
    ]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    code = (
        "import runpy, sys, distillkit; sys.argv[0] = 'distillkit'\n"
        "try: runpy.run_module('distillkit', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "distillkit.load_student('run').sample(2); print(distillkit.__file__)"
    )
    command = [str(python), "-c", code, "fit", *words, "--out", "run"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(site) and (tmp_path / "run" / "report.html").is_file()
