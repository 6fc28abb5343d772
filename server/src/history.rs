//! History: what `ferrite restore --time` needs to go back by `persistence.aof_retention`.
//!
//! ```text
//!   appendonly.000012.aof ...   the parts from the oldest anchor on
//!   history/41/                 an anchor: second names of the files of checkpoint 41, and a manifest
//!   history/47/                 of it alone
//! ```
//!
//! Each anchor looks like a data directory. It costs what the server would have removed meanwhile: an image of
//! the index, and segments whose records have been replaced. The base of a rewrite, and the first part of
//! all, are anchors, too. `aof/retention.rs` says which of them stay.
//!
//! History never keeps the server from writing: on a disk that is nearly full it goes, and begins
//! again when there is room. What is lost with it is the past, not the data.

use crate::aof::retention::{Anchor, kept, wants_anchor};
use crate::aof::{Origin, Parts, Start, aside, format_time};
use crate::config::Config;
use crate::context::{Context, unix_ms};
use crate::journal::Journal;
use crate::tools::{Staging, ToolError};
use ferrite_hybridlog::{StoredCheckpoint, StoredCheckpoints};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The folder of anchors in a data directory.
pub const FOLDER: &str = "history";
/// All is looked at this often at the least, when nothing happens that has it looked at.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Bytes that stay free beside what the log may need: more than the append-only file's own reserve.
const RESERVE: u64 = 32 << 20;

/// What INFO and the metrics tell.
#[derive(Debug, Default)]
pub struct Told {
    since_ms: AtomicU64,
    bytes: AtomicU64,
}

impl Told {
    /// The oldest instant that history goes back to, in Unix milliseconds; 0 when there is none.
    pub fn since_ms(&self) -> u64 {
        self.since_ms.load(Relaxed)
    }
    /// Bytes that history alone takes on the disk.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
    fn set(&self, since_ms: u64, bytes: u64) {
        self.since_ms.store(since_ms, Relaxed);
        self.bytes.store(bytes, Relaxed);
    }
}

/// Keeps the history of one server. One thread has it.
#[derive(Debug, Default)]
pub struct Keeper {
    /// What was found at the first look, and made since, the oldest first.
    anchors: Option<Vec<Saved>>,
    /// When all was looked at, and what there was then.
    looked: Option<(Instant, Seen)>,
    /// Whether the disk was too full.
    is_short: bool,
    /// Why it could not do its work when it last tried.
    failure: Option<String>,
}

/// What has everything looked at again when it changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seen {
    retention: Duration,
    checkpoints: u64,
    rewrites: u64,
}

/// A checkpoint that became an anchor.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Saved {
    number: u64,
    at_ms: u64,
    folder: PathBuf,
}

/// Bytes of a disk.
#[derive(Clone, Copy, Debug)]
struct Room {
    free: u64,
    /// With less free, history goes.
    wanted: u64,
}

impl Keeper {
    /// Does what is to be done now; to be called about once a second. Waits for the file system.
    pub fn tend(&mut self, context: &Context) {
        let Some(journal) = context.journal() else { return };
        let config = context.config.config();
        let seen = Seen {
            retention: config.persistence.aof_retention,
            checkpoints: context.checkpoints.state().completed,
            rewrites: journal.rewrites().completed,
        };
        let data = &context.facts.data_dir;
        let room = match seen.retention.is_zero() {
            true => None,
            false => room(data, &config),
        };
        let done = self.look(data, &config, seen, room, journal, &context.history);
        match done.err().map(|e| e.to_string()) {
            Some(why) if self.failure.as_ref() != Some(&why) => {
                tracing::warn!("history is not kept as it should be: {why}");
                self.failure = Some(why);
            }
            Some(_) => {}
            None => self.failure = None,
        }
    }

    fn look(
        &mut self,
        data: &Path,
        config: &Config,
        seen: Seen,
        room: Option<Room>,
        journal: &Journal,
        told: &Told,
    ) -> Result<(), ToolError> {
        if seen.retention.is_zero() {
            let is_off = self.looked.is_some_and(|(_, then)| then == seen);
            if !is_off {
                self.end(data, journal, told)?;
                self.looked = Some((Instant::now(), seen));
            }
            return Ok(());
        }
        if let Some(Room { free, wanted }) = room {
            if free < wanted {
                if !std::mem::replace(&mut self.is_short, true) {
                    tracing::warn!(
                        "the disk has {free} bytes left, and {wanted} are kept: history goes, and what was \
                         written until now cannot be had again as of an instant"
                    );
                    self.end(data, journal, told)?;
                }
                return Ok(());
            }
            if self.is_short && free < wanted.saturating_mul(2) {
                return Ok(());
            }
            if std::mem::take(&mut self.is_short) {
                tracing::info!("the disk has room again: history begins");
                self.looked = None;
            }
        }
        let every = LOOK_EVERY.min(seen.retention / 16);
        if self.looked.is_some_and(|(at, then)| then == seen && at.elapsed() < every) {
            return Ok(());
        }
        if self.looked.is_none_or(|(_, then)| then.retention.is_zero()) {
            // Until it is known what is needed.
            journal.keep_history_from(Some(0));
        }
        let names = Names::of(config);
        match self.keep(data, &names, seen.retention, journal, told) {
            // The server took a file away before it got its second name: there is a newer checkpoint.
            Err(ToolError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
            Ok(()) => {
                self.looked = Some((Instant::now(), seen));
                Ok(())
            }
        }
    }

    fn keep(
        &mut self,
        data: &Path,
        names: &Names,
        retention: Duration,
        journal: &Journal,
        told: &Told,
    ) -> Result<(), ToolError> {
        let retention_ms = retention.as_millis() as u64;
        let refused = |e: &dyn std::fmt::Display| ToolError::Refused(e.to_string());
        let current = StoredCheckpoints::find(data, &names.stem).map_err(|e| refused(&e))?;
        let anchors = match &mut self.anchors {
            Some(anchors) => anchors,
            none => none.insert(load(data, names, current.as_ref())?),
        };
        let parts = Parts::find(data, &names.aof_file).map_err(|e| refused(&e))?;
        // The files of a copy become the server's own with its first checkpoint.
        if let Some(current) = current.as_ref().filter(|current| !current.is_copy()) {
            for checkpoint in current.checkpoints().into_iter().rev() {
                let last = anchors.last();
                if last.is_some_and(|last| last.number >= checkpoint.number) {
                    continue;
                }
                // What came before a failure does not lead to what came after it.
                let first = parts.first(Origin::Checkpoint(checkpoint.number));
                let is_torn_off = first.is_some_and(|first| {
                    matches!(parts.parts()[&first].header.start, Start::Only(_))
                });
                let last = last.map(|last| last.at_ms);
                if is_torn_off || wants_anchor(checkpoint.taken_at_ms, last, retention_ms) {
                    anchors.push(save(data, current, &checkpoint)?);
                }
            }
        }
        // A part that has begun since belongs to what stays.
        let saved = anchors.iter().map(|saved| Anchor {
            at_ms: saved.at_ms,
            first: parts.first(Origin::Checkpoint(saved.number)),
        });
        let begun = parts
            .parts()
            .values()
            .filter(|part| part.header.base().is_some() || part.header.start == Start::Empty);
        let begun = begun
            .map(|part| Anchor { at_ms: part.header.time_ms, first: Some(part.header.number) });
        let all: Vec<Anchor> = saved.chain(begun).collect();
        let stays = kept(&all, unix_ms().saturating_sub(retention_ms));
        let gone = anchors.iter().take_while(|saved| saved.at_ms < stays.from_ms).count();
        for saved in anchors.drain(..gone) {
            remove(&saved.folder)?;
        }
        journal.keep_history_from(Some(stays.first_part));
        let since_ms = all
            .iter()
            .filter(|anchor| anchor.at_ms >= stays.from_ms && anchor.first.is_some())
            .map(|anchor| anchor.at_ms)
            .min();
        let bytes = bytes_alone(&data.join(FOLDER)).unwrap_or(0) + journal.history_bytes();
        told.set(since_ms.unwrap_or(0), bytes);
        Ok(())
    }

    /// There is no history any more.
    fn end(&mut self, data: &Path, journal: &Journal, told: &Told) -> Result<(), ToolError> {
        journal.keep_history_from(None);
        told.set(0, 0);
        self.anchors = None;
        let folder = data.join(FOLDER);
        let failed = |source| ToolError::Io { action: "remove", path: folder.clone(), source };
        clear(data).map_err(failed)?;
        for (_, anchor) in folders(data).map_err(failed)? {
            remove(&anchor)?;
        }
        // Others may have put something there, which stays.
        let _ = fs::remove_dir(&folder);
        Ok(())
    }
}

/// How the files are called.
struct Names {
    aof_file: String,
    stem: String,
}

impl Names {
    fn of(config: &Config) -> Self {
        Self { aof_file: config.persistence.aof_file.clone(), stem: config.store.file_stem.clone() }
    }
}

/// The folders of anchors, the oldest first.
fn folders(data: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in entries(&data.join(FOLDER))? {
        if let Some(number) = number_of(&entry.file_name().to_string_lossy()) {
            found.push((number, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Removes what was not made completely.
fn clear(data: &Path) -> io::Result<()> {
    for entry in entries(&data.join(FOLDER))? {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(".ferrite-new") {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn entries(folder: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.collect(),
    }
}

fn number_of(name: &str) -> Option<u64> {
    name.parse().ok().filter(|number: &u64| number.to_string() == name)
}

/// The checkpoints that are kept as anchors in a data directory, the oldest first; those that cannot be
/// read, or that are another store's, with why they are of no use.
pub fn saved(
    data: &Path,
    stem: &str,
    current: Option<&StoredCheckpoints>,
) -> io::Result<Vec<(PathBuf, Result<StoredCheckpoints, String>)>> {
    let folders = folders(data)?;
    let read = |(number, folder): (u64, PathBuf)| {
        let found = match StoredCheckpoints::find(&folder, stem) {
            Err(e) => Err(e.to_string()),
            Ok(None) => Err(format!("{}: there is no checkpoint", folder.display())),
            Ok(Some(found)) if current.is_some_and(|current| !current.is_same_store(&found)) => {
                Err(format!("{}: it is of another store", folder.display()))
            }
            Ok(Some(found)) if found.checkpoints().first().map(|c| c.number) != Some(number) => {
                Err(format!("{}: it is another checkpoint", folder.display()))
            }
            Ok(Some(found)) => Ok(found),
        };
        (folder, found)
    };
    Ok(folders.into_iter().map(read).collect())
}

/// What a start finds of earlier runs. What is of no use is set aside: it may be of use to a person.
fn load(
    data: &Path,
    names: &Names,
    current: Option<&StoredCheckpoints>,
) -> Result<Vec<Saved>, ToolError> {
    let failed = |source| ToolError::Io { action: "read", path: data.join(FOLDER), source };
    clear(data).map_err(failed)?;
    let mut anchors = Vec::new();
    for (folder, found) in saved(data, &names.stem, current).map_err(failed)? {
        let found = match (found, current) {
            (Ok(found), Some(_)) => found.checkpoints().into_iter().next().ok_or_else(String::new),
            // A store without a checkpoint is not the one that made it.
            (Ok(_), None) => Err(format!("{}: it is of another store", folder.display())),
            (Err(why), _) => Err(why),
        };
        match found {
            Ok(StoredCheckpoint { number, taken_at_ms: at_ms, .. }) => {
                anchors.push(Saved { number, at_ms, folder });
            }
            Err(why) => {
                let to = set_aside(data, &folder)?;
                tracing::warn!("history: {why}; it is set aside as {}", to.display());
            }
        }
    }
    Ok(anchors)
}

/// Moves an anchor to the quarantine.
fn set_aside(data: &Path, folder: &Path) -> Result<PathBuf, ToolError> {
    let quarantine = data.join(aside::QUARANTINE);
    let failed = |source| ToolError::Io { action: "move aside", path: folder.to_owned(), source };
    fs::create_dir_all(&quarantine).map_err(failed)?;
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let to = quarantine.join(format!("{FOLDER}-{name}-{}", unix_ms()));
    fs::rename(folder, &to).map_err(failed)?;
    Ok(to)
}

/// Makes a checkpoint an anchor.
fn save(
    data: &Path,
    current: &StoredCheckpoints,
    checkpoint: &StoredCheckpoint,
) -> Result<Saved, ToolError> {
    let folder = data.join(FOLDER).join(checkpoint.number.to_string());
    if folder.exists() {
        // Of a checkpoint of that number which was not the last one then.
        remove(&folder)?;
    }
    let mut staging = Staging::begin(&folder)?;
    // Nobody writes below the cut, and no more belongs to the checkpoint.
    staging.link_checkpoint(current, checkpoint)?;
    staging.finish()?;
    tracing::debug!(
        "checkpoint {} of {} is kept for history",
        checkpoint.number,
        format_time(checkpoint.taken_at_ms)
    );
    Ok(Saved { number: checkpoint.number, at_ms: checkpoint.taken_at_ms, folder })
}

fn remove(folder: &Path) -> Result<(), ToolError> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(ToolError::Io { action: "remove", path: folder.to_owned(), source: e })
        }
        _ => Ok(()),
    }
}

/// Bytes of the files below `folder` that have no name elsewhere.
fn bytes_alone(folder: &Path) -> io::Result<u64> {
    // Names that were seen, names that there are, bytes on the disk.
    let mut files: HashMap<(u64, u64), (u64, u64, u64)> = HashMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let found = entry.metadata()?;
            if found.is_dir() {
                folders.push(entry.path());
            } else {
                let file = files.entry((found.dev(), found.ino())).or_default();
                *file = (file.0 + 1, found.nlink(), found.blocks() * 512);
            }
        }
    }
    Ok(files.values().filter(|(seen, all, _)| seen == all).map(|(_, _, bytes)| bytes).sum())
}

/// How full the disk is; without an answer, history stays.
fn room(data: &Path, config: &Config) -> Option<Room> {
    let disk = rustix::fs::statvfs(data).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    // What the log may have to flush, and its reserve, before it refuses writes.
    let log = config.store.mutable_size.saturating_add(3 * config.store.segment_size);
    let wanted = log.saturating_add(RESERVE).min(bytes(disk.f_blocks) / 4);
    Some(Room { free: bytes(disk.f_bavail), wanted })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AofSync, Live};
    use crate::journal;
    use ferrite_hybridlog::{Database, Store};
    use std::sync::Arc;

    /// A disk that is nearly full takes history, not the writes, and history begins again when there is room
    /// for more than a moment.
    #[test]
    fn a_disk_that_is_nearly_full_takes_history_first() {
        let directory = tempfile::tempdir().expect("a directory");
        let data = directory.path();
        let mut config = ferrite_hybridlog::Config::new(data);
        config.redo_ring_size = 1 << 20;
        let store = Store::open(config).expect("opened");
        let context = Arc::new(Context::new(store.clone(), 16, 1));
        let settings = Live::default().config();
        let recovered = journal::replay(&store, data, &settings.persistence.aof_file);
        let recovered = recovered.expect("nothing is there");
        let journal = Journal::start(&store, &context, recovered, AofSync::No).expect("started");
        // As a start does.
        journal.keep_history_from(Some(0));
        let mut keeper = Keeper::default();
        let mut checkpoints = 0;
        let mut save = |free| {
            let mut session = store.blocking_session();
            session.upsert(Database(0), b"key", b"value").expect("written");
            drop(session);
            let report = store.checkpoint().expect("taken");
            journal.forget_before(report.oldest_kept);
            checkpoints += 1;
            let retention = Duration::from_secs(3600);
            let seen = Seen { retention, checkpoints, rewrites: 0 };
            let room = Some(Room { free, wanted: 100 });
            let looked = keeper.look(data, &settings, seen, room, &journal, &context.history);
            looked.expect("nothing fails");
            let parts = Parts::find(data, &settings.persistence.aof_file).expect("read");
            (folders(data).expect("read").len(), parts.parts().len(), context.history.since_ms())
        };
        for checkpoints in 1..=4 {
            let (anchors, parts, since_ms) = save(100);
            assert_eq!((anchors, parts), (1, checkpoints + 1), "all of them stay");
            assert!(since_ms > 0);
        }
        // Two checkpoints are kept, and what follows them.
        assert_eq!(save(99), (0, 2, 0));
        assert_eq!(save(199), (0, 2, 0), "there is room, but not much");
        let (anchors, parts, since_ms) = save(200);
        assert_eq!((anchors, parts), (1, 2));
        assert!(since_ms > 0);
        let (anchors, parts, _) = save(100);
        assert_eq!((anchors, parts), (1, 3));
        journal.stop().expect("all is on the disk");
    }

    #[test]
    fn what_a_crash_has_left_is_cleared_and_what_is_not_ours_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let folder = directory.path().join(FOLDER);
        for name in [".7.ferrite-new", "7", "07", "notes"] {
            fs::create_dir_all(folder.join(name)).expect("made");
        }
        clear(directory.path()).expect("cleared");
        assert!(!folder.join(".7.ferrite-new").exists());
        assert_eq!(folders(directory.path()).expect("read"), [(7, folder.join("7"))]);
        assert!(folder.join("07").exists() && folder.join("notes").exists());
    }

    #[test]
    fn bytes_are_those_that_no_other_name_has() {
        let directory = tempfile::tempdir().expect("a directory");
        let folder = directory.path().join(FOLDER);
        fs::create_dir_all(folder.join("1")).expect("made");
        fs::create_dir_all(folder.join("2")).expect("made");
        fs::write(directory.path().join("shared"), [1; 9000]).expect("written");
        fs::hard_link(directory.path().join("shared"), folder.join("1/a")).expect("linked");
        assert_eq!(bytes_alone(&folder).expect("read"), 0);
        fs::write(folder.join("1/b"), [1; 9000]).expect("written");
        fs::hard_link(folder.join("1/b"), folder.join("2/b")).expect("linked");
        let once = fs::metadata(folder.join("1/b")).expect("there").blocks() * 512;
        assert_eq!(bytes_alone(&folder).expect("read"), once, "two names, one file");
        assert!(once >= 9000);
    }
}
