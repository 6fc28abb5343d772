//! Ferrite as an engine: a store in a fresh directory, with room for all records in memory.

use crate::{Engine, Worker};
use ferrite_benches::keys::Key;
use ferrite_benches::values;
use ferrite_hybridlog::{
    Change, Config, Database, Inside, IoChoice, Operation, Session, Stop, Store,
};

const DB: Database = Database(0);

pub(crate) struct Ferrite {
    store: Store,
    _directory: tempfile::TempDir,
}

impl Ferrite {
    /// Frames for twice what the records of all keys take: 32 bytes when first stored, 48 more when
    /// the first overwrite gives them the form that is then changed in place.
    pub(crate) fn new(keys: u32) -> Self {
        let directory = tempfile::tempdir().expect("a directory for the store");
        let mut config = Config::new(directory.path());
        let bytes = (u64::from(keys) * 160).next_multiple_of(config.page_size);
        config.mutable_size = bytes + 16 * config.page_size;
        // Nothing is written to the device; valgrind knows this form.
        config.io = IoChoice::Posix;
        let store = Store::open(config).expect("a fresh store opens");
        Self { store, _directory: directory }
    }
}

impl Engine for Ferrite {
    type Worker<'a> = FerriteWorker;

    fn worker(&self) -> FerriteWorker {
        FerriteWorker { session: self.store.session(|| {}), operation: Operation::new(0) }
    }
}

pub(crate) struct FerriteWorker {
    session: Session,
    operation: Operation,
}

impl FerriteWorker {
    /// Runs `each` for every key, inside, and again for one that had to wait.
    fn batch(
        &mut self,
        keys: &[Key],
        mut each: impl FnMut(&mut Inside<'_>, &mut Operation, Key) -> Result<(), Stop>,
    ) {
        let mut left = keys;
        loop {
            let mut inside = self.session.enter();
            while let [key, rest @ ..] = left {
                match each(&mut inside, &mut self.operation, *key) {
                    Ok(()) => self.operation.clear(),
                    Err(Stop::Pending) => break,
                    Err(Stop::Failed(error)) => panic!("{key:?}: {error}"),
                }
                left = rest;
            }
            drop(inside);
            if left.is_empty() {
                return;
            }
            self.wait();
        }
    }

    #[cold]
    fn wait(&mut self) {
        let mut ready = Vec::new();
        while ready.is_empty() {
            std::thread::yield_now();
            self.session.ready(&mut ready);
        }
    }
}

impl Worker for FerriteWorker {
    fn read(&mut self, keys: &[Key], mut seen: impl FnMut(Key, u64)) {
        self.batch(keys, |inside, operation, key| {
            let value = inside.read(operation, DB, key.bytes(), |value| {
                values::from_bytes(key, value.expect("every key was stored").bytes)
            })?;
            seen(key, value);
            Ok(())
        });
    }

    fn upsert(&mut self, keys: &[Key], value: impl Fn(Key) -> u64) {
        self.batch(keys, |inside, operation, key| {
            let value = value(key).to_le_bytes();
            let put = Change::Put { value: &value, expires_at_ms: None, encoding: 0 };
            inside.update(operation, DB, key.bytes(), |_, _| (put, ()))
        });
    }

    fn increment(&mut self, keys: &[Key]) {
        self.batch(keys, |inside, operation, key| {
            inside.update(operation, DB, key.bytes(), |old, new| {
                let old = old.map(|value| values::from_bytes(key, value.bytes));
                new.extend_from_slice(&values::incremented(key, old).to_le_bytes());
                (Change::PutScratch { expires_at_ms: None, encoding: 0 }, ())
            })
        });
    }
}
