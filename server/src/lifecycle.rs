//! How a server comes to its end: SHUTDOWN, SIGTERM and SIGINT ask for it, one thread carries it
//! out.
//!
//! ```text
//!   ask ── close: new clients are refused
//!       ── rest: nothing more is read, what was read is answered
//!       ── halt: no command runs any more
//!       ── checkpoint ── done: the workers stop, the program ends
//!                     └─ failed: the server goes on as if nobody had asked, and says why
//! ```
//!
//! Promise: whoever has a reply to a write when the program ends with a checkpoint finds the write
//! after the next start. Every command that runs at all runs before the cut, however slowly its
//! client takes the reply.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, MutexGuard};

/// Whether the data is saved before the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Save {
    /// If checkpoints are on.
    AsConfigured,
    /// In any case.
    Always,
    /// Not.
    Never,
}

/// How the end is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ending {
    /// Whether the data is saved.
    pub save: Save,
    /// Whether a failure to save is ignored.
    pub force: bool,
}

/// Whether and how the end is wanted.
#[derive(Debug, Default)]
pub struct Lifecycle {
    state: Mutex<State>,
    changed: Condvar,
    resting: AtomicBool,
    halted: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// What is being carried out or waits to be.
    wanted: Option<Ending>,
    /// Counts the endings that failed.
    failures: u64,
    last_failure: String,
    ended: bool,
}

impl Lifecycle {
    /// Asks for the end. A failure is logged where it happens.
    pub fn ask(&self, ending: Ending) {
        self.lock().wanted.get_or_insert(ending);
        self.changed.notify_all();
    }
    /// Asks for the end and waits for it. An error is why the server goes on.
    pub fn end(&self, ending: Ending) -> Result<(), String> {
        let mut state = self.lock();
        let failures = state.failures;
        state.wanted.get_or_insert(ending);
        self.changed.notify_all();
        while !state.ended && state.failures == failures {
            state = self.changed.wait(state).expect(POISONED);
        }
        if state.ended { Ok(()) } else { Err(state.last_failure.clone()) }
    }
    /// Waits until somebody asks for the end. For the thread that carries it out.
    pub(crate) fn wanted(&self) -> Ending {
        let mut state = self.lock();
        loop {
            match state.wanted {
                Some(ending) => return ending,
                None => state = self.changed.wait(state).expect(POISONED),
            }
        }
    }
    /// The end did not succeed: the server goes on.
    pub(crate) fn failed(&self, why: String) {
        let mut state = self.lock();
        state.wanted = None;
        state.failures += 1;
        state.last_failure = why;
        self.changed.notify_all();
    }
    /// The end is reached.
    pub(crate) fn ended(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }
    /// Whether somebody has asked for the end.
    pub fn is_ending(&self) -> bool {
        self.lock().wanted.is_some()
    }
    /// Whether sockets are left unread.
    pub fn is_resting(&self) -> bool {
        // Orders nothing: every worker is sent a message after a change.
        self.resting.load(Relaxed)
    }
    pub(crate) fn rest(&self, resting: bool) {
        self.resting.store(resting, Relaxed);
    }
    /// Whether no command is to run.
    pub fn is_halted(&self) -> bool {
        // Orders nothing, as above.
        self.halted.load(Relaxed)
    }
    pub(crate) fn halt(&self, halted: bool) {
        self.halted.store(halted, Relaxed);
    }
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(POISONED)
    }
}

/// Ends the process while the store is not yet open: nothing was written, and a start does no harm
/// wherever it ends.
pub fn exit_while_loading(asked_by: &str) -> ! {
    tracing::info!("{asked_by} while the data is being recovered: exiting now");
    std::process::exit(0);
}

/// Lets a panic of any thread end the process, once it is reported: clients would wait for ever, and
/// what the thread was changing is not known. Recovery starts from what is on disk. A hook and no
/// guard in the threads, since tasks run in runtimes that catch what they panic with.
pub fn end_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

const POISONED: &str = "nothing panics while it holds the state";

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// Set in the process that is to panic.
    const PANICS: &str = "FERRITE_TEST_PANICS";

    /// tokio catches what a connection's task panics with and goes on.
    #[test]
    fn a_panic_of_a_task_ends_the_process() {
        use std::os::unix::process::ExitStatusExt as _;
        if std::env::var_os(PANICS).is_some() {
            end_on_panic();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build_local(Default::default())
                .expect("a runtime");
            runtime.block_on(async {
                let task = tokio::task::spawn_local(async { panic!("of a connection") });
                // An error: it panicked. This process goes on, and its test passes.
                drop::<Result<(), _>>(task.await);
            });
            return;
        }
        let this = std::env::current_exe().expect("a test program");
        let child = std::process::Command::new(this)
            .args([
                "--exact",
                "--nocapture",
                "lifecycle::tests::a_panic_of_a_task_ends_the_process",
            ])
            .env(PANICS, "1")
            .output()
            .expect("it runs");
        let told = String::from_utf8_lossy(&child.stderr);
        assert!(told.contains("of a connection"), "{told}");
        const SIGABRT: i32 = 6;
        assert_eq!(child.status.signal(), Some(SIGABRT), "{told}");
    }

    const ENDING: Ending = Ending { save: Save::AsConfigured, force: false };

    #[test]
    fn who_asks_hears_of_a_failure_and_may_ask_again() {
        let lifecycle = Lifecycle::default();
        thread::scope(|scope| {
            let asked = scope.spawn(|| lifecycle.end(ENDING));
            assert_eq!(lifecycle.wanted(), ENDING);
            lifecycle.failed("no room".into());
            assert_eq!(asked.join().unwrap(), Err("no room".into()));
            assert!(!lifecycle.is_ending());
            let asked = scope.spawn(|| lifecycle.end(ENDING));
            lifecycle.wanted();
            lifecycle.ended();
            assert_eq!(asked.join().unwrap(), Ok(()));
        });
    }
}
