"""The cache of built wheels: one folder for each target; wheels appear in it atomically."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import platformdirs

from .failure import HorovodBuildError


def root() -> Path:
    """Return the folder of this cache: in `FARANDOLE_CACHE_DIR`, or else in the user's cache folder."""
    base = os.environ.get("FARANDOLE_CACHE_DIR") or platformdirs.user_cache_dir("farandole")
    return Path(base).expanduser().absolute() / "horovod"


class Slot:
    """The folder of one target: its wheel, the log of its build, and a lock held by one build at a time."""

    def __init__(self, key: str, libraries: Sequence[str]) -> None:
        self.folder = root() / key
        self.log = self.folder / "build.log"
        self._libraries = libraries
        self._leftover = self.folder / "building"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HorovodBuildError(
                f"Cannot write to the cache {self.folder}: {error.strerror}. "
                "Set FARANDOLE_CACHE_DIR to a folder of yours."
            ) from error

    def wheel(self, damaged: Callable[[], None] = lambda: None) -> Path | None:
        """Return the wheel, or `None` if there is no sound one; a damaged one is deleted, and `damaged` called."""
        for path in sorted(self.folder.glob("*.whl")):
            if is_sound(path, self._libraries):
                return path
            damaged()
            path.unlink(missing_ok=True)
        return None

    def publish(self, wheel: Path) -> Path:
        """Put a finished wheel here atomically and return its new path.

        Raises:
            HorovodBuildError: the wheel is not a sound archive with the libraries of the target.
        """
        if not is_sound(wheel, self._libraries):
            wanted = " and ".join(self._libraries)
            raise HorovodBuildError(f"The build left no usable wheel: {wheel.name} lacks {wanted}. Log: {self.log}")
        partial = self.folder / f".{wheel.name}.{os.getpid()}"
        try:
            shutil.copyfile(wheel, partial)
            os.replace(partial, self.folder / wheel.name)
        finally:
            partial.unlink(missing_ok=True)
        return self.folder / wheel.name

    @contextlib.contextmanager
    def lock(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the lock of this target; `waiting` is called once if another process has it.

        The system releases the lock when its holder dies.
        """
        import fcntl  # not on Windows, where --help must work all the same

        with (self.folder / "lock").open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield an empty temporary folder, deleted afterwards; call it under the lock.

        Its path is noted first, so that the next build deletes the leftovers of a killed one.
        """
        if self._leftover.exists():
            shutil.rmtree(self._leftover.read_text(), ignore_errors=True)
        try:
            with tempfile.TemporaryDirectory(prefix="farandole-horovod-", ignore_cleanup_errors=True) as folder:
                self._leftover.write_text(folder)
                yield Path(folder).resolve()
        finally:
            self._leftover.unlink(missing_ok=True)


def is_sound(wheel: Path, libraries: Sequence[str]) -> bool:
    """Whether a wheel is a whole archive with these compiled libraries (prefixes of paths)."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            has_all = all(any(name.startswith(f"{library}.") for name in names) for library in libraries)
            return has_all and archive.testzip() is None
    except (OSError, zipfile.BadZipFile, ValueError):
        return False
