"""Whether the wheel drives GPUs through NCCL, and where CUDA and NCCL are.

NCCL is on if the framework is a CUDA build and the machine has the CUDA compiler and NCCL's header. If either is
missing, a machine with an NVIDIA driver gets an error. A machine without one (a laptop with PyPI's PyTorch, a CUDA
build) gets a wheel for CPU tensors and a note.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .failure import HorovodBuildError
from .frameworks import Framework
from .toolchain import find, output


@dataclass(frozen=True)
class Nccl:
    """NCCL's version, and its folder if it comes from the Python package that PyTorch depends on."""

    version: str
    package: Path | None = None


@dataclass(frozen=True)
class Gpu:
    """The CUDA release of the compiler (`13.0`), its folder if known, and NCCL."""

    cuda: str
    toolkit: Path | None
    nccl: Nccl

    def variables(self, links: Path) -> dict[str, str]:
        """Return the environment variables of the build; the wheel will look for libraries in `links`."""
        chosen = {"HOROVOD_GPU_OPERATIONS": "NCCL"}
        if self.toolkit:
            chosen |= {"HOROVOD_CUDA_HOME": str(self.toolkit), "CUDA_HOME": str(self.toolkit)}
        if self.nccl.package:
            # The package has only libnccl.so.2, but a linker looks for libnccl.so.
            libraries = self.nccl.package / "lib"
            links.mkdir(parents=True, exist_ok=True)
            (links / "libnccl.so").unlink(missing_ok=True)
            (links / "libnccl.so").symlink_to(libraries / "libnccl.so.2")
            chosen |= {
                "HOROVOD_NCCL_INCLUDE": str(self.nccl.package / "include"),
                "HOROVOD_NCCL_LIB": str(links),
                "HOROVOD_NCCL_LINK": "SHARED",
                "LDFLAGS": f"{os.environ.get('LDFLAGS', '')} -Wl,-rpath,{libraries}".strip(),
            }
        return chosen


def decide(frameworks: Sequence[Framework], wanted: bool | None) -> tuple[Gpu | None, str | None]:
    """Return the GPU to build for, `None` for CPU tensors only, and a note for the user, if any.

    `wanted` is the user's choice: NCCL, no NCCL, or `None` for what the machine has. Horovod's own variables
    `HOROVOD_GPU*` override it.

    Raises:
        HorovodBuildError: NCCL is wanted, or the machine has a GPU driver, and something is missing.
    """
    if any(name.startswith("HOROVOD_GPU") for name in os.environ):
        return None, "GPU operations are built as set by the variables HOROVOD_GPU*."
    framework = frameworks[0]  # PyTorch if there are both: Horovod refuses a GPU build without PyTorch's
    title = f"{framework.name} {framework.version}"
    if wanted is False:
        return None, None
    if framework.rocm:
        raise HorovodBuildError(
            f"{title} is a ROCm build, which is untested. "
            "Set HOROVOD_GPU=ROCM and HOROVOD_GPU_OPERATIONS=NCCL to try, or pass --no-nccl for CPU tensors only."
        )
    if framework.cuda is None:
        if wanted:
            raise HorovodBuildError(f"{title} is a CPU build, so it cannot use NCCL. Install a CUDA build.")
        return None, None
    try:
        return _require(framework, title), None
    except HorovodBuildError as error:
        if wanted or _driver():
            raise
        return None, f"Built for CPU tensors only, since this machine has no NVIDIA driver, and: {error}"


def _require(framework: Framework, title: str) -> Gpu:
    otherwise = "To build for CPU tensors only, pass --no-nccl."
    compiler = next((path for path in _compilers() if path.exists()), None)
    if compiler is None:
        raise HorovodBuildError(
            f"{title} is a CUDA build, but the CUDA compiler (nvcc) is missing. Install the CUDA {framework.cuda} "
            f"toolkit, or set HOROVOD_CUDA_HOME to its folder. {otherwise}"
        )
    release = cuda_release(compiler)
    if release.split(".")[0] != str(framework.cuda).split(".")[0]:
        raise HorovodBuildError(
            f"{title} is built with CUDA {framework.cuda}, but {compiler} is CUDA {release}. Set HOROVOD_CUDA_HOME to "
            f"a toolkit of the same major version. {otherwise}"
        )
    toolkit = _toolkit(compiler)
    nccl = find_nccl(toolkit)
    if nccl is None:
        raise HorovodBuildError(
            f"{title} is a CUDA build, but NCCL's header nccl.h is missing. pip install "
            f"nvidia-nccl-cu{release.split('.')[0]}, or apt-get install libnccl-dev, or set HOROVOD_NCCL_HOME to its "
            f"folder. {otherwise}"
        )
    return Gpu(release, toolkit, nccl)


def _driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or find("nvidia-smi") is not None


def _compilers() -> Iterator[Path]:
    """Yield the places of nvcc, best first: what the user names, the usual folder, `PATH`."""
    for variable in ("HOROVOD_CUDA_HOME", "CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            yield Path(home, "bin", "nvcc")
    if on_path := find("nvcc"):
        yield Path(on_path)
    yield Path("/usr/local/cuda/bin/nvcc")


def cuda_release(compiler: Path) -> str:
    """Return the release of an nvcc, such as `13.0`, or `unknown`."""
    found = re.search(r"release (\d+\.\d+)", output(str(compiler), "--version") or "")
    return found[1] if found else "unknown"


def _toolkit(compiler: Path) -> Path | None:
    """Return the folder of CUDA, from nvcc itself: `PATH` may have a script that starts it elsewhere."""
    found = re.search(r"#\$ TOP=(.+)", output(str(compiler), "--dryrun", "-E", "-x", "cu", os.devnull) or "")
    folder = Path(found[1]).resolve() if found else compiler.resolve().parent.parent
    return folder if (folder / "include" / "cuda_runtime.h").exists() else None


def find_nccl(toolkit: Path | None) -> Nccl | None:
    """Return the NCCL that the build will find: the user's, PyTorch's own, or the system's."""
    home = os.environ.get("HOROVOD_NCCL_HOME")
    named = os.environ.get("HOROVOD_NCCL_INCLUDE") or (home and f"{home}/include")
    if named:
        return Nccl(version) if (version := _nccl_version(Path(named))) else None
    nvidia = importlib.util.find_spec("nvidia")
    for folder in (nvidia.submodule_search_locations or []) if nvidia else []:
        package = Path(folder, "nccl")
        if (version := _nccl_version(package / "include")) and (package / "lib" / "libnccl.so.2").exists():
            return Nccl(version, package)
    system = [Path("/usr/include"), Path("/usr/local/include"), *([toolkit / "include"] if toolkit else [])]
    return next((Nccl(version) for folder in system if (version := _nccl_version(folder))), None)


def _nccl_version(include: Path) -> str | None:
    try:
        text = (include / "nccl.h").read_text(errors="replace")
    except OSError:
        return None
    parts = [re.search(rf"#define\s+NCCL_{part}\s+(\d+)", text) for part in ("MAJOR", "MINOR", "PATCH")]
    return ".".join(part[1] for part in parts if part) or "unknown"
