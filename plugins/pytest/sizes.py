"""Which curves and checks the default size of the suite runs; the others belong to the whole product."""

from __future__ import annotations

from collections.abc import Sequence

from ..conformance.variants import VARIANTS

MIXED = "tokens"
"""The variant that combines most of the others: empty shares, weighted samples, clipping."""

_OF_OPTIONS = frozenset({"adamw", "unused_parameter"})
"""Variants whose step an engine's options may change, beside `MIXED`."""

_IN_FEW = frozenset({"sgd_momentum", "adamw", "schedule", "unused_parameter", "empty_share"})
_IN_MANY = frozenset({"accumulate_4", "clip", "empty_share", MIXED})

_EVERYWHERE = frozenset({"collectives_do_what_they_say", "samples_do_not_depend_on_the_worker"})
_WHERE_NOTHING_DIVIDES = frozenset(
    {
        "damaged_files_are_refused_by_all",
        "data_resumes_where_it_stopped",
        "every_sample_comes_once",
        "full_disk_of_one_worker_fails_the_save_of_all",
        "micro_batches_may_use_different_parameters",
        "parameter_used_by_some_workers_gets_the_mean",
        "replicas_stay_equal_to_the_bit",
        "resumed_run_is_the_same_run",
        "placeholder_leaves_no_trace",
        "workers_start_from_rank_0",
    }
)
"""Checks that find more with three workers than with two."""

OF_THE_STEP = frozenset(
    {
        "a_budget_is_kept_with_one_plan",
        "a_reentrant_checkpoint_trains",
        "accumulation_reduces_once_a_step",
        "gradient_checkpointing_changes_nothing",
        "learning_rate_is_the_users",
        "micro_batches_may_use_different_parameters",
        "parameter_used_by_some_workers_gets_the_mean",
        "parameters_of_some_steps_are_updated_in_those",
        "replicas_stay_equal_to_the_bit",
        "resumed_run_is_the_same_run",
        "placeholder_leaves_no_trace",
        "waiting_for_a_straggler_is_seen",
        "workers_start_from_rank_0",
    }
)
"""Checks whose result an engine's options may change."""


def asks_curve(
    workers: Sequence[int], dtypes: Sequence[str], world_size: int, variant: str, dtype: str, varies: bool = False
) -> bool:
    """Whether the default size trains a variant: each with the smallest number of several workers, or the largest.

    The widest type has the narrowest bound; one variant tries the other type. If the class `varies` the options of an
    engine that another class tests, only some variants are trained.
    """
    assert variant in VARIANTS
    few, many = _few_and_many(workers)
    if varies:
        asked = (variant in _OF_OPTIONS and world_size == few) or (variant == MIXED and world_size == many)
        return asked and dtype == _widest(dtypes)
    if dtype != _widest(dtypes):
        return world_size == few and variant == MIXED
    if world_size not in (few, many):
        return variant == MIXED
    return few == many or variant in (_IN_FEW if world_size == few else _IN_MANY)


def asks_check(workers: Sequence[int], world_size: int, check: str) -> bool:
    """Whether the default size runs a check with this number of workers: some with any number, the others once."""
    few, many = _few_and_many(workers)
    return check in _EVERYWHERE or world_size == (many if check in _WHERE_NOTHING_DIVIDES else few)


def _few_and_many(workers: Sequence[int]) -> tuple[int, int]:
    several = [number for number in workers if number > 1] or list(workers)
    return min(several), max(several)


def _widest(dtypes: Sequence[str]) -> str:
    return max(dtypes)  # "float64" after "float32"
