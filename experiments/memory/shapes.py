"""The sizes of the models of `memory`: activations of about 100 MB, and much less of parameters."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Transformer:
    """Predicts the next token: `blocks` of attention and two dense layers, with dropout.

    batch: sequences of `length` tokens in a worker's micro-batch.
    half: compute in bfloat16 by autocast.
    """

    blocks: int
    width: int
    heads: int
    length: int
    batch: int
    vocabulary: int = 256
    half: bool = False


@dataclass(frozen=True)
class Convnet:
    """Classifies images of (size, size, 3): `blocks` of two convolutions, with BatchNorm.

    batch: images in a worker's micro-batch.
    """

    blocks: int
    width: int
    size: int
    batch: int
    classes: int = 10


Shape = Transformer | Convnet

SHAPES: dict[str, Shape] = {
    "transformer": Transformer(blocks=12, width=128, heads=4, length=128, batch=8),  # 2.4 million parameters
    "convnet": Convnet(blocks=16, width=32, size=32, batch=8),  # 0.3 million
    "billion": Transformer(blocks=20, width=2048, heads=16, length=1024, batch=4, half=True),  # needs a GPU
}
DEFAULT = ("transformer", "convnet")
