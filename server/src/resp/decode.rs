//! Commands from bytes.

/// Where a word lies: relative to the first byte of its command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    start: u32,
    end: u32,
}

impl Range {
    /// The word from `start` up to `end`.
    pub fn new(start: usize, end: usize) -> Self {
        debug_assert!(start <= end && end <= u32::MAX as usize);
        Self { start: start as u32, end: end as u32 }
    }
    /// The word's bytes in its command.
    #[inline]
    pub fn of(self, command: &[u8]) -> &[u8] {
        &command[self.start as usize..self.end as usize]
    }
}
