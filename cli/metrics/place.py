"""Where a run's folder is."""

from __future__ import annotations

from pathlib import Path

from ...plugins.metrics.folder import RunFolder


def find_run(folder: Path) -> Path:
    """Return a run's folder: this one, or the one in it that was started last.

    Raises:
        OptionError: it is not the folder of a run, and has none.
    """
    found = [*folder.glob("*/run.json")] if folder.is_dir() and not (folder / "run.json").exists() else []
    run = max(found, key=lambda path: path.stat().st_mtime).parent if found else folder
    RunFolder(run).info()
    return run
