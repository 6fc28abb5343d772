//! What can be wrong with a configuration. Each message names where the setting stands, its name,
//! its value and what would be right.

use std::io;
use std::path::PathBuf;

/// One fault of a configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No row has this name.
    #[error("{origin}: unknown setting '{name}'{}", hint(.nearest))]
    Unknown {
        /// Where it stands.
        origin: String,
        /// The name as it was written.
        name: String,
        /// A row whose name is close.
        nearest: Option<&'static str>,
    },
    /// The value is outside the row's range.
    #[error("{origin}: {name} = {value:?} does not work: {expected}")]
    BadValue {
        /// Where it stands.
        origin: String,
        /// The row.
        name: &'static str,
        /// The value as it was written.
        value: String,
        /// The range.
        expected: String,
    },
    /// The value asks for a feature that this version does not have.
    #[error("{origin}: {name} = {value:?} is not available in this version; use {allowed}")]
    NotAvailable {
        /// Where it stands.
        origin: String,
        /// The row.
        name: &'static str,
        /// The value as it was written.
        value: String,
        /// The values that pass.
        allowed: String,
    },
    /// A file sets one key twice, differently.
    #[error(
        "{}: {name} is set to {first_value:?} on line {first_line} and to {second_value:?} on \
         line {second_line}; keep one",
        .path.display()
    )]
    Conflict {
        /// The file.
        path: PathBuf,
        /// The row.
        name: &'static str,
        /// The line that sets it first.
        first_line: usize,
        /// What it sets there.
        first_value: String,
        /// The line that sets it again.
        second_line: usize,
        /// What it sets there.
        second_value: String,
    },
    /// A line that is not TOML, or holds what no setting can be.
    #[error("{} line {line}: {message}", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// The file could not be read.
    #[error("cannot read the configuration file {}: {source}; check --config", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Two settings that do not go together.
    #[error("{name} = {value} does not work: {why}")]
    Relation {
        /// The row that should change.
        name: &'static str,
        /// What it is set to.
        value: String,
        /// With which other setting it collides, and what works.
        why: String,
    },
}

fn hint(nearest: &Option<&'static str>) -> String {
    nearest.map_or_else(
        || "; --dump-config lists every setting".to_owned(),
        |name| format!("; did you mean '{name}'?"),
    )
}
