"""Ruff and mypy find nothing. mypy sees the folders as they are installed: as the package `farandole`."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*arguments: str, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, env={**os.environ, **(env or {})}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff() -> None:
    run("ruff", "check", ".")
    run("ruff", "format", "--check", ".")


def test_mypy(tmp_path: Path) -> None:
    (tmp_path / "farandole").symlink_to(ROOT, target_is_directory=True)
    packages = [f"-pfarandole.{folder}" for folder in ("adapters", "plugins", "experiments", "cli")]
    run("mypy", *packages, env={"MYPYPATH": str(tmp_path)})
