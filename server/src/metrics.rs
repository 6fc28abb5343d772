//! /metrics and /health: the same numbers as INFO, for Prometheus and for whoever watches over the
//! process.
//!
//! Nothing is kept here: a scrape reads the counters where they are. Names end in their unit;
//! counters end in `_total`.

use crate::commands::table;
use crate::context::Context;
use crate::info::VERSION;
use crate::latency::{self, PERCENTILES};
use crate::loading::Loading;
use crate::memory::{FIXED_BYTES, Usage};
use crate::process;
use crate::totals::{CommandTotals, Totals};
use ferrite_hybridlog::{Database, Stats};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Release},
};
use std::sync::{Arc, OnceLock};

/// What the HTTP server knows of the server: little, until the data is recovered.
#[derive(Default)]
pub struct Status {
    context: OnceLock<Arc<Context>>,
    ready: AtomicBool,
}

/// An answer of /health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether clients can read and write.
    pub healthy: bool,
    /// A JSON object: `status`, and `reason` where there is one.
    pub json: String,
}

impl Status {
    /// The data of this server is being recovered.
    pub fn recovering(&self, context: Arc<Context>) {
        // A second call would name the same server: the first stays.
        let _ = self.context.set(context);
    }
    /// Its data is recovered.
    pub fn ready(&self) {
        // Release pairs with the acquire in `context`: who sees it sees the open store.
        self.ready.store(true, Release);
    }
    /// The server, once it is ready.
    pub fn context(&self) -> Option<&Arc<Context>> {
        self.context.get().filter(|_| self.ready.load(Acquire))
    }
    /// The server while its data is being recovered.
    pub fn loading(&self) -> Option<&Arc<Context>> {
        self.context.get().filter(|context| context.is_loading())
    }
    /// What /health answers.
    pub fn health(&self) -> Health {
        let unhealthy = |status: &str, reason: &str| Health {
            healthy: false,
            json: serde_json::json!({ "status": status, "reason": reason }).to_string(),
        };
        let Some(context) = self.context() else {
            let percent = self.loading().map_or(0.0, |context| Loading::of(context).percent());
            let reason = format!("the data is being recovered: {percent:.0} % of it is read");
            return unhealthy("recovering", &reason);
        };
        let refused = || crate::commands::writes_refused(context);
        match context.store.stats().not_writable.or_else(refused) {
            Some(why) => unhealthy("not writable", &why),
            None => {
                Health { healthy: true, json: serde_json::json!({ "status": "ok" }).to_string() }
            }
        }
    }
    /// What /metrics answers, in the OpenMetrics text format.
    pub fn metrics(&self) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Scrape(self.context().cloned())));
        let mut page = String::with_capacity(8192);
        text::encode(&mut page, &registry)?;
        Ok(page)
    }
}

struct Scrape(Option<Arc<Context>>);

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        page.family("ferrite_build", "Version of the server", MetricType::Info, |family| {
            family.0.encode_info(&[("version", VERSION)])
        })?;
        page.gauge("ferrite_ready", "1 once the data is recovered", u64::from(self.0.is_some()))?;
        let Some(context) = &self.0 else { return Ok(()) };
        let stats = context.store.stats();
        let totals = Totals::since_start(context, &stats);
        server(&mut page, context, &totals)?;
        commands(&mut page, &totals)?;
        latencies(&mut page, context)?;
        memory(&mut page, &Usage::of(context, &stats))?;
        log(&mut page, context, &stats)?;
        checkpoints(&mut page, context)?;
        journal(&mut page, context)?;
        keys(&mut page, context)
    }
}

struct Page<'e>(DescriptorEncoder<'e>);
struct Family<'e>(prometheus_client::encoding::MetricEncoder<'e>);

impl Page<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        self.family(name, help, MetricType::Gauge, |family| family.0.encode_gauge(&value))
    }
    fn counter(&mut self, name: &str, help: &str, value: impl EncodeCounterValue) -> fmt::Result {
        self.family(name, help, MetricType::Counter, |family| {
            family.0.encode_counter::<NoLabelSet, _, u64>(&value, None)
        })
    }
    fn family(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        write: impl FnOnce(&mut Family<'_>) -> fmt::Result,
    ) -> fmt::Result {
        write(&mut Family(self.0.encode_descriptor(name, help, None, kind)?))
    }
}

impl Family<'_> {
    fn gauge(&mut self, label: &str, value: &str, n: impl EncodeGaugeValue) -> fmt::Result {
        self.0.encode_family(&[(label, value)])?.encode_gauge(&n)
    }
    fn counter(&mut self, label: &str, value: &str, n: impl EncodeCounterValue) -> fmt::Result {
        let labels = [(label, value)];
        self.0.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&n, None)
    }
}

fn server(page: &mut Page<'_>, context: &Context, totals: &Totals) -> fmt::Result {
    let cpu = process::cpu();
    let uptime = context.started.elapsed().as_secs_f64();
    page.gauge("ferrite_uptime_seconds", "Time since the start", uptime)?;
    page.counter("ferrite_cpu_user_seconds", "CPU time in the program", cpu.user)?;
    page.counter("ferrite_cpu_system_seconds", "CPU time in the kernel", cpu.system)?;
    page.gauge("ferrite_connected_clients", "Clients now", context.clients.count())?;
    page.counter("ferrite_connections", "Connections accepted", totals.connections)?;
    page.counter(
        "ferrite_rejected_connections",
        "Connections refused because there were too many",
        totals.refused_connections,
    )?;
    let help = "Clients that the server closed, by reason";
    page.family("ferrite_closed_clients", help, MetricType::Counter, |family| {
        for (reason, n) in [
            ("query_buffer", totals.query_limit_closed),
            ("output_buffer", totals.output_limit_closed),
            ("idle", totals.idle_closed),
            ("stalled", totals.stall_closed),
        ] {
            family.counter("reason", reason, n)?;
        }
        Ok(())
    })?;
    page.counter("ferrite_net_input_bytes", "Bytes received", totals.input_bytes)?;
    page.counter("ferrite_net_output_bytes", "Bytes sent", totals.output_bytes)?;
    page.counter("ferrite_error_replies", "Error replies", totals.errors)?;
    page.counter("ferrite_keyspace_hits", "Keys that reads found", totals.keyspace_hits)?;
    page.counter(
        "ferrite_keyspace_misses",
        "Keys that reads did not find",
        totals.keyspace_misses,
    )?;
    page.counter("ferrite_expired_keys", "Keys removed by their expiry", totals.expired_keys)
}

fn commands(page: &mut Page<'_>, totals: &Totals) -> fmt::Result {
    page.counter("ferrite_commands", "Commands run", totals.commands)?;
    let used = || {
        let entries = table().entries().iter().zip(&totals.by_command);
        entries.filter(|(_, n)| **n != CommandTotals::default())
    };
    let kind = MetricType::Counter;
    page.family("ferrite_command_calls", "Runs that ended, by command", kind, |family| {
        used().try_for_each(|(entry, n)| family.counter("command", &entry.name, n.calls))
    })?;
    page.family("ferrite_command_seconds", "Time spent, by command", kind, |family| {
        used().try_for_each(|(entry, n)| {
            family.counter("command", &entry.name, n.nanoseconds as f64 / 1e9)
        })
    })?;
    page.family("ferrite_command_failures", "Runs that failed, by command", kind, |family| {
        used().try_for_each(|(entry, n)| family.counter("command", &entry.name, n.failed))
    })?;
    page.family("ferrite_command_rejections", "Refused before they ran", kind, |family| {
        used().try_for_each(|(entry, n)| family.counter("command", &entry.name, n.rejected))
    })
}

/// As gauges: a histogram of this resolution would be thousands of series.
fn latencies(page: &mut Page<'_>, context: &Context) -> fmt::Result {
    let help = "Time of one command since the last CONFIG RESETSTAT, by command and quantile";
    page.family("ferrite_command_latency_seconds", help, MetricType::Gauge, |family| {
        for entry in table().entries() {
            let parts = context.workers.iter().map(|worker| &worker.by_command[entry.id].latency);
            let Some(values) = latency::percentiles(parts) else { continue };
            for ((_, quantile), ns) in PERCENTILES.into_iter().zip(values) {
                let labels = [("command", entry.name.as_str()), ("quantile", quantile)];
                family.0.encode_family(&labels)?.encode_gauge(&(ns as f64 / 1e9))?;
            }
        }
        Ok(())
    })
}

fn memory(page: &mut Page<'_>, usage: &Usage) -> fmt::Result {
    let (budget, process) = (usage.budget, usage.process);
    page.gauge("ferrite_memory_used_bytes", "Anonymous and locked memory", usage.used())?;
    page.gauge("ferrite_memory_resident_bytes", "Resident memory", process.resident)?;
    page.gauge("ferrite_memory_budget_bytes", "What may be used at most", budget.total())?;
    let help = "What may be used at most, by purpose";
    page.family("ferrite_memory_budget_part_bytes", help, MetricType::Gauge, |family| {
        for (part, bytes) in [
            ("mutable", budget.mutable),
            ("readonly", budget.readonly),
            ("block_cache", budget.block_cache),
            ("index", budget.index),
            ("query_buffers", budget.query_buffers),
            ("output_buffers", budget.output_buffers),
            ("fixed", FIXED_BYTES),
        ] {
            family.gauge("part", part, bytes)?;
        }
        Ok(())
    })?;
    page.gauge("ferrite_index_bytes", "Resident memory of the index", budget.index)?;
    page.gauge("ferrite_frame_bytes", "Memory that the log's pages may take", usage.frames)?;
    page.gauge("ferrite_mapped_bytes", "Pages mapped from segment files", usage.mapped)?;
    page.gauge("ferrite_block_cache_bytes", "Memory of the block cache", usage.block_cache)
}

fn log(page: &mut Page<'_>, context: &Context, stats: &Stats) -> fmt::Result {
    let help = "The log's boundaries, as positions in it";
    page.family("ferrite_log_address_bytes", help, MetricType::Gauge, |family| {
        for (boundary, address) in [
            ("begin", stats.log_begin),
            ("head", stats.log_head),
            ("flushed_until", stats.log_flushed_until),
            ("read_only", stats.log_read_only),
            ("tail", stats.log_tail),
        ] {
            family.gauge("boundary", boundary, address)?;
        }
        Ok(())
    })?;
    page.gauge("ferrite_log_bytes", "Bytes of the log", stats.log_bytes)?;
    let help = "Bytes of the log that the keys' newest records take";
    page.gauge("ferrite_log_live_bytes", help, stats.log_live_bytes)?;
    let (read, copied) = (stats.compaction.read_bytes, stats.compaction.copied_bytes);
    page.counter("ferrite_compaction_read_bytes", "Bytes of the log that were compacted", read)?;
    page.counter("ferrite_compaction_copied_bytes", "Bytes that their copies take", copied)?;
    let failing = u64::from(stats.compaction_last_error.is_some());
    page.gauge("ferrite_compaction_failing", "1 while the last compaction failed", failing)?;
    let refused =
        stats.not_writable.is_some() || crate::commands::writes_refused(context).is_some();
    page.gauge("ferrite_writable", "1 while clients can write", u64::from(!refused))?;
    let disk = context.rates.sizes(context).disk_bytes;
    page.gauge("ferrite_disk_bytes", "Bytes of the store's files", disk)?;
    page.counter("ferrite_device_reads", "Records read from the device", stats.device_reads)?;
    page.counter("ferrite_device_read_bytes", "Bytes read from it", stats.device_read_bytes)?;
    page.counter("ferrite_device_write_bytes", "Bytes written to it", stats.device_write_bytes)?;
    page.counter("ferrite_in_place_updates", "Values changed in place", stats.in_place_updates)?;
    page.counter("ferrite_appends", "Records appended to the log", stats.appends)?;
    let help = "Operations that waited for room in the log";
    page.counter("ferrite_parked_for_room", help, stats.parked_for_room)?;
    let longest = stats.safepoint_us_max as f64 / 1e6;
    page.gauge("ferrite_safepoint_max_seconds", "The longest stop of all commands", longest)?;
    let held = "Checkpoint files kept only for copies in progress";
    let held_bytes = stats.held_bytes + context.checkpoints.held_part_bytes();
    page.gauge("ferrite_backup_held_bytes", held, held_bytes)
}

fn checkpoints(page: &mut Page<'_>, context: &Context) -> fmt::Result {
    let state = context.checkpoints.state();
    let running = u64::from(context.checkpoints.in_progress());
    let last_s = state.last_save_ms as f64 / 1000.0;
    page.gauge("ferrite_checkpoint_in_progress", "1 while one is being taken", running)?;
    page.gauge("ferrite_checkpoint_last_save_timestamp_seconds", "Time of the newest", last_s)?;
    page.counter("ferrite_checkpoints", "Checkpoints taken", state.completed)?;
    page.counter("ferrite_checkpoint_failures", "Checkpoints that failed", state.failed)?;
    // Before the first one of this run they are 0.
    let seconds = state.last_duration.unwrap_or_default().as_secs_f64();
    page.gauge("ferrite_checkpoint_duration_seconds", "Last checkpoint duration", seconds)?;
    page.gauge("ferrite_checkpoint_size_bytes", "Last checkpoint size", state.last_bytes)?;
    let total = context.checkpoints.backup_bytes(&context.store);
    page.gauge("ferrite_checkpoint_total_bytes", "What a backup takes", total)
}

fn journal(page: &mut Page<'_>, context: &Context) -> fmt::Result {
    let Some(journal) = context.journal() else { return Ok(()) };
    let state = journal.state();
    page.gauge("ferrite_aof_size_bytes", "Bytes of the append-only file, all parts", state.bytes)?;
    page.gauge("ferrite_aof_buffered_bytes", "Bytes that are not written yet", state.buffered)?;
    page.counter("ferrite_aof_entries", "Entries taken", state.entries)?;
    page.counter("ferrite_aof_syncs", "Syncs, each of a group of entries", state.syncs)?;
    page.counter("ferrite_aof_delays", "Times that writes waited for a sync", state.delayed)?;
    let waited = state.delayed_time.as_secs_f64();
    page.counter("ferrite_aof_delay_seconds", "How long they waited", waited)?;
    let failing = u64::from(state.failure.is_some());
    page.gauge("ferrite_aof_failing", "1 while it cannot be written", failing)?;
    let rewrites = journal.rewrites();
    let running = u64::from(rewrites.began.is_some());
    page.gauge("ferrite_aof_rewrite_in_progress", "1 while it is being rewritten", running)?;
    page.counter("ferrite_aof_rewrites", "Complete rewrites", rewrites.completed)?;
    page.counter("ferrite_aof_rewrite_failures", "Rewrites that failed", rewrites.failed)?;
    page.gauge("ferrite_aof_base_bytes", "Bytes behind the last rewrite", rewrites.size_then)?;
    let history = &context.history;
    let help = "Bytes that history alone takes on the disk";
    page.gauge("ferrite_aof_history_bytes", help, history.bytes())?;
    let (help, since_s) = ("Time that history goes back to", history.since_ms() as f64 / 1000.0);
    page.gauge("ferrite_aof_history_since_timestamp_seconds", help, since_s)?;
    let seconds = rewrites.last_duration.unwrap_or_default().as_secs_f64();
    page.gauge("ferrite_aof_rewrite_duration_seconds", "Last rewrite duration", seconds)?;
    let Some(times) = latency::percentiles(std::iter::once(journal.sync_latency())) else {
        return Ok(());
    };
    let help = "How long syncs took";
    page.family("ferrite_aof_sync_seconds", help, MetricType::Gauge, |family| {
        for ((_, quantile), nanoseconds) in PERCENTILES.iter().zip(times) {
            family.gauge("quantile", quantile, nanoseconds as f64 / 1e9)?;
        }
        Ok(())
    })
}

fn keys(page: &mut Page<'_>, context: &Context) -> fmt::Result {
    let counts = || {
        let all = (0..context.databases).map(|db| {
            let number = Database(u8::try_from(db).expect("at most 256 databases"));
            (db.to_string(), context.store.key_count(number))
        });
        all.filter(|(_, (keys, _))| *keys > 0)
    };
    page.family("ferrite_keys", "Keys, by database", MetricType::Gauge, |family| {
        counts().try_for_each(|(db, (keys, _))| family.gauge("db", &db, keys))
    })?;
    page.family("ferrite_expiring_keys", "Keys with an expiry", MetricType::Gauge, |family| {
        counts().try_for_each(|(db, (_, expiring))| family.gauge("db", &db, expiring))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::testing::Bench;

    #[test]
    fn health_says_why_not() {
        let status = Status::default();
        assert!(!status.health().healthy);
        assert!(status.health().json.contains("\"status\":\"recovering\""));
        status.recovering(Arc::clone(&Bench::new().context));
        status.ready();
        assert_eq!(status.health(), Health { healthy: true, json: r#"{"status":"ok"}"#.into() });
        let mut bench = Bench::new();
        let status = Status::default();
        status.recovering(Arc::clone(&bench.context));
        status.ready();
        std::fs::remove_dir_all(bench.directory()).expect("it is there");
        assert!(bench.text("save").starts_with("-ERR "));
        let health = status.health();
        assert!(bench.context.store.stats().not_writable.is_none(), "the log itself is well");
        assert!(!health.healthy && health.json.contains("not writable"), "{}", health.json);
        assert!(status.metrics().expect("a page").contains("ferrite_writable 0\n"));
    }

    #[test]
    fn a_page_has_the_numbers_where_prometheus_looks_for_them() {
        let mut bench = Bench::new();
        bench.text("set a 1");
        let get = table().find(b"get").expect("a command").id;
        bench.context.workers[0].by_command[get].calls.add(3);
        let claim = bench.context.checkpoints.claim().expect("free");
        claim.take(&bench.context.store, 16).expect("taken");
        let status = Status::default();
        let before = status.metrics().expect("a page");
        assert!(before.contains("ferrite_ready 0\n"), "{before}");
        status.recovering(Arc::clone(&bench.context));
        status.ready();
        let page = status.metrics().expect("a page");
        for line in [
            "ferrite_ready 1\n",
            "ferrite_keys{db=\"0\"} 1\n",
            "ferrite_command_calls_total{command=\"get\"} 3\n",
            "# TYPE ferrite_checkpoint_duration_seconds gauge\n",
            "# TYPE ferrite_checkpoint_size_bytes gauge\n",
            "ferrite_log_address_bytes{boundary=\"tail\"} ",
            "ferrite_memory_budget_part_bytes{part=\"fixed\"} 50331648\n",
            "ferrite_uptime_seconds ",
        ] {
            assert!(page.contains(line), "{line} in {page}");
        }
        assert!(page.ends_with("# EOF\n"));
    }
}
