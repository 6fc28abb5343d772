//! A system that gives no more threads: commands that need one fail, nothing else does.

mod support;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use support::Server;

/// More threads than the C library keeps stacks of ended ones for.
const SLEEPERS: usize = 40;

/// Sets the limit of the server's address space, in which a new thread's stack must fit.
fn limit_memory(server: &Server, bytes: Option<u64>) {
    let id = i32::try_from(server.id()).ok().and_then(Pid::from_raw);
    let limit = Rlimit { current: bytes, maximum: None };
    prlimit(Some(id.expect("a process")), Resource::As, limit).expect("its limit is ours to set");
}

/// Bytes of address space that the server has now.
fn memory(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).expect("its size");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024
}

#[test]
fn a_job_without_a_thread_fails_and_the_server_goes_on() {
    let mut server = Server::ferrite(&[]);
    let mut wire = server.connect();
    assert_eq!(wire.line("SET a 1"), "+OK");
    let mut sleepers: Vec<_> = (0..SLEEPERS).map(|_| server.connect()).collect();
    sleepers.iter_mut().for_each(|wire| assert_eq!(wire.line("PING"), "+PONG"));
    // One thread's stack is 2 MiB and more; what else the server needs is less.
    limit_memory(&server, Some(memory(&server) + (1 << 20)));
    for sleeper in &mut sleepers {
        assert!(sleeper.send(b"DEBUG SLEEP 1000\r\n"));
    }
    let last = sleepers.last_mut().expect("there are some");
    let (refusal, ended) = last.receive_until(b"\r\n");
    assert!(!ended && refusal.starts_with(b"-ERR Can't start a thread: "), "{refusal:?}");
    assert_eq!(last.line("PING"), "+PONG");
    let refusal = wire.line("SAVE");
    assert!(refusal.starts_with("-ERR Can't start a thread: "), "{refusal}");
    assert_eq!(wire.bulk("GET a"), "1");
    limit_memory(&server, None);
    assert_eq!(wire.line("SAVE"), "+OK", "the first one has left no trace");
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));
}
