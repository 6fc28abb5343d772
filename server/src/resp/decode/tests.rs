use super::*;
use proptest::prelude::*;

const BOUNDS: Bounds =
    Bounds { bulk_max: 1000, value_max: 100, stores_values: |name| name != b"ECHO" };

/// Commands as words, oversized ones as one word, the error at the end if there is one.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    commands: Vec<Vec<Vec<u8>>>,
    error: Option<ProtocolError>,
}

/// Gives the decoder the chunks one after the other, keeping what it has not used.
fn decode(chunks: &[&[u8]]) -> Found {
    let mut decoder = Decoder::default();
    let mut input = Vec::new();
    let mut found = Found { commands: Vec::new(), error: None };
    for chunk in chunks {
        input.extend_from_slice(chunk);
        loop {
            match decoder.next(&input, &BOUNDS) {
                Decoded::Command => {
                    let bytes = decoder.unfolded().unwrap_or(&input);
                    let words = decoder.words().iter().map(|w| w.of(bytes).to_vec()).collect();
                    found.commands.push(words);
                    input.drain(..decoder.length());
                }
                Decoded::Oversized => {
                    found.commands.push(vec![b"<oversized>".to_vec()]);
                    input.drain(..decoder.length());
                }
                Decoded::Skip(n) => {
                    assert!(n > 0);
                    input.drain(..n);
                }
                Decoded::Incomplete => break,
                Decoded::Failed(error) => {
                    found.error = Some(error);
                    return found;
                }
            }
        }
    }
    found
}

fn words(text: &str) -> Vec<Vec<u8>> {
    text.split(' ').map(|w| w.as_bytes().to_vec()).collect()
}

#[test]
fn arrays_inline_commands_and_empty_lines() {
    let found = decode(&[b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n\r\n\nPING\r\n*0\r\n*-1\r\nset  a b\n"]);
    assert_eq!(found.commands, [words("GET a"), words("PING"), words("set a b")]);
    assert_eq!(found.error, None);
}

/// As Redis's loader of append-only files does: a part of ours can be piped in.
#[test]
fn lines_with_a_number_sign_are_skipped_like_empty_ones() {
    let input =
        b"#B part=000001 \"not closed\r\n#TS:1\r\n*1\r\n$4\r\nPING\r\n#\n #x\r\nECHO #x\r\n";
    let expected = [words("PING"), words("#x"), words("ECHO #x")];
    for split in 0..input.len() {
        let found = decode(&[&input[..split], &input[split..]]);
        assert_eq!((&found.commands[..], found.error), (&expected[..], None), "{split}");
    }
    let long = [b"#", &vec![b'x'; LINE_MAX + 1][..]].concat();
    assert_eq!(decode(&[&long]).error, Some(ProtocolError::InlineTooLong));
}

#[test]
fn quotes_are_unfolded_as_redis_does() {
    for (line, expected) in [
        (r#""a b" c"#, Some(vec!["a b", "c"])),
        (r#""\x41\n\"" ''"#, Some(vec!["A\n\"", ""])),
        (r#"'it\'s \n'"#, Some(vec![r"it's \n"])),
        (r#"a"b c""#, Some(vec!["ab c"])),
        (r#""\xzz\q""#, Some(vec!["xzzq"])),
        (r#""a"b"#, None),
        (r#""a"#, None),
        (r"'a", None),
        (r#""a\"#, None),
    ] {
        let input = format!("{line}\r\n");
        let found = decode(&[input.as_bytes()]);
        match expected {
            Some(words) => {
                let words: Vec<_> = words.iter().map(|w| w.as_bytes().to_vec()).collect();
                assert_eq!(found.commands, [words], "{line}");
            }
            None => assert_eq!(found.error, Some(ProtocolError::UnbalancedQuotes), "{line}"),
        }
    }
}

#[test]
fn what_is_no_resp_fails_with_the_reason() {
    let long = vec![b'a'; LINE_MAX + 1];
    let with = |start: &[u8]| [start, &long[start.len()..]].concat();
    for (input, error) in [
        (b"*\r\n".to_vec(), ProtocolError::Count),
        (b"*a\r\n".to_vec(), ProtocolError::Count),
        (b"*2147483648\r\n".to_vec(), ProtocolError::Count),
        (b"*01\r\n".to_vec(), ProtocolError::Count),
        (b"*1\r\nx\r\n".to_vec(), ProtocolError::NoBulk(b'x')),
        (b"*1\r\n\r\n".to_vec(), ProtocolError::NoBulk(b'\r')),
        (b"*1\r\n$-1\r\n".to_vec(), ProtocolError::Length),
        (b"*1\r\n$1001\r\n".to_vec(), ProtocolError::Length),
        (b"*1\r\n$\r\n".to_vec(), ProtocolError::Length),
        (with(b""), ProtocolError::InlineTooLong),
        (with(b"*"), ProtocolError::CountTooLong),
        ([b"*1\r\n".to_vec(), with(b"$")].concat(), ProtocolError::LengthTooLong),
        ([b"*1\r\n".to_vec(), with(b"x")].concat(), ProtocolError::LengthTooLong),
    ] {
        let shown = String::from_utf8_lossy(&input[..input.len().min(20)]).into_owned();
        let end = input.len();
        let found = decode(&[&input[..end - 1], &input[end - 1..], b"*1\r\n$4\r\nPING\r\n"]);
        assert_eq!(found.error, Some(error), "{shown}");
        assert!(found.commands.is_empty());
    }
}

#[test]
fn a_line_as_long_as_it_may_be_is_taken() {
    let word = "a".repeat(LINE_MAX - 1);
    let found = decode(&[word.as_bytes(), b"\r\n"]);
    assert_eq!(found.commands, [words(&word)]);
}

#[test]
fn an_oversized_word_is_skipped_and_the_rest_understood() {
    let mut input = b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$101\r\n".to_vec();
    input.extend(vec![b'x'; 101]);
    input.extend(b"\r\n*1\r\n$4\r\nPING\r\n*3\r\n$3\r\nSET\r\n$101\r\n");
    input.extend(vec![b'y'; 101]);
    input.extend(b"\r\n$1\r\nz\r\nPING\r\n");
    let found = decode(&[&input]);
    let oversized = words("<oversized>");
    let expected = [oversized.clone(), words("PING"), oversized, words("PING")];
    assert_eq!(found.commands, expected);
}

/// Pieces that are valid, nearly valid or nonsense.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        8 => proptest::collection::vec(any::<u8>(), 0..30),
        1 => proptest::collection::vec(any::<u8>(), 95..120),
    ];
    let command = proptest::collection::vec(word, 1..5).prop_map(|words| {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bytes.extend(format!("${}\r\n", word.len()).into_bytes());
            bytes.extend(word);
            bytes.extend(b"\r\n");
        }
        bytes
    });
    prop_oneof![
        12 => command,
        2 => "[a-z \"'\\\\]{0,20}\r?\n".prop_map(String::into_bytes),
        1 => Just(b"*0\r\n".to_vec()),
        1 => Just(b"\r\n".to_vec()),
        1 => "[*$][-0-9a]{0,4}\r\n".prop_map(String::into_bytes),
        1 => proptest::collection::vec(any::<u8>(), 0..10),
    ]
}

proptest! {
    #[test]
    fn any_split_gives_the_same_commands(
        pieces in proptest::collection::vec(piece(), 0..12),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let input = pieces.concat();
        let mut at: Vec<_> = cuts.iter().map(|c| c.index(input.len() + 1)).collect();
        at.sort_unstable();
        at.push(input.len());
        let mut from = 0;
        let chunks: Vec<_> = at.iter().map(|to| &input[std::mem::replace(&mut from, *to)..*to]).collect();
        let whole = decode(&[&input]);
        prop_assert_eq!(&decode(&chunks), &whole);
        let bytes: Vec<_> = input.chunks(1).collect();
        prop_assert_eq!(&decode(&bytes), &whole);
    }

    #[test]
    fn what_is_encoded_comes_back(
        commands in proptest::collection::vec(
            proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..100), 1..6), 0..6),
    ) {
        let mut bytes = Vec::new();
        for command in &commands {
            bytes.extend(format!("*{}\r\n", command.len()).into_bytes());
            for word in command {
                bytes.extend(format!("${}\r\n", word.len()).into_bytes());
                bytes.extend(word);
                bytes.extend(b"\r\n");
            }
        }
        prop_assert_eq!(decode(&[&bytes]), Found { commands, error: None });
    }
}

#[test]
fn only_commands_that_store_values_are_held_to_their_limit() {
    let (long, longest) = ("x".repeat(101), "x".repeat(1001));
    let echo = |text: &str| format!("*2\r\n$4\r\nECHO\r\n${}\r\n{text}\r\n", text.len());
    let set = format!("*3\r\n$3\r\nSET\r\n$1\r\na\r\n$101\r\n{long}\r\n");
    let sent = [echo(&long), set, echo("a"), echo(&longest)].concat();
    let found = decode(&[sent.as_bytes()]);
    let expected =
        [vec![b"ECHO".to_vec(), long.into_bytes()], words("<oversized>"), words("ECHO a")];
    assert_eq!(found.commands, expected);
    assert_eq!(found.error, Some(ProtocolError::Length));
}
