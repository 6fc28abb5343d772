//! COMMAND: what the rows say about the commands.

use super::args::{self, Args};
use super::{
    Access, Categories, CommandSpec, Entry, Flags, Group, KeySpec, OutsideCall, Run, help, table,
};
use crate::error::{self, ErrorReply, Outcome};
use crate::glob;
use crate::resp::Reply;

const BASE: CommandSpec = CommandSpec {
    flags: Flags::LOADING.and(Flags::STALE),
    categories: Categories::CONNECTION,
    group: Group::Server,
    since: "2.8.13",
    complexity: "O(N) where N is the total number of commands",
    ..CommandSpec::BASE
};

pub(super) const COMMANDS: &[CommandSpec] = &[CommandSpec {
    name: "COMMAND",
    arity: -1,
    tips: &["nondeterministic_output_order"],
    summary: "Describes all commands.",
    run: Run::Outside(command),
    subcommands: &[
        CommandSpec {
            name: "COUNT",
            arity: 2,
            complexity: "O(1)",
            summary: "Returns how many commands there are.",
            run: Run::Outside(count),
            ..BASE
        },
        CommandSpec {
            name: "DOCS",
            arity: -2,
            since: "7.0.0",
            tips: &["nondeterministic_output_order"],
            complexity: "O(N) where N is the number of commands to look up",
            summary: "Returns the documentation of commands.",
            run: Run::Outside(docs),
            ..BASE
        },
        CommandSpec {
            name: "GETKEYS",
            arity: -4,
            complexity: "O(N) where N is the number of arguments to the command",
            summary: "Returns the keys of a whole command.",
            run: Run::Outside(get_keys),
            ..BASE
        },
        CommandSpec {
            name: "GETKEYSANDFLAGS",
            arity: -4,
            since: "7.0.0",
            complexity: "O(N) where N is the number of arguments to the command",
            summary: "Returns the keys of a whole command and what it does with them.",
            run: Run::Outside(get_keys_and_flags),
            ..BASE
        },
        CommandSpec {
            name: "HELP",
            arity: 2,
            since: "5.0.0",
            complexity: "O(1)",
            summary: "Tells what the subcommands are for.",
            run: Run::Outside(command_help),
            ..BASE
        },
        CommandSpec {
            name: "INFO",
            arity: -2,
            tips: &["nondeterministic_output_order"],
            complexity: "O(N) where N is the number of commands to look up",
            summary: "Describes some commands.",
            run: Run::Outside(info),
            ..BASE
        },
        CommandSpec {
            name: "LIST",
            arity: -2,
            since: "7.0.0",
            tips: &["nondeterministic_output_order"],
            summary: "Returns the names of the commands.",
            run: Run::Outside(list),
            ..BASE
        },
    ],
    ..BASE
}];

fn command_help(call: &mut OutsideCall<'_>) -> Outcome {
    let lines = [
        "(no subcommand)",
        "    Return details about all Redis commands.",
        "COUNT",
        "    Return the total number of commands in this Redis server.",
        "LIST",
        "    Return a list of all commands in this Redis server.",
        "INFO [<command-name> ...]",
        "    Return details about multiple Redis commands.",
        "    If no command names are given, documentation details for all",
        "    commands are returned.",
        "DOCS [<command-name> ...]",
        "    Return documentation details about multiple Redis commands.",
        "    If no command names are given, documentation details for all",
        "    commands are returned.",
        "GETKEYS <full-command>",
        "    Return the keys from a full Redis command.",
        "GETKEYSANDFLAGS <full-command>",
        "    Return the keys and the access flags from a full Redis command.",
    ];
    help(&mut call.reply, "COMMAND", &lines);
    Ok(())
}

fn command(call: &mut OutsideCall<'_>) -> Outcome {
    all_of_them(&mut call.reply);
    Ok(())
}

fn all_of_them(reply: &mut Reply<'_>) {
    reply.array(table().commands().count());
    table().commands().for_each(|entry| describe(entry, reply));
}

fn count(call: &mut OutsideCall<'_>) -> Outcome {
    call.reply.count(table().commands().count());
    Ok(())
}

fn info(call: &mut OutsideCall<'_>) -> Outcome {
    let names = call.args.iter_from(2);
    if names.len() == 0 {
        all_of_them(&mut call.reply);
        return Ok(());
    }
    call.reply.array(names.len());
    for name in names {
        match table().find_full(name) {
            Some(entry) => describe(entry, &mut call.reply),
            None => call.reply.null_array(),
        }
    }
    Ok(())
}

/// One command as COMMAND INFO has it.
fn describe(entry: &Entry, reply: &mut Reply<'_>) {
    let spec = entry.spec;
    reply.array(10);
    reply.bulk(entry.name.as_bytes());
    reply.integer(spec.arity.into());
    names(reply, spec.flags.names());
    let (first, last, step) = legacy_keys(spec.keys);
    [first, last, step].into_iter().for_each(|n| reply.integer(n));
    let begun = reply.defer();
    let mut n = 0;
    for category in spec.all_categories().names() {
        reply.simple(&format!("@{category}"));
        n += 1;
    }
    reply.finish_set(begun, n);
    reply.set(spec.tips.len());
    spec.tips.iter().for_each(|tip| reply.bulk(tip.as_bytes()));
    reply.set(spec.keys.len());
    spec.keys.iter().for_each(|keys| describe_keys(keys, reply));
    reply.set(entry.subcommands.len());
    entry.subcommands.iter().for_each(|sub| describe(sub, reply));
}

fn names(reply: &mut Reply<'_>, names: impl Iterator<Item = &'static str>) {
    let begun = reply.defer();
    let mut n = 0;
    for name in names {
        reply.simple(name);
        n += 1;
    }
    reply.finish_set(begun, n);
}

fn describe_keys(keys: &KeySpec, reply: &mut Reply<'_>) {
    if keys.notes.is_empty() {
        reply.map(3);
    } else {
        reply.map(4);
        reply.bulk(b"notes");
        reply.bulk(keys.notes.as_bytes());
    }
    reply.bulk(b"flags");
    names(reply, keys.access.names());
    reply.bulk(b"begin_search");
    typed(reply, "index", &[("index", i64::from(keys.first))]);
    reply.bulk(b"find_keys");
    let range =
        [("lastkey", i64::from(keys.last)), ("keystep", i64::from(keys.step)), ("limit", 0)];
    typed(reply, "range", &range);
}

fn typed(reply: &mut Reply<'_>, kind: &str, fields: &[(&str, i64)]) {
    reply.map(2);
    reply.bulk(b"type");
    reply.bulk(kind.as_bytes());
    reply.bulk(b"spec");
    reply.map(fields.len());
    for (name, n) in fields {
        reply.bulk(name.as_bytes());
        reply.integer(*n);
    }
}

/// First key, last key and step, for clients that know no key specifications: the first
/// specification, drawn out over those that follow without a gap.
fn legacy_keys(keys: &[KeySpec]) -> (i64, i64, i64) {
    let Some(first) = keys.first() else { return (0, 0, 0) };
    let end = |spec: &KeySpec| match spec.last {
        last if last < 0 => i64::from(last),
        last => i64::from(spec.first) + i64::from(last),
    };
    let mut last = end(first);
    for spec in &keys[1..] {
        if last >= 0 && spec.step == 1 && first.step == 1 && i64::from(spec.first) == last + 1 {
            last = end(spec);
        }
    }
    (first.first.into(), last, first.step.into())
}

fn docs(call: &mut OutsideCall<'_>) -> Outcome {
    let asked: Vec<_> = match call.args.len() {
        2 => table().commands().collect(),
        _ => call.args.iter_from(2).filter_map(|name| table().find_full(name)).collect(),
    };
    call.reply.map(asked.len());
    asked.into_iter().for_each(|entry| document(entry, &mut call.reply));
    Ok(())
}

/// A command's name and what COMMAND DOCS tells about it.
fn document(entry: &Entry, reply: &mut Reply<'_>) {
    let spec = entry.spec;
    let texts = [
        ("summary", spec.summary),
        ("since", spec.since),
        ("group", spec.group.name()),
        ("complexity", spec.complexity),
    ];
    let texts: Vec<_> = texts.into_iter().filter(|(_, text)| !text.is_empty()).collect();
    let nested = !entry.subcommands.is_empty();
    reply.bulk(entry.name.as_bytes());
    reply.map(texts.len() + usize::from(nested));
    for (name, text) in texts {
        reply.bulk(name.as_bytes());
        reply.bulk(text.as_bytes());
    }
    if nested {
        reply.bulk(b"subcommands");
        reply.map(entry.subcommands.len());
        entry.subcommands.iter().for_each(|sub| document(sub, reply));
    }
}

fn list(call: &mut OutsideCall<'_>) -> Outcome {
    let mut options = call.args.cursor(2);
    let mut chosen: Vec<_> = table().entries().to_vec();
    if !options.is_empty() {
        if options.remaining() != 3 || !options.keyword("FILTERBY") {
            return Err(error::SYNTAX.into());
        }
        let (by, what) = (options.word()?, options.word()?);
        if args::is(by, "MODULE") {
            chosen.clear();
        } else if args::is(by, "ACLCAT") {
            let category = Categories::named(what);
            chosen.retain(|e| category.is_some_and(|c| e.spec.all_categories().has(c)));
        } else if args::is(by, "PATTERN") {
            chosen.retain(|e| glob::matches_ignoring_case(what, e.name.as_bytes()));
        } else {
            return Err(error::SYNTAX.into());
        }
    }
    call.reply.set(chosen.len());
    chosen.iter().for_each(|entry| call.reply.bulk(entry.name.as_bytes()));
    Ok(())
}

/// The keys of the command that COMMAND GETKEYS is given, with what it does with each.
fn keys_of<'a>(args: Args<'a>) -> Result<Vec<(&'a [u8], Access)>, ErrorReply> {
    let command = args.skip(2);
    let mut entry = table().find(command.at(0));
    if let Some(found) = entry
        && !found.subcommands.is_empty()
        && command.len() > 1
    {
        entry = found.subcommand(command.at(1));
    }
    let entry = entry.ok_or(ErrorReply::new("ERR Invalid command specified"))?;
    if entry.spec.keys.is_empty() {
        return Err(ErrorReply::new("ERR The command has no key arguments"));
    }
    if !entry.spec.arity_fits(command.len()) {
        return Err(ErrorReply::new("ERR Invalid number of arguments specified for command"));
    }
    let mut keys = Vec::new();
    for spec in entry.spec.keys {
        let access = real_access(entry, spec.access, command);
        keys.extend(spec.indices(command.len()).map(|i| (command.at(i), access)));
    }
    Ok(keys)
}

/// What SET does with its key depends on its options.
fn real_access(entry: &Entry, access: Access, command: Args<'_>) -> Access {
    if !access.has(Access::VARIABLE_FLAGS) {
        return access;
    }
    let reads = entry.name == "set" && command.iter_from(3).any(|word| args::is(word, "GET"));
    match reads {
        true => Access::RW.and(Access::ACCESS).and(Access::UPDATE),
        false => Access::OW.and(Access::UPDATE),
    }
}

fn get_keys(call: &mut OutsideCall<'_>) -> Outcome {
    let keys = keys_of(call.args)?;
    call.reply.array(keys.len());
    keys.iter().for_each(|(key, _)| call.reply.bulk(key));
    Ok(())
}

fn get_keys_and_flags(call: &mut OutsideCall<'_>) -> Outcome {
    let keys = keys_of(call.args)?;
    call.reply.array(keys.len());
    for (key, access) in keys {
        call.reply.array(2);
        call.reply.bulk(key);
        names(&mut call.reply, access.names());
    }
    Ok(())
}
