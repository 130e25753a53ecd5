#!/usr/bin/env python3
"""The losses of a dspc run as PyTorch computes them: the same initial weights, the same batches, the same settings.

    dspc run SPEC.dsp --max-steps 0 --out RUN        # writes RUN/checkpoint-0, the initial weights
    torch_losses.py RUN/checkpoint-0 --tokens CACHE --precision fp32 again bf16

CACHE is the folder where dspc keeps token files. Prints one JSON object: the loss of each step, before its update, in each precision
asked for (fp32 throughout, `again` once more; bf16 and fp16 as autocast gives them). The spec's learning rate must be constant.
"""

import argparse
import contextlib
import json
import pathlib

import torch
from safetensors.torch import load_file

import job
from gpt2 import Gpt2, adamw
from samples import Samples, read_tokens

# Our module's name, Hugging Face's name; the linear weights of the latter are [in, out].
BLOCK = [("ln_1", "ln_1"), ("ln_2", "ln_2"), ("qkv", "attn.c_attn"), ("out", "attn.c_proj"), ("up", "mlp.c_fc"), ("down", "mlp.c_proj")]


def load(model, path):
    """Weights in Hugging Face's format into our model."""
    held = {name.removeprefix("transformer."): value.float() for name, value in load_file(path).items()}
    state = {"wte.weight": held["wte.weight"], "wpe.weight": held["wpe.weight"]}
    state |= {f"ln_f.{kind}": held[f"ln_f.{kind}"] for kind in ("weight", "bias")}
    for layer in range(len(model.blocks)):
        for ours, theirs in BLOCK:
            weight = held[f"h.{layer}.{theirs}.weight"]
            state[f"blocks.{layer}.{ours}.weight"] = weight if ours.startswith("ln") else weight.T
            state[f"blocks.{layer}.{ours}.bias"] = held[f"h.{layer}.{theirs}.bias"]
    model.load_state_dict(state)


def losses(args, program, weights, samples, precision):
    training = program["training"]
    config = json.loads((args.checkpoint / "config.json").read_text())
    layers, heads, width, context = (config[name] for name in ("n_layer", "n_head", "n_embd", "n_positions"))
    with torch.device(args.device):
        model = Gpt2(layers, heads, width, program["data"]["vocab"], context)
    load(model, weights)
    optimizer = adamw(model, training["schedule"]["constant"]["lr"], job.BETAS, job.WEIGHT_DECAY)
    half = dict(bf16=torch.bfloat16, fp16=torch.float16).get(precision)
    autocast = torch.autocast(args.device, half) if half else contextlib.nullcontext()
    scale = args.loss_scale if precision == "fp16" else 1.0
    micro, accumulation = training["micro_batch"], training["accumulation"]
    out = []
    for step in range(args.steps):
        tokens, targets = (torch.from_numpy(x).to(args.device) for x in samples.batch(step, training["batch"]))
        total = 0.0
        for x, y in zip(tokens.split(micro), targets.split(micro)):
            with autocast:
                loss = model(x, y)
            (loss * (scale / accumulation)).backward()
            total = total + loss.detach() / accumulation
        if scale != 1.0:
            for parameter in model.parameters():
                parameter.grad /= scale
        torch.nn.utils.clip_grad_norm_(model.parameters(), job.CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        out.append(total)
    return [round(float(loss), 6) for loss in out]


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("checkpoint", type=pathlib.Path)
    args.add_argument("--tokens", type=pathlib.Path, required=True, help="folder of dspc's token files")
    args.add_argument("--steps", type=int, default=100)
    args.add_argument("--precision", nargs="+", choices=["fp32", "again", "bf16", "fp16"], default=["fp32"])
    args.add_argument("--loss-scale", type=float, default=4096.0, help="for fp16")
    args.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    args = args.parse_args()
    torch.set_float32_matmul_precision("highest")
    artifact = args.checkpoint / "dspc/program.dspx"
    files = [path for name in ("program.cuda.json", "program.json") if (path := artifact / name).exists()]
    program = json.loads(files[0].read_text())
    state = json.loads((args.checkpoint / "dspc/state.json").read_text())
    if "constant" not in program["training"]["schedule"] or program["training"]["schedule"]["constant"]["warmup"] != 0:
        raise SystemExit("the learning rate must be constant, without warm-up")
    ids = read_tokens(args.tokens / f"tokens-{state['data_hash'][:32]}.bin")
    samples = Samples(ids, program["data"]["sequence"], state["seed"], program["data"]["holdout"])
    weights = args.checkpoint / "model.safetensors"
    each = {p: losses(args, program, weights, samples, p) for p in args.precision}
    print(json.dumps(dict(peer=f"torch {torch.__version__}", name=state["name"], losses=each)))


if __name__ == "__main__":
    main()
