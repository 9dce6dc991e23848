"""Train a model of Hugging Face, built from its config, as a user would; `asked.json` in the folder says which one.

Nothing is downloaded. `transformers` is imported where a model is built: the names of the cases are read without it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from farandole.adapters import OptionError, Strategy
from farandole.plugins.conformance.curves import Curve, write_curve

SAMPLES, GLOBAL_BATCH, EPOCHS = 32, 7, 10  # 50 steps; shares are uneven, and the last one of an epoch is shorter
TOKENS, LENGTH, CLASSES, IGNORED = 64, 12, 4, -100

Batch = dict[str, torch.Tensor]


def gpt2() -> nn.Module:
    """Return a model whose output layer is its embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": TOKENS, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
    config = GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config)


def bert() -> nn.Module:
    """Return a model with a pooler that the loss does not use."""
    from transformers import BertConfig, BertForPreTraining

    sizes = {"vocab_size": TOKENS, "max_position_embeddings": 16, "hidden_size": 32, "intermediate_size": 64}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForPreTraining(BertConfig(**sizes, **layers, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))


def t5() -> nn.Module:
    """Return a model whose encoder, decoder and output layer share one embedding."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": TOKENS, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(
        T5Config(**sizes, feed_forward_proj="gated-gelu", dropout_rate=0.0, decoder_start_token_id=0)
    )


def vit() -> nn.Module:
    """Return a classifier of images made of attention."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"image_size": 16, "patch_size": 4, "hidden_size": 32, "intermediate_size": 64, "num_labels": CLASSES}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2}
    return ViTForImageClassification(
        ViTConfig(**sizes, **layers, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    )


def resnet() -> nn.Module:
    """Return a classifier of images made of convolutions, with BatchNorm.

    ReLU and max pooling amplify rounding: with them, one process that accumulates four micro-batches differs by 7e-4.
    """
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": CLASSES}
    model = ResNetForImageClassification(ResNetConfig(**sizes, layer_type="basic", hidden_act="gelu"))
    replace(model, nn.ReLU, lambda _: nn.GELU())  # `hidden_act` does not reach all of them
    replace(model, nn.MaxPool2d, lambda pool: nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding))
    return model


def resnet_with_group_norm() -> nn.Module:
    """Return one whose loss of a sample depends on no other sample."""
    model = resnet()
    replace(model, nn.BatchNorm2d, lambda norm: nn.GroupNorm(4, norm.num_features))
    return model


def replace(model: nn.Module, kind: type[nn.Module], by: Callable[[Any], nn.Module]) -> None:
    """Replace all modules of a kind."""
    for name, module in list(model.named_modules()):
        if isinstance(module, kind):
            model.set_submodule(name, by(module))


def resnet_with_frozen_statistics() -> nn.Module:
    """Return one that normalizes by what it was given, as fine-tuning does."""
    model = resnet()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def text() -> Batch:
    """Return sequences that are to be predicted."""
    tokens = torch.randint(1, TOKENS, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(7))
    return {"input_ids": tokens, "labels": tokens.clone()}


def text_after_prompts() -> Batch:
    """Return sequences of which only an end is to be predicted, of a few samples nothing."""
    data = text()
    prompts = torch.randint(0, LENGTH, (SAMPLES, 1), generator=torch.Generator().manual_seed(8))
    prompts[: SAMPLES // 4] = LENGTH
    data["labels"][torch.arange(LENGTH) < prompts] = IGNORED
    return data


def masked_text() -> Batch:
    """Return sequences of which what is hidden is to be predicted."""
    data = text_after_prompts()
    return {**data, "input_ids": data["input_ids"].masked_fill(data["labels"] != IGNORED, 0)}


def images() -> Batch:
    """Return noise that is brighter for higher classes."""
    stream = torch.Generator().manual_seed(7)
    classes = torch.randint(0, CLASSES, (SAMPLES,), generator=stream)
    pixels = torch.randn(SAMPLES, 3, 16, 16, generator=stream) + classes[:, None, None, None]
    return {"pixel_values": pixels, "labels": classes}


def own_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the loss that the model computes."""
    loss: torch.Tensor = model(**batch).loss
    return loss


def token_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return BERT's loss of tokens without that of pairs of sentences, which its own has too."""
    logits = model(batch["input_ids"]).prediction_logits
    return functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())


def predicted(batch: Batch) -> torch.Tensor:
    """Return how many tokens a loss is the mean of."""
    return (batch["labels"] != IGNORED).sum()


def predicted_from_the_second(batch: Batch) -> torch.Tensor:
    """Return how many tokens GPT-2's loss is the mean of: it predicts none from nothing."""
    return (batch["labels"][:, 1:] != IGNORED).sum()


@dataclass(frozen=True)
class Case:
    """A model, what it trains on, its loss, and what weighs a micro-batch where samples count differently."""

    build: Callable[[], nn.Module]
    data: Callable[[], Batch]
    loss_fn: Callable[[nn.Module, Batch], torch.Tensor]
    weight: Callable[[Batch], torch.Tensor] | None = None


CASES = {
    "gpt2": Case(gpt2, text, own_loss),
    "gpt2-ignored": Case(gpt2, text_after_prompts, own_loss, predicted_from_the_second),
    "bert": Case(bert, masked_text, token_loss, predicted),
    "t5": Case(t5, text_after_prompts, own_loss, predicted),
    "vit": Case(vit, images, own_loss),
    "resnet-group_norm": Case(resnet_with_group_norm, images, own_loss),
    "resnet-frozen": Case(resnet_with_frozen_statistics, images, own_loss),
    "resnet-batch_norm": Case(resnet, images, own_loss),
}


def built(strategy: Strategy, case: Case, refused: Path) -> nn.Module:
    """Return the model, built inside `scope()`, or before it if the strategy refuses that, as `refused` then says."""
    torch.manual_seed(0)
    try:
        with strategy.scope():
            return case.build()
    except OptionError as error:
        refused.write_text(str(error))
    torch.manual_seed(0)
    return case.build()


def main(strategy: Strategy, folder: Path) -> None:
    """Train, and write down the curve."""
    from transformers import get_linear_schedule_with_warmup

    asked = json.loads((folder / "asked.json").read_text())
    case = CASES[asked["case"]]
    model = built(strategy, case, folder / f"refused-{strategy.worker.rank}.txt")
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        (kept if name.endswith("bias") or "norm" in name.lower() else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    # Without a warm-up, rounding alone makes T5's losses differ by 2e-5 in one process.
    scheduler = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=5, num_training_steps=100)
    training = strategy.prepare(
        model, optimizer, case.loss_fn, scheduler, accumulate=asked["accumulate"], clip_norm=1.0
    )
    losses, norms = [], []
    for batch in training.batches(case.data(), GLOBAL_BATCH, epochs=EPOCHS, weight=case.weight):
        losses.append(float(training.step(batch)))
        norms.append(float(training.grad_norm))
    weights = {name: weight.numpy() for name, weight in training.weights()}
    if strategy.worker.is_main:
        write_curve(folder / "curve.npz", Curve(tuple(losses), weights, tuple(norms)))
