//! `ferrite aof check`: every block of every part against its checksum, and whether each part goes
//! on where the one before ends.

use super::{Outcome, Selected, ToolError, open, told};
use crate::aof::part::number_text;
use crate::aof::{End, Part, Start, format_time};
use std::io::Write;

/// Tells of each part in one line, and of all in the last one.
pub(super) fn run(
    files: &Selected,
    out: &mut dyn Write,
    errors: &mut dyn Write,
) -> Result<Outcome, ToolError> {
    let (mut bad, mut torn, mut blocks, mut count) = (0, 0, 0, 0);
    if files.only.is_none() {
        for error in files.parts.broken() {
            bad += 1;
            writeln!(errors, "{}", told(error))?;
        }
        for unbegun in files.parts.unbegun() {
            torn += 1;
            writeln!(errors, "{}: {}", unbegun.path.display(), unbegun.details())?;
        }
    }
    for part in files.each() {
        count += 1;
        if files.only.is_none()
            && let Some(gap) = files.parts.gap_before(part.header.number)
        {
            bad += 1;
            writeln!(errors, "{gap}: what follows cannot be replayed from before that")?;
        }
        let found = check(files, part, out, errors)?;
        blocks += found.0;
        match found.1 {
            Outcome::Good => {}
            Outcome::Bad => bad += 1,
            Outcome::Torn => torn += 1,
        }
    }
    writeln!(
        out,
        "{}, {}, {bad} wrong, {torn} torn",
        counted(count, "part"),
        counted(blocks, "block")
    )?;
    Ok(match (bad, torn) {
        (0, 0) => Outcome::Good,
        (0, _) => Outcome::Torn,
        _ => Outcome::Bad,
    })
}

/// One part: how many blocks are whole, and how it ends.
fn check(
    files: &Selected,
    part: &Part,
    out: &mut dyn Write,
    errors: &mut dyn Write,
) -> Result<(u64, Outcome), ToolError> {
    let known = files.parts.known(part.header.number);
    let (mut blocks, mut commands) = (0u64, 0u64);
    let mut reader = match open(&part.path, known) {
        Ok(reader) => reader,
        Err(e) => {
            writeln!(errors, "{}", told(&e))?;
            return Ok((0, Outcome::Bad));
        }
    };
    let first = reader.header().time_ms;
    let mut at = reader.offset();
    let outcome = loop {
        match reader.next_command() {
            Ok(Some(_)) => {
                commands += 1;
                blocks += u64::from(reader.offset() != at);
                at = reader.offset();
            }
            Ok(None) => match reader.end().expect("it has ended") {
                End::Whole(_) => break Outcome::Good,
                End::Torn(torn) => {
                    writeln!(errors, "{}: {}", part.path.display(), torn.details())?;
                    break Outcome::Torn;
                }
            },
            Err(e) => {
                writeln!(errors, "{}", told(&e))?;
                break Outcome::Bad;
            }
        }
    };
    let start = match part.header.start {
        Start::Empty => "an empty store".to_owned(),
        Start::Base(_) => "nothing else".to_owned(),
        Start::Checkpoint(number) => format!("checkpoint {number}"),
        Start::Only(number) => format!("checkpoint {number} only"),
        Start::Part => part
            .header
            .before
            .map_or("nothing".to_owned(), |before| format!("part {}", number_text(before.number))),
    };
    writeln!(
        out,
        "{}: goes on from {start}; {} with {} of {} to {} in {} of {} bytes: {}",
        part.path.display(),
        counted(blocks, "block"),
        counted(commands, "command"),
        format_time(first),
        format_time(reader.time_ms()),
        reader.offset(),
        part.length,
        match outcome {
            Outcome::Good => "whole",
            Outcome::Torn => "torn at its end",
            Outcome::Bad => "damaged",
        }
    )?;
    Ok((blocks, outcome))
}

/// `1 block`, `2 blocks`.
pub(in crate::tools) fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
