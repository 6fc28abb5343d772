//! `ferrite init`: a commented ferrite.toml with every setting, and the data directory it names.

use super::staging::failed;
use super::{Outcome, ToolError};
use crate::aof::aside::directory_of;
use crate::config::{self, Source, Values};
use clap::{Arg, ArgMatches, Command, ValueHint};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;

/// Where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Action {
    directory: PathBuf,
    data: Option<PathBuf>,
}

/// The command.
pub(super) fn command() -> Command {
    Command::new("init")
        .about("Writes a commented ferrite.toml and makes the data directory.")
        .arg(
            Arg::new("directory")
                .value_name("DIR")
                .default_value(".")
                .value_parser(clap::value_parser!(PathBuf))
                .value_hint(ValueHint::DirPath)
                .help("Where ferrite.toml goes"),
        )
        .arg(
            Arg::new("data-dir")
                .long("data-dir")
                .value_name("DIR")
                .value_parser(clap::value_parser!(PathBuf))
                .value_hint(ValueHint::DirPath)
                .help("The data directory [default: data beside ferrite.toml]"),
        )
}

impl Action {
    /// What `ferrite init ...` asks for.
    pub(super) fn from_matches(matches: &ArgMatches) -> Self {
        let path = |name| matches.get_one::<PathBuf>(name).cloned();
        Self { directory: path("directory").expect("it has a default"), data: path("data-dir") }
    }

    /// Does it. A file that is there is never written over.
    pub(super) fn run(&self, out: &mut dyn Write) -> Result<Outcome, ToolError> {
        let directory =
            std::path::absolute(&self.directory).map_err(failed("find", &self.directory))?;
        let data = match &self.data {
            Some(data) => std::path::absolute(data).map_err(failed("find", data))?,
            None => directory.join("data"),
        };
        let text = self.text(&data)?;
        fs::create_dir_all(&directory).map_err(failed("make", &directory))?;
        let file = directory.join(config::DEFAULT_FILE);
        match OpenOptions::new().write(true).create_new(true).open(&file) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(ToolError::Refused(format!(
                    "{} is there already; change that one, or move it away",
                    file.display()
                )));
            }
            opened => {
                let written = opened.and_then(|mut opened| {
                    opened.write_all(text.as_bytes())?;
                    opened.sync_all()
                });
                written.map_err(failed("write", &file))?;
            }
        }
        fs::create_dir_all(&data).map_err(failed("make", &data))?;
        for folder in [directory_of(&data), &directory] {
            File::open(folder).and_then(|f| f.sync_all()).map_err(failed("sync", folder))?;
        }
        writeln!(out, "{}: every setting with its default, to be changed", file.display())?;
        writeln!(out, "{}: the data directory", data.display())?;
        writeln!(out, "start the server with: ferrite --config {}", file.display())?;
        Ok(Outcome::Good)
    }

    /// What depends on the machine stays a comment, so that it follows the machine.
    fn text(&self, data: &std::path::Path) -> Result<String, ToolError> {
        let mut values = Values::defaults();
        let name = data.to_str().ok_or_else(|| {
            ToolError::Refused(format!("{} is no name in Unicode; choose another", data.display()))
        })?;
        values
            .set_text("storage.data_dir", name, Source::Command)
            .map_err(|e| ToolError::Refused(e.to_string()))?;
        Ok(config::commented(&values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn init(directory: &std::path::Path) -> (Result<Outcome, String>, String) {
        let mut out = Vec::new();
        let action = Action { directory: directory.to_owned(), data: None };
        let outcome = action.run(&mut out).map_err(|e| e.to_string());
        (outcome, String::from_utf8(out).expect("text"))
    }

    #[test]
    fn what_it_writes_is_the_default_configuration_and_is_never_written_over() {
        let directory = tempfile::tempdir().expect("a directory");
        let to = directory.path().join("new");
        let (outcome, out) = init(&to);
        assert_eq!(outcome, Ok(Outcome::Good));
        assert!(out.contains("ferrite --config ") && to.join("data").is_dir(), "{out}");
        let file = to.join("ferrite.toml");
        let words = ["ferrite", "--config", file.to_str().expect("Unicode")];
        let arguments = config::Arguments::parse(words).expect("good");
        let loaded = config::load(&arguments, []).expect("a good file");
        let mut expected = Values::defaults();
        let data = to.join("data");
        let data = data.to_str().expect("Unicode");
        expected.set_text("storage.data_dir", data, Source::Command).expect("a path");
        assert_eq!(config::dump(&loaded.values), config::dump(&expected));
        let text = fs::read_to_string(&file).expect("read");
        assert!(text.contains("\n# workers = ") && text.contains("\n[persistence]\n"), "{text}");
        let (outcome, _) = init(&to);
        assert!(outcome.expect_err("it is there").contains("is there already"));
        assert_eq!(fs::read_to_string(&file).expect("read"), text);
    }
}
