//! The table of settings: one row each, in the order in which they are printed.
//!
//! A row whose feature this version does not have takes its inert value and refuses every other,
//! so that no configuration starts a server that promises more than it does.

use super::machine;
use super::value::{Choice, Kind, Refused, Value};

/// When a change takes effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Applies {
    /// At once, with CONFIG SET.
    Live,
    /// At the next start.
    Restart,
}

/// What a setting is when nobody sets it.
#[derive(Clone, Copy, Debug)]
pub enum Default {
    /// This text.
    Text(&'static str),
    /// The number of cores.
    Cores,
    /// This many bytes, or an eighth of the machine's (or cgroup's) memory where that is less.
    EighthOfMemory(u64),
}

/// One setting.
#[derive(Debug)]
pub struct Row {
    /// `section.key`.
    pub name: &'static str,
    /// Type and range.
    pub kind: Kind,
    /// What it is when nobody sets it.
    pub default: Default,
    /// When a change takes effect.
    pub applies: Applies,
    /// Whether this version has the feature; if not, only the default passes.
    pub available: bool,
    /// One line.
    pub help: &'static str,
}

/// A row's position in [`ROWS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RowIndex(pub usize);

impl Row {
    const fn new(
        name: &'static str,
        kind: Kind,
        default: &'static str,
        help: &'static str,
    ) -> Self {
        let default = Default::Text(default);
        Self { name, kind, default, applies: Applies::Restart, available: true, help }
    }
    const fn live(mut self) -> Self {
        self.applies = Applies::Live;
        self
    }
    const fn not_yet(mut self) -> Self {
        self.available = false;
        self
    }
    const fn default(mut self, default: Default) -> Self {
        self.default = default;
        self
    }

    /// The part before the dot.
    pub fn section(&self) -> &'static str {
        self.name.split_once('.').expect("every name has a dot: a test looks").0
    }
    /// The part behind the dot.
    pub fn key(&self) -> &'static str {
        self.name.split_once('.').expect("every name has a dot: a test looks").1
    }
    /// The default on this machine.
    pub fn default_value(&self) -> Value {
        match self.default {
            Default::Text(text) => self.kind.parse(text).expect("defaults parse: a test looks"),
            Default::Cores => Value::Integer(machine::cores()),
            Default::EighthOfMemory(most) => Value::Size(machine::eighth_of_memory(most)),
        }
    }
    /// The default in words, the same on every machine.
    pub fn default_text(&self) -> String {
        match self.default {
            Default::Text(_) => self.default_value().to_toml(),
            Default::Cores => "the number of cores".into(),
            Default::EighthOfMemory(most) => {
                format!("{} or 1/8 of the memory", Value::Size(most).to_toml())
            }
        }
    }
    /// A text as this row's value.
    pub fn parse(&self, text: &str) -> Result<Value, Refused> {
        let value = self.kind.parse(text)?;
        if !self.available && value != self.default_value() {
            return Err(Refused {
                expected: self.allowed(),
                redis: super::value::NOT_AVAILABLE.into(),
                not_available: true,
            });
        }
        Ok(value)
    }
    /// What passes today, in words.
    pub fn allowed(&self) -> String {
        match self.available {
            true => self.kind.range(),
            false => self.default_value().to_toml(),
        }
    }
}

/// The row called `name`.
pub fn find(name: &str) -> Option<RowIndex> {
    ROWS.iter().position(|r| r.name == name).map(RowIndex)
}

/// The row whose name is most like `name`, when one is close.
pub fn nearest(name: &str) -> Option<&'static str> {
    let key = name.rsplit('.').next().unwrap_or(name);
    let distance = |row: &Row| {
        let whole = strsim::damerau_levenshtein(row.name, name);
        // The right key in the wrong section, or without one, is close as well.
        let alone = strsim::damerau_levenshtein(row.key(), key) + 1;
        whole.min(alone)
    };
    let best = ROWS.iter().min_by_key(|row| distance(row))?;
    let close = distance(best) <= 1 + key.len() / 4;
    let within = || ROWS.iter().find(|row| key.len() > 3 && row.key().contains(key));
    if close { Some(best.name) } else { within().map(|row| row.name) }
}

const MAX: u64 = u64::MAX;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const YEAR_MS: u64 = 366 * 86_400_000;
/// As many seconds as Redis takes, in milliseconds.
const INT_MAX_S: u64 = i32::MAX as u64 * 1000;
const MONTH_MS: u64 = 31 * 86_400_000;

const TRANSPORTS: &[Choice] =
    &[Choice::new("auto"), Choice::not_yet("io_uring"), Choice::new("epoll")];
const BACKENDS: &[Choice] = &[Choice::new("hybridlog"), Choice::new("memory")];
const IO: &[Choice] = &[Choice::new("auto"), Choice::new("io_uring"), Choice::new("posix")];
const EVICTION: &[Choice] = &[Choice::new("none"), Choice::not_yet("oldest")];
const AOF_SYNC: &[Choice] = &[
    Choice::new("always"),
    Choice::new("everysec"),
    Choice::synonym("everysecond", "everysec"),
    Choice::new("no"),
];
const PROVIDERS: &[Choice] =
    &[Choice::new("s3"), Choice::new("gcs"), Choice::new("azure"), Choice::new("local")];
const STARTUP: &[Choice] = &[Choice::new("wait"), Choice::new("refuse")];
const LEVELS: &[Choice] = &[
    Choice::new("error"),
    Choice::new("warn"),
    Choice::new("info"),
    Choice::new("debug"),
    Choice::new("trace"),
];
const FORMATS: &[Choice] = &[Choice::new("pretty"), Choice::new("json")];

/// Every setting.
#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    Row::new("server.bind", Kind::Addresses, "127.0.0.1",
        "Addresses to listen on, separated by spaces."),
    Row::new("server.port", Kind::Integer(0, 65535), "6379",
        "TCP port; 0 lets the system choose one."),
    Row::new("server.unix_socket", Kind::Path { optional: true }, "",
        "Path of a Unix socket to listen on as well."),
    Row::new("server.workers", Kind::Integer(1, 256), "1",
        "Threads that serve connections.").default(Default::Cores),
    Row::new("server.transport", Kind::Choice(TRANSPORTS), "auto",
        "How sockets are read and written: auto, io_uring (not yet), epoll."),
    Row::new("server.max_connections", Kind::Integer(1, u32::MAX as u64), "10000",
        "Clients served at once (fewer if the limit of open files is low); one more is told so and closed.").live(),
    Row::new("server.tcp_keepalive", Kind::Duration(0, INT_MAX_S), "300",
        "Idle time before TCP probes a connection; 0 sends no probes.").live(),
    Row::new("server.timeout", Kind::Duration(0, INT_MAX_S), "0",
        "Closes a client that was idle this long; 0 never does.").live(),
    Row::new("server.max_bulk_size", Kind::Size(MIB, 512 * MIB), "512MiB",
        "Longest argument that is read; a value is limited by the page as well.").live(),
    Row::new("server.max_query_buffer", Kind::Size(MIB, 4095 * MIB), "1GiB",
        "Closes a client whose unfinished commands are larger than this.").live(),
    Row::new("server.max_output_buffer", Kind::Size(0, MAX), "0",
        "Closes a client whose unsent replies are larger than this; 0 never does.").live(),
    Row::new("server.output_stall", Kind::Duration(1000, MONTH_MS), "300",
        "Closes a client that takes no byte of its replies for this long.").live(),

    Row::new("storage.backend", Kind::Choice(BACKENDS), "hybridlog",
        "hybridlog keeps on disk what memory does not hold; memory keeps all in memory."),
    Row::new("storage.data_dir", Kind::Path { optional: false }, "./data",
        "Directory of all data; made when it does not exist."),
    Row::new("storage.databases", Kind::Integer(1, 256), "16",
        "Logical databases, as SELECT numbers them."),
    Row::new("storage.io", Kind::Choice(IO), "auto",
        "How files are read and written: io_uring, posix, or auto for the first that works."),
    Row::new("storage.hybridlog_mutable_size", Kind::Size(8 * KIB, MAX), "256MiB",
        "Memory of the newest part of the log, where values change in place.")
        .default(Default::EighthOfMemory(256 * MIB)),
    Row::new("storage.hybridlog_readonly_size", Kind::Size(8 * KIB, MAX), "256MiB",
        "Memory of the part of the log behind it, which is flushed and still read from memory.")
        .default(Default::EighthOfMemory(256 * MIB)),
    Row::new("storage.hybridlog_page_size", Kind::PowerOfTwo(4 * KIB, 64 * MIB), "4MiB",
        "Unit of the log in memory; the largest value is a little less."),
    Row::new("storage.hybridlog_segment_size", Kind::PowerOfTwo(4 * KIB, 1 << 40), "256MiB",
        "Size of one file of the log."),
    Row::new("storage.index_max_size", Kind::Size(0, MAX), "0",
        "Limit of the indexes of all databases together, in bytes; 0 is none."),
    Row::new("storage.memory_max", Kind::Size(0, MAX), "0",
        "Backend memory: bytes of log and index from which on writes answer OOM; 0 is no limit.").live(),
    Row::new("storage.block_cache_size", Kind::Size(0, MAX), "16MiB",
        "Memory for checksums and blocks read back from the disk."),
    Row::new("storage.disk_budget", Kind::Size(0, MAX), "0",
        "Limit of the data on disk; 0 is none.").not_yet(),
    Row::new("storage.hybridlog_auto_tiering", Kind::Flag, "false",
        "Seals old segments (compressed) and moves them to the cold tier.").not_yet(),
    Row::new("storage.hybridlog_migration_threshold", Kind::Fraction(0.1, 1.0), "0.8",
        "Part of disk_budget at which segments begin to move.").not_yet(),
    Row::new("storage.hybridlog_max_space_amplification", Kind::Fraction(0.0, 100.0), "1.5",
        "Log bytes per living byte at which it is compacted, while checkpoints are on; 0 never.").live(),
    Row::new("storage.eviction", Kind::Choice(EVICTION), "none",
        "What goes when disk_budget is reached: none (writes are refused), oldest (not yet).").live(),

    Row::new("persistence.aof_enabled", Kind::Flag, "true",
        "Logs every write to the append-only file, which a start replays beyond the last checkpoint."),
    Row::new("persistence.aof_sync", Kind::Choice(AOF_SYNC), "everysec",
        "When the append-only file is synced: always (before the reply), everysec, no.").live(),
    Row::new("persistence.aof_file", Kind::FileName { ending: ".aof" }, "appendonly.aof",
        "Name of the append-only file: its newest part has it as a second name."),
    Row::new("persistence.aof_rewrite_percentage", Kind::Integer(0, i32::MAX as u64), "100",
        "Growth in percent that has the append-only file rewritten (or a checkpoint taken); 0: never.").live(),
    Row::new("persistence.aof_rewrite_min_size", Kind::Size(0, MAX), "64MB",
        "Size below which the append-only file is not rewritten by itself.").live(),
    Row::new("persistence.aof_retention", Kind::Duration(0, 10 * YEAR_MS), "0",
        "How far back ferrite restore --time can go at least; 0: to the older of two checkpoints.").live(),
    Row::new("persistence.checkpoint_enabled", Kind::Flag, "true",
        "Takes a checkpoint at every interval and at a shutdown.").live(),
    Row::new("persistence.checkpoint_interval", Kind::Duration(1000, YEAR_MS), "300",
        "Time between checkpoints; none is taken when nothing was written.").live(),
    Row::new("persistence.checkpoint_file", Kind::FileName { ending: ".ckpt" }, "ferrite.ckpt",
        "Name of the checkpoint's manifest; the other files take its stem."),
    Row::new("persistence.checkpoint_compression", Kind::Flag, "true",
        "Compresses the index image with zstd."),
    Row::new("persistence.backup_hold", Kind::Duration(0, MONTH_MS), "600",
        "How long the files of a replaced checkpoint stay for a copy in progress; 0 keeps none.").live(),
    Row::new("persistence.backup_hold_size", Kind::Size(0, MAX), "1GB",
        "Most bytes that backup_hold keeps, but never less than one backup takes.").live(),

    Row::new("cloud.enabled", Kind::Flag, "false",
        "Keeps sealed segments in an object store.").not_yet(),
    Row::new("cloud.provider", Kind::Choice(PROVIDERS), "s3",
        "s3, gcs, azure or local.").not_yet(),
    Row::new("cloud.bucket", Kind::Text, "", "Bucket or container.").not_yet(),
    Row::new("cloud.region", Kind::Text, "", "Region of the bucket.").not_yet(),
    Row::new("cloud.prefix", Kind::Text, "", "What every object's name begins with.").not_yet(),
    Row::new("cloud.endpoint", Kind::Text, "", "URL of a service that is not the provider's own.").not_yet(),
    Row::new("cloud.access_key_id", Kind::Text, "", "Name of the access key.").not_yet(),
    Row::new("cloud.secret_access_key", Kind::Text, "", "The access key's secret.").not_yet(),
    Row::new("cloud.credentials", Kind::Text, "",
        "\"instance\" asks the machine's metadata address for credentials.").not_yet(),
    Row::new("cloud.upload_concurrency", Kind::Integer(1, 64), "4", "Uploads at once.").not_yet(),
    Row::new("cloud.cache_size", Kind::Size(0, MAX), "1GiB", "Disk space for blocks of remote segments.").not_yet(),
    Row::new("cloud.min_age", Kind::Duration(0, YEAR_MS), "0", "Age below which a segment is not uploaded.").not_yet(),
    Row::new("cloud.read_timeout", Kind::Duration(1, 600_000), "10", "Time after which a read of an object fails.").not_yet(),
    Row::new("cloud.startup", Kind::Choice(STARTUP), "refuse",
        "What a start does when the object store is out of reach: wait, refuse.").not_yet(),

    Row::new("encryption.enabled", Kind::Flag, "false", "Encrypts all files with AES-256-GCM.").not_yet(),
    Row::new("encryption.key_file", Kind::Path { optional: true }, "",
        "File with the key: 32 raw bytes, 64 hex digits or base64.").not_yet(),
    Row::new("encryption.key_command", Kind::Text, "", "Command that prints the key.").not_yet(),
    Row::new("encryption.previous_key_file", Kind::Path { optional: true }, "",
        "The key before, while it is being replaced.").not_yet(),

    Row::new("metrics.enabled", Kind::Flag, "false",
        "Serves /metrics (Prometheus) and /health over HTTP."),
    Row::new("metrics.bind", Kind::Addresses, "127.0.0.1", "Addresses of the HTTP server."),
    Row::new("metrics.port", Kind::Integer(0, 65535), "9121",
        "Its port; 0 lets the system choose one."),

    Row::new("logging.level", Kind::Choice(LEVELS), "info",
        "What is logged: error, warn, info, debug, trace.").live(),
    Row::new("logging.format", Kind::Choice(FORMATS), "pretty",
        "pretty (coloured on a terminal) or json (one object a line)."),
    Row::new("logging.file", Kind::Path { optional: true }, "",
        "File that the log is appended to; empty is standard error."),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_complete_and_unique() {
        let mut names = std::collections::HashSet::new();
        for row in ROWS {
            assert!(names.insert(row.name), "{} stands twice", row.name);
            let (section, key) = row.name.split_once('.').expect("section.key");
            for word in [section, key] {
                assert!(
                    !word.is_empty()
                        && word.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_')),
                    "{}",
                    row.name
                );
            }
            assert!(row.help.ends_with('.') && row.help.len() < 100, "{}: {}", row.name, row.help);
            let default = row.default_value();
            assert!(row.parse(&default.to_config_get()).is_ok(), "{}: its default", row.name);
        }
    }

    #[test]
    fn sections_are_not_scattered() {
        let mut sections: Vec<_> = ROWS.iter().map(Row::section).collect();
        sections.dedup();
        assert_eq!(
            sections,
            ["server", "storage", "persistence", "cloud", "encryption", "metrics", "logging"]
        );
    }

    #[test]
    fn what_has_not_landed_is_refused() {
        for (name, value) in [
            ("server.transport", "io_uring"),
            ("storage.eviction", "oldest"),
            ("cloud.enabled", "true"),
            ("cloud.bucket", "b"),
            ("encryption.key_file", "/k"),
        ] {
            let row = &ROWS[find(name).expect(name).0];
            let refused = row.parse(value).expect_err(name);
            assert!(refused.not_available, "{name}");
            assert_eq!(refused.redis, "not available in this version", "{name}");
        }
        for (name, value) in [("cloud.enabled", "false"), ("cloud.bucket", "")] {
            assert!(ROWS[find(name).expect(name).0].parse(value).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_near_miss_is_named() {
        assert_eq!(nearest("server.prot"), Some("server.port"));
        assert_eq!(nearest("port"), Some("server.port"));
        assert_eq!(nearest("storage.databses"), Some("storage.databases"));
        assert_eq!(
            nearest("persistance.checkpoint_interval"),
            Some("persistence.checkpoint_interval")
        );
        assert_eq!(nearest("server.mutable_size"), Some("storage.hybridlog_mutable_size"));
        assert_eq!(nearest("x"), None);
    }
}
