//! Numbers in annotation lines: decimal and hexadecimal digits of a fixed width, and back.
//!
//! A line ends with ` sum=` and the CRC32C of all its bytes before that, in eight hexadecimal
//! digits, and `\r\n`. So a flipped bit anywhere in it is noticed.

use super::checksum::crc32c;

/// What stands before the checksum of a line.
pub(super) const SUM: &[u8] = b" sum=";
/// Bytes from [`SUM`] to the end of a line.
pub(super) const SUM_LENGTH: usize = SUM.len() + 8 + 2;

/// Fills `to` with the decimal digits of `value`, which fit, and zeros in front.
#[inline]
pub(super) fn decimal(value: u64, to: &mut [u8]) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(value).as_bytes();
    let (zeros, places) = to.split_at_mut(to.len() - digits.len());
    zeros.fill(b'0');
    places.copy_from_slice(digits);
}

/// Fills eight places with the hexadecimal digits of `value`.
pub(super) fn hexadecimal(value: u32, to: &mut [u8]) {
    for (digit, shift) in to.iter_mut().zip((0..8).rev()) {
        *digit = b"0123456789abcdef"[(value >> (4 * shift) & 15) as usize];
    }
}

/// A number of decimal digits, nothing else, that fits.
pub(super) fn parse_decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    digits.iter().try_fold(0u64, |number, digit| {
        digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0'))
    })
}

/// Eight lower-case hexadecimal digits.
pub(super) fn parse_hexadecimal(digits: &[u8]) -> Option<u32> {
    if digits.len() != 8 {
        return None;
    }
    digits.iter().try_fold(0u32, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u32::from(value))
    })
}

/// Ends the line that `line` is so far with its checksum.
pub(super) fn seal(line: &mut Vec<u8>) {
    let sum = crc32c(line);
    line.extend_from_slice(SUM);
    let digits = line.len();
    line.extend_from_slice(b"00000000\r\n");
    hexadecimal(sum, &mut line[digits..digits + 8]);
}

/// What a line, `\r\n` included, says before its checksum, if that matches.
pub(super) fn sealed(line: &[u8]) -> Option<&str> {
    let (text, rest) = line.split_at_checked(line.len().checked_sub(SUM_LENGTH)?)?;
    let digits = rest.strip_prefix(SUM)?.strip_suffix(b"\r\n")?;
    (parse_hexadecimal(digits)? == crc32c(text)).then(|| std::str::from_utf8(text).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        let mut field = [b'x'; 15];
        decimal(1_234, &mut field);
        assert_eq!(&field, b"000000000001234");
        assert_eq!(parse_decimal(&field), Some(1_234));
        let mut hex = [0; 8];
        hexadecimal(0x0123_cdef, &mut hex);
        assert_eq!((&hex, parse_hexadecimal(&hex)), (b"0123cdef", Some(0x0123_cdef)));
        for no in [&b""[..], b"1 ", b"-1", b"12345678901234567890"] {
            assert_eq!(parse_decimal(no), None);
        }
        for no in [&b"0123cde"[..], b"0123CDEF", b"0123cdeg"] {
            assert_eq!(parse_hexadecimal(no), None);
        }
    }

    #[test]
    fn every_flipped_bit_of_a_line_is_noticed() {
        let mut line = b"#X a=1".to_vec();
        seal(&mut line);
        assert_eq!(sealed(&line), Some("#X a=1"));
        for bit in 0..line.len() * 8 {
            line[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(sealed(&line), None, "bit {bit}");
            line[bit / 8] ^= 1 << (bit % 8);
        }
        for end in 0..line.len() {
            assert_eq!(sealed(&line[..end]), None, "{end}");
        }
    }
}
