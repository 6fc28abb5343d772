//! INFO: one function a section. Fields that mean what a field of Redis means have its name;
//! Ferrite's own follow behind them. A number that Ferrite does not have is not printed, unless a
//! common client reads it and zero is the truth.

use crate::commands::table;
use crate::context::{Context, unix_ms};
use crate::latency::{self, PERCENTILES};
use crate::loading::Loading;
use crate::memory::{FIXED_BYTES, Usage};
use crate::process;
use crate::totals::Totals;
use ferrite_hybridlog::{Database, Stats, Store};
use std::fmt::{self, Display, Write as _};
use std::sync::atomic::Ordering::Relaxed;

/// The version of Redis whose replies Ferrite gives. Clients choose commands by it.
pub const REDIS_VERSION: &str = "7.0.15";
/// Ferrite's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// One section of INFO.
#[derive(Debug)]
pub struct Section {
    /// Its name as INFO takes it, in lower case.
    pub name: &'static str,
    /// Its headline.
    pub title: &'static str,
    /// Whether INFO without arguments has it.
    pub default: bool,
    write: fn(&View<'_>, &mut Fields),
}

/// All sections in the order in which they are printed.
#[rustfmt::skip]
pub const SECTIONS: &[Section] = &[
    Section { name: "server", title: "Server", default: true, write: server },
    Section { name: "clients", title: "Clients", default: true, write: clients },
    Section { name: "memory", title: "Memory", default: true, write: memory },
    Section { name: "persistence", title: "Persistence", default: true, write: persistence },
    Section { name: "storage", title: "Storage", default: true, write: storage },
    Section { name: "stats", title: "Stats", default: true, write: stats },
    Section { name: "replication", title: "Replication", default: true, write: replication },
    Section { name: "cpu", title: "CPU", default: true, write: cpu },
    Section { name: "modules", title: "Modules", default: true, write: |_, _| {} },
    Section { name: "commandstats", title: "Commandstats", default: false, write: commandstats },
    Section { name: "errorstats", title: "Errorstats", default: true, write: errorstats },
    Section { name: "latencystats", title: "Latencystats", default: false, write: latencystats },
    Section { name: "cluster", title: "Cluster", default: true, write: cluster },
    Section { name: "keyspace", title: "Keyspace", default: true, write: keyspace },
];

/// What the sections read: the store's numbers are taken once for all of them.
struct View<'c> {
    context: &'c Context,
    stats: Stats,
    totals: Totals,
}

/// The text of the sections that `words` name; none at all names the default ones. `default`,
/// `all` and `everything` name several; what is unknown names nothing.
pub fn render<'w>(context: &Context, words: impl IntoIterator<Item = &'w [u8]>) -> String {
    let mut wanted = [false; SECTIONS.len()];
    let mut any = false;
    for word in words {
        any = true;
        let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
        let all = is("all") || is("everything");
        for (wanted, section) in wanted.iter_mut().zip(SECTIONS) {
            *wanted |= all || is(section.name) || (is("default") && section.default);
        }
    }
    if !any {
        SECTIONS.iter().zip(&mut wanted).for_each(|(section, wanted)| *wanted = section.default);
    }
    let stats = context.stats();
    let view = View { context, totals: Totals::since_reset(context, &stats), stats };
    let mut fields = Fields(String::with_capacity(4096));
    for (section, _) in SECTIONS.iter().zip(wanted).filter(|(_, wanted)| *wanted) {
        fields.headline(section.title);
        (section.write)(&view, &mut fields);
    }
    fields.0
}

/// The text being written.
struct Fields(String);

impl Fields {
    fn headline(&mut self, title: &str) {
        if !self.0.is_empty() {
            self.0.push_str("\r\n");
        }
        self.line(format_args!("# {title}"));
    }
    fn field(&mut self, name: &str, value: impl Display) {
        self.line(format_args!("{name}:{value}"));
    }
    /// A number of bytes, and the same for people.
    fn bytes(&mut self, name: &str, bytes: u64) {
        self.field(name, bytes);
        self.line(format_args!("{name}_human:{}", Human(bytes)));
    }
    fn line(&mut self, line: fmt::Arguments<'_>) {
        self.0.write_fmt(line).expect("a String takes all");
        self.0.push_str("\r\n");
    }
}

/// Bytes as Redis prints them for people.
struct Human(u64);

impl Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')];
        match units.iter().find(|(shift, _)| self.0 >> shift > 0) {
            Some((shift, unit)) => write!(f, "{:.2}{unit}", self.0 as f64 / (1u64 << shift) as f64),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// A time that is told as whole seconds, -1 while there is none.
fn seconds_or_none(duration: Option<std::time::Duration>) -> i64 {
    duration.map_or(-1, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// One line from a text that may hold several.
fn one_line(text: &str) -> String {
    text.replace(['\r', '\n'], " ")
}

fn ok_or_err<T>(error: &Option<T>) -> &'static str {
    if error.is_none() { "ok" } else { "err" }
}

fn server(view: &View<'_>, to: &mut Fields) {
    let context = view.context;
    let (facts, now_ms) = (&context.facts, unix_ms());
    let uptime = context.started.elapsed().as_secs();
    to.field("redis_version", REDIS_VERSION);
    to.field("ferrite_version", VERSION);
    to.field("redis_mode", "standalone");
    to.field("os", process::system());
    to.field("arch_bits", usize::BITS);
    to.field("multiplexing_api", facts.transport.get().unwrap_or(&"none"));
    to.field("process_id", std::process::id());
    to.field("run_id", &facts.run_id);
    to.field("tcp_port", facts.port());
    to.field("server_time_usec", u128::from(now_ms) * 1000);
    to.field("uptime_in_seconds", uptime);
    to.field("uptime_in_days", uptime / 86_400);
    to.field("executable", facts.executable.display());
    let file = context.config.file().and_then(|path| path.canonicalize().ok());
    to.field("config_file", file.unwrap_or_default().display());
    to.field("data_dir", facts.data_dir.display());
    to.field("workers", context.workers.len());
}

fn clients(view: &View<'_>, to: &mut Fields) {
    let context = view.context;
    let all = context.clients.list();
    let most = |f: fn(&crate::client::Shared) -> u64| all.iter().map(|c| f(c)).max().unwrap_or(0);
    to.field("connected_clients", all.len());
    to.field("cluster_connections", 0);
    to.field("maxclients", context.limits.max_connections.get());
    to.field("client_recent_max_input_buffer", most(|c| c.query_bytes.load(Relaxed)));
    to.field("client_recent_max_output_buffer", most(|c| c.output_bytes.load(Relaxed)));
    to.field("blocked_clients", all.iter().filter(|c| c.paused.load(Relaxed)).count());
    to.field("tracking_clients", 0);
    to.field("clients_in_timeout_table", 0);
}

fn memory(view: &View<'_>, to: &mut Fields) {
    let context = view.context;
    let usage = Usage::of(context, &view.stats);
    let (budget, process) = (usage.budget, usage.process);
    let peak = context.rates.memory_peak(usage.used());
    to.bytes("used_memory", usage.used());
    to.bytes("used_memory_rss", process.resident);
    to.bytes("used_memory_peak", peak);
    let percent = 100.0 * usage.used() as f64 / peak.max(1) as f64;
    to.field("used_memory_peak_perc", format_args!("{percent:.2}%"));
    let in_frames = view.stats.log_tail - view.stats.log_head;
    let dataset = in_frames.min(usage.used());
    to.field("used_memory_overhead", usage.used() - dataset);
    to.field("used_memory_dataset", dataset);
    to.field(
        "used_memory_dataset_perc",
        format_args!("{:.2}%", { 100.0 * dataset as f64 / usage.used().max(1) as f64 }),
    );
    to.bytes("total_system_memory", crate::config::memory_limit().unwrap_or(0));
    to.bytes("maxmemory", context.config.config().memory_max);
    to.field("maxmemory_policy", "noeviction");
    let ratio = process.resident as f64 / usage.used().max(1) as f64;
    to.field("mem_fragmentation_ratio", format_args!("{ratio:.2}"));
    to.field("mem_clients_normal", budget.buffers());
    to.field("mem_allocator", "libc");
    to.bytes("memory_budget", budget.total());
    to.field("memory_budget_mutable", budget.mutable);
    to.field("memory_budget_readonly", budget.readonly);
    to.field("memory_budget_block_cache", budget.block_cache);
    to.field("memory_budget_index", budget.index);
    to.field("memory_budget_query_buffers", budget.query_buffers);
    to.field("memory_budget_output_buffers", budget.output_buffers);
    to.field("memory_budget_fixed", FIXED_BYTES);
    to.field("memory_anonymous", process.anonymous);
    to.field("memory_locked", process.locked);
    to.field("memory_frames", usage.frames);
    to.field("memory_block_cache", usage.block_cache);
}

fn persistence(view: &View<'_>, to: &mut Fields) {
    let context = view.context;
    let checkpoints = context.checkpoints.state();
    let recovery = context.store.get().map(Store::recovery).unwrap_or_default();
    let in_progress = u8::from(context.checkpoints.in_progress());
    let (checkpoints_of, databases) = (&context.checkpoints, context.databases);
    let changes = context
        .store
        .get()
        .map_or(0, |store| checkpoints_of.changes_since_last(store, &view.stats, databases));
    let last_save_s = checkpoints.last_save_ms / 1000;
    let last_duration_s = seconds_or_none(checkpoints.last_duration);
    to.field("loading", u8::from(context.is_loading()));
    to.field("async_loading", 0);
    if context.is_loading() {
        let progress = Loading::of(context);
        let start_s = unix_ms() / 1000 - progress.elapsed.as_secs();
        to.field("loading_start_time", start_s);
        to.field("loading_total_bytes", progress.total_bytes);
        to.field("loading_loaded_bytes", progress.loaded_bytes);
        to.field("loading_loaded_perc", format_args!("{:.2}", progress.percent()));
        to.field("loading_eta_seconds", progress.eta_s());
    }
    to.field("rdb_changes_since_last_save", changes);
    to.field("rdb_bgsave_in_progress", in_progress);
    to.field("rdb_last_save_time", last_save_s);
    to.field("rdb_last_bgsave_status", ok_or_err(&checkpoints.last_error));
    to.field("rdb_last_bgsave_time_sec", last_duration_s);
    to.field(
        "rdb_current_bgsave_time_sec",
        seconds_or_none(checkpoints.began.map(|b| b.elapsed())),
    );
    to.field("rdb_saves", checkpoints.completed);
    to.field("rdb_last_load_keys_loaded", recovery.keys);
    let held = view.stats.held_bytes + context.checkpoints.held_part_bytes();
    to.field("backup_held_bytes", held);
    let bytes = context.store.get().map_or(0, |store| context.checkpoints.backup_bytes(store));
    to.field("backup_bytes", bytes);
    let journal = context.journal().map(|journal| journal.state());
    to.field("aof_enabled", u8::from(journal.is_some()));
    let rewrites = context.journal().map(|journal| journal.rewrites()).unwrap_or_default();
    to.field("aof_rewrite_in_progress", u8::from(rewrites.began.is_some()));
    to.field("aof_rewrite_scheduled", u8::from(rewrites.scheduled));
    to.field("aof_last_rewrite_time_sec", seconds_or_none(rewrites.last_duration));
    let current = rewrites.began.map(|began| began.elapsed());
    to.field("aof_current_rewrite_time_sec", seconds_or_none(current));
    to.field("aof_last_bgrewrite_status", ok_or_err(&rewrites.last_error));
    to.field("aof_rewrites", rewrites.completed);
    to.field("aof_rewrites_failed", rewrites.failed);
    if let Some(error) = &rewrites.last_error {
        to.field("aof_last_rewrite_error", one_line(error));
    }
    let failure = journal.as_ref().and_then(|journal| journal.failure.as_ref());
    to.field("aof_last_write_status", ok_or_err(&failure));
    let journal = journal.as_ref();
    to.field("aof_current_size", journal.map_or(0, |journal| journal.bytes));
    if let Some(journal) = journal {
        let unsynced = context.store.redo_tail().saturating_sub(journal.durable) * 8;
        to.field("aof_base_size", rewrites.size_then);
        to.field("aof_history_since_ms", context.history.since_ms());
        to.field("aof_history_bytes", context.history.bytes());
        to.field("aof_pending_rewrite", u8::from(rewrites.scheduled));
        to.field("aof_buffer_length", journal.buffered);
        to.field("aof_pending_bio_fsync", u8::from(unsynced > 0));
        to.field("aof_delayed_fsync", journal.delayed);
        to.field("aof_delayed_ms", journal.delayed_time.as_millis());
        to.field("aof_part", journal.part);
        to.field("aof_part_size", journal.part_bytes);
        to.field("aof_entries", journal.entries);
        to.field("aof_syncs", journal.syncs);
        to.field("aof_unsynced_bytes", unsynced);
        let age = journal.synced_at.map_or(-1, |at| at.elapsed().as_millis() as i64);
        to.field("aof_last_sync_ago_ms", age);
        if let Some(failure) = &journal.failure {
            to.field("aof_last_error", one_line(failure));
        }
    }
    let settings = &context.config.config().persistence;
    to.field("checkpoint_enabled", u8::from(settings.checkpoint_enabled));
    to.field("checkpoint_interval_sec", settings.checkpoint_interval.as_secs_f64());
    to.field("checkpoint_in_progress", in_progress);
    to.field("checkpoint_last_save_time", last_save_s);
    to.field("checkpoint_last_status", ok_or_err(&checkpoints.last_error));
    to.field("checkpoint_last_duration_sec", last_duration_s);
    let ms = checkpoints.last_duration.map_or(-1, |d| d.as_millis() as i64);
    to.field("checkpoint_last_duration_ms", ms);
    to.field("checkpoint_last_size_bytes", checkpoints.last_bytes);
    to.field("checkpoint_completed", checkpoints.completed);
    to.field("checkpoint_failed", checkpoints.failed);
    if let Some(error) = &checkpoints.last_error {
        to.field("checkpoint_last_error", one_line(error));
    }
    to.field("recovered_checkpoint", recovery.checkpoint.unwrap_or(0));
    to.field("recovered_keys", recovery.keys);
    to.field("recovery_duration_ms", recovery.duration.as_millis());
}

fn storage(view: &View<'_>, to: &mut Fields) {
    let stats = &view.stats;
    let settings = view.context.config.config();
    to.field("storage_backend", settings.backend);
    to.field("storage_io", stats.io_kind);
    to.field("storage_memory_full", u8::from(stats.memory_is_full));
    to.field("storage_direct_reads", u8::from(stats.buffered_reads.is_none()));
    to.field("storage_readonly_window", stats.readonly_window);
    if let Some(why) = &stats.readonly_window_reason {
        to.field("storage_readonly_window_reason", one_line(why));
    }
    to.field("storage_mapped_bytes", stats.mapped_bytes);
    to.field("storage_writable", u8::from(stats.not_writable.is_none()));
    if let Some(why) = &stats.not_writable {
        to.field("storage_not_writable_reason", one_line(why));
    }
    to.field("storage_page_size", settings.store.page_size);
    to.field("storage_segment_size", settings.store.segment_size);
    to.field("log_begin", stats.log_begin);
    to.field("log_head", stats.log_head);
    to.field("log_flushed_until", stats.log_flushed_until);
    to.field("log_read_only", stats.log_read_only);
    to.field("log_tail", stats.log_tail);
    to.field("log_bytes", stats.log_bytes);
    to.field("log_live_bytes", stats.log_live_bytes);
    let amplification = stats.log_bytes as f64 / stats.log_live_bytes.max(1) as f64;
    to.field("log_space_amplification", format_args!("{amplification:.2}"));
    to.field("compaction_read_bytes", stats.compaction.read_bytes);
    to.field("compaction_copied_bytes", stats.compaction.copied_bytes);
    to.field("compaction_reclaimable_bytes", stats.reclaimable_bytes);
    if let Some(error) = &stats.compaction_last_error {
        to.field("compaction_last_error", one_line(error));
    }
    to.field("disk_bytes", view.context.rates.sizes(view.context).disk_bytes);
    to.field("device_reads", stats.device_reads);
    to.field("device_read_bytes", stats.device_read_bytes);
    to.field("device_write_bytes", stats.device_write_bytes);
    to.field("in_place_updates", stats.in_place_updates);
    to.field("appends", stats.appends);
    to.field("parked_for_room", stats.parked_for_room);
    to.field("safepoint_usec_max", stats.safepoint_us_max);
}

fn stats(view: &View<'_>, to: &mut Fields) {
    let (totals, rates) = (&view.totals, view.context.rates.now());
    to.field("total_connections_received", totals.connections);
    to.field("total_commands_processed", totals.commands);
    to.field("instantaneous_ops_per_sec", rates.commands_per_second);
    to.field("total_net_input_bytes", totals.input_bytes);
    to.field("total_net_output_bytes", totals.output_bytes);
    to.field("instantaneous_input_kbps", format_args!("{:.2}", rates.input_kib_per_second));
    to.field("instantaneous_output_kbps", format_args!("{:.2}", rates.output_kib_per_second));
    to.field("rejected_connections", totals.refused_connections);
    to.field("expired_keys", totals.expired_keys);
    to.field("evicted_keys", 0);
    to.field("keyspace_hits", totals.keyspace_hits);
    to.field("keyspace_misses", totals.keyspace_misses);
    to.field("pubsub_channels", 0);
    to.field("pubsub_patterns", 0);
    to.field("latest_fork_usec", 0);
    to.field("total_forks", 0);
    to.field("total_error_replies", totals.errors);
    to.field("pending_operations", totals.pending);
    to.field("query_buffer_limit_disconnections", totals.query_limit_closed);
    to.field("client_output_buffer_limit_disconnections", totals.output_limit_closed);
}

fn replication(view: &View<'_>, to: &mut Fields) {
    let context = view.context;
    to.field("role", "master");
    to.field("connected_slaves", 0);
    to.field("master_failover_state", "no-failover");
    to.field("master_replid", &context.facts.run_id);
    to.field("master_replid2", "0".repeat(40));
    to.field("master_repl_offset", 0);
    to.field("second_repl_offset", -1);
    to.field("repl_backlog_active", 0);
    to.field("repl_backlog_size", 0);
    to.field("repl_backlog_first_byte_offset", 0);
    to.field("repl_backlog_histlen", 0);
}

fn cpu(_: &View<'_>, to: &mut Fields) {
    let cpu = process::cpu();
    to.field("used_cpu_sys", format_args!("{:.6}", cpu.system));
    to.field("used_cpu_user", format_args!("{:.6}", cpu.user));
    to.field("used_cpu_sys_children", "0.000000");
    to.field("used_cpu_user_children", "0.000000");
}

fn commandstats(view: &View<'_>, to: &mut Fields) {
    for (entry, n) in table().entries().iter().zip(&view.totals.by_command) {
        if n.calls + n.failed + n.rejected == 0 {
            continue;
        }
        let usec = n.nanoseconds / 1000;
        let each = n.nanoseconds as f64 / 1000.0 / n.calls.max(1) as f64;
        let (name, calls, rejected, failed) = (&entry.name, n.calls, n.rejected, n.failed);
        to.line(format_args!(
            "cmdstat_{name}:calls={calls},usec={usec},usec_per_call={each:.2},\
             rejected_calls={rejected},failed_calls={failed}"
        ));
    }
}

fn errorstats(view: &View<'_>, to: &mut Fields) {
    let context = view.context;
    for (code, count) in context.errors.list() {
        // A code comes from a reply that went out as one line; anything odd in it is masked.
        let code = String::from_utf8_lossy(&code).replace([':', '\r', '\n'], "_");
        to.line(format_args!("errorstat_{code}:count={count}"));
    }
}

fn latencystats(view: &View<'_>, to: &mut Fields) {
    for entry in table().entries() {
        let parts = view.context.workers.iter().map(|worker| &worker.by_command[entry.id].latency);
        if let Some(values) = latency::percentiles(parts) {
            let shown = PERCENTILES.iter().zip(values);
            let shown = shown.map(|((p, _), ns)| format!("p{p}={:.3}", ns as f64 / 1000.0));
            let shown = shown.collect::<Vec<_>>().join(",");
            to.line(format_args!("latency_percentiles_usec_{}:{shown}", entry.name));
        }
    }
}

fn cluster(_: &View<'_>, to: &mut Fields) {
    to.field("cluster_enabled", 0);
}

fn keyspace(view: &View<'_>, to: &mut Fields) {
    let context = view.context;
    let Some(store) = context.store.get() else { return };
    for db in 0..context.databases {
        let number = Database(u8::try_from(db).expect("at most 256 databases"));
        let (keys, expires) = store.key_count(number);
        if keys > 0 {
            to.line(format_args!("db{db}:keys={keys},expires={expires}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::testing::Bench;
    use std::collections::HashSet;

    fn info(bench: &Bench, words: &[&str]) -> String {
        render(&bench.context, words.iter().map(|w| w.as_bytes()))
    }

    fn titles(text: &str) -> Vec<&str> {
        text.lines().filter_map(|line| line.strip_prefix("# ")).collect()
    }

    #[test]
    fn sections_are_chosen_as_in_redis() {
        let bench = Bench::new();
        let default = info(&bench, &[]);
        assert_eq!(titles(&default), titles(&info(&bench, &["default"])));
        assert!(!titles(&default).contains(&"Commandstats"));
        for all in ["all", "EVERYTHING"] {
            assert_eq!(titles(&info(&bench, &[all])).len(), SECTIONS.len());
        }
        assert_eq!(titles(&info(&bench, &["keyspace", "SERVER"])), ["Server", "Keyspace"]);
        assert_eq!(info(&bench, &["nosuch"]), "");
        assert_eq!(info(&bench, &["cluster"]), "# Cluster\r\ncluster_enabled:0\r\n");
    }

    #[test]
    fn every_line_is_a_headline_or_a_field_and_fields_are_unique() {
        let bench = Bench::new();
        bench.context.workers[0].by_command[0].calls.add(1);
        let text = info(&bench, &["all"]);
        let mut names = HashSet::new();
        for line in text.split("\r\n").filter(|line| !line.is_empty() && !line.starts_with("# ")) {
            let (name, _) = line.split_once(':').expect(line);
            assert!(names.insert(name), "{name} stands twice");
        }
        for name in [
            "redis_version",
            "ferrite_version",
            "aof_enabled",
            "aof_current_size",
            "aof_last_write_status",
            "aof_last_rewrite_time_sec",
            "checkpoint_in_progress",
            "checkpoint_last_save_time",
            "checkpoint_last_duration_sec",
            "log_tail",
            "role",
        ] {
            assert!(names.contains(name), "{name}");
        }
    }

    #[test]
    fn used_memory_is_what_is_anonymous_or_locked_and_storage_has_a_section() {
        let bench = Bench::new();
        let text = info(&bench, &[]);
        assert!(titles(&text).contains(&"Storage"), "{text}");
        let text = info(&bench, &["memory"]);
        let number = |name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.strip_prefix(':')).expect(name).parse().expect(name)
        };
        assert!(number("used_memory") > 0);
        assert_eq!(number("used_memory"), number("memory_anonymous") + number("memory_locked"));
        for absent in ["allocator_allocated", "used_memory_lua", "lazyfree_pending_objects"] {
            assert!(!text.contains(absent), "{absent}");
        }
    }

    #[test]
    fn keys_and_commands_are_counted() {
        let mut bench = Bench::new();
        assert_eq!(bench.text("set a 1"), "+OK\r\n");
        assert_eq!(info(&bench, &["keyspace"]), "# Keyspace\r\ndb0:keys=1,expires=0\r\n");
        let get = table().find(b"get").expect("a command").id;
        let counters = &bench.context.workers[0].by_command[get];
        counters.calls.add(4);
        counters.nanoseconds.add(10_000);
        counters.latency.record(10_000, 4);
        assert_eq!(
            info(&bench, &["commandstats"]),
            "# Commandstats\r\ncmdstat_get:calls=4,usec=10,usec_per_call=2.50,rejected_calls=0,\
             failed_calls=0\r\n"
        );
        let latencies = info(&bench, &["latencystats"]);
        assert!(latencies.contains("latency_percentiles_usec_get:p50=2.5"), "{latencies}");
        Totals::reset(&bench.context);
        assert_eq!(info(&bench, &["latencystats"]), "# Latencystats\r\n");
    }

    #[test]
    fn bytes_for_people_are_redis_ones() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.00K"),
            (916_224, "894.75K"),
            (25_276_502_016, "23.54G"),
        ] {
            assert_eq!(Human(bytes).to_string(), text);
        }
    }
}
