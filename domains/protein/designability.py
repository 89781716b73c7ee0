"""Designability: the share of chains that some sequence is predicted to fold into.

A program of the user's predicts it.

The program is named by the environment alone, never by a configuration or a folder, which may come
from elsewhere.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from distillkit.errors import Failure, one_line
from domains.protein import media

COMMAND, TIMEOUT = "DISTILLKIT_DESIGNABILITY", "DISTILLKIT_DESIGNABILITY_TIMEOUT"
DESIGNABLE = 2.0  # angstrom that the self-consistency RMSD stays below
ANSWERS = ("scrmsd.csv", "scrmsd.json")


class Designability:
    """Runs `COMMAND FOLDER` on a folder of PDB files and reads one scRMSD each, in angstrom.

    The folder holds chain_0000.pdb, chain_0001.pdb and so on. The program leaves scrmsd.csv
    (columns `file` and `scrmsd`) or scrmsd.json (`{file: scrmsd}`) in it; `inf` stands for what
    could not be folded. No shell is involved.

    Args:
        command: the program and its first arguments.
        timeout: seconds that one run may take.

    Raises:
        ValueError: there is no such program, or the arguments are none.
    """

    def __init__(self, command: Sequence[str], timeout: float = 86400.0):
        good = isinstance(command, list | tuple) and command and all(isinstance(part, str) and part for part in command)
        if not good:
            raise ValueError(f'{COMMAND} must be a list of words, such as \'["python", "scrmsd.py"]\', got {command!r}')
        if shutil.which(command[0]) is None:
            raise ValueError(f"{COMMAND}: there is no program {command[0]!r} that can be run")
        if not timeout > 0:
            raise ValueError(f"{TIMEOUT} must be a positive number of seconds, got {timeout}")
        self.command, self.timeout = list(command), timeout

    @classmethod
    def from_environment(cls) -> Designability | None:
        """The program that the environment names, or None.

        Reads `DISTILLKIT_DESIGNABILITY` (json) and `DISTILLKIT_DESIGNABILITY_TIMEOUT`.
        """
        command, timeout = os.environ.get(COMMAND), os.environ.get(TIMEOUT, "86400")
        if not command:
            return None
        try:
            words = json.loads(command)
        except ValueError:
            words = command
        try:
            return cls(words, float(timeout))
        except ValueError as error:
            if "could not convert" in str(error):
                raise ValueError(f"{TIMEOUT} must be a positive number of seconds, got {timeout!r}") from None
            raise

    def describe(self) -> dict[str, Any]:
        """The settings that the number depends on."""
        return {"command": self.command, "below": DESIGNABLE}

    def __call__(self, samples: Tensor, cond: dict[str, Tensor]) -> float:
        """The share of samples [n, N, 3] whose scRMSD is below 2 angstrom.

        Raises:
            Failure: the program fails, takes too long, or leaves no number for a file.
        """
        chains = media.traces(samples, cond)
        with tempfile.TemporaryDirectory(prefix="distillkit-") as name:
            folder, written = Path(name), []
            for i, chain in enumerate(chains):
                if not media.fits_pdb(chain):  # so far apart that no PDB file holds it: not designable
                    continue
                (folder / f"chain_{i:04d}.pdb").write_text(media.pdb(chain), encoding="utf-8")
                written.append(f"chain_{i:04d}.pdb")
            if not written:
                return 0.0
            self._run(folder)
            found = self._answers(folder)
        if lacking := [file for file in written if file not in found]:
            raise Failure(
                f"{self.command[0]} gave no scRMSD for {len(lacking)} of {len(written)} files ({', '.join(lacking[:3])}): one "
                f"line for each is needed"
            )
        return sum(found[file] < DESIGNABLE for file in written) / len(chains)

    def _run(self, folder: Path) -> None:
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                [*self.command, str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that what it started can be ended with it
            )
            try:
                code = process.wait(self.timeout)
            except BaseException as error:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise Failure(
                        f"{self.command[0]} was still running after {self.timeout:g} s: raise {TIMEOUT}, or ask for fewer samples"
                    ) from None
                raise
            if code:
                said.seek(0)
                lines = said.read().decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
                raise Failure(f"{self.command[0]} ended with exit code {code} ({one_line(lines[-1], 200)})")

    def _answers(self, folder: Path) -> dict[str, float]:
        """scRMSD in angstrom by name of file."""
        file = next((folder / name for name in ANSWERS if (folder / name).is_file()), None)
        if file is None:
            raise Failure(f"{self.command[0]} left neither {' nor '.join(ANSWERS)} in the folder it was given")
        try:
            text = file.read_text(encoding="utf-8")
            if file.suffix == ".json":
                pairs = json.loads(text).items()
            else:
                pairs = [(row["file"], row["scrmsd"]) for row in csv.DictReader(text.splitlines())]
            found = {Path(name).name: float(value) for name, value in pairs}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Failure(
                f"{self.command[0]} left a {file.name} that cannot be read ({type(error).__name__}: {error})"
            ) from None
        if bad := [name for name, value in found.items() if not value >= 0]:
            raise Failure(f"{self.command[0]} left a {file.name} whose scRMSD of {bad[0]} is {found[bad[0]]}")
        return found
