#!/usr/bin/env python3
"""Prints the tables of a results folder: kernels against the card's own ceilings, loss curves, and last whole steps against peers."""

import json
import pathlib
import re
import sys

from works import MEASURES, WORKS

# `name   12.3 us   2.65 TB/s`, as the timings of kernels print it.
KERNEL = re.compile(r"^(.*?)\s+([\d.]+) us\s+([\d.]+) (TB/s|TFLOP/s)")


def lines(folder, name):
    path = folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def kernels(folder):
    """Rate of each timed kernel, and its share of the copy's or the product's rate measured in the same run."""
    ceilings = {c["name"]: c for c in lines(folder, "ceilings")}
    limit = {"TB/s": ceilings.get("copy", {}).get("rate"), "TFLOP/s": ceilings.get("gemm 8192", {}).get("rate")}
    path = folder / "kernels.log"
    timed = [m for m in map(KERNEL.match, path.read_text().splitlines()) if m] if path.exists() else []
    if ceilings:
        print("ceilings of this card, measured now (PyTorch)")
        for c in ceilings.values():
            print(f"  {c['name']:<44}{c['us']:>10.1f} us {c['rate']:>8.2f} {c['unit']}")
    if timed:
        print("kernels: share of the copy's bandwidth, or of the 8192 product's rate")
        for m in timed:
            of = limit[m[4]]
            share = f"{float(m[3]) / of:>6.0%}" if of else ""
            print(f"  {m[1]:<44}{float(m[2]):>10.1f} us {float(m[3]):>8.2f} {m[4]:<8}{share}")


def losses(folder):
    records = {r["spec"]: r for r in lines(folder, "losses")}
    if not records:
        return
    print("losses against PyTorch in fp32, relative (in brackets the bound; PyTorch's own autocast; fp32 again)")
    for r in records.values():
        cells = [f"{key} {r['dspc'][key]:.1e} ({r['bound'][key]:.0e}; {r['autocast'][key]}; {r['itself'][key]})" for key in MEASURES]
        print(f"  {r['spec']:<12}{len(r['ours'])} steps  {'  '.join(cells)}  {'held' if r['held'] else 'NOT HELD'}")


def start(folder):
    for r in {r["work"]: r for r in lines(folder, "start")}.values():
        print(f"start of {r['work']} to the end of its first step: {r['first']} s, and {r['again']} s with the image cached (floor 3 s)")


def verdict(work, ours, peer):
    """Whether each floor that can be judged is held."""
    marks = []
    if work.ratio and peer:
        marks.append(ours["tokens_per_s"] >= work.ratio * peer["tokens_per_s"])
    if work.rate:
        marks.append(ours["tokens_per_s"] >= work.rate)
    if work.memory and peer and ours.get("device_mib") and peer.get("device_mib"):
        marks.append(ours["device_mib"] <= work.memory * peer["device_mib"])
    if work.bytes and ours.get("device_mib"):
        marks.append(ours["device_mib"] * (1 << 20) <= work.bytes)
    return "" if not marks else "held" if all(marks) else "MISSED"


def steps(folder):
    ours = {r["work"]: r for r in lines(folder, "ours")}
    peers = {(r["work"], r["side"]): r for r in lines(folder, "peers")}
    if not ours and not peers:
        return
    number = lambda record, key: f"{record[key]:,.0f}" if record and record.get(key) else "-"
    head = ("work", "dspc tok/s", "peer tok/s", "ratio", "floor", "dspc MiB", "peer MiB", "ratio", "", "peer")
    row = "{:<20}{:>12}{:>12}{:>8}  {:<16}{:>10}{:>10}{:>7}  {:<7}{}"
    print("whole steps")
    print(row.format(*head))
    for work in WORKS:
        own = ours.get(work.name)
        found = {side: record for (name, side), record in peers.items() if name == work.name}
        sides = sorted(found.items(), key=lambda side: (work.peers.index(side[0]) if side[0] in work.peers else 99))
        for place, (name, peer) in enumerate(sides or ([("", None)] if own else [])):
            judged = place == 0 and own is not None
            ratio = f"{own['tokens_per_s'] / peer['tokens_per_s']:.2f}" if own and peer else "-"
            both = own and peer and own.get("device_mib") and peer.get("device_mib")
            memory = f"{own['device_mib'] / peer['device_mib']:.2f}" if both else "-"
            print(row.format(
                work.name if place == 0 else "", number(own, "tokens_per_s"), number(peer, "tokens_per_s"), ratio,
                work.floor() if place == 0 else "", number(own, "device_mib"), number(peer, "device_mib"), memory,
                verdict(work, own, peer) if judged else "", name,
            ).rstrip())


def main():
    folder = pathlib.Path(sys.argv[1])
    host = folder / "host.txt"
    if host.exists():
        print(host.read_text().strip())
    for part in (kernels, losses, start, steps):
        part(folder)


if __name__ == "__main__":
    main()
