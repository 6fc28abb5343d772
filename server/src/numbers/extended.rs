//! 80-bit extended precision: the x87 `long double` in which Redis computes INCRBYFLOAT, in
//! software, so that sums and their digits are the same on every machine.
//!
//! ```text
//!   value = (-1)^negative * mantissa * 2^exponent
//!   mantissa: 64 bits, the top one set unless exponent == LOWEST (then the number is subnormal)
//!   exponent: LOWEST (-16445) ..= HIGHEST (16320)
//! ```
//!
//! Every result is the exact one rounded to nearest, ties to even. What is refused as text is
//! what Redis refuses: leading space, anything behind the number, NaN, text that overflows to
//! infinity or underflows to zero, and 5,120 bytes or more.

use super::natural::Natural;

/// The exponent of subnormal numbers and of the smallest normal ones.
const LOWEST: i32 = -16445;
/// The exponent of the largest numbers.
const HIGHEST: i32 = 16320;
/// Text of this length and longer is no number.
const TEXT_LIMIT: usize = 5 * 1024;
/// Digits behind the point that are printed before trailing zeros go.
const DECIMALS: u32 = 17;
/// 10^DECIMALS, 57 bits.
const DECIMAL_SCALE: u128 = 100_000_000_000_000_000;

/// An 80-bit extended precision number; never NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extended {
    negative: bool,
    magnitude: Magnitude,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Magnitude {
    Finite { mantissa: u64, exponent: i32 },
    Infinite,
}

const NOTHING: Magnitude = Magnitude::Finite { mantissa: 0, exponent: LOWEST };

impl Extended {
    /// Zero: what a key that is not there counts from.
    pub const ZERO: Self = Self { negative: false, magnitude: NOTHING };

    /// Reads a number as C's `strtold` does: decimal, hexadecimal (`0x1.8p3`), `inf`, `infinity`.
    pub fn parse(text: &[u8]) -> Option<Self> {
        if text.len() >= TEXT_LIMIT {
            return None;
        }
        let (negative, digits) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            _ => (false, text),
        };
        let magnitude =
            if digits.eq_ignore_ascii_case(b"inf") || digits.eq_ignore_ascii_case(b"infinity") {
                Magnitude::Infinite
            } else {
                match digits {
                    [b'0', b'x' | b'X', hex @ ..] => parse_hexadecimal(hex)?,
                    _ => parse_decimal(digits)?,
                }
            };
        Some(Self { negative, magnitude })
    }

    /// The sum, or `None` where it is infinite or not a number.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        let (
            Magnitude::Finite { mantissa: m1, exponent: e1 },
            Magnitude::Finite { mantissa: m2, exponent: e2 },
        ) = (self.magnitude, other.magnitude)
        else {
            return None;
        };
        let (large, (m_large, e_large), (m_small, e_small)) = if (e1, m1) >= (e2, m2) {
            (self, (m1, e1), (m2, e2))
        } else {
            (other, (m2, e2), (m1, e1))
        };
        // 62 bits below the larger mantissa, and whether anything lies below them: more than
        // rounding can ask for, since a difference loses leading bits only where nothing was cut.
        let large_bits = u128::from(m_large) << 62;
        let (small_bits, sticky) = shift_right_sticky(u128::from(m_small) << 62, e_large - e_small);
        let sum = if self.negative == other.negative {
            large_bits + small_bits
        } else {
            large_bits - small_bits - u128::from(sticky)
        };
        let magnitude = round(sum, e_large - 62, sticky);
        let negative = large.negative && (sum != 0 || other.negative == self.negative);
        (magnitude != Magnitude::Infinite).then_some(Self { negative, magnitude })
    }

    /// Appends the number as INCRBYFLOAT stores it: `%.17Lf` without trailing zeros, without a
    /// trailing point, and never `-0`.
    pub fn write_human(self, out: &mut Vec<u8>) {
        let start = out.len();
        self.write_fixed(out);
        if !matches!(self.magnitude, Magnitude::Infinite) {
            while out.last() == Some(&b'0') {
                out.pop();
            }
            if out.last() == Some(&b'.') {
                out.pop();
            }
        }
        if &out[start..] == b"-0" {
            out.remove(start);
        }
    }

    /// Appends the number as `%.17Lf` prints it.
    fn write_fixed(self, out: &mut Vec<u8>) {
        if self.negative {
            out.push(b'-');
        }
        match self.magnitude {
            Magnitude::Infinite => out.extend_from_slice(b"inf"),
            Magnitude::Finite { mantissa, exponent } if exponent >= 0 => {
                let mut whole = Natural::from_u64(mantissa);
                whole.shift_left(exponent as u32);
                whole.write_decimal(out);
                out.push(b'.');
                out.extend(std::iter::repeat_n(b'0', DECIMALS as usize));
            }
            Magnitude::Finite { mantissa, exponent } => {
                // At most 64 + 57 bits, so one u128 holds the number in units of 10^-17.
                let units =
                    shift_right_even(u128::from(mantissa) * DECIMAL_SCALE, -exponent, false);
                let (whole, part) = (units / DECIMAL_SCALE, units % DECIMAL_SCALE);
                out.extend_from_slice(format!("{whole}.{part:017}").as_bytes());
            }
        }
    }
}

/// Rounds `bits * 2^exponent`, and a little more when `sticky`, to 64 bits. With `sticky`, `bits`
/// has more than 65 bits unless the result is subnormal.
fn round(bits: u128, exponent: i32, sticky: bool) -> Magnitude {
    if bits == 0 {
        return NOTHING;
    }
    let length = 128 - bits.leading_zeros() as i32;
    let shift = (length - 64).max(LOWEST - exponent);
    let mut exponent = exponent + shift;
    let rounded = if shift > 0 {
        shift_right_even(bits, shift, sticky)
    } else {
        debug_assert!(!sticky, "nothing is lost below a shift to the left");
        bits << -shift
    };
    let mantissa = if rounded >> 64 == 1 {
        exponent += 1;
        (rounded >> 1) as u64
    } else {
        rounded as u64
    };
    match mantissa {
        0 => NOTHING,
        _ if exponent > HIGHEST => Magnitude::Infinite,
        _ => Magnitude::Finite { mantissa, exponent },
    }
}

/// `bits / 2^shift` rounded to nearest, ties to even; `sticky` tells of something below `bits`.
fn shift_right_even(bits: u128, shift: i32, sticky: bool) -> u128 {
    let (kept, half, below) = split(bits, shift);
    kept + u128::from(half && (below || sticky || kept & 1 == 1))
}

/// `bits / 2^shift` rounded down, and whether something was lost.
fn shift_right_sticky(bits: u128, shift: i32) -> (u128, bool) {
    let (kept, half, below) = split(bits, shift);
    (kept, half || below)
}

/// `bits / 2^shift` rounded down; the bit just below; whether there is anything below that.
fn split(bits: u128, shift: i32) -> (u128, bool, bool) {
    debug_assert!(shift >= 0);
    match shift {
        0 => (bits, false, false),
        1..128 => {
            let lost = bits & ((1 << shift) - 1);
            let half = 1 << (shift - 1);
            (bits >> shift, lost & half != 0, lost & (half - 1) != 0)
        }
        128 => (0, bits >> 127 == 1, bits << 1 != 0),
        _ => (0, false, bits != 0),
    }
}

/// Digits, an optional point among them, and the exponent that follows: `None` when there is no
/// digit or when something is left over.
struct Parts<'t> {
    whole: &'t [u8],
    fraction: &'t [u8],
    /// Held within +-20,000,000, which no 5,119 digits can bring back into range.
    exponent: i64,
}

fn parts(text: &[u8], is_digit: fn(&u8) -> bool, marker: u8) -> Option<Parts<'_>> {
    let run = |t: &[u8]| t.iter().position(|b| !is_digit(b)).unwrap_or(t.len());
    let (whole, rest) = text.split_at(run(text));
    let (fraction, rest) = match rest {
        [b'.', rest @ ..] => rest.split_at(run(rest)),
        _ => (&rest[..0], rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let exponent = match rest {
        [] => 0,
        [m, rest @ ..] if m.eq_ignore_ascii_case(&marker) => parse_exponent(rest)?,
        _ => return None,
    };
    Some(Parts { whole, fraction, exponent })
}

fn parse_exponent(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = digits.iter().fold(0, |n, d| (n * 10 + i64::from(d - b'0')).min(20_000_000));
    Some(if negative { -value } else { value })
}

/// What text that is not zero becomes: overflow and underflow are no numbers.
fn in_range(magnitude: Magnitude) -> Option<Magnitude> {
    (magnitude != NOTHING && magnitude != Magnitude::Infinite).then_some(magnitude)
}

fn parse_hexadecimal(text: &[u8]) -> Option<Magnitude> {
    let Parts { whole, fraction, exponent } = parts(text, u8::is_ascii_hexdigit, b'p')?;
    let mut exponent = exponent - 4 * fraction.len() as i64;
    let (mut bits, mut sticky) = (0u128, false);
    for digit in whole.iter().chain(fraction) {
        let value = (*digit as char).to_digit(16).expect("a hexadecimal digit");
        if bits >> 124 == 0 {
            bits = bits << 4 | u128::from(value);
        } else {
            sticky |= value != 0;
            exponent += 4;
        }
    }
    if bits == 0 {
        return Some(NOTHING);
    }
    in_range(round(bits, exponent as i32, sticky))
}

fn parse_decimal(text: &[u8]) -> Option<Magnitude> {
    let Parts { whole, fraction, exponent } = parts(text, u8::is_ascii_digit, b'e')?;
    let digits = || whole.iter().chain(fraction).copied();
    let leading = digits().take_while(|d| *d == b'0').count();
    let significant = whole.len() + fraction.len() - leading;
    if significant == 0 {
        return Some(NOTHING);
    }
    // The number lies in 10^(magnitude - 1) .. 10^magnitude; the limits are 1.2e4932 and 1.8e-4951.
    let exponent = exponent - fraction.len() as i64;
    let magnitude = exponent + significant as i64;
    if !(-4951..=4933).contains(&magnitude) {
        return None;
    }
    let number = Natural::from_digits(digits().skip(leading));
    in_range(if exponent >= 0 {
        scale_up(number, exponent as u32)
    } else {
        scale_down(number, -exponent as u32)
    })
}

/// `number * 10^exponent`.
fn scale_up(mut number: Natural, exponent: u32) -> Magnitude {
    number.multiply_by_ten_to(exponent);
    let length = number.bits().min(128);
    let (bits, sticky) = number.top_bits(length);
    round(bits, (number.bits() - length) as i32, sticky)
}

/// `number / 10^exponent`, by long division for as many bits as rounding can ask for.
fn scale_down(mut number: Natural, exponent: u32) -> Magnitude {
    const QUOTIENT_BITS: i32 = 68;
    let mut divisor = Natural::from_u64(1);
    divisor.multiply_by_ten_to(exponent);
    // With equal lengths the quotient lies between 1/2 and 2: its first bit is the units.
    let scale = divisor.bits() as i32 - number.bits() as i32;
    if scale > 0 {
        number.shift_left(scale as u32)
    } else {
        divisor.shift_left(-scale as u32)
    }
    let mut quotient = 0u128;
    for _ in 0..QUOTIENT_BITS {
        quotient = quotient << 1 | u128::from(number.subtract_if_fits(&divisor));
        number.shift_left(1);
    }
    round(quotient, 1 - QUOTIENT_BITS - scale, !number.is_zero())
}

#[cfg(test)]
mod tests;
