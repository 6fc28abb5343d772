//! A running server: its workers, its acceptor, and its end.
//!
//! ```text
//!   Listeners::bind ── Server::start ── Server::run ── the end
//!   (before the store is opened)        └ waits for Lifecycle::end
//! ```

use crate::context::Context;
use crate::lifecycle::{self, Ending, Save};
use crate::listener::{Acceptor, Listeners};
use crate::transport::{self, WorkerThread};
use crate::worker::Message;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// How long an ending server waits for clients to take the replies to what was read.
const REST: Duration = Duration::from_secs(2);

/// A server that serves clients.
pub struct Server {
    context: Arc<Context>,
    workers: Vec<WorkerThread>,
    acceptor: Acceptor,
    /// Reports asked of the workers so far.
    reports: AtomicU64,
}

impl Server {
    /// Starts to serve the clients of `listeners`.
    pub fn start(context: Arc<Context>, listeners: Listeners) -> io::Result<Self> {
        // A second start of the same context would be a mistake of ours.
        context.facts.addresses.set(listeners.addresses()).expect("a context starts once");
        context.facts.transport.set(transport::name()).expect("a context starts once");
        let workers = (0..context.workers.len())
            .map(|number| transport::start(context.clone(), number))
            .collect::<io::Result<Vec<_>>>()?;
        // Before the first client comes, which may ask for another one to be closed.
        let mailboxes = workers.iter().map(|w| w.mailbox.clone()).collect();
        context.mailboxes.set(mailboxes).ok().expect("a context starts once");
        let acceptor = Acceptor::start(context.clone(), listeners, &workers)?;
        Ok(Self { context, workers, acceptor, reports: AtomicU64::new(0) })
    }
    /// What its threads share.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }
    /// Serves until somebody asks for the end and it succeeds. All connections are closed then and
    /// no thread of the server is left. Whether a checkpoint holds all of it.
    pub fn run(self) -> bool {
        let is_saved = loop {
            let ending = self.context.lifecycle.wanted();
            match self.save(ending) {
                Ok(is_saved) => break is_saved,
                Err(why) if ending.force => {
                    tracing::warn!("the data was not saved, as SHUTDOWN FORCE allows: {why}");
                    break false;
                }
                Err(why) => {
                    tracing::error!(
                        "the server goes on, since its data could not be saved: {why}; SHUTDOWN \
                         NOSAVE, or a second signal, ends it without saving"
                    );
                    self.rest(false);
                    self.acceptor.open();
                    self.context.lifecycle.failed(why);
                }
            }
        };
        self.context.lifecycle.ended();
        self.acceptor.stop();
        for worker in self.workers {
            worker.mailbox.send(Message::Stop);
            // A panic of the thread was reported when it happened.
            let _ = worker.thread.join();
        }
        is_saved
    }

    /// Closes the listening sockets, comes to rest and takes the last checkpoint, if one is wanted: whether.
    fn save(&self, ending: Ending) -> Result<bool, String> {
        tracing::info!("shutting down: no more clients and commands are taken");
        self.acceptor.close();
        self.rest(true);
        self.wait_for_rest();
        let context = &self.context;
        let wanted = match ending.save {
            Save::Always => true,
            Save::Never => false,
            Save::AsConfigured => context.config.config().persistence.checkpoint_enabled,
        };
        if !wanted {
            return Ok(false);
        }
        self.halt();
        let claim = loop {
            match context.checkpoints.claim() {
                Some(claim) => break claim,
                // The one that is being taken may lack the last writes.
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let taken = claim.take(&context.store, context.databases);
        taken.map(|_| true).map_err(|e| e.to_string())
    }
    fn rest(&self, resting: bool) {
        self.context.lifecycle.rest(resting);
        self.context.lifecycle.halt(false);
        self.workers.iter().for_each(|w| w.mailbox.send(Message::WakeAll));
    }
    /// Waits until every worker has answered what it has read, or [`REST`] is over: a client that
    /// takes no replies does not hold up the end.
    fn wait_for_rest(&self) {
        let until = Instant::now() + REST;
        let first = self.report();
        while Instant::now() < until {
            // The messages before this one (WakeAll) are handled first, the tasks that they wake
            // run before the next report.
            let number = self.report();
            std::thread::sleep(Duration::from_millis(5));
            let quiet = self.context.workers.iter().all(|w| w.quiet.get() + 1 >= number);
            if quiet && number > first + 1 {
                return;
            }
        }
    }
    /// Lets no command run any more, and waits until none does: what runs is bounded, since
    /// nothing in a worker waits for a client.
    fn halt(&self) {
        self.context.lifecycle.halt(true);
        let number = self.report();
        while self.context.workers.iter().any(|w| w.heard.get() < number) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    /// Asks all workers to report; returns the report's number.
    fn report(&self) -> u64 {
        let number = self.reports.fetch_add(1, Relaxed) + 1;
        self.workers.iter().for_each(|w| w.mailbox.send(Message::Report(number)));
        number
    }
}

/// SIGTERM and SIGINT ask for the end as SHUTDOWN does; a second one ends the process at once with
/// 1, whether the first is being carried out or was in vain, unless a checkpoint has succeeded
/// since. Runs on a thread of its own.
pub fn end_on_signals(context: Arc<Context>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut term, mut int) = {
        let _entered = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    let serve = move || {
        runtime.block_on(async {
            // Whether a signal has asked before: if the server is there and not ending, in vain.
            let mut asked = false;
            loop {
                let name = tokio::select! {
                    _ = term.recv() => "SIGTERM",
                    _ = int.recv() => "SIGINT",
                };
                if context.is_loading() {
                    lifecycle::exit_while_loading(name);
                }
                let unsaved = asked && context.checkpoints.state().last_error.is_some();
                if context.lifecycle.is_ending() || unsaved {
                    tracing::error!("a second signal ({name}): exiting at once, without saving");
                    std::process::exit(1);
                }
                tracing::info!("{name} received");
                context.lifecycle.ask(Ending { save: Save::AsConfigured, force: false });
                asked = true;
            }
        });
    };
    std::thread::Builder::new().name("signals".into()).spawn(serve).map(drop)
}
