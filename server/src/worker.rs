//! One worker: one thread, one session on the store, many connections. What a transport does not
//! need to know: it moves bytes and asks [`Worker::advance`] what is next.

use crate::client::Client;
use crate::commands::{self, Job, Ran};
use crate::connection::{Connection, Late, Next, Spare, slot_of};
use crate::context::Context;
use crate::counters::{ErrorTally, WorkerCounters};
use crate::resp::Reply;
use crate::transport::Accepted;
use ferrite_hybridlog::{Session, Token};
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// What connections need of their worker while they run.
pub struct Host {
    /// The server.
    pub context: Arc<Context>,
    /// The worker's number.
    pub number: usize,
    /// Times and errors of the current round.
    pub ledger: Ledger,
    /// The entry of the last command that ran.
    pub last_command: usize,
    /// Connections some of whose replies wait for the disk.
    pub gated: Vec<u32>,
    mailbox: Arc<Mailbox>,
}

/// A thread's connections and its session.
pub struct Worker {
    host: Host,
    /// None until the store is open.
    session: Option<Session>,
    spare: Spare,
    connections: Vec<Option<Connection>>,
    free: Vec<u32>,
    ready: Vec<Token>,
    /// The time of the last [`Worker::sweep`].
    swept_at_ms: u64,
}

/// What other threads tell a worker. Its bell is rung after each message; the worker empties it
/// with [`Worker::receive`].
pub struct Mailbox {
    messages: Mutex<Vec<Message>>,
    bell: Box<dyn Fn() + Send + Sync>,
}

/// One message to a worker.
pub enum Message {
    /// Close a client of this number, which was in that slot.
    Kill {
        /// Its slot.
        slot: u32,
        /// Its number.
        id: u64,
    },
    /// A job of this client has ended.
    JobDone {
        /// Its slot.
        slot: u32,
        /// Its number.
        id: u64,
        /// What the job wrote.
        reply: Vec<u8>,
        /// How its command went.
        run: JobRun,
    },
    /// A client of this worker's.
    Accepted(Accepted),
    /// Let every connection look around: whether it may read has changed.
    WakeAll,
    /// Tell in [`WorkerCounters::heard`] that this came, and in [`WorkerCounters::quiet`] whether
    /// all that was read is answered.
    Report(u64),
    /// Drop all connections and end.
    Stop,
}

/// How the command of a job went, for the counters.
#[derive(Clone, Copy, Debug)]
pub struct JobRun {
    /// The number of the command's entry.
    entry: usize,
    /// How long it took.
    nanoseconds: u64,
    /// Whether its reply is an error.
    failed: bool,
}

/// What the mailbox held for the transport.
#[derive(Default)]
pub struct Received {
    /// Clients to be served.
    pub accepted: Vec<Accepted>,
    /// The worker is to end.
    pub stop: bool,
}

impl Mailbox {
    /// An empty one; `bell` may be called from any thread.
    pub fn new(bell: impl Fn() + Send + Sync + 'static) -> Self {
        Self { messages: Mutex::default(), bell: Box::new(bell) }
    }
    /// Puts a message in and rings.
    pub fn send(&self, message: Message) {
        self.messages.lock().expect("nothing panics while it holds the messages").push(message);
        self.ring();
    }
    /// Makes the worker look.
    pub fn ring(&self) {
        (self.bell)();
    }
    fn take(&self) -> Vec<Message> {
        std::mem::take(&mut self.messages.lock().expect("nothing panics while it holds them"))
    }
}

impl Worker {
    /// Worker `number` of the server.
    pub fn new(context: Arc<Context>, number: usize, mailbox: Arc<Mailbox>) -> Self {
        let host = Host {
            context,
            number,
            ledger: Ledger::default(),
            last_command: 0,
            gated: Vec::new(),
            mailbox,
        };
        Self {
            host,
            session: None,
            spare: Spare::default(),
            connections: Vec::new(),
            free: Vec::new(),
            ready: Vec::new(),
            swept_at_ms: 0,
        }
    }
    /// Takes a client in and returns its slot.
    pub fn open(&mut self, shared: Arc<crate::client::Shared>) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            u32::try_from(self.connections.len() - 1).expect("fewer connections than descriptors")
        });
        shared.slot.store(i64::from(slot), Relaxed);
        self.host.counters().connections.add(1);
        self.connections[slot as usize] = Some(Connection::new(Client::new(shared), slot));
        slot
    }
    /// Forgets a connection. Its socket is the transport's to close.
    pub fn close(&mut self, slot: u32) {
        if let Some(mut connection) = self.connections[slot as usize].take() {
            connection.forget(&self.host);
            self.host.context.clients.remove(connection.client.id());
            self.free.push(slot);
        }
    }
    /// The connection in a slot that is open.
    pub fn connection(&mut self, slot: u32) -> &mut Connection {
        self.connections[slot as usize].as_mut().expect("the transport closes a slot once")
    }
    /// Where the bytes go that the connection receives.
    pub fn room(&mut self, slot: u32) -> &mut [u8] {
        let connection = self.connections[slot as usize].as_mut();
        connection.expect("the transport closes a slot once").room(&mut self.spare.input)
    }
    /// `n` bytes were put there.
    pub fn received(&mut self, slot: u32, n: usize) {
        self.host.counters().input_bytes.add(n as u64);
        let now_ms = self.swept_at_ms;
        let connection = self.connection(slot);
        connection.received(n);
        connection.client.moved(now_ms);
    }
    /// `n` bytes of its replies were sent.
    pub fn sent(&mut self, slot: u32, n: usize) {
        self.host.counters().output_bytes.add(n as u64);
        let now_ms = self.swept_at_ms;
        let connection = self.connection(slot);
        connection.sent(n);
        connection.client.moved(now_ms);
    }
    /// Lets a connection run what it can. `blocked`: its socket takes no more replies now.
    pub fn advance(&mut self, slot: u32, blocked: bool) -> Next {
        let Self { host, session, spare, connections, .. } = self;
        if session.is_none()
            && let Some(store) = host.context.store.get()
        {
            let bell = host.mailbox.clone();
            *session = Some(store.session(move || bell.ring()));
        }
        let connection = connections[slot as usize].as_mut();
        let connection = connection.expect("the transport closes a slot once");
        connection.run(session.as_mut(), host, spare, blocked)
    }
    /// Whether the connection is to be closed whatever it does.
    pub fn is_killed(&mut self, slot: u32) -> bool {
        self.connection(slot).client.shared.kill.load(Relaxed)
    }
    /// Whether anything may be read from sockets: not while the server comes to rest.
    pub fn may_read(&self) -> bool {
        !self.host.context.lifecycle.is_resting()
    }
    /// Marks clients that were silent, or took no reply, for too long; returns their slots.
    pub fn sweep(&mut self, now_ms: u64) -> Vec<u32> {
        self.swept_at_ms = now_ms;
        let limits = &self.host.context.limits;
        let mut late = Vec::new();
        for (slot, connection) in (0..).zip(&mut self.connections) {
            let Some(connection) = connection else { continue };
            if connection.client.shared.kill.load(Relaxed) {
                continue;
            }
            let Some(why) = connection.is_late(now_ms, limits) else { continue };
            connection.client.shared.kill.store(true, Relaxed);
            let counters = &self.host.context.workers[self.host.number];
            let (id, address) = (connection.client.id(), &connection.client.shared.address);
            match why {
                Late::Idle => {
                    counters.idle_closed.add(1);
                    tracing::debug!("closing idle client {id} from {address}");
                }
                Late::Stalled => {
                    counters.stall_closed.add(1);
                    let unsent = connection.unsent().len();
                    tracing::warn!(
                        "closing client {id} from {address}: it took none of its {unsent} bytes \
                         of replies for {} seconds",
                        limits.output_stall_s.get()
                    );
                }
            }
            late.push(slot);
        }
        late
    }
    /// The connection's turn is over: it gives back what it was lent.
    pub fn pause(&mut self, slot: u32) {
        let Self { host, spare, connections, .. } = self;
        if let Some(connection) = connections[slot as usize].as_mut() {
            connection.settle_memory(spare, host);
        }
    }
    /// Takes up what the store and other threads have to say, and calls `wake` for each slot whose
    /// connection can go on.
    pub fn receive(&mut self, mut wake: impl FnMut(u32)) -> Received {
        if let Some(session) = &mut self.session {
            session.ready(&mut self.ready);
        }
        for token in self.ready.drain(..) {
            let connection = self.connections.get_mut(slot_of(token) as usize);
            if let Some(Some(connection)) = connection
                && connection.resume(token)
            {
                wake(slot_of(token));
            }
        }
        self.open_gates(&mut wake);
        let mut received = Received::default();
        for message in self.host.mailbox.take() {
            match message {
                Message::Kill { slot, id } => {
                    if self.client(slot, id).is_some() {
                        wake(slot);
                    }
                }
                Message::JobDone { slot, id, reply, run } => {
                    // It ran, even if nobody waits for it any more.
                    self.host.count_job(run);
                    let waits = self.host.context.replies_wait();
                    let position = if waits { self.host.context.store.redo_tail() } else { 0 };
                    if let Some(connection) = self.client(slot, id) {
                        connection.finish_job(&reply, position);
                        wake(slot);
                    }
                }
                Message::Accepted(accepted) => received.accepted.push(accepted),
                Message::WakeAll => self.open_slots().for_each(&mut wake),
                Message::Report(number) => {
                    self.host.counters().heard.set(number);
                    if self.connections.iter().flatten().all(Connection::is_quiet) {
                        self.host.counters().quiet.set(number);
                    }
                }
                Message::Stop => received.stop = true,
            }
        }
        received
    }
    /// Whether some replies wait for the disk.
    pub fn has_waiting_replies(&self) -> bool {
        !self.host.gated.is_empty()
    }
    /// Lets go what the journal has made durable since.
    fn open_gates(&mut self, mut wake: impl FnMut(u32)) {
        let Self { host, connections, .. } = self;
        for slot in std::mem::take(&mut host.gated) {
            let Some(Some(connection)) = connections.get_mut(slot as usize) else { continue };
            connection.listed = connection.open_gate(host);
            if connection.listed {
                host.gated.push(slot);
            }
            if !connection.unsent().is_empty() || !connection.listed {
                wake(slot);
            }
        }
    }
    /// The connection in that slot if it is still that client's.
    fn client(&mut self, slot: u32, id: u64) -> Option<&mut Connection> {
        let connection = self.connections.get_mut(slot as usize)?.as_mut();
        connection.filter(|connection| connection.client.id() == id)
    }
    fn open_slots(&self) -> impl Iterator<Item = u32> {
        (0..).zip(&self.connections).filter(|(_, c)| c.is_some()).map(|(slot, _)| slot)
    }
}

impl Host {
    /// The worker's counters.
    #[inline]
    pub fn counters(&self) -> &WorkerCounters {
        &self.context.workers[self.number]
    }
    /// Hands a job to a thread of its own. An error means that the system has no more threads: then
    /// the job is dropped.
    pub(crate) fn start_job(
        &self,
        job: Job,
        entry: usize,
        slot: u32,
        client: &Client,
    ) -> io::Result<()> {
        let (context, mailbox) = (self.context.clone(), self.mailbox.clone());
        let (id, protocol) = (client.id(), client.protocol);
        let work = move || {
            let mut out = Vec::new();
            let mut reply = Reply::new(&mut out, protocol);
            let since = Instant::now();
            let outcome = job(&context, &mut reply);
            let nanoseconds = since.elapsed().as_nanos() as u64;
            let ran = commands::settle(outcome, &mut reply, 0);
            let failed = match ran {
                Ran::Failed(error) => {
                    let mut tally = ErrorTally::default();
                    tally.count(&error);
                    context.errors.add(&mut tally);
                    true
                }
                _ => false,
            };
            let run = JobRun { entry, nanoseconds, failed };
            mailbox.send(Message::JobDone { slot, id, reply: out, run });
        };
        std::thread::Builder::new().name("job".into()).spawn(work).map(drop)
    }
    fn count_job(&self, run: JobRun) {
        let counters = self.counters();
        let command = &counters.by_command[run.entry];
        counters.commands.add(1);
        command.calls.add(1);
        command.nanoseconds.add(run.nanoseconds);
        command.latency.record(run.nanoseconds, 1);
        if run.failed {
            counters.errors.add(1);
            command.failed.add(1);
        }
    }
    /// Writes down what a round has counted.
    pub(crate) fn end_round(&mut self, client: &Client) {
        let counters = &self.context.workers[self.number];
        self.ledger.stop(counters);
        self.context.errors.add(&mut self.ledger.errors);
        let shared = &client.shared;
        shared.last_command.store(self.last_command as u32, Relaxed);
        client.show();
    }
}

/// Times and errors of a round. The clock is read when another command follows, not at each one.
#[derive(Debug, Default)]
pub struct Ledger {
    running: Option<Running>,
    /// Errors by code.
    pub errors: ErrorTally,
}

/// A run of equal commands.
#[derive(Debug)]
struct Running {
    id: usize,
    since: Instant,
    calls: u64,
}

impl Ledger {
    /// The command of entry `id` begins.
    #[inline]
    pub fn start(&mut self, id: usize, counters: &WorkerCounters) {
        match &mut self.running {
            Some(running) if running.id == id => running.calls += 1,
            _ => {
                let now = Instant::now();
                self.add(now, counters);
                self.running = Some(Running { id, since: now, calls: 1 });
            }
        }
    }
    /// The command that was begun last goes on as a job, which is counted at its end.
    pub fn hand_over(&mut self) {
        if let Some(running) = &mut self.running {
            running.calls -= 1;
            if running.calls == 0 {
                self.running = None;
            }
        }
    }
    /// Nothing runs any more.
    pub fn stop(&mut self, counters: &WorkerCounters) {
        if self.running.is_some() {
            self.add(Instant::now(), counters);
            self.running = None;
        }
    }
    fn add(&self, now: Instant, counters: &WorkerCounters) {
        if let Some(running) = &self.running {
            let nanoseconds = now.duration_since(running.since).as_nanos() as u64;
            let command = &counters.by_command[running.id];
            command.nanoseconds.add(nanoseconds);
            command.latency.record(nanoseconds, running.calls);
        }
    }
}
