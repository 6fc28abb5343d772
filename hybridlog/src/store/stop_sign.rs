//! How a background thread rests, and is told to end.

use crate::sync::Locked;
use ferrite_index::assert_unpinned;
use std::sync::{Condvar, Mutex};
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
        let is_up = self.is_up.locked();
        let (is_up, _) = self
            .raised
            .wait_timeout_while(is_up, time, |is_up| !*is_up)
            .expect("nothing panics under this lock");
        *is_up
    }
}
