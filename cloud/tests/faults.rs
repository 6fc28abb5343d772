//! A provider that fails or hangs at any request: an object is whole or not there, the unfinished
//! part can be removed, and every completion is called.

mod support;

use async_trait::async_trait;
use ferrite_cloud::{Config, ObjectSegments};
use ferrite_hybridlog::segment_store::{SealedContent, SegmentStore, SegmentStoreError as Error};
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use support::*;

/// Counts requests; the one with the number `fail_at` fails, the ones from `hang_at` on never end.
#[derive(Debug)]
struct Faults {
    requests: AtomicUsize,
    fail_at: usize,
    hang_at: usize,
    uploads: AtomicUsize,
    uploads_max: AtomicUsize,
}

impl Faults {
    fn new(fail_at: usize, hang_at: usize) -> Arc<Self> {
        let zero = AtomicUsize::default;
        Arc::new(Self { requests: zero(), fail_at, hang_at, uploads: zero(), uploads_max: zero() })
    }
    async fn request(&self) -> Result<()> {
        let number = self.requests.fetch_add(1, SeqCst);
        if number >= self.hang_at {
            std::future::pending::<()>().await;
        }
        if number == self.fail_at {
            return Err(object_store::Error::Generic { store: "test", source: "cut".into() });
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Faulty {
    objects: Arc<InMemory>,
    faults: Arc<Faults>,
}

impl std::fmt::Display for Faulty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Faulty")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, to: &Path, payload: PutPayload, o: PutOptions) -> Result<PutResult> {
        self.faults.request().await?;
        self.objects.put_opts(to, payload, o).await
    }
    async fn put_multipart_opts(
        &self,
        to: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.faults.request().await?;
        let running = self.faults.uploads.fetch_add(1, SeqCst) + 1;
        self.faults.uploads_max.fetch_max(running, SeqCst);
        let upload = self.objects.put_multipart_opts(to, options).await?;
        Ok(Box::new(FaultyUpload { upload, faults: Arc::clone(&self.faults) }))
    }
    async fn get_opts(&self, from: &Path, options: GetOptions) -> Result<GetResult> {
        self.faults.request().await?;
        self.objects.get_opts(from, options).await
    }
    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.objects.delete_stream(paths)
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.objects.list(prefix)
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.faults.request().await?;
        self.objects.list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.faults.request().await?;
        self.objects.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct FaultyUpload {
    upload: Box<dyn MultipartUpload>,
    faults: Arc<Faults>,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, part: PutPayload) -> UploadPart {
        let sent = self.upload.put_part(part);
        let faults = Arc::clone(&self.faults);
        Box::pin(async move {
            faults.request().await?;
            sent.await
        })
    }
    async fn complete(&mut self) -> Result<PutResult> {
        self.faults.request().await?;
        self.upload.complete().await
    }
    async fn abort(&mut self) -> Result<()> {
        self.upload.abort().await
    }
}

impl Drop for FaultyUpload {
    fn drop(&mut self) {
        self.faults.uploads.fetch_sub(1, SeqCst);
    }
}

fn over(objects: &Arc<InMemory>, faults: &Arc<Faults>, config: &Config) -> ObjectSegments {
    let faulty = Faulty { objects: Arc::clone(objects), faults: Arc::clone(faults) };
    ObjectSegments::over(Arc::new(faulty), "memory://", config, None).unwrap()
}

fn healthy() -> Arc<Faults> {
    Faults::new(usize::MAX, usize::MAX)
}

#[test]
fn an_upload_that_fails_at_any_request_leaves_a_whole_object_or_none() {
    let content = bytes(1, 3500);
    let source = file(&content);
    let mut failed = 0;
    for fail_at in 0.. {
        let objects = Arc::new(InMemory::new());
        let outcome = put(
            &over(&objects, &Faults::new(fail_at, usize::MAX), &small_parts()),
            name(1, 1),
            source.path(),
        );
        let next_start = over(&objects, &healthy(), &small_parts());
        let listed = list(&next_start, STORE);
        match &outcome {
            // The first request only asks whether the name is taken: its failure decides nothing.
            Ok(sent) => assert_eq!(verify(&next_start, name(1, 1), *sent), Ok(())),
            Err(Error::Provider { message, .. }) => {
                failed += 1;
                assert!(message.contains("cut"), "{message}");
                assert!(listed.is_empty(), "request {fail_at}: {listed:?}");
                put(&next_start, name(1, 1), source.path()).unwrap();
            }
            Err(other) => panic!("request {fail_at}: {other}"),
        }
        assert_eq!(remove_unfinished(&next_start), Ok(0), "request {fail_at}");
        assert_eq!(read(&next_start, name(1, 1), 0, 3500).unwrap(), content);
        if fail_at > 0 && outcome.is_ok() {
            break;
        }
    }
    // Begin, four parts, complete, copy.
    assert_eq!(failed, 7);
}

#[test]
fn an_upload_that_is_cut_off_at_any_request_is_cleaned_at_the_next_start() {
    let source = file(&bytes(1, 3500));
    let mut left_behind = 0;
    for hang_at in 0..8 {
        let objects = Arc::new(InMemory::new());
        let faults = Faults::new(usize::MAX, hang_at);
        let segments = over(&objects, &faults, &small_parts());
        let (sender, receiver) = mpsc::channel();
        let done = Box::new(move |outcome| sender.send(outcome).expect("the test waits"));
        segments.put(name(1, 1), source.path().to_owned(), done);
        while faults.requests.load(SeqCst) <= hang_at {
            std::thread::yield_now();
        }
        drop(segments);
        assert_eq!(receiver.recv().unwrap(), Err::<SealedContent, _>(Error::Closed));

        let next_start = over(&objects, &healthy(), &small_parts());
        assert_eq!(list(&next_start, STORE), [], "request {hang_at}");
        left_behind += remove_unfinished(&next_start).unwrap();
        assert_eq!(remove_unfinished(&next_start), Ok(0));
        let sent = put(&next_start, name(1, 1), source.path()).unwrap();
        assert_eq!(verify(&next_start, name(1, 1), sent), Ok(()));
    }
    // Only an upload that was complete and had no name yet shows in this provider.
    assert_eq!(left_behind, 1);
}

#[test]
fn a_failing_provider_is_named_in_the_message() {
    let objects = Arc::new(InMemory::new());
    put(&over(&objects, &healthy(), &small_parts()), name(1, 1), file(b"abc").path()).unwrap();
    let content = SealedContent { length: 3, crc32c: 0 };
    let failing = || over(&objects, &Faults::new(0, usize::MAX), &small_parts());
    // A store that is dropped gives up what it has not begun.
    let listed = failing();
    let errors = [
        head(&failing(), name(1, 1)).unwrap_err(),
        verify(&failing(), name(1, 1), content).unwrap_err(),
        read(&failing(), name(1, 1), 0, 1).unwrap_err(),
        wait(|done| listed.list(STORE, done)).unwrap_err(),
    ];
    let words = ["asking for", "verifying", "reading", "listing"];
    for (error, word) in errors.iter().zip(words) {
        let text = error.to_string();
        assert!(text.starts_with(&format!("{word} memory:///cold-data/")), "{text}");
        assert!(text.contains("cut"), "{text}");
    }
}

#[test]
fn no_more_uploads_run_than_configured() {
    let objects = Arc::new(InMemory::new());
    let faults = healthy();
    let segments = over(&objects, &faults, &small_parts());
    let source = file(&bytes(1, 20_000));
    let (sender, receiver) = mpsc::channel();
    for segment in 0..16 {
        let sender = sender.clone();
        let done = Box::new(move |outcome| sender.send(outcome).expect("the test waits"));
        segments.put(name(segment, 1), source.path().to_owned(), done);
    }
    for _ in 0..16 {
        receiver.recv().unwrap().unwrap();
    }
    assert!(faults.uploads_max.load(SeqCst) <= small_parts().concurrent_uploads);
    assert_eq!(list(&segments, STORE).len(), 16);
}
