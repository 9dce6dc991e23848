"""A worker's progress for the user: a marked line in the job's output."""

from __future__ import annotations

_MARK = "farandole progress: "


def tell(text: str) -> None:
    """Report this worker's progress in a few words."""
    print(_MARK + text, flush=True)


def told(line: str) -> str | None:
    """Return the progress in this line, without its launcher's prefix; `None` for other lines."""
    _, mark, text = line.partition(_MARK)
    return text if mark else None
