//! The options of SET and GETEX.
//!
//! As in Redis, an option may stand twice if the second says nothing else (the last time counts),
//! and whatever contradicts an earlier one is a syntax error.

use crate::commands::args::{Cursor, is};
use crate::commands::expiry::{self, Form};
use crate::error::{ErrorReply, SYNTAX};

/// When SET sets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Condition {
    #[default]
    Always,
    /// NX.
    IfAbsent,
    /// XX.
    IfPresent,
}

impl Condition {
    pub(super) fn is_met(self, found: bool) -> bool {
        match self {
            Condition::Always => true,
            Condition::IfAbsent => !found,
            Condition::IfPresent => found,
        }
    }
}

/// What becomes of a key's expiry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Expiry {
    /// It stays.
    Keep,
    /// There is none.
    None,
    /// Unix milliseconds.
    At(u64),
}

/// What was asked of the expiry.
#[derive(Clone, Copy, Debug, Default)]
enum Asked<'a> {
    #[default]
    Nothing,
    /// KEEPTTL of SET, PERSIST of GETEX.
    Flag,
    Time(Form, &'a [u8]),
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Options<'a> {
    pub(super) condition: Condition,
    /// GET: the reply is the old value.
    pub(super) get: bool,
    asked: Asked<'a>,
    /// What `Asked::Flag` means here.
    flag_keeps: bool,
}

const TIMES: [(&str, Form); 4] = [
    ("EX", Form::Seconds),
    ("PX", Form::Milliseconds),
    ("EXAT", Form::AtSeconds),
    ("PXAT", Form::AtMilliseconds),
];

impl<'a> Options<'a> {
    pub(super) fn of_set(mut words: Cursor<'a>) -> Result<Self, ErrorReply> {
        let mut options = Self { flag_keeps: true, ..Self::default() };
        while let Some(word) = words.next() {
            match options.condition {
                Condition::Always | Condition::IfAbsent if is(word, "NX") => {
                    options.condition = Condition::IfAbsent;
                }
                Condition::Always | Condition::IfPresent if is(word, "XX") => {
                    options.condition = Condition::IfPresent;
                }
                _ if is(word, "GET") => options.get = true,
                _ => options.ask(word, "KEEPTTL", &mut words)?,
            }
        }
        Ok(options)
    }

    pub(super) fn of_getex(mut words: Cursor<'a>) -> Result<Self, ErrorReply> {
        let mut options = Self::default();
        while let Some(word) = words.next() {
            options.ask(word, "PERSIST", &mut words)?;
        }
        Ok(options)
    }

    fn ask(&mut self, word: &[u8], flag: &str, words: &mut Cursor<'a>) -> Result<(), ErrorReply> {
        if is(word, flag) && !matches!(self.asked, Asked::Time(..)) {
            self.asked = Asked::Flag;
            return Ok(());
        }
        let (_, form) = *TIMES.iter().find(|(name, _)| is(word, name)).ok_or(SYNTAX)?;
        match self.asked {
            Asked::Flag => return Err(SYNTAX),
            Asked::Time(other, _) if other != form => return Err(SYNTAX),
            _ => self.asked = Asked::Time(form, words.word()?),
        }
        Ok(())
    }

    /// Whether anything was asked of the expiry.
    pub(super) fn changes_expiry(&self) -> bool {
        !matches!(self.asked, Asked::Nothing)
    }

    /// What becomes of the expiry.
    pub(super) fn expiry(&self, now_ms: u64, command: &str) -> Result<Expiry, ErrorReply> {
        Ok(match self.asked {
            Asked::Flag if self.flag_keeps => Expiry::Keep,
            Asked::Flag | Asked::Nothing => Expiry::None,
            Asked::Time(form, word) => Expiry::At(expiry::of_value(word, form, now_ms, command)?),
        })
    }
}
