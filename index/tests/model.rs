//! The index beside a plain map, one step after the other: what the map knows, the index knows, at
//! any size, through growth, growth held, a lowered limit and a trip through its image.
#![cfg(not(loom))]

use ferrite_index::{
    Address, Epoch, HashIndex, ImageError, IndexConfig, KeyHash, Participant, read_image,
};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// So small a table that each of the few keys below shares its chain with many others.
const BITS: u32 = 2;
/// The hash bits that an index with this smallest size can tell apart.
const KNOWN: u64 = (1 << (BITS + 15)) - 1;

fn config(max_bytes: u64) -> IndexConfig {
    IndexConfig { smallest_bits: BITS, max_bytes, huge_pages: false }
}

type Name = (u64, bool);
type Map = BTreeMap<Name, Address>;

#[derive(Clone, Debug)]
enum Step {
    Set(u64, bool),
    Remove(u64, bool),
    /// Set all, then remove some of them again, under one latch each time they share a bucket.
    Several(Vec<u64>),
    Grow(u8),
    Hold(bool),
    Probe(u64, bool),
    Walk,
    Image,
}

fn a_key() -> impl Strategy<Value = u64> {
    // Dense low bits make chains; the bits above the known ones must not matter.
    (0..600u64, 0..4u64, any::<bool>()).prop_map(|(low, high, wide)| {
        low.wrapping_mul(if wide { 211 } else { 1 }) & KNOWN | high << (BITS + 15)
    })
}

fn a_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (a_key(), any::<bool>()).prop_map(|(key, node)| Step::Set(key, node)),
        8 => (a_key(), any::<bool>()).prop_map(|(key, node)| Step::Remove(key, node)),
        3 => vec(a_key(), 1..12).prop_map(Step::Several),
        6 => any::<u8>().prop_map(Step::Grow),
        2 => any::<bool>().prop_map(Step::Hold),
        10 => (a_key(), any::<bool>()).prop_map(|(key, node)| Step::Probe(key, node)),
        1 => Just(Step::Walk),
        1 => Just(Step::Image),
    ]
}

struct Bench {
    epoch: Arc<Epoch>,
    participant: Participant,
    index: HashIndex,
    map: Map,
    next: u64,
}

impl Bench {
    fn new() -> Self {
        let epoch = Arc::new(Epoch::new(1));
        let participant = epoch.register("model").unwrap();
        let index = HashIndex::new(config(0), Arc::clone(&epoch)).unwrap();
        Self { epoch, participant, index, map: Map::new(), next: 1 }
    }

    fn address(&mut self) -> Address {
        self.next += 1;
        Address::new(self.next)
    }

    fn set(&mut self, key: u64, node: bool) {
        let (hash, address) = (KeyHash::from_raw(key), self.address());
        let pin = self.participant.pin();
        let latch = self.index.latch(&pin, hash).unwrap();
        latch.reserve(hash, node).unwrap();
        latch.set(hash, node, address);
        assert_eq!(latch.address(hash, node), Some(address));
        drop(latch);
        self.map.insert((key & KNOWN, node), address);
    }

    fn remove(&mut self, key: u64, node: bool) {
        let hash = KeyHash::from_raw(key);
        let pin = self.participant.pin();
        self.index.latch(&pin, hash).unwrap().remove(hash, node);
        self.map.remove(&(key & KNOWN, node));
    }

    fn several(&mut self, keys: &[u64]) {
        let first = KeyHash::from_raw(keys[0]);
        let addresses: Vec<Address> = keys.iter().map(|_| self.address()).collect();
        let pin = self.participant.pin();
        let latch = self.index.latch(&pin, first).unwrap();
        latch.mark_multi();
        assert!(self.index.probe(&pin, first, false).is_err());
        let keys = keys.iter().map(|key| (*key, KeyHash::from_raw(*key)));
        let mine: Vec<_> =
            keys.zip(addresses).filter(|((_, hash), _)| latch.covers(&self.index, *hash)).collect();
        // All reservations first: none of the sets may fail after it.
        mine.iter().for_each(|((_, hash), _)| latch.reserve(*hash, false).unwrap());
        for ((key, hash), address) in &mine {
            latch.set(*hash, false, *address);
            self.map.insert((key & KNOWN, false), *address);
        }
        for ((key, hash), address) in mine.iter().skip(1).step_by(2) {
            latch.remove(*hash, false);
            if address.raw() % 3 == 0 {
                latch.set(*hash, false, *address);
                self.map.insert((key & KNOWN, false), *address);
            } else {
                self.map.remove(&(key & KNOWN, false));
            }
        }
    }

    fn check_probe(&self, key: u64, node: bool) {
        let hash = KeyHash::from_raw(key);
        let pin = self.participant.pin();
        let probe = self.index.probe(&pin, hash, node).unwrap();
        let expected = self.map.get(&(key & KNOWN, node)).copied();
        assert_eq!(probe.address(), expected, "{key:#x} {node}");
        assert!(probe.still_open());
        let latch = self.index.latch_shared(&pin, hash).unwrap();
        assert_eq!(latch.address(hash, node), expected);
    }

    fn check_walk(&self) {
        let (mut cursor, mut seen) = (0, Vec::new());
        loop {
            let pin = self.participant.pin();
            cursor = self.index.walk(&pin, cursor, |address, node| seen.push((address, node)));
            if cursor == 0 {
                break;
            }
        }
        let expected: Vec<_> =
            self.map.iter().map(|((_, node), address)| (*address, *node)).collect();
        assert_eq!(sorted(seen), sorted(expected));
        let pin = self.participant.pin();
        let any = self.index.sample(&pin, self.next * 0x9e37, |address, node| {
            assert!(self.map.iter().any(|((_, n), a)| *n == node && *a == address));
        });
        assert_eq!(any, !self.map.is_empty());
    }

    fn image(&self) -> Vec<u8> {
        let pin = self.participant.pin();
        let hold = self.index.hold_growth();
        let (mut image, mut next) = (Vec::new(), 0);
        while next < self.index.bucket_count() {
            next = self.index.image_chunk(&pin, &hold, next, 3, &mut image);
        }
        image
    }

    /// The index, rebuilt from its own image at the size it has.
    fn reborn(&self) -> HashIndex {
        let count = self.index.bucket_count();
        let new = HashIndex::with_buckets(config(0), Arc::clone(&self.epoch), count).unwrap();
        let image = self.image();
        let pin = self.participant.pin();
        read_image(&image, BITS, |hash, node, address| {
            let latch = new.latch(&pin, hash).unwrap();
            assert_eq!(latch.address(hash, node), None, "an entry stands in an image once");
            latch.reserve(hash, node).unwrap();
            latch.set(hash, node, address);
        })
        .unwrap();
        assert_eq!(new.level_and_split(), self.index.level_and_split());
        drop(pin);
        new
    }
}

fn sorted<T: Ord>(mut items: Vec<T>) -> Vec<T> {
    items.sort_unstable();
    items
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_index_knows_what_a_map_knows(steps in vec(a_step(), 1..400)) {
        let mut bench = Bench::new();
        let mut held = false;
        for step in steps {
            match step {
                Step::Set(key, node) => bench.set(key, node),
                Step::Remove(key, node) => bench.remove(key, node),
                Step::Several(keys) => bench.several(&keys),
                Step::Grow(times) => {
                    let hold = held.then(|| bench.index.hold_growth());
                    for _ in 0..times {
                        let before = bench.index.bucket_count();
                        let grown = bench.index.grow(&bench.participant.pin());
                        prop_assert_eq!(bench.index.bucket_count(), before + u64::from(grown));
                        prop_assert!(!(grown && held));
                        if !grown {
                            let over = bench.index.entries() > before * 9;
                            prop_assert!(held || !over || before == 4 << 8);
                            break;
                        }
                    }
                    drop(hold);
                }
                Step::Hold(on) => held = on,
                Step::Probe(key, node) => bench.check_probe(key, node),
                Step::Walk => bench.check_walk(),
                Step::Image => bench.index = bench.reborn(),
            }
            prop_assert_eq!(bench.index.entries(), bench.map.len() as u64);
        }
        for key in 0..600 {
            bench.check_probe(key, false);
            bench.check_probe((key * 211) & KNOWN, true);
        }
        bench.check_walk();
    }

    /// What an image says is found again at any size, and by the full hash as well as the partial.
    #[test]
    fn a_partial_hash_leads_where_the_full_one_does(
        keys in vec(any::<u64>(), 1..200),
        smallest_bits in 0..12u32,
        counts in (0.0..1.0f64, 0.0..1.0f64),
    ) {
        let epoch = Arc::new(Epoch::new(1));
        let participant = epoch.register("test").unwrap();
        let config = IndexConfig { smallest_bits, max_bytes: 0, huge_pages: false };
        let sized = |share: f64| {
            let smallest = 1u64 << smallest_bits;
            let count = smallest + (share * (smallest * 255) as f64) as u64;
            HashIndex::with_buckets(config, Arc::clone(&epoch), count).unwrap()
        };
        let (one, two) = (sized(counts.0), sized(counts.1));
        let pin = participant.pin();
        let mut newest = BTreeMap::new();
        let put = |index: &HashIndex, hash, node, address| {
            let latch = index.latch(&pin, hash).unwrap();
            latch.reserve(hash, node).unwrap();
            latch.set(hash, node, address);
        };
        for (n, key) in keys.iter().enumerate() {
            let (hash, address) = (KeyHash::from_raw(*key), Address::new(n as u64 + 1));
            put(&one, hash, n % 2 == 0, address);
            newest.insert((key & ((1 << (smallest_bits + 15)) - 1), n % 2 == 0), (hash, address));
        }
        let mut image = Vec::new();
        one.image_chunk(&pin, &one.hold_growth(), 0, u64::MAX, &mut image);
        read_image(&image, smallest_bits, |hash, node, address| put(&two, hash, node, address)).unwrap();
        for ((_, node), (hash, address)) in newest {
            prop_assert_eq!(one.probe(&pin, hash, node).unwrap().address(), Some(address));
            prop_assert_eq!(two.probe(&pin, hash, node).unwrap().address(), Some(address));
        }
    }

    /// A damaged image is refused or says something else; it never makes the reader fail.
    #[test]
    fn any_bytes_are_read_or_refused_in_place(
        bytes in vec(any::<u8>(), 0..200),
        smallest_bits in 0..27u32,
    ) {
        let mut entries = 0;
        match read_image(&bytes, smallest_bits, |_, _, address| {
            assert!(address.is_valid());
            entries += 1;
        }) {
            Ok(()) => prop_assert!(bytes.len() % 8 == 0 && entries * 8 <= bytes.len()),
            Err(ImageError { offset, .. }) => prop_assert!(offset <= bytes.len() as u64),
        }
    }
}

#[test]
fn a_truncated_image_is_refused_where_it_ends() {
    let mut bench = Bench::new();
    (0..100).for_each(|key| bench.set(key, false));
    let image = bench.image();
    let groups = bench.index.bucket_count() as usize;
    assert_eq!(image.len(), (groups + 100) * 8);
    for end in (0..image.len()).filter(|end| end % 8 != 0) {
        let error = read_image(&image[..end], BITS, |_, _, _| ()).unwrap_err();
        assert_eq!(error.offset, end as u64 / 8 * 8);
    }
}

#[test]
fn an_image_of_another_smallest_size_is_refused() {
    let mut bench = Bench::new();
    (0..5000u64).for_each(|key| {
        bench.set(key.wrapping_mul(0x9e37_79b9_7f4a_7c15), false);
        bench.index.grow(&bench.participant.pin());
    });
    let image = bench.image();
    read_image(&image, BITS, |_, _, _| ()).unwrap();
    let error = read_image(&image, BITS - 1, |_, _, _| ()).unwrap_err();
    assert!(error.found.contains("bucket"), "{error}");
}

/// Rule 15: at the limit growth stops, chains lengthen to 4 buckets, then new keys are refused; and
/// what was there stays usable.
#[test]
fn at_the_limit_chains_lengthen_to_four_buckets_and_then_inserts_are_refused() {
    let epoch = Arc::new(Epoch::new(1));
    let participant = epoch.register("test").unwrap();
    let limit = 64 * 64;
    let index = HashIndex::new(config(limit), Arc::clone(&epoch)).unwrap();
    let mut accepted = BTreeSet::new();
    let mut refused = 0;
    for key in 0..4000u64 {
        let pin = participant.pin();
        let hash = KeyHash::from_raw(key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20);
        let latch = index.latch(&pin, hash).unwrap();
        match latch.reserve(hash, false) {
            Ok(()) => {
                latch.set(hash, false, Address::new(key + 1));
                accepted.insert(hash.raw() & KNOWN);
            }
            Err(error) => {
                assert!(error.to_string().contains("index_max_size"));
                refused += 1;
            }
        }
        drop(latch);
        index.grow(&pin);
    }
    assert!(refused > 0);
    assert_eq!(index.entries(), accepted.len() as u64);
    // The table had grown until table and overflow buckets together reached the limit. A few more
    // overflow buckets than four a chain may have been in use while others waited to be used again.
    assert!(index.bucket_count() * 64 < limit && index.bytes() >= limit, "{index:?}");
    assert!(index.bytes() <= (4 * index.bucket_count() + 4) * 64, "{index:?}");
    let pin = participant.pin();
    // No chain is longer than 28 entries, and the longest is exactly that.
    let mut longest = 0;
    let mut cursor = 0;
    loop {
        let mut length = 0;
        cursor = index.walk(&pin, cursor, |_, _| length += 1);
        longest = longest.max(length);
        if cursor == 0 {
            break;
        }
    }
    assert_eq!(longest, 28);
    // An entry that is there can still be set, and a removed one makes room.
    let there = KeyHash::from_raw(*accepted.first().unwrap());
    let latch = index.latch(&pin, there).unwrap();
    latch.reserve(there, false).unwrap();
    latch.set(there, false, Address::new(9999));
    latch.remove(there, false);
    latch.reserve(there, false).unwrap();
}

/// A removed entry's overflow bucket goes back once nobody can stand in it, so filling and emptying
/// a chain for ever needs no more memory than filling it a few times.
#[test]
fn overflow_buckets_are_used_again() {
    let mut bench = Bench::new();
    let fill_and_empty = |bench: &mut Bench| {
        (0..700).for_each(|key| bench.set(key, false));
        (0..700).for_each(|key| bench.remove(key, false));
    };
    (0..4).for_each(|_| fill_and_empty(&mut bench));
    let bytes = bench.index.bytes();
    (0..50).for_each(|_| fill_and_empty(&mut bench));
    assert_eq!(bench.index.bytes(), bytes);
    assert_eq!(bench.index.entries(), 0);
}

/// The promise of the load factor: at most 12.5 bytes an entry over a doubling, overflow buckets
/// included, as the kernel counts them too.
#[test]
fn a_doubling_takes_at_most_twelve_and_a_half_bytes_an_entry() {
    let epoch = Arc::new(Epoch::new(1));
    let participant = epoch.register("test").unwrap();
    let config = IndexConfig { smallest_bits: 12, max_bytes: 0, huge_pages: false };
    let index = HashIndex::new(config, Arc::clone(&epoch)).unwrap();
    let (from, to) = (150_000u64, 300_000u64);
    let (mut sum, mut samples) = (0.0, 0);
    let mut key = 0u64;
    while index.entries() < to {
        let pin = participant.pin();
        for _ in 0..64 {
            key += 1;
            let mut mixed = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
            let hash = KeyHash::from_raw(mixed ^ mixed >> 32);
            let latch = index.latch(&pin, hash).unwrap();
            latch.reserve(hash, false).unwrap();
            latch.set(hash, false, Address::new(key));
            drop(latch);
            index.grow(&pin);
        }
        if index.entries() >= from {
            sum += index.bytes() as f64 / index.entries() as f64;
            samples += 1;
        }
    }
    let average = sum / f64::from(samples);
    println!("{average} bytes an entry");
    assert!(average <= 12.5, "{average} bytes an entry");
    let resident = index.resident_bytes();
    assert!(resident >= index.bytes() / 2 && resident <= index.bytes() + (4 << 20), "{resident}");
}

#[test]
fn an_empty_index_of_the_largest_size_touches_no_memory() {
    let epoch = Arc::new(Epoch::new(1));
    let config = IndexConfig { smallest_bits: 20, max_bytes: 0, huge_pages: true };
    let all: Vec<HashIndex> =
        (0..16).map(|_| HashIndex::new(config, Arc::clone(&epoch)).unwrap()).collect();
    assert!(all.iter().all(|index| index.resident_bytes() == 0 && index.bytes() == 64 << 20));
}

#[test]
fn a_size_that_cannot_be_is_refused() {
    let epoch = Arc::new(Epoch::new(1));
    let config = |smallest_bits| IndexConfig { smallest_bits, max_bytes: 0, huge_pages: false };
    assert!(HashIndex::new(config(27), Arc::clone(&epoch)).is_err());
    for count in [7, (8 << 8) + 1] {
        assert!(HashIndex::with_buckets(config(3), Arc::clone(&epoch), count).is_err());
    }
    let largest = HashIndex::with_buckets(config(3), epoch, 8 << 8).unwrap();
    assert_eq!(largest.level_and_split(), (11, 0));
}
