"""Import one engine and print its facts as one line of JSON; `farandole doctor` runs this in a new process.

An engine's import may fail, crash or hang, so it never happens in the command line's own process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

Facts = Mapping[str, Any]


def _torch() -> Facts:
    import torch
    import torch.distributed as dist
    import torch.distributed.run  # torchrun

    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "gloo": dist.is_gloo_available(),
        "nccl": dist.is_nccl_available(),
        "mpi": dist.is_mpi_available(),
        "gpus": torch.cuda.device_count(),
    }


def _horovod_torch() -> Facts:
    import horovod.torch

    return _horovod(horovod.torch)


def _horovod_tensorflow() -> Facts:
    import horovod.tensorflow

    return _horovod(horovod.tensorflow)


def _horovod(binding: Any) -> Facts:
    import horovod

    from ..adapters.horovod.compat import launcher

    launcher()
    built = {"gloo": binding.gloo_built(), "mpi": binding.mpi_built(), "nccl": binding.nccl_built()}
    return {"version": horovod.__version__, **{name: bool(answer) for name, answer in built.items()}}


def _deepspeed() -> Facts:
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    from ..adapters.torch.engines.deepspeed.compat import launcher

    launcher()
    return {"version": deepspeed.__version__, "accelerator": get_accelerator().device_name()}


def _tensorflow() -> Facts:
    import tensorflow as tf

    return {
        "version": tf.__version__,
        "keras": tf.keras.__version__,
        "cuda": bool(tf.test.is_built_with_cuda()),
        "gpus": len(tf.config.list_physical_devices("GPU")),
    }


def _lightning() -> Facts:
    import lightning

    return {"version": lightning.__version__}


def _comet_ml() -> Facts:
    import comet_ml  # noqa: F401

    return {"version": version("comet-ml")}


PROBES: Mapping[str, Callable[[], Facts]] = {
    "torch": _torch,
    "horovod.torch": _horovod_torch,
    "horovod.tensorflow": _horovod_tensorflow,
    "deepspeed": _deepspeed,
    "tensorflow": _tensorflow,
    "lightning": _lightning,
    "comet_ml": _comet_ml,
}


def main() -> None:
    """Print the facts of the engine named on the command line, or the error of its import, on the last line."""
    try:
        found = dict(PROBES[sys.argv[1]]())
    except BaseException as error:
        text = " ".join(str(error).split()) or "no message"
        found = {"error": f"{type(error).__name__}: {text}"}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
