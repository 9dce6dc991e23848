"""Faults to put into a copy of the tree: with each, the default size of the suite must fail."""

from __future__ import annotations

from dataclasses import dataclass

STRATEGIES = "tests/conformance/test_strategies.py"


@dataclass(frozen=True)
class Mutant:
    """One fault.

    file: relative to the root.
    old: text that stands in it once; `new` comes in its place.
    tests: pytest's arguments for the tests of the default size that are run first.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _conformance(name: str, tests: str) -> tuple[str, ...]:
    return (STRATEGIES, "-k", f"{name} and ({tests})")


MUTANTS = (
    # Data: which samples, in which order.
    Mutant(
        "epochs_in_one_order",
        "adapters/order.py",
        "SeedSequence([seed, epoch])",
        "SeedSequence([seed, 0])",
        ("tests/unit/test_order.py",),
    ),
    Mutant(
        "shares_leave_out_the_rest",
        "adapters/order.py",
        "return slice(start, start + size + (number < extra))",
        "return slice(start, start + size)",
        ("tests/unit/test_order.py",),
    ),
    Mutant(
        "placeholder_counts",
        "adapters/order.py",
        "MicroBatch(indices or placeholder, len(indices))",
        "MicroBatch(indices or placeholder, len(indices or placeholder))",
        ("tests/unit/test_order.py",),
    ),
    Mutant(
        "epoch_begins_late",
        "adapters/order.py",
        "Progress(epoch + 1, 0, loop=loop)",
        "Progress(epoch + 1, 1, loop=loop)",
        ("tests/unit/test_order.py",),
    ),
    Mutant(
        "samples_are_seeded_by_place",
        "adapters/torch/data.py",
        "seed_draws(self._seed, epoch, index)",
        "seed_draws(self._seed, epoch, len(samples))",
        _conformance("TestDDP", "samples"),
    ),
    # The step.
    Mutant(
        "uneven_shares_count_alike",
        "adapters/weighting.py",
        "return weight * world_size / total",
        "return 1.0 if weight else 0.0",
        _conformance("TestDDP", "test_curve"),
    ),
    Mutant(
        "a_completed_call_begins_again",
        "adapters/batches.py",
        "if loop < self._loaded.loop:",
        "if loop < 0:",
        ("tests/unit/test_position.py",),
    ),
    Mutant(
        "a_placeholder_is_evaluated",
        "adapters/evaluation.py",
        "        if count:\n",
        "        count = count or 1\n        if count:\n",
        _conformance("TestDDP", "evaluation_is"),
    ),
    Mutant(
        "fsdp_measures_its_own_shard",
        "adapters/torch/engines/fsdp/engine.py",
        "norm.full_tensor() if isinstance(norm, DTensor) else norm",
        "norm.to_local() if isinstance(norm, DTensor) else norm",
        _conformance("TestFSDP", "accumulate_4"),
    ),
    Mutant(
        "loss_of_the_last_micro_batch",
        "adapters/torch/training.py",
        "total = weighted if total is None else total + weighted",
        "total = weighted",
        _conformance("TestLocal", "test_curve"),
    ),
    Mutant(
        "clips_before_reducing",
        "adapters/torch/training.py",
        """\
            with engine.waiting():
                engine.reduce_gradients()
            if placeholder_not_finite:
                check_placeholder_gradients(engine)
            if clip_norm is not None:
                engine.clip_grad_norm(clip_norm)
            elif self._options.grad_norm:
                engine.measure_grad_norm()
""",
        """\
            if clip_norm is not None:
                engine.clip_grad_norm(clip_norm)
            elif self._options.grad_norm:
                engine.measure_grad_norm()
            with engine.waiting():
                engine.reduce_gradients()
            if placeholder_not_finite:
                check_placeholder_gradients(engine)
""",
        _conformance("TestHorovod", "clip or tokens"),
    ),
    Mutant(
        "steps_are_not_seeded",
        "adapters/torch/training.py",
        "    torch.default_generator.manual_seed(seed)\n",
        "",
        _conformance("TestLocal", "dropout"),
    ),
    Mutant(
        "integers_of_32_bits",
        "adapters/torch/strategy.py",
        "    return torch.int64\n",
        "    return torch.int32\n",
        _conformance("TestDDP", "collectives"),
    ),
    # One path of each engine.
    Mutant(
        "ddp_reduces_each_micro_batch",
        "adapters/torch/engines/ddp.py",
        "return self.module.no_sync()",
        "return contextlib.nullcontext()",
        _conformance("TestDDP", "accumulation"),
    ),
    Mutant(
        "side_models_take_gradients",
        "adapters/torch/side_models.py",
        "            parameter.requires_grad_(False)\n",
        "            pass\n",
        _conformance("TestHorovod", "another_training"),
    ),
    Mutant(
        "who_runs_a_model_alone_is_not_told",
        "adapters/torch/forward_passes.py",
        "                self._count += 1\n",
        "",
        ("tests/unit/test_forward_passes.py",),
    ),
    Mutant(
        "broadcast_is_from_rank_0",
        "adapters/torch/process_group.py",
        "src=root",
        "src=0",
        _conformance("TestDDP", "collectives"),
    ),
    Mutant(
        "horovod_updates_what_nobody_used",
        "adapters/torch/engines/horovod.py",
        "                if count == 0:\n",
        "                if count < 0:\n",
        _conformance("TestHorovod", "parameter"),
    ),
    Mutant(
        "horovod_does_not_wait",
        "adapters/torch/engines/horovod.py",
        "def _barrier(self) -> None:\n        hvd.barrier()",
        "def _barrier(self) -> None:\n        return",
        _conformance("TestHorovod", "barrier"),
    ),
    Mutant(
        "fsdp_updates_what_nobody_used",
        "adapters/torch/engines/fsdp/engine.py",
        "                if count == 0:\n",
        "                if count < 0:\n",
        _conformance("TestFSDP", "parameter"),
    ),
    Mutant(
        "fsdp_shards_begin_at_0",
        "adapters/torch/engines/fsdp/engine.py",
        "start = first_row(parameter) * parameter.shape[1:].numel()",
        "start = 0",
        _conformance("TestFSDP", "resumed or damaged"),
    ),
    Mutant(
        "zero_1_uses_all",
        "adapters/torch/engines/deepspeed/engine.py",
        "                if count > 0:\n                    self._used.add(parameter)",
        "                self._used.add(parameter)",
        _conformance("TestDeepSpeedZero1", "parameter"),
    ),
    Mutant(
        "zero_2_shards_begin_at_0",
        "adapters/torch/engines/deepspeed/stages.py",
        "Fragment.within(found.in_parameter.start, partition,",
        "Fragment.within(0, partition,",
        _conformance("TestDeepSpeedZero2", "resumed or damaged"),
    ),
    Mutant(
        "zero_3_keeps_old_gradients",
        "adapters/torch/engines/deepspeed/stages.py",
        "self._zero.gradient_partitions[self._zero.number_of(parameter)].zero_()",
        "pass",
        _conformance("TestDeepSpeedZero3", "parameter"),
    ),
    Mutant(
        "tf_losses_are_not_weighed",
        "adapters/tensorflow/step.py",
        "scaled = self._optimizer.scale_loss(weigh(loss, fraction))",
        "scaled = self._optimizer.scale_loss(loss)",
        _conformance("TestTensorFlowMultiWorker", "test_curve"),
    ),
    Mutant(
        "tf_does_not_clip",
        "adapters/tensorflow/step.py",
        "reduced, _ = tf.clip_by_global_norm(reduced, self._options.clip_norm * scale, use_norm=norm)",
        "pass",
        _conformance("TestTensorFlowHorovod", "test_curve"),
    ),
    # Checkpoints.
    Mutant(
        "checksums_are_not_compared",
        "adapters/checkpoint/contents.py",
        "            if taker == number:\n",
        "            if taker < 0:\n",
        _conformance("TestLocal", "damaged"),
    ),
    Mutant(
        "ranges_are_read_from_the_start",
        "adapters/torch/checkpoint/reader.py",
        "self.offset = stored.offset",
        "self.offset = 0",
        ("tests/unit/test_checkpoint_ranges.py", "tests/unit/test_checkpoint_resume.py"),
    ),
    Mutant(
        "later_parameters_are_left_out",
        "adapters/torch/training.py",
        "            self.engine.update_groups()\n",
        "",
        _conformance("later", "Horovod or Zero2"),
    ),
    Mutant(
        "ddp_waits_unseen",
        "adapters/torch/engines/ddp.py",
        "            self.waiting.since(start)\n",
        "            pass\n",
        _conformance("straggler", "TestDDP"),
    ),
    Mutant(
        "ddp_decays_what_nobody_used",
        "adapters/torch/engines/unused_parameters.py",
        "                    self.parameters[number].grad = None\n",
        "                    pass\n",
        _conformance("used_by_some", "TestDDP"),
    ),
    Mutant(
        "ddp_counts_gradients_of_earlier_micro_batches",
        "adapters/torch/engines/unused_parameters.py",
        " and count_changes(gradient) == noted[1]",
        " and False",
        ("tests/conformance/test_ddp.py",),
    ),
    Mutant(
        "horovod_takes_zeros_for_gradients",
        "adapters/torch/engines/horovod.py",
        "parameter.grad is not None and parameter not in zeros",
        "parameter.grad is not None",
        _conformance("different_parameters", "TestHorovod"),
    ),
    Mutant(
        "tf_waits_unseen",
        "adapters/tensorflow/step.py",
        "self._stamp(stamps, reduced)",
        "self._stamp(stamps, used)",
        _conformance("straggler", "TestTensorFlowHorovod"),
    ),
    Mutant(
        "other_batches_are_taken",
        "adapters/order.py",
        "start.global_batch_size not in (0, self.global_batch_size)",
        "start.global_batch_size < 0",
        ("tests/unit/test_position.py",),
    ),
    Mutant(
        "the_clock_decides",
        "adapters/checkpoint/folder.py",
        "return (self.manifest.attempt, self.manifest.progress), self.begun",
        "return (0, Progress()), self.begun",
        ("tests/unit/test_checkpoint_series.py",),
    ),
    # Frontends.
    Mutant(
        "lightning_losses_are_not_weighed",
        "plugins/lightning/reducing.py",
        "return weigh(loss, weight, total, self.world_size)",
        "return loss",
        ("tests/conformance/test_lightning.py", "-k", "horovod"),
    ),
    Mutant(
        "lightning_trains_on_rank_0s_share",
        "plugins/lightning/plans.py",
        "yield [batch[slice_of(len(batch), rank, self._world_size)] for rank",
        "yield [batch[slice_of(len(batch), 0, self._world_size)] for rank",
        ("tests/lightning/test_shares.py",),
    ),
    Mutant(
        "fabric_losses_count_whole",
        "plugins/lightning/fabric/data.py",
        "        return weight, total\n",
        "        return total, total\n",
        ("tests/lightning/test_fabric.py", "-k", "trains_as_one_device and horovod"),
    ),
    Mutant(
        "keras_losses_are_not_weighed",
        "plugins/keras/optimizer.py",
        "return weigh(stock_scale(loss), fraction)",
        "return stock_scale(loss)",
        ("tests/plugins/test_keras.py", "-k", "fit_is_that and tf_horovod"),
    ),
    Mutant(
        "keras_metrics_forget",
        "plugins/keras/metrics.py",
        "variable.assign(before + tf.cast(more, before.dtype))",
        "variable.assign(tf.cast(more, before.dtype))",
        ("tests/plugins/test_keras.py", "-k", "fit_is_that and tf_horovod"),
    ),
    Mutant(
        "whoever_comes_first_is_all",
        "adapters/torch/meeting.py",
        "self._store.add(came, 1) == self._worker.world_size",
        "self._store.add(came, 1) >= 1",
        ("tests/unit/test_meeting.py",),
    ),
    # Launchers.
    Mutant(
        "one_worker_too_few",
        "adapters/launch/torchrun.py",
        '"--nproc-per-node", str(job.workers), ',
        '"--nproc-per-node", str(max(1, job.workers - 1)), ',
        ("tests/unit/test_launch_command.py",),
    ),
    Mutant(
        "nodes_are_counted_by_local_rank",
        "adapters/launch/variables.py",
        "node_rank = rank // max(1, local_world_size)",
        "node_rank = local_rank",
        ("tests/unit/test_launchers.py",),
    ),
)
