"""Train a model and write it packed: `python demo/train.py --version 7`.

At first every other step sees the matrices as four bits hold them, the gradient passing over the
rounding. Later both forms run on each batch, and the four-bit predictions are pulled to the
float32 ones.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import unpack
from data import Batch, Conversations, Vocabulary, read_questions
from evaluate import load, report
from formats import LOW_RANK_BITS, held
from language_model import LanguageModel
from torch import Tensor
from torch.func import functional_call
from versions import VERSIONS


def four_bits(model: LanguageModel) -> dict[str, Tensor]:
    """The parameters with matrices rounded, the gradient passing straight through."""
    return {
        name: p + (held(name, p.detach(), 4, LOW_RANK_BITS) - p).detach()
        for name, p in model.named_parameters()
    }


def predict(
    model: LanguageModel, parameters: dict[str, Tensor], batch: Batch
) -> tuple[Tensor, Tensor]:
    logits, penalty = functional_call(model, parameters, (batch.tokens,))
    return model.log_probs(logits), penalty


def cross_entropy(log_probs: Tensor, batch: Batch) -> Tensor:
    loss = -log_probs.gather(-1, batch.targets[..., None])[..., 0]
    return (loss * batch.weights).sum() / batch.weights.sum()


def learning_rate(step: int, steps: int, peak: float) -> float:
    warmup = min(100, steps // 4)
    done = max(0, step - warmup) / (steps - warmup)
    fall = 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2
    return peak * min(1, (step + 1) / warmup) * fall


def train(
    model: LanguageModel, conversations: Conversations, arguments: argparse.Namespace
) -> None:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        fused=True,
    )
    start = time.monotonic()
    shown = 0.0
    for step in range(arguments.steps):
        rate = learning_rate(step, arguments.steps, arguments.rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        # Every fourth batch has fewer and longer conversations.
        length = 2 * arguments.length if step % 4 == 3 else arguments.length
        batch = conversations.batch(arguments.batch * arguments.length // length, length)
        both = step >= arguments.steps * arguments.single
        loss = torch.zeros(())
        if both or step % 2 == 0:
            full, penalty = predict(model, dict(model.named_parameters()), batch)
            loss = loss + cross_entropy(full, batch) + penalty
        if both or step % 2 == 1:
            four, penalty = predict(model, four_bits(model), batch)
            loss = loss + cross_entropy(four, batch) + penalty
        if both:
            goal = full.detach()
            apart = (torch.exp(goal + model.count) * (goal - four)).sum(-1).mean()
            loss = loss / 2 + arguments.pull * apart
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        shown = loss.item() if shown == 0 else 0.98 * shown + 0.02 * loss.item()
        if step % 100 == 99:
            seconds = time.monotonic() - start
            print(f"step {step + 1:5}  loss {shown:.4f}  {seconds:5.0f} s", flush=True)


def save(model: LanguageModel, vocabulary: Vocabulary, path: Path) -> int:
    """Round the model to float16, in place, write it packed, and return the size in bytes."""
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    tensors: unpack.Tensors = {"used_tokens": np.array(vocabulary.ids, np.int32)}
    for name, parameter in model.named_parameters():
        stored, shape = model.stored(name)
        tensors[stored] = parameter.detach().half().numpy().reshape(shape)
    return unpack.pack(tensors, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a model that the repository ships.")
    parser.add_argument("--version", choices=VERSIONS, required=True)
    parser.add_argument("--output", type=Path, help="the repository's own file by default")
    parser.add_argument("--start", type=Path, help="a packed model of the version to go on from")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--size", type=int, default=128, help="hidden size, a multiple of 32")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch", type=int, default=48, help="conversations in a batch")
    parser.add_argument("--length", type=int, default=64, help="tokens of a conversation")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--single", type=float, default=0.6, help="part before both forms run")
    parser.add_argument("--pull", type=float, default=1.0, help="weight of four bits' divergence")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(arguments.seed)
    version = VERSIONS[arguments.version]
    output = arguments.output or version.file
    questions = read_questions(*version.questions)
    vocabulary = Vocabulary(questions, version.styles)
    if arguments.start is None:
        model = version.model(len(vocabulary.ids), arguments.size, arguments.layers)
    else:
        model = load(version, arguments.start)
    count = sum(p.numel() for p in model.parameters())
    print(f"{len(questions)} questions, {len(vocabulary.ids)} used tokens, {count} parameters")
    train(model, Conversations(vocabulary, questions, version.styles, arguments.seed), arguments)
    print(f"{output}: {save(model, vocabulary, output)} bytes")
    report(model, vocabulary, questions, version.styles)


if __name__ == "__main__":
    main()
