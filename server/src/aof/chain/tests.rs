//! Which parts are taken, and what is said when one is not there.

use super::super::block::Blocks;
use super::super::part::{Base, Before};
use super::super::testing::{delete, entry};
use super::*;

const AOF: &str = "appendonly.aof";

/// A directory with parts in it.
struct Store {
    directory: tempfile::TempDir,
}

impl Store {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory") }
    }
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
    /// Writes a part with some blocks; its length.
    fn part(&self, number: u64, start: Start, before: Option<(u64, u64)>) -> u64 {
        let before = before.map(|(number, length)| Before { number, length });
        let mut bytes = Header { number, start, before, time_ms: 1_000 }.render();
        let mut blocks = Blocks::new(number, bytes.len() as u64, 1_000, 0);
        for position in 1..=number {
            blocks.push(&entry(position, 1_000 + position, delete(b"k")));
        }
        blocks.close();
        bytes.extend_from_slice(blocks.closed());
        fs::write(self.path(&part::file_name(AOF, number)), &bytes).expect("written");
        bytes.len() as u64
    }
    /// Parts 1 to 4, a checkpoint at the beginning of part 3; their lengths.
    fn four() -> (Self, [u64; 4]) {
        let store = Self::new();
        let one = store.part(1, Start::Empty, None);
        let two = store.part(2, Start::Part, Some((1, one)));
        let three = store.part(3, Start::Checkpoint(7), Some((2, two)));
        let four = store.part(4, Start::Part, Some((3, three)));
        fs::hard_link(store.path("appendonly.000004.aof"), store.path(AOF)).expect("linked");
        (store, [one, two, three, four])
    }
    fn append(&self, name: &str, bytes: &[u8]) {
        let old = fs::read(self.path(name)).expect("it is there");
        fs::write(self.path(name), [&old, bytes].concat()).expect("written");
    }
    fn parts(&self) -> Parts {
        Parts::find(self.directory.path(), AOF).expect("readable")
    }
    /// The numbers of the links, how far each counts, and the gap.
    fn chain(&self, origin: Origin) -> (Vec<(u64, Option<u64>)>, Option<Gap>) {
        let chain = self.parts().chain(origin).expect("a chain");
        let links = chain.links.iter().map(|link| (link.header.number, link.known.until));
        (links.collect(), chain.gap)
    }
    fn refused(&self, origin: Origin) -> String {
        self.parts().chain(origin).expect_err("no chain").to_string()
    }
}

#[test]
fn a_chain_goes_from_its_origin_to_the_newest_part() {
    let (store, [one, two, three, _]) = Store::four();
    let from_three = vec![(3, Some(three)), (4, None)];
    let all = [vec![(1, Some(one)), (2, Some(two))], from_three.clone()].concat();
    assert_eq!(store.chain(Origin::Empty), (all, None));
    assert_eq!(store.chain(Origin::Checkpoint(7)), (from_three, None));
    let first = |origin| store.parts().first(origin);
    assert_eq!((first(Origin::Checkpoint(7)), first(Origin::Checkpoint(8))), (Some(3), None));
    assert_eq!(
        store.refused(Origin::Checkpoint(8)),
        format!(
            "AOF: refused {}: no part of the append-only file goes on from checkpoint 8; the oldest \
             is 000001: put back the one that is missing, or move all parts aside to go on without \
             them",
            store.directory.path().display()
        )
    );
    let nothing = Store::new();
    assert!(nothing.parts().is_empty());
    assert_eq!(nothing.chain(Origin::Empty), (Vec::new(), None));
    assert_eq!(nothing.chain(Origin::Checkpoint(1)), (Vec::new(), None));
    let nowhere = Parts::find(&nothing.path("nowhere"), AOF).expect("nothing is there");
    assert!(nowhere.is_empty() && nowhere.next_number() == 1);
}

#[test]
fn a_missing_part_is_named() {
    let (store, [_, _, three, _]) = Store::four();
    fs::remove_file(store.path("appendonly.000002.aof")).expect("removed");
    let (links, gap) = store.chain(Origin::Empty);
    assert_eq!(links, [(1, None)]);
    let text = gap.expect("a gap").to_string();
    assert_eq!(text, "appendonly.000002.aof is missing, and part 000003 goes on from its end");
    let chain = store.chain(Origin::Checkpoint(7));
    assert_eq!(chain, (vec![(3, Some(three)), (4, None)], None), "the checkpoint does not need it");
    fs::remove_file(store.path("appendonly.000001.aof")).expect("removed");
    let refused = store.refused(Origin::Empty);
    let expected =
        "goes on from an empty store; the oldest is 000003 and needs 000002: put that back";
    assert!(refused.contains(expected), "{refused}");
}

#[test]
fn a_shorter_part_ends_the_chain_and_a_longer_one_counts_up_to_its_length() {
    let (store, [one, two, three, _]) = Store::four();
    store.append("appendonly.000001.aof", b"garbage");
    let chain = store.chain(Origin::Empty);
    assert_eq!(chain.0[..2], [(1, Some(one)), (2, Some(two))]);
    let path = store.path("appendonly.000003.aof");
    let file = File::options().write(true).open(&path).expect("it is there");
    file.set_len(three - 1).expect("cut");
    let (links, gap) = store.chain(Origin::Checkpoint(7));
    assert_eq!(links, [(3, None)]);
    assert_eq!(gap, Some(Gap::Shorter { path, length: three - 1, expected: three }));
}

/// The part of the newest checkpoint has lost its first line, and whatever little stood behind it.
#[test]
fn a_part_without_a_first_line_is_an_empty_one_only_right_behind_the_newest() {
    let (store, _) = Store::four();
    fs::write(store.path("appendonly.000005.aof"), b"#FERRITE").expect("written");
    assert_eq!(store.chain(Origin::Checkpoint(8)), (Vec::new(), None));
    assert_eq!(store.chain(Origin::Checkpoint(7)).0.len(), 2, "others have parts");
    fs::rename(store.path("appendonly.000005.aof"), store.path("appendonly.000006.aof"))
        .expect("renamed");
    assert!(store.refused(Origin::Checkpoint(8)).contains("goes on from checkpoint 8"));
    let alone = Store::new();
    fs::write(alone.path("appendonly.000005.aof"), b"").expect("written");
    assert_eq!(alone.chain(Origin::Checkpoint(8)), (Vec::new(), None));
}

/// `cp *.aof` makes two copies of the newest part, at two instants.
#[test]
fn of_two_copies_of_a_part_the_longer_is_taken_once() {
    let (store, [.., three, four]) = Store::four();
    for longer in ["appendonly.000004.aof", AOF] {
        let (store, _) = Store::four();
        let bytes = fs::read(store.path(AOF)).expect("it is there");
        fs::remove_file(store.path(AOF)).expect("removed");
        fs::write(store.path(AOF), bytes).expect("written");
        store.append(longer, b"more");
        let parts = store.parts();
        let part = &parts.parts()[&4];
        assert_eq!((part.path.clone(), part.length), (store.path(longer), four + 4));
        assert_eq!(part.copies.len(), 2);
        let (links, _) = store.chain(Origin::Checkpoint(7));
        assert_eq!(links, [(3, Some(three)), (4, None)]);
    }
    // Alone it is the part, too.
    fs::remove_file(store.path("appendonly.000004.aof")).expect("removed");
    assert_eq!(store.chain(Origin::Checkpoint(7)).0.len(), 2);
    assert_eq!(store.parts().next_number(), 5);
}

#[test]
fn a_base_part_begins_a_chain_and_a_part_of_one_checkpoint_only_ends_it() {
    let (store, [.., four]) = Store::four();
    let five = store.part(5, Start::Base(Base { number: 5, length: 0 }), Some((4, four)));
    let six = store.part(6, Start::Only(9), Some((5, five - 3)));
    let seven = store.part(7, Start::Part, Some((6, six)));
    let gap = Some(Gap::Only { number: 6, checkpoint: 9 });
    assert_eq!(store.chain(Origin::Empty), (vec![(5, Some(five - 3))], gap));
    let from_six = vec![(6, Some(six)), (7, None)];
    assert_eq!(store.chain(Origin::Checkpoint(9)), (from_six.clone(), None));
    // A replay to a time at which the base was not there begins before.
    let until = |ms| store.parts().chain_until(Origin::Empty, Some(ms)).expect("a chain").links;
    assert_eq!((until(999)[0].header.number, until(1_000)[0].header.number), (1, 5));
    // And one from a checkpoint goes through it.
    let from_seven: Vec<u64> =
        store.chain(Origin::Checkpoint(7)).0.iter().map(|(number, _)| *number).collect();
    assert_eq!(from_seven, [3, 4, 5]);
    // A part that was begun and given up: the one that was written after it is the next.
    store.part(9, Start::Part, Some((7, seven)));
    store.part(8, Start::Part, Some((7, seven)));
    let numbers: Vec<u64> =
        store.chain(Origin::Checkpoint(9)).0.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [6, 7, 9]);
}

#[test]
fn files_that_cannot_be_parts_are_refused_by_name_if_they_matter() {
    let (store, _) = Store::four();
    let write = |name: &str, bytes: &[u8]| fs::write(store.path(name), bytes).expect("written");
    write("appendonly.000009.aof", b"");
    write("appendonly.aof.cut-000000000000100", b"anything");
    write("other.000007.aof", b"anything");
    let parts = store.parts();
    assert_eq!(parts.unbegun().len(), 1);
    assert_eq!(
        parts.unbegun()[0].to_string(),
        format!(
            "AOF: cut {}: the first line does not match its checksum, and nothing of the 0 bytes in it \
             was known to be on disk",
            store.path("appendonly.000009.aof").display()
        )
    );
    assert_eq!((parts.parts().len(), parts.next_number()), (4, 10));
    assert!(parts.chain(Origin::Empty).expect("a chain").gap.is_none());

    let mut damaged = fs::read(store.path("appendonly.000002.aof")).expect("it is there");
    damaged[20] ^= 1;
    // Only what was known to be on disk can be damaged: the next part's word is not asked here.
    let mut blocks = Blocks::new(2, damaged.len() as u64, 1_000, 0);
    blocks.push(&entry(1, 2_000, delete(b"k")));
    blocks.close();
    damaged.extend_from_slice(blocks.closed());
    write("appendonly.000002.aof", &damaged);
    let error = store.refused(Origin::Empty);
    assert!(error.starts_with("AOF: refused ") && error.contains("000002.aof"), "{error}");
    assert!(store.parts().chain(Origin::Checkpoint(7)).is_ok(), "the checkpoint does not need it");

    fs::copy(store.path("appendonly.000003.aof"), store.path("appendonly.000006.aof"))
        .expect("copied");
    let error = store.refused(Origin::Checkpoint(7));
    assert!(error.contains("000006.aof: it is part 000003"), "{error}");
    fs::remove_file(store.path("appendonly.000006.aof")).expect("removed");

    fs::remove_file(store.path(AOF)).expect("removed");
    write(AOF, b"*1\r\n$4\r\nPING\r\n");
    let error = store.refused(Origin::Checkpoint(7));
    assert!(error.contains("does not begin as a part"), "{error}");
}

/// A writer appends while the files are looked for, and may then give `aof_file` to the next part.
#[test]
fn a_part_that_grows_meanwhile_keeps_its_own_name() {
    let (store, [.., four]) = Store::four();
    let mut parts = Parts { parts: BTreeMap::new(), ..store.parts() };
    let numbered = store.path("appendonly.000004.aof");
    parts.add(numbered.clone(), Some(4));
    let mut file = File::options().append(true).open(&numbered).expect("it is there");
    std::io::Write::write_all(&mut file, b"more").expect("written");
    parts.add(store.path(AOF), None);
    let part = &parts.parts[&4];
    assert_eq!((&part.path, part.length, part.copies.len()), (&numbered, four + 4, 2));
    // A copy that is longer is another file.
    fs::copy(&numbered, store.path("copy")).expect("copied");
    store.append("copy", b"and more");
    parts.add(store.path("copy"), None);
    assert_eq!(parts.parts[&4].path, store.path("copy"));
}
