//! `SegmentStore` over an `object_store`.

use crate::error::{OpenError, explain};
use crate::executor::Executor;
use crate::names::Names;
use crate::{Config, upload};
use crc_fast::{CrcAlgorithm, Digest};
use ferrite_hybridlog::segment_store::{
    SealedContent, SealedName, SealedObject, SegmentDone, SegmentStore, SegmentStoreError, StoreId,
};
use futures_util::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

/// Sealed segments as objects. See the crate's promises.
pub struct ObjectSegments {
    shared: Arc<Shared>,
    executor: Executor,
}

/// What the futures of all operations use.
pub(crate) struct Shared {
    pub(crate) objects: Arc<dyn ObjectStore>,
    pub(crate) names: Names,
    pub(crate) uploads: Semaphore,
    pub(crate) part_size: usize,
    /// What stands before an object's path in messages.
    base: String,
    /// The directory that the local provider keeps its objects in.
    directory: Option<PathBuf>,
}

impl ObjectSegments {
    /// Objects as files of an existing directory. Futures run on `runtime`, or on a thread of its
    /// own when there is none.
    pub fn local(
        directory: impl Into<PathBuf>,
        config: &Config,
        runtime: Option<Handle>,
    ) -> Result<Self, OpenError> {
        let directory = directory.into();
        let refused = |message: String| OpenError::Directory { path: directory.clone(), message };
        let root = std::fs::canonicalize(&directory).map_err(|e| refused(e.to_string()))?;
        if !root.is_dir() {
            return Err(refused("not a directory".into()));
        }
        let files = LocalFileSystem::new_with_prefix(&root).map_err(|e| refused(e.to_string()))?;
        let base = root.display().to_string();
        Self::open(Arc::new(files.with_fsync(true)), base, Some(root), config, runtime)
    }

    /// Objects of any provider that has a copy which fails where something is already. `base` is
    /// what messages call it, such as `s3://bucket`.
    pub fn over(
        objects: Arc<dyn ObjectStore>,
        base: impl Into<String>,
        config: &Config,
        runtime: Option<Handle>,
    ) -> Result<Self, OpenError> {
        Self::open(objects, base.into(), None, config, runtime)
    }

    fn open(
        objects: Arc<dyn ObjectStore>,
        base: String,
        directory: Option<PathBuf>,
        config: &Config,
        runtime: Option<Handle>,
    ) -> Result<Self, OpenError> {
        let names = Names::new(&config.prefix)?;
        let uploads = Semaphore::new(positive("concurrent_uploads", config.concurrent_uploads)?);
        let part_size = positive("part_size", config.part_size)?;
        let shared = Shared { objects, names, uploads, part_size, base, directory };
        Ok(Self { shared: Arc::new(shared), executor: Executor::new(runtime)? })
    }

    /// Runs one operation on the shared state.
    fn run<T: Send + 'static, F>(
        &self,
        done: SegmentDone<T>,
        operation: impl FnOnce(Arc<Shared>) -> F,
    ) where
        F: Future<Output = Result<T, SegmentStoreError>> + Send + 'static,
    {
        self.executor.run(done, operation(Arc::clone(&self.shared)));
    }
}

fn positive(setting: &'static str, value: usize) -> Result<usize, OpenError> {
    // The semaphore's own limit bounds it above; no machine has that much memory.
    if (1..=Semaphore::MAX_PERMITS).contains(&value) {
        return Ok(value);
    }
    let why = format!("between 1 and {}", Semaphore::MAX_PERMITS);
    Err(OpenError::Config { setting, value: value.to_string(), why })
}

impl SegmentStore for ObjectSegments {
    fn put(&self, name: SealedName, source: PathBuf, done: SegmentDone<SealedContent>) {
        self.run(done, |shared| upload::upload(shared, name, source));
    }

    fn verify(&self, name: SealedName, expected: SealedContent, done: SegmentDone<()>) {
        self.run(done, |shared| async move { shared.verify(name, expected).await });
    }

    fn head(&self, name: SealedName, done: SegmentDone<u64>) {
        self.run(done, |shared| async move {
            let object = shared.names.object(name);
            let found = shared.objects.head(&object).await;
            found.map(|meta| meta.size).map_err(|e| shared.explain("asking for", &object, e))
        });
    }

    fn read_range(&self, name: SealedName, offset: u64, length: usize, done: SegmentDone<Vec<u8>>) {
        self.run(done, |shared| async move { shared.read(name, offset, length).await });
    }

    fn list(&self, store: StoreId, done: SegmentDone<Vec<SealedObject>>) {
        self.run(done, |shared| async move { shared.list(store).await });
    }

    fn delete(&self, name: SealedName, done: SegmentDone<()>) {
        self.run(done, |shared| async move {
            let object = shared.names.object(name);
            match shared.objects.delete(&object).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(shared.explain("deleting", &object, error)),
            }
        });
    }

    fn remove_unfinished(&self, store: StoreId, done: SegmentDone<u64>) {
        self.run(done, |shared| async move { shared.remove_unfinished(store).await });
    }
}

impl Shared {
    /// An object in the words of messages.
    pub(crate) fn location(&self, path: &Path) -> String {
        format!("{}/{path}", self.base)
    }

    fn explain(
        &self,
        action: &'static str,
        path: &Path,
        error: object_store::Error,
    ) -> SegmentStoreError {
        explain(action, self.location(path), error)
    }

    async fn verify(
        &self,
        name: SealedName,
        expected: SealedContent,
    ) -> Result<(), SegmentStoreError> {
        let object = self.names.object(name);
        let failed = |e| self.explain("verifying", &object, e);
        let response = self.objects.get(&object).await.map_err(failed)?;
        let mut found = SealedContent { length: response.meta.size, crc32c: 0 };
        if found.length == expected.length {
            let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
            let mut pieces = response.into_stream();
            found.length = 0;
            while let Some(piece) = pieces.try_next().await.map_err(failed)? {
                digest.update(&piece);
                found.length += piece.len() as u64;
            }
            found.crc32c = digest.finalize() as u32;
        }
        if found == expected {
            return Ok(());
        }
        Err(SegmentStoreError::Different { location: self.location(&object), expected, found })
    }

    async fn read(
        &self,
        name: SealedName,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>, SegmentStoreError> {
        if length == 0 {
            return Ok(Vec::new());
        }
        let object = self.names.object(name);
        let failed = |e| self.explain("reading", &object, e);
        let beyond = |size| SegmentStoreError::OutOfRange {
            location: self.location(&object),
            offset,
            length: length as u64,
            size,
        };
        let range = Some(GetRange::Bounded(offset..offset.saturating_add(length as u64)));
        let options = GetOptions { range, ..GetOptions::default() };
        let response = match self.objects.get_opts(&object, options).await {
            Ok(response) => response,
            // Providers refuse a range that begins beyond the end, each in words of its own.
            Err(error) => {
                let size = self.objects.head(&object).await.map_err(failed)?.size;
                return Err(if offset >= size { beyond(size) } else { failed(error) });
            }
        };
        let size = response.meta.size;
        let bytes = response.bytes().await.map_err(failed)?;
        if bytes.len() == length { Ok(bytes.into()) } else { Err(beyond(size)) }
    }

    async fn list(&self, store: StoreId) -> Result<Vec<SealedObject>, SegmentStoreError> {
        let folder = self.names.store(store);
        let listed = self.objects.list_with_delimiter(Some(&folder)).await;
        let found = listed.map_err(|e| self.explain("listing", &folder, e))?.objects;
        let ours = found.into_iter().filter_map(|meta| {
            let name = Names::parse(store, &meta.location)?;
            Some(SealedObject { name, length: meta.size })
        });
        let mut ours: Vec<_> = ours.collect();
        ours.sort_unstable();
        Ok(ours)
    }

    async fn remove_unfinished(&self, store: StoreId) -> Result<u64, SegmentStoreError> {
        let folder = self.names.unfinished(store);
        let failed = |e| self.explain("cleaning", &folder, e);
        let mut removed = 0;
        let listed = self.objects.list_with_delimiter(Some(&folder)).await.map_err(failed)?;
        let mine = self.names.mine();
        for meta in listed.objects {
            if !meta.location.filename().is_some_and(|name| name.starts_with(&mine)) {
                self.objects.delete(&meta.location).await.map_err(failed)?;
                removed += 1;
            }
        }
        removed += self.remove_torn_files(&folder).await?;
        if removed > 0 {
            let place = self.location(&folder);
            tracing::info!(removed, place, "removed unfinished uploads of earlier runs");
        }
        Ok(removed)
    }

    /// The local provider writes to `NAME#N` before an upload is complete, and shows no such file.
    async fn remove_torn_files(&self, folder: &Path) -> Result<u64, SegmentStoreError> {
        let Some(directory) = &self.directory else { return Ok(0) };
        let place = directory.join(folder.as_ref());
        let prefix = self.names.mine();
        let removed = tokio::task::spawn_blocking(move || remove_others(&place, &prefix));
        let removed = removed.await.map_err(|e| e.to_string());
        removed.and_then(|done| done.map_err(|e| e.to_string())).map_err(|message| {
            SegmentStoreError::Provider {
                action: "cleaning",
                location: self.location(folder),
                message,
            }
        })
    }
}

/// Removes the files of a directory whose names do not begin with `mine`, and says how many. A
/// directory that is not there holds none.
fn remove_others(directory: &std::path::Path, mine: &str) -> std::io::Result<u64> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(mine) {
            std::fs::remove_file(entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}
