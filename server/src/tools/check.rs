//! `ferrite check`: everything in a data directory against its checksums, without a server.
//!
//! The manifest; every image, segment and side file that one of its checkpoints needs, records decoded; every
//! block of every part of the append-only file; and whether that goes on from the newest checkpoint. Nothing is
//! changed. Each fault is one line: the file, the offset, what mends it.

use super::aof::{self, counted};
use super::history::{Base, LOOKS, Names, Source, of_a_start};
use super::progress::Bar;
use super::restore::{names, names_from};
use super::{Outcome, ToolError};
use crate::aof::format_time;
use crate::start::StartError;
use clap::{Arg, ArgMatches, Command, ValueHint};
use ferrite_hybridlog::{OpenError, StoredCheckpoints};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;

/// What is to be checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Action {
    directory: PathBuf,
    names: Names,
}

/// The command.
pub(super) fn command() -> Command {
    Command::new("check")
        .about("Verifies checkpoints and append-only file against their checksums.")
        .arg(
            Arg::new("directory")
                .value_name("DIR")
                .default_value("./data")
                .value_parser(clap::value_parser!(PathBuf))
                .value_hint(ValueHint::DirPath)
                .help("A data directory, or a copy of one"),
        )
        .args(names())
        .after_help("Exit status: 0 whole, 1 damaged or something missing, 3 a torn tail only.")
}

impl Action {
    /// What `ferrite check ...` asks for.
    pub(super) fn from_matches(matches: &ArgMatches) -> Self {
        let directory = matches.get_one::<PathBuf>("directory").expect("it has a default");
        Self { directory: directory.clone(), names: names_from(matches) }
    }

    /// Does it.
    pub(super) fn run(
        &self,
        out: &mut dyn Write,
        errors: &mut dyn Write,
    ) -> Result<Outcome, ToolError> {
        let source = Source::open(&self.directory, self.names.clone())?;
        if let Some(process) = &source.server {
            writeln!(
                errors,
                "a server (process {process}) runs on {}: the append-only file may seem torn where it writes",
                self.directory.display()
            )?;
        }
        let (checkpoints, mut bad) = match self.checkpoints(&source, out, errors)? {
            Some((checkpoints, bad)) => (checkpoints, bad),
            None => (None, 1),
        };
        let parts = source.parts();
        let has_parts = match &parts {
            Ok(parts) => !parts.is_empty(),
            Err(e) => {
                bad += 1;
                writeln!(errors, "{e}")?;
                false
            }
        };
        if checkpoints.is_none() && !has_parts && bad == 0 {
            let Names { aof_file, stem } = &self.names;
            return Err(ToolError::Refused(format!(
                "there is neither a checkpoint ({stem}.ckpt) nor a part of {aof_file} in {}; name another \
                 directory, or the files with --checkpoint-file and --aof-file",
                self.directory.display()
            )));
        }
        bad += self.history(&source, checkpoints.as_ref(), out, errors)?;
        let mut torn = 0;
        if has_parts {
            match self.parts(&source, out, errors)? {
                Outcome::Good => {}
                Outcome::Bad => bad += 1,
                Outcome::Torn => torn += 1,
            }
            bad += u64::from(!self.goes_on(&source, checkpoints.as_ref(), errors)?);
        }
        let directory = self.directory.display();
        let (outcome, text) = match (bad, torn) {
            (0, 0) => (Outcome::Good, "all of it matches its checksums"),
            (0, _) => (Outcome::Torn, "whole but for a torn tail, which a start cuts off"),
            _ => (Outcome::Bad, "not whole: standard error says what is wrong and what mends it"),
        };
        writeln!(out, "{directory}: {text}")?;
        Ok(outcome)
    }

    /// The append-only file.
    fn parts(
        &self,
        source: &Source,
        out: &mut dyn Write,
        errors: &mut dyn Write,
    ) -> Result<Outcome, ToolError> {
        for attempt in 1.. {
            let (mut told, mut wrong) = (Vec::new(), Vec::new());
            let aof_file = &self.names.aof_file;
            let outcome = aof::check_directory(&self.directory, aof_file, &mut told, &mut wrong)?;
            // Under a running server parts may have been looked at too early, or gone meanwhile.
            if outcome != Outcome::Bad || source.server.is_none() || attempt == LOOKS {
                out.write_all(&told)?;
                errors.write_all(&wrong)?;
                return Ok(outcome);
            }
        }
        unreachable!("the last look returns")
    }

    /// The checkpoints and how much is wrong with them; `None` when they cannot be read at all.
    fn checkpoints(
        &self,
        source: &Source,
        out: &mut dyn Write,
        errors: &mut dyn Write,
    ) -> Result<Option<(Option<StoredCheckpoints>, u64)>, ToolError> {
        let find = || StoredCheckpoints::find(&self.directory, &self.names.stem);
        let mut faults = Vec::new();
        // A running server takes files away once another manifest is there: that one is read then.
        for attempt in 0..5 {
            let found = match find() {
                Ok(found) => found,
                Err(e) => {
                    writeln!(errors, "{}", told(e))?;
                    return Ok(None);
                }
            };
            let Some(checkpoints) = found else { return Ok(Some((None, 0))) };
            let manifest = checkpoints.manifest(None);
            let bar = Bar::of(checkpoints.bytes(), "reading");
            faults = checkpoints.faults(|_| true, |bytes| bar.advance(bytes));
            drop(bar);
            let again = find().ok().flatten().is_some_and(|now| now.manifest(None) != manifest);
            if faults.is_empty() || source.server.is_none() || !again || attempt == 4 {
                let bad = faults.len() as u64;
                self.tell(&checkpoints, out)?;
                for fault in faults {
                    writeln!(errors, "{}", told(fault))?;
                }
                return Ok(Some((Some(checkpoints), bad)));
            }
        }
        debug_assert!(!faults.is_empty());
        Ok(None)
    }

    /// The checkpoints that are kept for history: how much is wrong with them.
    fn history(
        &self,
        source: &Source,
        current: Option<&StoredCheckpoints>,
        out: &mut dyn Write,
        errors: &mut dyn Write,
    ) -> Result<u64, ToolError> {
        let mut bad = 0;
        for (folder, found) in source.saved(current)? {
            let told = match found {
                Ok(found) => {
                    let bar = Bar::of(found.bytes(), "reading");
                    let faults = found.faults(|_| true, |bytes| bar.advance(bytes));
                    drop(bar);
                    self.tell(&found, out)?;
                    faults.into_iter().map(told).collect()
                }
                Err(why) => vec![why],
            };
            // A running server may have let go of it meanwhile.
            if source.server.is_some() && !folder.exists() {
                continue;
            }
            bad += told.len() as u64;
            told.iter().try_for_each(|fault| writeln!(errors, "{fault}"))?;
        }
        Ok(bad)
    }

    fn tell(&self, checkpoints: &StoredCheckpoints, out: &mut dyn Write) -> Result<(), ToolError> {
        let all = checkpoints.checkpoints();
        writeln!(
            out,
            "{}: {}",
            checkpoints.manifest_path().display(),
            counted(all.len() as u64, "checkpoint")
        )?;
        for checkpoint in &all {
            writeln!(
                out,
                "checkpoint {} of {}: {}, {} bytes of the log in {}",
                checkpoint.number,
                format_time(checkpoint.taken_at_ms),
                counted(checkpoint.keys, "key"),
                checkpoint.log_bytes,
                counted(checkpoint.files.len() as u64, "file")
            )?;
        }
        let files: BTreeSet<_> = all.iter().flat_map(|c| &c.files).map(|f| &f.name).collect();
        let (files, bytes) = (counted(files.len() as u64, "file"), checkpoints.bytes());
        writeln!(out, "{files} of checkpoints with {bytes} bytes read")?;
        Ok(())
    }

    /// Whether the append-only file goes on from what a start would load.
    fn goes_on(
        &self,
        source: &Source,
        checkpoints: Option<&StoredCheckpoints>,
        errors: &mut dyn Write,
    ) -> Result<bool, ToolError> {
        let bases = source.bases(checkpoints, None)?;
        let newest = of_a_start(&bases);
        let why = match newest {
            Some(base) => base.is_alone(),
            None => Some("there is no checkpoint, and the parts do not begin with an empty store"),
        };
        if let Some(why) = why {
            let from =
                newest.map_or_else(String::new, |base| format!("{}: ", Base::describe(base)));
            writeln!(
                errors,
                "{from}{why}; put the part (or the folder `checkpoints`) that is missing back from a backup: a start \
                 without it has the checkpoint only, or refuses"
            )?;
        }
        Ok(why.is_none())
    }
}

/// As a start would say it.
fn told(fault: OpenError) -> String {
    match fault {
        OpenError::DamagedImage { path, offset, found } => {
            StartError::Image { path, offset, found }.to_string()
        }
        other => other.to_string(),
    }
}
