#!/usr/bin/env python3
"""Makes the calls of kernels that a build host wrote down (`calls.jsonl` and PTX beside it), through the driver alone: for sanitizers.

    replay.py CASES --assemble CUBINS            # once, where there is ptxas: loading is then quick
    compute-sanitizer replay.py CASES --cubins CUBINS --part 0/4 --seconds 60

Operands are allocated to the last 16 bytes that hold an element of theirs, which kernels may read whole, and no further, so that a step
past an end is seen. Results are not looked at: the tests of the kernels do that.
"""

import argparse
import ctypes
import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

BYTES = {"f32": 4, "i32": 4, "f16": 2, "bf16": 2}
KINDS = {"i32": 4, "f16": 6, "f32": 7, "bf16": 9}  # CUtensorMapDataType
SWIZZLES = [0, 32, 64, 128]


class Driver:
    def __init__(self):
        self.library = ctypes.CDLL("libcuda.so.1")
        context = ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.call("cuCtxSetCurrent", context)

    def call(self, name, *words):
        code = getattr(self.library, name)(*words)
        if code:
            raise RuntimeError(f"{name} gives {code}")

    def load(self, image):
        module = ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), image)
        return module

    def upload(self, size, content):
        at = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(at), ctypes.c_size_t(size))
        if content is not None:
            self.call("cuMemcpyHtoD_v2", at, content, ctypes.c_size_t(size))
        return at

    def tensor_map(self, view, dtype, at):
        raw = ctypes.create_string_buffer(128 + 64)
        encoded = ctypes.addressof(raw) + (-ctypes.addressof(raw)) % 64
        rank = len(view["dims"])
        whole = lambda kind, values: (kind * len(values))(*values)
        self.call(
            "cuTensorMapEncodeTiled", ctypes.c_void_p(encoded), KINDS[dtype], rank, at, whole(ctypes.c_uint64, view["dims"]),
            whole(ctypes.c_uint64, view["strides"]), whole(ctypes.c_uint32, view["tile"]), whole(ctypes.c_uint32, [1] * rank),
            0, SWIZZLES.index(view["swizzle"]), 2, 0,
        )
        return raw, encoded


def pattern(dtype):
    """Some numbers about normal, a prime count of them."""
    numbers = [random.Random(7).gauss(0, 1) for _ in range(1021)]
    if dtype == "bf16":
        return b"".join(struct.pack("<f", x)[2:] for x in numbers)
    return struct.pack(f"<1021{dict(f32='f', f16='e')[dtype]}", *numbers)


PATTERNS = {dtype: pattern(dtype) for dtype in ("f32", "bf16", "f16")}


def content(operand):
    size = -(-operand["count"] * BYTES[operand["dtype"]] // 16) * 16
    if "bytes" in operand:
        return size, bytes.fromhex(operand["bytes"]).ljust(size, b"\0")
    if operand.get("fill") == "nothing":
        return size, None
    numbers = PATTERNS[operand["dtype"]]
    return size, (numbers * (size // len(numbers) + 1))[:size]


def make(driver, module, call):
    held = [driver.upload(*content(operand)) for operand in call["operands"]]
    words = held + ([ctypes.c_int64(call["turn"])] if call["turn"] is not None else [])
    pointers = [ctypes.addressof(word) for word in words]
    for launch in call["launches"]:
        views = launch.get("maps", [])
        maps = [driver.tensor_map(v, call["operands"][v["operand"]]["dtype"], held[v["operand"]]) for v in views]
        all_words = (ctypes.c_void_p * (len(pointers) + len(maps)))(*pointers, *(encoded for _, encoded in maps))
        function = ctypes.c_void_p()
        driver.call("cuModuleGetFunction", ctypes.byref(function), module, launch["symbol"].encode())
        driver.call("cuFuncSetAttribute", function, 8, launch["shared"])
        driver.call("cuLaunchKernel", function, *launch["grid"], launch["block"], 1, 1, launch["shared"], None, all_words, None)
        driver.call("cuCtxSynchronize")
    for at in held:
        driver.call("cuMemFree_v2", at)


def assemble(cases, chip, out):
    out.mkdir(parents=True, exist_ok=True)
    tool = shutil.which("ptxas") or "/usr/local/cuda/bin/ptxas"

    def one(ptx):
        done = subprocess.run([tool, "-lineinfo", f"-arch={chip}", "-o", out / f"{ptx.stem}.cubin", ptx], capture_output=True, text=True)
        return [] if done.returncode == 0 else [f"{ptx.name}: {done.stderr.strip()[:300]}"]

    largest_first = sorted(cases.glob("*.ptx"), key=lambda p: -p.stat().st_size)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        failures = [line for lines in pool.map(one, largest_first) for line in lines]
    print("\n".join(failures) or f"{len(largest_first)} texts assembled", flush=True)
    return not failures


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("cases", type=pathlib.Path)
    args.add_argument("--assemble", type=pathlib.Path, metavar="CUBINS", help="only assemble, into this folder")
    args.add_argument("--chip", default="sm_90a", help="for --assemble")
    args.add_argument("--cubins", type=pathlib.Path)
    args.add_argument("--part", default="0/1", help="which part of the calls, of how many")
    args.add_argument("--seconds", type=float, default=1e9, help="make no new call after this time")
    args = args.parse_args()
    if args.assemble:
        sys.exit(0 if assemble(args.cases, args.chip, args.assemble) else 1)
    calls = [json.loads(line) for line in (args.cases / "calls.jsonl").read_text().splitlines()]
    part, parts = map(int, args.part.split("/"))
    calls = calls[part::parts]
    # In an order of no meaning, the same for all: where time runs out, each family has had its share.
    random.Random(3).shuffle(calls)
    driver, modules, begun, made = Driver(), {}, time.monotonic(), 0
    for call in calls:
        if time.monotonic() - begun > args.seconds:
            break
        name = call["module"]
        if name not in modules:
            cubin = args.cubins / f"{pathlib.Path(name).stem}.cubin" if args.cubins else None
            image = cubin.read_bytes() if cubin and cubin.exists() else (args.cases / name).read_bytes() + b"\0"
            modules[name] = driver.load(image)
        print("call", name[:6], call["launches"][0]["symbol"], [f"{o['dtype']} {o['count']}" for o in call["operands"]], flush=True)
        make(driver, modules[name], call)
        made += 1
    print(f"made {made} of {len(calls)} calls", flush=True)


if __name__ == "__main__":
    main()
