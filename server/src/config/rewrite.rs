//! CONFIG REWRITE: the file gets the values that run, and keeps its comments, order and blank
//! lines. What the file does not name is added to its section when it is not the default.

use super::file::{Statement, What, statements};
use super::live::Live;
use super::table::{ROWS, RowIndex};
use super::values::Values;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use toml_edit::{DocumentMut, Item};

/// Why CONFIG REWRITE did not write. `Display` is the reply, without its `-`.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    /// The server was started without a file.
    #[error("ERR The server is running without a config file")]
    NoFile,
    /// The file system refused.
    #[error("ERR Rewriting config file: {0}")]
    Io(#[from] io::Error),
}

impl Live {
    /// Writes what runs into the file that was read, in one rename.
    pub fn rewrite(&self) -> Result<(), RewriteError> {
        let path = self.file().ok_or(RewriteError::NoFile)?;
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e.into()),
        };
        replace(path, &rewritten(&text, &self.values()))?;
        Ok(())
    }
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    // A link is followed, so that the file it names changes and not the link.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let new = path.with_file_name(name);
    let written = write_synced(&new, text).and_then(|()| fs::rename(&new, &path));
    if written.is_err() {
        let _ = fs::remove_file(&new);
        return written;
    }
    match path.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(directory) => File::open(directory)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
}

fn write_synced(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// `text` with the values of `values`.
fn rewritten(text: &str, values: &Values) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut out: Vec<String> = Vec::new();
    // Where each section's last statement went, as a length of `out`.
    let mut ends: HashMap<String, usize> = HashMap::new();
    let mut written = vec![false; ROWS.len()];
    let mut section = String::new();
    let mut next = 0;
    for statement in statements(text) {
        let copied = &lines[next..statement.first];
        out.extend(copied.iter().map(|line| (*line).to_owned()));
        let original = lines[statement.first..statement.end].join("\n");
        if let What::Section(name) = &statement.what {
            section.clone_from(name);
        }
        out.push(statement_text(&statement, &section, &original, values, &mut written));
        ends.insert(section.clone(), out.len());
        next = statement.end;
    }
    out.extend(lines[next..].iter().map(|line| (*line).to_owned()));
    add_missing(&mut out, ends, values, &written);
    let mut text = out.join("\n");
    text.push('\n');
    text
}

fn statement_text(
    statement: &Statement,
    section: &str,
    original: &str,
    values: &Values,
    written: &mut [bool],
) -> String {
    let What::Settings(settings) = &statement.what else { return original.to_owned() };
    let mut changed = false;
    for (name, text) in settings {
        if let Some(row) = super::table::find(name) {
            written[row.0] = true;
            changed |= ROWS[row.0].parse(text).ok().as_ref() != Some(values.get(row));
        }
    }
    // A line that says what runs keeps its form (`"64MB"`), comment included.
    if !changed {
        return original.to_owned();
    }
    match original.parse::<DocumentMut>() {
        Ok(mut document) => {
            for (name, item) in document.iter_mut() {
                update(section, &name, item, values);
            }
            document.to_string().trim_end().to_owned()
        }
        Err(_) => original.to_owned(),
    }
}

fn update(prefix: &str, name: &str, item: &mut Item, values: &Values) {
    let name = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
    if let Some(table) = item.as_table_like_mut() {
        for (key, item) in table.iter_mut() {
            update(&name, &key, item, values);
        }
        return;
    }
    let (Some(row), Item::Value(old)) = (super::table::find(&name), &mut *item) else { return };
    let decor = old.decor().clone();
    let text = values.get(row).to_toml();
    let mut new: toml_edit::Value = text.parse().expect("a value prints as TOML: a test looks");
    *new.decor_mut() = decor;
    *old = new;
}

/// Adds what runs, is not the default, and stands nowhere.
fn add_missing(
    out: &mut Vec<String>,
    mut ends: HashMap<String, usize>,
    values: &Values,
    written: &[bool],
) {
    for (i, row) in ROWS.iter().enumerate() {
        let value = values.get(RowIndex(i));
        if written[i] || *value == row.default_value() {
            continue;
        }
        let line = format!("{} = {}", row.key(), value.to_toml());
        let at = match ends.get(row.section()) {
            Some(at) => *at,
            None => {
                if out.last().is_some_and(|line| !line.trim().is_empty()) {
                    out.push(String::new());
                }
                out.push(format!("[{}]", row.section()));
                out.len()
            }
        };
        out.insert(at, line);
        ends.values_mut().filter(|end| **end >= at).for_each(|end| *end += 1);
        ends.insert(row.section().to_owned(), at + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

    fn with(settings: &[(&str, &str)]) -> Values {
        let mut values = Values::defaults();
        for (name, text) in settings {
            values.set_text(name, text, Source::Command).expect(name);
        }
        values
    }

    #[test]
    fn comments_order_and_form_stay() {
        let text = "# Mine.\n\n[persistence]\n# How often.\ncheckpoint_interval = 60   # seconds\n\
                    checkpoint_enabled = true\n\n[server]\nport = 7000 # not 6379\n# end\n";
        let values = with(&[
            ("server.port", "7000"),
            ("persistence.checkpoint_interval", "15min"),
            ("server.timeout", "5"),
            ("logging.level", "debug"),
        ]);
        assert_eq!(
            rewritten(text, &values),
            "# Mine.\n\n[persistence]\n# How often.\ncheckpoint_interval = 900   # seconds\n\
             checkpoint_enabled = true\n\n[server]\nport = 7000 # not 6379\ntimeout = 5\n# end\n\n\
             [logging]\nlevel = \"debug\"\n"
        );
    }

    #[test]
    fn a_line_that_says_what_runs_is_not_touched() {
        let text = "[server]\nmax_query_buffer = \"64MB\"\ntimeout = \"1min\"\n";
        let values = with(&[("server.max_query_buffer", "67108864"), ("server.timeout", "60")]);
        assert_eq!(rewritten(text, &values), text);
    }

    #[test]
    fn what_was_written_is_read_back_whatever_the_form() {
        for text in [
            "",
            "server.port = 1\n",
            "server = { port = 1, timeout = 3 }\n",
            "[server]\nport = 1\n[storage]\ndatabases = 2\n[server]\ntimeout = 1\n",
            "[storage]\ndata_dir = \"\"\"\nx\"\"\" # there\n",
        ] {
            let values = with(&[
                ("server.port", "7"),
                ("server.timeout", "9"),
                ("storage.data_dir", "a 'b' \"c\""),
                ("storage.databases", "4"),
                ("logging.format", "json"),
            ]);
            let again = rewritten(text, &values);
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("f.toml");
            fs::write(&path, &again).expect("written");
            let (mut read, mut errors) = (Values::defaults(), Vec::new());
            super::super::file::read_into(&path, &mut read, &mut errors);
            assert!(errors.is_empty(), "{again}\n{errors:?}");
            for (i, row) in ROWS.iter().enumerate() {
                assert_eq!(read.get(RowIndex(i)), values.get(RowIndex(i)), "{}\n{again}", row.name);
            }
        }
    }
}
