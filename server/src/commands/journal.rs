//! AOF SYNC and WAITAOF: when what was written is on the disk. BGREWRITEAOF: the whole state anew.

use super::{CommandSpec, Flags, Group, OutsideCall, Run, args, help};
use crate::context::Context;
use crate::error::{ErrorReply, Outcome};
use crate::journal::Journal;
use std::time::Duration;

const SUBCOMMAND: CommandSpec = CommandSpec {
    flags: Flags::ADMIN.and(Flags::NO_SCRIPT),
    group: Group::Server,
    since: "7.0.0",
    ..CommandSpec::BASE
};

pub(super) const COMMANDS: &[CommandSpec] = &[
    CommandSpec {
        name: "AOF",
        arity: -2,
        since: "7.0.0",
        group: Group::Server,
        complexity: "Depends on subcommand.",
        summary: "Works on the append-only file. Ferrite's own.",
        run: Run::Container,
        subcommands: &[
            CommandSpec {
                name: "HELP",
                arity: 2,
                flags: Flags::LOADING.and(Flags::STALE),
                complexity: "O(1)",
                summary: "Tells what AOF can do.",
                run: Run::Outside(print_help),
                ..SUBCOMMAND
            },
            CommandSpec {
                name: "SYNC",
                arity: 2,
                // What the transaction has written is not on the disk before its end.
                flags: Flags::ADMIN.and(Flags::NO_SCRIPT).and(Flags::NO_MULTI),
                complexity: "O(N) with N bytes that are not on the disk",
                summary: "Returns when everything that was acknowledged before is on the disk.",
                run: Run::Outside(sync),
                ..SUBCOMMAND
            },
        ],
        ..CommandSpec::BASE
    },
    CommandSpec {
        name: "BGREWRITEAOF",
        arity: 1,
        flags: Flags::ADMIN.and(Flags::NO_SCRIPT).and(Flags::NO_ASYNC_LOADING),
        since: "1.0.0",
        group: Group::Server,
        complexity: "O(1), O(N) in the background where N is the number of keys",
        summary: "Writes the minimal commands for the whole state, in the background.",
        run: Run::Outside(background_rewrite),
        ..CommandSpec::BASE
    },
    CommandSpec {
        name: "WAITAOF",
        arity: 4,
        flags: Flags::NO_SCRIPT,
        since: "7.2.0",
        group: Group::Generic,
        complexity: "O(1)",
        summary: "Waits until what was written before is in the append-only file on the disk.",
        run: Run::Outside(wait_aof),
        ..CommandSpec::BASE
    },
];

const NO_JOURNAL: ErrorReply =
    ErrorReply::new("ERR there is no append-only file: start with persistence.aof_enabled = true");

fn journal(context: &Context) -> Result<&Journal, ErrorReply> {
    context.journal().map(|journal| &**journal).ok_or(NO_JOURNAL)
}

/// Where there is no append-only file, Redis writes one that it never reads again; here it is refused.
fn background_rewrite(call: &mut OutsideCall<'_>) -> Outcome {
    const RUNNING: ErrorReply =
        ErrorReply::new("ERR Background append only file rewriting already in progress");
    let journal = journal(call.context)?;
    if journal.is_failing() {
        let why = journal.state().failure.unwrap_or_default();
        return Err(ErrorReply::owned(format!("MISCONF {why}")).into());
    }
    if call.alone.is_some() || call.context.checkpoints.in_progress() {
        if !journal.schedule_rewrite() {
            return Err(RUNNING.into());
        }
        call.context.bell.notify_one();
        call.reply.simple("Background append only file rewriting scheduled");
        return Ok(());
    }
    if !journal.begin_rewrite() {
        return Err(RUNNING.into());
    }
    call.reply.simple("Background append only file rewriting started");
    Ok(())
}

fn sync(call: &mut OutsideCall<'_>) -> Outcome {
    journal(call.context)?;
    call.defer(|context, reply| {
        let synced = journal(context)?.sync(None);
        synced.map_err(|why| ErrorReply::owned(format!("MISCONF {why}")))?;
        reply.ok();
        Ok(())
    })
}

/// What was written before the call counts, by whichever client: it waits for more than it must.
fn wait_aof(call: &mut OutsideCall<'_>) -> Outcome {
    const RANGE: ErrorReply =
        ErrorReply::new("ERR value is out of range, value must between 0 and 1");
    const NOT_LOCAL: ErrorReply = ErrorReply::new(
        "ERR WAITAOF cannot be used when numlocal is set but appendonly is disabled.",
    );
    const NEGATIVE: ErrorReply = ErrorReply::new("ERR timeout is negative");
    let local = args::integer(call.args.at(1))?;
    if !(0..=1).contains(&local) {
        return Err(RANGE.into());
    }
    if args::integer(call.args.at(2))? != 0 {
        // Redis would wait for replicas that never come.
        return Err(ErrorReply::new("ERR there are no replicas: numreplicas must be 0").into());
    }
    let timeout_ms = args::integer(call.args.at(3))?;
    let timeout_ms = u64::try_from(timeout_ms).map_err(|_| NEGATIVE)?;
    if local == 1 && call.context.journal().is_none() {
        return Err(NOT_LOCAL.into());
    }
    let in_transaction = call.alone.is_some();
    call.defer(move |context, reply| {
        let at_most = (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms));
        // In a transaction nobody can wait, as in Redis.
        let at_most = if in_transaction { Some(Duration::ZERO) } else { at_most };
        let durable = context.journal().is_some_and(|journal| match local {
            0 => journal.state().durable >= context.store.redo_tail(),
            _ => journal.sync(at_most).is_ok(),
        });
        reply.array(2);
        reply.integer(i64::from(durable));
        reply.integer(0);
        Ok(())
    })
}

fn print_help(call: &mut OutsideCall<'_>) -> Outcome {
    let lines = ["SYNC", "    Return when everything that was acknowledged before is on the disk."];
    help(&mut call.reply, "AOF", &lines);
    Ok(())
}
