//! Keys of any type: the rows, and the commands that look at keys or move them about.

mod expire;
mod object;
mod relocate;
mod walk;

use super::lookup::first_places;
use super::{Access, Call, Categories, CommandSpec, Flags, Group, KeySpec, Run};
use crate::error::Outcome;
use ferrite_hybridlog::Change;
use smallvec::SmallVec;

/// What most rows of this family share.
const ROW: CommandSpec = CommandSpec {
    categories: Categories::KEYSPACE,
    group: Group::Generic,
    complexity: "O(1)",
    ..CommandSpec::BASE
};

/// A command that looks at one key.
const READER: CommandSpec = CommandSpec {
    arity: 2,
    flags: Flags::READ.and(Flags::FAST),
    keys: &[KeySpec::one(1, Access::RO.and(Access::ACCESS))],
    ..ROW
};

/// A command that changes when one key expires.
const EXPIRER: CommandSpec = CommandSpec {
    arity: -3,
    flags: Flags::WRITE.and(Flags::FAST),
    keys: &[KeySpec::one(1, Access::RW.and(Access::UPDATE))],
    ..ROW
};

/// A command that counts keys, each part on its own.
const COUNTER: CommandSpec = CommandSpec {
    arity: -2,
    flags: Flags::READ.and(Flags::FAST),
    keys: &[KeySpec::all(1, 1, Access::RO)],
    tips: &["request_policy:multi_shard", "response_policy:agg_sum"],
    complexity: "O(N) where N is the number of keys",
    ..ROW
};

const VARIES: &[&str] = &["nondeterministic_output"];

pub(super) const COMMANDS: &[CommandSpec] = &[
    CommandSpec {
        name: "COPY",
        arity: -3,
        flags: Flags::WRITE.and(Flags::DENY_OOM),
        keys: &[
            KeySpec::one(1, Access::RO.and(Access::ACCESS)),
            KeySpec::one(2, Access::OW.and(Access::UPDATE)),
        ],
        since: "6.2.0",
        complexity: "O(N) where N is the size of the value",
        summary: "Copies the value of a key to another key.",
        run: Run::Inside(relocate::copy),
        ..ROW
    },
    CommandSpec {
        name: "DBSIZE",
        arity: 1,
        flags: Flags::READ.and(Flags::FAST),
        tips: &["request_policy:all_shards", "response_policy:agg_sum"],
        group: Group::Server,
        summary: "Returns the number of keys in the database.",
        run: Run::Inside(db_size),
        ..ROW
    },
    CommandSpec {
        name: "DEL",
        flags: Flags::WRITE,
        keys: &[KeySpec::all(1, 1, Access::RM.and(Access::DELETE))],
        summary: "Deletes keys.",
        run: Run::Inside(del),
        ..COUNTER
    },
    CommandSpec {
        name: "EXISTS",
        summary: "Counts those of the keys that exist.",
        run: Run::Inside(count_present),
        ..COUNTER
    },
    CommandSpec {
        name: "EXPIRE",
        summary: "Lets a key expire after some seconds.",
        run: Run::Inside(expire::expire),
        ..EXPIRER
    },
    CommandSpec {
        name: "EXPIREAT",
        since: "1.2.0",
        summary: "Lets a key expire at a Unix time.",
        run: Run::Inside(expire::expire_at),
        ..EXPIRER
    },
    CommandSpec {
        name: "EXPIRETIME",
        since: "7.0.0",
        summary: "Returns the Unix time at which a key expires.",
        run: Run::Inside(expire::expire_time),
        ..READER
    },
    CommandSpec {
        name: "KEYS",
        arity: 2,
        flags: Flags::READ,
        categories: Categories::KEYSPACE.and(Categories::DANGEROUS),
        tips: &["request_policy:all_shards", "nondeterministic_output_order"],
        complexity: "O(N) where N is the number of keys in the database",
        summary: "Returns the names of the keys that match a pattern.",
        run: Run::Inside(walk::keys),
        ..ROW
    },
    CommandSpec {
        name: "MOVE",
        arity: 3,
        flags: Flags::WRITE.and(Flags::FAST),
        keys: &[KeySpec::one(1, Access::RW.and(Access::ACCESS).and(Access::UPDATE))],
        summary: "Moves a key to another database.",
        run: Run::Inside(relocate::move_key),
        ..ROW
    },
    CommandSpec {
        name: "OBJECT",
        arity: -2,
        categories: Categories::NONE,
        since: "2.2.3",
        complexity: "",
        summary: "Tells how a value is kept.",
        subcommands: object::COMMANDS,
        ..ROW
    },
    CommandSpec {
        name: "PERSIST",
        arity: 2,
        since: "2.2.0",
        summary: "Takes away the expiry of a key.",
        run: Run::Inside(expire::persist),
        ..EXPIRER
    },
    CommandSpec {
        name: "PEXPIRE",
        since: "2.6.0",
        summary: "Lets a key expire after some milliseconds.",
        run: Run::Inside(expire::p_expire),
        ..EXPIRER
    },
    CommandSpec {
        name: "PEXPIREAT",
        since: "2.6.0",
        summary: "Lets a key expire at a Unix time in milliseconds.",
        run: Run::Inside(expire::p_expire_at),
        ..EXPIRER
    },
    CommandSpec {
        name: "PEXPIRETIME",
        since: "7.0.0",
        summary: "Returns the Unix time in milliseconds at which a key expires.",
        run: Run::Inside(expire::p_expire_time),
        ..READER
    },
    CommandSpec {
        name: "PTTL",
        tips: VARIES,
        since: "2.6.0",
        summary: "Returns the milliseconds until a key expires.",
        run: Run::Inside(expire::p_ttl),
        ..READER
    },
    CommandSpec {
        name: "RANDOMKEY",
        arity: 1,
        flags: Flags::READ,
        tips: &["request_policy:all_shards", "nondeterministic_output"],
        summary: "Returns the name of some key of the database.",
        run: Run::Inside(random_key),
        ..ROW
    },
    CommandSpec {
        name: "RENAME",
        arity: 3,
        flags: Flags::WRITE,
        keys: &[
            KeySpec::one(1, Access::RW.and(Access::ACCESS).and(Access::DELETE)),
            KeySpec::one(2, Access::OW.and(Access::UPDATE)),
        ],
        summary: "Gives a key another name, in place of what was there.",
        run: Run::Inside(relocate::rename),
        ..ROW
    },
    CommandSpec {
        name: "RENAMENX",
        arity: 3,
        flags: Flags::WRITE.and(Flags::FAST),
        keys: &[
            KeySpec::one(1, Access::RW.and(Access::ACCESS).and(Access::DELETE)),
            KeySpec::one(2, Access::OW.and(Access::INSERT)),
        ],
        summary: "Gives a key another name, if that is free.",
        run: Run::Inside(relocate::rename_nx),
        ..ROW
    },
    CommandSpec {
        name: "SCAN",
        arity: -2,
        flags: Flags::READ,
        tips: &["nondeterministic_output", "request_policy:special"],
        since: "2.8.0",
        complexity: "O(1) a call, O(N) for all keys of the database",
        summary: "Returns some keys of the database and a cursor for the next ones.",
        run: Run::Inside(walk::scan),
        ..ROW
    },
    CommandSpec {
        name: "TOUCH",
        since: "3.2.1",
        summary: "Counts those of the keys that exist (as EXISTS: no read makes a key young).",
        run: Run::Inside(count_present),
        ..COUNTER
    },
    CommandSpec {
        name: "TTL",
        tips: VARIES,
        summary: "Returns the seconds until a key expires.",
        run: Run::Inside(expire::ttl),
        ..READER
    },
    CommandSpec {
        name: "TYPE",
        keys: &[KeySpec::one(1, Access::RO)],
        summary: "Returns the type of the value of a key.",
        run: Run::Inside(type_of),
        ..READER
    },
    CommandSpec {
        name: "UNLINK",
        flags: Flags::WRITE.and(Flags::FAST),
        keys: &[KeySpec::all(1, 1, Access::RM.and(Access::DELETE))],
        since: "4.0.0",
        summary: "Deletes keys (as DEL, which has nothing to free either).",
        run: Run::Inside(del),
        ..COUNTER
    },
];

fn del(call: &mut Call<'_, '_>) -> Outcome {
    let db = call.client.db;
    let keys: SmallVec<[_; 16]> = call.args.iter_from(1).map(|key| (db, key)).collect();
    let is_first = first_places(&keys);
    let deleted = call.inside.update_many(call.op, &keys, |many| {
        let mut deleted = 0;
        for i in (0..keys.len()).filter(|i| is_first(*i)) {
            if many.get(i).is_some() {
                many.set(i, Change::Delete);
                deleted += 1;
            }
        }
        deleted
    })?;
    call.reply.integer(deleted);
    Ok(())
}

/// EXISTS and TOUCH: a key that stands twice counts twice.
fn count_present(call: &mut Call<'_, '_>) -> Outcome {
    let keys = call.args.slices_from(1);
    let mut present = 0;
    call.inside.read_many(call.op, call.client.db, &keys, |i, value| {
        present = if i == 0 { 0 } else { present } + u64::from(value.is_some());
    })?;
    call.count_lookups(present, keys.len() as u64 - present);
    call.reply.integer(present as i64);
    Ok(())
}

fn type_of(call: &mut Call<'_, '_>) -> Outcome {
    call.read_key(|value, reply| reply.simple(if value.is_some() { "string" } else { "none" }))
}

fn random_key(call: &mut Call<'_, '_>) -> Outcome {
    let reply = &mut call.reply;
    call.inside.random_key(call.op, call.client.db, |value| match value {
        Some(value) => reply.bulk(value.key),
        None => reply.null(),
    })?;
    Ok(())
}

fn db_size(call: &mut Call<'_, '_>) -> Outcome {
    let keys = call.inside.key_count(call.op, call.client.db)?;
    call.reply.integer(keys as i64);
    Ok(())
}

#[cfg(test)]
mod tests;
