//! `ferrite aof cat`: the commands, to read or to replay.

use super::{Outcome, Selected, ToolError, open, told};
use crate::aof::effect::Step;
use crate::aof::{Command, End, format_time};
use std::io::{self, Write};
use std::ops::RangeInclusive;

/// Prints the commands of these times. Parts are printed as far as they are whole.
pub(super) fn run(
    files: &Selected,
    times_ms: RangeInclusive<u64>,
    raw: bool,
    out: &mut dyn Write,
    errors: &mut dyn Write,
) -> Result<Outcome, ToolError> {
    let mut outcome = Outcome::Good;
    for part in files.each() {
        let mut reader = match open(&part.path, files.parts.known(part.header.number)) {
            Ok(reader) => reader,
            Err(e) => {
                writeln!(errors, "{}", told(&e))?;
                return Ok(Outcome::Bad);
            }
        };
        // Each part begins with SELECT.
        let mut database = None;
        loop {
            match reader.next_command() {
                Ok(Some(command)) => {
                    if command.time_ms > *times_ms.end() {
                        return Ok(outcome);
                    }
                    print(&command, &times_ms, raw, &mut database, out)?;
                }
                Ok(None) => break,
                Err(e) => {
                    out.flush()?;
                    writeln!(errors, "{}", told(&e))?;
                    return Ok(Outcome::Bad);
                }
            }
        }
        if let Some(End::Torn(torn)) = reader.end() {
            out.flush()?;
            writeln!(errors, "{}: {}", part.path.display(), torn.details())?;
            outcome = Outcome::Torn;
        }
    }
    Ok(outcome)
}

/// What is known of the database: its number, and whether it has been selected in what is printed.
type Database = Option<(u8, bool)>;

fn print(
    command: &Command<'_>,
    times_ms: &RangeInclusive<u64>,
    raw: bool,
    database: &mut Database,
    out: &mut dyn Write,
) -> io::Result<()> {
    let shown = times_ms.contains(&command.time_ms);
    if let Step::Select(number) = command.step() {
        *database = Some((number, shown));
    } else if let (true, Some((number, selected @ false))) = (shown && raw, database.as_mut()) {
        // What selected it was before the times that are printed.
        *selected = true;
        let number = number.to_string();
        write!(out, "*2\r\n$6\r\nSELECT\r\n${}\r\n{number}\r\n", number.len())?;
    }
    if !shown {
        return Ok(());
    }
    if raw {
        return out.write_all(command.bytes);
    }
    let number = database.map_or("-".to_owned(), |(number, _)| number.to_string());
    write!(out, "{:015} {} [{number}]", command.offset, format_time(command.time_ms))?;
    for (i, word) in command.words().enumerate() {
        match i {
            0 => write!(out, " {}", word.escape_ascii())?,
            _ => write!(out, " \"{}\"", word.escape_ascii())?,
        }
    }
    writeln!(out)
}
