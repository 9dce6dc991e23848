"""`farandole doctor` with engines that fail, crash or hang when they are imported."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from farandole.cli.checks import probe

FARANDOLE = [sys.executable, "-m", "farandole.cli.main"]


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Engines on the path before the installed ones."""
    for name, code in {
        "lightning": "raise ImportError('cannot import name x from\\ny')",
        "comet_ml": "import os; print('noise', flush=True); os.abort()",
        "deepspeed": "import time; time.sleep(600)",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.mark.timeout(100)
def test_what_fails_to_import_is_broken_and_takes_nothing_down(engines: Path) -> None:
    (engines / "deepspeed" / "__init__.py").unlink()
    done = subprocess.run([*FARANDOLE, "doctor", "--json"], check=False, capture_output=True, text=True, timeout=95)
    report = json.loads(done.stdout)
    checks = {check["name"]: check for check in report["checks"]}
    assert (done.returncode, report["ok"]) == (1, False), done.stderr
    assert checks["torch"]["status"] == "ok"
    assert checks["torch"]["facts"]["gloo"] is True
    assert checks["lightning"]["detail"] == "ImportError: cannot import name x from y"
    assert checks["comet_ml"]["detail"] == "its import ended with SIGABRT"
    for name in ("lightning", "comet_ml"):
        assert checks[name]["status"] == "broken"
        assert checks[name]["fix"].startswith("pip install --force-reinstall")


@pytest.mark.timeout(30)
def test_a_hanging_import_is_given_up(engines: Path) -> None:
    started = time.monotonic()
    found = probe(["deepspeed", "lightning"], timeout=3)
    assert time.monotonic() - started < 10
    assert found["deepspeed"] == {"error": "its import did not end within 3 s"}
    assert found["lightning"] == {"error": "ImportError: cannot import name x from y"}
