//! The table, printed: as a `ferrite.toml`, and as the table of docs/operating.md.

use super::table::{Applies, Default, ROWS, RowIndex};
use super::values::Values;
use std::fmt::Write as _;

/// A `ferrite.toml` that sets everything to what it is. Feeding it back changes nothing.
pub fn dump(values: &Values) -> String {
    let mut text = String::from("# Ferrite's configuration: every setting, with its default.\n");
    let mut section = "";
    for (i, row) in ROWS.iter().enumerate() {
        if row.section() != section {
            section = row.section();
            write_line(&mut text, format_args!("\n[{section}]"));
        }
        let live = if row.applies == Applies::Live { " Live." } else { "" };
        let not_yet = if row.available { "" } else { " Not available in this version." };
        write_line(&mut text, format_args!("# {}{live}{not_yet}", row.help));
        write_line(&mut text, format_args!("# Default: {}", row.default_text()));
        let value = values.get(RowIndex(i));
        write_line(&mut text, format_args!("{} = {}", row.key(), value.to_toml()));
    }
    text
}

/// A `ferrite.toml` to be changed. What this version does not have, and what follows the machine,
/// stands there as a comment.
pub fn commented(values: &Values) -> String {
    let defaults = Values::defaults();
    let mut text = String::new();
    let (mut section, mut lines) = ("", dump(values));
    lines = lines.replacen("with its default", "to be changed", 1);
    let mut rows = ROWS.iter().enumerate();
    for line in lines.lines() {
        if line.starts_with('[') {
            section = line;
        }
        let is_setting = !section.is_empty() && line.contains(" = ") && !line.starts_with('#');
        let follows = is_setting
            && rows.next().is_some_and(|(i, row)| {
                let is_default = values.get(RowIndex(i)) == defaults.get(RowIndex(i));
                is_default && (!row.available || !matches!(row.default, Default::Text(_)))
            });
        write_line(&mut text, format_args!("{}{line}", if follows { "# " } else { "" }));
    }
    text
}

/// The table of docs/operating.md.
pub fn operating_table() -> String {
    let mut text = String::new();
    let mut section = "";
    for row in ROWS {
        if row.section() != section {
            section = row.section();
            let head = "| setting | default | range | applies | what it does |";
            write_line(
                &mut text,
                format_args!("\n### [{section}]\n\n{head}\n|---|---|---|---|---|"),
            );
        }
        let applies = match (row.available, row.applies) {
            (false, _) => "not yet",
            (true, Applies::Live) => "live",
            (true, Applies::Restart) => "restart",
        };
        let range = row.kind.range();
        write_line(
            &mut text,
            format_args!(
                "| `{}` | `{}` | {range} | {applies} | {} |",
                row.name,
                row.default_text(),
                row.help
            ),
        );
    }
    text
}

fn write_line(text: &mut String, line: std::fmt::Arguments<'_>) {
    text.write_fmt(line).expect("a String takes all");
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file;

    #[test]
    fn what_is_dumped_says_the_same_again() {
        let mut values = Values::defaults();
        for (name, text) in [
            ("server.port", "7000"),
            ("storage.data_dir", "a \"b\"\\c\t"),
            ("persistence.checkpoint_interval", "1500ms"),
            ("server.max_query_buffer", "1048577"),
        ] {
            values.set_text(name, text, crate::config::Source::Command).expect(name);
        }
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("f.toml");
        std::fs::write(&path, dump(&values)).expect("written");
        let (mut again, mut errors) = (Values::defaults(), Vec::new());
        file::read_into(&path, &mut again, &mut errors);
        assert!(errors.is_empty(), "{errors:?}");
        for (i, row) in ROWS.iter().enumerate() {
            assert_eq!(again.get(RowIndex(i)), values.get(RowIndex(i)), "{}", row.name);
        }
        assert_eq!(dump(&again), dump(&values));
    }
}
