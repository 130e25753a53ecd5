"""The batches of a dspc run, from its token file and docs/data.md alone, so that a peer trains on the very same ones.

Shares no code with dspc: Philox4x32-10, the permutation and the windows are written again from their description.
"""

import pathlib
import struct

import numpy as np

SITE_SHUFFLE, SITE_OFFSET = 0xFFFF_FF00, 0xFFFF_FF01
MASK32 = 0xFFFF_FFFF


def philox(seed, step, site, block):
    """Four 32-bit words (Salmon, Moraes, Dror, Shaw 2011)."""
    key = [seed & MASK32, seed >> 32]
    c = [step, site, block & MASK32, block >> 32]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ key[0], p1 & MASK32, (p0 >> 32) ^ c[3] ^ key[1], p0 & MASK32]
        key = [(key[0] + 0x9E3779B9) & MASK32, (key[1] + 0xBB67AE85) & MASK32]
    return c


def permuted(seed, epoch, count, index):
    """Where place `index` of an epoch lies: a Feistel network of six rounds, walked until the result is below `count`."""
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(6):
            left, right = right, left ^ (philox(seed, epoch, SITE_SHUFFLE, turn << 32 | right)[0] & mask)
        index = left << half | right
        if index < count:
            return index


def read_tokens(path):
    """The ids of a token file, `tokens-*.bin`."""
    data = pathlib.Path(path).read_bytes()
    magic, width, zero, count = struct.unpack_from("<8sIIQ", data)
    if magic != b"dspctok1" or zero != 0 or width not in (2, 4):
        raise SystemExit(f"{path} is no token file")
    return np.frombuffer(data, "<u2" if width == 2 else "<u4", count, offset=56).astype(np.int64)


class Samples:
    """Sample n of a run: inputs and targets."""

    def __init__(self, ids, sequence, seed, holdout=0.0):
        self.ids = ids[: len(ids) - int(len(ids) * holdout)]
        self.sequence, self.seed = sequence, seed
        self.windows = max(1, (len(self.ids) - sequence) // sequence)
        self.offsets = min(sequence, len(self.ids) - self.windows * sequence)

    def __getitem__(self, n):
        epoch, place = divmod(n, self.windows)
        words = philox(self.seed, epoch, SITE_OFFSET, 0)
        offset = (words[0] << 32 | words[1]) * self.offsets >> 64
        start = offset + permuted(self.seed, epoch, self.windows, place) * self.sequence
        both = self.ids[start : start + self.sequence + 1]
        return both[:-1], both[1:]

    def batch(self, step, size):
        """Inputs and targets of a step, counted from 0: `size` sequences each."""
        pairs = [self[step * size + i] for i in range(size)]
        return np.stack([x for x, _ in pairs]), np.stack([y for _, y in pairs])
