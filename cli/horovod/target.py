"""What a wheel is built for: everything that decides whether it matches, and its name in the cache."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .edits import digest
from .failure import HorovodBuildError
from .frameworks import Framework, select, switch
from .frameworks import variables as framework_variables
from .gpu import Gpu, decide
from .source import VERSION
from .toolchain import mpi_version, mpi_without_headers
from .toolchain import variables as tool_variables
from .tried import note as untried_note

# The user's settings that change what is compiled, except those that this module decides.
_SETTINGS = re.compile(
    r"CXX|CXXFLAGS|CUDACXX|CUDAFLAGS|LDFLAGS|HOROVOD_(WITH(OUT)?_NVTX|(GPU|CUDA|NCCL|BUILD|ALLOW|DEBUG|LOCAL|CPU_OP).*)"
)
_GET_MPI = "apt-get install libopenmpi-dev | dnf install openmpi-devel | module load openmpi"
_DECISIONS = re.compile(r"HOROVOD_WITH(OUT)?_(PYTORCH|TENSORFLOW|MXNET|MPI|GLOO)")


@dataclass(frozen=True)
class Target:
    """The identity of a wheel: versions of its dependencies (`None`: built without), settings and edits."""

    python: str
    abi: str
    platform: str
    torch: str | None = None
    tensorflow: str | None = None
    cuda: str | None = None
    nccl: str | None = None
    mpi: str | None = None
    settings: tuple[tuple[str, str], ...] = ()
    horovod: str = VERSION
    edits: str = field(default_factory=digest)

    @property
    def key(self) -> str:
        """A folder name, unique for each target."""
        parts = [self.horovod, f"py{self.python}"]
        parts += [f"{name}-{value}" for name, value in self._versions() if value]
        readable = re.sub(r"[^\w.+]+", "-", "-".join(parts))[:120]
        return f"{readable}-{hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]}"

    @property
    def libraries(self) -> tuple[str, ...]:
        """The prefixes of the compiled libraries in the wheel, one for each framework."""
        names = {"horovod/torch/mpi_lib_v2": self.torch, "horovod/tensorflow/mpi_lib": self.tensorflow}
        return tuple(name for name, version in names.items() if version)

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules of the wheel, which must import."""
        names = {"horovod.torch": self.torch, "horovod.tensorflow": self.tensorflow}
        return tuple(name for name, version in names.items() if version)

    def __str__(self) -> str:
        found = [(name, value) for name, value in self._versions() if value and (name != "CUDA" or self.nccl)]
        versions = [value if name == "MPI" else f"{name} {value}" for name, value in found]
        without = [name for name, value in self._versions() if not value and name in ("MPI", "NCCL")]
        tail = f", without {' and '.join(without)}" if without else ""
        return f"Horovod {self.horovod} for Python {self.python}, {', '.join(versions)}, Gloo{tail}"

    def _versions(self) -> list[tuple[str, str | None]]:
        return [
            ("torch", self.torch),
            ("TensorFlow", self.tensorflow),
            ("CUDA", self.cuda),
            ("NCCL", self.nccl),
            ("MPI", self.mpi),
        ]


@dataclass(frozen=True)
class Plan:
    """A target, and how to build it here; `notes` are for the user, and so is `trial` if it is really built."""

    target: Target
    frameworks: tuple[Framework, ...]
    gpu: Gpu | None
    notes: tuple[str, ...]
    trial: str | None = None

    def variables(self, links: Path, standard: int) -> dict[str, str]:
        """Return the environment of the build in C++`standard`; `links` is a folder for links to libraries."""
        mpi = {"HOROVOD_WITH_MPI": "1"} if self.target.mpi else {"HOROVOD_WITHOUT_MPI": "1"}
        if not self.target.mpi:
            mpi["HOROVOD_CPU_OPERATIONS"] = os.environ.get("HOROVOD_CPU_OPERATIONS", "GLOO")
        kept = {name: value for name, value in os.environ.items() if not _DECISIONS.fullmatch(name)}
        gpu = self.gpu.variables(links) if self.gpu else {}
        ours = {"HOROVOD_WITH_GLOO": "1", "HOROVOD_CXX_STANDARD": str(standard)}
        return kept | framework_variables(self.frameworks) | ours | mpi | gpu | tool_variables()


def plan(*, frameworks: Sequence[str] = (), mpi: bool | None = None, nccl: bool | None = None) -> Plan:
    """Decide what to build in this environment; `None` means what the machine has.

    Raises:
        FarandoleError: a requested framework, MPI or NCCL is missing, or no framework is installed.
    """
    if sys.platform == "win32":
        raise HorovodBuildError("Horovod does not build on Windows. Use Linux, macOS or WSL 2.")
    chosen = select(frameworks)
    gpu, note = decide(chosen, nccl)
    if mpi is None:
        mpi = switch("MPI")
    mpi_found = None if mpi is False else mpi_version()
    bare = mpi_without_headers() if mpi is not False and mpi_found is None else None
    if mpi and mpi_found is None:
        problem = f"{bare} has no headers (mpi.h)" if bare else "its C++ compiler (mpicxx) is not on PATH"
        raise HorovodBuildError(f"MPI is requested, but {problem}: {_GET_MPI}")
    no_mpi = f"Built without MPI, since {bare} has no headers (mpi.h). For mpirun and Adasum: {_GET_MPI}"
    notes = (note, no_mpi if bare else None)
    versions = {framework.name: framework.version for framework in chosen}
    target = Target(
        python=sysconfig.get_python_version(),
        abi=str(sysconfig.get_config_var("SOABI")),
        platform="-".join([sysconfig.get_platform(), *filter(None, platform.libc_ver())]),
        torch=versions.get("torch"),
        tensorflow=versions.get("tensorflow"),
        cuda=_cuda(chosen[0], gpu),
        nccl=gpu.nccl.version if gpu else None,
        mpi=mpi_found,
        settings=tuple(sorted((name, value) for name, value in os.environ.items() if _SETTINGS.fullmatch(name))),
    )
    return Plan(target, chosen, gpu, tuple(filter(None, notes)), untried_note(chosen))


def _cuda(framework: Framework, gpu: Gpu | None) -> str | None:
    """The CUDA of the framework, and of the compiler, if one is used."""
    if framework.cuda is None:
        return None
    return f"{framework.cuda} (compiler {gpu.cuda})" if gpu else framework.cuda
