"""The published source of Horovod: fetched by pip, checked by its SHA-256, unpacked.

pip fetches it, so that the user's index, mirror, proxy and certificates apply. pip gets the hash too: it runs a
source's `setup.py` for its metadata, and must not run an unchecked one.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tarfile
import tempfile
from pathlib import Path

from .failure import HorovodBuildError
from .process import capture

VERSION = "0.28.1"
SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
ARCHIVE = f"horovod-{VERSION}.tar.gz"


def verify(archive: Path) -> None:
    """Raise `HorovodBuildError` unless `archive` is the published source, byte for byte."""
    try:
        with archive.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise HorovodBuildError(f"Cannot read the Horovod source {archive}: {error.strerror}.") from error
    if found != SHA256:
        raise HorovodBuildError(
            f"{archive} is not the published source of Horovod {VERSION}: its SHA-256 is {found}, not {SHA256}. "
            f"Download {ARCHIVE} again."
        )


def fetch(folder: Path) -> Path:
    """Return the verified source archive in `folder`, downloaded with pip if necessary.

    Raises:
        HorovodBuildError: pip could not download it, or downloaded something else.
    """
    kept = folder / ARCHIVE
    if kept.exists():
        try:
            verify(kept)
            return kept
        except HorovodBuildError:
            kept.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        requirements = Path(partial, "requirements.txt")
        requirements.write_text(f"horovod=={VERSION} --hash=sha256:{SHA256}\n")
        options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--require-hashes"]
        done = capture(sys.executable, "-m", "pip", "download", *options, "-r", str(requirements), "-d", partial)
        archive = Path(partial, ARCHIVE)
        if done.returncode != 0 or not archive.exists():
            output = (done.stdout + done.stderr).splitlines()
            errors = [line.strip() for line in output if "error" in line.lower()] or output
            raise HorovodBuildError(
                f"pip could not download the source of Horovod {VERSION}: {' '.join(errors[-2:]) or 'no output'}\n"
                f"Check the network and pip's configuration, or download {ARCHIVE} elsewhere and pass --sdist PATH."
            )
        verify(archive)
        os.replace(archive, kept)
    return kept


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the archive into `folder` and return the root of the source tree."""
    with tarfile.open(archive) as tar:
        # Early patch releases of Python 3.11 lack the filter; the archive's hash is checked already.
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        tar.extractall(folder)
    return folder / f"horovod-{VERSION}"
