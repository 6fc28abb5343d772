//! What can stand in the way of a start, each with what to do about it; and what a start tells.

use crate::aof::{Failure, Part, Parts, Start};
use crate::config::{AofSync, Config, ConfigError, Live, Loaded};
use crate::context::Context;
use crate::info::VERSION;
use crate::journal::{self, Journal, ReplayError};
use crate::listener::ListenError;
use crate::logging;
use crate::memory::Usage;
use ferrite_hybridlog::{Backend, OpenError, Store};
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why the server did not start. `Display` is one line that ends with what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A file or directory that the start needs.
    #[error("cannot {action} {}: {}; {}", .path.display(), reason(.source), advice(.source, .setting))]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The flag or setting that names another.
        setting: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// An address of the server.
    #[error("{}", listen_text(.0))]
    Listen(#[from] ListenError),
    /// An address of the metrics server.
    #[error("cannot serve metrics on {address}: {}; set metrics.port or metrics.bind", reason(.source))]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// `persistence.aof_sync` cannot be followed.
    #[error("cannot set persistence.aof_sync: {0}")]
    Policy(String),
    /// The end of a server whose append-only file lacks some of what it acknowledged.
    #[error(
        "some of what was acknowledged is not on the disk: {0}; it was ended without a checkpoint, which would \
         have it"
    )]
    End(String),
    /// Memory that the store could not get.
    #[error("cannot open the store: {0}")]
    Memory(String),
    /// A size that the store refuses.
    #[error(transparent)]
    Setting(ConfigError),
    /// The image of the index.
    #[error(
        "{} at offset {offset}: {found}; nothing is lost: start once with the same settings and \
         --rebuild-index, which rebuilds the index from the log",
        .path.display()
    )]
    Image {
        /// The image.
        path: PathBuf,
        /// The byte offset in it.
        offset: u64,
        /// What was found there.
        found: String,
    },
    /// A data directory of the other backend.
    #[error(
        "{} was written with storage.backend = {made_by}: set it so, or choose another directory with \
         --data-dir; to change over, have the server with that backend rewrite its append-only file \
         (BGREWRITEAOF), end it with SHUTDOWN NOSAVE, and move the folder checkpoints aside",
        .path.display()
    )]
    Backend {
        /// The file.
        path: PathBuf,
        /// The backend that wrote it.
        made_by: &'static str,
    },
    /// The store did not open: its text says what to do.
    #[error(transparent)]
    Store(OpenError),
    /// The append-only file.
    #[error(transparent)]
    Replay(ReplayError),
    /// A new part of the append-only file.
    #[error(
        "{0}; free some space on that disk, or make it writable for the user that runs ferrite"
    )]
    Journal(Failure),
    /// No thread could be made.
    #[error("cannot start a thread: {}; raise the limit of processes (ulimit -u)", reason(.0))]
    Thread(io::Error),
}

/// Starts the log.
pub fn log(config: &Config) -> Result<logging::Level, StartError> {
    logging::start(&config.logging).map_err(|source| StartError::File {
        action: "write the log file",
        path: config.logging.file.clone().unwrap_or_default(),
        setting: "logging.file",
        source,
    })
}

/// Makes the data directory and answers its absolute path.
pub fn data_directory(path: &Path) -> Result<PathBuf, StartError> {
    let failed = |action, source| StartError::File {
        action,
        path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
        setting: "--data-dir",
        source,
    };
    fs::create_dir_all(path).map_err(|e| failed("make the data directory", e))?;
    path.canonicalize().map_err(|e| failed("enter the data directory", e))
}

/// Opens the store in `directory` and recovers it, its index from the log if that is asked for.
pub fn open_store(
    config: &Config,
    directory: &Path,
    rebuild_index: bool,
) -> Result<Store, StartError> {
    let directory = directory.to_owned();
    // With hybridlog its own files know.
    let numbers_used = match config.store.backend {
        Backend::Memory => checkpoints_begun(&directory, &config.persistence.aof_file),
        Backend::HybridLog => 0,
    };
    let config = ferrite_hybridlog::Config {
        directory,
        rebuild_index,
        numbers_used,
        ..config.store.clone()
    };
    Store::open(config).map_err(|e| match e {
        OpenError::Config { setting, value, why } => refused(setting, value, why),
        OpenError::Io { action, path, source } => {
            StartError::File { action, path, setting: "--data-dir", source }
        }
        OpenError::DamagedImage { path, offset, found } => {
            StartError::Image { path, offset, found }
        }
        OpenError::OtherBackend { path, made_by } => StartError::Backend { path, made_by },
        other => StartError::Store(other),
    })
}

/// The highest number of a checkpoint that a part of the append-only file goes on from, complete or not.
fn checkpoints_begun(directory: &Path, aof_file: &str) -> u64 {
    // What is wrong with the parts is the replay's to say.
    let Ok(parts) = Parts::find(directory, aof_file) else { return 0 };
    let number = |part: &Part| match part.header.start {
        Start::Checkpoint(number) | Start::Only(number) => number,
        Start::Empty | Start::Base(_) | Start::Part => 0,
    };
    parts.parts().values().map(number).max().unwrap_or(0)
}

/// Replays the append-only file into the store that was just opened, and follows it from now on; `None`
/// when there is to be none.
pub fn open_journal(
    context: &Arc<Context>,
    directory: &Path,
    store: &Store,
) -> Result<Option<Arc<Journal>>, StartError> {
    let config = context.config.config();
    let persistence = &config.persistence;
    if !persistence.aof_enabled {
        warn_of_unused_parts(directory, &persistence.aof_file);
        return Ok(None);
    }
    let replay = journal::replay(store, directory, &persistence.aof_file);
    let replay = replay.map_err(StartError::Replay)?;
    let journal = Journal::start(store, context, replay, persistence.aof_sync);
    let journal = journal.map_err(StartError::Journal)?;
    if !persistence.aof_retention.is_zero() {
        // Until it is known which of them history needs.
        journal.keep_history_from(Some(0));
    }
    Ok(Some(journal))
}

/// Without the append-only file its parts are neither read nor touched: better said than found out.
fn warn_of_unused_parts(directory: &Path, aof_file: &str) {
    if Parts::find(directory, aof_file).is_ok_and(|parts| !parts.is_empty()) {
        tracing::warn!(
            "{} is not replayed, since persistence.aof_enabled is false: what it has beyond the last \
             checkpoint is absent",
            directory.join(aof_file).display()
        );
    }
}

/// CONFIG SET persistence.aof_sync.
pub fn follow_policy(
    context: &Arc<Context>,
) -> impl Fn(&Config, &Config) -> Result<(), String> + use<> {
    let context = Arc::downgrade(context);
    move |old, new| {
        let policy = new.persistence.aof_sync;
        if policy != old.persistence.aof_sync
            && let Some(context) = context.upgrade()
        {
            settle_policy(context, policy)?;
        }
        Ok(())
    }
}

/// Replies to writes keep to the policy at once. What waits for others goes to a thread of its own: whoever
/// asks may run alone, or be waited for by who is inside.
pub fn settle_policy(context: Arc<Context>, policy: AofSync) -> Result<(), String> {
    let Some(journal) = context.journal() else { return Ok(()) };
    journal.set_policy(policy);
    let settle = move || {
        if let Some(journal) = context.journal() {
            journal.settle_policy();
        }
    };
    let started = std::thread::Builder::new().name("aof-policy".into()).spawn(settle);
    started.map(drop).map_err(|e| format!("Can't start a thread: {e}"))
}

/// Lets the store compact its log as `config` says. What is compacted goes with the checkpoints.
pub fn set_space(store: &Store, config: &Config) {
    let most = config.max_space_amplification;
    let in_memory = config.store.backend == Backend::Memory;
    let compacts = (config.persistence.checkpoint_enabled || in_memory) && most > 0.0;
    store.set_space_amplification(compacts.then_some(most));
}

/// Tells a store in memory what its log may take: what is set, but what the indexes take.
pub fn set_memory(context: &Context, config: &Config) {
    if config.store.backend == Backend::Memory
        && let Some(store) = context.store.get()
    {
        let index = context.rates.sizes(context).index_bytes;
        store.set_memory_limit(match config.memory_max {
            0 => 0,
            most => most.saturating_sub(index).max(1),
        });
    }
}

/// CONFIG SET of what the store follows. Files that need not be held any more go within a second.
pub fn follow_store(
    context: &Arc<Context>,
) -> impl Fn(&Config, &Config) -> Result<(), String> + use<> {
    let context = Arc::downgrade(context);
    move |old, new| {
        if let Some(context) = context.upgrade()
            && let Some(store) = context.store.get()
        {
            set_space(store, new);
            set_memory(&context, new);
            let hold = new.persistence.backup_hold;
            if hold != old.persistence.backup_hold {
                store.set_backup_hold(hold);
            }
        }
        Ok(())
    }
}

/// What the store refuses: the value of a setting, or a size that follows from several.
fn refused(field: &str, value: String, why: String) -> StartError {
    match setting_name(field) {
        Some(name) => StartError::Setting(ConfigError::Relation { name, value, why }),
        None => StartError::Memory(why),
    }
}

/// Listens for the metrics server; without it, on nothing.
pub fn metrics_listeners(config: &Config) -> Result<Vec<TcpListener>, StartError> {
    let metrics = &config.metrics;
    let addresses = metrics.bind.iter().map(|ip| SocketAddr::new(*ip, metrics.port));
    let addresses = addresses.filter(|_| metrics.enabled);
    let listen = |address| {
        TcpListener::bind(address).map_err(|source| StartError::Metrics { address, source })
    };
    addresses.map(listen).collect()
}

/// Tells where the settings came from.
pub fn tell_configuration(loaded: &Loaded) {
    tracing::info!("Ferrite {VERSION}, process {}", std::process::id());
    match &loaded.file {
        Some(path) => {
            let path = path.canonicalize().unwrap_or_else(|_| path.clone());
            let how = if loaded.file_found { ", found in the working directory" } else { "" };
            tracing::info!("configuration from {}{how}", path.display());
        }
        None => tracing::info!("no configuration file: defaults, environment and flags"),
    }
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
}

/// Tells what was found and chosen.
pub fn tell_store(context: &Context) {
    let (recovery, stats) = (context.store.recovery(), context.store.stats());
    let backend = context.config.config().backend;
    tracing::info!("data directory {}", context.facts.data_dir.display());
    let io = match &stats.io_fallback {
        Some(why) => format!("{} ({why})", stats.io_kind),
        None => stats.io_kind.to_owned(),
    };
    let reads = match &stats.buffered_reads {
        Some(why) => format!("through the page cache ({why})"),
        None => "direct".to_owned(),
    };
    let window = match &stats.readonly_window_reason {
        Some(why) => format!("{} ({why})", stats.readonly_window),
        None => stats.readonly_window.to_owned(),
    };
    if stats.is_in_memory {
        let limit = match context.config.config().memory_max {
            0 => "no limit".to_owned(),
            most => format!("at most {} MiB of log and index", most >> 20),
        };
        tracing::info!("backend {backend}, file I/O {io}, all data in memory, {limit}");
    } else {
        tracing::info!(
            "backend {backend}, file I/O {io}, reads {reads}, read-only window {window}"
        );
    }
    let ms = recovery.duration.as_secs_f64() * 1000.0;
    match recovery.checkpoint {
        Some(number) => tracing::info!(
            "recovered {} keys from checkpoint {number} in {ms:.1} ms",
            recovery.keys
        ),
        None => tracing::info!("recovered 0 keys in {ms:.1} ms: there is no checkpoint"),
    }
    if recovery.index_rebuilt {
        tracing::info!("the index was rebuilt from the log: leave out --rebuild-index from now on");
    }
    if recovery.log_bytes > 0 {
        tracing::info!(
            "the newest {} of {} bytes of the log match their checksums{}",
            recovery.verified_bytes,
            recovery.log_bytes,
            if recovery.verified_bytes < recovery.log_bytes {
                "; the others are compared when they are read"
            } else {
                ""
            }
        );
    }
    let budget = Usage::of(context, &stats).budget;
    tracing::info!(
        "memory budget {} MiB: mutable {}, read-only {}, block cache {}, index {} (so far), \
         buffers as needed, other {}",
        budget.total() >> 20,
        budget.mutable >> 20,
        budget.readonly >> 20,
        budget.block_cache >> 20,
        budget.index >> 20,
        crate::memory::FIXED_BYTES >> 20
    );
    if crate::config::memory_limit().is_some_and(|limit| budget.total() > limit) {
        tracing::warn!(
            "the memory budget is more than this machine has; lower \
             storage.hybridlog_mutable_size or storage.hybridlog_readonly_size"
        );
    }
}

/// Tells where the metrics are.
pub fn tell_metrics(listeners: &[TcpListener]) {
    for address in listeners.iter().filter_map(|l| l.local_addr().ok()) {
        tracing::info!("metrics on http://{address}/metrics, health on http://{address}/health");
    }
}

/// Tells where the server listens, and that nobody is asked for a password.
pub fn tell_listening(context: &Context) {
    let addresses = context.facts.addresses.get().cloned().unwrap_or_default();
    let transport = context.facts.transport.get().unwrap_or(&"none");
    for address in &addresses {
        let workers = context.workers.len();
        tracing::info!("listening on {address}, transport {transport}, {workers} workers");
    }
    if let Some(path) = &context.config.config().server.unix_socket {
        tracing::info!("listening on {}", path.display());
    }
    exposed(&addresses).for_each(|warning| tracing::warn!("{warning}"));
}

/// A warning for each address that others than this machine reach.
fn exposed(addresses: &[SocketAddr]) -> impl Iterator<Item = String> {
    addresses.iter().filter(|address| !address.ip().is_loopback()).map(|address| {
        format!(
            "there is no authentication yet: whoever reaches {address} can read and change \
             everything"
        )
    })
}

/// Descriptors of other things than clients and the store's files: listeners, epoll, pipes, the log.
const OTHER_DESCRIPTORS: u64 = 64;

/// What the store may keep open under a limit of `limit` descriptors: it takes a quarter of them.
fn store_descriptors(limit: u64) -> u64 {
    (limit / 4).clamp(32, 1024)
}

/// How many clients fit under a limit of `limit` descriptors, without taking any from the store.
pub(crate) fn clients_under(limit: u64) -> u64 {
    limit.saturating_sub(store_descriptors(limit) + OTHER_DESCRIPTORS)
}

/// Raises the limit of open files as far as it goes, when `clients` do not fit under it; answers
/// how many do.
fn raise_descriptor_limit(clients: u64) -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let current = limit.current.unwrap_or(u64::MAX);
    if clients_under(current) < clients {
        // Without a hard limit what is wanted is asked for.
        let most = clients.saturating_add(OTHER_DESCRIPTORS + store_descriptors(u64::MAX));
        let wanted = limit.maximum.unwrap_or(most);
        let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
        if current < wanted
            && let Err(e) = setrlimit(Resource::Nofile, raised)
        {
            tracing::warn!("the limit of open files cannot be raised to {wanted}: {e}");
        }
    }
    clients_under(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX))
}

/// Makes room for `server.max_connections` clients. As many as the limit of open files leaves are
/// what is in force then: more would take the descriptors that the store needs.
pub fn fit_clients(config: &Live) {
    let wanted = config.config().server.max_connections;
    let fit = raise_descriptor_limit(wanted).max(1);
    if fit < wanted {
        tracing::warn!(
            "server.max_connections has been reduced from {wanted} to {fit} to compensate for the low \
             limit of open files; if you need more clients, raise it with ulimit -n"
        );
        let text = fit.to_string();
        config.set(&[("server.max_connections", &text)]).expect("1 or more is in its range");
    }
}

/// CONFIG SET maxclients: refuses, in Redis's words, what the system does not carry.
pub fn refuse_too_many_clients(old: &Config, new: &Config) -> Result<(), String> {
    let wanted = new.server.max_connections;
    if wanted <= old.server.max_connections {
        return Ok(());
    }
    match raise_descriptor_limit(wanted) {
        fit if fit < wanted => Err(format!(
            "The operating system is not able to handle the specified number of clients, try with \
             {fit}"
        )),
        _ => Ok(()),
    }
}

/// The name of a setting of the store; `None` for what is none of its own.
fn setting_name(field: &str) -> Option<&'static str> {
    Some(match field {
        "mutable_size" => "storage.hybridlog_mutable_size",
        "readonly_size" => "storage.hybridlog_readonly_size",
        "page_size" => "storage.hybridlog_page_size",
        "segment_size" => "storage.hybridlog_segment_size",
        "block_cache_size" => "storage.block_cache_size",
        "index_max_size" => "storage.index_max_size",
        "databases" => "storage.databases",
        "io" => "storage.io",
        "file_stem" => "persistence.checkpoint_file",
        _ => return None,
    })
}

/// The system's answer without its number.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error") {
        Some(end) => text[..end].to_lowercase(),
        None => text,
    }
}

fn listen_text(error: &ListenError) -> String {
    use io::ErrorKind as Kind;
    let (ListenError::Refused { address, .. } | ListenError::InUse { address }) = error;
    let is_path = address.parse::<SocketAddr>().is_err();
    let source = match error {
        ListenError::Refused { source, .. } => source,
        ListenError::InUse { .. } if is_path => {
            return format!(
                "{address} is in use; stop the other server or choose another path with \
                 server.unix_socket"
            );
        }
        ListenError::InUse { .. } => return error.to_string(),
    };
    if is_path {
        let advice = advice(source, "server.unix_socket");
        return format!("cannot listen on {address}: {}; {advice}", reason(source));
    }
    let advice = match source.kind() {
        Kind::AddrNotAvailable => "choose an address of this machine with --bind",
        Kind::PermissionDenied => "ports below 1024 need privileges: choose another with --port",
        _ => "choose another with --bind or --port",
    };
    format!("cannot listen on {address}: {}; {advice}", reason(source))
}

fn advice(error: &io::Error, setting: &str) -> String {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::OutOfMemory => "lower storage.hybridlog_mutable_size or \
                              storage.hybridlog_readonly_size"
            .into(),
        Kind::PermissionDenied | Kind::ReadOnlyFilesystem => format!(
            "make it writable for the user that runs ferrite, or choose another with {setting}"
        ),
        Kind::StorageFull | Kind::QuotaExceeded => {
            format!("free some space on that disk, or choose another with {setting}")
        }
        Kind::NotFound => format!("make the directory above it, or choose another with {setting}"),
        _ => format!("choose another with {setting}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_way_is_one_line_with_advice() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("file");
        fs::write(&file, "").expect("written");
        let error = data_directory(&file.join("data")).expect_err("a file is in the way");
        assert_eq!(
            error.to_string(),
            format!(
                "cannot make the data directory {}/data: not a directory; choose another with \
                 --data-dir",
                file.display()
            )
        );
        let refused = |kind: io::ErrorKind| {
            let source = io::Error::from(kind);
            listen_text(&ListenError::Refused { address: "192.0.2.1:80".into(), source })
        };
        assert_eq!(
            refused(io::ErrorKind::AddrNotAvailable),
            "cannot listen on 192.0.2.1:80: address not available; choose an address of this \
             machine with --bind"
        );
        assert!(refused(io::ErrorKind::PermissionDenied).contains("--port"));
        let source = io::Error::from(io::ErrorKind::NotFound);
        assert_eq!(
            listen_text(&ListenError::Refused { address: "/nowhere/a".into(), source }),
            "cannot listen on /nowhere/a: entity not found; make the directory above it, or choose \
             another with server.unix_socket"
        );
        let used = listen_text(&ListenError::InUse { address: "/tmp/a".into() });
        assert!(used.ends_with("choose another path with server.unix_socket"), "{used}");
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let advice = advice(&full, "--data-dir");
        assert_eq!(advice, "free some space on that disk, or choose another with --data-dir");
    }

    #[test]
    fn clients_leave_the_store_its_descriptors() {
        for (limit, clients) in [(0, 0), (96, 0), (100, 4), (256, 128), (1024, 704)] {
            assert_eq!(clients_under(limit), clients, "{limit}");
        }
        assert_eq!(clients_under(1 << 20), (1 << 20) - 1024 - 64);
        for clients in [1u64, 100, 10_000, 1 << 30] {
            assert!(clients_under(clients + OTHER_DESCRIPTORS + 1024) >= clients);
        }
    }

    #[test]
    fn every_address_that_others_reach_is_warned_of() {
        let addresses = ["127.0.0.1:1", "[::1]:1", "0.0.0.0:1", "192.0.2.7:1", "[::]:1"]
            .map(|text| text.parse().expect("an address"));
        let warned: Vec<_> = exposed(&addresses).collect();
        assert_eq!(warned.len(), 3, "{warned:?}");
        for (warning, address) in warned.iter().zip(["0.0.0.0:1", "192.0.2.7:1", "[::]:1"]) {
            assert!(
                warning.contains(&format!("no authentication yet: whoever reaches {address} can"))
            );
        }
    }

    #[test]
    fn the_stores_fields_have_the_settings_names() {
        for field in ["mutable_size", "readonly_size", "page_size", "segment_size", "databases"] {
            let name = setting_name(field);
            assert!(
                crate::config::ROWS.iter().any(|row| Some(row.name) == name),
                "{field}: {name:?}"
            );
        }
        let error =
            refused("index", "2^10 buckets".into(), "9 bytes were refused; lower it".into());
        assert_eq!(error.to_string(), "cannot open the store: 9 bytes were refused; lower it");
    }
}
