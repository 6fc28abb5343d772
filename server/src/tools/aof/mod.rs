//! `ferrite aof check|cat|stat|truncate`: the append-only file, offline.
//!
//! A path is a data directory or one part. What is told of a part never begins with the words that
//! the server's log has for a cut or a refusal: a tool has done neither.

mod cat;
mod check;
mod stat;
mod truncate;

pub(super) use check::counted;

use super::{Outcome, ToolError};
use crate::aof::{Known, Part, PartReader, Parts, ReadError, aside, parse_time, part};
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command, ValueHint};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What is to be done with which files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Action {
    path: PathBuf,
    aof_file: String,
    what: What,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Check,
    Cat { from_ms: u64, until_ms: u64, raw: bool },
    Stat,
    Truncate(truncate::To),
}

/// The commands.
pub(super) fn command() -> Command {
    let tool = |name: &'static str, about: &'static str| {
        Command::new(name).about(about).arg(path()).arg(aof_file())
    };
    Command::new("aof")
        .about("Looks into the append-only file, verifies it, cuts it short; without a server.")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            tool("check", "Verifies every block and the chain of parts.")
                .after_help("Exit status: 0 whole, 1 damaged or parts missing, 3 a torn tail."),
        )
        .subcommand(
            tool("cat", "Prints the commands, one a line: offset, time, database, command.")
                .arg(time("from", "Only from this time on"))
                .arg(time("until", "Only up to this time"))
                .arg(
                    Arg::new("raw")
                        .long("raw")
                        .action(ArgAction::SetTrue)
                        .help("As RESP, for redis-cli --pipe"),
                ),
        )
        .subcommand(tool("stat", "Counts blocks, commands, bytes and times."))
        .subcommand(
            tool("truncate", "Cuts off the end; what is cut off is kept in a file beside it.")
                .arg(
                    Arg::new("to-offset")
                        .long("to-offset")
                        .value_name("OFFSET")
                        .value_parser(clap::value_parser!(u64))
                        .help("Keeps the whole blocks before this offset of the part PATH"),
                )
                .arg(time("to-time", "Keeps what was written up to this time"))
                .group(ArgGroup::new("to").args(["to-offset", "to-time"]).required(true))
                .after_help(TIMES),
        )
}

pub(super) const TIMES: &str = "TIME is RFC 3339 (2026-11-22T17:05:25.123Z, UTC without a zone), or Unix \
                     seconds or milliseconds.";

fn path() -> Arg {
    Arg::new("path")
        .value_name("PATH")
        .default_value("./data")
        .value_parser(clap::value_parser!(PathBuf))
        .value_hint(ValueHint::AnyPath)
        .help("A data directory, or one part of the append-only file")
}

pub(super) fn aof_file() -> Arg {
    let name = |text: &str| match text.ends_with(".aof") && !text.contains('/') {
        true => Ok(text.to_owned()),
        false => Err("a file name that ends in .aof".to_owned()),
    };
    Arg::new("aof-file")
        .long("aof-file")
        .value_name("NAME")
        .default_value("appendonly.aof")
        .value_parser(name)
        .help("What persistence.aof_file is, when PATH is a directory")
}

fn time(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name("TIME").value_parser(parse_time).help(help)
}

impl Action {
    /// What `ferrite aof ...` asks for.
    pub(super) fn from_matches(matches: &ArgMatches) -> Self {
        let (name, matches) = matches.subcommand().expect("one is required");
        let time = |name| matches.get_one::<u64>(name).copied();
        let what = match name {
            "check" => What::Check,
            "cat" => What::Cat {
                from_ms: time("from").unwrap_or(0),
                until_ms: time("until").unwrap_or(u64::MAX),
                raw: matches.get_flag("raw"),
            },
            "stat" => What::Stat,
            "truncate" => What::Truncate(match time("to-offset") {
                Some(offset) => truncate::To::Offset(offset),
                None => truncate::To::Time(time("to-time").expect("one of them is required")),
            }),
            _ => unreachable!("{name} is not among the commands"),
        };
        let path = matches.get_one::<PathBuf>("path").expect("it has a default").clone();
        let aof_file = matches.get_one::<String>("aof-file").expect("it has a default").clone();
        Self { path, aof_file, what }
    }

    /// Does it; results go to `out`, warnings and what is wrong with the files to `errors`.
    pub(super) fn run(
        &self,
        out: &mut dyn Write,
        errors: &mut dyn Write,
    ) -> Result<Outcome, ToolError> {
        let files = Selected::find(&self.path, &self.aof_file)?;
        match self.what {
            What::Check => check::run(&files, out, errors),
            What::Cat { from_ms, until_ms, raw } => {
                cat::run(&files, from_ms..=until_ms, raw, out, errors)
            }
            What::Stat => stat::run(&files, out, errors),
            What::Truncate(to) => truncate::run(&files, to, out),
        }
    }
}

/// `ferrite aof check DIR`, for who checks more than that.
pub(super) fn check_directory(
    directory: &Path,
    aof_file: &str,
    out: &mut dyn Write,
    errors: &mut dyn Write,
) -> Result<Outcome, ToolError> {
    check::run(&Selected::find(directory, aof_file)?, out, errors)
}

/// The parts that a path means.
struct Selected {
    /// All parts in the directory.
    parts: Parts,
    aof_file: String,
    /// The one that the path names; `None` when it is the directory.
    only: Option<u64>,
}

impl Selected {
    fn find(path: &Path, aof_file: &str) -> Result<Self, ToolError> {
        let io = |source| ToolError::Io { action: "read", path: path.to_owned(), source };
        if path.metadata().map_err(io)?.is_dir() {
            let parts = find(path, aof_file)?;
            if parts.is_empty() {
                let path = path.display();
                return Err(ToolError::Refused(format!(
                    "there is no {aof_file} and no part of it in {path}; name another directory or \
                     another --aof-file"
                )));
            }
            return Ok(Self { parts, aof_file: aof_file.to_owned(), only: None });
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let family = family(&name).ok_or_else(|| {
            ToolError::Refused(format!(
                "{} is no part by its name, which ends in .aof; copy it to its name first",
                path.display()
            ))
        })?;
        let reader = open(path, Known::default()).map_err(read_failed)?;
        let only = Some(reader.header().number);
        let parts = find(aside::directory_of(path), &family)?;
        Ok(Self { parts, aof_file: family, only })
    }

    /// The parts that are meant, in order.
    fn each(&self) -> impl Iterator<Item = &Part> {
        let only = self.only;
        self.parts.parts().values().filter(move |p| only.is_none_or(|n| n == p.header.number))
    }
}

fn find(directory: &Path, aof_file: &str) -> Result<Parts, ToolError> {
    Parts::find(directory, aof_file).map_err(|e| ToolError::Refused(e.to_string()))
}

/// The name of the append-only file that a file of this name is a part of, or is.
fn family(name: &str) -> Option<String> {
    let stem = name.strip_suffix(".aof")?;
    let parent = stem.rsplit_once('.').map(|(stem, _)| format!("{stem}.aof"));
    let numbered = parent.filter(|parent| part::number_of(parent, name.as_ref()).is_some());
    Some(numbered.unwrap_or_else(|| name.to_owned()))
}

pub(super) fn open(path: &Path, known: Known) -> Result<PartReader<File>, ReadError> {
    let file =
        File::open(path).map_err(|source| ReadError::Io { path: path.to_owned(), source })?;
    PartReader::open(file, path, known)
}

/// What reading says, without the words of a start.
fn read_failed(error: ReadError) -> ToolError {
    ToolError::Refused(told(&error))
}

/// What reading says, without the words of a start.
pub(super) fn told(error: &ReadError) -> String {
    match error {
        ReadError::Damaged(damage) => format!("{}: {}", damage.path.display(), damage.details()),
        ReadError::Unbegun(torn) => format!("{}: {}", torn.path.display(), torn.details()),
        other => other.to_string().replacen("AOF: refused ", "", 1),
    }
}

#[cfg(test)]
mod tests;
