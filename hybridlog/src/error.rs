//! What can go wrong, split by what a caller can do about it.

use std::path::PathBuf;

/// Why a store could not be opened. What its last checkpoint covers is as it was; folder and lock
/// file may have been made, and the manifest of a new store in an empty folder. A start that fails
/// after the recovery may have removed files of no checkpoint, and written the manifest anew so
/// that their numbers do not come back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process holds the lock of the data directory.
    #[error(
        "{path} is in use by another Ferrite (process {holder}); stop it, or choose another data directory"
    )]
    Locked {
        /// The data directory.
        path: PathBuf,
        /// The process id written in the lock file, or `unknown`.
        holder: String,
    },
    /// A size or a limit of [`crate::Config`] that cannot work.
    #[error("{setting} = {value} cannot work: {why}")]
    Config {
        /// The field of `Config`.
        setting: &'static str,
        /// What it was set to.
        value: String,
        /// The range that works.
        why: String,
    },
    /// The file system refused.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file that the manifest names is missing or fails its checks.
    #[error("{path} at offset {offset}: {found}; {advice}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The byte offset in it.
        offset: u64,
        /// What was found there.
        found: String,
        /// What the operator can do.
        advice: String,
    },
    /// The files were written by a store of another backend.
    #[error(
        "{path} was written by a store of backend {made_by}; open it with that one, or choose \
         another directory"
    )]
    OtherBackend {
        /// The file.
        path: PathBuf,
        /// `hybridlog` or `memory`.
        made_by: &'static str,
    },
    /// The index image of the newest checkpoint is missing or damaged. The log is whole as far as
    /// is known, and the index can be made from it.
    #[error(
        "{path} at offset {offset}: {found}; nothing is lost: open the store once with \
         Config::rebuild_index, which rebuilds the index from the log"
    )]
    DamagedImage {
        /// The image.
        path: PathBuf,
        /// The byte offset in it.
        offset: u64,
        /// What was found there.
        found: String,
    },
}

/// Why one operation failed. The store goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OperationError {
    /// A record could not be read back, or failed its checksum.
    #[error("{0}")]
    Unreadable(String),
    /// The log takes no writes: a device failed, or its space is used up.
    #[error("{0}")]
    NotWritable(String),
    /// Key and value do not fit in one page.
    #[error("a record of {needed} bytes exceeds the page's {limit}")]
    TooLarge {
        /// Bytes that the record needs.
        needed: usize,
        /// Bytes that fit.
        limit: usize,
    },
    /// The index is at its configured limit.
    #[error("the index has reached its limit of {limit} bytes")]
    IndexFull {
        /// The configured limit, in bytes.
        limit: u64,
    },
}

/// Why a compaction ended early. Nothing is lost, and what it did stays done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompactError {
    /// A part of the log cannot be read; the segments below stay.
    #[error("compaction ends at what cannot be read: {0}")]
    Unreadable(String),
    /// The log takes no writes.
    #[error("compaction cannot write: {0}")]
    NotWritable(String),
    /// The store is being closed.
    #[error("compaction was stopped")]
    Stopped,
}

/// Why a checkpoint failed. The last complete one stays valid.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// One is being taken.
    #[error("a checkpoint is already in progress")]
    InProgress,
    /// A device refused a write or a sync.
    #[error("checkpoint failed: {0}")]
    Device(String),
}
