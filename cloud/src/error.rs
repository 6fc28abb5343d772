//! What the provider says, in the caller's words.

use ferrite_hybridlog::segment_store::SegmentStoreError;
use std::path::PathBuf;

/// Why no object store could be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The directory of the local provider.
    #[error("{path}: {message}; create the directory or mount what belongs there")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        message: String,
    },
    /// A setting that cannot work.
    #[error("{setting} = {value} cannot work: {why}")]
    Config {
        /// The field of [`crate::Config`].
        setting: &'static str,
        /// What it was set to.
        value: String,
        /// What works.
        why: String,
    },
    /// The runtime's thread could not be started.
    #[error("starting the thread of the object store: {0}")]
    Runtime(std::io::Error),
}

/// Translates an error of `object_store` on one object.
pub(crate) fn explain(
    action: &'static str,
    location: String,
    error: object_store::Error,
) -> SegmentStoreError {
    match error {
        object_store::Error::NotFound { .. } => SegmentStoreError::NotFound { location },
        object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. } => {
            SegmentStoreError::AlreadyExists { location }
        }
        other => SegmentStoreError::Provider { action, location, message: other.to_string() },
    }
}
