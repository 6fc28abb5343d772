//! INFO.

use super::{Categories, CommandSpec, Flags, Group, OutsideCall, Run};
use crate::error::Outcome;
use crate::info;

pub(super) const COMMANDS: &[CommandSpec] = &[CommandSpec {
    name: "INFO",
    arity: -1,
    flags: Flags::LOADING.and(Flags::STALE),
    categories: Categories::DANGEROUS,
    tips: &["nondeterministic_output", "request_policy:all_shards", "response_policy:special"],
    since: "1.0.0",
    group: Group::Server,
    complexity: "O(1)",
    summary: "Tells about the server: all usual sections, or those that are named.",
    run: Run::Outside(run),
    ..CommandSpec::BASE
}];

fn run(call: &mut OutsideCall<'_>) -> Outcome {
    let text = info::render(call.context, call.args.iter_from(1));
    call.reply.verbatim("txt", text.as_bytes());
    Ok(())
}
