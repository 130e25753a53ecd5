#!/usr/bin/env python3
"""The peer of examples/shakespeare.dsp: the same text, model and settings in eager PyTorch.

    torch_shakespeare.py                 2000 steps, then the held-out loss
    torch_shakespeare.py --steps 300     speed only

Prints one JSON object. `tokens_per_s` is over the steps from the 50th on, each with its batch, loss, backward pass, clipping and
optimizer. The held-out loss is the mean over the last tenth of the text, in windows of 64 that do not overlap.
"""

import argparse
import json
import math
import pathlib
import time

import torch

from gpt2 import Gpt2, adamw

TEXT = pathlib.Path(__file__).resolve().parents[2] / "examples/data/shakespeare.txt"
LAYERS, HEADS, WIDTH, CONTEXT, BATCH = 4, 4, 128, 64, 12
FULL_STEPS, WARMUP, PEAK, FLOOR = 2000, 100, 1e-3, 1e-4
UNTIMED = 50


def lr_at(step):
    if step < WARMUP:
        return PEAK * (step + 1) / (WARMUP + 1)
    x = (step - WARMUP) / (FULL_STEPS - WARMUP)
    return FLOOR + (PEAK - FLOOR) * (1 + math.cos(math.pi * min(x, 1.0))) / 2


def windows(ids, starts):
    at = starts[:, None] + torch.arange(CONTEXT + 1)
    both = ids[at]
    return both[:, :-1], both[:, 1:]


@torch.no_grad()
def held_out_loss(model, ids):
    starts = torch.arange(0, len(ids) - CONTEXT - 1, CONTEXT)
    losses = [model(*windows(ids, part)).item() * len(part) for part in starts.split(64)]
    return sum(losses) / len(starts)


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--steps", type=int, default=FULL_STEPS)
    args.add_argument("--threads", type=int, help="as many as cores if left out")
    args.add_argument("--seed", type=int, default=1)
    args = args.parse_args()
    if args.steps <= UNTIMED:
        raise SystemExit(f"--steps must be more than {UNTIMED}: the first are not timed")
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    text = TEXT.read_text(encoding="utf-8")
    id_of = {c: n for n, c in enumerate(sorted(set(text)))}
    ids = torch.tensor([id_of[c] for c in text])
    cut = int(len(ids) * 0.9)
    train, holdout = ids[:cut], ids[cut:]

    model = Gpt2(LAYERS, HEADS, WIDTH, len(id_of), CONTEXT)
    optimizer = adamw(model, PEAK, (0.9, 0.99), 0.1)
    begin = time.perf_counter()
    for step in range(args.steps):
        if step == UNTIMED:
            begin = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step)
        loss = model(*windows(train, torch.randint(len(train) - CONTEXT - 1, (BATCH,))))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    seconds = time.perf_counter() - begin
    result = dict(
        peer=f"torch {torch.__version__}",
        threads=torch.get_num_threads(),
        steps=args.steps,
        tokens_per_s=round((args.steps - UNTIMED) * BATCH * CONTEXT / seconds, 1),
        train_loss=round(loss.item(), 4),
    )
    if args.steps >= FULL_STEPS:
        result["held_out_loss"] = round(held_out_loss(model, holdout), 4)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
