//! A session for threads that may wait: embedded users, tests, the expiry cycle.

use super::Store;
use super::operation::{Operation, Stop};
use super::session::{Inside, Session};
use super::tables::Database;
use super::value::{Change, Value};
use crate::OperationError;
use crate::sync::thread;
use ferrite_index::assert_unpinned;
use std::time::Duration;

/// A [`Session`] whose operations wait for the device and for room by themselves.
pub struct BlockingSession {
    session: Session,
}

impl Store {
    /// A session for the calling thread, which may wait in its operations. It must stay on the
    /// thread that made it.
    pub fn blocking_session(&self) -> BlockingSession {
        let thread = thread::current();
        BlockingSession { session: self.session(move || thread.unpark()) }
    }
}

impl BlockingSession {
    /// Runs one command to its end: `f` is called again after each wait, with the same operation.
    ///
    /// # Errors
    /// What `f` fails with.
    pub fn run<R>(
        &mut self,
        mut f: impl FnMut(&mut Inside<'_>, &mut Operation) -> Result<R, Stop>,
    ) -> Result<R, OperationError> {
        let mut op = Operation::new(0);
        loop {
            let outcome = f(&mut self.session.enter(), &mut op);
            match outcome {
                Ok(r) => return Ok(r),
                Err(Stop::Failed(e)) => return Err(e),
                Err(Stop::Pending) => self.wait(),
            }
        }
    }

    fn wait(&mut self) {
        assert_unpinned();
        let mut tokens = Vec::new();
        loop {
            self.session.ready(&mut tokens);
            if !tokens.is_empty() {
                return thread::yield_now();
            }
            // Woken by the session's notify; the limit only covers a stray unpark token.
            thread::park_timeout(Duration::from_millis(100));
        }
    }

    /// The value of a key.
    ///
    /// # Errors
    /// [`OperationError::Unreadable`].
    pub fn read(&mut self, db: Database, key: &[u8]) -> Result<Option<Vec<u8>>, OperationError> {
        self.run(|inside, op| inside.read(op, db, key, |v| v.map(|v| v.bytes.to_vec())))
    }

    /// Stores a value, without expiry.
    ///
    /// # Errors
    /// Any [`OperationError`]; nothing was changed then.
    pub fn upsert(&mut self, db: Database, key: &[u8], value: &[u8]) -> Result<(), OperationError> {
        let put = Change::Put { value, expires_at_ms: None, encoding: 0 };
        self.run(|inside, op| inside.update(op, db, key, |_, _| (put, ())))
    }

    /// Read-modify-write: see [`Inside::update`].
    ///
    /// # Errors
    /// Any [`OperationError`]; nothing was changed then.
    pub fn rmw<'v, R>(
        &mut self,
        db: Database,
        key: &[u8],
        mut f: impl FnMut(Option<Value<'_>>, &mut Vec<u8>) -> (Change<'v>, R),
    ) -> Result<R, OperationError> {
        self.run(|inside, op| inside.update(op, db, key, &mut f))
    }

    /// Removes a key; whether it was there.
    ///
    /// # Errors
    /// Any [`OperationError`]; nothing was changed then.
    pub fn delete(&mut self, db: Database, key: &[u8]) -> Result<bool, OperationError> {
        self.rmw(db, key, |value, _| (Change::Delete, value.is_some()))
    }
}
