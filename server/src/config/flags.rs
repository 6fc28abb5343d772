//! The command line: a few named flags, and `--set section.key=value` for every setting.

use super::error::ConfigError;
use super::values::{Source, Values};
use crate::tools::Tool;
use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint};
use std::ffi::OsString;
use std::path::PathBuf;

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Action {
    /// Serve.
    #[default]
    Run,
    /// Say whether the configuration is good.
    TestConfig,
    /// Print the configuration.
    DumpConfig,
}

/// A parsed command line.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    /// What is to be done.
    pub action: Action,
    /// What is to be done instead, on files and without a configuration.
    pub tool: Option<Tool>,
    /// `--config`.
    pub config: Option<PathBuf>,
    /// `--rebuild-index`: for this one start, so it is no setting.
    pub rebuild_index: bool,
    /// Settings in the order in which they count: flag, name, value.
    settings: Vec<(String, String, String)>,
}

/// The named flags: flag, setting, value's name, help.
const NAMED: [(&str, &str, &str, &str); 5] = [
    ("port", "server.port", "PORT", "TCP port to listen on [default: 6379]"),
    ("bind", "server.bind", "ADDRESSES", "Addresses to listen on [default: 127.0.0.1]"),
    ("data-dir", "storage.data_dir", "DIR", "Directory of all data [default: ./data]"),
    ("databases", "storage.databases", "N", "Number of logical databases [default: 16]"),
    ("log-level", "logging.level", "LEVEL", "error, warn, info, debug or trace [default: info]"),
];

impl Arguments {
    /// Parses a command line, the program's name first. `--help` and `--version` are answered
    /// with an error that says so; its `exit` prints it and ends the process.
    pub fn parse(
        arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Self, clap::Error> {
        let matches = command().try_get_matches_from(arguments)?;
        let mut settings = Vec::new();
        for (flag, name, ..) in NAMED {
            if let Some(value) = matches.get_one::<String>(flag) {
                settings.push((format!("--{flag}"), name.to_owned(), value.clone()));
            }
        }
        for text in matches.get_many::<String>("set").unwrap_or_default() {
            let (name, value) = text.split_once('=').expect("the parser looked for the sign");
            settings.push(("--set".into(), name.trim().to_owned(), value.to_owned()));
        }
        let config = matches.get_one::<PathBuf>("config").cloned();
        let rebuild_index = matches.get_flag("rebuild-index");
        let tool = Tool::from_matches(&matches);
        Ok(Self { action: action(&matches), tool, config, rebuild_index, settings })
    }

    /// Sets what the flags say; of two that set one thing, the later counts, `--set` last.
    pub(super) fn read_into(&self, values: &mut Values, errors: &mut Vec<ConfigError>) {
        for (flag, name, value) in &self.settings {
            if let Err(e) = values.set_text(name, value, Source::Flag(flag.clone())) {
                errors.push(e);
            }
        }
    }
}

fn action(matches: &ArgMatches) -> Action {
    match (matches.get_flag("test-config"), matches.get_flag("dump-config")) {
        (true, _) => Action::TestConfig,
        (false, true) => Action::DumpConfig,
        (false, false) => Action::Run,
    }
}

fn command() -> Command {
    let named = NAMED.map(|(flag, _, value, help)| {
        Arg::new(flag)
            .long(flag)
            .value_name(value)
            .help(help)
            .allow_hyphen_values(true)
            .overrides_with(flag)
    });
    Command::new("ferrite")
        .subcommands(Tool::commands())
        .args_conflicts_with_subcommands(true)
        .subcommand_value_name("TOOL")
        .subcommand_help_heading("Tools")
        .disable_help_subcommand(true)
        .version(env!("CARGO_PKG_VERSION"))
        .about("A tiered key-value store that speaks RESP, the Redis protocol.")
        .after_help(
            "Settings come from ferrite.toml, then FERRITE_SECTION_KEY in the environment, then \
             flags.\n--dump-config lists every one of them.",
        )
        .arg(
            Arg::new("config")
                .long("config")
                .short('c')
                .overrides_with("config")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .value_hint(ValueHint::FilePath)
                .help("Configuration file [default: ./ferrite.toml, when it exists]"),
        )
        .args(named)
        .arg(
            Arg::new("set")
                .long("set")
                .value_name("SECTION.KEY=VALUE")
                .action(ArgAction::Append)
                .value_parser(assignment)
                .help("Sets any setting; may stand several times"),
        )
        .arg(
            Arg::new("rebuild-index").long("rebuild-index").action(ArgAction::SetTrue).help(
                "Rebuilds a damaged index from the log, once, and saves it with a checkpoint",
            ),
        )
        .arg(
            Arg::new("test-config")
                .long("test-config")
                .action(ArgAction::SetTrue)
                .help("Says whether the configuration is good, and exits"),
        )
        .arg(
            Arg::new("dump-config")
                .long("dump-config")
                .action(ArgAction::SetTrue)
                .conflicts_with("test-config")
                .help("Prints the configuration as a ferrite.toml, and exits"),
        )
}

fn assignment(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.trim().is_empty() => Ok(text.to_owned()),
        _ => Err("write it as section.key=value".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Value;

    fn read(arguments: &[&str]) -> (Values, Vec<String>) {
        let all = std::iter::once("ferrite").chain(arguments.iter().copied());
        let (mut values, mut errors) = (Values::defaults(), Vec::new());
        Arguments::parse(all).expect("parses").read_into(&mut values, &mut errors);
        (values, errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_command_is_sound() {
        command().debug_assert();
        for (_, name, ..) in NAMED {
            assert!(crate::config::table::find(name).is_some(), "{name}");
        }
    }

    #[test]
    fn flags_set_their_rows_and_set_counts_last() {
        let (values, errors) =
            read(&["--set", "server.port=3", "--port", "1", "--set=storage.data_dir=a=b"]);
        assert_eq!(errors, Vec::<String>::new());
        assert_eq!(values.named("server.port"), &Value::Integer(3));
        assert_eq!(values.named("storage.data_dir"), &Value::Text("a=b".into()));
    }

    #[test]
    fn of_two_flags_the_later_counts() {
        let (values, errors) = read(&["--port", "1", "--port", "2", "--set=a.b=1", "--set=a.b=2"]);
        assert_eq!(values.named("server.port"), &Value::Integer(2));
        assert_eq!(errors.len(), 2, "--set may stand several times: {errors:?}");
        let arguments = Arguments::parse(["ferrite", "-c", "a.toml", "--config", "b.toml"]);
        assert_eq!(arguments.expect("good").config, Some("b.toml".into()));
    }

    #[test]
    fn a_bad_flag_is_told_with_its_name() {
        let (_, errors) = read(&["--port", "-1", "--set", "x.y=1"]);
        assert_eq!(
            errors[0],
            "--port: server.port = \"-1\" does not work: must be a whole number from 0 to 65535"
        );
        assert_eq!(errors[1], "--set: unknown setting 'x.y'; --dump-config lists every setting");
        assert!(Arguments::parse(["ferrite", "--set", "port"]).is_err());
        assert!(Arguments::parse(["ferrite", "--prot", "1"]).is_err());
    }
}
