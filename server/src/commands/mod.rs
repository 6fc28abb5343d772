//! The commands: rows ([`CommandSpec`]) in one file for each family, and the way from the words of
//! a command to its handler.
//!
//! ```text
//!   words ── table().resolve() ── Entry ── Run::Inside(handler)   on a batch; may run again
//!                 │                   └─── Run::Outside(handler)  between batches; may hand a job
//!                 └ unknown command, arity                        to another thread
//! ```
//!
//! A handler parses with a cursor, calls the store, writes the reply, in that order. An inside
//! handler that gets [`Stop::Pending`] from the store passes it on with `?` and is called again
//! from its first line: the store repeats nothing, since nothing was changed, and the reply
//! written so far is thrown away. What it must keep between its runs goes into
//! [`Call::progress`].

mod admin;
pub mod args;
mod client;
mod command;
mod config;
mod connection;
mod expiry;
mod info;
mod journal;
mod keys;
mod lookup;
mod spec;
mod string;
mod table;
#[cfg(test)]
pub(crate) mod testing;
mod transaction;

pub use spec::{Access, Categories, CommandSpec, Flags, Group, KeySpec, Run};
pub use table::{Entry, Table, table};

use crate::client::Client;
use crate::context::Context;
use crate::counters::WorkerCounters;
use crate::error::{ErrorReply, Outcome, Stop};
use crate::resp::Reply;
use args::Args;
use ferrite_hybridlog::{Alone, Database, Inside, Operation};
use std::any::Any;
use std::sync::Arc;

/// The rows, family by family.
const FAMILIES: &[&[CommandSpec]] = &[
    admin::COMMANDS,
    config::COMMANDS,
    command::COMMANDS,
    connection::COMMANDS,
    info::COMMANDS,
    journal::COMMANDS,
    keys::COMMANDS,
    string::COMMANDS,
    transaction::COMMANDS,
];

/// What an inside handler works with. The fields are borrowed apart from each other, so a closure
/// given to the store can write the reply.
pub struct Call<'c, 's> {
    /// The words of the command.
    pub args: Args<'c>,
    /// The store, for this batch.
    pub inside: &'c mut Inside<'s>,
    /// The command's state in the store; given to each of its calls.
    pub op: &'c mut Operation,
    /// Who asks.
    pub client: &'c mut Client,
    /// Where the reply goes.
    pub reply: Reply<'c>,
    /// What the handler keeps between its runs; empty at the first.
    pub progress: &'c mut Option<Box<dyn Any>>,
    /// The worker's counters; `keyspace_hits` and `keyspace_misses` are the handlers' to count.
    pub counters: &'c WorkerCounters,
    /// The server.
    pub context: &'c Context,
}

impl Call<'_, '_> {
    /// The client's database.
    pub fn db(&self) -> Database {
        self.client.db
    }
}

/// What an outside handler works with.
pub struct OutsideCall<'c> {
    /// The words of the command.
    pub args: Args<'c>,
    /// Who asks.
    pub client: &'c mut Client,
    /// Where the reply goes.
    pub reply: Reply<'c>,
    /// The server.
    pub context: &'c Arc<Context>,
    /// The store, with everybody else shut out: for commands that write, and for all in a
    /// transaction.
    pub alone: Option<&'c Alone<'c>>,
    /// Set by [`OutsideCall::defer`].
    pub(crate) job: Option<Job>,
}

/// Work for another thread; what it writes is the command's reply.
pub type Job = Box<dyn FnOnce(&Arc<Context>, &mut Reply<'_>) -> Outcome + Send>;

impl<'c> OutsideCall<'c> {
    /// The store, alone, for a command whose row says that it writes.
    fn alone(&self) -> &'c Alone<'c> {
        self.alone.expect("an outside command that writes runs alone")
    }
    /// Lets another thread do the work, for what blocks longer than a safepoint. The connection
    /// waits for it, the others go on. An error of the job is the reply; what the handler itself
    /// has written stays before it. A job has no batch and must not answer [`Stop::Pending`].
    pub fn defer(
        &mut self,
        job: impl FnOnce(&Arc<Context>, &mut Reply<'_>) -> Outcome + Send + 'static,
    ) -> Outcome {
        self.job = Some(Box::new(job));
        Ok(())
    }
}

/// A number of a database as SELECT and its kin take it.
pub fn database(context: &Context, word: &[u8]) -> Result<Database, ErrorReply> {
    numbered_database(context, args::integer_32(word)?)
}

/// The database of that number, if there is one.
fn numbered_database(context: &Context, n: i32) -> Result<Database, ErrorReply> {
    match u16::try_from(n) {
        Ok(n) if n < context.databases => Ok(Database(n as u8)),
        _ => Err(crate::error::DB_OUT_OF_RANGE),
    }
}

/// Writes what a container answers to HELP.
pub fn help(reply: &mut Reply<'_>, container: &str, lines: &[&str]) {
    const LAST: [&str; 2] = ["HELP", "    Prints this help."];
    reply.array(lines.len() + 1 + LAST.len());
    reply.simple(&format!("{container} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"));
    lines.iter().chain(&LAST).for_each(|line| reply.simple(line));
}

/// Whether a command may run now. Until the store is open, only those can that do not need it. While checkpoints are on and the last one failed, what may write
/// is refused until one succeeds, and so is PING, by which others see whether a server is well; all
/// of that as in Redis.
#[inline]
pub fn admit(entry: &Entry, client: &Client, context: &Context) -> Result<(), ErrorReply> {
    if context.is_loading() && !entry.spec.flags.has(Flags::LOADING) {
        return Err(crate::error::LOADING);
    }
    if takes_memory(entry, client) && context.store.memory_is_full() {
        return Err(crate::error::OUT_OF_MEMORY);
    }
    if context.checkpoints.is_failing() { admit_failing(entry, client, context) } else { Ok(()) }
}

/// Whether a command may take more memory; EXEC may if one of its commands may.
#[inline]
fn takes_memory(entry: &Entry, client: &Client) -> bool {
    match entry.spec.run {
        Run::Transaction => client.transaction.as_ref().is_some_and(|t| t.takes_memory()),
        _ => entry.spec.flags.has(Flags::DENY_OOM),
    }
}

#[cold]
fn admit_failing(entry: &Entry, client: &Client, context: &Context) -> Result<(), ErrorReply> {
    let concerned = writes(entry, client) || entry.spec.name == "PING";
    match writes_refused(context).filter(|_| concerned) {
        None => Ok(()),
        Some(why) => Err(ErrorReply::owned(format!(
            "MISCONF Ferrite is configured to take checkpoints, but it's currently unable to persist \
             to disk: {why}. Commands that may modify the data set are disabled until a checkpoint \
             succeeds. One is tried every few seconds, and by SAVE and BGSAVE; CONFIG SET save \"\" \
             allows writes without checkpoints."
        ))),
    }
}

/// Whether a command may change data; EXEC may if one of its commands may.
#[inline]
pub fn writes(entry: &Entry, client: &Client) -> bool {
    match entry.spec.run {
        Run::Transaction => client.transaction.as_ref().is_some_and(|t| t.writes()),
        _ => entry.spec.flags.any(Flags::WRITE.and(Flags::MAY_REPLICATE)),
    }
}

/// Why no command may write: the last checkpoint's error, while checkpoints are on.
pub fn writes_refused(context: &Context) -> Option<String> {
    let enabled = || context.config.config().persistence.checkpoint_enabled;
    let failing = context.checkpoints.is_failing() && enabled();
    failing.then(|| context.checkpoints.state().last_error).flatten()
}

/// What became of one run of a handler.
#[derive(Debug, PartialEq, Eq)]
pub enum Ran {
    /// The reply is complete.
    Done,
    /// The reply is this error.
    Failed(ErrorReply),
    /// To be run again when its operation is ready.
    Pending,
    /// To be run again after others had their turn.
    Again,
}

/// Makes a complete reply of a handler's outcome, or takes back what it wrote since `begun`.
#[inline]
pub fn settle(outcome: Outcome, reply: &mut Reply<'_>, begun: usize) -> Ran {
    let Err(stop) = outcome else { return Ran::Done };
    reply.truncate(begun);
    match stop {
        Stop::Pending => Ran::Pending,
        Stop::Again => Ran::Again,
        Stop::Error(error) => {
            reply.error(&error);
            Ran::Failed(error)
        }
    }
}
