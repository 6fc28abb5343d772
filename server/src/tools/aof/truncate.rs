//! `ferrite aof truncate`: keeps what was written up to an offset or a time.
//!
//! What is cut off is kept as `quarantine/PART.cut-OFFSET`, and on disk before the part is any
//! shorter. Parts behind the one that is cut go aside whole, since nothing leads to them any more.
//! No server may run on the directory.

use super::{Outcome, Selected, ToolError, open, read_failed};
use crate::aof::{End, Files as _, Known, LocalFiles, Part, aside, format_time};
use std::fs::{File, TryLockError};
use std::io::Write;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// What is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum To {
    /// The whole blocks before this offset of the part.
    Offset(u64),
    /// All blocks up to this time, Unix milliseconds.
    Time(u64),
}

/// Where the cut is to be.
struct Cut {
    offset: u64,
    /// The time of the last block that stays.
    time_ms: u64,
}

/// Cuts.
pub(super) fn run(files: &Selected, to: To, out: &mut dyn Write) -> Result<Outcome, ToolError> {
    let _lock = lock(files.parts.directory())?;
    let part = match to {
        To::Offset(_) if files.only.is_none() => {
            return Err(ToolError::Refused(
                "an offset counts from the beginning of one part: name its file, or use --to-time"
                    .into(),
            ));
        }
        To::Time(time_ms) if files.only.is_none() => part_at(files, time_ms)?,
        _ => files.each().next().expect("the part of the file that was opened"),
    };
    let cut = find(part, to, files.parts.known(part.header.number))?;
    let later: Vec<&Part> =
        files.parts.parts().range(part.header.number + 1..).map(|(_, later)| later).collect();
    let path = part.path.display();
    if later.is_empty() && cut.offset == part.length {
        writeln!(out, "{path}: nothing is cut off, it ends there ({})", format_time(cut.time_ms))?;
        return Ok(Outcome::Good);
    }
    relink(files, part, &later, out)?;
    for later in later.iter().rev() {
        for copy in &later.copies {
            if copy.exists() && !is_alias(files, copy) {
                let aside = aside::set_aside(copy).map_err(failed("set aside", copy))?;
                writeln!(out, "{}: set aside as {}", copy.display(), aside.display())?;
            }
        }
    }
    for copy in distinct(&part.copies) {
        let length = copy.metadata().map_err(failed("read", copy))?.len();
        if length > cut.offset {
            let aside = aside::cut_tail(copy, cut.offset).map_err(failed("cut", copy))?;
            writeln!(
                out,
                "{}: ends at offset {} ({}) now; {} bytes are kept in {}",
                copy.display(),
                cut.offset,
                format_time(cut.time_ms),
                length - cut.offset,
                aside.display()
            )?;
        }
    }
    Ok(Outcome::Good)
}

/// The newest part that was begun by then.
fn part_at(files: &Selected, time_ms: u64) -> Result<&Part, ToolError> {
    let begun = |part: &&Part| part.header.time_ms <= time_ms;
    let newest = files.parts.parts().values().rev().find(begun);
    newest.ok_or_else(|| {
        let first = files.parts.parts().values().next().map_or(0, |part| part.header.time_ms);
        ToolError::Refused(format!(
            "the append-only file begins at {}, after {}",
            format_time(first),
            format_time(time_ms)
        ))
    })
}

/// The end of the last block that stays.
fn find(part: &Part, to: To, known: Known) -> Result<Cut, ToolError> {
    let path = part.path.display();
    let mut reader = open(&part.path, known).map_err(read_failed)?;
    let mut cut = Cut { offset: reader.offset(), time_ms: reader.time_ms() };
    // Some of a base is no state that ever was.
    let first = reader.header().base().map_or(cut.offset, |base| base.length);
    match to {
        To::Offset(offset) if offset < first || offset > part.length => {
            return Err(ToolError::Refused(format!(
                "{path}: offset {offset} is outside its blocks, which lie from {first} to {}",
                part.length
            )));
        }
        To::Time(time_ms) if time_ms < cut.time_ms => {
            return Err(ToolError::Refused(format!(
                "{path} begins at {}, after {}: cut the part before, or give the directory",
                format_time(cut.time_ms),
                format_time(time_ms)
            )));
        }
        _ => {}
    }
    while to != To::Offset(cut.offset)
        && let Some(block) = reader.next_block().map_err(read_failed)?
    {
        let beyond = match to {
            To::Offset(offset) => reader.offset() > offset,
            To::Time(time_ms) => block.time_ms > time_ms,
        };
        if beyond {
            return Ok(cut);
        }
        cut = Cut { offset: reader.offset(), time_ms: block.time_ms };
    }
    // What the part before the end has beyond its blocks is cut off with the rest.
    debug_assert!(matches!(reader.end(), None | Some(End::Whole(_) | End::Torn(_))));
    Ok(cut)
}

/// Makes `aof_file` a name of `part`, if it is one of a later part. It always leads somewhere.
fn relink(
    files: &Selected,
    part: &Part,
    later: &[&Part],
    out: &mut dyn Write,
) -> Result<(), ToolError> {
    let alias = files.parts.directory().join(&files.aof_file);
    let Some(holder) = later.iter().find(|later| later.copies.contains(&alias)) else {
        return Ok(());
    };
    let others: Vec<_> = holder.copies.iter().filter(|copy| **copy != alias).collect();
    let target = part.copies.iter().find(|copy| **copy != alias).unwrap_or(&part.path);
    if others.iter().any(|other| same_file(other, &alias)) {
        LocalFiles.replace_link(target, &alias).map_err(failed("link", &alias))?;
    } else {
        let aside = aside::set_aside(&alias).map_err(failed("set aside", &alias))?;
        writeln!(out, "{}: set aside as {}", alias.display(), aside.display())?;
        LocalFiles.replace_link(target, &alias).map_err(failed("link", &alias))?;
    }
    let directory = files.parts.directory();
    LocalFiles.sync_directory(directory).map_err(failed("sync", directory))?;
    writeln!(out, "{}: leads to {} now", alias.display(), target.display())?;
    Ok(())
}

fn is_alias(files: &Selected, path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == files.aof_file.as_str())
}

/// One name of each file.
fn distinct(paths: &[PathBuf]) -> Vec<&PathBuf> {
    let mut distinct: Vec<&PathBuf> = Vec::new();
    for path in paths {
        if !distinct.iter().any(|other| same_file(other, path)) {
            distinct.push(path);
        }
    }
    distinct
}

fn same_file(one: &Path, other: &Path) -> bool {
    match (one.metadata(), other.metadata()) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

/// Holds the data directory, so that no server starts on it meanwhile. Without a lock file no server
/// has ever run there.
fn lock(directory: &Path) -> Result<Option<File>, ToolError> {
    let path = directory.join("ferrite.lock");
    let file = match File::options().read(true).write(true).open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("open", &path)(e)),
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(ToolError::Refused(format!(
            "a server runs on {}; stop it first",
            directory.display()
        ))),
        Err(TryLockError::Error(e)) => Err(failed("lock", &path)(e)),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ToolError {
    let path = path.to_owned();
    move |source| ToolError::Io { action, path, source }
}
