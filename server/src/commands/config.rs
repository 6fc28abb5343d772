//! CONFIG GET, SET, RESETSTAT, REWRITE and HELP.

use super::args::Args;
use super::{CommandSpec, Flags, Group, OutsideCall, Run, help};
use crate::config::{Config, apply_limits};
use crate::error::{self, ErrorReply, Outcome};
use crate::glob;
use crate::totals::Totals;

const SUBCOMMAND: CommandSpec = CommandSpec {
    flags: Flags::ADMIN.and(Flags::NO_SCRIPT).and(Flags::LOADING).and(Flags::STALE),
    group: Group::Server,
    ..CommandSpec::BASE
};

pub(super) const COMMANDS: &[CommandSpec] = &[CommandSpec {
    name: "CONFIG",
    arity: -2,
    since: "2.0.0",
    group: Group::Server,
    complexity: "Depends on subcommand.",
    summary: "Reads and changes settings.",
    run: Run::Container,
    subcommands: &[
        CommandSpec {
            name: "GET",
            arity: -3,
            since: "2.0.0",
            complexity: "O(N) with N settings",
            summary: "Returns the settings whose names match the patterns.",
            run: Run::Outside(get),
            ..SUBCOMMAND
        },
        CommandSpec {
            name: "SET",
            arity: -4,
            tips: &["request_policy:all_nodes", "response_policy:all_succeeded"],
            since: "2.0.0",
            complexity: "O(N) with N settings given",
            summary: "Changes settings of the running server, all or none.",
            run: Run::Outside(set),
            ..SUBCOMMAND
        },
        CommandSpec {
            name: "RESETSTAT",
            arity: 2,
            since: "2.0.0",
            complexity: "O(1)",
            summary: "Lets INFO count from zero.",
            run: Run::Outside(reset_stat),
            ..SUBCOMMAND
        },
        CommandSpec {
            name: "REWRITE",
            arity: 2,
            since: "2.8.0",
            complexity: "O(1)",
            summary: "Writes the settings that are in force into the configuration file.",
            run: Run::Outside(rewrite),
            ..SUBCOMMAND
        },
        CommandSpec {
            name: "HELP",
            arity: 2,
            flags: Flags::LOADING.and(Flags::STALE),
            since: "5.0.0",
            complexity: "O(1)",
            summary: "Tells what CONFIG can do.",
            run: Run::Outside(print_help),
            ..SUBCOMMAND
        },
    ],
    ..CommandSpec::BASE
}];

fn get(call: &mut OutsideCall<'_>) -> Outcome {
    let settings = matching(call, call.args.skip(2));
    call.reply.map(settings.len());
    for (name, value) in settings {
        call.reply.bulk(&name);
        call.reply.bulk(value.as_bytes());
    }
    Ok(())
}

/// Settings that any of the patterns matches, each once. One that is asked for by its very name is
/// called as it was asked for, in any case.
fn matching(call: &OutsideCall<'_>, patterns: Args<'_>) -> Vec<(Vec<u8>, String)> {
    let pattern_of = |name: &str| {
        let name = name.as_bytes();
        patterns.iter_from(0).find(|p| glob::matches_ignoring_case(p, name))
    };
    let settings = call.context.config.get(|name| pattern_of(name).is_some());
    let named = |name: &'static str| {
        let same = |p: &&[u8]| p.eq_ignore_ascii_case(name.as_bytes());
        patterns.iter_from(0).find(same).unwrap_or(name.as_bytes()).to_vec()
    };
    settings.into_iter().map(|(name, value)| (named(name), value)).collect()
}

fn set(call: &mut OutsideCall<'_>) -> Outcome {
    let words = call.args.skip(2);
    if !words.len().is_multiple_of(2) {
        return Err(error::wrong_arity("config|set").into());
    }
    let mut pairs = Vec::with_capacity(words.len() / 2);
    for i in (0..words.len()).step_by(2) {
        let text = |word| String::from_utf8_lossy(word).into_owned();
        pairs.push((text(words.at(i)), text(words.at(i + 1))));
    }
    let pairs: Vec<_> = pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let apply = |config: &Config| apply_limits(config, &call.context.limits);
    call.context.config.set_and(&pairs, apply).map_err(|e| error_reply(&e))?;
    call.reply.ok();
    Ok(())
}

fn reset_stat(call: &mut OutsideCall<'_>) -> Outcome {
    Totals::reset(call.context);
    call.reply.ok();
    Ok(())
}

fn rewrite(call: &mut OutsideCall<'_>) -> Outcome {
    // It syncs a file: not on the worker's thread.
    call.defer(|context, reply| {
        context.config.rewrite().map_err(|e| error_reply(&e))?;
        tracing::info!("the configuration file was rewritten");
        reply.ok();
        Ok(())
    })
}

fn print_help(call: &mut OutsideCall<'_>) -> Outcome {
    let lines = [
        "GET <pattern>",
        "    Return parameters matching the glob-like <pattern> and their values.",
        "SET <directive> <value>",
        "    Set the configuration <directive> to <value>.",
        "RESETSTAT",
        "    Reset statistics reported by the INFO command.",
        "REWRITE",
        "    Rewrite the configuration file.",
    ];
    help(&mut call.reply, "CONFIG", &lines);
    Ok(())
}

fn error_reply(error: &dyn std::fmt::Display) -> ErrorReply {
    ErrorReply::owned(error.to_string())
}

#[cfg(test)]
mod tests {
    use crate::commands::testing::Bench;
    use crate::resp::Protocol;

    #[test]
    fn get_knows_patterns_and_both_names() {
        let mut bench = Bench::new();
        assert_eq!(bench.text("config get save"), "*2\r\n$4\r\nsave\r\n$5\r\n300 1\r\n");
        assert_eq!(bench.text("CONFIG GET AppendOnly"), "*2\r\n$10\r\nAppendOnly\r\n$3\r\nyes\r\n");
        assert_eq!(bench.text("config get nosuch"), "*0\r\n");
        let several = bench.text("config get server.time* TIMEOUT timeou?");
        assert_eq!(
            several,
            "*4\r\n$14\r\nserver.timeout\r\n$1\r\n0\r\n$7\r\nTIMEOUT\r\n$1\r\n0\r\n"
        );
        assert!(bench.text("config get *").starts_with("*1"));
        bench.client.protocol = Protocol::Resp3;
        assert_eq!(bench.text("config get save"), "%1\r\n$4\r\nsave\r\n$5\r\n300 1\r\n");
        let cluster = "# Cluster\r\ncluster_enabled:0\r\n";
        assert_eq!(bench.text("info cluster"), format!("=34\r\ntxt:{cluster}\r\n"));
    }

    #[test]
    fn set_takes_effect_or_says_why_not() {
        let mut bench = Bench::new();
        assert_eq!(bench.text("config set maxclients 7 timeout 3"), "+OK\r\n");
        assert_eq!(bench.context.limits.max_connections.get(), 7);
        assert_eq!(bench.context.limits.idle_timeout_s.get(), 3);
        for (line, reply) in [
            ("config set maxclients", "ERR wrong number of arguments for 'config|set' command"),
            ("config set a b c", "ERR wrong number of arguments for 'config|set' command"),
            ("config set a b", "ERR Unknown option or number of arguments for CONFIG SET - 'a'"),
            (
                "config set timeout 9 maxclients 0",
                "ERR CONFIG SET failed (possibly related to argument 'maxclients') - argument \
                 must be between 1 and 4294967295 inclusive",
            ),
            ("config rewrite", "ERR The server is running without a config file"),
            ("config foo", "ERR unknown subcommand 'foo'. Try CONFIG HELP."),
            ("config get", "ERR wrong number of arguments for 'config|get' command"),
        ] {
            assert_eq!(bench.text(line), format!("-{reply}\r\n"), "{line}");
        }
        assert_eq!(bench.context.limits.idle_timeout_s.get(), 3);
    }

    #[test]
    fn names_of_what_is_not_there_are_unknown() {
        let mut bench = Bench::new();
        for name in [
            "slowlog-log-slower-than",
            "slowlog-max-len",
            "hash-max-listpack-entries",
            "zset-max-listpack-value",
            "list-max-listpack-size",
            "set-max-intset-entries",
            "latency-monitor-threshold",
            "replicaof",
        ] {
            assert_eq!(bench.text(&format!("config get {name}")), "*0\r\n", "{name}");
            let refused =
                format!("-ERR Unknown option or number of arguments for CONFIG SET - '{name}'\r\n");
            assert_eq!(bench.text(&format!("config set {name} 1")), refused);
        }
    }

    #[test]
    fn resetstat_lets_info_count_from_zero() {
        let mut bench = Bench::new();
        bench.context.workers[0].commands.add(5);
        assert!(bench.text("info stats").contains("total_commands_processed:5\r\n"));
        assert_eq!(bench.text("config resetstat"), "+OK\r\n");
        assert!(bench.text("info stats").contains("total_commands_processed:0\r\n"));
    }
}
