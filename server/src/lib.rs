//! The `ferrite` server: RESP in, RESP out.
//!
//! ```text
//!   transport/   bytes in and out           one thread a worker
//!   connection   bytes to commands, replies in order
//!   commands/    rows and handlers
//!   hybridlog    the store
//! ```

pub mod checkpoints;
pub mod client;
pub mod commands;
pub mod config;
pub mod connection;
pub mod context;
pub mod control;
pub mod counters;
pub mod encoding;
pub mod error;
pub mod facts;
pub mod glob;
pub mod http;
pub mod info;
pub mod input;
pub mod latency;
pub mod lcs;
pub mod lifecycle;
pub mod limits;
pub mod listener;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod numbers;
pub mod process;
pub mod rates;
pub mod resp;
pub mod server;
pub mod start;
pub mod totals;
pub mod transport;
pub mod worker;
