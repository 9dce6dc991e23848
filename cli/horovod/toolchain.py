"""The tools that a build needs: found, or named with the command that installs them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from importlib.machinery import PathFinder
from pathlib import Path

import psutil

from .failure import HorovodBuildError
from .process import capture

_OLDEST_CMAKE = (3, 13)
_BYTES_PER_COMPILER = 2.4e9  # g++ 12 at the largest file of the PyTorch binding; TensorFlow's takes half of it
# Horovod's setup.py imports setuptools (with its distutils) and packaging, and asks setuptools for the others, which
# would download missing ones.
_PYTHON_MODULES = {
    "setuptools": "setuptools",
    "packaging": "packaging",
    "cloudpickle": "cloudpickle",
    "psutil": "psutil",
    "yaml": "pyyaml",
}
_CACHES = {"ccache", "sccache", "distcc", "icecc"}  # may precede the compiler, which they call
_BDIST_WHEEL = ("command", "bdist_wheel.py")  # in setuptools 70.1 and newer; older ones need the package wheel


def search_path() -> str:
    """`PATH` with this environment's programs first, so that it need not be activated."""
    return os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])


def find(*names: str) -> str | None:
    """Return the path of the first of these programs that is installed."""
    return next((path for name in names if (path := shutil.which(name, path=search_path()))), None)


def output(*command: str) -> str | None:
    """Return what a program prints, or `None` if it fails or takes more than 10 seconds."""
    try:
        done = capture(*command, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout + done.stderr if done.returncode == 0 else None


def check(*, torch: bool) -> None:
    """Raise one `HorovodBuildError` that names everything that is missing; takes well under a second."""
    missing: list[str] = []
    modules = _PYTHON_MODULES | ({"cffi": "cffi"} if torch else {})
    packages = [package for module, package in modules.items() if importlib.util.find_spec(module) is None]
    setuptools = importlib.util.find_spec("setuptools")
    if setuptools and setuptools.origin and not Path(setuptools.origin).parent.joinpath(*_BDIST_WHEEL).exists():
        packages += ["wheel"] if importlib.util.find_spec("wheel") is None else []
    # Not by importlib.util: setuptools takes a search for pip for a run of pip, and cannot be imported after it
    # (`spec_for_pip` in _distutils_hack).
    if PathFinder.find_spec("pip") is None:
        missing.append("pip in this environment: python -m ensurepip (or: uv pip install pip)")
    if compiler() is None:
        chosen = _chosen_compiler()
        wanted = f"the C++ compiler that CXX names, {chosen[0]}" if chosen else "a C++ compiler"
        missing.append(f"{wanted}: apt-get install g++ | dnf install gcc-c++ | conda install cxx-compiler")
    cmake = _cmake_problem()
    if cmake:
        missing.append(f"{cmake}: pip install cmake")
    if not find("ninja", "make"):
        missing.append("ninja or make: pip install ninja")
    if packages:
        missing.append(f"Python packages that Horovod's setup.py needs: pip install {' '.join(packages)}")
    if torch and not Path(sysconfig.get_path("include"), "Python.h").exists():
        missing.append("Python's headers (Python.h): apt-get install python3-dev | dnf install python3-devel")
    if missing:
        raise HorovodBuildError("Cannot build Horovod. Missing:\n" + "\n".join(f"  - {line}" for line in missing))


def compiler() -> str | None:
    """Return the path of the C++ compiler that CMake will use, `None` without one."""
    return find(*(_chosen_compiler() or ["c++", "g++", "clang++"]))


def _chosen_compiler() -> list[str]:
    """Return the one that CXX names, which CMake prefers; options may follow it."""
    return [word for word in os.environ.get("CXX", "").split() if Path(word).name not in _CACHES][:1]


def _cmake_problem() -> str | None:
    program = os.environ.get("HOROVOD_CMAKE") or find("cmake")
    if program is None:
        return "cmake"
    version = re.search(r"(\d+)\.(\d+)", output(program, "--version") or "")
    if version is None:
        return f"a working cmake ({program} does not run)"
    found = (int(version[1]), int(version[2]))
    return None if found >= _OLDEST_CMAKE else f"cmake 3.13 or newer ({program} is {found[0]}.{found[1]})"


def mpi_version() -> str | None:
    """Return the name and version of the MPI that can be compiled with here; `None` without one."""
    wrapper = find("mpicxx", "mpic++")
    if wrapper is None or not _compiles_mpi(wrapper):
        return None
    for option in ("--showme:version", "-v"):  # Open MPI's and MPICH's options
        version = re.search(r"(Open MPI|MPICH|MVAPICH|Intel\S* MPI)\D*(\d[\w.]*)", output(wrapper, option) or "")
        if version:
            return f"{version[1]} {version[2]}"
    return f"MPI at {wrapper}"


def mpi_without_headers() -> str | None:
    """Return the path of an MPI C++ compiler without headers (Debian's openmpi-bin alone), else `None`."""
    wrapper = find("mpicxx", "mpic++")
    return None if wrapper is None or _compiles_mpi(wrapper) else wrapper


def _compiles_mpi(wrapper: str) -> bool:
    return output(wrapper, "-E", "-x", "c++", "-include", "mpi.h", os.devnull, "-o", os.devnull) is not None


def variables() -> dict[str, str]:
    """Return the environment variables that make the build use these tools, in parallel as far as memory allows.

    `MAKEFLAGS` and `CMAKE_BUILD_PARALLEL_LEVEL` that the user has set stay as they are.
    """
    asked = re.search(r"-j\s*(\d+)", os.environ.get("MAKEFLAGS", ""))
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or (asked[1] if asked else str(jobs_that_fit()))
    return {
        "PATH": search_path(),
        "MAKEFLAGS": os.environ.get("MAKEFLAGS") or f"-j{jobs}",
        "CMAKE_BUILD_PARALLEL_LEVEL": jobs,
        "CMAKE_GENERATOR": "Ninja" if find("ninja") else "Unix Makefiles",
        # Horovod's third-party projects ask for CMake 2.8; CMake 4 refuses that without this.
        "CMAKE_POLICY_VERSION_MINIMUM": "3.5",
        **_compiler_cache(),
    }


def _compiler_cache() -> dict[str, str]:
    """Return the variables with which CMake calls the compiler through ccache, unless the user chose a launcher."""
    program = find("ccache")
    chosen = {"CMAKE_CXX_COMPILER_LAUNCHER", "CMAKE_C_COMPILER_LAUNCHER"} & os.environ.keys()
    named = any(Path(word).name in _CACHES for word in os.environ.get("CXX", "").split())
    if program is None or chosen or named:
        return {}
    launchers = {f"CMAKE_{language}_COMPILER_LAUNCHER": program for language in ("C", "CXX")}
    # The source lies in a new folder each time: below this one, paths count from the compiler's folder.
    return launchers | {"CCACHE_BASEDIR": os.environ.get("CCACHE_BASEDIR", tempfile.gettempdir())}


def jobs_that_fit() -> int:
    """Return how many compilers may run at once: one per processor, as far as memory allows."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(processors, int(psutil.virtual_memory().available / _BYTES_PER_COMPILER)))
