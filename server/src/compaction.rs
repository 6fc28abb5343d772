//! COMPACT: a compaction by hand, and the checkpoints that give back what it compacted.
//!
//! One at a time: whoever holds [`Compacting`] does it. What was asked for is what lay in the log's file
//! when it began, so it ends, whatever the background and the clients do meanwhile.

use crate::context::Context;
use ferrite_hybridlog::CompactError;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

/// Whether somebody compacts by hand.
#[derive(Default)]
pub struct ByHand(AtomicBool);

/// The right to compact by hand, until it is dropped.
pub struct Compacting(Arc<Context>);

impl Compacting {
    /// `None` while another one goes on.
    pub fn begin(context: &Arc<Context>) -> Option<Self> {
        let begun = context.compaction.0.compare_exchange(false, true, SeqCst, SeqCst).is_ok();
        begun.then(|| Self(Arc::clone(context)))
    }

    /// Compacts and takes as many checkpoints as it needs. Blocks; no batch may be held.
    pub fn run(self) {
        if let Err(e) = self.compact() {
            tracing::error!("COMPACT: {e}");
        }
    }

    /// A disk that has no room for all of the copies gets them by and by.
    fn compact(&self) -> Result<(), CompactError> {
        let store = &self.0.store;
        let stats = store.stats();
        // A log in memory gives back what was compacted as it goes, without checkpoints.
        let below = if stats.is_in_memory { u64::MAX } else { stats.log_head };
        loop {
            let done = store.compact_below(below)?;
            let (read, copied) = (done.read_bytes, done.copied_bytes);
            tracing::info!("COMPACT: {read} bytes of the log are compacted, {copied} were copied");
            let given_back = stats.is_in_memory || self.give_back(done.until);
            if !given_back || !done.short_of_space {
                return Ok(());
            }
            if read == 0 {
                tracing::warn!("COMPACT ends early: the disk has no room for more copies");
                return Ok(());
            }
        }
    }

    /// Takes checkpoints until the log begins at `until`; whether it does.
    fn give_back(&self, until: u64) -> bool {
        let context = &self.0;
        while context.store.stats().log_begin < until {
            let claim = context.checkpoints.claim();
            match claim.map(|claim| claim.take(&context.store, context.databases)) {
                Some(Ok(_)) => {}
                // It is told as any failed one is.
                Some(Err(_)) => return false,
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        true
    }
}

impl Drop for Compacting {
    fn drop(&mut self) {
        self.0.compaction.0.store(false, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrite_hybridlog::{Config, Database, Store};

    /// The background goes on meanwhile: what it compacts is not waited for, or it might never end.
    #[test]
    fn checkpoints_end_when_the_log_begins_where_the_compaction_had_come_to() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut config = Config::new(directory.path());
        (config.page_size, config.segment_size) = (4096, 4 * 4096);
        (config.mutable_size, config.readonly_size) = (2 * 4096, 2 * 4096);
        let store = Store::open(config).expect("opens");
        let context = Arc::new(Context::new(store, 16, 1));
        let compacting = Compacting::begin(&context).expect("none goes on");
        let compact = || {
            let mut session = context.store.blocking_session();
            for i in 0..200u64 {
                let key = (i % 20).to_le_bytes();
                session.upsert(Database(0), &key, &[1; 1000]).expect("writes");
            }
            context.store.compact().expect("compacts").until
        };
        let taken = || context.checkpoints.state().completed;
        let checkpoint = || {
            let claim = context.checkpoints.claim().expect("none is taken");
            claim.take(&context.store, 16).expect("taken");
        };
        checkpoint();
        let until = compact();
        checkpoint();
        assert!(context.store.stats().log_begin < until, "the first one is kept still");
        assert!(compact() > until);
        assert!(compacting.give_back(until));
        assert_eq!(taken(), 3);
        assert!(context.store.stats().log_begin >= until);
        assert!(context.store.reclaimable_bytes() > 0, "there is more, which was not asked for");
        assert!(compacting.give_back(until));
        assert_eq!(taken(), 3, "it begins there");
    }
}
