//! What the files of a data directory can give back: from which checkpoints, and up to which instants.
//!
//! ```text
//!   base: checkpoint 40 ──> part 12 ──> part 13 ──> part 14 (torn: its whole blocks count)
//!   base: checkpoint 41 ─────────────> part 13 ──> part 14
//!         |<----------- every instant in between can be had again ------------->|
//! ```
//!
//! A server with `persistence.aof_retention` keeps older checkpoints, and the parts behind them: see
//! `crate::history`.
//!
//! Nothing is changed. A server that runs on the directory is no obstacle: what it has written until
//! the files are read counts. Without one, none starts meanwhile.

use super::ToolError;
use super::aof::{open, told};
use super::staging::failed;
use crate::aof::{Chain, ChainError, End, Gap, Link, Origin, Parts, format_time};
use ferrite_hybridlog::{StoredCheckpoint, StoredCheckpoints};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// How the files of a data directory are called.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Names {
    /// `persistence.aof_file`
    pub aof_file: String,
    /// `persistence.checkpoint_file` without its ending.
    pub stem: String,
}

/// A folder of history, and the checkpoint in it, or why that is of no use.
pub(super) type Saved = (PathBuf, Result<StoredCheckpoints, String>);

/// How often the parts of a running server are looked at until they fit together.
pub(super) const LOOKS: u32 = 5;

/// A data directory that is being read.
pub(super) struct Source {
    pub directory: PathBuf,
    pub names: Names,
    /// The process of the server that runs on it, as far as is known.
    pub server: Option<String>,
    _lock: Option<File>,
}

/// What a replay can begin with.
pub(super) struct Base {
    /// `None` is the empty store, or a part that makes all of a state.
    pub checkpoint: Option<StoredCheckpoint>,
    /// Where it lies, if that is not among the checkpoints of the server.
    pub past: Option<Rc<StoredCheckpoints>>,
    /// Its instant, in Unix milliseconds: nothing before it can be had from here.
    pub at_ms: u64,
    /// What goes on from it.
    chain: Result<Chain, Alone>,
}

/// Why nothing goes on from a base.
struct Alone {
    why: String,
    /// Whether something later is there: a start refuses then.
    is_refused: bool,
}

/// How far a base reaches.
#[derive(Default)]
pub(super) struct Reach {
    /// The parts that are needed, in order.
    pub parts: Vec<Needed>,
    /// The instant of the last write, or of the beginning of the last part.
    pub end_ms: u64,
    /// Whether there is something later, so that the instant asked for is certainly covered.
    pub is_beyond: bool,
    /// Why it ends before the newest part does.
    pub stop: Option<String>,
    /// The checkpoint that what stops it goes on from, and nothing else.
    pub only: Option<u64>,
    /// What a crash has left at its end, which does not count.
    pub torn: Option<String>,
}

/// A part of the append-only file.
pub(super) struct Needed {
    pub path: PathBuf,
    pub number: u64,
    /// So many of its bytes.
    pub length: u64,
}

impl Source {
    /// Looks at a data directory, which must be there.
    pub fn open(directory: &Path, names: Names) -> Result<Self, ToolError> {
        if !fs::metadata(directory).map_err(failed("read", directory))?.is_dir() {
            return Err(ToolError::Refused(format!(
                "{} is no directory; name a data directory, or a copy of one",
                directory.display()
            )));
        }
        let (server, _lock) = hold(directory)?;
        Ok(Self { directory: directory.to_owned(), names, server, _lock })
    }

    /// What is said of a server that runs on it.
    pub fn note(&self) -> Option<String> {
        let server = self.server.as_ref()?;
        let directory = self.directory.display();
        Some(format!(
            "a server (process {server}) runs on {directory}: what it has written until now is taken, and none of \
             its files is changed"
        ))
    }

    /// Its checkpoints.
    pub fn checkpoints(&self) -> Result<Option<StoredCheckpoints>, ToolError> {
        StoredCheckpoints::find(&self.directory, &self.names.stem)
            .map_err(|e| ToolError::Refused(e.to_string()))
    }

    /// Its parts of the append-only file. While a server runs, a part may have been looked at before it was
    /// complete, or not yet been there, and the next one after that: what looks like a gap is none.
    pub fn parts(&self) -> Result<Parts, ToolError> {
        for attempt in 1.. {
            let parts = Parts::find(&self.directory, &self.names.aof_file)
                .map_err(|e| ToolError::Refused(e.to_string()))?;
            let has_gap = |n: &u64| parts.gap_before(*n).is_some();
            let is_early = self.server.is_some() && parts.parts().keys().any(has_gap);
            if !is_early || attempt == LOOKS {
                return Ok(parts);
            }
        }
        unreachable!("the last look returns")
    }

    /// All bases, the latest first; of those in the append-only file the newest, and the newest that serves
    /// the time `until_ms`.
    pub fn bases(
        &self,
        checkpoints: Option<&StoredCheckpoints>,
        until_ms: Option<u64>,
    ) -> Result<Vec<Base>, ToolError> {
        let mut bases = Vec::new();
        for checkpoint in checkpoints.map_or_else(Vec::new, StoredCheckpoints::checkpoints) {
            bases.push(Base::of(checkpoint, None, self.parts()?));
        }
        for until_ms in [None, until_ms] {
            bases.extend(self.begun(until_ms)?);
        }
        bases.sort_by_key(|base| std::cmp::Reverse(base.at_ms));
        Ok(bases)
    }

    /// The newest base in the append-only file that serves the time `until_ms`.
    fn begun(&self, until_ms: Option<u64>) -> Result<Option<Base>, ToolError> {
        let Ok(chain) = self.parts()?.chain_until(Origin::Empty, until_ms) else { return Ok(None) };
        let base = begins_at(&chain);
        Ok(base.map(|at_ms| Base { checkpoint: None, past: None, at_ms, chain: Ok(chain) }))
    }

    /// The bases that history keeps, the latest first.
    pub fn past(&self, current: Option<&StoredCheckpoints>) -> Result<Vec<Base>, ToolError> {
        let mut bases = Vec::new();
        for (_, found) in self.saved(current)? {
            // What is of no use is no base.
            let Ok(found) = found.map(Rc::new) else { continue };
            for checkpoint in found.checkpoints() {
                bases.push(Base::of(checkpoint, Some(Rc::clone(&found)), self.parts()?));
            }
        }
        // Each base in the append-only file, from the newest to the oldest.
        let mut until_ms = None;
        while let Some(base) = self.begun(until_ms)? {
            if until_ms.is_some_and(|until| base.at_ms > until) {
                break;
            }
            until_ms = base.at_ms.checked_sub(1);
            bases.push(base);
            if until_ms.is_none() {
                break;
            }
        }
        bases.sort_by_key(|base| std::cmp::Reverse(base.at_ms));
        Ok(bases)
    }

    /// The checkpoints that history keeps.
    pub fn saved(&self, current: Option<&StoredCheckpoints>) -> Result<Vec<Saved>, ToolError> {
        let folder = self.directory.join(crate::history::FOLDER);
        crate::history::saved(&self.directory, &self.names.stem, current)
            .map_err(failed("read", &folder))
    }
}

/// When a chain from nothing first makes a whole state. A base makes that at which its part begins, and no
/// earlier one.
fn begins_at(chain: &Chain) -> Option<u64> {
    chain.links.first().map(|first| first.header.time_ms)
}

/// What a start would say, without saying that one has refused.
fn without_refusal(error: ChainError) -> String {
    match &error {
        ChainError::Part(error) => told(error),
        other => other.to_string().replacen("AOF: refused ", "", 1),
    }
}

/// What a start would load: the newest checkpoint, whatever else is younger.
pub(super) fn of_a_start(bases: &[Base]) -> Option<&Base> {
    let checkpoints = bases.iter().filter(|base| base.past.is_none() && base.checkpoint.is_some());
    let newest = checkpoints.max_by_key(|base| base.checkpoint.as_ref().map(|c| c.number));
    newest.or(bases.first())
}

impl Base {
    fn of(checkpoint: StoredCheckpoint, past: Option<Rc<StoredCheckpoints>>, parts: Parts) -> Self {
        let at_ms = checkpoint.taken_at_ms;
        let is_later = parts.is_later(checkpoint.number, at_ms);
        let chain = match parts.chain(Origin::Checkpoint(checkpoint.number)) {
            Ok(chain) if chain.links.is_empty() => {
                Err(Alone { why: "there is no append-only file".into(), is_refused: false })
            }
            Ok(chain) => Ok(chain),
            Err(error) => {
                let is_refused = is_later || !matches!(error, ChainError::NoStart { .. });
                Err(Alone { why: without_refusal(error), is_refused })
            }
        };
        Self { checkpoint: Some(checkpoint), past, at_ms, chain }
    }

    /// How far it reaches, but not beyond `until_ms`. Reads and verifies all of the parts up to there.
    pub fn reach(&self, until_ms: u64) -> Reach {
        let mut reach = Reach { end_ms: self.at_ms, ..Reach::default() };
        let Ok(chain) = &self.chain else { return reach };
        for (i, link) in chain.links.iter().enumerate() {
            if i > 0 && link.header.time_ms > until_ms {
                reach.is_beyond = true;
                return reach;
            }
            if !reach.read(link, until_ms) {
                return reach;
            }
        }
        reach.stop = chain.gap.as_ref().map(Gap::to_string);
        if let Some(Gap::Only { checkpoint, .. }) = chain.gap {
            reach.only = Some(checkpoint);
        }
        reach
    }

    /// Whether nothing goes on from it, and why.
    pub fn is_alone(&self) -> Option<&str> {
        self.chain.as_ref().err().map(|alone| alone.why.as_str())
    }

    /// Why a start refuses it: what goes on from it is missing, and something later is there.
    pub fn is_refused(&self) -> Option<&str> {
        self.chain.as_ref().err().filter(|alone| alone.is_refused).map(|alone| alone.why.as_str())
    }

    /// In words.
    pub fn describe(&self) -> String {
        match &self.checkpoint {
            Some(checkpoint) => {
                format!("checkpoint {} of {}", checkpoint.number, format_time(self.at_ms))
            }
            None => format!("the beginning of the append-only file, {}", format_time(self.at_ms)),
        }
    }
}

impl Reach {
    /// Why it is not all that was acknowledged. Where a part goes on from a checkpoint that is not among
    /// `bases`, a crash came before that was complete, and all is before it.
    pub fn fault(&self, bases: &[Base]) -> Option<&str> {
        let is = |base: &Base, number| base.checkpoint.as_ref().is_some_and(|c| c.number == number);
        let is_there = |number| bases.iter().any(|base| is(base, number));
        let is_complete = self.only.is_some_and(|number| !is_there(number));
        self.stop.as_deref().filter(|_| !is_complete)
    }

    /// Reads one part; false where the reading ends.
    fn read(&mut self, link: &Link, until_ms: u64) -> bool {
        let mut needed = Needed { path: link.path.clone(), number: link.header.number, length: 0 };
        let mut reader = match open(&link.path, link.known) {
            Ok(reader) => reader,
            Err(e) => {
                self.stop = Some(told(&e));
                return false;
            }
        };
        needed.length = reader.offset();
        let base_end = link.header.base().map_or(0, |base| base.length);
        self.end_ms = self.end_ms.max(link.header.time_ms.min(until_ms));
        let goes_on = loop {
            match reader.next_block() {
                // A base is of use as a whole only.
                Ok(Some(block)) if block.time_ms > until_ms && reader.offset() > base_end => {
                    self.is_beyond = true;
                    break false;
                }
                Ok(Some(block)) => {
                    needed.length = reader.offset();
                    self.end_ms = self.end_ms.max(block.time_ms);
                }
                Ok(None) => {
                    if let Some(End::Torn(torn)) = reader.end() {
                        self.torn = Some(format!("{}: {}", torn.path.display(), torn.details()));
                    }
                    break true;
                }
                Err(e) => {
                    self.stop = Some(told(&e));
                    break false;
                }
            }
        };
        self.parts.push(needed);
        goes_on
    }
}

/// The instants that the bases give, in words.
pub(super) fn range(bases: &[Base]) -> String {
    let mut bases: Vec<_> = bases.iter().collect();
    bases.sort_by_key(|base| base.at_ms);
    let (mut merged, mut is_all): (Vec<(u64, u64)>, bool) = (Vec::new(), false);
    for base in bases {
        // One that comes to the end covers all that begin behind it.
        if is_all && base.is_alone().is_none() {
            continue;
        }
        let reach = base.reach(u64::MAX);
        is_all |= reach.stop.is_none() && base.is_alone().is_none();
        let (from, to) = (base.at_ms, reach.end_ms);
        match merged.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => merged.push((from, to)),
        }
    }
    let text = |(from, to): &(u64, u64)| match from == to {
        true => format!("the instant {}", format_time(*from)),
        false => format!("{} to {}", format_time(*from), format_time(*to)),
    };
    merged.iter().map(text).collect::<Vec<_>>().join(" and ")
}

/// Keeps servers from starting on the directory, unless one runs already: then its process. What
/// is held is shared, so that several tools may read at once.
fn hold(directory: &Path) -> Result<(Option<String>, Option<File>), ToolError> {
    let path = directory.join("ferrite.lock");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((None, None)),
        Err(e) => return Err(failed("open", &path)(e)),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok((None, Some(file))),
        Err(TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(&path).unwrap_or_default();
            let holder = holder.trim();
            let holder = if holder.is_empty() { "unknown" } else { holder };
            Ok((Some(holder.to_owned()), None))
        }
        Err(TryLockError::Error(e)) => Err(failed("lock", &path)(e)),
    }
}
