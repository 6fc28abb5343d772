//! Strings.

use super::{Access, Call, CommandSpec, Flags, Group, KeySpec, Run};
use crate::error::Outcome;
use ferrite_hybridlog::Change;

pub(super) const COMMANDS: &[CommandSpec] = &[
    CommandSpec {
        name: "GET",
        arity: 2,
        flags: Flags::READ.and(Flags::FAST),
        categories: super::Categories::STRING,
        keys: &[KeySpec::one(1, Access::RO.and(Access::ACCESS))],
        since: "1.0.0",
        group: Group::String,
        complexity: "O(1)",
        summary: "Returns the string value of a key.",
        run: Run::Inside(get),
        ..CommandSpec::BASE
    },
    CommandSpec {
        name: "SET",
        arity: -3,
        flags: Flags::WRITE.and(Flags::DENY_OOM),
        categories: super::Categories::STRING,
        keys: &[KeySpec::one(1, Access::OW.and(Access::UPDATE))],
        since: "1.0.0",
        group: Group::String,
        complexity: "O(1)",
        summary: "Sets the string value of a key.",
        run: Run::Inside(set),
        ..CommandSpec::BASE
    },
];

fn get(call: &mut Call<'_, '_>) -> Outcome {
    let reply = &mut call.reply;
    call.inside.read(call.op, call.client.db, call.args.at(1), |value| match value {
        Some(value) => reply.bulk(value.bytes),
        None => reply.null(),
    })?;
    Ok(())
}

fn set(call: &mut Call<'_, '_>) -> Outcome {
    if call.args.len() > 3 {
        return Err(crate::error::SYNTAX.into());
    }
    let value = call.args.at(2);
    call.inside.update(call.op, call.client.db, call.args.at(1), |_, _| {
        (Change::Put { value, expires_at_ms: None, encoding: 0 }, ())
    })?;
    call.reply.ok();
    Ok(())
}
