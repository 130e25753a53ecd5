#!/usr/bin/env python3
"""What this card does at best through NVIDIA's own libraries, as PyTorch calls them: a device copy, matrix products, attention, AdamW.

Prints a JSON object a line: name, microseconds, rate, unit. Kernels are judged against these, on the same card in the same run.
"""

import json

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

REPEATS = 20


def measure(name, work, amount, unit):
    """Median of some calls, each timed alone; `amount` is bytes or operations."""
    for _ in range(3):
        work()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(REPEATS)]
    for begin, end in marks:
        begin.record()
        work()
        end.record()
    torch.cuda.synchronize()
    ms = sorted(begin.elapsed_time(end) for begin, end in marks)[REPEATS // 2]
    print(json.dumps(dict(name=name, us=round(ms * 1e3, 1), rate=round(amount / ms / 1e9, 3), unit=unit)), flush=True)


def product(m, n, k, name=None):
    a = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(n, k, device="cuda", dtype=torch.bfloat16)
    measure(name or f"gemm {m}x{n}x{k}", lambda: a @ b.T, 2 * m * n * k, "TFLOP/s")


def attention(batch, heads, length, dim):
    q, k, v = (torch.randn(batch, heads, length, dim, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    products = 2 * batch * heads * length * length * dim  # two products, half of each masked
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        label = f"{backend.name.split('_')[0].lower()} attention B{batch} H{heads} T{length} D{dim}"
        try:
            with sdpa_kernel(backend):
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                dy = torch.randn_like(y)
                measure(f"{label} forward", lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True), products, "TFLOP/s")
                measure(f"{label} backward", lambda: torch.autograd.grad(y, (q, k, v), dy, retain_graph=True), 2.5 * products, "TFLOP/s")
        except RuntimeError as error:
            print(json.dumps(dict(left_out=label, why=str(error).splitlines()[0][:200])), flush=True)


def main():
    x = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    measure("copy", lambda: y.copy_(x), 2 * x.numel(), "TB/s")
    product(8192, 8192, 8192, "gemm 8192")
    for n, k in [(3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096), (50304, 1024)]:
        product(16384, n, k)
    product(1024, 4096, 16384)
    attention(16, 16, 1024, 64)
    attention(4, 16, 4096, 128)
    parameter = torch.nn.Parameter(torch.randn(355_000_000, device="cuda"))
    parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    measure("fused AdamW, 355M in fp32", optimizer.step, 7 * 4 * parameter.numel(), "TB/s")


if __name__ == "__main__":
    main()
