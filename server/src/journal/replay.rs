//! What a start does with the append-only file: finds the parts that go on from the checkpoint that was
//! recovered, does their commands again, and cuts off what was not completely written.
//!
//! Nothing is deleted: what does not belong to the chain that is replayed is moved to `quarantine/` in
//! the data directory. The clock stands at the checkpoint meanwhile, so that a key does not expire that
//! a later command of the file still finds.
//!
//! A second start after a crash in here finds the same: until the end only the store's memory and
//! segments that no checkpoint knows are written; then the torn end is cut, and a new part begun.

use super::Part;
use crate::aof::{
    Chain, ChainError, Effect, Entry, Files as _, Gap, Header, LocalFiles, Origin, Parts,
    ReadError, Replay, Torn, aside, format_time, part,
};
use crate::context::unix_ms;
use ferrite_hybridlog::{BlockingSession, Change, Database, OperationError, Store};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between two lines that tell how far a replay is.
const PROGRESS: Duration = Duration::from_secs(5);

/// What a replay found, and what goes on from it.
#[derive(Debug)]
pub struct Recovered {
    pub(super) directory: PathBuf,
    pub(super) aof_file: String,
    /// The first line of the part that is to begin.
    pub(super) next: Header,
    /// Parts that stay.
    pub(super) parts: BTreeMap<u64, Part>,
    /// Effects that took place again.
    pub entries: u64,
    /// Bytes of the parts that were read.
    pub bytes: u64,
    /// How long it took.
    pub duration: Duration,
}

/// Why a start does not use the append-only file, and does not go on without it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The parts do not fit together.
    #[error(
        "AOF: refused {}: {}; put the missing files (and the folder `checkpoints`) back, or move all \
         of the append-only file's parts aside to start without them, or make a new directory of a \
         backup with: ferrite restore --from BACKUP --to NEWDIR",
        .directory.display(), .source.to_string().replacen("AOF: refused ", "", 1)
    )]
    Chain {
        /// Their folder.
        directory: PathBuf,
        /// What is wrong.
        source: ChainError,
    },
    /// A part cannot be read.
    #[error(transparent)]
    Part(#[from] ReadError),
    /// A command that this version does not know.
    #[error(
        "AOF: refused {}: {command} stands behind offset {offset}, which this version does not replay; \
         start with the version that wrote it, or cut it off there with: ferrite aof truncate --to-offset \
         {offset} {}",
        .path.display(), .path.display()
    )]
    Command {
        /// The part.
        path: PathBuf,
        /// What comes before is known.
        offset: u64,
        /// How the command begins.
        command: String,
    },
    /// A command for a database that there is none of.
    #[error(
        "AOF: refused {}: a command behind offset {offset} is for database {database}, and there are \
         {databases}; start with storage.databases = {} or more", .path.display(), u16::from(*.database) + 1
    )]
    Database {
        /// The part.
        path: PathBuf,
        /// What comes before is known.
        offset: u64,
        /// The database.
        database: u8,
        /// How many there are.
        databases: usize,
    },
    /// The store does not take a command.
    #[error("the append-only file cannot be replayed: {0}")]
    Store(#[from] OperationError),
    /// A file cannot be moved or cut.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Brings `store`, which has just been opened, to where the append-only file in `directory` ends.
pub fn replay(store: &Store, directory: &Path, aof_file: &str) -> Result<Recovered, ReplayError> {
    let since = Instant::now();
    let recovery = store.recovery();
    let origin = recovery.checkpoint.map_or(Origin::Empty, Origin::Checkpoint);
    let files = Files { directory, parts: find(directory, aof_file)? };
    files.set_unbegun_aside()?;
    files.set_moved_aside(aof_file, origin)?;
    files.give_numbers(aof_file)?;
    // What is set aside keeps its number for itself: it may be put back.
    let number = files.parts.next_number();
    let parts = find(directory, aof_file)?;
    let is_later = match origin {
        Origin::Empty => true,
        Origin::Checkpoint(checkpoint) => parts.is_later(checkpoint, recovery.taken_at_ms),
    };
    let chain = match parts.chain(origin) {
        Ok(chain) => chain,
        Err(ChainError::NoStart { .. }) if !is_later => Chain { links: Vec::new(), gap: None },
        Err(source) => {
            return Err(ReplayError::Chain { directory: directory.to_owned(), source });
        }
    };
    if let Origin::Checkpoint(checkpoint) = origin
        && chain.links.is_empty()
    {
        tracing::warn!(
            "no part of the append-only file goes on from checkpoint {checkpoint}: the data is that of {}",
            format_time(recovery.taken_at_ms)
        );
    }
    let mut replay = Replay::new(&chain, None)?;
    play(store, &mut replay, &chain)?;
    let done = replay.replayed();
    if let Some(gap) = &chain.gap {
        files.set_behind_aside(done.stands.map_or(0, |before| before.number), gap)?;
    }
    if let Some(torn) = &done.torn {
        tracing::warn!("{torn}");
        files.cut(torn, done.stands.map_or(0, |before| before.number))?;
    }
    let next = done.next_header(origin, number, recovery.taken_at_ms.max(unix_ms()));
    let parts = find(directory, aof_file)?.parts().clone();
    let parts = parts
        .into_iter()
        .map(|(number, part)| {
            let part = Part { start: part.header.start, path: part.path, length: part.length };
            (number, part)
        })
        .collect();
    let duration = since.elapsed();
    if done.stands.is_some() {
        tracing::info!(
            "replayed {} entries, {} bytes, of {} parts of the append-only file in {:.1} ms",
            done.entries,
            done.bytes,
            chain.links.len(),
            duration.as_secs_f64() * 1000.0
        );
    }
    Ok(Recovered {
        directory: directory.to_owned(),
        aof_file: aof_file.to_owned(),
        next,
        parts,
        entries: done.entries,
        bytes: done.bytes,
        duration,
    })
}

fn find(directory: &Path, aof_file: &str) -> Result<Parts, ReplayError> {
    let refused = |source| ReplayError::Chain { directory: directory.to_owned(), source };
    Parts::find(directory, aof_file).map_err(refused)
}

/// Applies all entries.
fn play(store: &Store, replay: &mut Replay, chain: &Chain) -> Result<(), ReplayError> {
    let mut session = store.blocking_session();
    let mut told = Instant::now();
    let databases = store.places().len();
    let place = |replay: &Replay| {
        let stands = replay.replayed().stands;
        let link = chain.links.iter().find(|l| Some(l.header.number) == stands.map(|s| s.number));
        let path = link.map_or_else(PathBuf::new, |link| link.path.clone());
        (path, stands.map_or(0, |stands| stands.length))
    };
    while let Some(entry) = replay.next_entry()? {
        let position = entry.position;
        let database = match entry.effect {
            Effect::Swap { with } => with.max(entry.database),
            _ => entry.database,
        };
        if usize::from(database) >= databases {
            let (path, offset) = place(replay);
            return Err(ReplayError::Database { path, offset, database, databases });
        }
        if let Some(command) = apply(store, &mut session, &entry)? {
            let (path, offset) = place(replay);
            return Err(ReplayError::Command { path, offset, command });
        }
        if position.is_multiple_of(4096) && told.elapsed() >= PROGRESS {
            told = Instant::now();
            let done = replay.replayed();
            let (bytes, all) = (done.bytes >> 20, done.bytes_total >> 20);
            tracing::info!("replaying the append-only file: {bytes} of {all} MiB");
        }
    }
    Ok(())
}

/// Applies one entry. The beginning of a command that is not known is the answer.
fn apply(
    store: &Store,
    session: &mut BlockingSession,
    entry: &Entry<'_>,
) -> Result<Option<String>, OperationError> {
    let db = Database(entry.database);
    let mut change = |key: &[u8], change: Change<'_>| {
        session.run(|inside, op| inside.update(op, db, key, |_, _| (change, ())))
    };
    match entry.effect {
        Effect::Put { key, value, expires_at_ms } => {
            change(key, Change::Put { value, expires_at_ms, encoding: 0 })?;
        }
        Effect::Delete { key } => change(key, Change::Delete)?,
        Effect::Expire { key, at_ms } => change(key, Change::Expire(Some(at_ms)))?,
        Effect::Persist { key } => change(key, Change::Expire(None))?,
        Effect::Flush => store.flush_database(db)?,
        Effect::FlushAll => store.flush_all()?,
        Effect::Swap { with } => store.swap_databases(db, Database(with))?,
        // A block holds whole transactions, and nobody looks on.
        Effect::Begin | Effect::End => {}
        Effect::Verbatim { command } => {
            let text = String::from_utf8_lossy(&command[..command.len().min(40)]);
            return Ok(Some(text.escape_debug().to_string()));
        }
    }
    Ok(None)
}

/// The files of the append-only file, as a start finds them.
struct Files<'a> {
    directory: &'a Path,
    parts: Parts,
}

impl Files<'_> {
    /// Files that were begun and hold nothing.
    fn set_unbegun_aside(&self) -> Result<(), ReplayError> {
        self.parts.unbegun().iter().try_for_each(|torn| {
            tracing::warn!("{torn}");
            self.set_aside(&torn.path)
        })
    }

    /// Whoever moves `appendonly.aof` away means the part that it is a name of. Without a checkpoint the
    /// parts before it go with it: they alone would be some of the data.
    fn set_moved_aside(&self, aof_file: &str, origin: Origin) -> Result<(), ReplayError> {
        if self.parts.has_alias() {
            return Ok(());
        }
        let first = match origin {
            Origin::Empty => 0,
            Origin::Checkpoint(_) => self.parts.parts().last_key_value().map_or(0, |(n, _)| *n),
        };
        for (_, part) in self.parts.parts().range(first..) {
            tracing::warn!(
                "{} was moved away: {} is set aside too",
                self.directory.join(aof_file).display(),
                part.path.display()
            );
            part.copies.iter().try_for_each(|path| self.set_aside(path))?;
        }
        Ok(())
    }

    /// A copy made with `cp *.aof`, or of `appendonly.aof` alone, has the longest copy of a part under that
    /// name, which is to be the next part's. So the part gets its own name; a shorter copy that has it is set
    /// aside.
    fn give_numbers(&self, aof_file: &str) -> Result<(), ReplayError> {
        let alias = self.directory.join(aof_file);
        let Some((number, _)) = self.parts.parts().iter().find(|(_, part)| part.path == alias)
        else {
            return Ok(());
        };
        let own = self.directory.join(part::file_name(aof_file, *number));
        self.set_aside(&own)?;
        let io = |source| ReplayError::Io { action: "link", path: own.clone(), source };
        fs::hard_link(&alias, &own).map_err(io)?;
        LocalFiles.sync_directory(self.directory).map_err(io)
    }

    /// Parts that cannot be applied.
    fn set_behind_aside(&self, last: u64, gap: &Gap) -> Result<(), ReplayError> {
        let behind = self.parts.parts().range(last + 1..);
        let bytes: u64 = behind.clone().map(|(_, part)| part.length).sum();
        match gap {
            // A crash came before the checkpoint was complete that it goes on from.
            Gap::Only { .. } => tracing::warn!("{gap}: it is set aside"),
            _ => tracing::warn!(
                "{}; the {bytes} bytes of the parts behind it are set aside",
                gap.warning()
            ),
        }
        for (_, part) in behind {
            part.copies.iter().try_for_each(|path| self.set_aside(path))?;
        }
        Ok(())
    }

    fn set_aside(&self, path: &Path) -> Result<(), ReplayError> {
        let io = |source| ReplayError::Io { action: "move aside", path: path.to_owned(), source };
        match aside::set_aside(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done.map(drop).map_err(io),
        }
    }

    /// Cuts a torn end off every copy of its part, once its bytes are aside.
    fn cut(&self, torn: &Torn, part: u64) -> Result<(), ReplayError> {
        let copies =
            self.parts.parts().get(&part).map_or_else(Vec::new, |part| part.copies.clone());
        for path in copies {
            let io = |source| ReplayError::Io { action: "cut", path: path.clone(), source };
            // The copies may be names of one file, which is cut by then.
            if path.metadata().map_err(io)?.len() > torn.offset {
                aside::cut_tail(&path, torn.offset).map_err(io)?;
            }
        }
        Ok(())
    }
}
