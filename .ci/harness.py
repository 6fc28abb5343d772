"""What the acceptance checks share: a server that can be started, killed and started again, clients,
and loads that many connections make at once.

A check runs against Ferrite, or with `--server-cmd redis` against redis-server: there it shows that
the check itself is right. `--server-cmd` takes any command with {port}, {dir} and {settings} in it.
Everything listens on and talks to 127.0.0.1 alone.
"""
import argparse
import atexit
import os
import pathlib
import random
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = (ROOT / os.environ.get("CARGO_TARGET_DIR", "target")).resolve()
WORK = TARGET / "ci"
FERRITE = TARGET / "release" / "ferrite"
FERRITE_COMMAND = f"{shlex.quote(str(FERRITE))} --port {{port}} --data-dir {{dir}} {{settings}}"
REDIS_COMMAND = ("redis-server --port {port} --bind 127.0.0.1 --dir {dir} --save '' --appendonly no"
                 " --daemonize no")
KIB, MIB = 1 << 10, 1 << 20


def use_redis_py():
    """Runs this script again in the environment that has redis-py, unless it runs there already."""
    try:
        import redis  # noqa: F401
    except ImportError:
        python = WORK / "venv" / "bin" / "python"
        if os.environ.get("CI_VENV"):
            raise
        if not python.exists() or subprocess.run([python, "-c", "import redis"]).returncode:
            subprocess.run([ROOT / ".ci" / "prepare"], check=True)
        os.environ["CI_VENV"] = "1"
        os.execv(python, [str(python), *sys.argv])


# ------------------------------------------------------------------------------ arguments and outcome

def arguments(description):
    parser = argparse.ArgumentParser(description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server-cmd", default="ferrite", metavar="COMMAND",
                        help="ferrite (the default), redis, or a command with {port} {dir} {settings}")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32),
                        help="repeats a run; printed at its start")
    parser.add_argument("--dir", help="where the data directories go (default: the target directory)")
    return parser


class Failed(Exception):
    """What the check shows does not hold."""


def expect(condition, message):
    if not condition:
        raise Failed(message)


def main(body, options):
    """Runs a check: prints its seed and what failed, with the end of the server's output."""
    name = pathlib.Path(sys.argv[0]).name
    print(f"{name} --seed {options.seed} --server-cmd {shlex.quote(options.server_cmd)}", flush=True)
    random.seed(options.seed)
    if options.server_cmd not in ("ferrite", "redis") and "{port}" not in options.server_cmd:
        sys.exit(f"--server-cmd {options.server_cmd}: the command must have {{port}} and {{dir}} in it")
    if options.server_cmd == "ferrite":
        subprocess.run(["cargo", "build", "--release", "-q", "-p", "ferrite-server"], cwd=ROOT, check=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))     # so that atexit stops the servers
    start = time.monotonic()
    try:
        body(options)
    except Failed as failure:
        print(f"FAILED: {failure}")
        for server in Server.all[-3:]:
            print(f"--- the end of what {server.name} printed:\n{server.output()[-4000:]}")
        # Once more: of a long log the end is shown.
        print(f"FAILED: {failure}")
        sys.exit(1)
    print(f"{name}: all held, {time.monotonic() - start:.1f} s")


def step(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


# ------------------------------------------------------------------------------ the server

class Server:
    all = []

    def __init__(self, options, directory=None, **settings):
        """Settings are given as storage_hybridlog_page_size=... or as a dict under `settings`."""
        self.template = {"ferrite": FERRITE_COMMAND, "redis": REDIS_COMMAND}.get(
            options.server_cmd, options.server_cmd)
        self.oracle = "redis-server" in self.template
        self.settings = settings.pop("settings", settings)
        self.wrap, self.flags = [], []
        self.name = "redis-server" if self.oracle else "the server"
        self.process = None
        if directory is None:
            base = options.dir or WORK / "data"
            os.makedirs(base, exist_ok=True)
            directory = tempfile.mkdtemp(prefix=pathlib.Path(sys.argv[0]).name + "-", dir=base)
            atexit.register(shutil.rmtree, directory, ignore_errors=True)
        self.dir = pathlib.Path(directory)
        self.log = tempfile.NamedTemporaryFile(prefix="ferrite-ci-", suffix=".log")
        self.mark = 0
        self.port = free_port()
        Server.all.append(self)
        atexit.register(self.kill)

    def command(self):
        sets = " ".join(f"--set {name}={value}" for name, value in self.settings.items())
        return self.wrap + shlex.split(
            self.template.format(port=self.port, dir=shlex.quote(str(self.dir)), settings=sets)) + self.flags

    def launch(self):
        """Starts it and does not wait until it answers."""
        expect(self.process is None or self.process.poll() is not None, "the server runs already")
        self.mark = os.path.getsize(self.log.name)
        self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, cwd=self.dir.parent,
                                        stdout=self.log, stderr=self.log, start_new_session=True)

    def start(self, limit=120):
        """Starts it and waits until it answers PING."""
        self.launch()
        end = time.monotonic() + limit
        while True:
            code = self.process.poll()
            expect(code is None, f"{self.name} ended with {code} instead of starting")
            try:
                connection = Connection(self.port)
                connection.send(encode("PING"))
                reply = connection.read()
                connection.close()
                if reply == b"PONG":
                    return self
                expect(str(reply).startswith("LOADING"), f"PING answered {reply!r}")
            except OSError:
                pass                        # nobody listens yet
            expect(time.monotonic() < end, f"{self.name} does not answer after {limit} s")
            time.sleep(0.02)

    def refused(self, limit=60):
        """Starts it where it must not come up: its exit status and what it printed."""
        self.launch()
        try:
            code = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed("the server started although it had to refuse") from None
        return code, self.output()

    def output(self):
        """What it printed since its last start."""
        with open(self.log.name, "rb") as log:
            log.seek(self.mark)
            return log.read().decode(errors="replace")

    def kill(self):
        """kill -9, with the children of its process group."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def terminate(self, limit=60):
        """SIGTERM; waits for the end, which must be a clean one."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} runs on {limit} s after SIGTERM") from None
        expect(code == 0, f"{self.name} ended with {code} after SIGTERM")

    def client(self, **keywords):
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
        # A retried command might be applied twice, which would hide what these checks look for.
        return redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=120,
                           retry=Retry(NoBackoff(), 0), **keywords)

    def info(self):
        """INFO as a flat dictionary of strings."""
        connection = Connection(self.port)
        text = connection.call("INFO").decode()
        connection.close()
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line and line[0] != "#")

    def start_bgsave(self, connection):
        """BGSAVE in a later second than the last one: what finish_bgsave waits for."""
        while True:
            last = connection.call("LASTSAVE")
            while int(time.time()) <= last:
                time.sleep(0.05)
            try:
                answer = connection.call("BGSAVE")
                break
            except Error as error:
                # The server takes checkpoints of its own accord, too.
                expect("already in progress" in str(error), f"BGSAVE answered {error}")
                time.sleep(0.02)
        expect(answer == b"Background saving started", f"BGSAVE answered {answer!r}")
        return last

    def finish_bgsave(self, connection, last, limit=300):
        end = time.monotonic() + limit
        while connection.call("LASTSAVE") <= last:
            expect(time.monotonic() < end, f"LASTSAVE does not move {limit} s after BGSAVE")
            time.sleep(0.02)

    def bgsave(self):
        connection = Connection(self.port)
        self.finish_bgsave(connection, self.start_bgsave(connection))

    def memory(self):
        """Anonymous and locked bytes of the process."""
        with open(f"/proc/{self.process.pid}/smaps_rollup") as rollup:
            sizes = {line.split(":")[0]: int(line.split()[1]) * KIB for line in rollup if line.endswith("kB\n")}
        return sizes["Anonymous"] + sizes["Locked"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ------------------------------------------------------------------------------ connections

class Error(Exception):
    """An error reply."""


def encode(*parts):
    parts = [p if isinstance(p, bytes) else str(p).encode() for p in parts]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)


class Connection:
    """One blocking connection, RESP2. Error replies are returned by `read` and raised by `call`."""

    def __init__(self, port, timeout=120):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def send(self, data):
        self.socket.sendall(data)

    def read(self):
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"-":
            return Error(rest.decode(errors="replace"))
        if kind == b"$":
            length = int(rest)
            if length < 0:
                return None
            body = self.file.read(length + 2)
            if len(body) != length + 2:
                raise ConnectionError("the server closed the connection")
            return body[:-2]
        if kind == b"*":
            return None if rest == b"-1" else [self.read() for _ in range(int(rest))]
        raise Failed(f"no RESP2 reply: {line[:60]!r}")

    def call(self, *parts):
        self.send(encode(*parts))
        reply = self.read()
        if isinstance(reply, Error):
            raise reply
        return reply

    def close(self):
        self.file.close()
        self.socket.close()


def pipelined(connection, commands, handle, depth=200):
    """Sends encoded commands in batches; `handle(index, reply)` sees each reply in order."""
    done, batch = 0, []

    def flush():
        nonlocal done, batch
        connection.send(b"".join(batch))
        for _ in batch:
            handle(done, connection.read())
            done += 1
        batch = []

    for command in commands:
        batch.append(command)
        if len(batch) == depth:
            flush()
    if batch:
        flush()
    return done


class Lane:
    """One of many connections that one thread drives. Replies are integers, statuses, errors or bulk
    strings, as `drive` hands them over."""

    __slots__ = ("socket", "buffer", "waiting", "number")

    def __init__(self, port, number):
        self.socket = socket.create_connection(("127.0.0.1", port), 120)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.waiting = []       # what the caller noted for each command in flight, in order
        self.number = number


def drive(port, count, next_batch, handle, between=None):
    """Runs `count` connections from one thread until each has nothing more to send.

    `next_batch(lane)` gives the next [(encoded command, note), ...] of a lane, or [] at its end;
    `handle(lane, note, reply)` sees every reply: bytes, an int, None, or an Error.
    `between()` is called from time to time."""
    selector = selectors.DefaultSelector()
    lanes = [Lane(port, number) for number in range(count)]

    def send(lane):
        batch = next_batch(lane)
        if not batch:
            selector.unregister(lane.socket)
            lane.socket.close()
            return False
        lane.waiting = [note for _, note in batch]
        lane.socket.sendall(b"".join(command for command, _ in batch))
        return True

    for lane in lanes:
        selector.register(lane.socket, selectors.EVENT_READ, lane)
    running = sum(send(lane) for lane in lanes)
    while running:
        if between:
            between()
        events = selector.select(120)
        expect(events, "no connection has had a reply for 120 s")
        for key, _ in events:
            lane = key.data
            data = lane.socket.recv(1 << 20)
            expect(data, f"the server closed connection {lane.number}")
            lane.buffer = replies(lane, lane.buffer + data, handle)
            if not lane.waiting:
                expect(not lane.buffer, f"a reply that nobody asked for: {lane.buffer[:60]!r}")
                running -= not send(lane)
    selector.close()


def replies(lane, data, handle):
    """Hands over the complete replies in `data`; what is left."""
    at, done, waiting = 0, 0, lane.waiting
    while done < len(waiting):
        end = data.find(b"\r\n", at)
        if end < 0:
            break
        kind = data[at]
        if kind == 36:                                  # $
            length = int(data[at + 1:end])
            if length < 0:
                reply, at_next = None, end + 2
            else:
                at_next = end + 2 + length + 2
                if at_next > len(data):
                    break
                reply = data[end + 2:at_next - 2]
        else:
            at_next = end + 2
            if kind == 58:                              # :
                reply = int(data[at + 1:end])
            elif kind == 43:                            # +
                reply = data[at + 1:end]
            elif kind == 45:                            # -
                reply = Error(data[at + 1:end].decode(errors="replace"))
            else:
                raise Failed(f"no reply that belongs here: {data[at:at + 60]!r}")
        handle(lane, waiting[done], reply)
        done, at = done + 1, at_next
    del waiting[:done]
    return data[at:]


# ------------------------------------------------------------------------------ chance

def zipf(count, skew, samples, rng):
    """Samples of 0..count with Zipf's law, the popular ones spread over the whole range."""
    total, cumulative = 0.0, []
    for rank in range(1, count + 1):
        total += rank ** -skew
        cumulative.append(total)
    order = list(range(count))
    rng.shuffle(order)
    return [order[i] for i in rng.choices(range(count), cum_weights=cumulative, k=samples)]
