//! The connection and who is at its other end.

use super::{Call, Categories, CommandSpec, Flags, Group, Run};
use crate::error::{self, Outcome};

pub(super) const COMMANDS: &[CommandSpec] = &[CommandSpec {
    name: "PING",
    arity: -1,
    flags: Flags::FAST,
    categories: Categories::CONNECTION,
    tips: &["request_policy:all_shards", "response_policy:all_succeeded"],
    since: "1.0.0",
    group: Group::Connection,
    complexity: "O(1)",
    summary: "Answers PONG, or its argument.",
    run: Run::Inside(ping),
    ..CommandSpec::BASE
}];

fn ping(call: &mut Call<'_, '_>) -> Outcome {
    match call.args.len() {
        1 => call.reply.simple("PONG"),
        2 => call.reply.bulk(call.args.at(1)),
        _ => return Err(error::wrong_arity("ping").into()),
    }
    Ok(())
}
