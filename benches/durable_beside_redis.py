#!/usr/bin/env python3
"""SET with the append-only file, beside redis-server with its own, and beside no file at all.

  benches/durable_beside_redis.py                 five rounds of everything, about ten minutes
  benches/durable_beside_redis.py --rounds 1 --pipelines 16 --policies always
  benches/durable_beside_redis.py --replay 3000000      how long a start takes with so many SETs in the file

redis-benchmark makes the load: 50 connections, 16-byte keys out of a million, 100-byte values. The servers
take turns on the same core, each with one worker; the load and the disk's interrupts have the others. Under
`always` the disk decides, so the wall clock counts: operations a second and the 99th percentile, as the
clients see them. Under `everysec` and with no file what it costs counts: operations a second of the
processor time of the whole server process, and of the clock. Nothing else is saved meanwhile, and no file
is rewritten. Medians; the noise is the range over the rounds.

With --replay the servers are killed behind so many SETs, and started again in turn, on all cores, with the
file in the page cache: from the exec to the first PONG, and processor seconds of the process until then."""
import csv
import io
import os
import pathlib
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / ".ci"))
import harness  # noqa: E402
from harness import Server, expect, step  # noqa: E402

KEYS = 1_000_000
VALUE = 100
TICKS = os.sysconf("SC_CLK_TCK")
OPERATIONS = {("always", 1): 40_000, ("always", 16): 400_000}
BASE = {"server.workers": 1, "persistence.checkpoint_enabled": "false", "persistence.aof_rewrite_percentage": 0,
        "storage.hybridlog_mutable_size": "512MiB", "storage.hybridlog_readonly_size": "64MiB"}
POLICIES = ["always", "everysec", "none"]


def settings(policy):
    if policy == "none":
        return BASE | {"persistence.aof_enabled": "false"}
    return BASE | {"persistence.aof_enabled": "true", "persistence.aof_sync": policy}


def redis_flags(policy):
    if policy == "none":
        return ["--appendonly", "no"]
    return ["--appendonly", "yes", "--appendfsync", policy, "--auto-aof-rewrite-percentage", "0"]


def processor_seconds(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS          # utime, stime


def measure(server, policy, pipeline, cores):
    """Operations a second, milliseconds of the 99th percentile, operations a processor second."""
    count = OPERATIONS.get((policy, pipeline), pipeline * 100_000)
    before = processor_seconds(server.process.pid)
    run = subprocess.run(["taskset", "-c", cores, "redis-benchmark", "-h", "127.0.0.1", "-p", str(server.port),
                          "-t", "set", "-c", "50", "-n", str(count), "-P", str(pipeline), "-d", str(VALUE),
                          "-r", str(KEYS), "--csv"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    expect(run.returncode == 0 and "rror" not in run.stdout, f"redis-benchmark: {run.stdout[-500:]}")
    row = list(csv.DictReader(io.StringIO(run.stdout)))[-1]
    cpu = count / (processor_seconds(server.process.pid) - before)
    return float(row["rps"]), float(row["p99_latency_ms"]), cpu


def median_of(values, form):
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def replay(options):
    """Starts of both servers with the same number of commands in their files."""
    redis_options = type(options)(**{**vars(options), "server_cmd": "redis"})
    servers = {"redis": Server(redis_options), "ferrite": Server(options, settings=settings("everysec"))}
    servers["redis"].flags = redis_flags("everysec")
    keys = {}
    for name, server in servers.items():
        server.start()
        subprocess.run(["redis-benchmark", "-h", "127.0.0.1", "-p", str(server.port), "-t", "set", "-c", "50", "-n",
                        str(options.replay), "-P", "64", "-d", str(VALUE), "-r", str(KEYS), "-q"],
                       stdout=subprocess.DEVNULL, check=True)
        time.sleep(2)                           # all of it is in the file
        keys[name] = count_keys(server)
        server.kill()
    results = {name: [] for name in servers}
    for number in range(options.rounds):
        for name, server in servers.items():
            since = time.monotonic()
            server.start(limit=3600)
            wall, cpu = time.monotonic() - since, processor_seconds(server.process.pid)
            expect(count_keys(server) == keys[name], f"{name} has other keys than before")
            server.kill()
            results[name].append((wall, cpu))
            step(f"round {number + 1} {name}: {wall:.2f} s, {cpu:.2f} CPU-seconds")
    print(f"\nReplay of {options.replay} SETs, medians of {options.rounds} (lowest to highest)\n")
    print("| | seconds | thousand commands/s | CPU-seconds |\n|---|---|---|---|")
    for name, rows in results.items():
        walls, cpus = zip(*rows)
        rates = [options.replay / wall / 1000 for wall in walls]
        print(f"| {name} | {median_of(walls, '.2f')} | {median_of(rates, '.0f')} | {median_of(cpus, '.2f')} |")
    ratio = [statistics.median(redis[column] / ferrite[column] for redis, ferrite in zip(*results.values()))
             for column in (0, 1)]
    print(f"\nferrite / redis, commands a second: {ratio[0]:.2f}, commands a CPU-second: {ratio[1]:.2f}\n")


def count_keys(server):
    connection = harness.Connection(server.port)
    keys = connection.call("DBSIZE")
    connection.close()
    return keys


def body(options):
    if options.replay:
        return replay(options)
    cores = sorted(os.sched_getaffinity(0))
    expect(len(cores) > 1, "the load needs a core of its own")
    core, others = str(cores[0]), ",".join(map(str, cores[1:]))
    redis_options = type(options)(**{**vars(options), "server_cmd": "redis"})
    servers = {}
    for policy in options.policies:
        redis, ferrite = Server(redis_options), Server(options, settings=settings(policy))
        redis.flags = redis_flags(policy)
        servers[policy] = {"redis": redis, "ferrite": ferrite}
    for by_name in servers.values():
        for server in by_name.values():
            server.wrap = ["taskset", "-c", core]
            server.start()
            # Every key is there and the log's pages were touched before anything counts.
            measure(server, "warm", 16, others)
    results = {}
    for number in range(options.rounds):
        for pipeline in options.pipelines:
            for policy, by_name in servers.items():
                for name, server in by_name.items():
                    result = measure(server, policy, pipeline, others)
                    results.setdefault((policy, pipeline), {}).setdefault(name, []).append(result)
                    rps, p99, cpu = result
                    step(f"round {number + 1} {policy} pipeline {pipeline} {name}: {rps:.0f}/s, p99 {p99:.2f} ms, "
                         f"{cpu:.0f} a CPU-second")

    def cells(rows, column, scale, form):
        return median_of([row[column] / scale for row in rows], form)

    print(f"\nSET, 50 connections, medians of {options.rounds} (lowest to highest)\n")
    print("| append-only file | pipeline | redis, thousand/s | ferrite, thousand/s | ratio | redis, p99 ms | "
          "ferrite, p99 ms | redis, thousand a CPU-second | ferrite, thousand a CPU-second | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for (policy, pipeline), by_name in results.items():
        redis, ferrite = by_name["redis"], by_name["ferrite"]

        def ratio(column):
            of = [statistics.median(row[column] for row in rows) for rows in (ferrite, redis)]
            return f"{of[0] / of[1]:.2f}"
        print(f"| {policy} | {pipeline} | {cells(redis, 0, 1000, '.1f')} | {cells(ferrite, 0, 1000, '.1f')} | "
              f"{ratio(0)} | {cells(redis, 1, 1, '.2f')} | {cells(ferrite, 1, 1, '.2f')} | "
              f"{cells(redis, 2, 1000, '.0f')} | {cells(ferrite, 2, 1000, '.0f')} | {ratio(2)} |")
    if {"everysec", "none"} <= servers.keys():
        print("\nWith everysec, of what it is without a file: operations a second, and a CPU-second\n")
        print("| pipeline | redis | ferrite |\n|---|---|---|")
        for pipeline in options.pipelines:
            def part(name, column):
                of = [statistics.median(row[column] for row in results[policy, pipeline][name])
                      for policy in ("everysec", "none")]
                return f"{of[0] / of[1]:.2f}"
            row = (f"{part(name, 0)}, {part(name, 2)}" for name in ("redis", "ferrite"))
            print(f"| {pipeline} | {' | '.join(row)} |")
    print()


parser = harness.arguments(__doc__)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--policies", nargs="+", default=POLICIES, choices=POLICIES)
parser.add_argument("--pipelines", nargs="+", type=int, default=[1, 16])
parser.add_argument("--replay", type=int, metavar="COMMANDS", help="measure starts instead")
harness.main(body, parser.parse_args())
