//! A bounded cache of 4 KiB blocks of side files, evicted by CLOCK.
//!
//! It holds only what can be read back; dropping any of it costs a device read.

use crate::device::{ALIGNMENT, Buffer};
use crate::sync::{Arc, Locked, Mutex, MutexGuard};
use std::collections::HashMap;

/// Segment and block of its side file.
pub(crate) type BlockId = (u64, u64);

pub(crate) struct BlockCache {
    capacity: usize,
    blocks: Mutex<Blocks>,
}

#[derive(Default)]
struct Blocks {
    slots: Vec<Slot>,
    by_id: HashMap<BlockId, usize>,
    hand: usize,
}

struct Slot {
    id: BlockId,
    block: Arc<Buffer>,
    used: bool,
}

impl BlockCache {
    /// For `bytes` of blocks, at least eight.
    pub fn new(bytes: u64) -> Self {
        let capacity = (bytes as usize / ALIGNMENT).max(8);
        Self { capacity, blocks: Mutex::default() }
    }

    pub fn get(&self, id: BlockId) -> Option<Arc<Buffer>> {
        let mut blocks = self.lock();
        let slot = *blocks.by_id.get(&id)?;
        blocks.slots[slot].used = true;
        Some(Arc::clone(&blocks.slots[slot].block))
    }

    pub fn insert(&self, id: BlockId, block: Arc<Buffer>) {
        let mut blocks = self.lock();
        if let Some(&slot) = blocks.by_id.get(&id) {
            blocks.slots[slot].block = block;
            return;
        }
        let fresh = Slot { id, block, used: false };
        if blocks.slots.len() < self.capacity {
            let slot = blocks.slots.len();
            blocks.slots.push(fresh);
            blocks.by_id.insert(id, slot);
            return;
        }
        while std::mem::take(&mut blocks.slots_hand().used) {
            blocks.advance();
        }
        let hand = blocks.hand;
        let old = std::mem::replace(&mut blocks.slots[hand], fresh);
        blocks.by_id.remove(&old.id);
        blocks.by_id.insert(id, hand);
        blocks.advance();
    }

    /// Forgets a block whose file has changed.
    pub fn forget(&self, id: BlockId) {
        let mut blocks = self.lock();
        let Some(slot) = blocks.by_id.remove(&id) else { return };
        blocks.slots.swap_remove(slot);
        if let Some(moved) = blocks.slots.get(slot).map(|s| s.id) {
            blocks.by_id.insert(moved, slot);
        }
        blocks.hand = 0;
    }

    /// Bytes held now.
    pub fn bytes(&self) -> u64 {
        (self.lock().slots.len() * ALIGNMENT) as u64
    }

    fn lock(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.locked()
    }
}

impl Blocks {
    fn slots_hand(&mut self) -> &mut Slot {
        let hand = self.hand;
        &mut self.slots[hand]
    }
    fn advance(&mut self) {
        self.hand = (self.hand + 1) % self.slots.len();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn block(byte: u8) -> Arc<Buffer> {
        let mut b = Buffer::zeroed(ALIGNMENT);
        b[0] = byte;
        Arc::new(b)
    }

    #[test]
    fn a_used_block_outlives_an_unused_one() {
        let cache = BlockCache::new(8 * ALIGNMENT as u64);
        (0..8).for_each(|i| cache.insert((1, i), block(i as u8)));
        assert!(cache.get((1, 0)).is_some());
        cache.insert((2, 0), block(9));
        assert!(cache.get((1, 0)).is_some(), "the used block went");
        assert!(cache.get((1, 1)).is_none(), "no block went");
        assert_eq!(cache.bytes(), 8 * ALIGNMENT as u64);
    }

    #[test]
    fn a_forgotten_block_is_gone_and_the_others_stay() {
        let cache = BlockCache::new(8 * ALIGNMENT as u64);
        (0..8).for_each(|i| cache.insert((1, i), block(i as u8)));
        cache.forget((1, 3));
        assert!(cache.get((1, 3)).is_none());
        for i in [0, 1, 2, 4, 5, 6, 7] {
            assert_eq!(cache.get((1, i)).expect("kept")[0], i as u8);
        }
    }
}
