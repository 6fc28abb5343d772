//! `ferrite aof stat`: what an append-only file is made of, in numbers.

use super::{Outcome, Selected, ToolError, open, told};
use crate::aof::{End, format_time};
use std::collections::BTreeMap;
use std::io::Write;

#[derive(Default)]
struct Counts {
    parts: u64,
    file_bytes: u64,
    whole_bytes: u64,
    blocks: u64,
    marks: u64,
    block_bytes_max: u64,
    commands: BTreeMap<String, (u64, u64)>,
    first_ms: Option<u64>,
    last_ms: u64,
}

/// Counts, and prints `name: number` lines. Parts are counted as far as they are whole.
pub(super) fn run(
    files: &Selected,
    out: &mut dyn Write,
    errors: &mut dyn Write,
) -> Result<Outcome, ToolError> {
    let mut counts = Counts::default();
    let mut outcome = Outcome::Good;
    for part in files.each() {
        counts.parts += 1;
        counts.file_bytes += part.length;
        let known = files.parts.known(part.header.number);
        let mut reader = match open(&part.path, known) {
            Ok(reader) => reader,
            Err(e) => {
                writeln!(errors, "{}", told(&e))?;
                outcome = Outcome::Bad;
                continue;
            }
        };
        loop {
            match reader.next_block() {
                Ok(Some(block)) => {
                    counts.blocks += 1;
                    counts.marks += u64::from(block.length == 0);
                    counts.block_bytes_max = counts.block_bytes_max.max(block.length);
                    counts.first_ms = counts.first_ms.or(Some(block.time_ms));
                    counts.last_ms = block.time_ms;
                }
                Ok(None) => break,
                Err(e) => {
                    writeln!(errors, "{}", told(&e))?;
                    outcome = Outcome::Bad;
                    break;
                }
            }
        }
        counts.whole_bytes += reader.offset();
        if let Some(End::Torn(torn)) = reader.end() {
            writeln!(errors, "{}: {}", part.path.display(), torn.details())?;
            outcome = if outcome == Outcome::Bad { outcome } else { Outcome::Torn };
        }
        count_commands(open(&part.path, known).ok(), reader.offset(), &mut counts);
    }
    print(&counts, out)?;
    Ok(outcome)
}

/// Counts the commands below `end`, which are whole.
fn count_commands(
    reader: Option<crate::aof::PartReader<std::fs::File>>,
    end: u64,
    counts: &mut Counts,
) {
    let Some(mut reader) = reader else { return };
    while let Ok(Some(command)) = reader.next_command() {
        if command.offset >= end {
            break;
        }
        let name = command.words().next().unwrap_or_default().escape_ascii().to_string();
        let (number, bytes) = counts.commands.entry(name).or_default();
        *number += 1;
        *bytes += command.bytes.len() as u64;
    }
}

fn print(counts: &Counts, out: &mut dyn Write) -> std::io::Result<()> {
    let Counts { parts, file_bytes, whole_bytes, blocks, marks, block_bytes_max, .. } = counts;
    writeln!(out, "parts: {parts}")?;
    writeln!(out, "file_bytes: {file_bytes}")?;
    writeln!(out, "whole_bytes: {whole_bytes}")?;
    writeln!(out, "blocks: {blocks}")?;
    writeln!(out, "marks: {marks}")?;
    writeln!(out, "block_bytes_max: {block_bytes_max}")?;
    if let Some(first_ms) = counts.first_ms {
        writeln!(out, "first: {}", format_time(first_ms))?;
        writeln!(out, "last: {}", format_time(counts.last_ms))?;
    }
    let commands: u64 = counts.commands.values().map(|(number, _)| number).sum();
    writeln!(out, "commands: {commands}")?;
    for (name, (number, bytes)) in &counts.commands {
        writeln!(out, "command {name}: {number}, {bytes} bytes")?;
    }
    Ok(())
}
