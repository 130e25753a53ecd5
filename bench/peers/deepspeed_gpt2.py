#!/usr/bin/env python3
"""GPT-2 from Hugging Face's transformers under DeepSpeed's ZeRO stage 2 on one GPU: whole training steps on random ids.

    deepspeed_gpt2.py --size 355M --precision fp16 --micro-batch 2 --sequence 128 --accumulation 4

The settings are what DeepSpeed's users write; dropout is off, so that the work is the same as everyone's. The optimizer is PyTorch's fused
AdamW; `--fused-adam` takes DeepSpeed's own, whose kernel is compiled on the spot and needs nvcc. Prints one JSON object.
"""

import os

import torch

import job


def settings(args):
    """DeepSpeed's configuration."""
    precision = {"enabled": True}
    if args.precision == "fp16":
        precision |= dict(loss_scale=0, initial_scale_power=16, loss_scale_window=100, hysteresis=2, min_loss_scale=1)
    config = dict(
        train_micro_batch_size_per_gpu=args.micro_batch,
        gradient_accumulation_steps=args.accumulation,
        gradient_clipping=job.CLIP,
        steps_per_print=1 << 30,
        zero_optimization=dict(
            stage=2,
            overlap_comm=True,
            contiguous_gradients=True,
            reduce_bucket_size=200_000_000,
            allgather_bucket_size=200_000_000,
        ),
        zero_allow_untested_optimizer=True,
    )
    if args.precision in ("bf16", "fp16"):
        config[args.precision] = precision
    return config


def optimizer_of(model, own):
    """The optimizer, and what it is called."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [dict(params=matrices, weight_decay=job.WEIGHT_DECAY), dict(params=vectors, weight_decay=0.0)]
    if own:
        from deepspeed.ops.adam import FusedAdam

        return FusedAdam(groups, lr=job.LR, betas=job.BETAS), "FusedAdam"
    return torch.optim.AdamW(groups, lr=job.LR, betas=job.BETAS, fused=True), "torch AdamW fused"


def main():
    args = job.parser(__doc__)
    args.add_argument("--fused-adam", action="store_true", help="DeepSpeed's own optimizer")
    args = args.parse_args()
    for name, value in dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=1, MASTER_ADDR="127.0.0.1", MASTER_PORT=29511).items():
        os.environ.setdefault(name, str(value))
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ".".join(map(str, torch.cuda.get_device_capability())))
    import deepspeed
    import transformers

    torch.manual_seed(args.seed)
    layers, heads, width = job.SIZES[args.size]
    with torch.device(args.device):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
            n_layer=layers, n_head=heads, n_embd=width, n_positions=max(job.CONTEXT, args.sequence), vocab_size=job.VOCAB,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, attn_implementation="sdpa",
        ))
    model.train()
    optimizer, kind = optimizer_of(model, args.fused_adam)
    engine, _, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings(args))
    source = job.batches(args)

    def step():
        total = 0.0
        for _ in range(args.accumulation):
            tokens, targets = next(source)
            logits = engine(input_ids=tokens).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
            engine.backward(loss)
            engine.step()
            total = total + loss.detach() / args.accumulation
        return total

    job.run(args, f"DeepSpeed {deepspeed.__version__} ZeRO-2", step, optimizer=kind, transformers=transformers.__version__)


if __name__ == "__main__":
    main()
