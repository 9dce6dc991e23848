"""Which layers gradient checkpointing selects."""

from __future__ import annotations

import re
from typing import Any

import pytest

from farandole.adapters import OptionError
from farandole.plugins.gradient_checkpointing.selection import Candidate, kind_of, select


class Block: ...


class Other: ...


def layer(name: str, kind: str, *shapes: int) -> Candidate:
    signature = (kind, shapes) if shapes else ()
    return Candidate(name, kind, signature, name.rpartition(".")[0])


BLOCK = kind_of(Block)
TRANSFORMER = [
    layer("embedding", "Embedding", 10, 4),
    *(
        each
        for number in range(3)
        for each in (
            layer(f"blocks.{number}", BLOCK, 4, 16),
            layer(f"blocks.{number}.mlp", "Sequential", 4, 16),
            layer(f"blocks.{number}.mlp.0", "Linear", 4, 16),
            layer(f"blocks.{number}.mlp.1", "GELU"),
            layer(f"blocks.{number}.mlp.2", "Linear", 4, 16),
        )
    ),
    layer("head", "Linear", 4, 16),
]
BLOCKS = ["blocks.0", "blocks.1", "blocks.2"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("blocks", BLOCKS),
        ("blocks.*", BLOCKS),
        ("blocks.1", ["blocks.1"]),
        (["blocks.2", "blocks.0*", "head"], ["blocks.0", "blocks.2", "head"]),
        ("*.mlp", [f"{block}.mlp" for block in BLOCKS]),
        (Block, BLOCKS),
        ([Block, "embedding"], ["embedding", *BLOCKS]),
        (lambda candidate: candidate.kind == "GELU", [f"{block}.mlp.1" for block in BLOCKS]),
    ],
)
def test_layers_are_selected(layers: Any, expected: list[str]) -> None:
    assert select(layers, TRANSFORMER) == expected


def test_a_stages_first_block_is_a_block_though_its_shape_differs() -> None:
    """As in a ResNet, whose stages are no blocks, and whose second stage repeats no shape."""
    resnet = [
        layer("stem", "Conv", 3),
        layer("stages.0", "Sequential", 8, 8),
        layer("stages.0.0", "Basic", 8),
        layer("stages.0.0.conv", "Conv", 8),
        layer("stages.0.1", "Basic", 8),
        layer("stages.0.1.conv", "Conv", 8),
        layer("stages.1", "Sequential", 16, 16, 1),
        layer("stages.1.0", "Basic", 16, 1),
        layer("stages.1.0.conv", "Conv", 16),
        layer("stages.1.0.shortcut", "Conv", 1),
        layer("stages.1.1", "Basic", 16),
        layer("stages.1.1.conv", "Conv", 16),
    ]
    assert select("blocks", resnet) == ["stages.0.0", "stages.0.1", "stages.1.0", "stages.1.1"]


def test_of_single_layers_only_the_repeated_ones_are_blocks() -> None:
    flat = [
        layer("0", "Linear", 2, 8),
        layer("1", "GELU"),
        layer("2", "Linear", 8, 8),
        layer("3", "GELU"),
        layer("4", "Linear", 8, 8),
    ]
    assert select("blocks", flat) == ["2", "4"]


def test_a_container_around_blocks_of_its_own_class_is_no_block() -> None:
    nested = [
        layer("features", "Sequential", 1, 1, 5),
        *(layer(f"features.{number}", "Sequential", 1) for number in range(2)),
        *(layer(f"features.{number}.0", "Conv", 1) for number in range(2)),
        layer("features.2", "Sequential", 5),
        layer("features.2.0", "Conv", 5),
    ]
    assert select("blocks", nested) == ["features.0", "features.1", "features.2"]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("blocs.1", "layers='blocs.1' matches no layer. Did you mean 'blocks.1'?"),
        (["head", "xyz*"], "layers='xyz*' matches no layer. There are: embedding, blocks.0, blocks.0.mlp, blocks.0"),
        (Other, f"no layer of the model is a {kind_of(Other)}. There are: Embedding, Block, Sequential, Linear, GELU"),
        (lambda candidate: False, "selects none of the model's layers"),
        ([], "layers is empty"),
        (3, "not a int: 3"),
    ],
)
def test_what_selects_nothing_is_refused(layers: Any, message: str) -> None:
    with pytest.raises(OptionError, match=re.escape(message)):
        select(layers, TRANSFORMER)


def test_a_model_without_repeated_blocks_is_told_what_to_write() -> None:
    single = [layer("first", "Linear", 2, 3), layer("gelu", "GELU"), layer("gelu2", "GELU"), layer("last", "Linear", 3)]
    with pytest.raises(OptionError, match=r"no repeated blocks .* for example layers=\['first', 'gelu'\]"):
        select("blocks", single)
