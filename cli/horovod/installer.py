"""Install a wheel into this environment, and check that it imports."""

from __future__ import annotations

import email.parser
import hashlib
import importlib
import importlib.metadata
import json
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from .failure import HorovodBuildError
from .process import capture
from .progress import Reporter

_PROBE = """
import importlib, json, sys
found = {}
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    features = {feature: bool(getattr(module, feature + "_built")()) for feature in ("gloo", "mpi", "nccl")}
    found[name] = {"file": module.__file__, **features}
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Imported:
    """The facts of a Horovod module: its file, and what it was built with."""

    name: str
    file: str
    gloo: bool
    mpi: bool
    nccl: bool


def install(wheel: Path, modules: Sequence[str], report: Reporter) -> list[Imported]:
    """Install `wheel` unless this wheel is installed and imports; return its modules' facts.

    Only the wheel and its own small requirements are installed, never a framework.

    Raises:
        HorovodBuildError: pip failed, the modules do not import, or another Horovod hides this one.
    """
    present = _installed_hash()
    if present == _sha256(wheel):
        report.step("import the installed Horovod")
        try:
            found = probe(modules)
            report.note("This wheel is installed already, and imports.")
            return found
        except HorovodBuildError:
            report.note("This wheel is installed, but does not import: installing it again.")
    elif present is not None:
        version = importlib.metadata.version("horovod")
        report.note(f"Replacing the Horovod {version} of this environment, which is another build.")
    report.step("install")
    if missing := missing_requirements(wheel):
        _pip("install", *missing)
    _pip("install", "--no-deps", "--force-reinstall", str(wheel))
    report.step("import the installed Horovod")
    return probe(modules)


def probe(modules: Sequence[str]) -> list[Imported]:
    """Import modules in a new process, in an empty folder that hides none, and return their facts."""
    with tempfile.TemporaryDirectory() as folder:
        done = capture(sys.executable, "-P", "-c", _PROBE, *modules, cwd=Path(folder))
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-5:]) or f"exit code {done.returncode}"
        raise HorovodBuildError(
            f"The Horovod of this environment does not import:\n{last}\nRebuild it: farandole horovod install --force"
        )
    found: dict[str, dict[str, object]] = json.loads(done.stdout.strip().splitlines()[-1])
    importlib.invalidate_caches()
    home = Path(str(importlib.metadata.distribution("horovod").locate_file("horovod"))).resolve()
    for facts in found.values():
        if home not in Path(str(facts["file"])).resolve().parents:
            raise HorovodBuildError(f"{facts['file']} hides the Horovod installed in {home}: remove it from PYTHONPATH")
    return [
        Imported(name, str(facts["file"]), bool(facts["gloo"]), bool(facts["mpi"]), bool(facts["nccl"]))
        for name, facts in found.items()
    ]


def missing_requirements(wheel: Path) -> list[str]:
    """Return the requirements of a wheel that this environment does not meet; without extras."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.parser.BytesParser().parsebytes(archive.read(name))
    required = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    needed = [entry for entry in required if entry.marker is None or entry.marker.evaluate({"extra": ""})]
    return [f"{entry.name}{entry.specifier}" for entry in needed if not _is_met(entry)]


def _is_met(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(importlib.metadata.version(requirement.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False


def _installed_hash() -> str | None:
    """Return the SHA-256 of the wheel file that was installed, "" if unknown, `None` without a Horovod."""
    try:
        text = importlib.metadata.distribution("horovod").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    hashes = json.loads(text or "{}").get("archive_info", {}).get("hashes", {})
    return str(hashes.get("sha256", ""))


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _pip(*arguments: str) -> None:
    done = capture(sys.executable, "-m", "pip", *arguments)
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise HorovodBuildError(f"pip could not install Horovod into {sys.prefix}:\n{last}")
