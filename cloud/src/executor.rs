//! Where the futures run, and the promise that each completion is called exactly once.

use crate::OpenError;
use ferrite_hybridlog::segment_store::{SegmentDone, SegmentStoreError};
use tokio::runtime::{Builder, Handle, Runtime};

/// A tokio runtime: the caller's, or one of our own with a single worker.
pub(crate) struct Executor {
    handle: Handle,
    own: Option<Runtime>,
}

impl Executor {
    pub(crate) fn new(given: Option<Handle>) -> Result<Self, OpenError> {
        if let Some(handle) = given {
            return Ok(Self { handle, own: None });
        }
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("ferrite-cloud")
            .build()
            .map_err(OpenError::Runtime)?;
        Ok(Self { handle: runtime.handle().clone(), own: Some(runtime) })
    }

    /// Runs `work` and hands its outcome to `done`; [`SegmentStoreError::Closed`] when the runtime
    /// ends first.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        done: SegmentDone<T>,
        work: impl Future<Output = Result<T, SegmentStoreError>> + Send + 'static,
    ) {
        let completion = Completion(Some(done));
        self.handle.spawn(async move {
            let outcome = work.await;
            completion.finish(outcome);
        });
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        // In the background: a plain drop of a runtime panics on a thread of another one.
        if let Some(runtime) = self.own.take() {
            runtime.shutdown_background();
        }
    }
}

/// A completion that is called also when its future is dropped unfinished.
struct Completion<T>(Option<SegmentDone<T>>);

impl<T> Completion<T> {
    fn finish(mut self, outcome: Result<T, SegmentStoreError>) {
        let done = self.0.take().expect("only finish and drop take it, and finish consumes self");
        done(outcome);
    }
}

impl<T> Drop for Completion<T> {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(Err(SegmentStoreError::Closed));
        }
    }
}
