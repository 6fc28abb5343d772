//! Commands for operators that act on the whole data set: emptying and swapping databases,
//! checkpoints, the clock, memory.

use super::{Access, Call, Categories, CommandSpec, Flags, Group, KeySpec, OutsideCall, Run};
use super::{args, help, numbered_database};
use crate::compaction::Compacting;
use crate::error::{self, ErrorReply, Outcome};
use crate::lifecycle::{self, Ending, Save};
use ferrite_hybridlog::{Alone, CheckpointError, OperationError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const ROW: CommandSpec = CommandSpec { group: Group::Server, ..CommandSpec::BASE };
const ADMIN: Flags = Flags::ADMIN.and(Flags::NO_SCRIPT);
const ANY_TIME: Flags = Flags::LOADING.and(Flags::STALE);

/// A command that empties databases.
const EMPTIER: CommandSpec = CommandSpec {
    arity: -1,
    flags: Flags::WRITE,
    categories: Categories::KEYSPACE.and(Categories::DANGEROUS),
    tips: &["request_policy:all_shards", "response_policy:all_succeeded"],
    complexity: "O(1)",
    ..ROW
};

pub(super) const COMMANDS: &[CommandSpec] = &[
    CommandSpec {
        name: "BGSAVE",
        arity: -1,
        flags: ADMIN.and(Flags::NO_ASYNC_LOADING),
        complexity: "O(1), O(N) in the background where N is what changed since the last one",
        summary: "Takes a checkpoint in the background.",
        run: Run::Outside(bg_save),
        ..ROW
    },
    CommandSpec {
        name: "COMPACT",
        arity: 1,
        flags: ADMIN,
        since: "7.0.0",
        complexity: "O(N) in the background where N is what the log takes on the disk",
        summary: "Copies what is needed of the log's old end, so that its space is given back. Ferrite's own.",
        run: Run::Outside(compact),
        ..ROW
    },
    CommandSpec {
        name: "DEBUG",
        arity: -2,
        flags: ADMIN.and(ANY_TIME),
        complexity: "O(1)",
        summary: "Lets the connection sleep; nothing else.",
        run: Run::Outside(debug),
        ..ROW
    },
    CommandSpec {
        name: "FLUSHALL",
        summary: "Removes all keys of all databases.",
        run: Run::Outside(flush_all),
        ..EMPTIER
    },
    CommandSpec {
        name: "FLUSHDB",
        summary: "Removes all keys of the database.",
        run: Run::Outside(flush_db),
        ..EMPTIER
    },
    CommandSpec {
        name: "LASTSAVE",
        arity: 1,
        flags: ANY_TIME.and(Flags::FAST),
        categories: Categories::ADMIN.and(Categories::DANGEROUS),
        tips: &["nondeterministic_output"],
        complexity: "O(1)",
        summary: "Returns the Unix time of the last complete checkpoint.",
        run: Run::Outside(last_save),
        ..ROW
    },
    CommandSpec {
        name: "MEMORY",
        arity: -2,
        since: "4.0.0",
        summary: "Tells about memory.",
        subcommands: &[
            CommandSpec {
                name: "HELP",
                arity: 2,
                flags: ANY_TIME,
                since: "4.0.0",
                complexity: "O(1)",
                summary: "Lists the subcommands.",
                run: Run::Outside(memory_help),
                ..ROW
            },
            CommandSpec {
                name: "USAGE",
                arity: -3,
                flags: Flags::READ,
                keys: &[KeySpec::one(2, Access::RO)],
                since: "4.0.0",
                complexity: "O(1)",
                summary: "Returns the bytes that a key and its value take in log and index.",
                run: Run::Inside(memory_usage),
                ..ROW
            },
        ],
        ..ROW
    },
    CommandSpec {
        name: "ROLE",
        arity: 1,
        flags: Flags::NO_SCRIPT.and(ANY_TIME).and(Flags::FAST),
        categories: Categories::ADMIN.and(Categories::DANGEROUS),
        since: "2.8.12",
        complexity: "O(1)",
        summary: "Returns the role in replication: always master, without replicas.",
        run: Run::Outside(role),
        ..ROW
    },
    CommandSpec {
        name: "SAVE",
        arity: 1,
        flags: ADMIN.and(Flags::NO_ASYNC_LOADING).and(Flags::NO_MULTI),
        complexity: "O(N) where N is what changed since the last checkpoint",
        summary: "Takes a checkpoint and answers when it is durable.",
        run: Run::Outside(save),
        ..ROW
    },
    CommandSpec {
        name: "SHUTDOWN",
        arity: -1,
        flags: ADMIN.and(ANY_TIME).and(Flags::NO_MULTI).and(Flags::ALLOW_BUSY),
        complexity: "O(N) where N is what changed since the last checkpoint, or O(1) without one",
        summary: "Takes a checkpoint and ends the server.",
        run: Run::Outside(shutdown),
        ..ROW
    },
    CommandSpec {
        name: "SWAPDB",
        arity: 3,
        flags: Flags::WRITE.and(Flags::FAST),
        categories: Categories::KEYSPACE.and(Categories::DANGEROUS),
        since: "4.0.0",
        complexity: "O(1)",
        summary: "Swaps the contents of two databases.",
        run: Run::Outside(swap_db),
        ..ROW
    },
    CommandSpec {
        name: "TIME",
        arity: 1,
        flags: ANY_TIME.and(Flags::FAST),
        tips: &["nondeterministic_output"],
        since: "2.6.0",
        complexity: "O(1)",
        summary: "Returns the server's clock in seconds and microseconds.",
        run: Run::Outside(time),
        ..ROW
    },
];

fn flush_db(call: &mut OutsideCall<'_>) -> Outcome {
    let db = call.client.db;
    flush(call, |alone| alone.flush_database(db))
}

fn flush_all(call: &mut OutsideCall<'_>) -> Outcome {
    flush(call, |alone| alone.flush_all())
}

/// ASYNC and SYNC are the same here: emptying takes no longer for more keys.
fn flush(
    call: &mut OutsideCall<'_>,
    empty: impl FnOnce(&Alone<'_>) -> Result<(), OperationError>,
) -> Outcome {
    match call.args.get(1) {
        None => {}
        Some(how) if call.args.len() == 2 && (args::is(how, "ASYNC") || args::is(how, "SYNC")) => {}
        Some(_) => return Err(error::SYNTAX.into()),
    }
    empty(call.alone())?;
    call.context.checkpoints.note_change();
    call.reply.ok();
    Ok(())
}

fn swap_db(call: &mut OutsideCall<'_>) -> Outcome {
    const FIRST: ErrorReply = ErrorReply::new("ERR invalid first DB index");
    const SECOND: ErrorReply = ErrorReply::new("ERR invalid second DB index");
    let number = |word, invalid| args::integer_32(word).map_err(|_| invalid);
    let numbers = (number(call.args.at(1), FIRST)?, number(call.args.at(2), SECOND)?);
    let a = numbered_database(call.context, numbers.0)?;
    let b = numbered_database(call.context, numbers.1)?;
    if a != b {
        call.alone().swap_databases(a, b)?;
        call.context.checkpoints.note_change();
    }
    call.reply.ok();
    Ok(())
}

const SAVING: ErrorReply = ErrorReply::new("ERR Background save already in progress");

fn save(call: &mut OutsideCall<'_>) -> Outcome {
    let claim = call.context.checkpoints.claim().ok_or(SAVING)?;
    call.defer(move |context, reply| {
        claim.take(&context.store, context.databases).map_err(failed)?;
        reply.ok();
        Ok(())
    })
}

fn failed(e: CheckpointError) -> ErrorReply {
    match e {
        CheckpointError::InProgress => SAVING,
        other => ErrorReply::owned(format!("ERR {other}")),
    }
}

/// In a transaction, which no cut falls into, it is taken afterwards. Else SCHEDULE changes nothing:
/// there is no other work that a checkpoint would have to wait for.
fn bg_save(call: &mut OutsideCall<'_>) -> Outcome {
    match call.args.get(1) {
        None => {}
        Some(word) if call.args.len() == 2 && args::is(word, "SCHEDULE") => {}
        Some(_) => return Err(error::SYNTAX.into()),
    }
    if call.alone.is_some() {
        if call.context.checkpoints.in_progress() {
            return Err(SAVING.into());
        }
        call.client.saves_afterwards = true;
        call.reply.simple("Background saving scheduled");
        return Ok(());
    }
    let claim = call.context.checkpoints.claim().ok_or(SAVING)?;
    let context = call.context.clone();
    // A failure is told by the log, INFO and the metrics, since this reply is gone by then.
    let saves = move || drop(claim.take(&context.store, context.databases));
    let started = std::thread::Builder::new().name("checkpoint".into()).spawn(saves);
    started.map_err(|e| ErrorReply::owned(format!("ERR Can't start a thread: {e}")))?;
    call.reply.simple("Background saving started");
    Ok(())
}

/// Checkpoints follow, as many as are kept, and then the segments go.
fn compact(call: &mut OutsideCall<'_>) -> Outcome {
    const COMPACTING: ErrorReply = ErrorReply::new("ERR Background compaction already in progress");
    let compacting = Compacting::begin(call.context).ok_or(COMPACTING)?;
    let started =
        std::thread::Builder::new().name("compact".into()).spawn(move || compacting.run());
    started.map_err(|e| ErrorReply::owned(format!("ERR Can't start a thread: {e}")))?;
    call.reply.simple("Background compaction started");
    Ok(())
}

/// NOW asks not to wait for replicas, of which there are none; there is nothing to ABORT either.
fn shutdown(call: &mut OutsideCall<'_>) -> Outcome {
    const NONE_IN_PROGRESS: ErrorReply = ErrorReply::new("ERR No shutdown in progress.");
    const FAILED: ErrorReply = ErrorReply::new("ERR Errors trying to SHUTDOWN. Check logs.");
    let given = |name| call.args.iter_from(1).any(|word| args::is(word, name));
    let known =
        |word| ["SAVE", "NOSAVE", "NOW", "FORCE", "ABORT"].iter().any(|n| args::is(word, n));
    let abort = given("ABORT");
    let options = given("SAVE") || given("NOSAVE") || given("NOW") || given("FORCE");
    if !call.args.iter_from(1).all(known)
        || (abort && options)
        || (given("SAVE") && given("NOSAVE"))
    {
        return Err(error::SYNTAX.into());
    }
    if abort {
        return Err(NONE_IN_PROGRESS.into());
    }
    let save = match (given("SAVE"), given("NOSAVE")) {
        (true, _) => Save::Always,
        (_, true) => Save::Never,
        _ => Save::AsConfigured,
    };
    if call.context.is_loading() {
        lifecycle::exit_while_loading("SHUTDOWN");
    }
    let ending = Ending { save, force: given("FORCE") };
    // A server that has ended answers nothing: the connection closes.
    call.defer(move |context, _| Ok(context.lifecycle.end(ending).map_err(|_| FAILED)?))
}

fn last_save(call: &mut OutsideCall<'_>) -> Outcome {
    call.reply.integer((call.context.checkpoints.state().last_save_ms / 1000) as i64);
    Ok(())
}

fn time(call: &mut OutsideCall<'_>) -> Outcome {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    call.reply.array(2);
    call.reply.bulk_integer(now.as_secs() as i64);
    call.reply.bulk_integer(i64::from(now.subsec_micros()));
    Ok(())
}

fn role(call: &mut OutsideCall<'_>) -> Outcome {
    call.reply.array(3);
    call.reply.bulk(b"master");
    call.reply.integer(0);
    call.reply.array(0);
    Ok(())
}

fn debug(call: &mut OutsideCall<'_>) -> Outcome {
    let word = call.args.at(1);
    if args::is(word, "SLEEP") && call.args.len() == 3 {
        return debug_sleep(call);
    }
    if args::is(word, "HELP") && call.args.len() == 2 {
        let lines = ["SLEEP <seconds>", "    Stop the connection for <seconds>. Decimals allowed."];
        help(&mut call.reply, "DEBUG", &lines);
        return Ok(());
    }
    Err(error::wrong_subcommand(word, "DEBUG").into())
}

/// The others go on meanwhile.
fn debug_sleep(call: &mut OutsideCall<'_>) -> Outcome {
    /// Longer than anybody waits, and short enough for any clock.
    const LONGEST_S: f64 = 1e6;
    let seconds = args::parse_f64(call.args.at(2)).unwrap_or(0.0).clamp(0.0, LONGEST_S);
    call.defer(move |_, reply| {
        std::thread::sleep(Duration::from_secs_f64(seconds));
        reply.ok();
        Ok(())
    })
}

/// What a key takes in the index.
const ENTRY_BYTES: usize = 8;

fn memory_usage(call: &mut Call<'_, '_>) -> Outcome {
    let mut words = call.args.cursor(3);
    while let Some(word) = words.next() {
        // How many elements to sample: a string has none, but a bad number is still an error.
        if !args::is(word, "SAMPLES") || words.is_empty() {
            return Err(error::SYNTAX.into());
        }
        if words.integer()? < 0 {
            return Err(error::SYNTAX.into());
        }
    }
    let reply = &mut call.reply;
    call.inside.read(call.op, call.client.db, call.args.at(2), |value| match value {
        Some(value) => reply.count(value.stored_bytes + ENTRY_BYTES),
        None => reply.null(),
    })?;
    Ok(())
}

fn memory_help(call: &mut OutsideCall<'_>) -> Outcome {
    let lines = [
        "USAGE <key> [SAMPLES <count>]",
        "    Return memory in bytes used by <key> and its value. Nested values are",
        "    sampled up to <count> times (default: 5, 0 means sample all).",
    ];
    help(&mut call.reply, "MEMORY", &lines);
    Ok(())
}

#[cfg(test)]
mod tests;
