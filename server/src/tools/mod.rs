//! The tools in the binary: `ferrite TOOL ...` works on files, without a server.
//!
//! Results go to standard output, what went wrong to standard error. Exit status: 0 when all is
//! well, 1 when something is wrong with the files or could not be done, 2 for a mistake in the
//! arguments, 3 when only a torn tail was found, which a start cuts off by itself.

pub mod aof;
pub mod backup;
pub mod check;
pub mod doctor;
mod history;
pub mod init;
mod progress;
pub mod restore;
mod staging;
mod wire;

pub(crate) use staging::Staging;

use clap::{ArgMatches, Command};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// What is to be done instead of serving.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Tool {
    /// `ferrite aof ...`
    Aof(aof::Action),
    /// `ferrite backup ...`
    Backup(backup::Action),
    /// `ferrite check ...`
    Check(check::Action),
    /// `ferrite doctor ...`
    Doctor(doctor::Action),
    /// `ferrite init ...`
    Init(init::Action),
    /// `ferrite restore ...`
    Restore(restore::Action),
}

/// How a tool ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// All is well.
    Good,
    /// Something is wrong with the files; it has been told.
    Bad,
    /// A tail is torn and nothing else is wrong.
    Torn,
}

/// Why a tool could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolError {
    /// The system refuses something.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The result cannot be told.
    #[error("cannot write the result: {0}")]
    Output(#[from] io::Error),
    /// The request does not fit the files: why, and what does.
    #[error("{0}")]
    Refused(String),
}

impl Tool {
    /// The commands of all tools, for the command line.
    pub fn commands() -> impl IntoIterator<Item = Command> {
        [
            aof::command(),
            backup::command(),
            check::command(),
            doctor::command(),
            init::command(),
            restore::command(),
        ]
    }

    /// The tool that a command line asks for, if it asks for one.
    pub fn from_matches(matches: &ArgMatches) -> Option<Self> {
        match matches.subcommand()? {
            ("aof", matches) => Some(Self::Aof(aof::Action::from_matches(matches))),
            ("backup", matches) => Some(Self::Backup(backup::Action::from_matches(matches))),
            ("check", matches) => Some(Self::Check(check::Action::from_matches(matches))),
            ("doctor", matches) => Some(Self::Doctor(doctor::Action::from_matches(matches))),
            ("init", matches) => Some(Self::Init(init::Action::from_matches(matches))),
            ("restore", matches) => Some(Self::Restore(restore::Action::from_matches(matches))),
            (name, _) => unreachable!("{name} is not among the commands"),
        }
    }

    /// Does it, and tells on standard output and standard error.
    pub fn run(&self) -> ExitCode {
        let mut out = io::BufWriter::new(io::stdout().lock());
        let mut errors = io::stderr().lock();
        let result = match self {
            Self::Aof(action) => action.run(&mut out, &mut errors),
            Self::Backup(action) => action.run(&mut out, &mut errors),
            Self::Check(action) => action.run(&mut out, &mut errors),
            Self::Doctor(action) => action.run(&mut out),
            Self::Init(action) => action.run(&mut out),
            Self::Restore(action) => action.run(&mut out, &mut errors),
        };
        let result = result.and_then(|outcome| Ok(out.flush().map(|()| outcome)?));
        match result {
            Ok(Outcome::Good) => ExitCode::SUCCESS,
            Ok(Outcome::Bad) => ExitCode::FAILURE,
            Ok(Outcome::Torn) => ExitCode::from(3),
            // Whoever reads has seen enough (`| head`).
            Err(ToolError::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Err(e) => {
                // Nobody can be told if this fails, too.
                let _ = writeln!(errors, "ferrite: {e}");
                ExitCode::FAILURE
            }
        }
    }
}
