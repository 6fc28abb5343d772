//! The control plane: one thread with a tokio runtime for what is not a command: the metrics' HTTP
//! server, the checkpoint interval, the once-a-second sample. A second thread takes the checkpoints
//! of the interval, a third one keeps history; they are there from the start, so that no limit of threads
//! keeps them from it.
//!
//! It starts before the store is opened, so that /health can say "recovering".

use crate::checkpoints::Claim;
use crate::context::{Context, unix_ms};
use crate::history::Keeper;
use crate::http;
use crate::loading::Loading;
use crate::metrics::Status;
use crate::pause;
use std::io;
use std::net::TcpListener;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// The running control plane. Dropped, it stops.
pub struct Control {
    stop: Option<oneshot::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

/// A checkpoint to be taken; without a claim what was held for copies is to go.
type Due = (Option<Claim>, Arc<Context>);

impl Control {
    /// Starts it. `listeners` are the metrics server's; there may be none.
    pub fn start(listeners: Vec<TcpListener>, status: Arc<Status>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listeners = {
            let _inside = runtime.enter();
            // From now on SIGHUP does nothing, as in Redis: the handler outlives this listener. It
            // is set here since this is what starts first. SIGPIPE is ignored by Rust's start.
            drop(signal(SignalKind::hangup())?);
            let to_tokio = |listener: TcpListener| {
                listener.set_nonblocking(true)?;
                tokio::net::TcpListener::from_std(listener)
            };
            listeners.into_iter().map(to_tokio).collect::<io::Result<Vec<_>>>()?
        };
        let (stop, stopped) = oneshot::channel();
        let (due, take) = mpsc::channel::<Due>();
        // One is waiting at the most: it will look at everything.
        let (past, tend) = mpsc::sync_channel::<Arc<Context>>(1);
        let run = move || {
            runtime.block_on(async move {
                for listener in listeners {
                    tokio::spawn(http::serve(listener, Arc::clone(&status)));
                }
                tokio::select! {
                    _ = stopped => {}
                    () = tick(status, due, past) => {}
                }
            });
        };
        // It ends when the other has dropped `due`.
        let checkpoints = move || {
            for (claim, context) in take {
                if let Some(claim) = claim {
                    // It logs its outcome itself, and an error leaves the server running.
                    drop(claim.take(&context.store, context.databases));
                }
                release_held(&context);
            }
        };
        let history = move || {
            let mut keeper = Keeper::default();
            tend.into_iter().for_each(|context| keeper.tend(&context));
        };
        let thread = |name: &str| std::thread::Builder::new().name(name.into());
        let threads = vec![
            thread("control").spawn(run)?,
            thread("interval").spawn(checkpoints)?,
            thread("history").spawn(history)?,
        ];
        Ok(Self { stop: Some(stop), threads })
    }

    /// Stops it and waits: a checkpoint that runs is finished first.
    pub fn stop(mut self) {
        self.halt();
    }

    fn halt(&mut self) {
        // An error means that the thread has ended already.
        let _ = self.stop.take().map(|stop| stop.send(()));
        for thread in self.threads.drain(..) {
            // A panic of the thread was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.halt();
    }
}

async fn tick(status: Arc<Status>, due: mpsc::Sender<Due>, past: mpsc::SyncSender<Arc<Context>>) {
    let mut every = tokio::time::interval(Duration::from_secs(1));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut ready_since = None;
    loop {
        let Some(context) = status.context().or(status.loading()) else {
            every.tick().await;
            continue;
        };
        let rung = tokio::select! {
            _ = every.tick() => false,
            () = context.bell.notified() => true,
            () = end_of_pause(context) => true,
        };
        pause::end_if_over(context);
        if status.context().is_none() {
            if !rung {
                tell_loading(context);
            }
            continue;
        }
        let ready = *ready_since.get_or_insert_with(Instant::now);
        if !rung {
            context.rates.sample(context);
            // An error means that it has not come to the last one yet.
            let _ = past.try_send(Arc::clone(context));
            crate::start::set_memory(context, &context.config.config());
            rewrite_if_due(context);
        }
        begin_scheduled_rewrite(context);
        if (context.checkpoints.is_scheduled() || !rung && is_due(context, ready))
            && let Some(claim) = context.checkpoints.claim()
        {
            // An error would mean that the thread has ended, which a panic alone could do.
            let _ = due.send((Some(claim), Arc::clone(context)));
        } else if context.store.hold_is_over() || !rung && hold_must_give_way(context) {
            let _ = due.send((None, Arc::clone(context)));
        }
    }
}

/// Once a second while the data is being recovered.
fn tell_loading(context: &Context) {
    let progress = Loading::of(context);
    if progress.total_bytes > 0 && context.is_loading() {
        tracing::info!(
            "recovering: {:.0} % of {} MiB read, {} seconds left",
            progress.percent(),
            progress.total_bytes >> 20,
            progress.eta_s()
        );
    }
}

/// Ready when the pause of commands, if there is one, is over.
async fn end_of_pause(context: &Context) {
    match context.pause.until_ms() {
        None => std::future::pending().await,
        Some(until_ms) => {
            // The clock may be set meanwhile: look again now and then.
            let left = until_ms.saturating_sub(unix_ms()).min(1000);
            tokio::time::sleep(Duration::from_millis(left)).await;
        }
    }
}

/// Between two checkpoints that are taken because the append-only file has grown.
const REWRITE_PAUSE: Duration = Duration::from_secs(10);
/// After a rewrite that failed, the automatic one is tried again after this long.
const REWRITE_RETRY: Duration = Duration::from_secs(60);

/// Has the append-only file made smaller when it has grown by as much as the settings say: by a checkpoint
/// while they are on, which costs what has changed, else by a rewrite. Where somebody has had a checkpoint
/// taken all the same, only another one makes it smaller: a start begins with the newest.
fn rewrite_if_due(context: &Context) {
    let Some(journal) = context.journal() else { return };
    let settings = &context.config.config().persistence;
    let (percentage, size) = (settings.aof_rewrite_percentage, settings.aof_rewrite_min_size);
    let checkpoints = context.checkpoints.state();
    let due = journal.is_rewrite_due(percentage, size, checkpoints.completed);
    let rewrites = journal.rewrites();
    if !due || checkpoints.began.is_some() || rewrites.began.is_some() || journal.is_failing() {
        return;
    }
    if settings.checkpoint_enabled || journal.is_needed_by_a_checkpoint() {
        if checkpoints.ended.is_none_or(|ended| ended.elapsed() >= REWRITE_PAUSE) {
            tracing::info!("the append-only file has grown: a checkpoint is taken");
            context.checkpoints.schedule();
        }
        return;
    }
    let failed = rewrites.last_error.is_some();
    if !failed || rewrites.ended.is_none_or(|ended| ended.elapsed() >= REWRITE_RETRY) {
        tracing::info!("the append-only file has grown: it is rewritten");
        journal.schedule_rewrite();
    }
}

/// Whether files that are kept for copies in progress take too much space.
fn hold_must_give_way(context: &Context) -> bool {
    let most = context.config.config().persistence.backup_hold_size;
    context.checkpoints.must_let_go(&context.store, &context.facts.data_dir, most)
}

fn release_held(context: &Context) {
    let most = context.config.config().persistence.backup_hold_size;
    context.checkpoints.release_held(&context.store, &context.facts.data_dir, most);
}

fn begin_scheduled_rewrite(context: &Context) {
    if let Some(journal) = context.journal()
        && journal.rewrites().scheduled
        && !context.checkpoints.in_progress()
    {
        journal.begin_rewrite();
    }
}

/// A failed checkpoint is tried again after this long, as writes are refused meanwhile.
const RETRY: Duration = Duration::from_secs(5);

/// Whether the interval has passed since the last checkpoint ended (or the server was ready) and
/// something was written, or the last one failed some seconds ago, or one would give back disk space
/// that was compacted.
fn is_due(context: &Context, ready: Instant) -> bool {
    let settings = &context.config.config().persistence;
    let passed = context.checkpoints.state().ended.unwrap_or(ready).elapsed();
    let failing = context.checkpoints.is_failing();
    settings.checkpoint_enabled
        && (failing && passed >= RETRY
            || passed >= settings.checkpoint_interval && changed(context)
            || !failing && context.store.wants_checkpoint())
}

fn changed(context: &Context) -> bool {
    let (store, databases) = (&context.store, context.databases);
    context.checkpoints.changes_since_last(store, &store.stats(), databases) > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::testing::Bench;

    #[test]
    fn a_checkpoint_is_due_after_the_interval_and_a_change() {
        let bench = Bench::new();
        let context = &bench.context;
        let long_ago = Instant::now() - Duration::from_secs(400);
        assert!(!is_due(context, long_ago), "nothing was written");
        context.checkpoints.note_change();
        assert!(is_due(context, long_ago));
        assert!(!is_due(context, Instant::now()), "the interval has not passed");
        context.config.set(&[("save", "")]).expect("live");
        assert!(!is_due(context, long_ago), "checkpoints are off");
        context.config.set(&[("save", "300 1")]).expect("live");
        let claim = context.checkpoints.claim().expect("free");
        claim.take(&context.store, 16).expect("taken");
        context.checkpoints.note_change();
        assert!(!is_due(context, long_ago), "one has just ended");
    }

    #[test]
    fn a_failed_checkpoint_is_tried_again_though_nothing_can_be_written() {
        let bench = Bench::new();
        let context = &bench.context;
        std::fs::remove_dir_all(bench.directory()).expect("it is there");
        let claim = context.checkpoints.claim().expect("free");
        claim.take(&context.store, 16).expect_err("there is no directory");
        assert!(!is_due(context, Instant::now()), "it has just ended");
        std::thread::sleep(RETRY);
        assert!(!changed(context) && is_due(context, Instant::now()));
        context.config.set(&[("save", "")]).expect("live");
        assert!(!is_due(context, Instant::now()), "checkpoints are off");
    }

    #[test]
    fn it_stops_when_told() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let control = Control::start(vec![listener], Arc::default()).expect("started");
        let mut stream = std::net::TcpStream::connect(address).expect("connected");
        io::Write::write_all(&mut stream, b"GET /health HTTP/1.0\r\n\r\n").expect("sent");
        let mut answer = String::new();
        io::Read::read_to_string(&mut stream, &mut answer).expect("answered");
        assert!(answer.starts_with("HTTP/1.0 503 "), "{answer}");
        assert!(answer.contains("recovering"), "{answer}");
        control.stop();
        assert!(std::net::TcpStream::connect(address).is_err());
    }
}
