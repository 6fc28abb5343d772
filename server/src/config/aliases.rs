//! Redis's names for settings that mean the same here, for CONFIG GET and CONFIG SET.
//!
//! A name of Redis that means something else in Ferrite is not in this list.

use super::table::{self, ROWS, RowIndex};
use super::value::Value;
use super::values::Values;

/// A name of Redis.
#[derive(Debug)]
pub struct Alias {
    /// Redis's name.
    pub name: &'static str,
    /// How it is read and set.
    pub form: Form,
}

/// How a name of Redis is read and set.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    /// The row of this name; flags are yes and no, durations whole seconds.
    Row(&'static str),
    /// The row of this name, a directory: read as an absolute path.
    Directory(&'static str),
    /// `save`: `300 1`, or empty.
    Save,
    /// Words of Redis for words of the row.
    Words(&'static str, &'static [(&'static str, &'static str)]),
    /// `client-output-buffer-limit`: the limit of the class `normal`.
    OutputLimit,
    /// What Ferrite does not have: always this value.
    Fixed(&'static str),
}

/// Every name of Redis that CONFIG knows.
#[rustfmt::skip]
pub const ALIASES: &[Alias] = &[
    Alias { name: "appendfilename", form: Form::Row("persistence.aof_file") },
    Alias { name: "appendfsync", form: Form::Row("persistence.aof_sync") },
    Alias { name: "appendonly", form: Form::Row("persistence.aof_enabled") },
    Alias { name: "auto-aof-rewrite-min-size", form: Form::Row("persistence.aof_rewrite_min_size") },
    Alias { name: "auto-aof-rewrite-percentage", form: Form::Row("persistence.aof_rewrite_percentage") },
    Alias { name: "bind", form: Form::Row("server.bind") },
    Alias { name: "client-output-buffer-limit", form: Form::OutputLimit },
    Alias { name: "client-query-buffer-limit", form: Form::Row("server.max_query_buffer") },
    Alias { name: "databases", form: Form::Row("storage.databases") },
    Alias { name: "dbfilename", form: Form::Row("persistence.checkpoint_file") },
    Alias { name: "dir", form: Form::Directory("storage.data_dir") },
    Alias { name: "logfile", form: Form::Row("logging.file") },
    Alias { name: "loglevel", form: Form::Words("logging.level", LOG_LEVELS) },
    Alias { name: "maxclients", form: Form::Row("server.max_connections") },
    Alias { name: "maxmemory", form: Form::Row("storage.memory_max") },
    Alias { name: "maxmemory-policy", form: Form::Words("storage.eviction", POLICIES) },
    Alias { name: "notify-keyspace-events", form: Form::Fixed("") },
    Alias { name: "port", form: Form::Row("server.port") },
    Alias { name: "proto-max-bulk-len", form: Form::Row("server.max_bulk_size") },
    Alias { name: "rdbcompression", form: Form::Row("persistence.checkpoint_compression") },
    Alias { name: "save", form: Form::Save },
    Alias { name: "stop-writes-on-bgsave-error", form: Form::Fixed("yes") },
    Alias { name: "tcp-keepalive", form: Form::Row("server.tcp_keepalive") },
    Alias { name: "timeout", form: Form::Row("server.timeout") },
    Alias { name: "unixsocket", form: Form::Row("server.unix_socket") },
];

const LOG_LEVELS: &[(&str, &str)] = &[
    ("debug", "trace"),
    ("verbose", "debug"),
    ("notice", "info"),
    ("warning", "warn"),
    ("warning", "error"),
];
const POLICIES: &[(&str, &str)] = &[("noeviction", "none"), ("allkeys-lru", "oldest")];

const ENABLED: &str = "persistence.checkpoint_enabled";
const INTERVAL: &str = "persistence.checkpoint_interval";
const OUTPUT: &str = "server.max_output_buffer";

/// What the other two classes of `client-output-buffer-limit` are: there are no such clients.
const OTHER_CLASSES: &str = "slave 0 0 0 pubsub 0 0 0";

impl Alias {
    /// The value in Redis's form.
    pub fn get(&self, values: &Values) -> String {
        match self.form {
            Form::Row(name) => in_redis_form(values.named(name)),
            Form::Directory(name) => {
                let path = values.named(name).to_config_get();
                // The process stays in the directory that it was started in.
                std::path::absolute(&path).map_or(path, |p| p.display().to_string())
            }
            Form::Save => match (values.named(ENABLED), values.named(INTERVAL)) {
                (Value::Flag(true), interval) => format!("{} 1", in_redis_form(interval)),
                _ => String::new(),
            },
            Form::Words(name, words) => {
                let ours = values.named(name).to_config_get();
                words.iter().find(|w| w.1 == ours).map_or(ours, |w| w.0.to_owned())
            }
            Form::OutputLimit => {
                format!("normal {} 0 0 {OTHER_CLASSES}", in_redis_form(values.named(OUTPUT)))
            }
            Form::Fixed(text) => text.to_owned(),
        }
    }

    /// The rows that setting this name changes, with their new values; or Redis's error text.
    pub fn parse(&self, text: &str) -> Result<Vec<(RowIndex, Value)>, String> {
        match self.form {
            Form::Row(name) | Form::Directory(name) => one(name, text),
            Form::Save => parse_save(text),
            Form::Words(name, words) => {
                match words.iter().find(|w| w.0.eq_ignore_ascii_case(text)) {
                    Some(w) => one(name, w.1),
                    None => Err(one_of(words)),
                }
            }
            Form::OutputLimit => parse_output_limit(text),
            Form::Fixed(only) if text == only => Ok(Vec::new()),
            Form::Fixed(_) => Err(super::value::NOT_AVAILABLE.into()),
        }
    }

    /// The rows that this name reads, for "can't set immutable config".
    pub fn rows(&self) -> Vec<RowIndex> {
        let names: &[&str] = match &self.form {
            Form::Row(name) | Form::Directory(name) | Form::Words(name, _) => &[name],
            Form::Save => &[ENABLED, INTERVAL],
            Form::OutputLimit => &[OUTPUT],
            Form::Fixed(_) => &[],
        };
        names.iter().filter_map(|name| table::find(name)).collect()
    }
}

fn one(name: &str, text: &str) -> Result<Vec<(RowIndex, Value)>, String> {
    let row = table::find(name).expect("aliases name rows: a test looks");
    ROWS[row.0].parse(text).map(|value| vec![(row, value)]).map_err(|e| e.redis)
}

fn in_redis_form(value: &Value) -> String {
    match value {
        Value::Flag(true) => "yes".into(),
        Value::Flag(false) => "no".into(),
        Value::Duration(ms) => ms.div_ceil(1000).to_string(),
        other => other.to_config_get(),
    }
}

fn one_of(words: &[(&str, &str)]) -> String {
    let mut names: Vec<_> = words.iter().map(|w| w.0).collect();
    names.dedup();
    format!("argument(s) must be one of the following: {}", names.join(", "))
}

/// Empty turns checkpoints off; `300 1` is an interval in which at least one key was written.
fn parse_save(text: &str) -> Result<Vec<(RowIndex, Value)>, String> {
    let invalid = || "Invalid save parameters".to_owned();
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    match words[..] {
        [] => one(ENABLED, "no"),
        [seconds, changes] => {
            let number = |text: &str| text.parse::<u64>().ok().filter(|n| *n > 0);
            number(seconds).ok_or_else(invalid)?;
            if number(changes).ok_or_else(invalid)? != 1 {
                return Err("Ferrite counts one change as enough: the second number is 1".into());
            }
            let mut rows = one(ENABLED, "yes")?;
            rows.extend(one(INTERVAL, seconds).map_err(|_| invalid())?);
            Ok(rows)
        }
        _ if words.len().is_multiple_of(2) && words.iter().all(|w| w.parse::<u64>().is_ok()) => {
            Err("Ferrite takes one pair: seconds and 1".into())
        }
        _ => Err(invalid()),
    }
}

/// `normal <hard> <soft> <seconds>`, and other classes that must have no limit.
fn parse_output_limit(text: &str) -> Result<Vec<(RowIndex, Value)>, String> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    if words.is_empty() || !words.len().is_multiple_of(4) {
        return Err("Wrong number of arguments in buffer limit configuration.".into());
    }
    let mut rows = Vec::new();
    for class in words.chunks_exact(4) {
        let name = class[0].to_ascii_lowercase();
        if !["normal", "slave", "replica", "pubsub"].contains(&name.as_str()) {
            return Err("Invalid client class specified in buffer limit configuration.".into());
        }
        let wrong = "Error in hard, soft or soft_seconds setting in buffer limit configuration.";
        let size = |text| super::value::parse_size(text).ok_or_else(|| wrong.to_owned());
        let (hard, soft, seconds) = (size(class[1])?, size(class[2])?, size(class[3])?);
        if name != "normal" {
            continue;
        }
        if soft != 0 || seconds != 0 {
            return Err("soft limits are not available in this version".into());
        }
        rows = one(OUTPUT, &hard.to_string())?;
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alias(name: &str) -> &'static Alias {
        ALIASES.iter().find(|a| a.name == name).expect(name)
    }

    #[test]
    fn every_alias_reads_a_row_and_takes_what_it_prints() {
        let values = Values::defaults();
        for alias in ALIASES {
            let printed = alias.get(&values);
            assert!(
                matches!(alias.form, Form::Fixed(_)) || !alias.rows().is_empty(),
                "{}",
                alias.name
            );
            for (row, value) in alias.parse(&printed).expect(alias.name) {
                let same = values.get(row) == &value || matches!(alias.form, Form::Directory(_));
                assert!(same, "{}: {value:?}", alias.name);
            }
        }
        assert!(ALIASES.is_sorted_by_key(|a| a.name));
    }

    #[test]
    fn values_print_as_redis_prints_them() {
        let values = Values::defaults();
        for (name, printed) in [
            ("save", "300 1"),
            ("appendonly", "yes"),
            ("appendfsync", "everysec"),
            ("maxmemory-policy", "noeviction"),
            ("loglevel", "notice"),
            ("auto-aof-rewrite-min-size", "67108864"),
            ("tcp-keepalive", "300"),
            ("rdbcompression", "yes"),
            ("stop-writes-on-bgsave-error", "yes"),
        ] {
            assert_eq!(alias(name).get(&values), printed, "{name}");
        }
    }

    #[test]
    fn dir_is_absolute() {
        let here = std::env::current_dir().expect("there is one");
        let printed = alias("dir").get(&Values::defaults());
        assert_eq!(printed, here.join("data").display().to_string());
    }

    #[test]
    fn save_is_the_interval_or_nothing() {
        let named = |rows: Vec<(RowIndex, Value)>| {
            rows.into_iter().map(|(r, v)| (ROWS[r.0].key(), v)).collect::<Vec<_>>()
        };
        assert_eq!(
            named(parse_save("60 1").expect("a pair")),
            [
                ("checkpoint_enabled", Value::Flag(true)),
                ("checkpoint_interval", Value::Duration(60_000))
            ]
        );
        assert_eq!(
            named(parse_save("").expect("off")),
            [("checkpoint_enabled", Value::Flag(false))]
        );
        for text in ["300", "300 x", "0 1", "a b", "1 1 1"] {
            assert_eq!(parse_save(text), Err("Invalid save parameters".into()), "{text}");
        }
        for text in ["60 100", "3600 1 300 100"] {
            assert!(parse_save(text).expect_err(text).starts_with("Ferrite"), "{text}");
        }
    }
}
