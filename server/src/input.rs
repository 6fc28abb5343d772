//! Bytes received and not yet run.
//!
//! Positions count from the first byte of the connection, so they stay right when bytes move to
//! the front of the buffer. All of the buffer is initialised, so a transport reads straight into
//! it without unsafe code.

/// A buffer that fills at its end and empties at its front.
#[derive(Debug, Default)]
pub struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// The position of `bytes[start]` in the connection's stream.
    base: u64,
}

impl Input {
    /// What a buffer has that waits for its first bytes.
    pub const SIZE: usize = 64 * 1024;

    /// An empty buffer of [`Input::SIZE`] bytes.
    pub fn spare() -> Self {
        Self { bytes: vec![0; Self::SIZE], ..Self::default() }
    }
    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.end - self.start
    }
    /// Bytes that it takes of memory.
    pub fn capacity(&self) -> usize {
        self.bytes.len()
    }
    /// The position behind its last byte.
    pub fn end(&self) -> u64 {
        self.base + self.len() as u64
    }
    /// The bytes from `position` on.
    #[inline]
    pub fn from(&self, position: u64) -> &[u8] {
        debug_assert!(position >= self.base && position <= self.end());
        &self.bytes[self.start + (position - self.base) as usize..self.end]
    }
    /// Room at the end: at least one byte, and enough that `wanted` bytes fit in all.
    pub fn room(&mut self, wanted: usize) -> &mut [u8] {
        let wanted = wanted.max(self.len() + 1);
        if self.start > 0 && self.bytes.len() - self.start < wanted {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.bytes.len() < wanted {
            self.grow(wanted);
        }
        &mut self.bytes[self.end..]
    }
    /// `n` bytes were put into the room.
    pub fn received(&mut self, n: usize) {
        self.end += n;
        debug_assert!(self.end <= self.bytes.len());
    }
    /// Drops what lies before `position`.
    #[inline]
    pub fn consume_to(&mut self, position: u64) {
        self.start += (position - self.base) as usize;
        self.base = position;
        debug_assert!(self.start <= self.end);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }
    /// Exchanges the memory of two empty buffers; positions stay with their connection.
    pub fn swap_memory(&mut self, other: &mut Self) {
        debug_assert!(self.is_empty() && other.is_empty());
        std::mem::swap(&mut self.bytes, &mut other.bytes);
    }
    /// Takes the bytes of `full` over into memory of their size and leaves `full` empty; both are
    /// buffers of the same connection.
    pub fn shrink(&mut self, spare: &mut Self) {
        debug_assert!(spare.is_empty());
        let kept = self.bytes[self.start..self.end].to_vec();
        std::mem::swap(&mut self.bytes, &mut spare.bytes);
        (self.start, self.end, self.bytes) = (0, kept.len(), kept);
    }

    /// At least doubles, so that a long command is not copied over and over; but a command whose
    /// length is known gets just that.
    fn grow(&mut self, wanted: usize) {
        let size = if wanted > self.len() + 1 { wanted } else { 2 * wanted };
        let mut bytes = vec![0; size.max(1024)];
        bytes[..self.len()].copy_from_slice(&self.bytes[self.start..self.end]);
        (self.start, self.end, self.bytes) = (0, self.len(), bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(input: &mut Input, bytes: &[u8], wanted: usize) {
        for byte in bytes {
            input.room(wanted)[0] = *byte;
            input.received(1);
        }
    }

    #[test]
    fn positions_outlive_moves() {
        let mut input = Input::default();
        let bytes: Vec<u8> = (0..200).collect();
        let mut at = 0;
        for round in 0..100u64 {
            receive(&mut input, &bytes, 0);
            assert_eq!(input.from(at)[..5], bytes[(at - round * 200) as usize..][..5]);
            at = round * 200 + 190;
            input.consume_to(at);
            assert_eq!(input.len(), 10);
            input.consume_to(at + 10);
            at += 10;
        }
        assert!(input.is_empty());
        assert!(input.capacity() <= 4096, "{}", input.capacity());
    }

    #[test]
    fn a_known_length_is_reserved_at_once() {
        let mut input = Input::default();
        receive(&mut input, b"abc", 0);
        assert_eq!(input.room(100_000).len(), 100_000 - 3);
        assert_eq!(input.from(0), b"abc");
    }

    #[test]
    fn a_few_bytes_give_the_large_memory_back() {
        let (mut input, mut spare) = (Input::spare(), Input::default());
        receive(&mut input, b"abcdef", 0);
        input.consume_to(2);
        input.shrink(&mut spare);
        assert_eq!(input.from(2), b"cdef");
        assert_eq!((input.capacity(), spare.capacity()), (4, Input::SIZE));
    }
}
