#!/usr/bin/env python3
"""Runs dspc and its peers on the works of works.py, one after the other, and writes what each did as a line of JSON.

`bench/gpu/run` calls it; see there. Device memory is what nvidia-smi shows at most while a side runs, context and libraries
included, the same for everyone.
"""

import argparse
import json
import math
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time

from works import BLOCKS, COMPILED, DEEPSPEED, EAGER, EARLY, LOSSES, MEASURES, WORKS

ROOT = pathlib.Path(__file__).resolve().parents[2]
SPECS = ROOT / "bench/gpu/specs"
PEERS = ROOT / "bench/peers"


class Memory:
    """The most MiB that nvidia-smi sees in use while the block runs; None where there is no nvidia-smi."""

    def __enter__(self):
        self.most, self.tool = None, None
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-lms", "100", "-i", "0"]
        if shutil.which(command[0]):
            self.tool = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            self.thread = threading.Thread(target=self.read)
            self.thread.start()
        return self

    def read(self):
        for line in self.tool.stdout:
            if line.strip().isdigit():
                self.most = max(self.most or 0, int(line))

    def __exit__(self, *_):
        if self.tool:
            self.tool.terminate()
            self.thread.join()
            self.tool.wait()


class Bench:
    def __init__(self, args):
        self.args = args
        self.failed = False
        self.built = args.built
        self.work = args.work
        self.end = time.monotonic() + args.budget
        self.work.mkdir(parents=True, exist_ok=True)
        args.results.mkdir(parents=True, exist_ok=True)
        self.environment = dict(os.environ, DSPC_CACHE=str(self.work / "cache"), PYTHONUNBUFFERED="1")
        self.environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(self.work / "inductor"))
        self.environment.setdefault("TORCH_EXTENSIONS_DIR", str(self.work / "extensions"))

    def note(self, kind, record):
        with open(self.args.results / f"{kind}.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")

    def call(self, name, command, **more):
        """What a command printed, or None when it failed or time was up; its words go to a log, and their end to the screen."""
        left = self.end - time.monotonic()
        if left < 5:
            print(f"{name}: left out, the time is up", flush=True)
            return None
        print(f"{name} ...", end=" ", flush=True)
        log = self.args.results / f"{name.replace(' ', '_')}.log"
        begun = time.monotonic()
        try:
            done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                  errors="replace", timeout=left, env=self.environment, **more)
            output, code = done.stdout, done.returncode
        except subprocess.TimeoutExpired as expired:
            output, code = (expired.stdout or b"").decode(errors="replace"), "out of time"
        log.write_text(output)
        print(f"{time.monotonic() - begun:.1f} s", flush=True)
        if code != 0:
            self.failed = True
            print(f"{name} FAILED ({code}); the end of {log}:\n" + "\n".join(output.splitlines()[-12:]), flush=True)
            return None
        return output

    def artifact(self, spec):
        path = self.built / f"{spec}.dspx"
        if not path.exists():
            print(f"{spec}: no {path}; bench/gpu/prepare builds it", flush=True)
            return None
        return path

    def train(self, name, spec, steps, out, *more, words=False):
        """A run of dspc: its metrics, its summary and the memory it took; or what it said."""
        path = self.artifact(spec)
        if path is None:
            return None
        shutil.rmtree(out, ignore_errors=True)
        command = [self.built / "dspc", "run", path, "--data", SPECS, "--max-steps", steps, "--out", out, *more, *self.args.dspc]
        with Memory() as memory:
            said = self.call(name, command)
        if said is None or words:
            return said
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return lines, json.loads((out / "summary.json").read_text()), memory.most

    def ours(self, work):
        out = self.work / "run"
        result = self.train(f"dspc {work.name}", work.spec, self.args.steps or work.steps, out, "--no-save")
        shutil.rmtree(out, ignore_errors=True)
        if result is None:
            return
        lines, summary, memory = result
        lines = [line for line in lines if "tokens_per_second" in line]
        # A step is begun before the one before it is read, and beginning a long one waits for the device: the first interval may hold
        # two steps, and the last none.
        timed = [line["tokens_per_second"] for line in lines[len(lines) // 3 : max(len(lines) - 1, 1)]]
        rate = statistics.median(timed)
        self.note("ours", dict(
            work=work.name, tokens_per_s=round(rate, 1), step_ms=round(work.tokens / rate * 1e3, 3), device_mib=memory,
            losses=[round(line["loss"], 4) for line in lines[:8]], summary=summary,
        ))
        print(f"    {rate:,.0f} tokens/s, {work.tokens / rate * 1e3:.2f} ms a step, {memory} MiB", flush=True)

    def start(self, work):
        """Seconds from the process's start to the end of its first step: with empty caches, and again with what that left."""
        seconds = []
        for turn in ("first", "again"):
            out = self.work / "run"
            log = self.train(f"dspc {work.name} start {turn}", work.spec, 1, out, "--no-save", words=True)
            shutil.rmtree(out, ignore_errors=True)
            found = re.search(r"first step after ([\d.]+) s", log or "")
            if not found:
                return
            seconds.append(float(found[1]))
        self.note("start", dict(work=work.name, first=seconds[0], again=seconds[1]))
        print(f"    first step after {seconds[0]} s, {seconds[1]} s with the image cached", flush=True)

    def peer(self, work, peer):
        warm_up, steps = work.peer_steps
        shape = ["--size", work.size, "--micro-batch", work.micro_batch, "--sequence", work.sequence,
                 "--accumulation", work.accumulation, "--precision", work.precision,
                 "--warm-up", warm_up, "--steps", self.args.steps or steps, *self.args.peer]
        script = {
            COMPILED: ["torch_gpt2.py", "--compile", "model"],
            BLOCKS: ["torch_gpt2.py", "--compile", "block"],
            EAGER: ["torch_gpt2.py"],
            DEEPSPEED: ["deepspeed_gpt2.py"],
        }[peer]
        with Memory() as memory:
            output = self.call(f"{peer} {work.name}", [sys.executable, PEERS / script[0], *script[1:], *shape], cwd=PEERS)
        if output is None:
            return
        found = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        if not found:
            print("    no result in its output", flush=True)
            return
        record = dict(found[-1], work=work.name, side=peer, device_mib=memory.most or found[-1].get("device_mib"))
        self.note("peers", record)
        print(f"    {record['tokens_per_s']:,.0f} tokens/s, {record['step_ms']:.2f} ms a step, {record['device_mib']} MiB", flush=True)

    def losses(self, spec, bound):
        start, out = self.work / f"{spec}-start", self.work / f"{spec}-run"
        if self.train(f"dspc {spec} start", spec, 0, start) is None:
            return
        steps = self.args.steps or 100
        result = self.train(f"dspc {spec}", spec, steps, out, "--no-save")
        if result is None:
            return
        ours = [line["loss"] for line in result[0] if "loss" in line]
        precisions = ["fp32", "again", bound["precision"]]
        command = [sys.executable, PEERS / "torch_losses.py", start / "checkpoint-0", "--tokens", self.work / "cache",
                   "--steps", steps, "--precision", *precisions, *self.args.peer]
        output = self.call(f"torch {spec}", command, cwd=PEERS)
        for folder in (start, out):
            shutil.rmtree(folder, ignore_errors=True)
        if output is None:
            return
        theirs = json.loads([line for line in output.splitlines() if line.startswith("{")][-1])["losses"]
        record = dict(spec=spec, bound=bound, ours=ours, theirs=theirs, dspc=apart(ours, theirs["fp32"]))
        record["autocast"] = apart(theirs[bound["precision"]], theirs["fp32"])
        record["itself"] = apart(theirs["again"], theirs["fp32"])
        record["held"] = len(ours) == steps and all(abs(record["dspc"][key]) <= bound[key] for key in MEASURES)
        self.note("losses", record)
        print(f"    {'held' if record['held'] else 'NOT HELD'}: {record['dspc']}", flush=True)


def apart(losses, reference):
    """How far a loss curve lies from another: relative differences."""
    differences = [(a - b) / b for a, b in zip(losses, reference)]
    rounded = lambda x: float(f"{x:.3g}")
    mean_square = lambda d: rounded(math.sqrt(sum(x * x for x in d) / len(d)))
    return dict(
        first=rounded(differences[0]),
        early=mean_square(differences[:EARLY]),
        rms=mean_square(differences),
        bias=rounded(sum(differences) / len(differences)),
    )


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("part", choices=["start", "steps", "peers", "losses"])
    args.add_argument("--only", help="names of works, or of specs of the loss check, with commas; a trailing * stands for the rest")
    args.add_argument("--peers", help="these peers instead of each work's own, with commas; works.py names them")
    args.add_argument("--budget", type=float, default=1e9, help="seconds after which nothing new is started")
    args.add_argument("--steps", type=int, help="instead of each work's own number")
    args.add_argument("--built", type=pathlib.Path, default=ROOT / "built")
    args.add_argument("--results", type=pathlib.Path, default=ROOT / "results")
    args.add_argument("--work", type=pathlib.Path, required=True, help="a folder for caches and runs, best in memory")
    args.add_argument("--device", default="cuda")
    args = args.parse_args()
    args.built, args.results, args.work = args.built.resolve(), args.results.resolve(), args.work.resolve()
    args.dspc = ["--device", args.device] if args.device == "cuda" else []
    args.peer = ["--device", args.device]

    def wanted(name):
        patterns = args.only.split(",") if args.only else ["*"]
        return any(name == p or (p.endswith("*") and name.startswith(p[:-1])) for p in patterns)

    bench = Bench(args)
    if args.part == "losses":
        for spec, bound in LOSSES.items():
            if wanted(spec):
                bench.losses(spec, bound)
    chosen = [work for work in WORKS if wanted(work.name)]
    if args.part == "start" and chosen:
        bench.start(chosen[0])
    for work in chosen:
        if args.part == "steps":
            bench.ours(work)
        if args.part == "peers":
            for peer in args.peers.split(",") if args.peers else work.peers:
                bench.peer(work, peer)
    if bench.failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
