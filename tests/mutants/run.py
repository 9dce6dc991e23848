"""Put one fault at a time into a copy of the tree, and see which test of the default size fails.

    python tests/mutants/run.py             all of them
    python tests/mutants/run.py NAME...     these

The tests that a mutant names come first, then all others; `--exhaustive` is tried on one that survives both. The exit
code is 1 where the default size did not catch every one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mutant_table import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
PACKAGES = ("adapters", "plugins", "experiments", "cli")


def copy_tree(folder: Path) -> None:
    """Copy what git tracks."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    package = folder / "site" / "farandole"
    package.mkdir(parents=True)
    for name in PACKAGES:
        (package / name).symlink_to(folder / name, target_is_directory=True)


def apply(mutant: Mutant, folder: Path) -> None:
    """Put the fault in."""
    path = folder / mutant.file
    text = path.read_text()
    assert text.count(mutant.old) == 1, f"{mutant.name}: {mutant.file} has changed"
    path.write_text(text.replace(mutant.old, mutant.new))


def first_failure(folder: Path, *arguments: str) -> str | None:
    """Run pytest in the copy until a test fails, and return that test."""
    # Before the finder of an editable installation, which would import the tree that was copied.
    env = {**os.environ, "PYTHONPATH": str(folder / "site"), "PYTHONDONTWRITEBYTECODE": "1"}
    look = "import farandole.adapters as a; print(a.__file__)"
    found = subprocess.run([sys.executable, "-c", look], env=env, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(folder)), f"the copy is not what is imported: {found}"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if failed is not None:
        return failed[1]
    assert done.returncode == 0, done.stdout + done.stderr
    return None


def caught_by(mutant: Mutant) -> tuple[str | None, bool]:
    """Return the test that turned red, and whether it is one of the default size."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as temporary:
        folder = Path(temporary)
        copy_tree(folder)
        apply(mutant, folder)
        for arguments in (mutant.tests, ("--ignore=tests/mutants", "--ignore=tests/style")):
            if test := first_failure(folder, *arguments):
                return test, True
        return first_failure(folder, "--exhaustive", "--ignore=tests/mutants", "--ignore=tests/style"), False


def main(names: list[str]) -> int:
    """Run the mutants of these names, by default all; print a row for each."""
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    missed = 0
    print("| Mutant | In | Caught by |\n| --- | --- | --- |", flush=True)
    for mutant in chosen:
        started = time.monotonic()
        test, by_default = caught_by(mutant)
        missed += not by_default
        told = f"`{test}`" if by_default else f"not by default; by --exhaustive: {test}"
        print(f"| {mutant.name} | {mutant.file} | {told} |", flush=True)
        print(f"{mutant.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
