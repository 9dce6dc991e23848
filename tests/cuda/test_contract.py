"""The contract on one GPU: a worker on NCCL, and two workers that share the GPU on Gloo.

The reference is plain PyTorch on the CPU. Losses and weights keep the bounds that hold there.
"""

from __future__ import annotations

import pytest

from farandole.plugins.launch.installed import package
from farandole.plugins.pytest import Conformance

SHARED = {"device": "cuda:0", "backend": "gloo"}
NOT_SHARED = {
    "a_strategy_is_used_once_and_inside": "it creates a second strategy without options, which wants a GPU each",
    "waiting_for_a_straggler_is_seen": "the stream waits, not the host, so waiting is not timed on a GPU",
}

needs_deepspeed = pytest.mark.skipif(package("deepspeed") is None, reason="DeepSpeed is not installed")


def horovod_has_nccl() -> bool:
    try:
        import horovod.torch as hvd

        return bool(hvd.nccl_built())
    except (ImportError, AttributeError):
        return False


class TestLocal(Conformance):
    strategy = "local"
    options = {"device": "cuda"}
    workers = (1,)
    faults = ()


class TestDDPOnNCCL(Conformance):
    strategy = "ddp"
    options = {"device": "cuda"}
    workers = (1,)
    dtypes = ("float64",)
    faults = ()


class TestDDPShared(Conformance):
    strategy = "ddp"
    options = SHARED
    workers = (2,)
    faults = (("collective", "raise"),)
    excluded = NOT_SHARED


class TestFSDPOnNCCL(Conformance):
    strategy = "fsdp"
    varies = True
    options = {"device": "cuda", "wrap": 1}
    workers = (1,)
    faults = ()


class TestFSDPOffload(Conformance):
    strategy = "fsdp"
    varies = True
    options = {"device": "cuda", "wrap": 1, "offload": True}
    workers = (1,)
    dtypes = ("float64",)
    faults = ()


class TestFSDPShared(Conformance):
    strategy = "fsdp"
    options = {**SHARED, "wrap": 1}
    workers = (2,)
    faults = (("save", "kill"),)
    excluded = NOT_SHARED


@needs_deepspeed
class TestDeepSpeedZero1OnNCCL(Conformance):
    strategy = "deepspeed_zero_1"
    varies = True
    options = {"device": "cuda"}
    workers = (1,)
    dtypes = ("float32",)
    faults = ()


@needs_deepspeed
class TestDeepSpeedZero2Shared(Conformance):
    strategy = "deepspeed_zero_2"
    varies = True
    options = SHARED
    workers = (2,)
    dtypes = ("float32",)
    faults = ()
    excluded = NOT_SHARED


@needs_deepspeed
class TestDeepSpeedZero3Shared(Conformance):
    strategy = "deepspeed_zero_3"
    varies = True
    options = SHARED
    workers = (2,)
    dtypes = ("float32",)
    faults = ()
    excluded = NOT_SHARED


@pytest.mark.skipif(not horovod_has_nccl(), reason="Horovod is not installed, or was built without NCCL")
class TestHorovodOnNCCL(Conformance):
    strategy = "horovod"
    options = {"device": "cuda"}
    workers = (1,)
    dtypes = ("float64",)
    faults = ()
