//! `ferrite.toml`: TOML, read statement by statement, so that every setting knows its line.
//!
//! A section may stand twice (people paste blocks from the documentation); the parts are merged,
//! which a TOML parser by itself refuses. A key that is set twice must be set to the same value.
//! Each statement goes through the TOML parser on its own; one that does not parse alone is tried
//! together with the lines behind it (a text over several lines, an array).

use super::error::ConfigError;
use super::table::{ROWS, RowIndex};
use super::values::{self, Source, Values};
use std::collections::HashMap;
use std::path::Path;
use toml_edit::{DocumentMut, Item, Table};

/// One statement of a file: the lines it takes and what it sets.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Statement {
    /// The first line, from 0.
    pub first: usize,
    /// One past the last line.
    pub end: usize,
    /// What it is.
    pub what: What,
}

/// What a statement is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum What {
    /// `[section]`.
    Section(String),
    /// Dotted names with the texts of their values: one, or several from an inline table.
    Settings(Vec<(String, String)>),
    /// Not TOML.
    Wrong(String),
}

/// Reads a file and sets what it says.
pub(super) fn read_into(path: &Path, values: &mut Values, errors: &mut Vec<ConfigError>) {
    match std::fs::read_to_string(path) {
        Ok(text) => parse_into(path, &text, values, errors),
        Err(source) => errors.push(ConfigError::Unreadable { path: path.to_owned(), source }),
    }
}

fn parse_into(path: &Path, text: &str, values: &mut Values, errors: &mut Vec<ConfigError>) {
    let mut seen: HashMap<RowIndex, (usize, String)> = HashMap::new();
    for statement in statements(text) {
        let line = statement.first + 1;
        let settings = match statement.what {
            What::Settings(settings) => settings,
            What::Section(name) => {
                if !ROWS.iter().any(|row| row.section() == name) {
                    errors.push(unknown_section(path, line, &name));
                }
                continue;
            }
            What::Wrong(message) => {
                errors.push(ConfigError::Syntax { path: path.to_owned(), line, message });
                continue;
            }
        };
        for (name, text) in settings {
            let source = Source::File(path.to_owned(), line);
            let (row, value) = match values::parse(&name, &text, &source) {
                Ok(parsed) => parsed,
                Err(e) => {
                    errors.push(e);
                    continue;
                }
            };
            match seen.get(&row) {
                Some((first_line, first_value)) if values.get(row) != &value => {
                    errors.push(ConfigError::Conflict {
                        path: path.to_owned(),
                        name: ROWS[row.0].name,
                        first_line: *first_line,
                        first_value: first_value.clone(),
                        second_line: line,
                        second_value: text,
                    });
                }
                Some(_) => {}
                None => {
                    seen.insert(row, (line, text));
                    values.set(row, value, source);
                }
            }
        }
    }
}

fn unknown_section(path: &Path, line: usize, name: &str) -> ConfigError {
    let mut sections: Vec<_> = ROWS.iter().map(|row| row.section()).collect();
    sections.dedup();
    let message = format!("unknown section [{name}]; there are {}", sections.join(", "));
    ConfigError::Syntax { path: path.to_owned(), line, message }
}

/// The statements of a file, in order. Blank lines and comments are none.
pub(super) fn statements(text: &str) -> Vec<Statement> {
    let lines: Vec<&str> = text.lines().collect();
    let mut section = String::new();
    let mut all = Vec::new();
    let mut first = 0;
    while first < lines.len() {
        let (end, what) = statement(&lines, first, &section);
        match what {
            Some(What::Section(name)) => {
                section.clone_from(&name);
                all.push(Statement { first, end, what: What::Section(name) });
            }
            Some(what) => all.push(Statement { first, end, what }),
            None => {}
        }
        first = end;
    }
    all
}

/// The statement that begins at `first`: one line, or as many more as it takes to parse.
fn statement(lines: &[&str], first: usize, section: &str) -> (usize, Option<What>) {
    let mut text = String::new();
    let mut problem = String::new();
    for end in first + 1..=lines.len() {
        text.push_str(lines[end - 1]);
        text.push('\n');
        match text.parse::<DocumentMut>() {
            Ok(document) => return (end, read(&document, section)),
            Err(e) if problem.is_empty() => problem = e.message().replace('\n', "; "),
            Err(_) => {}
        }
        // Only an opened bracket or a text over several lines can go on.
        if !may_go_on(lines[first]) {
            break;
        }
    }
    (first + 1, Some(What::Wrong(problem)))
}

fn may_go_on(line: &str) -> bool {
    let value = line.split_once('=').map_or("", |(_, value)| value.trim_start());
    ["\"\"\"", "'''", "[", "{"].iter().any(|opening| value.starts_with(opening))
}

fn read(document: &DocumentMut, section: &str) -> Option<What> {
    let (name, item) = document.iter().next()?;
    // `[a]` and `[a.b]` make empty tables; everything else is a key with a value.
    if let Item::Table(table) = item
        && let Some(section) = header(name, table)
    {
        return Some(What::Section(section));
    }
    if item.is_array_of_tables() {
        return Some(What::Wrong(format!("[[{name}]] is a list of sections; write [{name}]")));
    }
    let mut settings = Vec::new();
    match flatten(section, name, item, &mut settings) {
        Ok(()) => Some(What::Settings(settings)),
        Err(message) => Some(What::Wrong(message)),
    }
}

/// The dotted name of a header without keys; `None` for dotted keys such as `server.port = 1`.
fn header(name: &str, table: &Table) -> Option<String> {
    if table.is_dotted() {
        return None;
    }
    match table.iter().next() {
        None => Some(name.to_owned()),
        Some((inner, Item::Table(t))) => header(inner, t).map(|inner| format!("{name}.{inner}")),
        Some(_) => None,
    }
}

fn flatten(
    prefix: &str,
    name: &str,
    item: &Item,
    into: &mut Vec<(String, String)>,
) -> Result<(), String> {
    let name = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
    if let Some(table) = item.as_table_like() {
        return table.iter().try_for_each(|(key, item)| flatten(&name, key, item, into));
    }
    let text = match item {
        Item::Value(toml_edit::Value::String(text)) => text.value().clone(),
        Item::Value(toml_edit::Value::Boolean(value)) => value.value().to_string(),
        Item::Value(toml_edit::Value::Integer(value)) => value.value().to_string(),
        Item::Value(toml_edit::Value::Float(value)) => value.value().to_string(),
        Item::Value(toml_edit::Value::Array(values)) => addresses(values)
            .ok_or_else(|| format!("{name} is a list of what cannot be listed; write one text"))?,
        _ => return Err(format!("{name} must be a text, a number, true or false")),
    };
    into.push((name, text));
    Ok(())
}

/// A list of texts is the texts with blanks between them (`bind = ["127.0.0.1", "::1"]`).
fn addresses(values: &toml_edit::Array) -> Option<String> {
    let texts: Option<Vec<_>> = values.iter().map(toml_edit::Value::as_str).collect();
    texts.map(|texts| texts.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Value;

    fn parse(text: &str) -> (Values, Vec<String>) {
        let (mut values, mut errors) = (Values::defaults(), Vec::new());
        parse_into(Path::new("f.toml"), text, &mut values, &mut errors);
        (values, errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_section_that_stands_twice_is_merged() {
        let (values, errors) = parse(
            "[persistence]\ncheckpoint_interval = 60 # often\n\n[server]\nport = 7000\n\
             [persistence]\ncheckpoint_enabled = false\ncheckpoint_interval = \"1min\"\n",
        );
        assert_eq!(errors, Vec::<String>::new());
        assert_eq!(values.named("persistence.checkpoint_interval"), &Value::Duration(60_000));
        assert_eq!(values.named("persistence.checkpoint_enabled"), &Value::Flag(false));
        assert_eq!(values.named("server.port"), &Value::Integer(7000));
    }

    #[test]
    fn a_key_set_twice_differently_names_both_lines() {
        for text in [
            "[server]\nport = 1\n\n[server]\nport = 2\n",
            "[server]\nport = 1\n\n\nport = 2\n",
            "server.port = 1\n#\n\n\n[server]\nport = 2",
        ] {
            let (_, errors) = parse(text);
            let lines = if text.starts_with("server") { (1, 6) } else { (2, 5) };
            let expected = format!(
                "f.toml: server.port is set to \"1\" on line {} and to \"2\" on line {}; keep one",
                lines.0, lines.1
            );
            assert_eq!(errors, [expected], "{text}");
        }
    }

    #[test]
    fn every_fault_is_told_with_its_line() {
        let (_, errors) =
            parse("[server]\nport = 99999\nprot = 1\nbind = \n[colud]\n[cloud]\nmin_age = 9\n");
        assert_eq!(errors.len(), 5, "{errors:#?}");
        assert_eq!(
            errors[0],
            "f.toml line 2: server.port = \"99999\" does not work: must be a whole number from 0 \
             to 65535"
        );
        assert_eq!(
            errors[1],
            "f.toml line 3: unknown setting 'server.prot'; did you mean 'server.port'?"
        );
        assert!(errors[2].starts_with("f.toml line 4: "), "{}", errors[2]);
        assert!(errors[3].starts_with("f.toml line 5: unknown section [colud]"), "{}", errors[3]);
        assert_eq!(
            errors[4],
            "f.toml line 7: cloud.min_age = \"9\" is not available in this version; \
             use 0"
        );
    }

    #[test]
    fn every_way_to_write_a_key_is_read() {
        let (values, errors) = parse(
            "server.port = 1\nserver = { timeout = 5 }\n[storage]\n\"databases\" = 3\n\
             [server]\nbind = [\n  \"127.0.0.1\",\n  \"::1\", # both\n]\n[logging]\nfile = \"\"\"\n\
             [server]\"\"\"\n",
        );
        assert_eq!(errors, Vec::<String>::new());
        assert_eq!(values.named("server.port"), &Value::Integer(1));
        assert_eq!(values.named("server.timeout"), &Value::Duration(5000));
        assert_eq!(values.named("storage.databases"), &Value::Integer(3));
        assert_eq!(values.named("server.bind"), &Value::Text("127.0.0.1 ::1".into()));
        assert_eq!(values.named("logging.file"), &Value::Text("[server]".into()));
    }

    #[test]
    fn what_no_setting_can_be_is_refused() {
        for text in [
            "[[server]]\nport = 1\n",
            "[server]\nport = [1, 2]\n",
            "[server]\nport = 1979-05-27\n",
            "[server\n",
            "port\n",
            "[server]\nbind = [\"a\"\nport = 3\n",
            "[a.b]\n",
        ] {
            let (_, errors) = parse(text);
            assert!(!errors.is_empty(), "{text}");
        }
    }

    #[test]
    fn windows_line_ends_and_a_missing_last_one_are_fine() {
        let (values, errors) = parse("[server]\r\nport = 5\r\n\r\ntimeout = 3");
        assert_eq!(errors, Vec::<String>::new());
        assert_eq!(values.named("server.port"), &Value::Integer(5));
        assert_eq!(values.named("server.timeout"), &Value::Duration(3000));
    }
}
