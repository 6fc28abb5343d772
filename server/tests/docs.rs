//! docs/commands.md is what the rows of the commands say. `FERRITE_UPDATE_DOCS=1 cargo test -p
//! ferrite-server --test docs` writes it anew.

use ferrite_server::commands::{CommandSpec, Entry, Group, table};
use std::fmt::Write as _;
use std::path::Path;

const INTRODUCTION: &str = "\
# Commands

<!-- Written from the rows in server/src/commands by server/tests/docs.rs; edit those. -->

Replies, error texts and types, in RESP2 and RESP3, are those of redis-server 7.0.15. A command that
is not listed here answers `ERR unknown command`. *Since* is the version of Redis that brought it.
";

/// How a command differs from Redis.
struct Difference {
    /// The commands, as clients write them; empty for all.
    commands: &'static [&'static str],
    what: &'static str,
    why: &'static str,
    /// The test that pins it.
    test: &'static str,
}

const DIFFERENCES: &[Difference] = &[
    Difference {
        commands: &[],
        what: "A value that does not fit in one page of the log (4 MiB by default, less a header and \
               the key) is refused with `ERR string exceeds maximum allowed size \
               (proto-max-bulk-len)`, in a command that stores values from its header, before it is \
               buffered. Other commands (ECHO) take arguments up to `proto-max-bulk-len`, as in Redis.",
        why: "A record never crosses a page; longer strings need a chain of records, which does not \
              exist yet.",
        test: "a_value_over_the_limit_is_refused_before_it_is_made",
    },
    Difference {
        commands: &[],
        what: "A key of more than 65,535 bytes is refused with `ERR key exceeds 65535 bytes`.",
        why: "A record keeps the key's length in 16 bits.",
        test: "a_key_over_its_limit_is_refused",
    },
    Difference {
        commands: &[],
        what: "A line that begins with `#` where a command could begin is skipped, as an empty line is.",
        why: "So that a part of the append-only file, which has such annotations, can be replayed with \
              `redis-cli --pipe`.",
        test: "lines_with_a_number_sign_are_skipped_like_empty_ones",
    },
    Difference {
        commands: &["CLIENT"],
        what: "No CACHING, GETREDIR, TRACKING, TRACKINGINFO and UNBLOCK. NO-TOUCH and \
               SETINFO are there, which Redis has from 7.2 on; `lib-name` and `lib-ver` stand behind all \
               other fields in LIST and INFO. Sizes of buffers are those after the client's last turn; a \
               client that has nothing under way holds none.",
        why: "Key tracking and blocking commands do not exist yet; common clients send SETINFO whatever \
              the version; buffers are lent to those who need them.",
        test: "client_list_has_the_fields_of_redis_and_the_library_behind_them",
    },
    Difference {
        commands: &["CONFIG"],
        what: "Names of Redis for what Ferrite does not have (`slowlog-*`, `*-listpack-*`) are unknown: GET \
               finds nothing, SET is refused.",
        why: "A setting without an effect would promise one.",
        test: "names_of_what_is_not_there_are_unknown",
    },
    Difference {
        commands: &["CONFIG"],
        what: "The settings are Ferrite's (`section.key`); those of Redis's names that mean the same \
               are known too. `bind`, `port`, `dir` and others answer `can't set immutable config`.",
        why: "They need a restart; docs/operating.md says which.",
        test: "refusals_have_redis_words",
    },
    Difference {
        commands: &["CONFIG"],
        what: "`save` is empty or one pair whose second number is 1; a feature that is not there yet \
               answers `not available in this version` to all but its inert value.",
        why: "A checkpoint is taken at an interval when anything was written.",
        test: "save_is_the_interval_or_nothing",
    },
    Difference {
        commands: &["DEBUG"],
        what: "Only `SLEEP` and `HELP`, from any connection; `SLEEP` stops its own connection and no \
               other, but in a transaction, for whose end all wait.",
        why: "The others show or break the inside of Redis.",
        test: "what_an_operator_may_ask",
    },
    Difference {
        commands: &["FLUSHALL", "FLUSHDB"],
        what: "`ASYNC` and `SYNC` do the same.",
        why: "Emptying takes no longer for more keys.",
        test: "flushing_empties_one_database_or_all",
    },
    Difference {
        commands: &["INFO"],
        what: "Fields about what Ferrite does not have are missing; there is a section `storage`, and \
               `used_memory` is the anonymous and locked memory of the process; a database has no `avg_ttl`.",
        why: "A number that would always be zero helps nobody, and no allocator holds the data.",
        test: "used_memory_is_what_is_anonymous_or_locked_and_storage_has_a_section",
    },
    Difference {
        commands: &["KEYS"],
        what: "A key that is made or removed while KEYS runs may be in the reply or not.",
        why: "It works in slices and lets other clients in between, as it may have to read the names \
              of all keys from the disk.",
        test: "other_clients_are_served_while_one_walks_over_all_keys",
    },
    Difference {
        commands: &["PING", "SET"],
        what: "While checkpoints are on and the last one failed, commands that write (SET and all others) \
               and PING answer `MISCONF` as in Redis; the text says why it failed. A failed SAVE or \
               SHUTDOWN counts, not only a failed BGSAVE; `stop-writes-on-bgsave-error` is always `yes`, \
               and the next checkpoint is tried after five seconds.",
        why: "A write that no checkpoint will hold is worse than an error, whoever asked for the checkpoint.",
        test: "writes_are_refused_while_checkpoints_are_on_and_fail",
    },
    Difference {
        commands: &["MEMORY"],
        what: "Only `USAGE` and `HELP`. `USAGE` counts the bytes of the record in the log, wherever \
               it lies, and its entry in the index.",
        why: "The others speak of an allocator, which holds no data here.",
        test: "what_an_operator_may_ask",
    },
    Difference {
        commands: &["OBJECT IDLETIME", "TOUCH", "CLIENT NO-TOUCH"],
        what: "Reads never touch a key. `OBJECT IDLETIME` is the time since the part of the log that holds \
               the key's last write became read-only, and 0 before that. \
               `TOUCH` is `EXISTS`. What `CLIENT NO-TOUCH` asks for is always the case; it sets the flag \
               that CLIENT LIST shows and nothing else.",
        why: "A record has no room for the time of its last use, and a read that wrote one would dirty \
              memory on every GET; nothing is evicted by age.",
        test: "no_read_makes_a_key_young_and_the_idle_time_counts_from_the_read_only_state",
    },
    Difference {
        commands: &["SAVE"],
        what: "The other clients are served meanwhile.",
        why: "A checkpoint needs them to stand still for an instant only.",
        test: "others_are_served_while_a_save_runs",
    },
    Difference {
        commands: &["SCAN"],
        what: "Cursors and the number of keys in a reply are Ferrite's own; every key that is there \
               from the first call to the last is returned at least once, as in Redis.",
        why: "The order is that of Ferrite's index.",
        test: "scan_finds_every_key_whatever_its_options",
    },
];

const ABSENT: &str = "\
## Not there

Hashes, lists, sets, sorted sets, streams, bitmaps, HyperLogLogs, geo sets, transactions (MULTI, EXEC,
WATCH), publish and subscribe, scripts and functions, ACL, DUMP,
RESTORE, MIGRATE, SORT, SLOWLOG, LATENCY, MONITOR, WAIT, replication, cluster and modules.
";

fn document() -> String {
    let mut text = INTRODUCTION.to_string();
    let groups = [
        (Group::String, "Strings"),
        (Group::Generic, "Keys"),
        (Group::Connection, "The connection"),
        (Group::Transactions, "Transactions"),
        (Group::Server, "The server"),
    ];
    for (group, title) in groups {
        let mut rows: Vec<&Entry> = table().commands().filter(|e| e.spec.group == group).collect();
        rows.sort_by_key(|entry| &entry.name);
        text += &format!("\n## {title}\n\n");
        text += "| command | what it does | since | time |\n|---|---|---|---|\n";
        for entry in rows {
            write_row(&mut text, entry.spec, "");
            let mut subcommands = entry.subcommands.clone();
            subcommands.sort_by_key(|sub| sub.spec.name);
            for sub in subcommands {
                write_row(&mut text, sub.spec, entry.spec.name);
            }
        }
    }
    text += "\n## Where they differ from Redis\n\n| command | difference | reason | test |\n";
    text += "|---|---|---|---|\n";
    for Difference { commands, what, why, test } in DIFFERENCES {
        let names = if commands.is_empty() { "all".into() } else { commands.join(", ") };
        writeln!(text, "| {names} | {what} | {why} | `{test}` |").unwrap();
    }
    text + "\n" + ABSENT
}

fn write_row(text: &mut String, spec: &CommandSpec, container: &str) {
    let CommandSpec { name, summary, since, complexity, .. } = spec;
    let name = format!("{container} {name}");
    writeln!(text, "| {} | {summary} | {since} | {complexity} |", name.trim()).unwrap();
}

#[test]
fn docs_commands_md_is_what_the_rows_print() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/commands.md");
    let wanted = document();
    if std::env::var_os("FERRITE_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let first = found.lines().zip(wanted.lines()).position(|(a, b)| a != b);
    assert!(
        found == wanted,
        "docs/commands.md differs from the rows (first in line {}); write it anew with \
         FERRITE_UPDATE_DOCS=1 cargo test -p ferrite-server --test docs",
        first.unwrap_or(found.lines().count().min(wanted.lines().count())) + 1
    );
}

#[test]
fn every_difference_names_commands_and_a_test_that_exist() {
    let sources = sources(Path::new(env!("CARGO_MANIFEST_DIR")));
    for Difference { commands, test, .. } in DIFFERENCES {
        for command in *commands {
            let name = command.replace(' ', "|");
            assert!(table().find_full(name.as_bytes()).is_some(), "{command} is no command");
        }
        assert!(sources.contains(&format!("fn {test}(")), "there is no test {test}");
    }
}

/// The text of all Rust files below a directory.
fn sources(directory: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text += &sources(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text += &std::fs::read_to_string(&path).unwrap();
        }
    }
    text
}
