//! Every setting's value and where it came from, by row.

use super::error::ConfigError;
use super::table::{self, ROWS, RowIndex};
use super::value::Value;
use std::fmt;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The row.
    Default,
    /// A line of a file.
    File(PathBuf, usize),
    /// An environment variable.
    Environment(String),
    /// A flag.
    Flag(String),
    /// CONFIG SET.
    Command,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File(path, line) => write!(f, "{} line {line}", path.display()),
            Source::Environment(name) => write!(f, "environment variable {name}"),
            Source::Flag(flag) => f.write_str(flag),
            Source::Command => f.write_str("CONFIG SET"),
        }
    }
}

/// One value a row.
#[derive(Clone, Debug)]
pub struct Values(Vec<(Value, Source)>);

impl Values {
    /// Every row's default on this machine.
    pub fn defaults() -> Self {
        Self(ROWS.iter().map(|row| (row.default_value(), Source::Default)).collect())
    }
    /// A row's value.
    pub fn get(&self, row: RowIndex) -> &Value {
        &self.0[row.0].0
    }
    /// Where a row's value came from.
    pub fn source(&self, row: RowIndex) -> &Source {
        &self.0[row.0].1
    }
    /// The value of the row called `name`, which must exist.
    pub fn named(&self, name: &str) -> &Value {
        self.get(table::find(name).expect("the caller names a row of the table"))
    }
    /// Replaces a row's value.
    pub fn set(&mut self, row: RowIndex, value: Value, source: Source) {
        self.0[row.0] = (value, source);
    }
    /// Parses `text` for the row called `name` and replaces its value.
    pub fn set_text(&mut self, name: &str, text: &str, source: Source) -> Result<(), ConfigError> {
        let (row, value) = parse(name, text, &source)?;
        self.set(row, value, source);
        Ok(())
    }
}

/// A text as the value of the row called `name`, or what is wrong with it.
pub fn parse(name: &str, text: &str, origin: &Source) -> Result<(RowIndex, Value), ConfigError> {
    let Some(index) = table::find(name) else {
        let (origin, nearest) = (origin.to_string(), table::nearest(name));
        return Err(ConfigError::Unknown { origin, name: name.to_owned(), nearest });
    };
    let row = &ROWS[index.0];
    row.parse(text).map(|value| (index, value)).map_err(|refused| {
        let (origin, name, value) = (origin.to_string(), row.name, text.to_owned());
        match refused.not_available {
            true => ConfigError::NotAvailable { origin, name, value, allowed: row.allowed() },
            false => ConfigError::BadValue { origin, name, value, expected: refused.expected },
        }
    })
}
