//! OBJECT: how a value is kept.

use super::{ROW, VARIES};
use crate::commands::{Access, Call, CommandSpec, Flags, KeySpec, OutsideCall, Run, help};
use crate::encoding;
use crate::error::{ErrorReply, Outcome};
use crate::resp::Reply;
use ferrite_hybridlog::Value;

/// A subcommand about one key.
const INSPECTOR: CommandSpec = CommandSpec {
    arity: 3,
    flags: Flags::READ,
    keys: &[KeySpec::one(2, Access::RO)],
    tips: VARIES,
    since: "2.2.3",
    ..ROW
};

pub(super) const COMMANDS: &[CommandSpec] = &[
    CommandSpec {
        name: "ENCODING",
        summary: "Returns the encoding that Redis would choose for the value.",
        run: Run::Inside(encoding_of),
        ..INSPECTOR
    },
    CommandSpec {
        name: "FREQ",
        since: "4.0.0",
        summary: "Fails: the frequency of accesses is not tracked.",
        run: Run::Inside(frequency),
        ..INSPECTOR
    },
    CommandSpec {
        name: "HELP",
        arity: 2,
        flags: Flags::LOADING.and(Flags::STALE),
        since: "6.2.0",
        summary: "Lists the subcommands.",
        run: Run::Outside(print_help),
        ..ROW
    },
    CommandSpec {
        name: "IDLETIME",
        summary: "Returns the seconds since the log around the last write became read-only.",
        run: Run::Inside(idle_time),
        ..INSPECTOR
    },
    CommandSpec {
        name: "REFCOUNT",
        summary: "Returns the number of references that Redis would count.",
        run: Run::Inside(reference_count),
        ..INSPECTOR
    },
];

const NOT_TRACKED: ErrorReply = ErrorReply::new(
    "ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please note that \
     when switching between policies at runtime LRU and LFU data will take some time to adjust.",
);

/// Looks at the key that is word 2; without one, the reply is null. Says whether it is there.
fn inspect(
    call: &mut Call<'_, '_>,
    f: impl FnOnce(Value<'_>, &mut Reply<'_>),
) -> Result<bool, crate::error::Stop> {
    let reply = &mut call.reply;
    let found = call.inside.read(call.op, call.client.db, call.args.at(2), |value| {
        let found = value.is_some();
        match value {
            Some(value) => f(value, reply),
            None => reply.null(),
        }
        found
    })?;
    call.count_lookup(found);
    Ok(found)
}

fn encoding_of(call: &mut Call<'_, '_>) -> Outcome {
    inspect(call, |value, reply| reply.bulk(encoding::name(&value).as_bytes()))?;
    Ok(())
}

fn frequency(call: &mut Call<'_, '_>) -> Outcome {
    if inspect(call, |_, _| ())? { Err(NOT_TRACKED.into()) } else { Ok(()) }
}

fn idle_time(call: &mut Call<'_, '_>) -> Outcome {
    let mut address = 0;
    if inspect(call, |value, _| address = value.address)? {
        let idle_ms = call.inside.idle_ms(address);
        call.reply.integer((idle_ms / 1000) as i64);
    }
    Ok(())
}

fn reference_count(call: &mut Call<'_, '_>) -> Outcome {
    inspect(call, |value, reply| reply.integer(encoding::references(&value)))?;
    Ok(())
}

fn print_help(call: &mut OutsideCall<'_>) -> Outcome {
    let lines = [
        "ENCODING <key>",
        "    Return the kind of internal representation used in order to store the value",
        "    associated with a <key>.",
        "FREQ <key>",
        "    Return the access frequency index of the <key>. The returned integer is",
        "    proportional to the logarithm of the recent access frequency of the key.",
        "IDLETIME <key>",
        "    Return the idle time of the <key>, that is the approximated number of",
        "    seconds elapsed since the last access to the key.",
        "REFCOUNT <key>",
        "    Return the number of references of the value associated with the specified",
        "    <key>.",
    ];
    help(&mut call.reply, "OBJECT", &lines);
    Ok(())
}
