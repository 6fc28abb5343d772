//! From a command's name to its row, in any case and without allocation.

use super::args::Args;
use super::{CommandSpec, FAMILIES};
use crate::error::{self, ErrorReply};
use std::sync::LazyLock;

/// A row with its number.
#[derive(Debug)]
pub struct Entry {
    /// The row.
    pub spec: &'static CommandSpec,
    /// Its number: counters of commands are arrays by it.
    pub id: usize,
    /// Its name in lower case; a subcommand's as `client|id`.
    pub name: String,
    /// The entries of its subcommands.
    pub subcommands: Vec<&'static Entry>,
    /// Whether it is a subcommand.
    pub nested: bool,
}

/// All rows: an open-addressed hash table of the commands' names.
#[derive(Debug)]
pub struct Table {
    entries: Vec<&'static Entry>,
    slots: Box<[Option<&'static Entry>]>,
    longest: usize,
}

/// The table of this program.
pub fn table() -> &'static Table {
    static TABLE: LazyLock<Table> = LazyLock::new(|| Table::new(FAMILIES));
    &TABLE
}

impl Table {
    fn new(families: &[&'static [CommandSpec]]) -> Self {
        let mut entries = Vec::new();
        let rows = families.iter().copied().flatten();
        let commands: Vec<_> = rows.map(|spec| add(spec, None, &mut entries)).collect();
        let slots = vec![None; (commands.len() * 4).next_power_of_two()].into_boxed_slice();
        let longest = commands.iter().map(|c| c.name.len()).max().unwrap_or(0);
        let mut table = Self { entries, slots, longest };
        for command in commands {
            let mut slot = table.home(command.name.as_bytes());
            while table.slots[slot].is_some() {
                slot = (slot + 1) % table.slots.len();
            }
            table.slots[slot] = Some(command);
        }
        table
    }
    /// Commands and subcommands by number.
    pub fn entries(&self) -> &[&'static Entry] {
        &self.entries
    }
    /// Commands without their subcommands.
    pub fn commands(&self) -> impl Iterator<Item = &'static Entry> {
        self.entries.iter().copied().filter(|e| !e.nested)
    }
    /// The command of that name.
    #[inline]
    pub fn find(&self, name: &[u8]) -> Option<&'static Entry> {
        if name.is_empty() || name.len() > self.longest {
            return None;
        }
        let mut slot = self.home(name);
        while let Some(entry) = self.slots[slot] {
            if entry.name.as_bytes().eq_ignore_ascii_case(name) {
                return Some(entry);
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        None
    }
    /// The command of that name, or the subcommand that `client|id` names.
    pub fn find_full(&self, name: &[u8]) -> Option<&'static Entry> {
        let mut parts = name.splitn(2, |b| *b == b'|');
        let command = self.find(parts.next()?)?;
        match parts.next() {
            None => Some(command),
            Some(sub) => command.subcommand(sub),
        }
    }
    /// The entry that is to run for these words, or Redis's error.
    #[inline]
    pub fn resolve(&self, args: Args<'_>) -> Result<&'static Entry, ErrorReply> {
        let mut entry = self.find(args.at(0)).ok_or_else(|| unknown_command(args))?;
        if !entry.subcommands.is_empty() && args.len() > 1 {
            entry = entry.subcommand(args.at(1)).ok_or_else(|| unknown_subcommand(entry, args))?;
        }
        if entry.spec.arity_fits(args.len()) {
            Ok(entry)
        } else {
            Err(error::wrong_arity(&entry.name))
        }
    }
    /// Length and two bytes tell nearly all names apart.
    fn home(&self, name: &[u8]) -> usize {
        let lower = |i: usize| usize::from(name.get(i).copied().unwrap_or(0) | 0x20);
        let mixed = lower(0) * 7 + lower(name.len() / 2) * 31 + lower(name.len() - 1) * 131;
        (mixed ^ (name.len() * 17)) & (self.slots.len() - 1)
    }
}

impl Entry {
    /// The subcommand of that name.
    pub fn subcommand(&self, name: &[u8]) -> Option<&'static Entry> {
        let named = |e: &&&'static Entry| name.eq_ignore_ascii_case(e.spec.name.as_bytes());
        self.subcommands.iter().find(named).copied()
    }
}

/// Makes entries that live as long as the program: the table is built once.
fn add(
    spec: &'static CommandSpec,
    container: Option<&'static CommandSpec>,
    entries: &mut Vec<&'static Entry>,
) -> &'static Entry {
    let name = match container {
        Some(container) => format!("{}|{}", container.name, spec.name).to_lowercase(),
        None => spec.name.to_lowercase(),
    };
    let subcommands = spec.subcommands.iter().map(|sub| add(sub, Some(spec), entries)).collect();
    let id = entries.len();
    let nested = container.is_some();
    let entry: &'static Entry = Box::leak(Box::new(Entry { spec, id, name, subcommands, nested }));
    entries.push(entry);
    entry
}

/// At most `limit` bytes of a word, and only those before a zero byte, as C prints it.
fn printed(word: &[u8], limit: usize) -> &[u8] {
    let end = word.iter().position(|b| *b == 0).unwrap_or(word.len());
    &word[..end.min(limit)]
}

fn unknown_command(args: Args<'_>) -> ErrorReply {
    let mut shown = Vec::new();
    for word in args.iter_from(1) {
        if shown.len() >= 128 {
            break;
        }
        let room = 128 - shown.len();
        shown.extend([b"'", printed(word, room), b"' "].concat());
    }
    let name = printed(args.at(0), 128);
    ErrorReply::owned(
        [b"ERR unknown command '", name, b"', with args beginning with: ", &shown].concat(),
    )
}

fn unknown_subcommand(container: &Entry, args: Args<'_>) -> ErrorReply {
    let sub = printed(args.at(1), 128);
    let name = container.spec.name.as_bytes();
    ErrorReply::owned([b"ERR unknown subcommand '", sub, b"'. Try ", name, b" HELP."].concat())
}

#[cfg(test)]
mod tests {
    use super::super::Run;
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_upper_case() {
        let mut seen = BTreeSet::new();
        for entry in table().entries() {
            assert!(seen.insert(&entry.name), "{} stands twice", entry.name);
            assert_eq!(entry.spec.name, entry.spec.name.to_uppercase());
        }
    }

    #[test]
    fn every_row_is_complete() {
        for Entry { spec, name, .. } in table().entries() {
            assert!(spec.arity != 0, "{name} has no arity");
            assert!(spec.summary.ends_with('.'), "{name} has no summary");
            let container = matches!(spec.run, Run::Container);
            assert!(!container || !spec.subcommands.is_empty(), "{name}");
            assert!(container || !spec.complexity.is_empty(), "{name} has no complexity");
            assert!(
                !spec.flags.has(super::super::Flags::READ.and(super::super::Flags::WRITE)),
                "{name} reads and writes: a write may read"
            );
        }
    }

    /// There is no store to be inside of while it is loaded.
    #[test]
    fn what_runs_while_loading_runs_outside() {
        for Entry { spec, name, .. } in table().entries() {
            let inside = matches!(spec.run, Run::Inside(_));
            assert!(!(inside && spec.flags.has(super::super::Flags::LOADING)), "{name}");
        }
    }

    #[test]
    fn each_name_is_found_in_any_case() {
        for entry in table().commands() {
            let mixed: String = (entry.name.chars().enumerate())
                .map(|(i, c)| if i % 2 == 0 { c.to_ascii_uppercase() } else { c })
                .collect();
            assert_eq!(table().find(mixed.as_bytes()).map(|e| e.id), Some(entry.id));
        }
        assert!(table().find(b"").is_none());
        assert!(table().find(b"nosuchcommand").is_none());
    }
}
