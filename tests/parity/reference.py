#!/usr/bin/env python3
"""A small GPT-2 in plain PyTorch: an independent source of the figures that the tests compare with.

    python3 tests/parity/reference.py            writes gpt2_small.json beside this file
    python3 tests/parity/reference.py --check    computes the figures again and compares with the file

It needs `torch` and `numpy` only, runs in seconds on a CPU, and shares no code with dspc. Nothing here is random: weights and ids come
from the integer hash below, so that a test in any language can build the same model.

The model is `compiler/spec/std/gpt2.dsp` with the settings under "model": learned positions, pre-norm blocks, tanh GELU, epsilon 1e-5,
causal attention scaled by 1/sqrt(width / heads), output tied to `wte`, no dropout. Linear weights are [inputs, outputs]. The loss is
the mean over the targets that are not -100.

The hash, all in unsigned integers modulo 2^32:

    x = element * 2654435761 + site * 40503;  x ^= x >> 16;  x *= 2246822519;  x ^= x >> 13

Weights: element e of the tensor of `site` is offset + (x / 2^32 - 0.5) * scale, computed in f64 and rounded once to f32. The f64 run
starts from the same rounded values.

Ids: step s trains on batch * (sequence + 1) ids; id number i of step s is the hash of element s * batch * (sequence + 1) + i and
site 1000, modulo vocab. Sequence b takes ids b * (sequence + 1) .. + sequence as inputs and the same, one later, as targets. The
target at position p of the batch (p = b * sequence + t) is ignored, -100, where p % 7 == 3.

gpt2_small.json:

    torch                the version that made the file
    model, training      the settings
    tokens, targets      of step 0, [batch][sequence]: a check of the formulas above
    params[]             in checkpoint order: name, dims, site, scale, offset, decay (whether weight decay applies),
                         sample: the flat indices of the sampled elements
    f64, f32             the same figures twice, computed in that type throughout:
      loss               of step 0, before any update
      grads{name}        gradient of that loss before clipping: sum, sum_of_squares (both summed in f64), sample[8]
      losses[20]         loss of each step, before its update
      grad_norms[20]     norm of all gradients, before clipping
      final{name}        the parameters after 20 steps: sum, sum_of_squares, sample[8]

How to compare. A sum may be zero by mathematics (what enters a norm has a gradient that sums to zero), so measure its difference in units
of sqrt(elements * sum_of_squares), and a sample's in units of sqrt(sum_of_squares / elements). A key's bias adds the same to all scores of
a query, so its gradient is zero by mathematics too and rounding noise in practice, which Adam scales up to whole steps of size lr: leave
the middle third of every c_attn.bias out. Its `sample` has no element of that third, and its sums, of `grads` and `final`, are of the rest.

The steps are AdamW as PyTorch does it (decay first, p -= lr * weight_decay * p; bias-corrected moments; epsilon outside the root), after
`clip_grad_norm_`, which multiplies by min(1, clip / (norm + 1e-6)).
"""

import argparse
import json
import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F

LAYERS, HEADS, WIDTH, VOCAB, CONTEXT, BATCH, SEQUENCE, STEPS = 2, 2, 32, 67, 24, 3, 24, 20
LR, BETAS, EPS, DECAY, CLIP = 1e-3, (0.9, 0.99), 1e-8, 0.1, 1.0
IDS_SITE = 1000
FILE = pathlib.Path(__file__).with_name("gpt2_small.json")


def hashed(elements, site):
    mask = np.uint64(0xFFFFFFFF)
    x = (elements.astype(np.uint64) * np.uint64(2654435761) + np.uint64(site * 40503)) & mask
    x ^= x >> np.uint64(16)
    x = (x * np.uint64(2246822519)) & mask
    return x ^ (x >> np.uint64(13))


def without_keys(name, elements):
    """Flat indices of a parameter, without those of a key's bias."""
    at = np.arange(elements)
    return at[(at < WIDTH) | (at >= 2 * WIDTH)] if name.endswith("c_attn.bias") else at


def sampled(name, elements):
    at = without_keys(name, elements)
    return [int(at[len(at) * (2 * k + 1) // 16]) for k in range(8)]


def param_table():
    """Name, dims, scale and offset of every parameter, in checkpoint order."""
    d = WIDTH
    norm = lambda name: [(f"{name}.weight", [d], 0.2, 1.0), (f"{name}.bias", [d], 0.1, 0.0)]
    linear = lambda name, i, o: [(f"{name}.weight", [i, o], 0.3, 0.0), (f"{name}.bias", [o], 0.1, 0.0)]
    rows = [("wte", [VOCAB, d], 0.4, 0.0), ("wpe", [CONTEXT, d], 0.2, 0.0)]
    for n in range(LAYERS):
        h = f"h.{n}"
        rows += norm(f"{h}.ln_1") + linear(f"{h}.attn.c_attn", d, 3 * d) + linear(f"{h}.attn.c_proj", d, d)
        rows += norm(f"{h}.ln_2") + linear(f"{h}.mlp.c_fc", d, 4 * d) + linear(f"{h}.mlp.c_proj", 4 * d, d)
    rows += norm("ln_f")
    return [
        dict(name=name, dims=dims, site=site, scale=scale, offset=offset, decay=len(dims) >= 2,
             sample=sampled(name, math.prod(dims)))
        for site, (name, dims, scale, offset) in enumerate(rows)
    ]


def initial(row, dtype):
    x = hashed(np.arange(math.prod(row["dims"])), row["site"]).astype(np.float64)
    values = row["offset"] + (x / 2.0**32 - 0.5) * row["scale"]
    single = values.astype(np.float32).reshape(row["dims"])
    return torch.tensor(single).to(dtype).requires_grad_()


def ids(step):
    per_step = BATCH * (SEQUENCE + 1)
    x = hashed(step * per_step + np.arange(per_step), IDS_SITE) % np.uint64(VOCAB)
    x = x.astype(np.int64).reshape(BATCH, SEQUENCE + 1)
    tokens, targets = x[:, :-1].copy(), x[:, 1:].copy()
    position = np.arange(BATCH * SEQUENCE).reshape(BATCH, SEQUENCE)
    targets[position % 7 == 3] = -100
    return torch.tensor(tokens), torch.tensor(targets)


def forward(p, tokens, targets):
    def norm(x, name):
        return F.layer_norm(x, [WIDTH], p[f"{name}.weight"], p[f"{name}.bias"], 1e-5)

    def linear(x, name):
        return x @ p[f"{name}.weight"] + p[f"{name}.bias"]

    b, t = tokens.shape
    hidden_from = torch.ones(t, t, dtype=torch.bool).triu(1)
    x = p["wte"][tokens] + p["wpe"][:t]
    for n in range(LAYERS):
        h = f"h.{n}"
        heads = lambda y: y.view(b, t, HEADS, WIDTH // HEADS).transpose(1, 2)
        q, k, v = map(heads, linear(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn").split(WIDTH, dim=2))
        scores = q @ k.transpose(2, 3) / math.sqrt(WIDTH // HEADS)
        y = scores.masked_fill(hidden_from, float("-inf")).softmax(-1) @ v
        x = x + linear(y.transpose(1, 2).reshape(b, t, WIDTH), f"{h}.attn.c_proj")
        y = F.gelu(linear(norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc"), approximate="tanh")
        x = x + linear(y, f"{h}.mlp.c_proj")
    logits = norm(x, "ln_f") @ p["wte"].T
    return F.cross_entropy(logits.view(-1, VOCAB), targets.view(-1), ignore_index=-100)


def figures(tensor, row):
    flat = tensor.detach().double().flatten()
    kept = flat[without_keys(row["name"], flat.numel())]
    return dict(sum=kept.sum().item(), sum_of_squares=(kept * kept).sum().item(), sample=flat[row["sample"]].tolist())


def run(dtype):
    rows = param_table()
    p = {row["name"]: initial(row, dtype) for row in rows}
    groups = [
        dict(params=[p[r["name"]] for r in rows if r["decay"]], weight_decay=DECAY),
        dict(params=[p[r["name"]] for r in rows if not r["decay"]], weight_decay=0.0),
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS, foreach=False)
    out = dict(losses=[], grad_norms=[])
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        loss = forward(p, *ids(step))
        loss.backward()
        if step == 0:
            out["loss"] = loss.item()
            out["grads"] = {r["name"]: figures(p[r["name"]].grad, r) for r in rows}
        out["losses"].append(loss.item())
        out["grad_norms"].append(torch.nn.utils.clip_grad_norm_(list(p.values()), CLIP, foreach=False).item())
        optimizer.step()
    out["final"] = {r["name"]: figures(p[r["name"]], r) for r in rows}
    return out


def document():
    tokens, targets = ids(0)
    return dict(
        torch=torch.__version__,
        model=dict(layers=LAYERS, heads=HEADS, width=WIDTH, vocab=VOCAB, context=CONTEXT),
        training=dict(batch=BATCH, sequence=SEQUENCE, steps=STEPS, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, clip=CLIP),
        tokens=tokens.tolist(),
        targets=targets.tolist(),
        params=param_table(),
        f64=run(torch.float64),
        f32=run(torch.float32),
    )


def worst(a, b):
    """Largest relative difference between the numbers of two documents of one shape."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), (a.keys(), b.keys())
        return max((worst(a[k], b[k]) for k in a if k != "torch"), default=0.0)
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        return max((worst(x, y) for x, y in zip(a, b)), default=0.0)
    if isinstance(a, float):
        return abs(a - b) / max(abs(a), abs(b), 1e-3)
    assert a == b, (a, b)
    return 0.0


def text(doc):
    """JSON with one line for each tensor, so that a changed figure is one changed line."""
    inner = lambda d, pad: ",\n".join(f'{pad}{json.dumps(k)}: {json.dumps(v)}' for k, v in d.items())
    def half(d):
        flat = {k: v for k, v in d.items() if not isinstance(v, dict)}
        deep = [f'    {json.dumps(k)}: {{\n{inner(v, "      ")}\n    }}' for k, v in d.items() if isinstance(v, dict)]
        return "{\n" + ",\n".join([inner(flat, "    ")] + deep) + "\n  }"
    parts = []
    for key, value in doc.items():
        if key in ("f64", "f32"):
            body = half(value)
        elif key == "params":
            body = "[\n" + ",\n".join("    " + json.dumps(row) for row in value) + "\n  ]"
        else:
            body = json.dumps(value)
        parts.append(f"  {json.dumps(key)}: {body}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    check = args.parse_args().check
    doc = document()
    if check:
        difference = worst(json.loads(json.dumps(doc)), json.loads(FILE.read_text()))
        print(f"largest relative difference: {difference:.2e}")
        raise SystemExit(difference > 1e-5)
    FILE.write_text(text(doc))
    print(f"{FILE}: loss {doc['f64']['loss']:.9f} (f64), {doc['f32']['loss']:.9f} (f32)")


if __name__ == "__main__":
    main()
