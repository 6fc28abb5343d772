//! Settings from the environment: `FERRITE_SECTION_KEY`.
//!
//! A variable of a known section with an unknown key is refused, like an unknown key of a file.
//! Other variables that begin with `FERRITE_` are none of ours (container platforms make some for
//! a service of that name); they are named in a warning and not read.

use super::error::ConfigError;
use super::table::{ROWS, Row};
use super::values::{Source, Values};
use std::ffi::OsString;

const PREFIX: &str = "FERRITE_";

/// The variable of a row: `FERRITE_PERSISTENCE_AOF_SYNC`.
pub fn variable(row: &Row) -> String {
    format!("{PREFIX}{}_{}", row.section(), row.key()).to_ascii_uppercase()
}

pub(super) fn read_into(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    values: &mut Values,
    errors: &mut Vec<ConfigError>,
    warnings: &mut Vec<String>,
) {
    for (name, text) in environment {
        let Some(rest) = name.to_str().and_then(|n| n.strip_prefix(PREFIX)) else { continue };
        let name = format!("{PREFIX}{rest}");
        let section = rest.split('_').next().unwrap_or(rest).to_ascii_lowercase();
        if !ROWS.iter().any(|row| row.section() == section) {
            warnings.push(format!("the environment variable {name} is not a setting; not read"));
            continue;
        }
        let row = ROWS.iter().find(|row| variable(row) == name);
        let dotted = match row {
            Some(row) => row.name.to_owned(),
            None => rest.to_ascii_lowercase().replacen('_', ".", 1),
        };
        let text = text.to_string_lossy();
        if let Err(e) = values.set_text(&dotted, &text, Source::Environment(name)) {
            errors.push(e);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Value;

    fn read(pairs: &[(&str, &str)]) -> (Values, Vec<ConfigError>, Vec<String>) {
        let (mut values, mut errors, mut warnings) = (Values::defaults(), vec![], vec![]);
        let pairs = pairs.iter().map(|(k, v)| (OsString::from(k), OsString::from(v)));
        read_into(pairs, &mut values, &mut errors, &mut warnings);
        (values, errors, warnings)
    }

    #[test]
    fn a_variable_sets_its_row() {
        let (values, errors, warnings) =
            read(&[("FERRITE_PERSISTENCE_CHECKPOINT_INTERVAL", "15min"), ("PATH", "/bin")]);
        assert_eq!(values.named("persistence.checkpoint_interval"), &Value::Duration(900_000));
        assert!(errors.is_empty() && warnings.is_empty());
    }

    #[test]
    fn an_unknown_key_is_refused_and_a_strange_variable_is_told() {
        let (_, errors, warnings) =
            read(&[("FERRITE_SERVER_PROT", "1"), ("FERRITE_SERVICE_HOST", "10.0.0.1")]);
        assert_eq!(
            errors[0].to_string(),
            "environment variable FERRITE_SERVER_PROT: unknown setting 'server.prot'; \
             did you mean 'server.port'?"
        );
        assert_eq!((errors.len(), warnings.len()), (1, 1));
    }
}
