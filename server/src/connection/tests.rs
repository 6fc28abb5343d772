use super::*;
use crate::client::Origin;
use crate::context::{Context, unix_ms};
use crate::worker::{Mailbox, Worker};
use ferrite_hybridlog::{Config, Store};
use std::sync::Arc;

/// A worker without a transport, with one connection.
struct Wire {
    worker: Worker,
    slot: u32,
    context: Arc<Context>,
    directory: tempfile::TempDir,
}

impl Wire {
    fn new() -> Self {
        Self::with(|config| config)
    }
    fn with(change: impl FnOnce(Config) -> Config) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(change(Config::new(directory.path()))).unwrap();
        Self { directory, ..Self::of(Arc::new(Context::new(store, 16, 1))) }
    }
    /// Before the store is open.
    fn loading() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let live = crate::config::Live::default();
        let context = Context::with_config(live, directory.path().to_owned());
        Self { directory, ..Self::of(Arc::new(context)) }
    }
    /// A client more.
    fn of(context: Arc<Context>) -> Self {
        let mut worker = Worker::new(context.clone(), 0, Arc::new(Mailbox::new(|| {})));
        let origin = Origin {
            address: "127.0.0.1:1".into(),
            local_address: "127.0.0.1:2".into(),
            descriptor: 1,
            worker: 0,
        };
        let shared = context.clients.add(origin, unix_ms(), 10).unwrap();
        let slot = worker.open(shared);
        Self { worker, slot, context, directory: tempfile::tempdir().unwrap() }
    }
    fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = self.worker.room(self.slot);
            let n = room.len().min(bytes.len());
            room[..n].copy_from_slice(&bytes[..n]);
            self.worker.received(self.slot, n);
            bytes = &bytes[n..];
        }
    }
    /// Runs until the connection wants something of its peer; returns that and the replies.
    fn settle(&mut self) -> (Next, Vec<u8>) {
        let mut replies = Vec::new();
        loop {
            let next = self.worker.advance(self.slot, false);
            if next != Next::Flush {
                replies.extend_from_slice(self.worker.connection(self.slot).unsent());
                let n = self.worker.connection(self.slot).unsent().len();
                self.worker.sent(self.slot, n);
            }
            self.worker.pause(self.slot);
            match next {
                Next::Wait => drop(self.worker.receive(|_| {})),
                Next::Again => {}
                other => return (other, replies),
            }
        }
    }
    fn text(&mut self, bytes: &[u8]) -> String {
        self.put(bytes);
        String::from_utf8(self.settle().1).unwrap()
    }
}

#[test]
fn replies_come_in_order_across_pending_commands() {
    let mut wire = Wire::new();
    let mut sent = String::new();
    let mut expected = String::new();
    for i in 0..2000 {
        sent += &format!("SET k{} {i}\r\nGET k{}\r\nPING {i}\r\n", i % 10, i % 10);
        let n = i.to_string().len();
        expected += &format!("+OK\r\n${n}\r\n{i}\r\n${n}\r\n{i}\r\n");
    }
    assert_eq!(wire.text(sent.as_bytes()), expected);
}

#[test]
fn a_split_at_every_byte_changes_nothing() {
    let sent = b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$2\r\nx\n\r\n\r\nGET a\r\n*1\r\n$4\r\nPING\r\nfoo 'b c'\r\n";
    let expected = "+OK\r\n$2\r\nx\n\r\n+PONG\r\n-ERR unknown command 'foo', with args beginning with: 'b c' \r\n";
    assert_eq!(Wire::new().text(sent), expected);
    for cut in 0..sent.len() {
        let mut wire = Wire::new();
        let first = wire.text(&sent[..cut]);
        assert_eq!(first + &wire.text(&sent[cut..]), expected, "cut at {cut}");
    }
    let mut wire = Wire::new();
    let replies: String = sent.chunks(1).map(|b| wire.text(b)).collect();
    assert_eq!(replies, expected);
}

#[test]
fn no_command_runs_over_the_output_limit() {
    let mut wire = Wire::new();
    wire.context.limits.output_pause.set(1000);
    let value = "v".repeat(300);
    wire.text(format!("SET a {value}\r\n").as_bytes());
    wire.put("GET a\r\n".repeat(100).as_bytes());
    let mut replies = Vec::new();
    loop {
        let (next, got) = wire.settle();
        replies.extend(got);
        if next != Next::Flush {
            break;
        }
        let unsent = wire.worker.connection(wire.slot).unsent();
        assert!(unsent.len() <= 1000 + 400, "{}", unsent.len());
        assert_eq!(wire.worker.advance(wire.slot, true), Next::Flush, "nothing runs meanwhile");
        replies.extend_from_slice(wire.worker.connection(wire.slot).unsent());
        let n = wire.worker.connection(wire.slot).unsent().len();
        wire.worker.sent(wire.slot, n);
    }
    assert_eq!(replies, format!("$300\r\n{value}\r\n").repeat(100).into_bytes());
}

#[test]
fn a_protocol_error_is_answered_after_what_came_before_it() {
    let mut wire = Wire::new();
    wire.put(b"SET a 1\r\nGET a\r\n*1\r\n$x\r\nGET a\r\n");
    let (next, replies) = wire.settle();
    assert_eq!(next, Next::Close);
    assert_eq!(replies, b"+OK\r\n$1\r\n1\r\n-ERR Protocol error: invalid bulk length\r\n");
}

#[test]
fn an_oversized_value_is_refused_without_being_kept() {
    let mut wire = Wire::new();
    let limit = wire.context.store.value_limit(0);
    let header = format!("*3\r\n$3\r\nSET\r\n$1\r\na\r\n${}\r\n", limit + 1);
    wire.put(header.as_bytes());
    assert_eq!(wire.settle(), (Next::Read, vec![]));
    let chunk = vec![b'x'; 60_000];
    let mut left = limit + 1;
    while left > 0 {
        let n = left.min(chunk.len());
        assert_eq!(wire.text(&chunk[..n]), "");
        left -= n;
        assert_eq!(wire.context.workers[0].query_buffer_bytes.get(), 0);
    }
    assert_eq!(
        wire.text(b"\r\nGET a\r\n"),
        "-ERR string exceeds maximum allowed size (proto-max-bulk-len)\r\n$-1\r\n"
    );
}

#[test]
fn a_key_over_its_limit_is_refused() {
    let mut wire = Wire::new();
    let key = "k".repeat(KEY_MAX);
    assert_eq!(
        wire.text(format!("*2\r\n$3\r\nGET\r\n${KEY_MAX}\r\n{key}\r\n").as_bytes()),
        "$-1\r\n"
    );
    let sent = format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}k\r\n", KEY_MAX + 1);
    assert_eq!(wire.text(sent.as_bytes()), "-ERR key exceeds 65535 bytes\r\n");
}

#[test]
fn an_idle_connection_holds_no_memory() {
    let mut wire = Wire::new();
    wire.text(b"SET a 1\r\nGET a\r\n");
    let counters = &wire.context.workers[0];
    assert_eq!((counters.query_buffer_bytes.get(), counters.output_buffer_bytes.get()), (0, 0));
    wire.put(b"GET");
    wire.settle();
    assert_eq!(wire.context.workers[0].query_buffer_bytes.get(), 3);
    assert_eq!(wire.text(b" a\r\n"), "$1\r\n1\r\n");
    wire.worker.close(wire.slot);
    assert_eq!(wire.context.workers[0].query_buffer_bytes.get(), 0);
}

/// Many short words take more memory than their bytes do.
#[test]
fn what_tells_many_words_apart_is_counted_and_given_back() {
    let many = 200_000;
    let sent = format!("*{}\r\n$3\r\nDEL\r\n", many + 1) + &"$1\r\na\r\n".repeat(many);
    let (most, last) = sent.as_bytes().split_at(sent.len() - 1);
    let mut wire = Wire::new();
    wire.put(most);
    wire.settle();
    let held = |wire: &Wire| wire.context.workers[0].query_buffer_bytes.get() as usize;
    assert!(held(&wire) >= most.len() + many * size_of::<Range>(), "{}", held(&wire));
    assert_eq!(wire.text(last), ":0\r\n");
    assert_eq!(held(&wire), 0);
    assert_eq!(wire.worker.connection(wire.slot).decoder.held(), 0);
    let line = format!("DEL {}\r\n", "a".repeat(60_000));
    assert_eq!(wire.text(line.as_bytes()), ":0\r\n");
    assert_eq!(wire.worker.connection(wire.slot).decoder.held(), 0);
    assert_eq!(held(&wire), 0);
}

/// Commands that wait for a read: what tells them apart counts while they wait.
#[test]
fn commands_that_wait_are_counted_and_their_places_given_back() {
    let mut wire = Wire::new();
    wire.context.lifecycle.halt(true);
    wire.put(&b"SET a 1\r\n".repeat(100));
    wire.worker.advance(wire.slot, false);
    wire.context.lifecycle.halt(false);
    let connection = wire.worker.connection(wire.slot);
    let Decoded::Command = connection.decoder.next(connection.input.from(0), &ANY) else {
        panic!("it is there");
    };
    let queued = connection.take_decoded();
    connection.queue.reserve(1000);
    connection.queue.push_back(queued);
    let places = connection.queue.capacity() * size_of::<Queued>();
    assert_eq!(connection.queue_bytes(), places + 3 * size_of::<Range>() + b"SETa1".len());
    assert_eq!(wire.settle().1, b"+OK\r\n".repeat(100));
    let connection = wire.worker.connection(wire.slot);
    assert_eq!((connection.queue.capacity(), connection.queue_bytes()), (0, 0));
}

const ANY: Bounds = Bounds { bulk_max: 1 << 20, value_max: 1 << 20, stores_values: |_| false };

#[test]
fn what_was_read_is_answered_before_the_end() {
    let mut wire = Wire::new();
    wire.put("SET a 1\r\n".repeat(50).as_bytes());
    wire.worker.connection(wire.slot).end();
    let (next, replies) = wire.settle();
    assert_eq!((next, replies), (Next::Close, b"+OK\r\n".repeat(50)));
}

/// An ending server once ran commands after its last checkpoint's cut, for clients that took their
/// replies late: those replies were of writes that nobody kept.
#[test]
fn no_command_runs_while_the_server_is_halted() {
    let mut wire = Wire::new();
    wire.context.limits.output_pause.set(1000);
    wire.text(format!("SET a {}\r\n", "v".repeat(600)).as_bytes());
    wire.put(b"GET a\r\nGET a\r\nINCR n\r\nINCR n\r\n");
    assert_eq!(wire.worker.advance(wire.slot, true), Next::Flush);
    wire.context.lifecycle.halt(true);
    let unsent = wire.worker.connection(wire.slot).unsent().len();
    wire.worker.sent(wire.slot, unsent);
    assert_eq!(wire.worker.advance(wire.slot, false), Next::Wait);
    assert_eq!(wire.worker.connection(wire.slot).unsent(), b"");
    wire.context.lifecycle.halt(false);
    assert_eq!(String::from_utf8(wire.settle().1).unwrap(), ":1\r\n:2\r\n");
}

#[test]
fn clients_share_what_is_looked_ahead_at() {
    let ring = |config| Config {
        page_size: 4096,
        segment_size: 1 << 16,
        mutable_size: 8192,
        readonly_size: 8192,
        ..config
    };
    let mut wire = Wire::with(ring);
    let (mut gets, mut expected) = (String::new(), String::new());
    for i in 0..60 {
        let value = format!("{i:0>500}");
        assert_eq!(wire.text(format!("SET k{i} {value}\r\n").as_bytes()), "+OK\r\n");
        gets += &format!("GET k{i}\r\n");
        expected += &format!("$500\r\n{value}\r\n");
    }
    for (limit, most) in [(1000, 60), (5, 5), (0, 1)] {
        wire.context.limits.looked_ahead_all.set(limit);
        wire.put(gets.as_bytes());
        assert_eq!(wire.worker.advance(wire.slot, false), Next::Wait, "the first is cold");
        wire.worker.pause(wire.slot);
        assert_eq!(wire.context.workers[0].looked_ahead.get(), most);
        assert_eq!(String::from_utf8(wire.settle().1).unwrap(), expected);
        assert_eq!(wire.context.workers[0].looked_ahead.get(), 0);
    }
}

#[test]
fn no_client_holds_much_output_once_all_together_hold_too_much() {
    let mut wire = Wire::new();
    wire.text(format!("SET a {}\r\n", "v".repeat(10_000)).as_bytes());
    wire.put("GET a\r\n".repeat(100).as_bytes());
    wire.context.limits.output_all.set(0);
    assert_eq!(wire.worker.advance(wire.slot, false), Next::Flush);
    wire.worker.pause(wire.slot);
    let first = wire.worker.connection(wire.slot).unsent().len();
    assert_eq!(wire.worker.advance(wire.slot, true), Next::Flush);
    let unsent = wire.worker.connection(wire.slot).unsent().len();
    assert!(unsent == first && unsent < SEND_AT + 20_000, "{unsent} bytes wait");
    wire.context.limits.output_all.set(u64::MAX);
    assert_eq!(wire.worker.advance(wire.slot, true), Next::Read);
    assert!(wire.worker.connection(wire.slot).unsent().len() > 1_000_000);
}

/// What is looked at before its turn only warms the cache: a command that is malformed, unknown,
/// oversized or not whole, or that follows a SELECT, is answered when and as it would be alone.
#[test]
fn a_look_ahead_changes_no_reply() {
    let mut wire = Wire::new();
    let whole = "SET a 1\r\n*2\r\n$3\r\nGET\r\n$1\r\na\r\n*1\r\n$4\r\nPING\r\nfoo\r\nSELECT 1\r\n*2\r\n$3\r\n\
                 GET\r\n$1\r\na\r\nSELECT 0\r\n*2\r\n$3\r\nGET\r\n$1\r\na\r\n*2\r\n$3\r\nGET\r\n$1\r\n";
    assert_eq!(
        wire.text(whole.as_bytes()),
        "+OK\r\n$1\r\n1\r\n+PONG\r\n-ERR unknown command 'foo', with args beginning with: \r\n+OK\r\n\
         $-1\r\n+OK\r\n$1\r\n1\r\n"
    );
    assert_eq!(
        wire.text(b"a\r\nGET a\r\n*x\r\n"),
        "$1\r\n1\r\n$1\r\n1\r\n-ERR Protocol error: invalid multibulk length\r\n"
    );
}

/// A web page may let a browser send such a request; redis-server 7.0.15 closes at once, too.
#[test]
fn the_body_of_an_http_request_does_not_run() {
    for head in [
        "POST / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET / HTTP/1.1\r\nAccept: text/html\r\nHost: localhost\r\n\r\n",
        "*2\r\n$5\r\nhOsT:\r\n$1\r\na\r\n",
        "post\r\n",
    ] {
        let mut wire = Wire::new();
        wire.put(format!("{head}SET evil 1\r\n").as_bytes());
        assert_eq!(wire.settle().0, Next::Abort, "{head}");
        assert_eq!(wire.context.store.key_count(ferrite_hybridlog::Database(0)).0, 0);
        // Nor does anything that comes before the transport has closed.
        wire.put(b"SET evil 1\r\n");
        assert_eq!(wire.settle().0, Next::Abort, "{head}");
        assert_eq!(wire.context.store.key_count(ferrite_hybridlog::Database(0)).0, 0);
    }
}

/// A long command that is on its way, and a long reply, are no silence.
#[test]
fn a_client_is_not_idle_while_bytes_move() {
    let mut wire = Wire::new();
    wire.context.limits.idle_timeout_s.set(10);
    let start = unix_ms();
    let mut at = start;
    wire.put(b"*2\r\n$4\r\nECHO\r\n$100\r\n");
    for _ in 0..10 {
        at += 8_000;
        assert!(wire.worker.sweep(at).is_empty(), "after {} ms", at - start);
        wire.text(b"0123456789");
    }
    assert!(wire.worker.sweep(at + 10_000).is_empty());
    wire.put(b"\r\n");
    // It ran at a time long before `at`, which is made up: what counts is that its reply goes.
    assert!(!wire.settle().1.is_empty());
    assert!(wire.worker.sweep(at + 20_000).is_empty());
    assert_eq!(wire.worker.sweep(at + 21_000), [wire.slot]);
}

/// Commands that another thread carries out count as others do: errors, calls and time.
#[test]
fn a_job_is_counted_at_its_end() {
    let mut wire = Wire::new();
    let count = |wire: &Wire, name: &[u8]| {
        let (context, entry) = (&wire.context, table().find(name).expect("a command").id);
        let totals = crate::totals::Totals::since_start(context, &context.store.stats());
        let parts = context.workers.iter().map(|worker| &worker.by_command[entry].latency);
        let longest = crate::latency::percentiles(parts).map(|all| all[all.len() - 1]);
        (totals.by_command[entry], totals.errors, longest.unwrap_or(0))
    };
    assert_eq!(wire.text(b"DEBUG SLEEP 0.02\r\n"), "+OK\r\n");
    let (debug, errors, longest) = count(&wire, b"DEBUG");
    assert_eq!((debug.calls, debug.failed, errors), (1, 0, 0));
    assert!(debug.nanoseconds >= 20_000_000 && longest >= 19_000_000, "{debug:?}, {longest}");
    // No checkpoint without its directory.
    let files = wire.directory.path();
    std::fs::rename(files.join("checkpoints"), files.join("away")).expect("it is there");
    assert!(wire.text(b"SET a 1\r\nSAVE\r\n").starts_with("+OK\r\n-"));
    let (save, errors, _) = count(&wire, b"SAVE");
    assert_eq!((save.calls, save.failed, errors), (1, 1, 1));
    assert_eq!(wire.context.errors.list().iter().map(|(_, n)| n).sum::<u64>(), 1);
}

/// As redis-server 7.0.15 does, even if the reply is not wanted.
#[test]
fn a_protocol_error_is_counted() {
    for sent in ["*x\r\n", "GET \"a\r\n", "CLIENT REPLY OFF\r\n*1\r\n+\r\n"] {
        let mut wire = Wire::new();
        wire.put(sent.as_bytes());
        assert_eq!(wire.settle().0, Next::Close, "{sent}");
        assert_eq!(wire.context.workers[0].errors.get(), 1, "{sent}");
        assert_eq!(wire.context.errors.list(), [(b"ERR".to_vec(), 1)], "{sent}");
    }
}

/// Which commands those are, redis-server 7.0.15 says by their flags; a test compares these.
#[test]
fn until_the_store_is_open_only_what_does_not_need_it_runs() {
    const LOADING: &str = "-LOADING Redis is loading the dataset in memory\r\n";
    let mut wire = Wire::loading();
    for refused in
        ["PING", "GET a", "SET a 1", "FLUSHALL", "SAVE", "BGSAVE", "DBSIZE", "SWAPDB 0 1"]
    {
        assert_eq!(wire.text(format!("{refused}\r\n").as_bytes()), LOADING, "{refused}");
    }
    for (line, reply) in [
        ("ECHO x", "$1\r\nx\r\n"),
        ("SELECT 3", "+OK\r\n"),
        ("CLIENT SETNAME me", "+OK\r\n"),
        ("MULTI", "+OK\r\n"),
        ("ECHO x", "+QUEUED\r\n"),
        ("ROLE", "+QUEUED\r\n"),
        ("EXEC", "*2\r\n$1\r\nx\r\n*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"),
        ("MULTI", "+OK\r\n"),
        ("GET a", LOADING),
        ("ECHO x", "+QUEUED\r\n"),
        ("EXEC", "-EXECABORT Transaction discarded because of previous errors.\r\n"),
        ("CLIENT PAUSE 600000 WRITE", "+OK\r\n"),
        ("CONFIG RESETSTAT", "+OK\r\n"),
        ("FOO", "-ERR unknown command 'FOO', with args beginning with: \r\n"),
        ("GET", "-ERR wrong number of arguments for 'get' command\r\n"),
        ("MULTI", "+OK\r\n"),
        ("ECHO y", "+QUEUED\r\n"),
    ] {
        assert_eq!(wire.text(format!("{line}\r\n").as_bytes()), reply, "{line}");
    }
    let mut observer = Wire::of(wire.context.clone());
    let info = observer.text(b"INFO everything\r\n");
    for field in ["loading:1\r\n", "loading_start_time:", "loading_loaded_perc:0.00\r\n"] {
        assert!(info.contains(field), "{field} in {info}");
    }
    let store = Store::open(Config::new(wire.directory.path())).unwrap();
    wire.context.open(store, None);
    // On the same connection, in the same database, in the same transaction.
    assert_eq!(wire.text(b"GET a\r\nEXEC\r\n"), "+QUEUED\r\n*2\r\n$1\r\ny\r\n$-1\r\n");
    assert!(wire.text(b"CLIENT INFO\r\n").contains(" name=me "));
    assert!(observer.text(b"INFO persistence\r\n").contains("loading:0\r\n"));
    // What was paused before waits after it.
    wire.put(b"SET a 1\r\n");
    assert_eq!(wire.worker.advance(wire.slot, false), Next::Wait);
    assert_eq!(observer.text(b"CLIENT UNPAUSE\r\nPING\r\n"), "+OK\r\n+PONG\r\n");
    assert_eq!(wire.text(b"GET a\r\n"), "+OK\r\n$1\r\n1\r\n");
    assert!(wire.text(b"CLIENT INFO\r\n").contains(" db=3 "));
}
