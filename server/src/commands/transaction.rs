//! MULTI, EXEC and DISCARD. What they collect and how it runs is in `transaction.rs`, one level up.

use super::{Categories, CommandSpec, Flags, Group, OutsideCall, Run};
use crate::error::{ErrorReply, Outcome};

const BASE: CommandSpec = CommandSpec {
    arity: 1,
    flags: Flags::NO_SCRIPT
        .and(Flags::LOADING)
        .and(Flags::STALE)
        .and(Flags::FAST)
        .and(Flags::ALLOW_BUSY),
    categories: Categories::TRANSACTION,
    group: Group::Transactions,
    complexity: "O(1)",
    ..CommandSpec::BASE
};

pub(super) const COMMANDS: &[CommandSpec] = &[
    CommandSpec {
        name: "DISCARD",
        since: "2.0.0",
        complexity: "O(N) where N is the number of queued commands",
        summary: "Drops the commands that were queued since MULTI.",
        run: Run::Outside(discard),
        ..BASE
    },
    CommandSpec {
        name: "EXEC",
        flags: Flags::NO_SCRIPT.and(Flags::LOADING).and(Flags::STALE).and(Flags::SKIP_SLOWLOG),
        since: "1.2.0",
        complexity: "that of the queued commands",
        summary: "Runs the commands that were queued since MULTI as one step.",
        run: Run::Transaction,
        ..BASE
    },
    CommandSpec {
        name: "MULTI",
        since: "1.2.0",
        summary: "Begins a transaction: the commands that follow are queued.",
        run: Run::Outside(multi),
        ..BASE
    },
];

fn multi(call: &mut OutsideCall<'_>) -> Outcome {
    if call.client.transaction.is_some() {
        return Err(ErrorReply::new("ERR MULTI calls can not be nested").into());
    }
    call.client.transaction = Some(Box::default());
    call.reply.ok();
    Ok(())
}

fn discard(call: &mut OutsideCall<'_>) -> Outcome {
    if call.client.transaction.take().is_none() {
        return Err(ErrorReply::new("ERR DISCARD without MULTI").into());
    }
    call.reply.ok();
    Ok(())
}
