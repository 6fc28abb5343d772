//! Which keys there are, and which of them a workload asks for.
//!
//! Key number `n` has the 8 bytes of a mixed `n`, so that neither their order nor their bits help
//! anybody. A distribution names key numbers. Draws are made before the clock runs, so what is
//! measured holds no random numbers; the same seed gives the same draws.

use std::hash::{Hash, Hasher};

/// splitmix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `limit`, every one as likely but for a bias of less than `limit / 2^64`.
    #[inline]
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(limit)) >> 64) as u64
    }

    /// A number from 0 to 1, 1 excluded.
    fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// splitmix64's last step: one to one.
#[inline]
fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// A key of 8 bytes. Feeds exactly these to a hasher, with no length before them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key([u8; 8]);

impl Key {
    /// Key number `number`; no two numbers have the same key.
    #[inline]
    pub fn of(number: u32) -> Self {
        Self(mix(u64::from(number) + 1).to_le_bytes())
    }

    /// Its bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// 24 bits that tell keys apart.
    #[inline]
    pub fn fingerprint(&self) -> u64 {
        u64::from_le_bytes(self.0) >> 40
    }
}

impl Hash for Key {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

/// Which keys are asked for how often.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Distribution {
    /// All alike.
    Uniform,
    /// The key of rank `r` (from 1) as often as `1 / r^exponent`; 0 < exponent < 1. Ranks lie
    /// scattered over the key numbers, so that keys asked for often were not stored side by side.
    Zipf(f64),
}

impl Distribution {
    /// How a table calls it.
    pub fn name(self) -> String {
        match self {
            Self::Uniform => "uniform".to_owned(),
            Self::Zipf(exponent) => format!("Zipf {exponent}"),
        }
    }

    /// `count` key numbers below `keys`.
    ///
    /// # Panics
    /// If there is no key.
    pub fn draw(self, keys: u32, count: usize, seed: u64) -> Vec<u32> {
        assert!(keys > 0, "no keys to draw from");
        let mut random = Random::new(seed);
        match self {
            Self::Uniform => (0..count).map(|_| random.below(u64::from(keys)) as u32).collect(),
            Self::Zipf(exponent) => {
                let zipf = Zipf::new(keys, exponent);
                let scatter = Scatter::new(keys);
                (0..count).map(|_| scatter.key_of(zipf.rank(&mut random))).collect()
            }
        }
    }
}

/// Ranks (from 0) by the approximation of Gray and others ("Quickly generating billion-record
/// synthetic databases", 1994), which YCSB uses too: exact for the first two, close for the rest.
struct Zipf {
    keys: f64,
    zeta: f64,
    second: f64,
    alpha: f64,
    eta: f64,
}

impl Zipf {
    fn new(keys: u32, exponent: f64) -> Self {
        assert!(0.0 < exponent && exponent < 1.0, "the approximation holds between 0 and 1");
        let zeta = |n: u32| (1..=n).map(|rank| f64::from(rank).powf(-exponent)).sum::<f64>();
        let (all, two) = (zeta(keys), zeta(keys.min(2)));
        let n = f64::from(keys);
        Self {
            keys: n,
            zeta: all,
            second: two,
            alpha: 1.0 / (1.0 - exponent),
            eta: if keys > 2 {
                (1.0 - (2.0 / n).powf(1.0 - exponent)) / (1.0 - two / all)
            } else {
                0.0
            },
        }
    }

    fn rank(&self, random: &mut Random) -> u32 {
        let unit = random.unit();
        let at = unit * self.zeta;
        if at < 1.0 {
            0
        } else if at < self.second {
            1
        } else {
            let rank = self.keys * (self.eta * unit - self.eta + 1.0).powf(self.alpha);
            (rank as u32).min(self.keys as u32 - 1)
        }
    }
}

/// A one-to-one map of ranks to key numbers: multiplication by a number coprime to their count.
struct Scatter {
    keys: u64,
    stride: u64,
}

impl Scatter {
    fn new(keys: u32) -> Self {
        let keys = u64::from(keys);
        // Near the golden section neighbours land farthest apart.
        let first = (keys * 618_033_989 / 1_000_000_000).max(1);
        let stride = (first..).find(|stride| gcd(*stride, keys) == 1);
        Self { keys, stride: stride.expect("some number is coprime to every other") }
    }

    fn key_of(&self, rank: u32) -> u32 {
        (u64::from(rank) * self.stride % self.keys) as u32
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn ranks_are_scattered_one_to_one() {
        for keys in [1u32, 2, 3, 10, 1000, 1 << 12] {
            let scatter = Scatter::new(keys);
            let reached: HashSet<u32> = (0..keys).map(|rank| scatter.key_of(rank)).collect();
            assert_eq!(reached.len(), keys as usize);
            assert!(reached.iter().all(|key| *key < keys));
        }
    }

    #[test]
    fn every_draw_names_a_key_and_a_seed_repeats_itself() {
        for distribution in [Distribution::Uniform, Distribution::Zipf(0.99)] {
            for keys in [1, 2, 3, 1000] {
                let draws = distribution.draw(keys, 10_000, 7);
                assert!(draws.iter().all(|key| *key < keys));
                assert_eq!(draws, distribution.draw(keys, 10_000, 7));
            }
        }
    }

    /// The share of the first ranks is what the definition says: 1 / zeta, 1 / (2^0.99 zeta) ...
    #[test]
    fn zipf_asks_for_the_first_ranks_as_often_as_it_should() {
        let (keys, count) = (100_000u32, 1_000_000);
        let scatter = Scatter::new(keys);
        let draws = Distribution::Zipf(0.99).draw(keys, count, 42);
        let zeta: f64 = (1..=keys).map(|rank| f64::from(rank).powf(-0.99)).sum();
        for rank in [0, 1, 9, 99] {
            let key = scatter.key_of(rank);
            let seen = draws.iter().filter(|draw| **draw == key).count() as f64 / count as f64;
            let expected = f64::from(rank + 1).powf(-0.99) / zeta;
            assert!((0.8..1.25).contains(&(seen / expected)), "rank {rank}: {seen} {expected}");
        }
    }

    #[test]
    fn uniform_draws_are_spread_evenly() {
        let draws = Distribution::Uniform.draw(10, 100_000, 1);
        for key in 0..10 {
            let seen = draws.iter().filter(|draw| **draw == key).count();
            assert!((9_000..11_000).contains(&seen), "key {key}: {seen}");
        }
    }
}
