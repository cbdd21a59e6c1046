"""All that computes on a device runs on one that is not the CPU, in a process of its own."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_path_runs_on_another_device(tmp_path):
    command = [sys.executable, "-m", "pytest", "-q", "tests/devices/paths.py"]
    done = subprocess.run(
        [*command, "--basetemp", str(tmp_path / "child")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
