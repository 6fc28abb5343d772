//! The longest common subsequence of two strings, for LCS.
//!
//! The classic table of lengths takes four bytes a cell, and that is what the limit of Redis
//! counts. Here only one row of lengths exists at a time; what the way back needs to know of a
//! cell, whether it goes up or to the left, is one bit. So the largest table that is allowed,
//! 512 MB in Redis, takes 16 MB.

/// A stretch that both strings share, as inclusive positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// First and last position in the first string.
    pub a: (usize, usize),
    /// First and last position in the second string.
    pub b: (usize, usize),
}

impl Match {
    /// How many bytes it covers.
    pub fn length(&self) -> usize {
        self.a.1 - self.a.0 + 1
    }
}

/// What two strings have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Common {
    /// The subsequence.
    pub bytes: Vec<u8>,
    /// Its contiguous parts, the last one first.
    pub matches: Vec<Match>,
}

/// The bytes that the table of these strings' lengths takes in Redis: what its limit counts.
pub fn table_bytes(a: &[u8], b: &[u8]) -> u64 {
    (a.len() as u64 + 1) * (b.len() as u64 + 1) * 4
}

/// The length of the longest common subsequence.
pub fn length(a: &[u8], b: &[u8]) -> usize {
    walk_table(a, b, |_, _| ())
}

/// The longest common subsequence; among several of one length, the one that Redis picks.
pub fn common(a: &[u8], b: &[u8]) -> Common {
    let mut up = BitTable::new(a.len(), b.len());
    let length = walk_table(a, b, |i, j| up.set(i, j));
    let mut common = Common { bytes: Vec::with_capacity(length), matches: Vec::new() };
    let (mut i, mut j) = (a.len(), b.len());
    while i > 0 && j > 0 {
        if a[i - 1] == b[j - 1] {
            (i, j) = (i - 1, j - 1);
            common.bytes.push(a[i]);
            common.extend_or_begin(i, j);
        } else if up.get(i - 1, j - 1) {
            i -= 1;
        } else {
            j -= 1;
        }
    }
    debug_assert_eq!(common.bytes.len(), length);
    common.bytes.reverse();
    common
}

impl Common {
    /// Takes in the pair of positions just before what was taken last.
    fn extend_or_begin(&mut self, i: usize, j: usize) {
        match self.matches.last_mut() {
            Some(last) if last.a.0 == i + 1 && last.b.0 == j + 1 => {
                (last.a.0, last.b.0) = (i, j);
            }
            _ => self.matches.push(Match { a: (i, i), b: (j, j) }),
        }
    }
}

/// Computes the table row by row and returns its last cell. `up` is called for the cells (counted
/// from 0) whose bytes differ and whose upper neighbour is larger than the left one.
fn walk_table(a: &[u8], b: &[u8], mut up: impl FnMut(usize, usize)) -> usize {
    let mut row = vec![0u32; b.len() + 1];
    for (i, from_a) in a.iter().enumerate() {
        let mut diagonal = 0;
        for (j, from_b) in b.iter().enumerate() {
            let (above, left) = (row[j + 1], row[j]);
            row[j + 1] = if from_a == from_b {
                diagonal + 1
            } else {
                if above > left {
                    up(i, j);
                }
                above.max(left)
            };
            diagonal = above;
        }
    }
    row[b.len()] as usize
}

struct BitTable {
    width: usize,
    bits: Vec<u64>,
}

impl BitTable {
    fn new(height: usize, width: usize) -> Self {
        Self { width, bits: vec![0; (height * width).div_ceil(64)] }
    }
    fn set(&mut self, i: usize, j: usize) {
        let at = i * self.width + j;
        self.bits[at / 64] |= 1 << (at % 64);
    }
    fn get(&self, i: usize, j: usize) -> bool {
        let at = i * self.width + j;
        self.bits[at / 64] >> (at % 64) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_redis_manual() {
        let found = common(b"ohmytext", b"mynewtext");
        assert_eq!(found.bytes, b"mytext");
        assert_eq!(found.matches, [Match { a: (4, 7), b: (5, 8) }, Match { a: (2, 3), b: (0, 1) }]);
        assert_eq!(found.matches[0].length(), 4);
        assert_eq!(length(b"ohmytext", b"mynewtext"), 6);
    }

    #[test]
    fn empty_and_unlike_strings_have_nothing_in_common() {
        for (a, b) in [(&b""[..], &b""[..]), (b"abc", b""), (b"", b"abc"), (b"abc", b"xyz")] {
            assert_eq!(length(a, b), 0);
            assert_eq!(common(a, b), Common { bytes: Vec::new(), matches: Vec::new() });
        }
    }

    /// By recursion over both strings: slow, and plainly right.
    fn slow_length(a: &[u8], b: &[u8]) -> usize {
        match (a, b) {
            ([x, a @ ..], [y, b @ ..]) if x == y => 1 + slow_length(a, b),
            ([_, rest_a @ ..], [_, rest_b @ ..]) => {
                slow_length(rest_a, b).max(slow_length(a, rest_b))
            }
            _ => 0,
        }
    }

    #[test]
    fn every_pair_of_short_strings_gives_a_common_subsequence_of_the_right_length() {
        let words: Vec<Vec<u8>> = (0..81u32)
            .map(|n| (0..4).map(|i| b"abc"[(n / 3u32.pow(i) % 3) as usize]).collect())
            .collect();
        for a in &words {
            for b in &words {
                let found = common(a, b);
                assert_eq!(found.bytes.len(), slow_length(a, b));
                assert_eq!(length(a, b), found.bytes.len());
                let matched: usize = found.matches.iter().map(Match::length).sum();
                assert_eq!(matched, found.bytes.len());
                for m in &found.matches {
                    assert_eq!(a[m.a.0..=m.a.1], b[m.b.0..=m.b.1]);
                }
            }
        }
    }

    #[test]
    fn the_limit_counts_the_table_that_redis_would_make() {
        assert_eq!(table_bytes(b"", b""), 4);
        assert_eq!(table_bytes(b"abc", b"ab"), 48);
    }
}
