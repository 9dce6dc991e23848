"""The contract, for each of our strategies, and for options with another path through their engine.

Workers that are killed in the midst of things have tests of their own for most of them: test_lost_worker.py.
"""

from farandole.plugins.pytest import Conformance

KEPT_BY_STAGE_3 = {
    "a_dropped_training_is_freed": "DeepSpeed's FWD_MODULE_STACK and its cache of PartitionedParameterCoordinator's "
    "parameters to release keep modules until the strategy is left"
}


class TestLocal(Conformance):
    strategy = "local"
    faults = (("forward", "raise"), ("save", "kill"))
    workers = (1,)


class TestDDP(Conformance):
    strategy = "ddp"
    faults = (("collective", "raise"),)


class TestHorovod(Conformance):
    strategy = "horovod"
    faults = (("save", "raise"),)


class TestFSDP(Conformance):
    strategy = "fsdp"
    faults = (("forward", "raise"), ("collective", "kill"))


class TestFSDPBlocks(Conformance):
    """Blocks are gathered one by one, and stay gathered until backward has passed them."""

    strategy = "fsdp"
    varies = True
    options = {"wrap": 1, "reshard_after_forward": False}
    workers = (2,)
    dtypes = ("float64",)
    faults = ()
    excluded = {
        "a_budget_is_kept_with_one_plan": "layers inside of a block are wrapped: one block more was counted",
    }


class TestDDPStaticGraph(Conformance):
    """A static graph forbids steps that use other parameters, and synchronizes once in the first step."""

    strategy = "ddp"
    varies = True
    options = {"static_graph": True, "gradient_as_bucket_view": False, "bucket_cap_mb": 0.001}
    workers = (2,)
    dtypes = ("float64",)
    faults = ()
    excluded = {
        "parameter_used_by_some_workers_gets_the_mean": "a static graph promises that workers use the same",
        "parameters_of_some_steps_are_updated_in_those": "and that all steps do",
        "micro_batches_may_use_different_parameters": "and all micro-batches",
    }


class TestDeepSpeedZero1(Conformance):
    strategy = "deepspeed_zero_1"
    varies = True
    workers = (2, 3)
    dtypes = ("float32",)
    faults = ()


class TestDeepSpeedZero2(Conformance):
    strategy = "deepspeed_zero_2"
    workers = (2, 3)
    dtypes = ("float32",)
    faults = ()


class TestDeepSpeedZero3(Conformance):
    strategy = "deepspeed_zero_3"
    faults = (("load", "raise"), ("save", "kill"))
    dtypes = ("float32",)
    excluded = KEPT_BY_STAGE_3


# Buckets smaller than these models: backward fills several, and some parameters are larger than one.
SMALL_BUCKETS = {"config": {"zero_optimization": {"reduce_bucket_size": 100}}}


class TestDeepSpeedZero2Offload(Conformance):
    strategy = "deepspeed_zero_2_offload"
    varies = True
    options = SMALL_BUCKETS
    workers = (2,)
    dtypes = ("float32",)
    faults = ()


class TestDeepSpeedZero3Offload(Conformance):
    strategy = "deepspeed_zero_3_offload"
    varies = True
    options = SMALL_BUCKETS
    workers = (2,)
    dtypes = ("float32",)
    faults = ()
    excluded = KEPT_BY_STAGE_3


class TestTensorFlowLocal(Conformance):
    strategy = "tf_local"
    workers = (1,)
    faults = ()


class TestTensorFlowMultiWorker(Conformance):
    strategy = "tf_multiworker"
    faults = (("collective", "raise"),)


class TestTensorFlowHorovod(Conformance):
    strategy = "tf_horovod"
    faults = (("load", "raise"),)
    workers = (2, 3)
    dtypes = ("float64",)
