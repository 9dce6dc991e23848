"""The C++ standard to compile with: the first that the headers of all installed frameworks accept.

The compiler itself is asked: it may know a standard's name (GCC 10: `-std=c++20`) without the library that the headers
need. Preprocessing is enough to see their `#error`, and takes a second or two.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .failure import HorovodBuildError
from .frameworks import Framework
from .process import capture
from .toolchain import compiler, output

STANDARDS = (17, 20, 23, 26)
_TIMEOUT = 120  # seconds for one header: disks may be cold
# What the extensions include, below the folder of the package.
_HEADERS = {
    "torch": (("include", "include/torch/csrc/api/include"), "torch/types.h"),
    "tensorflow": (("include",), "tensorflow/core/framework/op_kernel.h"),
}
# The first release of each compiler whose default library has what the headers need.
_FIRST_GCC = {17: "9", 20: "11", 23: "14", 26: "14"}
_FIRST_CLANG = {17: "9", 20: "16", 23: "19", 26: "19"}


def choose(frameworks: Sequence[Framework], *, path: str | None = None) -> int:
    """Return the standard (17 is C++17) to compile with for these frameworks; `path` is the compiler, if given.

    Raises:
        HorovodBuildError: the compiler has no standard that a framework's headers accept; the message names the needed
            one, the compiler's version and what to install.
    """
    program = path or compiler()
    assert program is not None  # `toolchain.check` ran before
    lowest = 0  # in STANDARDS
    for framework in frameworks:
        folder = _folder(framework.name)
        refusals: list[str] = []
        for index in range(lowest, len(STANDARDS)):
            problem = _refusal(program, STANDARDS[index], framework.name, folder)
            if problem is None:
                lowest = index
                break
            refusals.append(problem)
        else:
            raise HorovodBuildError(_explain(framework, program, refusals))
    return STANDARDS[lowest]


def _folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None  # `frameworks` has found it before
    return Path(spec.origin).parent


def _refusal(program: str, standard: int, name: str, folder: Path) -> str | None:
    """Return the compiler's first error in a framework's headers with this standard, or `None`."""
    includes, header = _HEADERS[name]
    places = [f"-I{folder / include}" for include in includes]
    flags = [flag for flag in shlex.split(os.environ.get("CXXFLAGS", "")) if not flag.startswith("-std=")]
    command = [*shlex.split(program), *flags, f"-std=c++{standard}", *places, "-include", header]
    try:
        done = capture(*command, "-E", "-x", "c++", os.devnull, "-o", os.devnull, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise HorovodBuildError(f"{program} took more than {_TIMEOUT} s to read {header} of {name}.") from None
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[0] if lines else f"exit code {done.returncode}")


def _explain(framework: Framework, program: str, refusals: Sequence[str]) -> str:
    title = f"{framework.name} {framework.version}"
    version = (output(*shlex.split(program), "--version") or "unknown version").splitlines()[0]
    demanded = next((int(found[1]) for text in refusals if (found := re.search(r"C\+\+(\d\d)\b", text))), None)
    if demanded not in _FIRST_GCC:
        return f"The headers of {title} do not compile with {program} ({version}): {refusals[0]}"
    gcc, clang = _FIRST_GCC[demanded], _FIRST_CLANG[demanded]
    return (
        f"The headers of {title} need C++{demanded}, which {program} ({version}) does not support. Install GCC {gcc} "
        f"or Clang {clang}, or newer: apt-get install g++-{gcc}, then CXX=g++-{gcc} farandole horovod install"
    )
