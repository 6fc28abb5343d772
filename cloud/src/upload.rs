//! One upload: the local file in parts into `unfinished/`, then its name, by a copy that succeeds
//! only where nothing is. Whatever fails, no part of an object can be seen under its name.

use crate::error::explain;
use crate::store::Shared;
use crc_fast::{CrcAlgorithm, Digest};
use ferrite_hybridlog::segment_store::{SealedContent, SealedName, SegmentStoreError};
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt};
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

/// Stores the file `source` under `name`, which nothing may have yet.
pub(crate) async fn upload(
    shared: Arc<Shared>,
    name: SealedName,
    source: PathBuf,
) -> Result<SealedContent, SegmentStoreError> {
    let _running = shared.uploads.acquire().await.map_err(|_| SegmentStoreError::Closed)?;
    let object = shared.names.object(name);
    // The copy below decides; asking first saves the bytes of an upload that cannot succeed.
    if shared.objects.head(&object).await.is_ok() {
        return Err(SegmentStoreError::AlreadyExists { location: shared.location(&object) });
    }
    let unfinished = shared.names.upload(name.store);
    let content = send(&shared, &unfinished, source).await?;
    if let Err(error) = shared.objects.rename_if_not_exists(&unfinished, &object).await {
        // It is whole but has no name. When this fails too, `remove_unfinished` finds it.
        let _ = shared.objects.delete(&unfinished).await;
        return Err(explain("naming", shared.location(&object), error));
    }
    Ok(content)
}

/// Sends the file to `to`, part by part, or leaves nothing there.
async fn send(
    shared: &Shared,
    to: &Path,
    source: PathBuf,
) -> Result<SealedContent, SegmentStoreError> {
    let mut parts = Parts::open(source, shared.part_size).await?;
    let failed = |error| explain("uploading", shared.location(to), error);
    let mut upload = shared.objects.put_multipart(to).await.map_err(failed)?;
    match send_parts(&mut parts, upload.as_mut(), &failed).await {
        Ok(content) => Ok(content),
        Err(error) => {
            // The error that matters is the one at hand.
            let _ = upload.abort().await;
            Err(error)
        }
    }
}

async fn send_parts(
    parts: &mut Parts,
    upload: &mut dyn MultipartUpload,
    failed: &impl Fn(object_store::Error) -> SegmentStoreError,
) -> Result<SealedContent, SegmentStoreError> {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    let mut sent = 0;
    while sent < parts.length {
        let part = parts.next(sent).await?;
        digest.update(&part);
        sent += part.len() as u64;
        upload.put_part(part.into()).await.map_err(failed)?;
    }
    upload.complete().await.map_err(failed)?;
    Ok(SealedContent { length: sent, crc32c: digest.finalize() as u32 })
}

/// The local file, read one part at a time on the runtime's threads for blocking work.
struct Parts {
    path: PathBuf,
    file: Arc<File>,
    length: u64,
    part_size: usize,
}

impl Parts {
    async fn open(path: PathBuf, part_size: usize) -> Result<Self, SegmentStoreError> {
        let opening = path.clone();
        let opened = blocking(move || {
            let file = File::open(opening)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        });
        let (file, length) = opened.await.map_err(|message| source_error(&path, message))?;
        if length == 0 {
            return Err(source_error(&path, "it is empty, so it is no sealed segment".into()));
        }
        Ok(Self { path, file: Arc::new(file), length, part_size })
    }

    /// The part that begins at `offset`, which is where the one before ended.
    async fn next(&mut self, offset: u64) -> Result<Vec<u8>, SegmentStoreError> {
        let (file, left) = (Arc::clone(&self.file), self.length - offset);
        let wanted = left.min(self.part_size as u64);
        let read = blocking(move || {
            let mut part = Vec::with_capacity(wanted as usize);
            (&*file).take(wanted).read_to_end(&mut part)?;
            Ok(part)
        });
        let part = read.await.map_err(|message| source_error(&self.path, message))?;
        if (part.len() as u64) < wanted {
            let end = offset + part.len() as u64;
            let message = format!("it ended at byte {end} of {}", self.length);
            return Err(source_error(&self.path, message));
        }
        Ok(part)
    }
}

fn source_error(path: &std::path::Path, message: String) -> SegmentStoreError {
    SegmentStoreError::Source { path: path.to_owned(), message }
}

/// Runs file I/O where it may block, and gives its error as text.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(stopped) => Err(stopped.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[tokio::test]
    async fn a_file_that_shrinks_meanwhile_is_an_error() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 100]).unwrap();
        let mut parts = Parts::open(file.path().to_owned(), 60).await.unwrap();
        assert_eq!(parts.next(0).await.unwrap(), [7; 60]);
        file.as_file().set_len(90).unwrap();
        let error = parts.next(60).await.unwrap_err().to_string();
        assert!(error.ends_with("it ended at byte 90 of 100"), "{error}");
    }
}
