#!/usr/bin/env python3
"""A checkpoint under load, and a start with cold disks, beside redis-server.

  benches/checkpoint_beside_redis.py                    five rounds with 5 million keys, about ten minutes
  benches/checkpoint_beside_redis.py --keys 500000 --rounds 1

Keys have 16 bytes, values 100. One core has the server, the others the load (benches/load: 50 connections,
each with one request on its way, half SET and half GET, uniform). After one save that does not count,
BGSAVE is told in the middle of the load in each round: the window in which it runs is compared with one of the same length behind it. Memory is
Anonymous of smaps_rollup, of the process and its children, every 50 ms: the highest during the save minus
the median before.

Then both are stopped behind a save and started again with an empty page cache (that needs root; without it
the cache stays, and the table says so): from the exec to the first right GET of a random key, then the 99th
percentile of the next 10,000 GETs of random keys, one at a time. Redis loads its RDB, Ferrite its checkpoint;
the append-only files are off. Medians; the noise is the range over the rounds."""
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / ".ci"))
import harness  # noqa: E402
from harness import Connection, Failed, Server, expect, step  # noqa: E402

SETTINGS = {"server.workers": 1, "persistence.checkpoint_enabled": "false", "persistence.aof_enabled": "false",
            "persistence.backup_hold": 0, "storage.hybridlog_mutable_size": "512MiB",
            "storage.hybridlog_readonly_size": "512MiB"}


def load_program():
    subprocess.run(["cargo", "build", "--release", "-q", "-p", "ferrite-benches", "--bin", "load"],
                   cwd=harness.ROOT, check=True)
    return str(harness.TARGET / "release/load")


class Memory:
    """Anonymous bytes of a process and its children, every 50 ms."""

    def __init__(self, pid):
        self.pid, self.samples, self.ends = pid, [], threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.ends.wait(0.05):
            self.samples.append((time.monotonic(), self.now()))

    def now(self):
        with open(f"/proc/{self.pid}/task/{self.pid}/children") as children:
            pids = [self.pid, *children.read().split()]
        total = 0
        for pid in pids:
            try:
                with open(f"/proc/{pid}/smaps_rollup") as rollup:
                    total += next(int(line.split()[1]) << 10 for line in rollup if line.startswith("Anonymous:"))
            except (FileNotFoundError, ProcessLookupError, StopIteration):
                pass                            # it has ended
        return total

    def stop(self):
        self.ends.set()
        self.thread.join()


def save_under_load(server, program, others, options):
    """One round: the windows, and the memory that the save took as a part of all."""
    connection = Connection(server.port)
    connection.call("CONFIG", "RESETSTAT")
    memory = Memory(server.process.pid)
    since = time.monotonic()
    run = subprocess.run(["taskset", "-c", others, program, "--port", str(server.port), "--keys", str(options.keys),
                          "--seconds", str(options.seconds), "--while", "BGSAVE", "rdb_bgsave_in_progress"],
                         stdout=subprocess.PIPE, text=True)
    memory.stop()
    if run.returncode:
        raise Failed(f"the load ended with {run.returncode}")
    windows = {row["window"]: row for row in map(json.loads, run.stdout.splitlines())}
    begun = since + windows["before"]["seconds"]
    before = statistics.median(size for at, size in memory.samples if at < begun)
    during = max(size for at, size in memory.samples if begun <= at <= begun + windows["during"]["seconds"] + 0.2)
    windows["memory"] = (during - before) / before
    windows["safepoint"] = int(server.info().get("safepoint_usec_max", 0))
    expect(connection.call("LASTSAVE") > 0, "nothing was saved")
    connection.close()
    return windows


def drop_caches():
    """Empties the page cache; False where that is not allowed."""
    os.sync()
    try:
        with open("/proc/sys/vm/drop_caches", "w") as caches:
            caches.write("3")
        return True
    except PermissionError:
        return False


def start(server, options):
    """Seconds from the exec to the first right GET, and milliseconds of the 99th percentile then."""
    name = f"key:{random.randrange(options.keys):012}"
    wanted = name.encode() + b"." * 84
    since = time.monotonic()
    server.launch()
    while True:
        expect(server.process.poll() is None, f"{server.name} has ended")
        try:
            connection = Connection(server.port)
            if connection.call("GET", name) == wanted:
                break
        except (OSError, harness.Error):
            pass
        time.sleep(0.001)
    first = time.monotonic() - since
    times = []
    for _ in range(10_000):
        name = f"key:{random.randrange(options.keys):012}"
        at = time.perf_counter()
        value = connection.call("GET", name)
        times.append(time.perf_counter() - at)
        expect(value == name.encode() + b"." * 84, f"{name} has another value: {value!r}")
    connection.close()
    return first, sorted(times)[9900] * 1000


def median_of(values, form):
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def body(options):
    program = load_program()
    cores = sorted(os.sched_getaffinity(0))
    expect(len(cores) > 1, "the load needs a core of its own")
    core, others = str(cores[0]), ",".join(map(str, cores[1:]))
    redis_options = type(options)(**{**vars(options), "server_cmd": "redis"})
    servers = {"redis": Server(redis_options), "ferrite": Server(options, settings=SETTINGS)}
    saves, starts, dropped = {name: [] for name in servers}, {name: [] for name in servers}, True
    # One after the other: each has the memory and the disk for itself.
    for name, server in servers.items():
        server.wrap = ["taskset", "-c", core]
        server.start()
        subprocess.run([program, "--port", str(server.port), "--keys", str(options.keys), "--fill"], check=True)
        # Before anything counts: what a first save brings about, as memory that is touched, is there.
        save_under_load(server, program, others, options)
        step(f"{name}: {options.keys} keys")
        for number in range(options.rounds):
            windows = save_under_load(server, program, others, options)
            saves[name].append(windows)
            during, after = windows["during"], windows["after"]
            step(f"{name} round {number + 1}: {during['seconds']:.2f} s, p99.9 {during['p99.9']:.0f} us (without "
                 f"{after['p99.9']:.0f}), longest {during['longest']:.0f} us (without {after['longest']:.0f}), "
                 f"memory +{100 * windows['memory']:.1f} %, safepoint {windows['safepoint']} us")
        server.wrap = []
        for number in range(options.rounds):
            server.kill()
            dropped &= drop_caches()
            starts[name].append(start(server, options))
            told = [line.split("INFO ")[-1] for line in server.output().splitlines() if "recovered" in line]
            step(f"{name} start {number + 1}: {'; '.join(told)} first GET after {starts[name][-1][0]:.3f} s, then p99 "
                 f"{starts[name][-1][1]:.3f} ms")
        server.kill()
    print(f"\nA save of {options.keys} keys under load, medians of {options.rounds} (lowest to highest)\n")
    print("| | seconds | p99.9 during, us | without, us | ratio | longest during, us | without, us | ratio | "
          "memory added, % | longest safepoint, us |\n|---|---|---|---|---|---|---|---|---|---|")
    for name, rows in saves.items():
        cells = [median_of([row["during"]["seconds"] for row in rows], ".2f")]
        for key in ("p99.9", "longest"):
            cells += [median_of([row[window][key] for row in rows], ".0f") for window in ("during", "after")]
            cells.append(median_of([row["during"][key] / row["after"][key] for row in rows], ".2f"))
        cells.append(median_of([100 * row["memory"] for row in rows], ".1f"))
        cells.append(median_of([row["safepoint"] for row in rows], ".0f") if name == "ferrite" else "")
        print(f"| {name} | {' | '.join(cells)} |")
    cache = "empty" if dropped else "warm"
    print(f"\nStarts on that with an {cache} page cache\n")
    print("| | seconds to the first GET | p99 of the next 10,000, ms |\n|---|---|---|")
    for name, rows in starts.items():
        first, p99 = zip(*rows)
        print(f"| {name} | {median_of(first, '.3f')} | {median_of(p99, '.3f')} |")
    ratio = [statistics.median(row[0] for row in rows) for rows in starts.values()]
    print(f"\nferrite / redis, seconds to the first GET: {ratio[1] / ratio[0]:.3f}\n")


parser = harness.arguments(__doc__)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--keys", type=int, default=5_000_000)
parser.add_argument("--seconds", type=float, default=4, help="of load before each save")
harness.main(body, parser.parse_args())
