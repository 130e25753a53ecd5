#!/usr/bin/env python3
"""compute-sanitizer's tools over every kernel at odd shapes and over small programs of odd sizes, side by side; prints what they found.

Needs what `bench/gpu/prepare` writes: `built/cases` (calls of kernels, which replay.py makes) and `built/odd*.dspx`. A tool that is
cut off counts with what it found until then, and says how far it came.

One report of racecheck is known, and is told apart by its instructions: the copy engine's rows (UBLKCP) against loads of them (LDS). A stage
is freed by each warp's first lane, behind a barrier of the warp, which racecheck does not follow; where every lane frees it, which
is slower, there is nothing to report.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

HERE = pathlib.Path(__file__).resolve().parent
FOUND = re.compile(r"^========= (?!ERROR SUMMARY|COMPUTE-SANITIZER|Target application|RACECHECK SUMMARY|  )(\S.*)$")
SUMMARY = re.compile(r"^========= (?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)")


def shown(output):
    """What was found, each once, with the call it came from."""
    call, seen, blocks, lines = "", {}, [], output.splitlines()
    for at, line in enumerate(lines):
        if line.startswith("call "):
            call = line
        found = FOUND.match(line)
        if found and not found[1].startswith("Saved host"):
            place = next((l[10:].strip() for l in lines[at + 1 : at + 3] if l.startswith("=========     ")), "")
            kind = re.sub(r"0x[0-9a-f]+|\d+", "#", found[1]) + re.sub(r"\+0x.*", "", place) + call
            seen[kind] = seen.get(kind, 0) + 1
            if seen[kind] == 1:
                blocks.append(f"{found[1][:160]} | {place[:160]} | {call[:200]}")
    return blocks


def instruction(cubin, symbol, at):
    """The instruction of a kernel at an address, or nothing where there is no disassembler."""
    try:
        done = subprocess.run(["cuobjdump", "-sass", "-fun", symbol, str(cubin)], capture_output=True, text=True)
    except OSError:
        return ""
    found = re.search(rf"/\*0*{at:x}\*/\s+(.*?);", done.stdout)
    return found[1] if found else ""


def known_races(output, cubins):
    """How many reports of races are of the known kind: all their writes and reads are."""
    call, reports = "", []
    for line in output.splitlines():
        if line.startswith("call "):
            call = line.split()[1]
        if "Race reported between" in line:
            reports.append([])
        site = re.search(r"(Write|Read) access at (?:void )?(\w+)\+0x([0-9a-f]+)", line)
        if site and reports:
            reports[-1].append((call, *site.groups()))
    kinds = dict(Write="UBLKCP", Read="LDS")

    def is_known(site):
        call, kind, symbol, at = site
        files = list(cubins.glob(f"{call}*.cubin")) if call else []
        return len(files) == 1 and kinds[kind] in instruction(files[0], symbol, int(at, 16))

    return sum(bool(sites) and all(map(is_known, sites)) for sites in reports)


def run(job, args, end):
    tool, name, command = job
    limit = min(args.limit, end - time.monotonic())
    if limit < 3:
        return name, tool, "left out, the time is up", [], False
    words = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "99", "--print-limit", "100", *map(str, command)]
    begun = time.monotonic()
    done = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True)
    cut = False
    try:
        output, _ = done.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(done.pid, 9)
        output, _ = done.communicate()
        cut = True
    (args.results / f"{tool}-{name}.log").write_text(output)
    summary = [int(m[1] or m[2]) for m in map(SUMMARY.match, output.splitlines()) if m]
    made = re.findall(r"^made .*", output, re.M)
    known = known_races(output, args.work / "cubins") if tool == "racecheck" and sum(summary) else 0
    summary = [sum(summary) - known] if summary else []
    failed = bool(sum(summary)) or (not cut and (not summary or (done.returncode != 0 and not known))) or (cut and bool(shown(output)))
    said = "cut off" if cut else f"{sum(summary)} found" if summary else f"NO SUMMARY, exit code {done.returncode}"
    said += f" and {known} known" if known else ""
    said += f", {time.monotonic() - begun:.0f} s" + (f", {made[-1]}" if made else f", {len(re.findall('^call ', output, re.M))} calls" if cut else "")
    blocks = shown(output) if failed else []
    if failed and not blocks:
        blocks = output.splitlines()[-6:]
    return name, tool, said, blocks, failed


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--built", type=pathlib.Path, required=True)
    args.add_argument("--work", type=pathlib.Path, required=True)
    args.add_argument("--results", type=pathlib.Path, required=True)
    args.add_argument("--tools", default="memcheck,racecheck,initcheck,synccheck")
    args.add_argument("--chip", default="sm_90a", help="that the cases are built for")
    args.add_argument("--budget", type=float, default=1e9)
    args.add_argument("--limit", type=float, default=300, help="seconds for each process")
    args.add_argument("--parts", type=int, default=3, help="processes among which a tool's calls are dealt")
    args = args.parse_args()
    args.built, args.work, args.results = args.built.resolve(), args.work.resolve(), args.results.resolve()
    for folder in (args.work, args.results):
        folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + args.budget
    os.environ["DSPC_CACHE"] = str(args.work / "cache")
    cases, cubins = args.built / "cases", args.work / "cubins"
    jobs = []
    if (cases / "calls.jsonl").exists():
        begun = time.monotonic()
        subprocess.run([sys.executable, HERE / "replay.py", cases, "--assemble", cubins, "--chip", args.chip], check=False)
        print(f"    in {time.monotonic() - begun:.0f} s", flush=True)
        for tool in args.tools.split(","):
            for part in range(args.parts):
                command = [sys.executable, HERE / "replay.py", cases, "--cubins", cubins, "--part", f"{part}/{args.parts}",
                           "--seconds", max(5, min(args.limit, end - time.monotonic()) - 10)]
                jobs.append((tool, f"kernels{part}", command))
    else:
        print(f"no {cases}; bench/gpu/prepare writes it", flush=True)
    for program in sorted(args.built.glob("odd*.dspx")):
        words = lambda out, *more: [args.built / "dspc", "run", program, "--device", "cuda", "--data", HERE / "specs", "--max-steps", "2",
                                    "--out", args.work / out, "--no-save", *more]
        # Algorithms are measured without a sanitizer, and taken from dspc.lock with one.
        plain = subprocess.run(list(map(str, words(f"{program.stem}-plain"))), capture_output=True, text=True)
        if plain.returncode:
            print(f"{program.stem} alone FAILED ({plain.returncode}): {plain.stderr[-600:]}", flush=True)
        jobs += [(tool, program.stem, words(f"{program.stem}-{tool}", "--locked")) for tool in args.tools.split(",")]
    failed = not jobs
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, tool, said, blocks, bad in pool.map(lambda job: run(job, args, end), jobs):
            failed |= bad
            print(f"{tool:<10} {name:<12} {'FAILED: ' if bad else ''}{said}", flush=True)
            for block in blocks[:8]:
                print(f"    {block[:420]}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
