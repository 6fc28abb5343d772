//! Keys of any type.

use super::{Access, Call, Categories, CommandSpec, Flags, Group, KeySpec, Run};
use crate::error::Outcome;
use ferrite_hybridlog::Change;
use smallvec::SmallVec;

pub(super) const COMMANDS: &[CommandSpec] = &[CommandSpec {
    name: "DEL",
    arity: -2,
    flags: Flags::WRITE,
    categories: Categories::KEYSPACE,
    keys: &[KeySpec::all(1, 1, Access::RM.and(Access::DELETE))],
    tips: &["request_policy:multi_shard", "response_policy:agg_sum"],
    since: "1.0.0",
    group: Group::Generic,
    complexity: "O(N) where N is the number of keys",
    summary: "Deletes one or more keys.",
    run: Run::Inside(del),
    ..CommandSpec::BASE
}];

fn del(call: &mut Call<'_, '_>) -> Outcome {
    let db = call.client.db;
    let keys: SmallVec<[_; 16]> = call.args.iter_from(1).map(|key| (db, key)).collect();
    let deleted = call.inside.update_many(call.op, &keys, |many| {
        let mut deleted = 0;
        for i in 0..keys.len() {
            let again = keys[..i].contains(&keys[i]);
            if !again && many.get(i).is_some() {
                many.set(i, Change::Delete);
                deleted += 1;
            }
        }
        deleted
    })?;
    call.reply.integer(deleted);
    Ok(())
}
