//! Configuration: one table of rows, from which everything else comes.
//!
//! ```text
//!   table ── file.rs ── environment.rs ── flags.rs ──> Values ──> Config ──> Live
//!   (rows)    < ......... < ............ <            (text,     (parsed,   (what runs, and
//!                                                      by row)    typed)     what CONFIG SET moves)
//! ```
//!
//! [`table::ROWS`] names every setting once. The file, the environment, the flags, `CONFIG GET` and
//! `CONFIG SET`, `--dump-config` and docs/operating.md read the rows, so that they cannot disagree.
//! Order: default < file < environment < flags. A setting is checked where it enters, with the
//! place it came from in the message; the [`Config`] that comes out cannot hold nonsense.

mod aliases;
mod dump;
mod environment;
mod error;
mod file;
mod flags;
mod live;
mod machine;
mod rewrite;
pub mod table;
mod typed;
mod value;
mod values;

pub use aliases::{ALIASES, Alias};
pub use dump::{commented, dump, operating_table};
pub use environment::variable;
pub use error::ConfigError;
pub use flags::{Action, Arguments};
pub use live::{Live, SetError, apply_limits};
pub use machine::memory_limit;
pub use rewrite::RewriteError;
pub use table::{Applies, ROWS, Row, RowIndex};
pub use typed::{
    AofSync, Config, LogFormat, Logging, Metrics, Persistence, ServerSettings, Transport,
};
pub use value::{Kind, Value};
pub use values::{Source, Values};

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The file that is read without `--config`, when it exists.
pub const DEFAULT_FILE: &str = "ferrite.toml";

/// A configuration as it was put together at the start.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Every setting and where it came from.
    pub values: Values,
    /// The same, parsed.
    pub config: Config,
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// Whether that file was found without being asked for.
    pub file_found: bool,
    /// What the operator should know: variables that look like settings and are none.
    pub warnings: Vec<String>,
}

/// Puts the configuration together: default < file < environment < flags. Answers every fault that
/// it finds, not only the first.
pub fn load(
    arguments: &Arguments,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Loaded, Vec<ConfigError>> {
    let mut values = Values::defaults();
    let mut errors = Vec::new();
    let mut warnings = Vec::new();
    let file_found = arguments.config.is_none() && Path::new(DEFAULT_FILE).exists();
    let file = match &arguments.config {
        Some(path) => Some(path.clone()),
        None => file_found.then(|| PathBuf::from(DEFAULT_FILE)),
    };
    if let Some(path) = &file {
        file::read_into(path, &mut values, &mut errors);
    }
    environment::read_into(environment, &mut values, &mut errors, &mut warnings);
    arguments.read_into(&mut values, &mut errors);
    if !errors.is_empty() {
        return Err(errors);
    }
    let config = Config::from_values(&values).map_err(|e| vec![e])?;
    Ok(Loaded { values, config, file, file_found, warnings })
}
