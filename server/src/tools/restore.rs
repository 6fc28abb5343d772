//! `ferrite restore`: a new data directory with the state of an instant.
//!
//! The newest checkpoint at or before the instant that can be used, then the append-only file up to
//! it. The source is read and never changed; the new directory appears under its name once all that is in it
//! is on the disk and was compared with its checksums.

use super::history::{Base, Names, Reach, Source, range};
use super::progress::Bar;
use super::staging::{Count, How, Staging};
use super::{Outcome, ToolError};
use crate::aof::{Parts, format_time, parse_time, part};
use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint};
use ferrite_hybridlog::StoredCheckpoints;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// From where, to where, and which instant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Action {
    from: PathBuf,
    to: PathBuf,
    time_ms: Option<u64>,
    copies: bool,
    names: Names,
}

/// How often a running server may take files away before they are read.
const TRIES: u32 = 5;

/// The command.
pub(super) fn command() -> Command {
    let folder = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("DIR")
            .required(true)
            .value_parser(clap::value_parser!(PathBuf))
            .value_hint(ValueHint::DirPath)
            .help(help)
    };
    Command::new("restore")
        .about("Makes a new data directory with the state of an instant.")
        .arg(folder("from", "A data directory, or a copy of one; it is only read"))
        .arg(folder("to", "A directory that is new or empty"))
        .arg(
            Arg::new("time")
                .long("time")
                .value_name("TIME")
                .value_parser(parse_time)
                .help("What was written up to this time is kept [default: all that is there]"),
        )
        .arg(copies())
        .args(names())
        .after_help(super::aof::TIMES)
}

/// `--copy`
pub(super) fn copies() -> Arg {
    Arg::new("copy")
        .long("copy")
        .action(ArgAction::SetTrue)
        .help("Copies every file, also those that nobody writes any more")
}

/// `--aof-file` and `--checkpoint-file`
pub(super) fn names() -> [Arg; 2] {
    let name = |text: &str| match text.ends_with(".ckpt") && !text.contains('/') {
        true => Ok(text.to_owned()),
        false => Err("a file name that ends in .ckpt".to_owned()),
    };
    let checkpoint_file = Arg::new("checkpoint-file")
        .long("checkpoint-file")
        .value_name("NAME")
        .default_value("ferrite.ckpt")
        .value_parser(name)
        .help("What persistence.checkpoint_file is");
    [super::aof::aof_file(), checkpoint_file]
}

/// What `--aof-file` and `--checkpoint-file` say.
pub(super) fn names_from(matches: &ArgMatches) -> Names {
    let name = |name| matches.get_one::<String>(name).expect("it has a default").clone();
    let checkpoint_file = name("checkpoint-file");
    let stem = checkpoint_file.strip_suffix(".ckpt").expect("the parser looked").to_owned();
    Names { aof_file: name("aof-file"), stem }
}

/// Why one try did not do.
pub(super) enum Failure {
    /// These files are no good: another checkpoint may be.
    Damaged(String),
    /// A running server took a file away meanwhile: read again.
    Vanished(ToolError),
    /// It would not do at another try either.
    Tool(ToolError),
}

impl From<ToolError> for Failure {
    fn from(error: ToolError) -> Self {
        Self::Tool(error)
    }
}

impl Action {
    /// What `ferrite restore ...` asks for.
    pub(super) fn from_matches(matches: &ArgMatches) -> Self {
        let path = |name| matches.get_one::<PathBuf>(name).expect("it is required").clone();
        Self {
            from: path("from"),
            to: path("to"),
            time_ms: matches.get_one::<u64>("time").copied(),
            copies: matches.get_flag("copy"),
            names: names_from(matches),
        }
    }

    /// Does it.
    pub(super) fn run(
        &self,
        out: &mut dyn Write,
        errors: &mut dyn Write,
    ) -> Result<Outcome, ToolError> {
        let source = Source::open(&self.from, self.names.clone())?;
        refuse_inside(&self.from, &self.to)?;
        if let Some(note) = source.note() {
            writeln!(errors, "{note}")?;
        }
        let mut tries = 0;
        loop {
            tries += 1;
            match self.try_all(&source, out, errors) {
                Ok(()) => return Ok(Outcome::Good),
                Err(Failure::Vanished(_)) if source.server.is_some() && tries < TRIES => {}
                Err(Failure::Vanished(e) | Failure::Tool(e)) => return Err(e),
                Err(Failure::Damaged(why)) => return Err(ToolError::Refused(why)),
            }
        }
    }

    /// Tries the checkpoints that come into question, the newest first.
    fn try_all(
        &self,
        source: &Source,
        out: &mut dyn Write,
        errors: &mut dyn Write,
    ) -> Result<(), Failure> {
        let checkpoints = source.checkpoints()?;
        let mut bases = source.bases(checkpoints.as_ref(), self.time_ms)?;
        if self.time_ms.is_some() {
            bases.extend(source.past(checkpoints.as_ref())?);
            bases.sort_by_key(|base| std::cmp::Reverse(base.at_ms));
        }
        if bases.is_empty() {
            return Err(Failure::Damaged(nothing(source)?));
        }
        let until_ms = self.time_ms.unwrap_or(u64::MAX);
        let mut reasons = Vec::new();
        for base in bases.iter().filter(|base| base.at_ms <= until_ms) {
            let reach = base.reach(until_ms);
            if let Err(why) = self.suits(source, &bases, base, &reach)? {
                reasons.push(why);
                continue;
            }
            let checkpoints = base.past.as_deref().or(checkpoints.as_ref());
            match self.stage(source, checkpoints, base, &reach) {
                Ok(staging) => return self.tell(&staging.told, base, &reach, checkpoints, out),
                Err(Failure::Damaged(why)) => {
                    writeln!(errors, "{}: {why}; an older one is tried", base.describe())
                        .map_err(ToolError::from)?;
                    reasons.push(why);
                }
                Err(other) => return Err(other),
            }
        }
        let from = self.from.display();
        let kept = range(&bases);
        let mut text = match self.time_ms {
            Some(time_ms) => {
                format!("{} is not among the times that {from} keeps: {kept}", format_time(time_ms))
            }
            None => format!("not all that is in {from} can be restored"),
        };
        for reason in reasons {
            text.push_str(&format!("; {reason}"));
        }
        if self.time_ms.is_none() {
            text.push_str(&format!("; with --time one of these can be restored: {kept}"));
        }
        Err(Failure::Damaged(text))
    }

    /// Whether a base gives what is asked for; the inner error says why not.
    fn suits(
        &self,
        source: &Source,
        bases: &[Base],
        base: &Base,
        reach: &Reach,
    ) -> Result<Result<(), String>, Failure> {
        let Some(time_ms) = self.time_ms else {
            return match (reach.fault(bases), base.is_refused()) {
                (Some(fault), _) => Ok(Err(fault.to_owned())),
                // A part that begins after the checkpoint, but not at it: two checkpoints were
                // taken since the manifest was read, or the file has a gap there.
                (None, Some(why)) if source.server.is_some() => {
                    Err(Failure::Vanished(ToolError::Refused(why.to_owned())))
                }
                (None, Some(why)) => Ok(Err(why.to_owned())),
                (None, None) => Ok(Ok(())),
            };
        };
        if reach.is_beyond || reach.end_ms >= time_ms {
            return Ok(Ok(()));
        }
        let why = reach.stop.as_deref().or(base.is_alone());
        Ok(Err(format!(
            "{}{}",
            base.describe(),
            match why {
                Some(why) => format!(" reaches up to {}: {why}", format_time(reach.end_ms)),
                None => format!(" reaches up to {}", format_time(reach.end_ms)),
            }
        )))
    }

    /// Makes the directory and verifies it.
    fn stage(
        &self,
        source: &Source,
        checkpoints: Option<&StoredCheckpoints>,
        base: &Base,
        reach: &Reach,
    ) -> Result<Staged, Failure> {
        let mut staging = Staging::begin(&self.to)?;
        let files = base.checkpoint.as_ref().map_or(&[][..], |c| &c.files);
        let parts: u64 = reach.parts.iter().map(|p| p.length).sum();
        let bar = Bar::of(files.iter().map(|f| f.bytes).sum::<u64>() + parts, "copying");
        if let (Some(checkpoints), Some(checkpoint)) = (checkpoints, &base.checkpoint) {
            for file in files {
                // Whoever made a flat copy may copy over it again, into the same files.
                let links = file.is_final && !checkpoints.is_copy() && !self.copies;
                let how = if links { How::Link } else { How::Copy };
                // Of a store in memory the one before the newest has another name until now.
                let name = match checkpoints.is_in_memory() {
                    true => &checkpoints.manifest_name(),
                    false => &file.name,
                };
                let brought =
                    staging.bring_checkpoint_file(&file.path, name, file.bytes, how, &bar);
                brought.map_err(|e| vanished(source, &file.path, e))?;
            }
            if checkpoints.is_in_memory() {
                staging.holds(checkpoints, checkpoint).map_err(|e| match source.server {
                    Some(_) => Failure::Vanished(e),
                    None => Failure::Damaged(e.to_string()),
                })?;
            } else {
                let manifest = checkpoints.manifest(Some(checkpoint.number));
                staging.write_manifest(&checkpoints.manifest_name(), &manifest)?;
            }
        } else {
            staging.without_checkpoints()?;
        }
        bring_parts(&mut staging, source, reach, &bar)?;
        drop(bar);
        verify(&staging, &self.names, reach)?;
        let told = Told::of(&staging);
        staging.finish()?;
        Ok(Staged { told })
    }

    /// What was done, and how to go on.
    fn tell(
        &self,
        told: &Told,
        base: &Base,
        reach: &Reach,
        checkpoints: Option<&StoredCheckpoints>,
        out: &mut dyn Write,
    ) -> Result<(), Failure> {
        let state = self.time_ms.unwrap_or(reach.end_ms);
        let parts = super::aof::counted(reach.parts.len() as u64, "part");
        let text = || {
            writeln!(out, "from {} and {parts} of the append-only file", base.describe())?;
            if let Some(torn) = &reach.torn {
                writeln!(out, "what was not completely written is left out: {torn}")?;
            }
            writeln!(out, "{}", told.files())?;
            writeln!(
                out,
                "{} holds the state of {}; all of it matches its checksums",
                told.to.display(),
                format_time(state)
            )?;
            let command = start_command(&told.to, &self.names, checkpoints);
            writeln!(out, "start it with: {command}")
        };
        let told: io::Result<()> = { text }();
        Ok(told.map_err(ToolError::from)?)
    }
}

struct Staged {
    told: Told,
}

/// What was made.
pub(super) struct Told {
    pub to: PathBuf,
    pub copied: Count,
    pub linked: Count,
}

impl Told {
    /// Of a directory that is made.
    pub fn of(staging: &Staging) -> Self {
        Self { to: staging.to().to_owned(), copied: staging.copied, linked: staging.linked }
    }
    /// What was copied and what was not.
    pub fn files(&self) -> String {
        let count = |count: Count| {
            let files = super::aof::counted(count.files, "file");
            format!("{files} with {} bytes", count.bytes)
        };
        match self.linked.files {
            0 => format!("{} copied", count(self.copied)),
            _ => format!(
                "{} copied, {} got a second name (nobody writes them any more)",
                count(self.copied),
                count(self.linked)
            ),
        }
    }
}

/// How a server is started on a directory that was made.
pub(super) fn start_command(
    to: &Path,
    names: &Names,
    checkpoints: Option<&StoredCheckpoints>,
) -> String {
    let mut command = format!("ferrite --data-dir {}", to.display());
    let mut set = |name: &str, value: String| {
        command.push_str(&format!(" --set {name}={value}"));
    };
    if names.aof_file != "appendonly.aof" {
        set("persistence.aof_file", names.aof_file.clone());
    }
    if names.stem != "ferrite" {
        set("persistence.checkpoint_file", format!("{}.ckpt", names.stem));
    }
    if let Some(checkpoints) = checkpoints {
        if checkpoints.is_in_memory() {
            set("storage.backend", "memory".into());
        }
        // The sizes are fixed when a store is made.
        if checkpoints.page_size() != 4 << 20 {
            set("storage.hybridlog_page_size", checkpoints.page_size().to_string());
        }
        let segments_as_usual = match checkpoints.is_in_memory() {
            true => checkpoints.segment_size() == 4 * checkpoints.page_size(),
            false => checkpoints.segment_size() == 256 << 20,
        };
        if !segments_as_usual {
            set("storage.hybridlog_segment_size", checkpoints.segment_size().to_string());
        }
    }
    command
}

/// Copies the parts and names the newest one.
pub(super) fn bring_parts(
    staging: &mut Staging,
    source: &Source,
    reach: &Reach,
    bar: &Bar,
) -> Result<(), Failure> {
    let aof_file = &source.names.aof_file;
    for needed in &reach.parts {
        let name = part::file_name(aof_file, needed.number);
        let brought = staging.bring_part(&needed.path, &name, needed.length, bar);
        brought.map_err(|e| vanished(source, &needed.path, e))?;
    }
    if let Some(last) = reach.parts.last() {
        staging.name_newest_part(&part::file_name(aof_file, last.number), aof_file)?;
    }
    Ok(())
}

/// Reads all that was made, and compares it with its checksums and with what was found in the source.
fn verify(staging: &Staging, names: &Names, reach: &Reach) -> Result<(), Failure> {
    let folder = staging.folder();
    let damaged = |e: &dyn std::fmt::Display| Failure::Damaged(e.to_string());
    if let Some(made) = StoredCheckpoints::find(folder, &names.stem).map_err(|e| damaged(&e))? {
        let bar = Bar::of(made.bytes(), "verifying");
        if let Some(fault) = made.faults(|_| true, |bytes| bar.advance(bytes)).first() {
            return Err(damaged(fault));
        }
    }
    verify_parts(staging, names, reach)
}

/// Reads the parts that were made, which must be whole up to where those of the source are.
pub(super) fn verify_parts(staging: &Staging, names: &Names, reach: &Reach) -> Result<(), Failure> {
    let folder = staging.folder();
    let damaged = |e: &dyn std::fmt::Display| Failure::Damaged(e.to_string());
    let parts = Parts::find(folder, &names.aof_file).map_err(|e| damaged(&e))?;
    for needed in &reach.parts {
        let number = needed.number;
        let path = folder.join(part::file_name(&names.aof_file, number));
        let mut reader = super::aof::open(&path, parts.known(number)).map_err(|e| damaged(&e))?;
        if reader.header().number != number {
            // A server gave its name to the next part.
            let path = needed.path.display();
            return Err(damaged(&format!("{path} was another part when it was copied")));
        }
        while reader.next_block().map_err(|e| damaged(&e))?.is_some() {}
        if reader.offset() != needed.length {
            let (found, wanted) = (reader.offset(), needed.length);
            let path = path.display();
            return Err(damaged(&format!("{path} is whole up to {found}, not up to {wanted}")));
        }
    }
    Ok(())
}

/// A file that is gone may have been taken away by a server.
pub(super) fn vanished(source: &Source, path: &Path, error: ToolError) -> Failure {
    let gone = !path.exists();
    match error {
        error if gone && source.server.is_some() => Failure::Vanished(error),
        ToolError::Io { path: of, source: e, .. }
            if of == path
                && matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) =>
        {
            Failure::Damaged(format!("{}: {e}", path.display()))
        }
        error => Failure::Tool(error),
    }
}

/// What is said of a directory in which nothing can be had.
fn nothing(source: &Source) -> Result<String, ToolError> {
    let directory = source.directory.display();
    let Names { aof_file, stem } = &source.names;
    let parts = source.parts()?;
    if parts.is_empty() {
        return Ok(format!(
            "there is neither a checkpoint ({stem}.ckpt) nor a part of {aof_file} in {directory}; name \
             another directory, or the files with --checkpoint-file and --aof-file"
        ));
    }
    let why = parts.chain(crate::aof::Origin::Empty).err().map_or(String::new(), |e| e.to_string());
    let why = why.replacen("AOF: refused ", "", 1);
    Ok(format!("there is no checkpoint in {directory}, and {why}"))
}

/// The new directory must not lie in the one that is not to be touched.
pub(super) fn refuse_inside(from: &Path, to: &Path) -> Result<(), ToolError> {
    if let (Ok(from), Ok(to)) = (resolved(from), resolved(to))
        && to.starts_with(&from)
    {
        return Err(ToolError::Refused(format!(
            "{} lies in {}, which is only read; name a directory elsewhere",
            to.display(),
            from.display()
        )));
    }
    Ok(())
}

/// The place that a path leads to, of which the last folders need not be there yet.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let there = path.ancestors().find_map(|there| Some((there, there.canonicalize().ok()?)));
    let (there, place) = there.ok_or(io::ErrorKind::NotFound)?;
    Ok(place.join(path.strip_prefix(there).expect("one of its ancestors")))
}
