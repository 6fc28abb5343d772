//! Strings: the rows, and the commands that set and fetch whole values of one key.
//!
//! The encodings that OBJECT ENCODING tells are kept up here as [`crate::encoding`] says.

mod counter;
mod many;
mod options;
mod part;

use super::{Access, Call, Categories, CommandSpec, Flags, Group, KeySpec, Run, expiry};
use crate::encoding;
use crate::error::Outcome;
use crate::resp::Reply;
use expiry::Form;
use ferrite_hybridlog::{Change, Value};
use options::{Condition, Expiry, Options};

const READ: Access = Access::RO.and(Access::ACCESS);
const CHANGE: Access = Access::RW.and(Access::ACCESS).and(Access::UPDATE);
const WRITE: Flags = Flags::WRITE.and(Flags::DENY_OOM);

/// What most rows of this family share.
const ROW: CommandSpec = CommandSpec {
    categories: Categories::STRING,
    group: Group::String,
    complexity: "O(1)",
    ..CommandSpec::BASE
};

/// A command that reads one key.
const READER: CommandSpec =
    CommandSpec { flags: Flags::READ, keys: &[KeySpec::one(1, READ)], ..ROW };

/// A command that changes one key and tells something of it.
const CHANGER: CommandSpec =
    CommandSpec { flags: WRITE.and(Flags::FAST), keys: &[KeySpec::one(1, CHANGE)], ..ROW };

pub(super) const COMMANDS: &[CommandSpec] = &[
    CommandSpec {
        name: "APPEND",
        arity: 3,
        keys: &[KeySpec::one(1, Access::RW.and(Access::INSERT))],
        since: "2.0.0",
        complexity: "O(N) where N is the length of the value",
        summary: "Appends bytes to the value of a key, or sets it.",
        run: Run::Inside(part::append),
        ..CHANGER
    },
    CommandSpec {
        name: "DECR",
        arity: 2,
        summary: "Takes one from the integer of a key.",
        run: Run::Inside(counter::decr),
        ..CHANGER
    },
    CommandSpec {
        name: "DECRBY",
        arity: 3,
        summary: "Takes a number from the integer of a key.",
        run: Run::Inside(counter::decr_by),
        ..CHANGER
    },
    CommandSpec {
        name: "GET",
        arity: 2,
        flags: Flags::READ.and(Flags::FAST),
        summary: "Returns the value of a key.",
        run: Run::Inside(get),
        ..READER
    },
    CommandSpec {
        name: "GETDEL",
        arity: 2,
        flags: Flags::WRITE.and(Flags::FAST),
        keys: &[KeySpec::one(1, Access::RW.and(Access::ACCESS).and(Access::DELETE))],
        since: "6.2.0",
        summary: "Returns the value of a key and deletes the key.",
        run: Run::Inside(get_del),
        ..ROW
    },
    CommandSpec {
        name: "GETEX",
        arity: -2,
        flags: Flags::WRITE.and(Flags::FAST),
        keys: &[KeySpec::one(1, CHANGE).noted("RW and UPDATE because it changes the TTL")],
        since: "6.2.0",
        summary: "Returns the value of a key and changes when it expires.",
        run: Run::Inside(get_ex),
        ..CHANGER
    },
    CommandSpec {
        name: "GETRANGE",
        arity: 4,
        since: "2.4.0",
        complexity: "O(N) where N is the length of what is returned",
        summary: "Returns a part of the value of a key.",
        run: Run::Inside(part::get_range),
        ..READER
    },
    CommandSpec {
        name: "GETSET",
        arity: 3,
        summary: "Returns the value of a key and sets a new one.",
        run: Run::Inside(get_set),
        ..CHANGER
    },
    CommandSpec {
        name: "INCR",
        arity: 2,
        summary: "Adds one to the integer of a key.",
        run: Run::Inside(counter::incr),
        ..CHANGER
    },
    CommandSpec {
        name: "INCRBY",
        arity: 3,
        summary: "Adds a number to the integer of a key.",
        run: Run::Inside(counter::incr_by),
        ..CHANGER
    },
    CommandSpec {
        name: "INCRBYFLOAT",
        arity: 3,
        since: "2.6.0",
        summary: "Adds a number to the floating point number of a key.",
        run: Run::Inside(counter::incr_by_float),
        ..CHANGER
    },
    CommandSpec {
        name: "LCS",
        arity: -3,
        keys: &[KeySpec { last: 1, ..KeySpec::one(1, READ) }],
        since: "7.0.0",
        complexity: "O(N*M) where N and M are the lengths of the two values",
        summary: "Finds the longest common subsequence of two values.",
        run: Run::Inside(many::lcs),
        ..READER
    },
    CommandSpec {
        name: "MGET",
        arity: -2,
        flags: Flags::READ.and(Flags::FAST),
        keys: &[KeySpec::all(1, 1, READ)],
        tips: &["request_policy:multi_shard"],
        complexity: "O(N) where N is the number of keys",
        summary: "Returns the values of several keys.",
        run: Run::Inside(many::m_get),
        ..ROW
    },
    CommandSpec {
        name: "MSET",
        arity: -3,
        flags: WRITE,
        keys: &[KeySpec::all(1, 2, Access::OW.and(Access::UPDATE))],
        tips: &["request_policy:multi_shard", "response_policy:all_succeeded"],
        since: "1.0.1",
        complexity: "O(N) where N is the number of keys",
        summary: "Sets the values of several keys, as one step.",
        run: Run::Inside(many::m_set),
        ..ROW
    },
    CommandSpec {
        name: "MSETNX",
        arity: -3,
        flags: WRITE,
        keys: &[KeySpec::all(1, 2, Access::OW.and(Access::INSERT))],
        tips: &["request_policy:multi_shard", "response_policy:agg_min"],
        since: "1.0.1",
        complexity: "O(N) where N is the number of keys",
        summary: "Sets the values of several keys, if none of them exists.",
        run: Run::Inside(many::m_set_nx),
        ..ROW
    },
    CommandSpec {
        name: "PSETEX",
        arity: 4,
        flags: WRITE,
        keys: &[KeySpec::one(1, Access::OW.and(Access::UPDATE))],
        since: "2.6.0",
        summary: "Sets the value of a key that expires after some milliseconds.",
        run: Run::Inside(p_set_ex),
        ..ROW
    },
    CommandSpec {
        name: "SET",
        arity: -3,
        flags: WRITE,
        keys: &[KeySpec::one(1, CHANGE.and(Access::VARIABLE_FLAGS))
            .noted("RW and ACCESS due to the optional `GET` argument")],
        summary: "Sets the value of a key.",
        run: Run::Inside(set),
        ..ROW
    },
    CommandSpec {
        name: "SETEX",
        arity: 4,
        flags: WRITE,
        keys: &[KeySpec::one(1, Access::OW.and(Access::UPDATE))],
        since: "2.0.0",
        summary: "Sets the value of a key that expires after some seconds.",
        run: Run::Inside(set_ex),
        ..ROW
    },
    CommandSpec {
        name: "SETNX",
        arity: 3,
        keys: &[KeySpec::one(1, Access::OW.and(Access::INSERT))],
        summary: "Sets the value of a key that does not exist.",
        run: Run::Inside(set_nx),
        ..CHANGER
    },
    CommandSpec {
        name: "SETRANGE",
        arity: 4,
        flags: WRITE,
        keys: &[KeySpec::one(1, Access::RW.and(Access::UPDATE))],
        since: "2.2.0",
        complexity: "O(N) where N is the length of the value",
        summary: "Overwrites a part of the value of a key.",
        run: Run::Inside(part::set_range),
        ..ROW
    },
    CommandSpec {
        name: "STRLEN",
        arity: 2,
        flags: Flags::READ.and(Flags::FAST),
        keys: &[KeySpec::one(1, Access::RO)],
        since: "2.2.0",
        summary: "Returns the length of the value of a key.",
        run: Run::Inside(str_len),
        ..ROW
    },
    CommandSpec {
        name: "SUBSTR",
        arity: 4,
        complexity: "O(N) where N is the length of what is returned",
        summary: "Returns a part of the value of a key (the old name of GETRANGE).",
        run: Run::Inside(part::get_range),
        ..READER
    },
];

fn bulk_or_null(value: Option<Value<'_>>, reply: &mut Reply<'_>) {
    match value {
        Some(value) => reply.bulk(value.bytes),
        None => reply.null(),
    }
}

fn get(call: &mut Call<'_, '_>) -> Outcome {
    call.read_key(bulk_or_null)
}

fn str_len(call: &mut Call<'_, '_>) -> Outcome {
    call.read_key(|value, reply| reply.count(value.map_or(0, |v| v.bytes.len())))
}

fn set(call: &mut Call<'_, '_>) -> Outcome {
    let value = call.args.at(2);
    let options = Options::of_set(call.args.cursor(3))?;
    let expiry = options.expiry(call.inside.now_ms(), "set")?;
    let found = call.update_key(|old, _, reply| {
        let found = old.is_some();
        let met = options.condition.is_met(found);
        match (options.get, met) {
            (true, _) => bulk_or_null(old, reply),
            (false, true) => reply.ok(),
            (false, false) => reply.null(),
        }
        let expires_at_ms = match expiry {
            Expiry::Keep => old.and_then(|v| v.expires_at_ms),
            Expiry::None => None,
            Expiry::At(at) => Some(at),
        };
        let put = Change::Put { value, expires_at_ms, encoding: encoding::NATURAL };
        Ok((if met { put } else { Change::Keep }, found))
    })?;
    if options.get {
        call.count_lookup(found);
    }
    Ok(())
}

fn set_ex(call: &mut Call<'_, '_>) -> Outcome {
    set_expiring(call, Form::Seconds, "setex")
}

fn p_set_ex(call: &mut Call<'_, '_>) -> Outcome {
    set_expiring(call, Form::Milliseconds, "psetex")
}

fn set_expiring(call: &mut Call<'_, '_>, form: Form, command: &str) -> Outcome {
    let at = expiry::of_value(call.args.at(2), form, call.inside.now_ms(), command)?;
    let put = Change::Put {
        value: call.args.at(3),
        expires_at_ms: Some(at),
        encoding: encoding::NATURAL,
    };
    call.update_key(|_, _, reply| {
        reply.ok();
        Ok((put, ()))
    })
}

/// The change that SET without options makes.
fn plain(value: &[u8]) -> Change<'_> {
    Change::Put { value, expires_at_ms: None, encoding: encoding::NATURAL }
}

fn set_nx(call: &mut Call<'_, '_>) -> Outcome {
    let put = plain(call.args.at(2));
    call.update_key(|old, _, reply| {
        let absent = Condition::IfAbsent.is_met(old.is_some());
        reply.integer(i64::from(absent));
        Ok((if absent { put } else { Change::Keep }, ()))
    })
}

fn get_set(call: &mut Call<'_, '_>) -> Outcome {
    let put = plain(call.args.at(2));
    let found = call.update_key(|old, _, reply| {
        bulk_or_null(old, reply);
        Ok((put, old.is_some()))
    })?;
    call.count_lookup(found);
    Ok(())
}

fn get_del(call: &mut Call<'_, '_>) -> Outcome {
    let found = call.update_key(|old, _, reply| {
        bulk_or_null(old, reply);
        let change = if old.is_some() { Change::Delete } else { Change::Keep };
        Ok((change, old.is_some()))
    })?;
    call.count_lookup(found);
    Ok(())
}

fn get_ex(call: &mut Call<'_, '_>) -> Outcome {
    let options = Options::of_getex(call.args.cursor(2))?;
    if !options.changes_expiry() {
        return get(call);
    }
    let now = call.inside.now_ms();
    let found = call.update_key(|old, _, reply| {
        bulk_or_null(old, reply);
        if old.is_none() {
            return Ok((Change::Keep, false));
        }
        // A bad time is an error only when there is a key to expire.
        let change = match options.expiry(now, "getex")? {
            Expiry::At(at) if at <= now => Change::Delete,
            Expiry::At(at) => Change::Expire(Some(at)),
            Expiry::Keep | Expiry::None => Change::Expire(None),
        };
        Ok((change, true))
    })?;
    call.count_lookup(found);
    Ok(())
}

#[cfg(test)]
mod tests;
