//! Natural numbers of any size, with the few operations that exact decimal conversion needs.
//! Numbers here stay below some 40,000 bits (the longest text that Redis takes for a float), so
//! the schoolbook forms are enough.

use std::cmp::Ordering;

/// Limbs of 64 bits, lowest first, without leading zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Natural(Vec<u64>);

/// The largest power of ten in a limb, and its exponent.
const TEN_TO_19: u64 = 10_000_000_000_000_000_000;

impl Natural {
    pub(super) fn from_u64(value: u64) -> Self {
        let mut n = Self(vec![value]);
        n.trim();
        n
    }

    /// The number that the ASCII digits of `text` spell.
    pub(super) fn from_digits(text: impl Iterator<Item = u8>) -> Self {
        let mut n = Self(Vec::new());
        let (mut chunk, mut scale) = (0u64, 1u64);
        for digit in text {
            chunk = chunk * 10 + u64::from(digit - b'0');
            scale *= 10;
            if scale == TEN_TO_19 {
                n.multiply_add(scale, chunk);
                (chunk, scale) = (0, 1);
            }
        }
        n.multiply_add(scale, chunk);
        n
    }

    pub(super) fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn bits(&self) -> u32 {
        self.0.last().map_or(0, |top| self.0.len() as u32 * 64 - top.leading_zeros())
    }

    pub(super) fn multiply_by_ten_to(&mut self, mut exponent: u32) {
        while exponent >= 19 {
            self.multiply_add(TEN_TO_19, 0);
            exponent -= 19;
        }
        self.multiply_add(10u64.pow(exponent), 0);
    }

    pub(super) fn shift_left(&mut self, bits: u32) {
        if self.is_zero() {
            return;
        }
        let (limbs, bits) = ((bits / 64) as usize, bits % 64);
        if bits > 0 {
            let mut carry = 0;
            for limb in &mut self.0 {
                let next = *limb >> (64 - bits);
                *limb = *limb << bits | carry;
                carry = next;
            }
            self.0.push(carry);
        }
        self.0.splice(0..0, std::iter::repeat_n(0, limbs));
        self.trim();
    }

    /// The highest `count` bits (at most 128) and whether a lower bit is set.
    pub(super) fn top_bits(&self, count: u32) -> (u128, bool) {
        debug_assert!(count <= 128 && count <= self.bits());
        let drop = self.bits() - count;
        let mut top = 0u128;
        for (i, limb) in self.0.iter().enumerate() {
            let at = i as i64 * 64 - i64::from(drop);
            if at >= 128 {
                continue;
            }
            top |= match at {
                0.. => u128::from(*limb) << at,
                -63.. => u128::from(*limb >> -at),
                _ => 0,
            };
        }
        let lost = (drop / 64) as usize;
        let sticky = self.0[..lost].iter().any(|limb| *limb != 0)
            || (!drop.is_multiple_of(64) && self.0[lost] << (64 - drop % 64) != 0);
        (top, sticky)
    }

    /// Takes `other` away when it is not larger, and says whether it did.
    pub(super) fn subtract_if_fits(&mut self, other: &Self) -> bool {
        if self.compare(other) == Ordering::Less {
            return false;
        }
        let mut borrow = false;
        for (i, limb) in self.0.iter_mut().enumerate() {
            let take = other.0.get(i).copied().unwrap_or(0);
            let (difference, first) = limb.overflowing_sub(take);
            let (difference, second) = difference.overflowing_sub(u64::from(borrow));
            *limb = difference;
            borrow = first || second;
        }
        debug_assert!(!borrow, "the smaller was taken from the larger");
        self.trim();
        true
    }

    /// Appends the decimal digits; `0` for zero.
    pub(super) fn write_decimal(mut self, out: &mut Vec<u8>) {
        let mut chunks = Vec::new();
        while !self.is_zero() {
            let mut remainder = 0u64;
            for limb in self.0.iter_mut().rev() {
                let part = u128::from(remainder) << 64 | u128::from(*limb);
                *limb = (part / u128::from(TEN_TO_19)) as u64;
                remainder = (part % u128::from(TEN_TO_19)) as u64;
            }
            self.trim();
            chunks.push(remainder);
        }
        let top = chunks.pop().unwrap_or(0);
        out.extend_from_slice(top.to_string().as_bytes());
        for chunk in chunks.iter().rev() {
            out.extend_from_slice(format!("{chunk:019}").as_bytes());
        }
    }

    fn multiply_add(&mut self, factor: u64, addend: u64) {
        let mut carry = addend;
        for limb in &mut self.0 {
            let product = u128::from(*limb) * u128::from(factor) + u128::from(carry);
            *limb = product as u64;
            carry = (product >> 64) as u64;
        }
        self.0.push(carry);
        self.trim();
    }

    fn compare(&self, other: &Self) -> Ordering {
        let by_length = self.0.len().cmp(&other.0.len());
        by_length.then_with(|| self.0.iter().rev().cmp(other.0.iter().rev()))
    }

    fn trim(&mut self) {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(n: Natural) -> String {
        let mut out = Vec::new();
        n.write_decimal(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn digits_go_in_and_come_out() {
        for text in ["0", "7", "10000000000000000000", "340282366920938463463374607431768211456"] {
            assert_eq!(decimal(Natural::from_digits(text.bytes())), text);
        }
        let mut n = Natural::from_u64(12);
        n.multiply_by_ten_to(40);
        assert_eq!(decimal(n), format!("12{}", "0".repeat(40)));
    }

    #[test]
    fn shifts_and_top_bits_agree() {
        let mut n = Natural::from_u64(0b1011);
        n.shift_left(130);
        assert_eq!(n.bits(), 134);
        assert_eq!(n.top_bits(4), (0b1011, false));
        assert_eq!(n.top_bits(3), (0b101, true));
        assert_eq!(n.top_bits(128), (0b1011 << 124, false));
        n.multiply_add(1, 1);
        assert_eq!(n.top_bits(128), (0b1011 << 124, true));
    }

    #[test]
    fn subtraction_borrows_across_limbs() {
        let mut n = Natural::from_u64(1);
        n.shift_left(128);
        assert!(n.subtract_if_fits(&Natural::from_u64(1)));
        assert_eq!(decimal(n.clone()), "340282366920938463463374607431768211455");
        assert!(!Natural::from_u64(3).subtract_if_fits(&n));
        let same = n.clone();
        assert!(n.subtract_if_fits(&same) && n.is_zero());
    }
}
