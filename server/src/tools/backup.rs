//! `ferrite backup`: a new data directory with all that a server keeps.
//!
//! A running server takes a checkpoint first and syncs its append-only file, so everything that was
//! acknowledged before is in the backup. Files that nobody writes any more get a second name where the file
//! system can do that, which takes no space: the backup keeps them when the server lets go of its own.

use super::history::Names;
use super::history::{Base, Needed, Reach, Source, of_a_start};
use super::progress::Bar;
use super::restore::{
    Failure, Told, bring_parts, copies, names, names_from, refuse_inside, start_command, vanished,
    verify_parts,
};
use super::staging::{How, Staging};
use super::wire::{Address, Reply, Wire};
use super::{Outcome, ToolError};
use crate::aof::format_time;
use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint};
use ferrite_hybridlog::{StoredCheckpoints, StoredFile};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

/// Where to, and of what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Action {
    to: PathBuf,
    of: Of,
    copies: bool,
    verifies_all: bool,
    names: Names,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Of {
    Server(Address),
    Directory(PathBuf),
}

/// How often files may go away before they are read.
const TRIES: u32 = 5;
/// Between two tries to have a checkpoint taken, while one is.
const PAUSE: Duration = Duration::from_millis(50);

/// The command.
pub(super) fn command() -> Command {
    Command::new("backup")
        .about("Makes a new data directory with all that a server keeps, while it runs.")
        .arg(
            Arg::new("to")
                .value_name("DIR")
                .required(true)
                .value_parser(clap::value_parser!(PathBuf))
                .value_hint(ValueHint::DirPath)
                .help("A directory that is new or empty"),
        )
        .arg(
            Arg::new("host")
                .long("host")
                .value_name("HOST")
                .default_value("127.0.0.1")
                .help("Where the server listens; it must run on this machine"),
        )
        .arg(
            Arg::new("port")
                .long("port")
                .value_name("PORT")
                .default_value("6379")
                .value_parser(clap::value_parser!(u16))
                .help("Its port"),
        )
        .arg(
            Arg::new("socket")
                .long("socket")
                .value_name("PATH")
                .conflicts_with_all(["host", "port"])
                .value_parser(clap::value_parser!(PathBuf))
                .help("Its Unix socket"),
        )
        .arg(
            Arg::new("data-dir")
                .long("data-dir")
                .value_name("DIR")
                .conflicts_with_all(["host", "port", "socket"])
                .value_parser(clap::value_parser!(PathBuf))
                .value_hint(ValueHint::DirPath)
                .help("A data directory on which no server runs"),
        )
        .arg(copies())
        .arg(
            Arg::new("verify")
                .long("verify")
                .action(ArgAction::SetTrue)
                .help("Reads and verifies also what was not copied"),
        )
        .args(names())
        .after_help("A server is asked for the names of its files itself.")
}

impl Action {
    /// What `ferrite backup ...` asks for.
    pub(super) fn from_matches(matches: &ArgMatches) -> Self {
        let path = |name| matches.get_one::<PathBuf>(name).cloned();
        let of = match (path("data-dir"), path("socket")) {
            (Some(directory), _) => Of::Directory(directory),
            (None, Some(socket)) => Of::Server(Address::Unix(socket)),
            (None, None) => {
                let host = matches.get_one::<String>("host").expect("it has a default").clone();
                Of::Server(Address::Tcp(host, *matches.get_one("port").expect("a default")))
            }
        };
        Self {
            to: path("to").expect("it is required"),
            of,
            copies: matches.get_flag("copy"),
            verifies_all: matches.get_flag("verify"),
            names: names_from(matches),
        }
    }

    /// Does it.
    pub(super) fn run(
        &self,
        out: &mut dyn Write,
        errors: &mut dyn Write,
    ) -> Result<Outcome, ToolError> {
        let source = match &self.of {
            Of::Directory(directory) => stopped(directory, &self.names)?,
            Of::Server(address) => running(address, errors)?,
        };
        refuse_inside(&source.directory, &self.to)?;
        let mut tries = 0;
        loop {
            tries += 1;
            match self.stage(&source, tries == TRIES, out) {
                Ok(()) => return Ok(Outcome::Good),
                Err(Failure::Vanished(_)) if tries < TRIES => {}
                Err(Failure::Vanished(e) | Failure::Tool(e)) => return Err(e),
                Err(Failure::Damaged(why)) => {
                    return Err(ToolError::Refused(format!("{why}; there is no backup")));
                }
            }
        }
    }

    fn stage(&self, source: &Source, is_last: bool, out: &mut dyn Write) -> Result<(), Failure> {
        let checkpoints = source.checkpoints()?;
        let bases = source.bases(checkpoints.as_ref(), None)?;
        let Some(newest) = of_a_start(&bases) else {
            let directory = source.directory.display();
            return Err(Failure::Damaged(format!("there is nothing to keep in {directory}")));
        };
        let reach = reach(source, &bases, newest, is_last)?;
        let files = files(checkpoints.as_ref());
        let mut staging = Staging::begin(&self.to)?;
        let bytes = files.values().map(|f| f.bytes).chain(reach.parts.iter().map(|p| p.length));
        let bar = Bar::of(bytes.sum(), "copying");
        let mut copied = BTreeSet::new();
        if let Some(checkpoints) = &checkpoints {
            for file in files.values() {
                let links = file.is_final && !checkpoints.is_copy() && !self.copies;
                let how = if links { How::Link } else { How::Copy };
                let before = staging.copied.files;
                let brought =
                    staging.bring_checkpoint_file(&file.path, &file.name, file.bytes, how, &bar);
                brought.map_err(|e| vanished(source, &file.path, e))?;
                if staging.copied.files > before {
                    copied.insert(file.name.replace(".side.", "."));
                }
            }
            if !checkpoints.is_in_memory() {
                let manifest = checkpoints.manifest(None);
                staging.write_manifest(&checkpoints.manifest_name(), &manifest)?;
            }
        } else {
            staging.without_checkpoints()?;
        }
        bring_parts(&mut staging, source, &reach, &bar)?;
        drop(bar);
        let all = self.verifies_all;
        verify(&staging, &source.names, |name| all || copied.contains(name))?;
        verify_parts(&staging, &source.names, &reach)?;
        let told = Told::of(&staging);
        staging.finish()?;
        let command = start_command(&told.to, &source.names, checkpoints.as_ref());
        Ok(self.tell(&told, newest, &reach, &command, out).map_err(ToolError::from)?)
    }

    fn tell(
        &self,
        told: &Told,
        newest: &Base,
        reach: &Reach,
        command: &str,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let to = told.to.display();
        let parts = super::aof::counted(reach.parts.len() as u64, "part");
        writeln!(out, "{} and {parts} of the append-only file", newest.describe())?;
        writeln!(out, "{}", told.files())?;
        let until = format_time(reach.end_ms);
        match self.verifies_all || told.linked.files == 0 {
            true => {
                writeln!(out, "{to} holds the state of {until}; all of it matches its checksums")?
            }
            false => writeln!(
                out,
                "{to} holds the state of {until}; what was copied matches its checksums, and `ferrite \
                 check {to}` reads the rest"
            )?,
        }
        writeln!(out, "start it with: {command}")
    }
}

/// A data directory without a server.
fn stopped(directory: &std::path::Path, names: &Names) -> Result<Source, ToolError> {
    let source = Source::open(directory, names.clone())?;
    match &source.server {
        None => Ok(source),
        Some(process) => Err(ToolError::Refused(format!(
            "a server (process {process}) runs on {}; give its --port instead of --data-dir, so that it takes a \
             checkpoint",
            directory.display()
        ))),
    }
}

/// Has a server take a checkpoint and sync what comes after it.
fn running(address: &Address, errors: &mut dyn Write) -> Result<Source, ToolError> {
    let mut wire = Wire::connect(address)?;
    let file = wire.setting("persistence.checkpoint_file")?;
    let names = Names {
        aof_file: wire.setting("persistence.aof_file")?,
        stem: file.strip_suffix(".ckpt").unwrap_or(&file).to_owned(),
    };
    let directory = wire.field("server", "data_dir")?.unwrap_or_default();
    let process = wire.field("server", "process_id")?;
    let source = Source::open(directory.as_ref(), names).map_err(|e| elsewhere(address, &e))?;
    if source.server != process {
        let why = "another server, or none, runs on its data directory here";
        return Err(elsewhere(address, &why));
    }
    writeln!(errors, "the server at {address} takes a checkpoint")?;
    loop {
        match wire.call(&["SAVE"])? {
            Reply::Error(e) if e.contains("in progress") => std::thread::sleep(PAUSE),
            Reply::Error(e) => {
                return Err(ToolError::Refused(format!(
                    "the server at {address} cannot take a checkpoint: {e}"
                )));
            }
            _ => break,
        }
    }
    if wire.setting("persistence.aof_enabled")? == "yes" {
        wire.ask(&["AOF", "SYNC"])?;
    }
    Ok(source)
}

fn elsewhere(address: &Address, why: &dyn std::fmt::Display) -> ToolError {
    ToolError::Refused(format!(
        "the server at {address} is not one of this machine: {why}; run ferrite backup where it runs, as a user \
         that may read its files"
    ))
}

/// All files that any of the checkpoints needs, each with the most bytes.
fn files(checkpoints: Option<&StoredCheckpoints>) -> BTreeMap<String, StoredFile> {
    let mut files: BTreeMap<String, StoredFile> = BTreeMap::new();
    let all = checkpoints.map_or_else(Vec::new, StoredCheckpoints::checkpoints);
    for file in all.into_iter().flat_map(|c| c.files) {
        let kept = files.entry(file.name.clone()).or_insert_with(|| file.clone());
        kept.bytes = kept.bytes.max(file.bytes);
    }
    files
}

/// The parts: those from the oldest checkpoint on, if they lead to where the newest one's do.
fn reach(source: &Source, bases: &[Base], newest: &Base, is_last: bool) -> Result<Reach, Failure> {
    let reach = newest.reach(u64::MAX);
    if let Some(fault) = reach.fault(bases) {
        return Err(Failure::Damaged(fault.to_owned()));
    }
    if let Some(why) = newest.is_refused() {
        let why = format!("a start from {} is refused: {why}", newest.describe());
        return Err(match source.server {
            // The next checkpoints were complete before the parts were looked for.
            Some(_) => Failure::Vanished(ToolError::Refused(why)),
            None => Failure::Damaged(why),
        });
    }
    let last = |reach: &Reach| reach.parts.last().map(|p: &Needed| p.number);
    let older = bases.iter().rev().filter(|base| base.checkpoint.is_some());
    for base in older {
        let longer = base.reach(u64::MAX);
        if longer.fault(bases).is_none() && last(&longer) == last(&reach) {
            return Ok(longer);
        }
        let is_short = longer.fault(bases).is_none() && base.is_alone().is_none();
        if is_short && source.server.is_some() && !is_last {
            // The next part was begun between the two looks. In the end what goes on from the newest
            // checkpoint will do.
            let why = format!("{} and the newest one end apart", base.describe());
            return Err(Failure::Vanished(ToolError::Refused(why)));
        }
    }
    Ok(reach)
}

/// Reads those files of the checkpoints that are wanted, and compares them with their checksums.
fn verify(staging: &Staging, names: &Names, wanted: impl Fn(&str) -> bool) -> Result<(), Failure> {
    let made = StoredCheckpoints::find(staging.folder(), &names.stem);
    let damaged = |e: &ferrite_hybridlog::OpenError| Failure::Damaged(e.to_string());
    if let Some(made) = made.map_err(|e| damaged(&e))? {
        let bar = Bar::of(made.bytes(), "verifying");
        if let Some(fault) = made.faults(wanted, |bytes| bar.advance(bytes)).first() {
            return Err(damaged(fault));
        }
    }
    Ok(())
}
