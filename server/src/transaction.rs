//! A transaction: what MULTI collects, and how EXEC runs it.
//!
//! ```text
//!   MULTI ── Transaction::new          EXEC ── reads of cold keys ── Session::alone ── execute
//!   SET … ── Transaction::push                 (others go on)        └ nobody else is inside ┘
//! ```
//!
//! The commands are the ordinary ones, run by their ordinary handlers, in order; one that fails has
//! its error in its place and the next ones run all the same, as in Redis. [`execute`] is the one
//! place where a transaction begins and ends: what stands between its first line and its return
//! nobody else sees half of, and no checkpoint has half of.

use crate::client::{Client, ReplyMode};
use crate::commands::args::Args;
use crate::commands::{self, Call, Entry, Flags, OutsideCall, Ran, Run};
use crate::context::Context;
use crate::resp::{Range, Reply};
use crate::worker::Host;
use ferrite_hybridlog::{Alone, Database, Inside, Operation, Session};
use std::time::Instant;

/// Commands after which a stay inside ends, so that the log's boundaries can follow.
const BATCH: usize = 64;

/// The commands of a client between MULTI and EXEC.
#[derive(Debug, Default)]
pub struct Transaction {
    commands: Vec<Command>,
    bytes: usize,
    writes: bool,
    takes_memory: bool,
    /// A command was refused: EXEC discards all of them.
    pub failed: bool,
}

#[derive(Debug)]
struct Command {
    entry: &'static Entry,
    bytes: Box<[u8]>,
    words: Box<[Range]>,
}

impl Command {
    fn args(&self) -> Args<'_> {
        Args::new(&self.bytes, &self.words)
    }
}

impl Transaction {
    /// Adds a command.
    pub fn push(&mut self, entry: &'static Entry, args: Args<'_>) {
        let mut bytes = Vec::with_capacity(args.iter_from(0).map(<[u8]>::len).sum());
        let word = |word: &[u8]| {
            let start = bytes.len();
            bytes.extend_from_slice(word);
            Range::new(start, bytes.len())
        };
        let words: Box<[Range]> = args.iter_from(0).map(word).collect();
        let command = Command { entry, bytes: bytes.into(), words };
        self.bytes += command.bytes.len() + size_of_val(&*command.words) + size_of::<Command>();
        self.writes |= entry.spec.flags.any(Flags::WRITE.and(Flags::MAY_REPLICATE));
        self.takes_memory |= entry.spec.flags.has(Flags::DENY_OOM);
        self.commands.push(command);
    }
    /// How many commands there are.
    pub fn len(&self) -> usize {
        self.commands.len()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }
    /// Bytes of memory that it takes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
    /// Whether one of its commands may change data, so that EXEC may.
    pub fn writes(&self) -> bool {
        self.writes
    }
    /// Whether one of its commands may take more memory, so that EXEC may.
    pub fn takes_memory(&self) -> bool {
        self.takes_memory
    }
    /// Begins the reads of all that its commands need of the device; true when everything is at
    /// hand. Else it is to be called again when `op`'s token is ready.
    pub fn fetch_ahead(
        &self,
        mut db: Database,
        context: &Context,
        op: &mut Operation,
        session: &mut Session,
    ) -> bool {
        let mut at_hand = true;
        for batch in self.commands.chunks(BATCH) {
            let mut inside = session.enter();
            for command in batch {
                let args = command.args();
                if command.entry.spec.name == "SELECT" {
                    db = commands::database(context, args.at(1)).unwrap_or(db);
                }
                for i in command.entry.spec.keys.iter().flat_map(|keys| keys.indices(args.len())) {
                    at_hand &= inside.fetch_ahead(op, db, args.at(i));
                }
            }
        }
        at_hand
    }
}

/// Whether a command runs at once although its client collects a transaction.
pub fn runs_at_once(entry: &Entry) -> bool {
    const NAMES: [&str; 5] = ["DISCARD", "EXEC", "MULTI", "QUIT", "RESET"];
    !entry.nested && NAMES.contains(&entry.spec.name)
}

/// Runs the commands of a transaction and writes the reply of EXEC to `output`. The transaction is
/// what `alone` was made for: it begins before this and ends when the caller drops `alone`, and
/// nothing else is done in between. There is none while the store is not open: then no command needs
/// it.
pub fn execute(
    transaction: &Transaction,
    mut alone: Option<&mut Alone<'_>>,
    op: &mut Operation,
    client: &mut Client,
    output: &mut Vec<u8>,
    host: &mut Host,
) {
    if !is_silent(client) {
        Reply::new(output, client.protocol).array(transaction.len());
    }
    let mut rest = &transaction.commands[..];
    while let Some(first) = rest.first() {
        if let Run::Outside(run) = first.entry.spec.run {
            run_outside(first, run, alone.as_deref(), client, output, host);
            rest = &rest[1..];
            continue;
        }
        let alone = alone.as_deref_mut().expect("what needs the store is queued once it is open");
        let mut inside = alone.enter();
        for _ in 0..BATCH {
            let Some(command) = rest.first() else { break };
            let Run::Inside(run) = command.entry.spec.run else { break };
            run_inside(command, run, &mut inside, op, client, output, host);
            rest = &rest[1..];
        }
    }
}

/// CLIENT REPLY holds for each of the commands on its own, as in Redis.
fn is_silent(client: &Client) -> bool {
    matches!(client.reply_mode, ReplyMode::Off | ReplyMode::SkipThis)
}

fn run_inside(
    command: &Command,
    run: fn(&mut Call<'_, '_>) -> crate::error::Outcome,
    inside: &mut Inside<'_>,
    op: &mut Operation,
    client: &mut Client,
    output: &mut Vec<u8>,
    host: &mut Host,
) {
    let (since, begun) = (Instant::now(), output.len());
    op.next_command();
    let mut progress = None;
    let ran = loop {
        let mut call = Call {
            args: command.args(),
            inside: &mut *inside,
            op: &mut *op,
            reply: Reply::new(output, client.protocol),
            client: &mut *client,
            progress: &mut progress,
            counters: host.counters(),
            context: &host.context,
        };
        let outcome = run(&mut call);
        match commands::settle(outcome, &mut call.reply, begun) {
            // What it waited for is there, and nobody else is to have a turn.
            Ran::Pending | Ran::Again => {}
            ran => break ran,
        }
    };
    count(command, &ran, since, host);
    if is_silent(client) {
        output.truncate(begun);
    }
}

fn run_outside(
    command: &Command,
    run: fn(&mut OutsideCall<'_>) -> crate::error::Outcome,
    alone: Option<&Alone<'_>>,
    client: &mut Client,
    output: &mut Vec<u8>,
    host: &mut Host,
) {
    let (since, begun) = (Instant::now(), output.len());
    let mut call = OutsideCall {
        args: command.args(),
        reply: Reply::new(output, client.protocol),
        client: &mut *client,
        context: &host.context,
        alone,
        job: None,
    };
    let mut outcome = run(&mut call);
    if let Some(job) = call.job.take() {
        // Everybody waits for the transaction anyway.
        outcome = outcome.and_then(|()| job(&host.context, &mut call.reply));
    }
    let ran = commands::settle(outcome, &mut call.reply, begun);
    count(command, &ran, since, host);
    if is_silent(client) {
        output.truncate(begun);
    }
}

fn count(command: &Command, ran: &Ran, since: Instant, host: &mut Host) {
    let nanoseconds = since.elapsed().as_nanos() as u64;
    let counters = host.counters();
    let of = &counters.by_command[command.entry.id];
    counters.commands.add(1);
    of.calls.add(1);
    of.nanoseconds.add(nanoseconds);
    of.latency.record(nanoseconds, 1);
    if let Ran::Failed(error) = ran {
        counters.errors.add(1);
        of.failed.add(1);
        host.ledger.errors.count(error);
    }
}
