#!/usr/bin/env python3
"""GPT-2 in PyTorch on a GPU, eager or compiled: whole training steps on random ids.

    torch_gpt2.py --size 355M --micro-batch 16 --compile model
    torch_gpt2.py --size 355M --micro-batch 2 --sequence 128 --accumulation 4 --precision fp16

As fast as plain PyTorch goes: autocast, fused attention, fused AdamW, the vocabulary padded to a multiple of 64, no wait for the device
within a step. `--compile block` compiles one block and uses it for all, which starts sooner; `--graphs` replays CUDA graphs.
A step is forward, backward, clipping and AdamW. Prints one JSON object.
"""

import contextlib

import torch

import job
from gpt2 import Gpt2, adamw

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def compiled(model, args):
    mode = "reduce-overhead" if args.graphs else None
    if args.compile == "model":
        return torch.compile(model, mode=mode)
    if args.compile == "block":
        for block in model.blocks:
            block.compile(mode=mode)
        model.head = torch.compile(model.head, mode=mode)
    return model


def main():
    args = job.parser(__doc__)
    args.add_argument("--compile", choices=["none", "block", "model"], default="none")
    args.add_argument("--graphs", action="store_true", help="with --compile: replay CUDA graphs")
    args.add_argument("--vocab", type=int, default=job.PADDED_VOCAB)
    args = args.parse_args()
    job.name_compile_cache()
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("highest" if args.precision == "fp32" else "high")
    layers, heads, width = job.SIZES[args.size]
    context = max(job.CONTEXT, args.sequence)
    with torch.device(args.device):
        model = Gpt2(layers, heads, width, args.vocab, context)
    optimizer = adamw(model, job.LR, job.BETAS, job.WEIGHT_DECAY)
    forward = compiled(model, args)
    half = TYPES.get(args.precision)
    autocast = torch.autocast(args.device, half) if half else contextlib.nullcontext()
    scaler = torch.amp.GradScaler(args.device, enabled=args.precision == "fp16")
    source = job.batches(args)

    def step():
        total = 0.0
        for _ in range(args.accumulation):
            tokens, targets = next(source)
            with autocast:
                loss = forward(tokens, targets) / args.accumulation
            scaler.scale(loss).backward()
            total = total + loss.detach()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), job.CLIP)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return total

    name = "torch eager" if args.compile == "none" else f"torch.compile {args.compile}"
    job.run(args, name + (", graphs" if args.graphs else ""), step)


if __name__ == "__main__":
    main()
