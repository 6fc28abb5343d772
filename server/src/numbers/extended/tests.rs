use super::*;
use std::io::Write;
use std::process::{Command, Stdio};

/// What INCRBYFLOAT makes of a stored value and an increment.
fn sum(a: &str, b: &str) -> String {
    match (Extended::parse(a.as_bytes()), Extended::parse(b.as_bytes())) {
        (Some(a), Some(b)) => match a.checked_add(b) {
            Some(sum) => {
                let mut out = Vec::new();
                sum.write_human(&mut out);
                String::from_utf8(out).unwrap()
            }
            None => "not finite".into(),
        },
        _ => "not a float".into(),
    }
}

/// Replies of redis-server 7.0.15 on x86-64.
#[test]
fn sums_are_those_of_redis() {
    let golden = [
        ("0.1", "0.2", "0.3"),
        ("1e17", "0.1", "100000000000000000.1015625"),
        ("10.50", "0.1", "10.6"),
        ("5.0e3", "2.0e2", "5200"),
        ("3", "0", "3"),
        ("-0", "0", "0"),
        ("-0", "-0", "0"),
        ("0", "-1e-30", "0"),
        ("3.0000000000000001", "0", "3.0000000000000001"),
        ("1", "1e-17", "1.00000000000000001"),
        ("0.1", "-0.3", "-0.2"),
        ("9223372036854775807", "1", "9223372036854775808"),
        ("18446744073709551616", "1", "18446744073709551616"),
        ("18446744073709551615", "-0.5", "18446744073709551614"),
        ("0x1p3", "0x.8", "8.5"),
        ("0X1.8P-1", "5.", "5.75"),
        (".5", "5.", "5.5"),
        ("1e-300", "1", "1"),
        ("inf", "1", "not finite"),
        ("1", "-Infinity", "not finite"),
        ("inf", "-inf", "not finite"),
        ("1e4932", "1e4932", "not finite"),
        ("1.18973149535723176502e4932", "1.18973149535723176502e4932", "not finite"),
    ];
    for (a, b, expected) in golden {
        assert_eq!(sum(a, b), expected, "{a} + {b}");
        assert_eq!(sum(b, a), expected, "{b} + {a}");
    }
    assert_eq!(sum("1e4932", "0").len(), 4933);
}

#[test]
fn what_strtold_does_not_take_whole_is_no_float() {
    let refused = [
        "",
        " 1",
        "1 ",
        "abc",
        "1,5",
        "1e",
        "1e+",
        "1p3",
        "0x",
        "0x.",
        "0x1p",
        "0xp1",
        ".",
        "+",
        "-",
        "+-1",
        "--1",
        "nan",
        "NAN(1)",
        "infinit",
        "in",
        "1e5000",
        "-1e5000",
        "1e-5000",
        "0x1p-20000",
        "0x1p20000",
        "1e999999999999999999999",
        "1e-999999999999999999999",
        "1\0",
        "1.5.2",
        "0x1.8q",
        "1e-4951",
    ];
    for text in refused {
        assert_eq!(Extended::parse(text.as_bytes()), None, "{text:?}");
    }
    assert_eq!(Extended::parse("1".repeat(5120).as_bytes()), None);
    let zeros = ["0e999999999999999999999", "-0.000e-7", "0x0p999999", &"0".repeat(5119)];
    for text in zeros {
        assert_eq!(Extended::parse(text.as_bytes()).unwrap().magnitude, NOTHING, "{text:?}");
    }
}

#[test]
fn the_ends_of_the_range_are_held() {
    let smallest = Extended::parse(b"3.6451995318824746025e-4951").unwrap();
    assert_eq!(smallest.magnitude, Magnitude::Finite { mantissa: 1, exponent: LOWEST });
    // Half of the smallest number, and a little more, rounds up to it.
    let above_half = Extended::parse(b"1.8225997659412373013e-4951").unwrap();
    assert_eq!(above_half, smallest);
    assert_eq!(Extended::parse(b"1.8225997659412373012e-4951"), None);
    let largest = Extended::parse(b"0x0.ffffffffffffffffp16384").unwrap();
    assert_eq!(largest.magnitude, Magnitude::Finite { mantissa: u64::MAX, exponent: HIGHEST });
    assert_eq!(Extended::parse(b"0x0.ffffffffffffffff7p16384").unwrap(), largest);
    assert_eq!(Extended::parse(b"0x0.ffffffffffffffff8p16384"), None);
}

/// Reads pairs of texts, prints what the C library and the processor make of them.
const ORACLE: &str = r#"
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int number(char *text, long double *value) {
    char *end;
    errno = 0;
    *value = strtold(text, &end);
    if (*text == 0 || isspace((unsigned char)*text) || *end != 0 || isnan(*value)) return 0;
    return !(errno == ERANGE && (isinf(*value) || *value == 0));
}

int main(void) {
    static char line[65536];
    while (fgets(line, sizeof line, stdin)) {
        char *second = strchr(line, ';');
        long double a, b;
        *second++ = 0;
        second[strcspn(second, "\n")] = 0;
        if (!number(line, &a) || !number(second, &b)) puts("not a float");
        else if (isnan(a + b) || isinf(a + b)) puts("not finite");
        else printf("%.17Lf\n", a + b);
    }
    return 0;
}
"#;

/// SplitMix64: small, and the same numbers from the same seed everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    fn within(&mut self, n: i64) -> i64 {
        self.below(2 * n as u64 + 1) as i64 - n
    }
    fn digits(&mut self, most: u64) -> String {
        (0..=self.below(most)).map(|_| (b'0' + self.below(10) as u8) as char).collect()
    }
    fn sign(&mut self) -> &'static str {
        ["", "", "-", "+"][self.below(4) as usize]
    }
    /// A decimal or hexadecimal float, now and then a broken one; many near a rounding tie, some
    /// at the ends of the range (those are slow, hence few).
    fn float(&mut self) -> String {
        let sign = self.sign();
        let text = match self.below(9) {
            0 => format!("{sign}{}", self.digits(22)),
            1 | 2 => format!("{sign}{}.{}", self.digits(20), self.digits(24)),
            3 => format!("{sign}{}.{}e{}", self.digits(3), self.digits(40), self.within(40)),
            4 => format!("{sign}{}e{}", self.digits(30), self.within(60)),
            5 => format!("{sign}0x{:x}.{:x}p{}", self.next(), self.next(), self.within(120)),
            // A tie between two neighbours, and just beside it.
            6 => {
                let tails = ["8", "80000000000000000001", "7fffffffffff", "4", "c"];
                let tail = tails[self.below(5) as usize];
                let mantissa = self.next() | 1 << 63;
                format!("{sign}0x{mantissa:x}.{tail}p{}", self.within(100))
            }
            7 => (u128::from(self.next() | 1 << 63) * 2 + 1).to_string(),
            _ => match self.below(30) {
                0 => format!("{sign}{}e{}", self.digits(30), self.within(5_000)),
                1 => format!("{sign}0x{:x}p{}", self.next(), self.within(16_600)),
                2 => format!("{sign}{}e-{}", self.digits(20), 4_930 + self.below(40)),
                _ => self.within(1_000_000).to_string(),
            },
        };
        if self.below(40) > 0 {
            return text;
        }
        let mut broken = text.into_bytes();
        let at = self.below(broken.len() as u64) as usize;
        broken[at] = b" .eExpX+-0nif"[self.below(13) as usize];
        String::from_utf8(broken).unwrap()
    }
}

#[test]
fn a_hundred_thousand_sums_agree_with_the_c_library() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("oracle.c");
    let program = directory.path().join("oracle");
    std::fs::write(&source, ORACLE).unwrap();
    let compiled = Command::new("cc").arg(&source).arg("-o").arg(&program).arg("-lm").status();
    if !compiled.is_ok_and(|status| status.success()) {
        println!("skipped: no C compiler");
        return;
    }
    if !cfg!(target_arch = "x86_64") {
        println!("skipped: long double is not the x87 format here");
        return;
    }
    let seed = match std::env::var("FERRITE_TEST_SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => u64::from(std::process::id()) << 20 ^ directory.path().as_os_str().len() as u64,
    };
    println!("FERRITE_TEST_SEED={seed}");
    let mut random = Random(seed);
    let cases: Vec<_> = (0..100_000).map(|_| (random.float(), random.float())).collect();

    let mut child =
        Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let text: String = cases.iter().map(|(a, b)| format!("{a};{b}\n")).collect();
    let feeder = std::thread::spawn(move || input.write_all(text.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    let replies = String::from_utf8(output.stdout).unwrap();
    assert_eq!(replies.lines().count(), cases.len());

    for ((a, b), expected) in cases.iter().zip(replies.lines()) {
        let ours = match (Extended::parse(a.as_bytes()), Extended::parse(b.as_bytes())) {
            (Some(a), Some(b)) => match a.checked_add(b) {
                Some(sum) => {
                    let mut out = Vec::new();
                    sum.write_fixed(&mut out);
                    String::from_utf8(out).unwrap()
                }
                None => "not finite".into(),
            },
            _ => "not a float".into(),
        };
        assert_eq!(ours, expected, "{a} + {b}");
    }
}
