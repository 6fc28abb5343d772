//! How a background thread rests, and is told to end.

use crate::sync::{Condvar, Locked, Mutex, wait_timeout_while};
use ferrite_index::assert_unpinned;
use std::time::Duration;

/// Down until it is raised, which is for good.
#[derive(Default)]
pub(crate) struct StopSign {
    is_up: Mutex<bool>,
    raised: Condvar,
}

impl StopSign {
    /// Ends the thread's rest, and soon the thread.
    pub fn raise(&self) {
        *self.is_up.locked() = true;
        self.raised.notify_all();
    }

    pub fn is_up(&self) -> bool {
        *self.is_up.locked()
    }

    /// Sleeps; true when it is time to stop.
    pub fn sleep(&self, time: Duration) -> bool {
        assert_unpinned();
        *wait_timeout_while(&self.raised, &self.is_up, time, |is_up| !*is_up)
    }
}
