"""The contract, for every strategy of ours, and for options that take another path through their engine."""

from farandole.plugins.pytest import Conformance


class TestLocal(Conformance):
    strategy = "local"
    workers = (1,)


class TestDDP(Conformance):
    strategy = "ddp"


class TestHorovod(Conformance):
    strategy = "horovod"


class TestFSDP(Conformance):
    strategy = "fsdp"


class TestFSDPBlocks(Conformance):
    """Blocks are gathered by themselves, and stay so until backward has passed them."""

    strategy = "fsdp"
    options = {"wrap": 1, "reshard_after_forward": False}
    workers = (2,)
    dtypes = ("float64",)
    faults = False


class TestDDPStaticGraph(Conformance):
    """A static graph forbids steps that use other parameters, and synchronizes once in the first step."""

    strategy = "ddp"
    options = {"static_graph": True, "gradient_as_bucket_view": False, "bucket_cap_mb": 0.001}
    workers = (2,)
    dtypes = ("float64",)
    faults = False
    excluded = {
        "parameter_used_by_some_workers_gets_the_mean": "a static graph promises that workers use the same",
        "parameters_of_some_steps_are_updated_in_those": "and that all steps do",
    }


class TestDeepSpeedZero1(Conformance):
    strategy = "deepspeed_zero_1"
    workers = (2, 3)
    dtypes = ("float32",)
    faults = False


class TestDeepSpeedZero2(Conformance):
    strategy = "deepspeed_zero_2"
    workers = (2, 3)
    dtypes = ("float32",)
    faults = False


class TestDeepSpeedZero3(Conformance):
    strategy = "deepspeed_zero_3"
    dtypes = ("float32",)


class TestDeepSpeedZero2Offload(Conformance):
    strategy = "deepspeed_zero_2_offload"
    workers = (2,)
    dtypes = ("float32",)
    faults = False


class TestDeepSpeedZero3Offload(Conformance):
    strategy = "deepspeed_zero_3_offload"
    workers = (2,)
    dtypes = ("float32",)
    faults = False


class TestTensorFlowLocal(Conformance):
    strategy = "tf_local"
    workers = (1,)
    faults = False


class TestTensorFlowMultiWorker(Conformance):
    strategy = "tf_multiworker"


class TestTensorFlowHorovod(Conformance):
    strategy = "tf_horovod"
    workers = (2, 3)
    dtypes = ("float64",)
