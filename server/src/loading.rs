//! While the data is being recovered: how far it has come, for INFO, the log and /health.

use crate::context::Context;
use std::time::Duration;

/// How far the recovery has come.
#[derive(Clone, Copy, Debug)]
pub struct Loading {
    /// Bytes to be read; 0 until that is known.
    pub total_bytes: u64,
    /// Bytes read so far.
    pub loaded_bytes: u64,
    /// Since the start.
    pub elapsed: Duration,
}

impl Loading {
    /// Of `context`, whose store is being opened.
    pub fn of(context: &Context) -> Self {
        let total_bytes = context.progress.total_bytes();
        // What is verified ends at a block, which may be beyond what was expected.
        let loaded_bytes = context.progress.done_bytes().min(total_bytes);
        Self { total_bytes, loaded_bytes, elapsed: context.started.elapsed() }
    }
    /// Of the bytes, in percent.
    pub fn percent(&self) -> f64 {
        match self.total_bytes {
            0 => 0.0,
            total => 100.0 * self.loaded_bytes as f64 / total as f64,
        }
    }
    /// Seconds that are left at the present speed; 1 before anything is known, as in Redis.
    pub fn eta_s(&self) -> u64 {
        if self.loaded_bytes == 0 {
            return 1;
        }
        let left = (self.total_bytes - self.loaded_bytes) as f64 / self.loaded_bytes as f64;
        (self.elapsed.as_secs_f64() * left) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_follows_from_what_is_done() {
        let elapsed = Duration::from_secs(10);
        let at = |loaded_bytes| Loading { total_bytes: 1000, loaded_bytes, elapsed };
        assert_eq!((at(0).percent(), at(0).eta_s()), (0.0, 1));
        assert_eq!((at(250).percent(), at(250).eta_s()), (25.0, 30));
        assert_eq!((at(1000).percent(), at(1000).eta_s()), (100.0, 0));
    }
}
