#!/usr/bin/env python3
"""GET and SET over the wire beside redis-server, on the same core.

  benches/beside_redis.py                       five rounds of everything, about ten minutes
  benches/beside_redis.py --rounds 1 --pipelines 16 --tests get

redis-benchmark makes the load: 50 connections, 16-byte keys out of a million, 100-byte values, pipelines
of 1, 16 and 64. The servers take turns, each with one worker, pinned to one core; the load runs on the
other cores. What is compared is operations per second of processor time of the whole server process, all
its threads, from /proc/PID/stat: the generator is slower than a fast server, so the wall clock would
measure the generator. Both keep everything in memory and save nothing meanwhile. Prints a table of
medians in thousands; the noise is the range over the rounds."""
import os
import pathlib
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / ".ci"))
import harness  # noqa: E402
from harness import Connection, Server, encode, expect, step  # noqa: E402

KEYS = 1_000_000
VALUE = 100
TICKS = os.sysconf("SC_CLK_TCK")
SETTINGS = {"server.workers": 1, "persistence.aof_enabled": "false", "persistence.checkpoint_enabled": "false",
            "storage.hybridlog_mutable_size": "512MiB", "storage.hybridlog_readonly_size": "64MiB"}
# Enough that a run takes a second of processor time or more; a tick is 10 ms.
OPERATIONS = {1: 200_000, 16: 1_500_000, 64: 3_000_000}


def processor_seconds(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS          # utime, stime


def load(server):
    """Every key that redis-benchmark may ask for: a GET of nothing would be cheaper."""
    value = b"x" * VALUE
    harness.pipelined(Connection(server.port), (encode("SET", b"key:%012d" % k, value) for k in range(KEYS)),
                      lambda i, reply: expect(reply == b"OK", f"SET answered {reply!r}"), depth=500)


def measure(server, test, pipeline, cores):
    """Thousands of operations per processor second."""
    count = OPERATIONS.get(pipeline, pipeline * 50_000)
    before = processor_seconds(server.process.pid)
    run = subprocess.run(["taskset", "-c", cores, "redis-benchmark", "-h", "127.0.0.1", "-p", str(server.port),
                          "-t", test, "-c", "50", "-n", str(count), "-P", str(pipeline), "-d", str(VALUE),
                          "-r", str(KEYS), "-q"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    expect(run.returncode == 0 and "requests per second" in run.stdout and "rror" not in run.stdout,
           f"redis-benchmark: {run.stdout[-500:]}")
    return count / (processor_seconds(server.process.pid) - before) / 1000


def body(options):
    cores = sorted(os.sched_getaffinity(0))
    expect(len(cores) > 1, "the load needs a core of its own")
    core, others = str(cores[0]), ",".join(map(str, cores[1:]))
    redis_options = type(options)(**{**vars(options), "server_cmd": "redis"})
    servers = {"redis": Server(redis_options), "ferrite": Server(options, settings=SETTINGS)}
    for server in servers.values():
        server.wrap = ["taskset", "-c", core]
        load(server.start())
    step(f"{KEYS} keys in each; servers on core {core}, the load on {others}")
    results = {}
    for number in range(options.rounds):
        for test in options.tests:
            for pipeline in options.pipelines:
                for name, server in servers.items():
                    result = measure(server, test, pipeline, others)
                    results.setdefault((test, pipeline), {}).setdefault(name, []).append(result)
                    step(f"round {number + 1} {test} pipeline {pipeline} {name}: {result:.0f}")
    print("\nThousand operations per second of server processor time, "
          f"medians of {options.rounds} (lowest to highest)\n")
    print("| | pipeline | redis-server | ferrite | ferrite / redis |\n|---|---|---|---|---|")
    for (test, pipeline), by_name in results.items():
        redis, ferrite = (statistics.median(by_name[name]) for name in ("redis", "ferrite"))
        cells = (f"{statistics.median(r):.0f} ({min(r):.0f} to {max(r):.0f})"
                 for r in (by_name["redis"], by_name["ferrite"]))
        print(f"| {test.upper()} | {pipeline} | {' | '.join(cells)} | {ferrite / redis:.2f} |")
    print()


parser = harness.arguments(__doc__)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--tests", nargs="+", default=["get", "set"], choices=["get", "set"])
parser.add_argument("--pipelines", nargs="+", type=int, default=[1, 16, 64])
harness.main(body, parser.parse_args())
