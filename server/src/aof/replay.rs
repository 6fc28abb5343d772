//! The entries of a chain of parts, in order: what a start applies, and what a rewrite copies.
//!
//! Each block is verified before its first entry is given out, and effects that happened at once
//! stand together between [`Effect::Begin`] and [`Effect::End`]. A replay may end at a time: blocks
//! are of one millisecond and never go back, so what is given out is the state of that instant.
//!
//! A base is replayed when the chain begins with it, to its end or not at all. Where the chain comes
//! from a part before, it is passed over: what it makes is there.

use super::chain::{Chain, Link, Origin};
use super::effect::{Effect, Entry, Step};
use super::part::{Before, Header, Start};
use super::reader::{End, Known, PartReader, ReadError, Torn};
use std::collections::VecDeque;
use std::fs::File;

/// A replay that is under way.
#[derive(Debug)]
pub struct Replay {
    links: VecDeque<Link>,
    /// Whether a part was opened.
    begun: bool,
    reader: Option<PartReader<File>>,
    /// The database that the commands have selected.
    database: u8,
    until_ms: u64,
    done: Replayed,
    ended: bool,
}

/// How far a replay has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Entries so far.
    pub entries: u64,
    /// Bytes of parts that are done with.
    pub bytes: u64,
    /// Bytes of all parts of the chain.
    pub bytes_total: u64,
    /// The time of the last entry, in Unix milliseconds; before the first, that of its part; 0 when
    /// there is none.
    pub time_ms: u64,
    /// Where it stands: a part, and how many of its bytes are replayed. At the end it is what the
    /// next part names as the one before.
    pub stands: Option<Before>,
    /// The torn tail that it ended at.
    pub torn: Option<Torn>,
}

impl Replayed {
    /// The first line of the part that goes on from this replay, which began at `origin`. Its number
    /// is above that of every file ([`Parts::next_number`](super::Parts::next_number)); it is never
    /// older than what was replayed, whatever the clock says.
    pub fn next_header(&self, origin: Origin, number: u64, now_ms: u64) -> Header {
        let start = match (self.stands, origin) {
            (Some(_), _) => Start::Part,
            (None, Origin::Empty) => Start::Empty,
            (None, Origin::Checkpoint(checkpoint)) => Start::Checkpoint(checkpoint),
        };
        Header { number, start, before: self.stands, time_ms: now_ms.max(self.time_ms) }
    }
}

impl Replay {
    /// Begins. Entries with a later time than `until_ms` are not given out.
    pub fn new(chain: &Chain, until_ms: Option<u64>) -> Result<Self, ReadError> {
        let mut done = Replayed::default();
        for link in &chain.links {
            let length = link.path.metadata().map_err(|source| failed(link, source))?.len();
            done.bytes_total += link.known.until.unwrap_or(length);
        }
        Ok(Self {
            links: chain.links.iter().cloned().collect(),
            begun: false,
            reader: None,
            database: 0,
            until_ms: until_ms.unwrap_or(u64::MAX),
            done,
            ended: false,
        })
    }

    /// The next entry; `None` at the end. Positions count the entries, from 1.
    pub fn next_entry(&mut self) -> Result<Option<Entry<'_>>, ReadError> {
        while !self.ended {
            let Some(reader) = &mut self.reader else {
                self.open_next()?;
                continue;
            };
            let before = reader.offset();
            let found = reader.advance()?;
            if found && reader.time_ms() > self.until_ms {
                // Its block is not replayed.
                self.ended = true;
                break;
            }
            self.done.bytes += reader.offset() - before;
            self.done.time_ms = reader.time_ms();
            self.done.stands =
                Some(Before { number: reader.header().number, length: reader.offset() });
            if !found {
                self.close();
            } else if let Step::Select(database) = reader.command().step() {
                self.database = database;
            } else {
                return Ok(Some(self.entry()));
            }
        }
        Ok(None)
    }

    /// How far it has come.
    pub fn replayed(&self) -> &Replayed {
        &self.done
    }

    /// The entry that the reader stands at.
    fn entry(&mut self) -> Entry<'_> {
        self.done.entries += 1;
        let command = self.reader.as_ref().expect("it was read from").command();
        let (database, effect) = match command.step() {
            Step::Effect(effect) => (self.database, effect),
            Step::Swap(database, with) => (database, Effect::Swap { with }),
            Step::Select(_) => unreachable!("taken note of before"),
        };
        Entry { position: self.done.entries, time_ms: command.time_ms, database, effect }
    }

    fn open_next(&mut self) -> Result<(), ReadError> {
        let Some(link) = self.links.pop_front() else {
            self.ended = true;
            return Ok(());
        };
        let file = File::open(&link.path).map_err(|source| failed(&link, source))?;
        let mut reader = PartReader::open(file, &link.path, link.known)?;
        if std::mem::replace(&mut self.begun, true) {
            reader.skip_base()?;
        } else if link.header.base().is_some() && reader.time_ms() > self.until_ms {
            return Err(ReadError::Younger { path: link.path, time_ms: reader.time_ms() });
        }
        self.done.bytes += reader.offset();
        self.done.time_ms = self.done.time_ms.max(reader.time_ms());
        self.done.stands = Some(Before { number: link.header.number, length: reader.offset() });
        // Every part selects a database before its first command, and again behind its base.
        self.database = 0;
        self.reader = Some(reader);
        Ok(())
    }

    /// The part has ended.
    fn close(&mut self) {
        let reader = self.reader.take();
        if let Some(End::Torn(torn)) = reader.as_ref().and_then(PartReader::end) {
            // What follows a torn tail is behind a gap, and no link.
            debug_assert!(self.links.is_empty());
            self.done.torn = Some(torn.clone());
            self.ended = true;
        }
    }
}

fn failed(link: &Link, source: std::io::Error) -> ReadError {
    ReadError::Io { path: link.path.clone(), source }
}

impl Link {
    /// A part by itself, of which nothing else is known.
    pub fn alone(path: &std::path::Path) -> Result<Self, ReadError> {
        let io = |source| ReadError::Io { path: path.to_owned(), source };
        let reader = PartReader::open(File::open(path).map_err(io)?, path, Known::default())?;
        Ok(Self { path: path.to_owned(), header: *reader.header(), known: Known::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::chain::Parts;
    use super::super::files::LocalFiles;
    use super::super::testing::delete;
    use super::super::writer::PartWriter;
    use super::*;
    use std::path::Path;

    const AOF: &str = "appendonly.aof";

    /// Entries of every kind over three parts, three a millisecond.
    fn entries() -> Vec<Entry<'static>> {
        let effects = [
            Effect::Put { key: b"k", value: b"v", expires_at_ms: Some(7) },
            delete(b"k"),
            Effect::Expire { key: b"k", at_ms: 1 },
            Effect::Begin,
            Effect::Put { key: b"k", value: b"*1\r\n", expires_at_ms: None },
            Effect::Swap { with: 3 },
            Effect::End,
            Effect::Persist { key: b"k" },
            Effect::Flush,
            Effect::FlushAll,
            Effect::Verbatim { command: b"*1\r\n$4\r\nPING\r\n" },
        ];
        let mut time_ms = 1_000;
        (0..99u64)
            .map(|i| {
                let effect = effects[i as usize % effects.len()];
                let group = matches!(effect, Effect::End) || (i % 11) > 3 && (i % 11) < 6;
                time_ms += u64::from(i % 3 == 0 && !group);
                // A group is for one database here.
                let database = if (3..7).contains(&(i % 11)) { 2 } else { (i % 4) as u8 };
                Entry { position: i + 1, time_ms, database, effect }
            })
            .collect()
    }

    fn write(directory: &Path) {
        let header = Header { number: 1, start: Start::Empty, before: None, time_ms: 1_000 };
        let mut writer = PartWriter::begin(LocalFiles, directory, AOF, header, 0).expect("begun");
        for entry in entries() {
            writer.push(&entry).expect("taken");
            if entry.position == 33 || entry.position == 66 {
                writer.next_part(Start::Part, 0, 0).expect("turned");
            }
        }
        writer.write().expect("written");
        writer.sync().expect("synced");
    }

    fn replay(directory: &Path, until_ms: Option<u64>) -> (Vec<String>, Replayed) {
        let chain = Parts::find(directory, AOF).expect("found").chain(Origin::Empty);
        let mut replay = Replay::new(&chain.expect("a chain"), until_ms).expect("it is there");
        let mut found = Vec::new();
        while let Some(entry) = replay.next_entry().expect("sound") {
            found.push(format!("{entry:?}"));
        }
        (found, replay.replayed().clone())
    }

    #[test]
    fn what_is_replayed_is_what_was_written() {
        let directory = tempfile::tempdir().expect("a directory");
        write(directory.path());
        let (found, done) = replay(directory.path(), None);
        let written: Vec<_> = entries().iter().map(|entry| format!("{entry:?}")).collect();
        assert_eq!(found, written);
        let length = directory.path().join(AOF).metadata().expect("it is there").len();
        assert_eq!(done.stands, Some(Before { number: 3, length }));
        assert_eq!((done.entries, done.torn), (99, None));
        assert!(done.bytes == done.bytes_total && done.bytes > length);
    }

    /// After each start a part is begun, and the next start finds it.
    #[test]
    fn the_next_part_is_found_by_the_next_replay() {
        for origin in [Origin::Empty, Origin::Checkpoint(9)] {
            let directory = tempfile::tempdir().expect("a directory");
            let mut expected = Vec::new();
            for position in 1..5u64 {
                let parts = Parts::find(directory.path(), AOF).expect("found");
                let number = parts.next_number();
                let chain = parts.chain(origin).expect("a chain");
                assert_eq!(chain.gap, None);
                let mut replay = Replay::new(&chain, None).expect("it is there");
                let mut times = Vec::new();
                while let Some(entry) = replay.next_entry().expect("sound") {
                    times.push(entry.time_ms);
                }
                assert_eq!(times, expected);
                // The clock has gone back.
                let header = replay.replayed().next_header(origin, number, 0);
                assert_eq!(header.time_ms, position - 1);
                let mut writer =
                    PartWriter::begin(LocalFiles, directory.path(), AOF, header, 0).expect("begun");
                let entry =
                    Entry { position, time_ms: position, database: 0, effect: delete(b"k") };
                writer.push(&entry).expect("taken");
                writer.write().expect("written");
                expected.push(position);
                // A tail that was torn: the next part says that it does not count.
                let mut bytes = std::fs::read(writer.path()).expect("read");
                bytes.extend_from_slice(b"torn");
                std::fs::write(writer.path(), bytes).expect("written");
            }
        }
    }

    #[test]
    fn a_replay_up_to_a_time_has_all_up_to_it_and_nothing_later() {
        let directory = tempfile::tempdir().expect("a directory");
        write(directory.path());
        for until_ms in 999..1_040 {
            let (found, done) = replay(directory.path(), Some(until_ms));
            let written = entries();
            let expected = written.iter().filter(|entry| entry.time_ms <= until_ms);
            let expected: Vec<_> = expected.map(|entry| format!("{entry:?}")).collect();
            assert_eq!(found, expected, "{until_ms}");
            assert!(done.entries == found.len() as u64 && done.time_ms <= until_ms.max(1_000));
        }
    }

    #[test]
    fn a_replay_ends_at_a_torn_tail_and_tells_of_it() {
        let directory = tempfile::tempdir().expect("a directory");
        write(directory.path());
        let path = directory.path().join("appendonly.000003.aof");
        let file = File::options().write(true).open(&path).expect("it is there");
        let length = file.metadata().expect("a file").len();
        file.set_len(length - 3).expect("cut");
        let (found, done) = replay(directory.path(), None);
        let torn = done.torn.expect("it is torn");
        assert_eq!(done.stands, Some(Before { number: 3, length: torn.offset }));
        assert!(found.len() < 99 && done.bytes < done.bytes_total);
        // And where a part in the middle is shorter, what follows is not touched.
        let path = directory.path().join("appendonly.000002.aof");
        let file = File::options().write(true).open(&path).expect("it is there");
        file.set_len(file.metadata().expect("a file").len() - 3).expect("cut");
        let (found, done) = replay(directory.path(), None);
        assert!((34..66).contains(&found.len()) && done.torn.is_some());
        assert_eq!(done.stands.expect("it stands").number, 2);
    }

    /// What a start would do with the files: the entries as text, and whether it goes on.
    fn start(directory: &Path) -> (Vec<String>, bool) {
        let mut found = Vec::new();
        let parts = Parts::find(directory, AOF).expect("it can be listed");
        let Ok(chain) = parts.chain(Origin::Empty) else { return (found, false) };
        let Ok(mut replay) = Replay::new(&chain, None) else { return (found, false) };
        loop {
            match replay.next_entry() {
                Ok(Some(entry)) => found.push(format!("{entry:?}")),
                Ok(None) => return (found, true),
                Err(_) => return (found, false),
            }
        }
    }

    /// One bit of every fifth byte of every part, and as many lengths: a start refuses, or replays a prefix that lacks
    /// nothing but what was written since the last sync that the files know of.
    #[test]
    fn whatever_byte_changes_a_start_refuses_or_loses_no_more_than_the_unsynced_end() {
        let directory = tempfile::tempdir().expect("a directory");
        write(directory.path());
        std::fs::remove_file(directory.path().join(AOF)).expect("removed");
        let written: Vec<_> = entries().iter().map(|entry| format!("{entry:?}")).collect();
        for number in 1..=3 {
            let path = directory.path().join(format!("appendonly.{number:06}.aof"));
            let whole = std::fs::read(&path).expect("read");
            for at in (0..whole.len()).step_by(5) {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << (at % 8);
                std::fs::write(&path, &bytes).expect("written");
                let (found, goes_on) = start(directory.path());
                let what = format!("part {number}, byte {at}");
                assert_eq!(found, written[..found.len()], "{what}");
                // All of part 3 was written at once, so it knows of no sync behind its first line.
                assert!(!goes_on || number == 3 && found.len() >= 66, "{what}");
                std::fs::write(&path, &whole[..at]).expect("written");
                let (found, goes_on) = start(directory.path());
                assert_eq!(found, written[..found.len()], "{what}");
                assert!(
                    goes_on || number < 3 && found.is_empty(),
                    "a gap, or no beginning: {what}"
                );
            }
            std::fs::write(&path, &whole).expect("written");
        }
    }

    #[test]
    fn a_part_by_itself_is_replayed_too() {
        let directory = tempfile::tempdir().expect("a directory");
        write(directory.path());
        let link = Link::alone(&directory.path().join("appendonly.000002.aof")).expect("a part");
        let chain = Chain { links: vec![link], gap: None };
        let mut replay = Replay::new(&chain, None).expect("it is there");
        let first = replay.next_entry().expect("sound").expect("an entry");
        let written = entries()[33];
        assert_eq!(
            (first.effect, first.database, first.position),
            (written.effect, written.database, 1)
        );
    }
}
