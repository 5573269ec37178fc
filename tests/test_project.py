"""What holds the shape of the project: layers, sizes."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def test_imports_point_down():
    run = subprocess.run([BIN / "lint-imports"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_files_and_functions_stay_under_the_ceiling():
    command = [sys.executable, "tools/check_sizes.py"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
