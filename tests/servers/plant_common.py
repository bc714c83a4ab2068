"""What the judging plants have in common: the values that they serve, their statistics, their commands.

A plant has D devices (`plc-00` …) of R holding registers (`r000` …), each device on a loopback port of its own as unit 1.
Every value tells which read it came from, so that a recorder can tell what is missing, twice or out of order:

    value(device, register, n) = (n + 1009 * device + 257 * register) mod 65536

With `--mode count` n is the number of reads of the same first register so far (1, 2, 3 …): as long as the reader keeps its
plan, each point's n rises by exactly one per read. With `--mode time` n counts tenths of a second since 1970.

The plant prints `ready {json}` with its ports, takes one command per line on standard input, answers each with one line of
JSON, and ends when standard input closes. SIGUSR1 prints the statistics as well.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections import Counter, deque

WINDOW = 10.0  # seconds over which rates are taken


def offset(device, register):
    return (1009 * device + 257 * register) % 65536


def device_name(device):
    return f"plc-{device:02d}"


class Journal:
    """Counts requests; with a file it also writes a line for each read: device, first register, count, n, time in ms."""

    def __init__(self, devices, path=None):
        self.lock = threading.Lock()
        self.file = open(path, "w", buffering=1 << 16) if path else None
        self.devices = devices
        self.reads = [Counter() for _ in range(devices)]
        self.reset()

    def reset(self):
        with self.lock:
            self.since = time.monotonic()
            self.requests = [0] * self.devices
            self.registers = [0] * self.devices
            self.writes = [0] * self.devices
            self.plans = [Counter() for _ in range(self.devices)]
            self.recent = [deque() for _ in range(self.devices)]

    def read(self, device, first, count, mode):
        """Notes a read and returns its n."""
        now = time.monotonic()
        with self.lock:
            self.requests[device] += 1
            self.registers[device] += count
            self.plans[device][(first, count)] += 1
            recent = self.recent[device]
            recent.append(now)
            while recent and recent[0] < now - WINDOW:
                recent.popleft()
            self.reads[device][first] += 1
            n = self.reads[device][first] if mode == "count" else int(time.time() * 10)
            if self.file:
                self.file.write(f"{device},{first},{count},{n},{int(time.time() * 1000)}\n")
        return n

    def write(self, device):
        with self.lock:
            self.requests[device] += 1
            self.writes[device] += 1

    def statistics(self):
        with self.lock:
            now = time.monotonic()
            elapsed = now - self.since
            for recent in self.recent:
                while recent and recent[0] < now - WINDOW:
                    recent.popleft()
            window = min(WINDOW, elapsed) or 1.0
            if self.file:
                self.file.flush()
            return {
                "elapsed": round(elapsed, 3),
                "requests": sum(self.requests),
                "registers": sum(self.registers),
                "writes": sum(self.writes),
                "per_second": round(sum(len(r) for r in self.recent) / window, 2),
                "devices": {
                    device_name(d): {
                        "requests": self.requests[d],
                        "registers": self.registers[d],
                        "writes": self.writes[d],
                        "per_second": round(len(self.recent[d]) / window, 2),
                        "reads": {f"{first}+{count}": times for (first, count), times in sorted(self.plans[d].items())},
                    }
                    for d in range(self.devices)
                },
            }


def arguments(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--registers", type=int, default=100)
    parser.add_argument("--mode", choices=["count", "time"], default="count")
    parser.add_argument("--journal", help="file for one line per read")
    parser.add_argument("--config", help="directory for gateway devices/*.toml and points/*.csv that read this plant")
    parser.add_argument("--rate", default="1 s", help="poll rate in that configuration")
    return parser.parse_args()


def write_config(folder, ports, registers, rate):
    """Gateway configuration of all devices, for the ports of this run."""
    os.makedirs(os.path.join(folder, "devices"), exist_ok=True)
    os.makedirs(os.path.join(folder, "points"), exist_ok=True)
    with open(os.path.join(folder, "points", "registers.csv"), "w") as file:
        file.write("id,table,address,type\n")
        for register in range(registers):
            file.write(f"r{register:03d},holding,{register},u16\n")
    for device, port in enumerate(ports):
        name = device_name(device)
        with open(os.path.join(folder, "devices", f"{name}.toml"), "w") as file:
            file.write(
                f'id = "{name}"\nrate = "{rate}"\npoints = ["../points/registers.csv"]\n\n'
                f'[modbus]\nlink = "tcp://127.0.0.1:{port}"\nunit = 1\n'
            )


def serve_commands(ports, args, journal, act):
    """Prints the ready line, then answers commands until standard input closes. `act(name, device)` does `kill`,
    `revive` and what else a plant can do, and raises ValueError for what it cannot."""
    if args.config:
        write_config(args.config, ports, args.registers, args.rate)
    ready = {"ports": ports, "devices": [device_name(d) for d in range(args.devices)], "registers": args.registers}
    print("ready " + json.dumps(ready), flush=True)
    for line in sys.stdin:
        words = line.split()
        try:
            if words == ["stats"]:
                say(journal.statistics())
            elif words == ["reset"]:
                journal.reset()
                say({"ok": True})
            elif len(words) == 2 and 0 <= int(words[1]) < args.devices:
                act(words[0], int(words[1]))
                say({"ok": True})
            else:
                raise ValueError(f"commands are stats, reset, kill N, revive N, mute N, unmute N; not {line.strip()!r}")
        except Exception as error:  # the test sees it as the answer
            say({"error": str(error)})


def say(value):
    print(json.dumps(value), flush=True)
