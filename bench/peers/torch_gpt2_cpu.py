#!/usr/bin/env python3
"""GPT-2 124M in eager fp32 PyTorch on the CPU: tokens a second of whole training steps, batch 1 of 256 random ids.

Prints one JSON object. A step is forward, backward, clipping and AdamW; the first two are not timed.
"""

import argparse
import json
import time

import torch

from gpt2 import Gpt2, adamw

BATCH, SEQUENCE, VOCAB = 1, 256, 50257
UNTIMED = 2


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--steps", type=int, default=8)
    args.add_argument("--threads", type=int, help="as many as cores if left out")
    args = args.parse_args()
    if args.steps <= UNTIMED:
        raise SystemExit(f"--steps must be more than {UNTIMED}: the first are not timed")
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    model = Gpt2(layers=12, heads=12, width=768, vocab=VOCAB, context=1024)
    optimizer = adamw(model, 1e-4, (0.9, 0.95), 0.1)
    begin = time.perf_counter()
    for step in range(args.steps):
        if step == UNTIMED:
            begin = time.perf_counter()
        ids = torch.randint(VOCAB, (BATCH, SEQUENCE + 1))
        loss = model(ids[:, :-1], ids[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    seconds = time.perf_counter() - begin
    print(json.dumps(dict(
        peer=f"torch {torch.__version__}",
        threads=torch.get_num_threads(),
        steps=args.steps,
        tokens_per_s=round((args.steps - UNTIMED) * BATCH * SEQUENCE / seconds, 1),
        loss=round(loss.item(), 4),
    )))


if __name__ == "__main__":
    main()
