//! The log: for people (coloured on a terminal) or as JSON lines, to standard error or a file. Its
//! level may change while the server runs.

use crate::config::{LogFormat, Logging};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::sync::Arc;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, fmt, reload};

/// Changes the level of the log.
#[derive(Clone, Debug)]
pub struct Level(reload::Handle<LevelFilter, Registry>);

impl Level {
    /// From now on. An error is for whoever asked.
    pub fn set(&self, level: tracing::Level) -> Result<(), String> {
        self.0.reload(LevelFilter::from_level(level)).map_err(|e| e.to_string())
    }
}

/// Starts the log of this process. Called once.
pub fn start(settings: &Logging) -> io::Result<Level> {
    let (filter, handle) = reload::Layer::new(LevelFilter::from_level(settings.level));
    let ansi = settings.file.is_none() && io::stderr().is_terminal();
    let writer = match &settings.file {
        Some(path) => BoxMakeWriter::new(Arc::new(append(path)?)),
        None => BoxMakeWriter::new(io::stderr),
    };
    let layer = fmt::layer().with_writer(writer).with_ansi(ansi).with_target(false);
    let layer = match settings.format {
        LogFormat::Pretty => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(layer).init();
    Ok(Level(handle))
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}
