//! What a setting can hold: its kind with the range, and a value of that kind.
//!
//! Sizes are bytes; `64MB` and `64MiB` both mean 67,108,864, and `64m` is 64,000,000, as in
//! redis.conf. Durations are kept in milliseconds; a plain number is seconds.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

/// One option of a [`Kind::Choice`].
#[derive(Debug)]
pub struct Choice {
    /// What is written.
    pub name: &'static str,
    /// What it means, when it is another option's second name.
    pub means: &'static str,
    /// Whether this version has it.
    pub available: bool,
}

impl Choice {
    /// An option that this version has.
    pub const fn new(name: &'static str) -> Self {
        Self { name, means: name, available: true }
    }
    /// An option that is known, and refused.
    pub const fn not_yet(name: &'static str) -> Self {
        Self { name, means: name, available: false }
    }
    /// A second name.
    pub const fn synonym(name: &'static str, means: &'static str) -> Self {
        Self { name, means, available: true }
    }
}

/// The type and range of a setting.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `true` or `false`.
    Flag,
    /// A whole number within bounds, both included.
    Integer(u64, u64),
    /// Bytes within bounds, both included.
    Size(u64, u64),
    /// Bytes, a power of two within bounds, both included.
    PowerOfTwo(u64, u64),
    /// Milliseconds within bounds, both included.
    Duration(u64, u64),
    /// A number within bounds, both included.
    Fraction(f64, f64),
    /// One of a few words.
    Choice(&'static [Choice]),
    /// IP addresses, separated by spaces.
    Addresses,
    /// A path, or nothing where that is allowed.
    Path {
        /// Whether it may be empty.
        optional: bool,
    },
    /// A file's name without a directory, with this ending.
    FileName {
        /// The ending, dot included.
        ending: &'static str,
    },
    /// Any text.
    Text,
}

/// A value that is within its kind's range.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `true` or `false`.
    Flag(bool),
    /// A whole number.
    Integer(u64),
    /// Bytes.
    Size(u64),
    /// Milliseconds.
    Duration(u64),
    /// A number.
    Fraction(f64),
    /// One of the kind's words.
    Choice(&'static str),
    /// Anything else, in its normal form.
    Text(String),
}

/// Why a text is not a value of a kind: what would be right, for people and in Redis's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// "must be …", for files, environment and flags.
    pub expected: String,
    /// Redis's text for CONFIG SET.
    pub redis: String,
    /// Whether only this version stands in the way.
    pub not_available: bool,
}

const INTEGER: &str = "argument couldn't be parsed into an integer";
const MEMORY: &str = "argument must be a memory value";

impl Kind {
    /// Parses a text. Surrounding blanks do not count.
    pub fn parse(&self, text: &str) -> Result<Value, Refused> {
        let text = text.trim();
        match *self {
            Kind::Flag => parse_flag(text)
                .map(Value::Flag)
                .ok_or_else(|| self.refuse("argument must be 'yes' or 'no'".into())),
            Kind::Integer(min, max) => {
                let n = text.parse().map_err(|_| self.not_a_number(text, INTEGER))?;
                self.within(n, min, max).map(Value::Integer)
            }
            Kind::Size(min, max) => {
                let n = parse_size(text).ok_or_else(|| self.not_a_number(text, MEMORY))?;
                self.within(n, min, max).map(Value::Size)
            }
            Kind::PowerOfTwo(min, max) => {
                let n = parse_size(text).ok_or_else(|| self.not_a_number(text, MEMORY))?;
                if !n.is_power_of_two() {
                    return Err(self.refuse("argument must be a power of two".into()));
                }
                self.within(n, min, max).map(Value::Size)
            }
            Kind::Duration(min, max) => {
                let n = parse_duration(text).ok_or_else(|| self.not_a_number(text, INTEGER))?;
                if n < min || n > max {
                    return Err(self.refuse(between(min / 1000, max / 1000)));
                }
                Ok(Value::Duration(n))
            }
            Kind::Fraction(min, max) => match text.parse::<f64>() {
                Ok(n) if n >= min && n <= max => Ok(Value::Fraction(n)),
                _ => {
                    Err(self.refuse(format!("argument must be between {min} and {max} inclusive")))
                }
            },
            Kind::Choice(options) => self.parse_choice(options, text),
            Kind::Addresses => parse_addresses(text)
                .map(Value::Text)
                .ok_or_else(|| self.refuse("Failed to bind to specified addresses.".into())),
            Kind::Path { optional } => match text.is_empty() && !optional {
                true => Err(self.refuse("argument must not be empty".into())),
                false => Ok(Value::Text(text.to_owned())),
            },
            Kind::FileName { ending } => {
                let stem = text.strip_suffix(ending).unwrap_or("");
                match stem.is_empty() || stem.contains(['/', '\0']) || stem.starts_with('.') {
                    true => Err(self.refuse("argument must be a file name".into())),
                    false => Ok(Value::Text(text.to_owned())),
                }
            }
            Kind::Text => Ok(Value::Text(text.to_owned())),
        }
    }

    /// The range in words, as "must be …" continues.
    pub fn range(&self) -> String {
        match *self {
            Kind::Flag => "true or false".into(),
            Kind::Integer(min, u64::MAX) => format!("a whole number from {min}"),
            Kind::Integer(min, max) => format!("a whole number from {min} to {max}"),
            Kind::Size(0, u64::MAX) => "a size".into(),
            Kind::Size(min, u64::MAX) => format!("a size from {}", Bytes(min)),
            Kind::Size(min, max) => format!("a size from {} to {}", Bytes(min), Bytes(max)),
            Kind::PowerOfTwo(min, max) => {
                format!("a power of two from {} to {}", Bytes(min), Bytes(max))
            }
            Kind::Duration(min, max) => {
                format!("a duration from {} to {}", Span(min), Span(max))
            }
            Kind::Fraction(min, max) => format!("a number from {min} to {max}"),
            Kind::Choice(options) => match available(options)[..] {
                [only] => only.into(),
                ref several => format!("one of {}", several.join(", ")),
            },
            Kind::Addresses => {
                "one or more IP addresses, localhost or * (all of IPv4), separated by spaces".into()
            }
            Kind::Path { optional: false } => "a path".into(),
            Kind::Path { optional: true } => "a path, or empty".into(),
            Kind::FileName { ending } => {
                format!("a file name without a directory that ends in {ending}")
            }
            Kind::Text => "a text".into(),
        }
    }

    fn parse_choice(&self, options: &'static [Choice], text: &str) -> Result<Value, Refused> {
        match options.iter().find(|o| o.name.eq_ignore_ascii_case(text)) {
            Some(o) if o.available => Ok(Value::Choice(o.means)),
            Some(_) => Err(Refused { not_available: true, ..self.refuse(NOT_AVAILABLE.into()) }),
            None => Err(self.refuse(format!(
                "argument(s) must be one of the following: {}",
                available(options).join(", ")
            ))),
        }
    }

    fn within(&self, n: u64, min: u64, max: u64) -> Result<u64, Refused> {
        match n >= min && n <= max {
            true => Ok(n),
            false => Err(self.refuse(between(min, max))),
        }
    }

    /// A number that is merely negative or too long gets Redis's text for the range.
    fn not_a_number(&self, text: &str, otherwise: &str) -> Refused {
        let digits = text.strip_prefix('-').unwrap_or(text);
        let number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        self.refuse(match *self {
            Kind::Integer(min, max) if number => between(min, max),
            Kind::Duration(min, max) if number => between(min / 1000, max / 1000),
            _ => otherwise.into(),
        })
    }

    fn refuse(&self, redis: String) -> Refused {
        Refused { expected: format!("must be {}", self.range()), redis, not_available: false }
    }
}

/// What CONFIG SET answers for a feature that has not landed.
pub(super) const NOT_AVAILABLE: &str = "not available in this version";

fn between(min: u64, max: u64) -> String {
    format!("argument must be between {min} and {max} inclusive")
}

fn available(options: &'static [Choice]) -> Vec<&'static str> {
    options.iter().filter(|o| o.available && o.name == o.means).map(|o| o.name).collect()
}

impl Value {
    /// As TOML.
    pub fn to_toml(&self) -> String {
        match self {
            Value::Flag(v) => v.to_string(),
            Value::Integer(v) => v.to_string(),
            Value::Fraction(v) => format!("{v:?}"),
            Value::Size(v) if *v < 1024 || v % 1024 != 0 => v.to_string(),
            Value::Duration(v) if v % 1000 == 0 => (v / 1000).to_string(),
            Value::Size(v) => format!("\"{}\"", Bytes(*v)),
            Value::Duration(v) => format!("\"{}\"", Span(*v)),
            Value::Choice(v) => format!("\"{v}\""),
            Value::Text(v) => toml_edit::Value::from(v.as_str()).to_string(),
        }
    }

    /// As `CONFIG GET` prints it under its dotted name: sizes in bytes, durations in seconds.
    pub fn to_config_get(&self) -> String {
        match self {
            Value::Flag(v) => v.to_string(),
            Value::Integer(v) | Value::Size(v) => v.to_string(),
            Value::Duration(v) if v % 1000 == 0 => (v / 1000).to_string(),
            Value::Duration(v) => Span(*v).to_string(),
            Value::Fraction(v) => v.to_string(),
            Value::Choice(v) => (*v).to_owned(),
            Value::Text(v) => v.clone(),
        }
    }
}

fn parse_flag(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" => Some(true),
        "false" | "no" => Some(false),
        _ => None,
    }
}

/// Splits a number from the unit behind it; blanks between them do not count.
fn number_and_unit(text: &str) -> Option<(u64, String)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = text[..end].parse().ok()?;
    Some((number, text[end..].trim().to_ascii_lowercase()))
}

/// Bytes: `67108864`, `64MB`, `64MiB`.
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = number_and_unit(text)?;
    let factor: u64 = match unit.as_str() {
        "" | "b" => 1,
        "k" => 1000,
        "kb" | "kib" => 1 << 10,
        "m" => 1_000_000,
        "mb" | "mib" => 1 << 20,
        "g" => 1_000_000_000,
        "gb" | "gib" => 1 << 30,
        "t" => 1_000_000_000_000,
        "tb" | "tib" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// Milliseconds: `300` is seconds; `15min`, `2h`, `500ms`.
pub fn parse_duration(text: &str) -> Option<u64> {
    let (number, unit) = number_and_unit(text)?;
    let factor: u64 = match unit.as_str() {
        "ms" => 1,
        "" | "s" | "sec" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(factor)
}

fn parse_addresses(text: &str) -> Option<String> {
    let mut all = Vec::new();
    for word in text.split([' ', ',', '\t']).filter(|w| !w.is_empty()) {
        all.push(parse_address(word)?.to_string());
    }
    (!all.is_empty()).then(|| all.join(" "))
}

/// One address; `localhost` and Redis's `*` are the two words that pass.
pub(super) fn parse_address(word: &str) -> Option<IpAddr> {
    match word {
        "*" => Some(Ipv4Addr::UNSPECIFIED.into()),
        "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        _ => word.trim_start_matches('[').trim_end_matches(']').parse().ok(),
    }
}

/// Prints bytes with the largest unit that loses nothing.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        for (shift, unit) in units {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// Prints milliseconds with the largest unit that loses nothing.
#[derive(Clone, Copy, Debug)]
pub struct Span(pub u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s")];
        for (factor, unit) in units {
            if self.0 != 0 && self.0.is_multiple_of(factor) {
                return write!(f, "{}{unit}", self.0 / factor);
            }
        }
        match self.0 {
            0 => f.write_str("0"),
            ms => write!(f, "{ms}ms"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_mean_what_redis_conf_means() {
        for (text, bytes) in [
            ("0", 0),
            ("67108864", 67_108_864),
            ("64MB", 67_108_864),
            ("64MiB", 67_108_864),
            ("64 mb", 67_108_864),
            ("64m", 64_000_000),
            ("1gb", 1 << 30),
            ("2TiB", 2 << 40),
            ("5b", 5),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "MB", "-1", "1.5GB", "64 MB x", "99999999999TB", "1zb"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn durations_are_seconds_or_carry_a_unit() {
        for (text, ms) in
            [("300", 300_000), ("15min", 900_000), ("2h", 7_200_000), ("500ms", 500), ("0", 0)]
        {
            assert_eq!(parse_duration(text), Some(ms), "{text}");
        }
        for text in ["", "min", "1.5h", "-3", "3 weeks"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_printed_parses_to_the_same_value() {
        for bytes in [0, 1, 1023, 1024, 4096, 1000, 64 << 20, 3 << 40, u64::MAX] {
            assert_eq!(parse_size(&Bytes(bytes).to_string()), Some(bytes));
        }
        for ms in [0, 1, 999, 1000, 1500, 60_000, 90_000, 86_400_000] {
            assert_eq!(parse_duration(&Span(ms).to_string()), Some(ms));
        }
    }

    #[test]
    fn a_refusal_has_redis_words() {
        let redis = |kind: Kind, text: &str| kind.parse(text).expect_err("refused").redis;
        assert_eq!(redis(Kind::Integer(0, 9), "x"), INTEGER);
        assert_eq!(redis(Kind::Integer(0, 9), "-1"), "argument must be between 0 and 9 inclusive");
        assert_eq!(redis(Kind::Integer(0, 9), "10"), "argument must be between 0 and 9 inclusive");
        assert_eq!(redis(Kind::Size(0, 9), "1zb"), MEMORY);
        assert_eq!(redis(Kind::Flag, "maybe"), "argument must be 'yes' or 'no'");
        const OPTIONS: &[Choice] = &[
            Choice::new("no"),
            Choice::new("everysec"),
            Choice::synonym("everysecond", "everysec"),
            Choice::not_yet("never"),
        ];
        assert_eq!(
            redis(Kind::Choice(OPTIONS), "x"),
            "argument(s) must be one of the following: no, everysec"
        );
        assert_eq!(redis(Kind::Choice(OPTIONS), "never"), NOT_AVAILABLE);
        assert_eq!(Kind::Choice(OPTIONS).parse("EverySecond"), Ok(Value::Choice("everysec")));
    }

    #[test]
    fn addresses_have_one_form() {
        let parse = |text| match Kind::Addresses.parse(text) {
            Ok(Value::Text(t)) => t,
            other => panic!("{other:?}"),
        };
        assert_eq!(parse("127.0.0.1, ::1"), "127.0.0.1 ::1");
        assert_eq!(parse("* localhost"), "0.0.0.0 127.0.0.1");
        let range = Kind::Addresses.range();
        assert!(range.contains("localhost") && range.contains('*'), "{range}");
        assert!(Kind::Addresses.parse("300.1.1.1").is_err());
        assert!(Kind::Addresses.parse("").is_err());
    }

    #[test]
    fn a_file_name_stays_in_its_directory() {
        let kind = Kind::FileName { ending: ".ckpt" };
        assert!(kind.parse("ferrite.ckpt").is_ok());
        for bad in ["", ".ckpt", "../x.ckpt", "/x.ckpt", "x", "a/b.ckpt"] {
            assert!(kind.parse(bad).is_err(), "{bad}");
        }
    }
}
