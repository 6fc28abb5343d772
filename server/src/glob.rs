//! Patterns of KEYS, SCAN MATCH and CONFIG GET: `*`, `?`, `[a-z]`, `[^...]`, `\` before a
//! character that stands for itself. The corner cases are Redis's, since a pattern that finds
//! other keys is a bug to whoever wrote it:
//!
//! - a class that is not closed ends with the pattern; `[^` alone matches any byte;
//! - a range the wrong way round is turned; bytes of 128 and more order below the others;
//! - after the last byte of the text only stars may follow, so that a single `*` does not match
//!   the empty text (its callers take `*` as "everything" beforehand).
//!
//! The work is bounded by pattern times text: when what follows a star is found nowhere in the
//! rest of the text, starting an earlier star later cannot help, so there is only ever one star
//! to come back to.

/// Whether `pattern` matches the whole of `text`.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    matches_with(pattern, text, |byte| byte)
}

/// Whether `pattern` matches the whole of `text`, ASCII letters in either case.
pub fn matches_ignoring_case(pattern: &[u8], text: &[u8]) -> bool {
    matches_with(pattern, text, |byte| byte.to_ascii_lowercase())
}

fn matches_with(mut pattern: &[u8], mut text: &[u8], fold: fn(u8) -> u8) -> bool {
    // What follows the last star, and the text from where it was last tried.
    let mut star: Option<(&[u8], &[u8])> = None;
    loop {
        if text.is_empty() {
            return pattern.is_empty();
        }
        let step = match pattern {
            [b'*', ..] => {
                let stars = pattern.iter().take_while(|byte| **byte == b'*').count();
                pattern = &pattern[stars..];
                if pattern.is_empty() {
                    return true;
                }
                star = Some((pattern, text));
                continue;
            }
            _ => match_one(pattern, text[0], fold),
        };
        match (step, star) {
            (Some(rest), _) => {
                (pattern, text) = (rest, &text[1..]);
                if text.is_empty() {
                    let stars = pattern.iter().take_while(|byte| **byte == b'*').count();
                    pattern = &pattern[stars..];
                    if pattern.is_empty() {
                        return true;
                    }
                }
            }
            (None, None) => return false,
            (None, Some((after_star, tried))) => {
                (pattern, text) = (after_star, &tried[1..]);
                star = Some((pattern, text));
                continue;
            }
        }
        if text.is_empty() {
            // The text ended inside what follows a star: with less text left it ends sooner.
            return false;
        }
    }
}

/// Matches one byte with the head of a pattern that does not begin with a star; what remains of
/// the pattern when it matched.
fn match_one(pattern: &[u8], byte: u8, fold: fn(u8) -> u8) -> Option<&[u8]> {
    let (expected, rest) = match pattern {
        [] => return None,
        [b'?', rest @ ..] => return Some(rest),
        [b'[', b'^', class @ ..] => {
            let (found, rest) = match_class(class, byte, fold);
            return (!found).then_some(rest);
        }
        [b'[', class @ ..] => {
            let (found, rest) = match_class(class, byte, fold);
            return found.then_some(rest);
        }
        [b'\\', escaped, rest @ ..] => (escaped, rest),
        [plain, rest @ ..] => (plain, rest),
    };
    (fold(*expected) == fold(byte)).then_some(rest)
}

/// Whether the class holds `byte`, and the pattern behind its `]`.
fn match_class(mut class: &[u8], byte: u8, fold: fn(u8) -> u8) -> (bool, &[u8]) {
    let signed = |byte: u8| fold(byte) as i8;
    let mut found = false;
    loop {
        class = match class {
            [] => return (found, class),
            // An escaped member is compared as it stands, in either mode.
            [b'\\', escaped, rest @ ..] => {
                found |= *escaped == byte;
                rest
            }
            [b']', rest @ ..] => return (found, rest),
            [from, b'-', to, rest @ ..] => {
                // Turned before letters are folded, as Redis does.
                let (low, high) = if *from as i8 > *to as i8 { (to, from) } else { (from, to) };
                found |= (signed(*low)..=signed(*high)).contains(&signed(byte));
                rest
            }
            [member, rest @ ..] => {
                found |= fold(*member) == fold(byte);
                rest
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_redis() {
        let cases: &[(&[u8], &[u8], bool)] = &[
            (b"*", b"", false),
            (b"", b"", true),
            (b"", b"a", false),
            (b"a*", b"a", true),
            (b"a**", b"a", true),
            (b"*a", b"ba", true),
            (b"*a", b"ab", false),
            (b"a?c", b"abc", true),
            (b"a?", b"a", false),
            (b"h[ae]llo", b"hallo", true),
            (b"h[^e]llo", b"hello", false),
            (b"h[a-b]llo", b"hbllo", true),
            (b"h[b-a]llo", b"hallo", true),
            (b"[4-0]", b"3", true),
            (b"m[", b"m", false),
            (b"m[", b"mx", false),
            (b"m[^", b"mx", true),
            (b"[a-", b"a", true),
            (b"[a-", b"-", true),
            (b"[a-", b"b", false),
            (b"[a-]", b"b", false),
            (b"[a-]", b"_", true),
            (b"[a-]x", b"_x", false),
            (b"[abc", b"b", true),
            (b"[]a]", b"a]", false),
            (b"[^]a]", b"za]", true),
            (b"[\\]]", b"]", true),
            (b"[\\-x]", b"-", true),
            (b"\\", b"\\", true),
            (b"\\*", b"*", true),
            (b"\\*", b"a", false),
            (b"*\\**", b"a*b", true),
            (b"*\\**", b"ab", false),
            (b"[\x80-a]", b"\xff", true),
            (b"[a-\x80]", b"b", false),
            (b"**1", b"str1", true),
            (b"a*b*c", b"abbbc", true),
            (b"a*b*c", b"abbb", false),
            (b"*?", b"", false),
            (b"?*", b"a", true),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(
                matches(pattern, text),
                *expected,
                "{} on {}",
                pattern.escape_ascii(),
                text.escape_ascii()
            );
        }
    }

    #[test]
    fn letters_fold_only_when_asked() {
        assert!(!matches(b"MaxMemory", b"maxmemory"));
        assert!(matches_ignoring_case(b"MaxM[E-F]m*", b"maxmemory"));
        assert!(!matches_ignoring_case(b"max[\\M]emory", b"maxmemory"));
    }

    /// Each of these stars could be tried at each place: without the bound this would take until
    /// the end of days.
    #[test]
    fn many_stars_take_bounded_time() {
        let pattern = b"a*".repeat(2_000);
        let text = vec![b'a'; 20_000];
        assert!(matches(&pattern, &text));
        let pattern = [&b"*a".repeat(1_000)[..], b"b"].concat();
        assert!(!matches(&pattern, &text));
    }
}
