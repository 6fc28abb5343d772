//! The index from outside, one thread: what is set is found, at every size.
#![cfg(not(loom))]

use ferrite_index::{Address, Epoch, HashIndex, HashSecret, IndexConfig, read_image};
use std::collections::HashSet;
use std::sync::Arc;

const CONFIG: IndexConfig = IndexConfig { smallest_bits: 6, max_bytes: 0, huge_pages: true };

#[test]
fn everything_set_is_found_while_the_table_grows_to_its_largest() {
    let epoch = Arc::new(Epoch::new(4));
    let participant = epoch.register("test").unwrap();
    let index = HashIndex::new(CONFIG, Arc::clone(&epoch)).unwrap();
    let secret = HashSecret::from_bytes([7; 16]);
    let hash = |n: u64| secret.hash(&n.to_le_bytes());
    let mut set = HashSet::new();
    let mut sure = Vec::new();
    for n in 1..=100_000u64 {
        let pin = participant.pin();
        {
            let latch = index.latch(&pin, hash(n)).unwrap();
            if latch.address(hash(n), false).is_none() {
                sure.push(n);
            }
            latch.reserve(hash(n), false).unwrap();
            latch.set(hash(n), false, Address::new(n));
        }
        set.insert(hash(n).raw() & ((1 << (6 + 15)) - 1));
        index.grow(&pin);
    }
    assert_eq!(index.entries(), set.len() as u64);
    assert!(index.bucket_count() > 64 * 100, "{index:?}");
    let pin = participant.pin();
    for n in &sure {
        let found = index.probe(&pin, hash(*n), false).unwrap();
        assert!(found.address().unwrap() >= Address::new(*n));
        assert!(found.still_open());
        assert_eq!(index.probe(&pin, hash(*n), true).unwrap().address(), None);
    }

    let mut image = Vec::new();
    let hold = index.hold_growth();
    let mut next = 0;
    while next < index.bucket_count() {
        next = index.image_chunk(&pin, &hold, next, 100, &mut image);
    }
    let mut count = 0;
    read_image(&image, 6, |hash, node, address| {
        let probe = index.probe(&pin, hash, node).unwrap();
        assert_eq!(probe.address(), Some(address));
        count += 1;
    })
    .unwrap();
    assert_eq!(count, index.entries());

    let (mut cursor, mut walked) = (0, 0);
    loop {
        cursor = index.walk(&pin, cursor, |_, _| walked += 1);
        if cursor == 0 {
            break;
        }
    }
    assert_eq!(walked, index.entries());
}
