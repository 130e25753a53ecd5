"""What every GPU peer here shares: the job's description, its batches, its clock and its one line of JSON."""

import argparse
import json
import os
import statistics
import tempfile
import time

import torch

# layers, heads, width
SIZES = {"tiny": (2, 2, 64), "124M": (12, 12, 768), "355M": (24, 16, 1024), "774M": (36, 20, 1280), "1558M": (48, 25, 1600)}
VOCAB, PADDED_VOCAB, CONTEXT = 50257, 50304, 1024
LR, BETAS, WEIGHT_DECAY, CLIP = 1e-4, (0.9, 0.95), 0.1, 1.0
MIB = 1 << 20


def parser(doc):
    args = argparse.ArgumentParser(description=doc.splitlines()[0])
    args.add_argument("--size", choices=SIZES, default="124M")
    args.add_argument("--micro-batch", type=int, default=4)
    args.add_argument("--sequence", type=int, default=1024)
    args.add_argument("--accumulation", type=int, default=1)
    args.add_argument("--steps", type=int, default=12, help="timed steps")
    args.add_argument("--warm-up", type=int, default=4, help="steps before them")
    args.add_argument("--precision", choices=["bf16", "fp16", "tf32", "fp32"], default="bf16")
    args.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    args.add_argument("--seed", type=int, default=1)
    return args


def batches(args, vocab=VOCAB):
    """Micro-batches without end: random ids, drawn before the clock starts, a few that take turns."""
    generator = torch.Generator().manual_seed(args.seed)
    shape = (args.micro_batch, args.sequence + 1)
    drawn = [torch.randint(vocab, shape, generator=generator).to(args.device) for _ in range(8)]
    turn = 0
    while True:
        ids = drawn[turn % len(drawn)]
        yield ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        turn += 1


class Clock:
    """Marks the end of each step without stopping for it: events on the device, or the wall clock on the CPU."""

    def __init__(self, device):
        self.cuda = device == "cuda"
        self.marks = []

    def mark(self):
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def milliseconds(self):
        """Of each step between two marks."""
        pairs = zip(self.marks, self.marks[1:])
        if self.cuda:
            torch.cuda.synchronize()
            return [a.elapsed_time(b) for a, b in pairs]
        return [(b - a) * 1e3 for a, b in pairs]


def memory(device):
    """MiB: what tensors held at most, what the allocator held at most, and what the device lacks now, context and libraries included."""
    if device != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info()
    return dict(
        allocated_mib=torch.cuda.max_memory_allocated() // MIB,
        reserved_mib=torch.cuda.max_memory_reserved() // MIB,
        device_mib=(total - free) // MIB,
    )


def run(args, peer, step, **more):
    """Calls `step()`, which gives the step's loss as a tensor, and prints the result."""
    begun = time.perf_counter()
    losses = [float(step()) for _ in range(args.warm_up)]
    warm = time.perf_counter() - begun
    clock = Clock(args.device)
    clock.mark()
    kept = []
    for _ in range(args.steps):
        kept.append(step())
        clock.mark()
    each = clock.milliseconds()
    losses += [float(loss) for loss in kept]
    middle = statistics.median(each)
    tokens = args.micro_batch * args.sequence * args.accumulation
    print(json.dumps(dict(
        peer=peer,
        torch=torch.__version__,
        device=torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        size=args.size,
        shape=f"{args.micro_batch}x{args.sequence}x{args.accumulation}",
        precision=args.precision,
        tokens_per_s=round(tokens / middle * 1e3, 1),
        step_ms=round(middle, 3),
        step_ms_range=[round(min(each), 3), round(max(each), 3)],
        warm_up_s=round(warm, 1),
        losses=[round(loss, 4) for loss in losses[:8]],
        **memory(args.device),
        **more,
    )), flush=True)


def name_compile_cache():
    """A folder for compiled kernels that a second run of the same job finds again, if the caller has none."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(tempfile.gettempdir(), "torchinductor-bench"))
