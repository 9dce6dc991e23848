"""How a worker tells the person who waits for it how far it is: a marked line in the job's output."""

from __future__ import annotations

_MARK = "farandole progress: "


def tell(text: str) -> None:
    """Say in a few words how far this worker is."""
    print(_MARK + text, flush=True)


def told(line: str) -> str | None:
    """Return what a worker told with this line, whatever prefix its launcher gave it; `None` for other lines."""
    _, mark, text = line.partition(_MARK)
    return text if mark else None
