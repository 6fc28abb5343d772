//! While the data is being recovered the server listens, tells so, and answers `LOADING`; what it
//! answers once it does is whole.

mod replies;
mod support;

use replies::Replies;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{PATIENCE, Server, Wire, command};

/// The server, which may still recover.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port")
}

fn start(directory: &tempfile::TempDir, address: SocketAddr, settings: &[String]) -> Started {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferrite"));
    command.current_dir(directory.path()).args(["--port", &address.port().to_string()]);
    for setting in settings {
        command.args(["--set", setting]);
    }
    Started(command.stderr(Stdio::null()).spawn().expect("ferrite runs"))
}

fn connect(address: SocketAddr) -> TcpStream {
    let until = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect(address) {
            Ok(socket) => return socket,
            Err(e) => assert!(Instant::now() < until, "nobody listens: {e}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

const KEYS: usize = 20_000;

/// A directory with as many keys, whose recovery takes a while.
fn data() -> Arc<tempfile::TempDir> {
    let server = Server::ferrite(&["persistence.checkpoint_interval=3600"]);
    let mut client = Replies::of(&server);
    let value = vec![b'v'; 1000];
    for part in 0..KEYS / 100 {
        let keys: Vec<String> = (0..100).map(|n| format!("key{}", part * 100 + n)).collect();
        let words = keys.iter().flat_map(|key| [key.as_bytes(), &value]);
        let words: Vec<&[u8]> = [&b"MSET"[..]].into_iter().chain(words).collect();
        assert_eq!(client.call(&words), b"+OK\r\n");
    }
    assert_eq!(client.line("SAVE"), b"+OK\r\n");
    server.directory.clone()
}

/// From the first moment at which somebody can connect each reply is `LOADING` or right, on one and
/// the same connection; and /health says the same.
#[test]
fn every_reply_is_loading_or_right() {
    let directory = data();
    let [address, metrics] = [(); 2].map(|()| free_port());
    let settings = [
        "metrics.enabled=true".to_owned(),
        format!("metrics.port={}", metrics.port()),
        "storage.hybridlog_mutable_size=16MiB".to_owned(),
        "storage.hybridlog_readonly_size=16MiB".to_owned(),
    ];
    let _server = start(&directory, address, &settings);
    let mut wire = Wire::new(connect(address));
    let until = Instant::now() + PATIENCE;
    let mut ask = |words: &[&[u8]]| -> String {
        assert!(wire.send(&command(words)));
        String::from_utf8(wire.receive_until(b"\r\n").0).expect("text")
    };
    let mut refused = 0;
    loop {
        let health = health(metrics);
        let reply = ask(&[b"DBSIZE"]);
        if reply == format!(":{KEYS}\r\n") {
            break;
        }
        assert!(reply.starts_with("-LOADING "), "{reply}");
        refused += 1;
        assert!(health.starts_with("HTTP/1.1 503 "), "{health}");
        assert!(health.contains("\"status\":\"recovering\"") && health.contains("\"reason\":"));
        assert!(Instant::now() < until, "it recovers for ever");
    }
    println!("{refused} replies were LOADING");
    while !health(metrics).starts_with("HTTP/1.1 200 ") {
        assert!(Instant::now() < until, "it is never well");
    }
}

fn health(address: SocketAddr) -> String {
    let mut socket = connect(address);
    socket
        .write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .expect("sent");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    answer
}

/// Whatever clients ask in the moment in which the store is opened.
#[test]
fn nothing_falls_between_loading_and_ready() {
    let directory = Arc::new(tempfile::tempdir().expect("a directory"));
    for _ in 0..8 {
        let address = free_port();
        let mut server = start(&directory, address, &[]);
        let clients: Vec<_> = (0..4)
            .map(|n| {
                std::thread::spawn(move || {
                    let mut wire = Wire::new(connect(address));
                    while wire.line("SET a b") != "+OK" {
                        match n % 2 {
                            0 => drop(wire.line("PING")),
                            _ => assert!(wire.bulk("INFO persistence").contains("loading:")),
                        }
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().expect("the server answers");
        }
        assert_eq!(server.0.try_wait().expect("a child"), None, "it runs");
    }
}

/// SIGTERM while it recovers, or just before or after that: it ends well, and the data is there.
#[test]
fn an_end_while_it_recovers_does_no_harm() {
    let directory = data();
    for ms in [0, 5, 20, 60] {
        let address = free_port();
        let mut server = start(&directory, address, &[]);
        // Who has an answer knows that signals are heard.
        let mut wire = Wire::new(connect(address));
        let answer = wire.line("PING");
        assert!(answer == "+PONG" || answer.starts_with("-LOADING "), "{answer}");
        std::thread::sleep(Duration::from_millis(ms));
        let id = server.0.id().to_string();
        assert!(
            Command::new("kill").args(["-s", "TERM", &id]).status().expect("it runs").success()
        );
        assert_eq!(server.0.wait().expect("a child").code(), Some(0), "after {ms} ms");
    }
    let server = Server::ferrite_in(directory, &[]);
    assert_eq!(Replies::of(&server).integer("DBSIZE"), KEYS as i64);
}

/// Nothing is recovered for a server that could not serve: a taken port is told at once.
#[test]
fn a_busy_port_is_told_before_the_data_is_touched() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let directory = tempfile::tempdir().expect("a directory");
    let run = Command::new(env!("CARGO_BIN_EXE_ferrite"))
        .current_dir(directory.path())
        .args(["--port", &taken.local_addr().expect("bound").port().to_string()])
        .output()
        .expect("ferrite runs");
    assert_eq!(run.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&run.stderr).contains("is in use"));
    let files = std::fs::read_dir(directory.path()).expect("a directory").count();
    assert_eq!(files, 0, "it has made its data directory");
}
