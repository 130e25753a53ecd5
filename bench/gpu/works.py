"""What is measured on a GPU: each work's spec, the peers that do the same, and the floor that dspc must hold."""

from dataclasses import dataclass, field

COMPILED, BLOCKS, EAGER, DEEPSPEED = "torch.compile", "torch.compile block", "torch eager", "DeepSpeed ZeRO-2"


@dataclass(frozen=True)
class Work:
    name: str
    spec: str
    size: str
    micro_batch: int
    sequence: int
    accumulation: int
    precision: str = "bf16"
    peers: tuple = (COMPILED,)  # the first is the one that the floor speaks of
    steps: int = 40             # dspc's; the first third is not timed
    peer_steps: tuple = (4, 12) # untimed, timed
    ratio: float | None = None  # least tokens a second over the first peer's
    rate: float | None = None   # least tokens a second
    memory: float | None = None # most device memory over the first peer's
    bytes: float | None = None  # most device memory
    notes: str = field(default="")

    @property
    def tokens(self):
        return self.micro_batch * self.sequence * self.accumulation

    def floor(self):
        """As the table shows it."""
        parts = []
        if self.ratio:
            parts.append(f"{self.ratio:g}x")
        if self.rate:
            parts.append(f"{self.rate / 1e3:g}k")
        if self.memory:
            parts.append(f"mem {self.memory:g}x")
        if self.bytes:
            parts.append(f"mem {self.bytes / 1e9:g} GB")
        return ", ".join(parts)


def whole_steps(size, micro, accumulation, ratio, memory, rate, more_peers=()):
    low = size.lower()
    few = dict(steps=6, peer_steps=(1, 2))
    return [
        Work(low, f"gpt2_{low}", size, micro, 1024, 1, ratio=ratio, memory=memory, peers=(COMPILED, *more_peers)),
        Work(f"{low}-half-million", f"gpt2_{low}_half_million", size, micro, 1024, accumulation, rate=rate, **few),
    ]


WORKS = [
    *whole_steps("124M", 32, 16, ratio=1.1, memory=0.7, rate=530e3),
    *whole_steps("355M", 16, 32, ratio=1.2, memory=0.75, rate=205e3, more_peers=(EAGER, DEEPSPEED)),
    *whole_steps("774M", 8, 64, ratio=1.25, memory=0.7, rate=95e3),
    *whole_steps("1558M", 4, 128, ratio=1.3, memory=0.7, rate=52e3),
    Work("small-job", "small_job", "355M", 2, 128, 4, "fp16", peers=(DEEPSPEED, COMPILED), ratio=20, steps=60),
    Work("xl-31gb", "xl_31gb", "1558M", 4, 1024, 1, peers=(), bytes=31e9, steps=9),
]

# The loss check: spec, and how far its curve may lie from PyTorch's in fp32. `first`: the first loss, relative. `early`: root mean square
# of the relative difference over the first 30 steps. `rms`: the same over the whole run. `bias`: its mean, sign kept.
#
# There is none in fp32: tests/tests/gpu.rs compares such runs with the CPU's, step by step.
# bf16, fp16: a value is right to 2^-9 or 2^-12. Errors of single values are independent, and the loss is a mean over some thousand
# targets, so the first loss is far better than that; 1e-3 and 2e-4 leave room for a shared error of an output weight. Later losses
# differ because the weights do. Over some thirty steps the difference grows with the rounding; then training itself makes any
# difference large: PyTorch in fp32, whose sums are not in the same order twice, strays that far from itself. So `early` tells the
# precisions apart, and `rms` and `bias` are a few times what fp32 strays from itself.
LOSSES = {
    "loss_bf16": dict(precision="bf16", first=1e-3, early=2e-3, rms=4e-3, bias=3e-3),
    "loss_fp16": dict(precision="fp16", first=2e-4, early=5e-4, rms=4e-3, bias=3e-3),
}
MEASURES = ("first", "early", "rms", "bias")
EARLY = 30
