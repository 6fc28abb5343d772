//! The memory budget and what it is used for.
//!
//! Budget = mutable + read-only + block cache (what is configured) + index + query and output
//! buffers (what they are now) + 48 MiB for everything else. Nothing else may grow.

use crate::context::Context;
use crate::process;
use ferrite_hybridlog::Stats;

/// What the program, its threads and its small tables may take, in bytes.
pub const FIXED_BYTES: u64 = 48 << 20;

/// The budget, part by part, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// `storage.hybridlog_mutable_size`.
    pub mutable: u64,
    /// `storage.hybridlog_readonly_size`; with the backend `memory`, what of the log is behind the
    /// mutable part, as large as it is.
    pub readonly: u64,
    /// `storage.block_cache_size`.
    pub block_cache: u64,
    /// The index, as large as it is.
    pub index: u64,
    /// Query buffers, as large as they are.
    pub query_buffers: u64,
    /// Output buffers, as large as they are.
    pub output_buffers: u64,
}

/// What is in use, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// The budget that it must stay in.
    pub budget: Budget,
    /// Frames of the log.
    pub frames: u64,
    /// Bytes of those pages that are mapped files, or copies of pages of earlier runs.
    pub mapped: u64,
    /// The block cache.
    pub block_cache: u64,
    /// Pages of a log in memory: those that are not in frames.
    pub shared: u64,
    /// What the kernel counts.
    pub process: process::Memory,
}

impl Budget {
    /// All parts and the fixed one.
    pub fn total(&self) -> u64 {
        self.configured() + self.index + self.buffers() + FIXED_BYTES
    }
    /// The parts that settings fix (with the backend `memory` the log's grows).
    pub fn configured(&self) -> u64 {
        self.mutable + self.readonly + self.block_cache
    }
    /// Query and output buffers.
    pub fn buffers(&self) -> u64 {
        self.query_buffers + self.output_buffers
    }
}

impl Usage {
    /// Memory now.
    pub fn of(context: &Context, stats: &Stats) -> Self {
        let settings = &context.config.config().store;
        let process = process::memory();
        let sum =
            |f: fn(&crate::counters::WorkerCounters) -> u64| context.workers.iter().map(f).sum();
        Self {
            budget: Budget {
                mutable: settings.mutable_size,
                readonly: if stats.is_in_memory {
                    stats.log_bytes.saturating_sub(settings.mutable_size)
                } else {
                    settings.readonly_size
                },
                block_cache: settings.block_cache_size,
                index: context.rates.sizes(context).index_bytes,
                query_buffers: sum(|w| w.query_buffer_bytes.get()),
                output_buffers: sum(|w| w.output_buffer_bytes.get()),
            },
            frames: if stats.is_in_memory { stats.log_bytes } else { stats.frame_bytes },
            mapped: stats.mapped_bytes,
            block_cache: stats.block_cache_bytes,
            shared: if stats.is_in_memory { process.shared } else { 0 },
            process,
        }
    }
    /// Anonymous memory, locked pages of files, and a log's pages in memory: what the budget is about.
    pub fn used(&self) -> u64 {
        self.process.anonymous + self.process.locked + self.shared
    }
}
