//! The configuration, parsed: what the server and the store are started with.

use super::error::ConfigError;
use super::value::{Bytes, Value, parse_address};
use super::values::Values;
use ferrite_hybridlog::IoChoice;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// All settings that this version reads, typed.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[server]`
    pub server: ServerSettings,
    /// `[storage]`, as the store takes it. The directory is as written, not made absolute.
    pub store: ferrite_hybridlog::Config,
    /// `hybridlog`, all there is so far.
    pub backend: &'static str,
    /// What log and index may take with the backend `memory`; 0 is no limit. Live.
    pub memory_max: u64,
    /// Bytes of log per living byte at which it is compacted; 0 is never. Live.
    pub max_space_amplification: f64,
    /// `[persistence]`
    pub persistence: Persistence,
    /// `[metrics]`
    pub metrics: Metrics,
    /// `[logging]`
    pub logging: Logging,
}

/// `[server]`
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Addresses to listen on; at least one.
    pub bind: Vec<IpAddr>,
    /// TCP port; 0 lets the system choose.
    pub port: u16,
    /// A Unix socket to listen on as well.
    pub unix_socket: Option<PathBuf>,
    /// Threads that serve connections; at least one.
    pub workers: usize,
    /// How sockets are read and written.
    pub transport: Transport,
    /// Clients served at once. Live.
    pub max_connections: u64,
    /// Idle time before TCP probes a connection; zero sends none. Live.
    pub tcp_keepalive: Duration,
    /// Idle time after which a client is closed; zero never does. Live.
    pub timeout: Duration,
    /// Bytes of the longest argument that is read. Live.
    pub max_bulk_size: u64,
    /// Bytes of unfinished commands at which their client is closed. Live.
    pub max_query_buffer: u64,
    /// Bytes of unsent replies at which their client is closed; 0 is no limit. Live.
    pub max_output_buffer: u64,
    /// Time after which a client that takes no byte of its replies is closed. Live.
    pub output_stall: Duration,
}

/// How sockets are read and written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// The best that works here.
    Auto,
    /// tokio's epoll.
    Epoll,
}

/// `[persistence]`
#[derive(Clone, Debug)]
pub struct Persistence {
    /// Whether checkpoints are taken at intervals and at a shutdown. Live.
    pub checkpoint_enabled: bool,
    /// The time between them. Live.
    pub checkpoint_interval: Duration,
    /// Whether every write goes to the append-only file.
    pub aof_enabled: bool,
    /// How long files that a replaced manifest named stay for a copy. Live.
    pub backup_hold: Duration,
    /// How many bytes of files stay for that, at least as many as a backup takes. Live.
    pub backup_hold_size: u64,
    /// How far back history goes at least; 0: there is none. Live.
    pub aof_retention: Duration,
    /// When it is synced. Live.
    pub aof_sync: AofSync,
    /// The name of its newest part in the data directory.
    pub aof_file: String,
    /// Growth in percent at which it is rewritten; 0 never does. Live.
    pub aof_rewrite_percentage: u64,
    /// Bytes below which that is not done. Live.
    pub aof_rewrite_min_size: u64,
}

/// When the append-only file is synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AofSync {
    /// Before a reply tells of a write.
    Always,
    /// Each second.
    Everysec,
    /// When the system likes.
    No,
}

impl AofSync {
    /// In the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Always, Self::Everysec, Self::No];
}

/// The ring through which writes reach the append-only file: some 20 ms of all that two cores can
/// write.
const REDO_RING_SIZE: u64 = 4 << 20;

/// `[metrics]`
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Whether there is an HTTP server.
    pub enabled: bool,
    /// Its addresses.
    pub bind: Vec<IpAddr>,
    /// Its port; 0 lets the system choose.
    pub port: u16,
}

/// `[logging]`
#[derive(Clone, Debug)]
pub struct Logging {
    /// What is logged. Live.
    pub level: tracing::Level,
    /// How it is written.
    pub format: LogFormat,
    /// Where; `None` is standard error.
    pub file: Option<PathBuf>,
}

/// How the log is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people; coloured on a terminal.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// Pages end in a rest that no record fits in.
const LEAST_AMPLIFICATION: f64 = 1.1;

impl Config {
    /// Types the values and looks at the relations between them.
    pub fn from_values(values: &Values) -> Result<Self, ConfigError> {
        let read = Reader(values);
        let config = Self {
            server: server(read),
            store: store(read)?,
            backend: read.choice("storage.backend"),
            memory_max: memory_max(read)?,
            max_space_amplification: space_amplification(read)?,
            persistence: Persistence {
                checkpoint_enabled: read.flag("persistence.checkpoint_enabled"),
                checkpoint_interval: read.duration("persistence.checkpoint_interval"),
                aof_enabled: read.flag("persistence.aof_enabled"),
                aof_sync: match read.choice("persistence.aof_sync") {
                    "always" => AofSync::Always,
                    "no" => AofSync::No,
                    _ => AofSync::Everysec,
                },
                backup_hold: read.duration("persistence.backup_hold"),
                backup_hold_size: read.size("persistence.backup_hold_size"),
                aof_retention: retention(read)?,
                aof_file: read.text("persistence.aof_file").to_owned(),
                aof_rewrite_percentage: read.integer("persistence.aof_rewrite_percentage"),
                aof_rewrite_min_size: read.size("persistence.aof_rewrite_min_size"),
            },
            metrics: Metrics {
                enabled: read.flag("metrics.enabled"),
                bind: read.addresses("metrics.bind"),
                port: read.port("metrics.port"),
            },
            logging: Logging {
                level: level(read.choice("logging.level")),
                format: match read.choice("logging.format") {
                    "json" => LogFormat::Json,
                    _ => LogFormat::Pretty,
                },
                file: read.path("logging.file"),
            },
        };
        config.ports_differ()?;
        Ok(config)
    }

    /// Addresses to listen on.
    pub fn listen_addresses(&self) -> Vec<SocketAddr> {
        self.server.bind.iter().map(|ip| SocketAddr::new(*ip, self.server.port)).collect()
    }

    fn ports_differ(&self) -> Result<(), ConfigError> {
        let port = self.metrics.port;
        if self.metrics.enabled && port != 0 && port == self.server.port {
            return Err(ConfigError::Relation {
                name: "metrics.port",
                value: port.to_string(),
                why: "server.port is the same; they must differ".into(),
            });
        }
        Ok(())
    }
}

fn server(read: Reader<'_>) -> ServerSettings {
    ServerSettings {
        bind: read.addresses("server.bind"),
        port: read.port("server.port"),
        unix_socket: read.path("server.unix_socket"),
        workers: usize::try_from(read.integer("server.workers")).expect("the row's range"),
        transport: match read.choice("server.transport") {
            "epoll" => Transport::Epoll,
            _ => Transport::Auto,
        },
        max_connections: read.integer("server.max_connections"),
        tcp_keepalive: read.duration("server.tcp_keepalive"),
        timeout: read.duration("server.timeout"),
        max_bulk_size: read.size("server.max_bulk_size"),
        max_query_buffer: read.size("server.max_query_buffer"),
        max_output_buffer: read.size("server.max_output_buffer"),
        output_stall: read.duration("server.output_stall"),
    }
}

fn store(read: Reader<'_>) -> Result<ferrite_hybridlog::Config, ConfigError> {
    let page_size = read.size("storage.hybridlog_page_size");
    let segment_size = read.size("storage.hybridlog_segment_size");
    if segment_size < page_size {
        return Err(ConfigError::Relation {
            name: "storage.hybridlog_segment_size",
            value: Bytes(segment_size).to_string(),
            why: format!(
                "it must hold a page: storage.hybridlog_page_size is {}",
                Bytes(page_size)
            ),
        });
    }
    for name in ["storage.hybridlog_mutable_size", "storage.hybridlog_readonly_size"] {
        holds_two_pages(name, read.size(name), page_size)?;
    }
    let file = read.text("persistence.checkpoint_file");
    let config = ferrite_hybridlog::Config {
        mutable_size: read.size("storage.hybridlog_mutable_size"),
        readonly_size: read.size("storage.hybridlog_readonly_size"),
        page_size,
        segment_size,
        block_cache_size: read.size("storage.block_cache_size"),
        index_max_size: read.size("storage.index_max_size"),
        databases: u16::try_from(read.integer("storage.databases")).expect("the row's range"),
        io: match read.choice("storage.io") {
            "io_uring" => IoChoice::IoUring,
            "posix" => IoChoice::Posix,
            _ => IoChoice::Auto,
        },
        compress_images: read.flag("persistence.checkpoint_compression"),
        backup_hold: read.duration("persistence.backup_hold"),
        redo_ring_size: if read.flag("persistence.aof_enabled") { REDO_RING_SIZE } else { 0 },
        file_stem: file.strip_suffix(".ckpt").expect("the row's range").to_owned(),
        ..ferrite_hybridlog::Config::new(read.text("storage.data_dir"))
    };
    Ok(match read.choice("storage.backend") {
        "memory" => config.in_memory(read.size("storage.memory_max")),
        _ => config,
    })
}

fn memory_max(read: Reader<'_>) -> Result<u64, ConfigError> {
    let name = "storage.memory_max";
    let most = read.size(name);
    if most == 0 || read.choice("storage.backend") == "memory" {
        return Ok(most);
    }
    Err(ConfigError::Relation {
        name,
        value: Bytes(most).to_string(),
        why: "it is a limit of storage.backend = memory; hybridlog takes what \
              storage.hybridlog_mutable_size and storage.hybridlog_readonly_size say"
            .into(),
    })
}

fn retention(read: Reader<'_>) -> Result<Duration, ConfigError> {
    let name = "persistence.aof_retention";
    let retention = read.duration(name);
    if retention.is_zero() || read.flag("persistence.aof_enabled") {
        return Ok(retention);
    }
    Err(ConfigError::Relation {
        name,
        value: format!("{} s", retention.as_secs_f64()),
        why: "history is in the append-only file: it needs persistence.aof_enabled = true".into(),
    })
}

fn space_amplification(read: Reader<'_>) -> Result<f64, ConfigError> {
    let name = "storage.hybridlog_max_space_amplification";
    let most = read.fraction(name);
    if most == 0.0 || most >= LEAST_AMPLIFICATION {
        return Ok(most);
    }
    Err(ConfigError::Relation {
        name,
        value: most.to_string(),
        why: format!(
            "a log without a dead record takes nearly as much, and would be copied over and over: \
             at least {LEAST_AMPLIFICATION}, or 0 for never"
        ),
    })
}

fn holds_two_pages(name: &'static str, size: u64, page_size: u64) -> Result<(), ConfigError> {
    let pages = size / page_size;
    if pages >= 2 {
        return Ok(());
    }
    Err(ConfigError::Relation {
        name,
        value: Bytes(size).to_string(),
        why: format!(
            "it must hold at least 2 pages, {}; or lower storage.hybridlog_page_size from {}",
            Bytes(2 * page_size),
            Bytes(page_size)
        ),
    })
}

fn level(word: &str) -> tracing::Level {
    word.parse().expect("the row's words are tracing's levels")
}

/// Reads values by name. The kinds are the table's; a test builds a `Config` from the defaults.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a Values);

impl<'a> Reader<'a> {
    fn flag(self, name: &str) -> bool {
        matches!(self.0.named(name), Value::Flag(true))
    }
    fn integer(self, name: &str) -> u64 {
        match self.0.named(name) {
            Value::Integer(n) | Value::Size(n) => *n,
            other => unreachable!("{name} is a number in the table, not {other:?}"),
        }
    }
    fn fraction(self, name: &str) -> f64 {
        match self.0.named(name) {
            Value::Fraction(x) => *x,
            other => unreachable!("{name} is a fraction in the table, not {other:?}"),
        }
    }
    fn size(self, name: &str) -> u64 {
        self.integer(name)
    }
    fn port(self, name: &str) -> u16 {
        u16::try_from(self.integer(name)).expect("the row's range is a port's")
    }
    fn duration(self, name: &str) -> Duration {
        match self.0.named(name) {
            Value::Duration(ms) => Duration::from_millis(*ms),
            other => unreachable!("{name} is a duration in the table, not {other:?}"),
        }
    }
    fn choice(self, name: &str) -> &'static str {
        match self.0.named(name) {
            Value::Choice(word) => word,
            other => unreachable!("{name} is a choice in the table, not {other:?}"),
        }
    }
    fn text(self, name: &str) -> &'a str {
        match self.0.named(name) {
            Value::Text(text) => text,
            other => unreachable!("{name} is a text in the table, not {other:?}"),
        }
    }
    /// An optional path: empty is none.
    fn path(self, name: &str) -> Option<PathBuf> {
        Some(PathBuf::from(self.text(name))).filter(|path| !path.as_os_str().is_empty())
    }
    fn addresses(self, name: &str) -> Vec<IpAddr> {
        let words = self.text(name).split(' ');
        words.map(|w| parse_address(w).expect("the row's kind parsed it")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

    fn with(settings: &[(&str, &str)]) -> Result<Config, String> {
        let mut values = Values::defaults();
        for (name, text) in settings {
            values.set_text(name, text, Source::Command).expect(name);
        }
        Config::from_values(&values).map_err(|e| e.to_string())
    }

    #[test]
    fn the_defaults_make_a_configuration() {
        let config = with(&[]).expect("the defaults go together");
        assert_eq!(config.listen_addresses(), ["127.0.0.1:6379".parse().expect("an address")]);
        assert_eq!(config.store.file_stem, "ferrite");
        assert!(config.store.mutable_size >= 2 * config.store.page_size);
    }

    #[test]
    fn sizes_that_do_not_go_together_are_told() {
        assert_eq!(
            with(&[("storage.hybridlog_mutable_size", "4MB")]).expect_err("one page"),
            "storage.hybridlog_mutable_size = 4MiB does not work: it must hold at least 2 pages, \
             8MiB; or lower storage.hybridlog_page_size from 4MiB"
        );
        assert_eq!(
            with(&[("storage.hybridlog_segment_size", "1MB")]).expect_err("below a page"),
            "storage.hybridlog_segment_size = 1MiB does not work: it must hold a page: \
             storage.hybridlog_page_size is 4MiB"
        );
        let tiny = [
            ("storage.hybridlog_page_size", "4KiB"),
            ("storage.hybridlog_segment_size", "16KiB"),
            ("storage.hybridlog_mutable_size", "8KiB"),
            ("storage.hybridlog_readonly_size", "8KiB"),
        ];
        assert!(with(&tiny).is_ok());
    }

    #[test]
    fn a_limit_of_memory_is_one_of_the_backend_memory() {
        let refused = with(&[("storage.memory_max", "1GiB")]).expect_err("hybridlog");
        assert!(refused.contains("storage.backend = memory"), "{refused}");
        let memory = [("storage.backend", "memory"), ("storage.memory_max", "1GiB")];
        let config = with(&memory).expect("it is one");
        assert_eq!((config.memory_max, config.store.index_basis), (1 << 30, 1 << 30));
        assert_eq!(config.store.backend, ferrite_hybridlog::Backend::Memory);
        assert_eq!(config.store.segment_size, 16 << 20);
        for page in ["4KiB", "1MiB", "64MiB"] {
            let settings = [
                ("storage.backend", "memory"),
                ("storage.hybridlog_page_size", page),
                ("storage.hybridlog_mutable_size", "1GiB"),
                ("storage.hybridlog_readonly_size", "1GiB"),
            ];
            assert!(with(&settings).is_ok(), "{page}");
        }
    }

    #[test]
    fn two_servers_do_not_get_one_port() {
        assert!(with(&[("metrics.enabled", "yes"), ("metrics.port", "6379")]).is_err());
        assert!(with(&[("metrics.port", "6379")]).is_ok());
    }
}
