"""Train the model and write it packed: `python demo/train.py`.

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
from evaluate import exported_names, report
from formats import rounded
from rwkv4 import Rwkv4
from torch import Tensor
from torch.func import functional_call

FOLDER = Path(__file__).parent


def four_bits(model: Rwkv4) -> dict[str, Tensor]:
    """The parameters with matrices rounded, the gradient passing straight through."""
    return {
        name: p + (rounded(p, 4) - p).detach() if p.ndim == 2 else p
        for name, p in model.named_parameters()
    }


def predict(model: Rwkv4, parameters: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
    logits, excess = functional_call(model, parameters, (batch.tokens,))
    return model.log_probs(logits), excess


def cross_entropy(log_probs: Tensor, batch: Batch) -> Tensor:
    loss = -log_probs.gather(-1, batch.targets[..., None])[..., 0]
    return (loss * batch.weights).sum() / batch.weights.sum()


def learning_rate(step: int, steps: int, peak: float) -> float:
    warmup = 100
    done = max(0, step - warmup) / (steps - warmup)
    fall = 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2
    return peak * min(1, (step + 1) / warmup) * fall


def train(model: Rwkv4, conversations: Conversations, arguments: argparse.Namespace) -> None:
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
            full, excess = predict(model, dict(model.named_parameters()), batch)
            loss = loss + cross_entropy(full, batch) + excess
        if both or step % 2 == 1:
            four, excess = predict(model, four_bits(model), batch)
            loss = loss + cross_entropy(four, batch) + excess
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


def save(model: Rwkv4, vocabulary: Vocabulary, path: Path) -> int:
    """Round the model to float16, in place, write it packed, and return the size in bytes."""
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    names = exported_names(model)
    tensors: unpack.Tensors = {"used_tokens": np.array(vocabulary.ids, np.int32)}
    for name, parameter in model.named_parameters():
        array = parameter.detach().half().numpy()
        if ".time_mix_" in name:
            array = array.reshape(1, 1, -1)
        tensors[names[name]] = array
    return unpack.pack(tensors, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the model that the repository ships.")
    parser.add_argument("--output", type=Path, default=unpack.MODEL)
    parser.add_argument("--questions", type=Path, default=FOLDER / "questions.jsonl")
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
    questions = read_questions(arguments.questions)
    vocabulary = Vocabulary(questions)
    model = Rwkv4(len(vocabulary.ids), arguments.size, arguments.layers)
    count = sum(p.numel() for p in model.parameters())
    print(f"{len(questions)} questions, {len(vocabulary.ids)} used tokens, {count} parameters")
    train(model, Conversations(vocabulary, questions, arguments.seed), arguments)
    print(f"{arguments.output}: {save(model, vocabulary, arguments.output)} bytes")
    report(model, vocabulary, questions)


if __name__ == "__main__":
    main()
