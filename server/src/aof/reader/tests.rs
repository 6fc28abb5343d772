//! What is written comes back; what was changed on the way is noticed, and never read as a command
//! that nobody wrote.

use super::super::block::Blocks;
use super::super::effect::{Effect, Entry};
use super::super::part::{Before, Start};
use super::super::testing::{delete, entry};
use super::*;
use proptest::prelude::*;
use std::cell::Cell;

const PATH: &str = "data/appendonly.000007.aof";

/// A command: its offset, time and bytes.
type Read = (u64, u64, Vec<u8>);

/// A part as a writer makes it.
struct Written {
    bytes: Vec<u8>,
    /// Its commands with their offsets and times, and `SELECT` among them.
    commands: Vec<Read>,
    /// Each block: where it begins, and what it says was synced.
    blocks: Vec<(u64, u64)>,
}

impl Written {
    /// Writes groups of entries; each group is closed, written, and synced if its flag says so.
    fn new(groups: &[(Vec<Entry<'_>>, bool)]) -> Self {
        let mut bytes = header().render();
        let mut blocks = Blocks::new(7, bytes.len() as u64, 1_000, 0);
        for (entries, sync) in groups {
            entries.iter().for_each(|entry| blocks.push(entry));
            blocks.close();
            bytes.extend_from_slice(blocks.closed());
            blocks.written();
            if *sync {
                blocks.synced(bytes.len() as u64);
            }
        }
        let (mut all, mut commands) = (Vec::new(), Vec::new());
        let mut reader = open(&bytes, Known::default()).expect("sound");
        while let Some(block) = reader.next_block().expect("sound") {
            all.push((block.at, block.synced));
        }
        let mut reader = open(&bytes, Known::default()).expect("sound");
        while let Some(command) = reader.next_command().expect("sound") {
            commands.push((command.offset, command.time_ms, command.bytes.to_vec()));
        }
        assert_eq!(reader.end(), Some(&End::Whole(bytes.len() as u64)));
        Self { bytes, commands, blocks: all }
    }
    /// Five blocks, four of them synced by what the next one says.
    fn small() -> Self {
        let put = Effect::Put { key: b"key", value: b"\r\n*1\r\n", expires_at_ms: Some(9_999) };
        let group = |time_ms, effects: &[Effect<'static>]| -> Vec<Entry<'static>> {
            effects.iter().map(|effect| entry(time_ms, time_ms, *effect)).collect()
        };
        Self::new(&[
            (group(1_000, &[put, delete(b"a")]), true),
            (group(1_001, &[Effect::Begin, put, delete(b"b"), Effect::End]), true),
            (group(2_500, &[Effect::Flush]), true),
            (group(2_501, &[put]), true),
            (group(2_502, &[delete(b"c")]), false),
        ])
    }
    /// The block that a byte lies in; `None` for the first line.
    fn block_of(&self, offset: usize) -> Option<usize> {
        self.blocks.iter().rposition(|(at, _)| *at <= offset as u64)
    }
    fn block_end(&self, block: usize) -> usize {
        self.blocks.get(block + 1).map_or(self.bytes.len(), |(at, _)| *at as usize)
    }
}

fn header() -> Header {
    let before = Some(Before { number: 6, length: 500 });
    Header { number: 7, start: Start::Checkpoint(3), before, time_ms: 1_000 }
}

fn open(bytes: &[u8], known: Known) -> Result<PartReader<&[u8]>, ReadError> {
    PartReader::open(bytes, Path::new(PATH), known)
}

/// Reads all there is: the commands and how it ended.
fn read(bytes: &[u8], known: Known) -> (Vec<Read>, Result<End, ReadError>) {
    let mut commands = Vec::new();
    let mut reader = match open(bytes, known) {
        Ok(reader) => reader,
        Err(e) => return (commands, Err(e)),
    };
    loop {
        match reader.next_command() {
            Ok(Some(command)) => {
                commands.push((command.offset, command.time_ms, command.bytes.to_vec()));
            }
            Ok(None) => return (commands, Ok(reader.end().expect("it has ended").clone())),
            Err(e) => return (commands, Err(e)),
        }
    }
}

#[test]
fn commands_come_back_with_their_places_times_and_effects() {
    let written = Written::small();
    assert_eq!(written.blocks.len(), 5);
    for (offset, _, bytes) in &written.commands {
        assert!(written.bytes[*offset as usize..].starts_with(bytes));
    }
    let times: Vec<u64> = written.commands.iter().map(|(_, time_ms, _)| *time_ms).collect();
    assert_eq!(times, [1_000, 1_000, 1_000, 1_001, 1_001, 1_001, 1_001, 2_500, 2_501, 2_502]);
    let mut reader = open(&written.bytes, Known::default()).expect("sound");
    assert_eq!(reader.header(), &header());
    let mut steps = Vec::new();
    while let Some(command) = reader.next_command().expect("sound") {
        let step = command.step();
        steps.push(format!("{step:?}"));
    }
    assert_eq!(steps[0], "Select(0)");
    assert_eq!(steps[2], format!("{:?}", Step::Effect(delete(b"a"))));
    assert_eq!(steps[3], "Effect(Begin)");
    assert_eq!(steps[7], "Effect(Flush)");
}

/// Every bit of the file: the flip is noticed, what is read before it was written, and what was
/// known to be on disk is never cut off.
#[test]
fn every_flipped_bit_is_noticed_and_no_command_is_made_up() {
    let written = Written::small();
    let mut bytes = written.bytes.clone();
    let (mut torn, mut damaged) = (0, 0);
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let (commands, end) = read(&bytes, Known::default());
        bytes[bit / 8] ^= 1 << (bit % 8);
        let block = written.block_of(bit / 8);
        let at = block.map_or(0, |block| written.blocks[block].0);
        let before: Vec<_> =
            written.commands.iter().filter(|(offset, ..)| *offset < at).cloned().collect();
        assert_eq!(commands, before, "bit {bit}");
        // The lines of later blocks tell what was on disk; the last block has none behind it.
        if block == Some(written.blocks.len() - 1) {
            torn += 1;
            let Ok(End::Torn(end)) = end else { panic!("bit {bit}: {end:?}") };
            assert_eq!((end.offset, end.lost_bytes), (at, bytes.len() as u64 - at));
            assert_eq!(end.kept_until_ms, 2_501);
        } else {
            damaged += 1;
            let Err(ReadError::Damaged(damage)) = end else { panic!("bit {bit}: {end:?}") };
            assert_eq!(damage.offset, at, "bit {bit}");
            assert_eq!(damage.lost_until_ms, Some(2_502));
            assert!(damage.synced > at);
        }
        // With the next part's word for it, all of it is damage.
        let length = bytes.len() as u64;
        bytes[bit / 8] ^= 1 << (bit % 8);
        let (_, end) = read(&bytes, Known { synced: length, until: Some(length) });
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(end, Err(ReadError::Damaged(_))), "bit {bit}: {end:?}");
    }
    assert!(torn > 1_000 && damaged > 5_000, "{torn} {damaged}");
}

#[test]
fn every_length_gives_a_prefix_and_says_what_is_missing() {
    let written = Written::small();
    for length in 0..written.bytes.len() {
        let bytes = &written.bytes[..length];
        let (commands, end) = read(bytes, Known::default());
        assert_eq!(commands, written.commands[..commands.len()], "{length}");
        match end {
            Ok(End::Whole(at)) => {
                assert_eq!(at as usize, length);
                let next = written.blocks.iter().find(|(at, _)| *at as usize >= length);
                assert_eq!(next.map(|(at, _)| *at as usize), Some(length));
            }
            Ok(End::Torn(end)) => {
                assert!(written.blocks.iter().any(|(at, _)| *at == end.offset));
                assert_eq!(end.offset + end.lost_bytes, length as u64);
            }
            Err(ReadError::Unbegun(end)) => {
                assert!((length as u64) < written.blocks[0].0 && end.offset == 0);
            }
            other => panic!("{length}: {other:?}"),
        }
        let known = Known { synced: written.bytes.len() as u64, until: None };
        let (_, end) = read(bytes, known);
        assert!(matches!(end, Err(ReadError::Damaged(_))), "{length}: {end:?}");
    }
}

#[test]
fn a_tail_of_zeros_garbage_or_old_blocks_is_cut_off() {
    let written = Written::small();
    let end = written.bytes.len();
    let second = &written.bytes[written.blocks[1].0 as usize..written.block_end(1)];
    let elsewhere = {
        // A block of another part that says it stands here.
        let mut blocks = Blocks::new(8, end as u64, 0, 0);
        blocks.push(&entry(1, 3_000, delete(b"x")));
        blocks.close();
        blocks.closed().to_vec()
    };
    let tails: [(&[u8], Why); 6] = [
        (&[0; 5_000], Why::Line),
        (b"*1\r\n$8\r\nFLUSHALL\r\n", Why::Line),
        (&[0xff; 100], Why::Line),
        (second, Why::Elsewhere),
        (&elsewhere, Why::Elsewhere),
        (&elsewhere[..elsewhere.len() - 1], Why::Elsewhere),
    ];
    for (tail, why) in tails {
        let bytes = [&written.bytes, tail].concat();
        let (commands, found) = read(&bytes, Known::default());
        assert_eq!(commands, written.commands);
        let Ok(End::Torn(found)) = found else { panic!("{found:?}") };
        assert_eq!((found.offset, found.lost_bytes), (end as u64, tail.len() as u64));
        assert_eq!((found.why, found.kept_until_ms), (why, 2_502));
        // What the next part says does not count is not looked at.
        let until = Some(end as u64);
        let (commands, found) = read(&bytes, Known { synced: end as u64, until });
        assert_eq!(commands, written.commands);
        assert_eq!(found.ok(), Some(End::Whole(end as u64)));
    }
}

/// Blocks that reached the disk behind one that did not: nothing was promised of them.
#[test]
fn a_hole_among_what_was_not_synced_is_a_torn_tail() {
    let group = |time_ms| vec![entry(time_ms, time_ms, delete(b"k"))];
    let written = Written::new(&[
        (group(1_000), true),
        (group(1_001), false),
        (group(1_002), false),
        (group(1_003), false),
    ]);
    let mut bytes = written.bytes.clone();
    bytes[written.blocks[1].0 as usize..written.block_end(1)].fill(0);
    let (commands, end) = read(&bytes, Known::default());
    assert_eq!(commands, written.commands[..2]);
    let Ok(End::Torn(end)) = end else { panic!("{end:?}") };
    assert_eq!((end.offset, end.why), (written.blocks[1].0, Why::Line));
    assert_eq!((end.kept_until_ms, end.lost_until_ms), (1_000, Some(1_003)));
    // The same hole in what was synced.
    let mut bytes = written.bytes.clone();
    bytes[written.blocks[0].0 as usize..written.block_end(0)].fill(0);
    let (commands, end) = read(&bytes, Known::default());
    assert!(commands.is_empty() && matches!(end, Err(ReadError::Damaged(_))), "{end:?}");
}

#[test]
fn messages_say_where_what_and_what_to_do() {
    let written = Written::small();
    let at = written.blocks[1].0;
    let mut bytes = written.bytes.clone();
    bytes[at as usize + 200] ^= 1;
    let message = read(&bytes, Known::default()).1.expect_err("damaged").to_string();
    let lost = bytes.len() as u64 - at;
    let synced = written.blocks[4].1;
    assert_eq!(
        message,
        format!(
            "AOF: refused {PATH}: damaged at offset {at}: the block does not match its checksum, \
             and the file was on disk up to {synced}; put the file back from a backup, or give up \
             the {lost} bytes from there on (all after 1970-01-01T00:00:01.000Z, up to \
             1970-01-01T00:00:02.502Z) with: ferrite aof truncate --to-offset {at} {PATH}"
        )
    );
    let last = written.blocks[4].0;
    let torn = read(&written.bytes[..written.bytes.len() - 1], Known::default()).1;
    let Ok(End::Torn(torn)) = torn else { panic!("{torn:?}") };
    let lost = written.bytes.len() as u64 - 1 - last;
    assert_eq!(
        torn.to_string(),
        format!(
            "AOF: cut {PATH}: ends at offset {last}: the {lost} bytes from there on were not completely \
             written (the file ends inside the block); what is kept ends at \
             1970-01-01T00:00:02.501Z, 1 ms before the last write that is lost"
        )
    );
}

#[test]
fn other_files_and_other_versions_are_told_apart() {
    let redis = b"*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n";
    assert!(matches!(read(redis, Known::default()).1, Err(ReadError::Foreign { .. })));
    assert!(matches!(read(b"REDIS0011", Known::default()).1, Err(ReadError::Foreign { .. })));
    let mut other = b"#FERRITE-AOF version=2 part=1".to_vec();
    super::super::text::seal(&mut other);
    assert!(matches!(read(&other, Known::default()).1, Err(ReadError::Version { found: 2, .. })));
    for unbegun in [&b""[..], b"#FERR", &[0; 4096]] {
        assert!(matches!(read(unbegun, Known::default()).1, Err(ReadError::Unbegun(_))));
    }
}

/// Gives a few bytes at a time, and fails on demand.
struct Slow<'a> {
    bytes: &'a [u8],
    step: usize,
    reads_left: Cell<usize>,
}

impl Source for Slow<'_> {
    fn read_at(&self, to: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.reads_left.get();
        self.reads_left.set(left.checked_sub(1).ok_or(io::ErrorKind::Other)?);
        if left.is_multiple_of(3) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let step = to.len().min(self.step);
        self.bytes.read_at(&mut to[..step], offset)
    }
    fn length(&self) -> io::Result<u64> {
        self.bytes.length()
    }
}

/// A transaction of several windows, a value larger than one, and many small blocks.
fn large() -> Written {
    let value: Vec<u8> = (0..3 * WINDOW).map(|i| i as u8).collect();
    let mut transaction = vec![entry(1, 1_000, Effect::Begin)];
    for i in 0..40 {
        let put = Effect::Put { key: b"k", value: &value[i..i + 30_000], expires_at_ms: None };
        transaction.push(entry(2, 1_000, put));
    }
    transaction.push(entry(3, 1_000, Effect::End));
    let one = Effect::Put { key: b"k", value: &value, expires_at_ms: None };
    let small = (0..5_000).map(|i| entry(5 + i, 1_002 + i / 3, delete(b"k"))).collect();
    Written::new(&[(transaction, true), (vec![entry(4, 1_001, one)], true), (small, false)])
}

#[test]
fn large_blocks_are_read_in_windows_and_errors_are_told() {
    let written = large();
    let mut reads = 0;
    for step in [WINDOW, 10_007] {
        let source = Slow { bytes: &written.bytes, step, reads_left: Cell::new(usize::MAX) };
        let mut reader =
            PartReader::open(source, Path::new(PATH), Known::default()).expect("sound");
        let mut expected = written.commands.iter();
        while let Some(command) = reader.next_command().expect("sound") {
            let (offset, _, bytes) = expected.next().expect("no more than were written");
            assert!((command.offset, command.bytes) == (*offset, &bytes[..]));
        }
        assert_eq!(expected.len(), 0);
        assert_eq!(reader.end(), Some(&End::Whole(written.bytes.len() as u64)));
        // The value of three windows is what is largest; the transaction is larger than that.
        assert!(reader.window.bytes.capacity() <= 8 * WINDOW, "{}", reader.window.bytes.capacity());
        reads = usize::MAX - reader.source.reads_left.get();
    }
    for fail_at in (0..reads).step_by(reads / 20) {
        let reads_left = Cell::new(fail_at);
        let source = Slow { bytes: &written.bytes, step: 10_007, reads_left };
        let mut reader = match PartReader::open(source, Path::new(PATH), Known::default()) {
            Ok(reader) => reader,
            Err(e) => {
                assert!(matches!(e, ReadError::Io { .. }));
                continue;
            }
        };
        let error = loop {
            match reader.next_command() {
                Ok(command) => assert!(command.is_some(), "it ends before the error"),
                Err(e) => break e,
            }
        };
        assert!(matches!(error, ReadError::Io { .. }), "{error}");
        assert_eq!(error.to_string(), format!("cannot read {PATH}: other error"));
    }
}

fn entries() -> impl Strategy<Value = Vec<(u64, u8, u8, Vec<u8>)>> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..40);
    proptest::collection::vec((0..4u64, 0..3u8, 0..9u8, bytes), 1..40)
}

/// Entries of random kinds with times that mostly go on.
fn written(script: &[(u64, u8, u8, Vec<u8>)]) -> Written {
    let (mut groups, mut time_ms) = (Vec::new(), 1_000);
    for (position, (step, database, kind, bytes)) in script.iter().enumerate() {
        time_ms += step;
        let one =
            |effect| Entry { position: position as u64, time_ms, database: *database, effect };
        let put = Effect::Put { key: bytes, value: bytes, expires_at_ms: None };
        let effects = match kind {
            0..=3 => vec![put],
            4 => vec![Effect::Delete { key: bytes }],
            5 => vec![Effect::Expire { key: bytes, at_ms: *step }],
            6 => vec![Effect::Swap { with: 1 }],
            7 => vec![Effect::Begin, put, Effect::Persist { key: bytes }, Effect::End],
            _ => vec![Effect::Begin, Effect::End],
        };
        let entries: Vec<_> = effects.into_iter().map(one).collect();
        groups.push((entries, step % 2 == 0));
    }
    Written::new(&groups)
}

proptest! {
    /// Whatever bytes are written over a part, nothing is read that was not written, and nothing
    /// but a prefix.
    #[test]
    fn whatever_changes_only_a_prefix_is_read(
        script in entries(),
        at in any::<prop::sample::Index>(),
        length in 0..600usize,
        with in proptest::collection::vec(any::<u8>(), 0..600),
        cut in any::<bool>(),
    ) {
        let written = written(&script);
        let at = at.index(written.bytes.len());
        let end = (at + length).min(written.bytes.len());
        let mut bytes = written.bytes[..at].to_vec();
        bytes.extend_from_slice(&with);
        if !cut {
            bytes.extend_from_slice(&written.bytes[end..]);
        }
        let (commands, result) = read(&bytes, Known::default());
        prop_assert_eq!(&commands[..], &written.commands[..commands.len()]);
        if let Ok(End::Whole(end)) = result {
            prop_assert!(bytes == written.bytes || written.blocks.iter().any(|(at, _)| *at == end));
            prop_assert_eq!(end as usize, bytes.len());
        }
    }

    /// Blocks moved, doubled or left out are noticed, though each is sound by itself.
    #[test]
    fn blocks_in_another_order_are_noticed(
        script in entries(),
        order in proptest::collection::vec(any::<prop::sample::Index>(), 1..12),
    ) {
        let written = written(&script);
        prop_assume!(!written.blocks.is_empty());
        let mut bytes = written.bytes[..written.blocks[0].0 as usize].to_vec();
        for index in order {
            let block = index.index(written.blocks.len());
            let range = written.blocks[block].0 as usize..written.block_end(block);
            bytes.extend_from_slice(&written.bytes[range]);
        }
        let (commands, _) = read(&bytes, Known::default());
        prop_assert_eq!(&commands[..], &written.commands[..commands.len()]);
    }

    /// No bytes make it panic.
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&bytes, Known::default());
        let mut begun = header().render();
        begun.extend_from_slice(&bytes);
        let _ = read(&begun, Known::default());
        let mut words = Vec::new();
        let _ = split(&bytes, &mut words);
    }
}
