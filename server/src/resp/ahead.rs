//! A look at the commands that have arrived and not run: the second word of each, which is a key
//! more often than not. For hints only; the decoder decides what the commands are.

use super::decode::{Line, number_line};

/// The second words of the whole commands at the front of the input, until something else comes.
#[derive(Debug)]
pub struct SecondWords<'a>(&'a [u8]);

impl<'a> SecondWords<'a> {
    /// Of the commands in `input`, which begins with one.
    pub fn of(input: &'a [u8]) -> Self {
        Self(input)
    }

    /// A number after `sign`; the input moves behind its line.
    #[inline]
    fn number(&mut self, sign: u8) -> Option<usize> {
        let (first, rest) = self.0.split_first()?;
        match number_line(rest) {
            Line::Number(number, length) if *first == sign => {
                self.0 = &rest[length..];
                usize::try_from(number).ok()
            }
            _ => None,
        }
    }

    #[inline]
    fn word(&mut self) -> Option<&'a [u8]> {
        let length = self.number(b'$')?;
        let word = self.0.get(..length)?;
        self.0 = self.0.get(length + 2..)?;
        Some(word)
    }
}

impl<'a> Iterator for SecondWords<'a> {
    type Item = &'a [u8];
    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let count = self.number(b'*')?;
            let mut second = None;
            for place in 0..count {
                let word = self.word()?;
                if place == 1 {
                    second = Some(word);
                }
            }
            if second.is_some() {
                return second;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(input: &[u8]) -> Vec<&[u8]> {
        SecondWords::of(input).collect()
    }

    #[test]
    fn the_second_word_of_each_whole_command_is_found() {
        let get = b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n";
        let ping = b"*1\r\n$4\r\nPING\r\n";
        let set = b"*3\r\n$3\r\nSET\r\n$2\r\nbc\r\n$3\r\nxyz\r\n";
        let input = [&get[..], ping, set, &get[..get.len() - 1]].concat();
        assert_eq!(all(&input), [&b"a"[..], b"bc"]);
        assert!(all(b"GET a\r\n").is_empty() && all(b"").is_empty());
    }

    proptest! {
        #[test]
        fn whatever_comes_it_ends_within_the_input(input in prop::collection::vec(
            prop_oneof![Just(b'*'), Just(b'$'), Just(b'\r'), Just(b'\n'), b'0'..=b'9'], 0..200)) {
            let found = all(&input);
            prop_assert!(found.iter().map(|word| word.len() + 8).sum::<usize>() <= input.len());
        }
    }
}
