//! The real `ferrite` on a free port in a fresh directory, and redis-server beside it where it is
//! installed. Both die with their handle.

#![allow(dead_code, reason = "each test program uses its part of this")]

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longer than anything takes that works.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A server that serves, in a directory of its own.
pub struct Server {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its data.
    pub directory: Arc<tempfile::TempDir>,
    /// What it has logged so far.
    log: Arc<Mutex<String>>,
}

impl Server {
    /// Starts ferrite with these settings (`section.key=value`).
    pub fn ferrite(settings: &[&str]) -> Self {
        Self::ferrite_in(Arc::new(tempfile::tempdir().expect("a directory")), settings)
    }
    /// The same, on data that may be there.
    pub fn ferrite_in(directory: Arc<tempfile::TempDir>, settings: &[&str]) -> Self {
        Self::started_by(Command::new(env!("CARGO_BIN_EXE_ferrite")), directory, settings)
    }
    /// Starts ferrite with an environment and settings.
    pub fn ferrite_with(environment: &[(&str, PathBuf)], settings: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ferrite"));
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        Self::started_by(command, Arc::new(tempfile::tempdir().expect("a directory")), settings)
    }
    /// A server that a signal does not end, which would by default.
    pub fn ferrite_ignoring(signal: &str, settings: &[&str]) -> Self {
        let mut shell = Command::new("sh");
        let script = format!("trap '' {signal}; exec \"$0\" \"$@\"");
        shell.args(["-c", &script, env!("CARGO_BIN_EXE_ferrite")]);
        Self::started_by(shell, Arc::new(tempfile::tempdir().expect("a directory")), settings)
    }
    fn started_by(
        mut command: Command,
        directory: Arc<tempfile::TempDir>,
        settings: &[&str],
    ) -> Self {
        command.current_dir(directory.path()).args(["--port", "0"]);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("FERRITE_") {
                command.env_remove(name);
            }
        }
        // Small: several run at a time.
        let small =
            ["storage.hybridlog_mutable_size=16MiB", "storage.hybridlog_readonly_size=16MiB"];
        for setting in small.iter().chain(settings) {
            command.args(["--set", setting]);
        }
        let mut child = command.stderr(Stdio::piped()).spawn().expect("ferrite runs");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let mut address = None;
        for line in lines.by_ref().map_while(Result::ok) {
            if let Some((_, rest)) = line.split_once("listening on ") {
                // A Unix socket has a line of its own, with a path.
                let socket = rest.split([',', ' ']).next().and_then(|text| text.parse().ok());
                address = address.or(socket);
            }
            log.lock().expect("no panic").extend([&line, "\n"]);
            if line.ends_with("ready") {
                break;
            }
        }
        // Its log is read to the end, so that it never waits for us.
        let theirs = log.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                theirs.lock().expect("no panic").extend([&line, "\n"]);
            }
        });
        let address = address.expect("ferrite says where it listens before it is ready");
        Self { child, address, directory, log }
    }
    /// Starts redis-server 7.0, or says that it is not there; with `CI=true` that is a failure.
    pub fn redis() -> Option<Self> {
        Self::redis_in(Arc::new(tempfile::tempdir().expect("a directory")), &[])
    }
    /// The same, on data that may be there and with more arguments.
    pub fn redis_in(directory: Arc<tempfile::TempDir>, arguments: &[&str]) -> Option<Self> {
        let version = Command::new("redis-server").arg("--version").output().ok();
        let known = version.is_some_and(|v| String::from_utf8_lossy(&v.stdout).contains("v=7.0."));
        if !known {
            const SKIPPED: &str = "skipped: there is no redis-server 7.0";
            assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{SKIPPED}");
            // Not by `println!`, which a test that passes does not show.
            writeln!(io::stderr(), "{SKIPPED}").expect("standard error");
            return None;
        }
        // Another process may take the port first: then the next one is tried.
        for _ in 0..10 {
            let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
            let address = free.expect("a free port");
            let mut child = Command::new("redis-server")
                .args(["--port", &address.port().to_string(), "--save", "", "--bind", "127.0.0.1"])
                .args(["--io-threads", "1"])
                .args(arguments)
                .current_dir(directory.path())
                .stdout(Stdio::null())
                .spawn()
                .expect("redis-server runs");
            while child.try_wait().expect("a child").is_none() {
                if TcpStream::connect(address).is_ok() {
                    return Some(Self { child, address, directory, log: Arc::default() });
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        panic!("redis-server finds no port");
    }
    /// A connection.
    pub fn connect(&self) -> Wire {
        Wire::new(TcpStream::connect(self.address).expect("it listens"))
    }
    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("no panic").clone()
    }
    /// Waits until it has logged `text`.
    pub fn wait_for_log(&self, text: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            assert!(Instant::now() < until, "no {text:?} in {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    /// The server's process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
    /// Sends it a signal by its name (`TERM`).
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }
    /// Whether its process has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_some()
    }
    /// Waits for its end and returns the exit code.
    pub fn wait(&mut self) -> Option<i32> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("it does not end")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Raw bytes in, raw bytes out.
pub struct Wire {
    /// The socket.
    pub socket: TcpStream,
    /// Received and not yet taken.
    pending: Vec<u8>,
}

impl Wire {
    /// Around a socket.
    pub fn new(socket: TcpStream) -> Self {
        socket.set_nodelay(true).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
        socket.set_write_timeout(Some(PATIENCE)).expect("a socket");
        Self { socket, pending: Vec::new() }
    }
    /// Sends bytes. The server may have closed meanwhile.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.socket.write_all(bytes).is_ok()
    }
    /// Receives exactly so many bytes.
    pub fn receive(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.pending);
        if bytes.len() > n {
            self.pending = bytes.split_off(n);
        } else {
            let here = bytes.len();
            bytes.resize(n, 0);
            self.socket.read_exact(&mut bytes[here..]).expect("as many bytes as that");
        }
        bytes
    }
    /// Receives up to and with the first `end`, or to the end of the connection. True if that came.
    pub fn receive_until(&mut self, end: &[u8]) -> (Vec<u8>, bool) {
        let mut bytes = std::mem::take(&mut self.pending);
        let mut chunk = [0; 64 * 1024];
        let mut looked_at = 0;
        loop {
            if let Some(at) = bytes[looked_at..].windows(end.len()).position(|w| w == end) {
                self.pending = bytes.split_off(looked_at + at + end.len());
                return (bytes, false);
            }
            looked_at = bytes.len().saturating_sub(end.len() - 1);
            match self.socket.read(&mut chunk) {
                Ok(0) => return (bytes, true),
                Ok(n) => bytes.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return (bytes, true),
                Err(e) => panic!("neither bytes nor an end: {e}; so far {bytes:?}"),
            }
        }
    }
    /// One inline command and its reply of one line.
    pub fn line(&mut self, command: &str) -> String {
        assert!(self.send(format!("{command}\r\n").as_bytes()), "the server is there");
        let (reply, _) = self.receive_until(b"\r\n");
        String::from_utf8(reply).expect("a line of text").trim_end().into()
    }
    /// One inline command and its reply of one bulk string.
    pub fn bulk(&mut self, command: &str) -> String {
        let header = self.line(command);
        let n = header.strip_prefix('$').and_then(|n| n.parse().ok());
        let n: usize = n.unwrap_or_else(|| panic!("{command}: no bulk but {header}"));
        let bytes = self.receive(n + 2);
        String::from_utf8(bytes[..n].to_vec()).expect("text")
    }
}

/// A command as an array of bulk strings.
pub fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n", word.len()).into_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}
