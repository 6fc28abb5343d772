//! How much a log in memory may take, and whether it has taken it.
//!
//! Nothing is refused here, since a command that gives memory back may need a little first: whoever
//! admits commands asks [`MemoryLimit::is_full`] before one that takes more. The page thread looks at each
//! page's turn, so the limit is passed by little more than a page.

use crate::sync::{
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    mutant,
};

/// Numbers that order nothing, hence `Relaxed`.
#[derive(Default)]
pub(crate) struct MemoryLimit {
    /// In bytes; 0 is none.
    most: AtomicU64,
    is_full: AtomicBool,
    is_tight: AtomicBool,
}

impl MemoryLimit {
    pub fn set(&self, most: u64, taken: u64) {
        self.most.store(most, Relaxed);
        self.look(taken);
    }
    /// So many bytes are taken now.
    pub fn look(&self, taken: u64) {
        let most = self.most.load(Relaxed);
        let is_over = |limit: u64| most > 0 && taken >= limit && !mutant!("memory_without_limit");
        self.is_full.store(is_over(most), Relaxed);
        self.is_tight.store(is_over(most / 8 * 7), Relaxed);
    }
    /// Whether the limit is reached.
    pub fn is_full(&self) -> bool {
        self.is_full.load(Relaxed)
    }
    /// Whether seven eighths of it are.
    pub fn is_tight(&self) -> bool {
        self.is_tight.load(Relaxed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn it_is_tight_before_it_is_full_and_neither_without_a_limit() {
        let limit = MemoryLimit::default();
        for (most, taken, tight, full) in [
            (0, 99, false, false),
            (80, 69, false, false),
            (80, 70, true, false),
            (80, 80, true, true),
        ] {
            limit.set(most, taken);
            assert_eq!((limit.is_tight(), limit.is_full()), (tight, full), "{taken} of {most}");
        }
        limit.look(10);
        assert!(!limit.is_tight() && !limit.is_full());
    }
}
