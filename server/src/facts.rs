//! What a start decided and found: fixed once, told in the log, in INFO and in the metrics.

use crate::context::unix_ms;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::OnceLock;

/// Facts about this run of the server.
#[derive(Debug)]
pub struct Facts {
    /// 40 hexadecimal digits, different at every start.
    pub run_id: String,
    /// The running program.
    pub executable: PathBuf,
    /// The directory of all data, absolute.
    pub data_dir: PathBuf,
    /// How sockets are read and written: `epoll`. Set when the server listens.
    pub transport: OnceLock<&'static str>,
    /// The addresses that the server listens on. Set when it does.
    pub addresses: OnceLock<Vec<SocketAddr>>,
}

impl Facts {
    /// For a server that keeps its data in `data_dir`.
    pub fn new(data_dir: PathBuf) -> Self {
        Self {
            run_id: random_id(),
            executable: std::env::current_exe().unwrap_or_default(),
            data_dir,
            transport: OnceLock::new(),
            addresses: OnceLock::new(),
        }
    }
    /// The port that clients connect to; 0 before the server listens.
    pub fn port(&self) -> u16 {
        self.addresses.get().and_then(|all| all.first()).map_or(0, SocketAddr::port)
    }
}

fn random_id() -> String {
    let mut bytes = [0; 20];
    // Without a source of random numbers the start's time has to do: nothing but the identity
    // that INFO prints rests on it.
    if File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes)).is_err() {
        bytes[..8].copy_from_slice(&unix_ms().to_le_bytes());
    }
    bytes.iter().fold(String::with_capacity(40), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes all");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_ids_differ() {
        let (a, b) = (random_id(), random_id());
        assert_eq!((a.len(), b.len()), (40, 40));
        assert_ne!(a, b);
    }
}
