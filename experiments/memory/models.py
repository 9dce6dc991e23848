"""The models of `memory` and their data, in PyTorch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from .shapes import SHAPES, Convnet, Shape, Transformer

Data = tuple[Tensor, Tensor]


class _Repeated(nn.Module):
    """A model with repeated blocks between a stem and a head; `native` checkpoints them as PyTorch's manual says."""

    def __init__(self, stem: nn.Module, blocks: list[nn.Module], head: nn.Module, native: bool) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.head = head
        self._native = native

    def forward(self, inputs: Tensor) -> Any:
        hidden: Any = self.stem(inputs)
        for block in self.blocks:
            hidden = checkpoint(block, hidden, use_reentrant=False) if self._native else block(hidden)
        return self.head(hidden)


class _TokenStem(nn.Module):
    def __init__(self, shape: Transformer) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Parameter(torch.randn(shape.length, shape.width) / 10)

    def forward(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.tokens(tokens) + self.positions
        return embedded


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(0.1)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        packed = self.attention(self.norm1(hidden)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.dropout(self.output(attended.transpose(1, 2).reshape(batch, length, width)))
        deeper: Tensor = hidden + self.dropout(self.dense(self.norm2(hidden)))
        return deeper


class _ConvnetBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.convolution1, self.convolution2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.convolution1(functional.gelu(self.norm1(hidden)))
        deeper: Tensor = hidden + self.convolution2(functional.gelu(self.norm2(inner)))
        return deeper


def build_model(shape: Shape, native: bool) -> nn.Module:
    """Return the model, with the same weights at each call."""
    torch.manual_seed(0)
    blocks: list[nn.Module]
    if isinstance(shape, Convnet):
        stem = nn.Conv2d(3, shape.width, 3, padding=1, bias=False)
        blocks = [_ConvnetBlock(shape.width) for _ in range(shape.blocks)]
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shape.width, shape.classes))
        return _Repeated(stem, blocks, head, native)
    blocks = [_TransformerBlock(shape.width, shape.heads) for _ in range(shape.blocks)]
    last = nn.Sequential(nn.LayerNorm(shape.width), nn.Linear(shape.width, shape.vocabulary))
    return _Repeated(_TokenStem(shape), blocks, last, native)


def compile_within(model: nn.Module, share: float, backend: str = "inductor") -> None:
    """Compile a model, with PyTorch's own budget for what it saves: from 0, as little as it can, to 1."""
    forward = model.forward

    def within(inputs: Tensor) -> Any:
        with torch.autograd.graph.region_activation_memory_budget(share):
            return forward(inputs)

    model.forward = within
    model.compile(backend=backend)


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Return plain SGD, so that weights show gradients."""
    return torch.optim.SGD(model.parameters(), lr=0.1)


def build_data(shape: Shape, samples: int) -> Data:
    """Return inputs and targets."""
    random = torch.Generator().manual_seed(1)
    if isinstance(shape, Convnet):
        images = torch.randn(samples, 3, shape.size, shape.size, generator=random)
        return images, torch.randint(shape.classes, (samples,), generator=random)
    tokens = torch.randint(shape.vocabulary, (samples, shape.length + 1), generator=random)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def build_loss(model_name: str) -> Callable[[nn.Module, Data], Tensor]:
    """Return the mean cross-entropy of a micro-batch."""
    shape = SHAPES[model_name]
    half = isinstance(shape, Transformer) and shape.half

    def loss_fn(model: nn.Module, batch: Data) -> Tensor:
        inputs, targets = batch
        with torch.autocast(inputs.device.type, torch.bfloat16) if half else contextlib.nullcontext():
            outputs = model(inputs)
        return functional.cross_entropy(outputs.float().flatten(0, -2), targets.flatten())

    return loss_fn
