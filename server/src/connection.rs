//! One connection without its socket: bytes in, commands out, replies in order.
//!
//! ```text
//!   input    |........|====|====|====|~~~        ^ run, ==== looked ahead (queue), ~~~ not yet whole
//!   output   |sent....|replies
//! ```
//!
//! Promises:
//! * Commands run strictly in order; a reply is complete or not there.
//! * While a command waits for the store, the commands behind it that have arrived are looked at
//!   and the reads of their keys begun, so that a pipeline's cold reads are in flight together.
//! * While more than [`Limits::output_pause`](crate::limits::Limits::output_pause) bytes of replies
//!   are unsent, no command runs; while a command waits, nothing is read. So what a client can make
//!   the server hold is bounded by one command, one reply and the two limits. What all clients
//!   together can make it hold is bounded too
//!   ([`Limits::output_all`](crate::limits::Limits::output_all),
//!   [`Limits::looked_ahead_all`](crate::limits::Limits::looked_ahead_all)).
//! * No socket is touched and nothing waits here: a worker asks [`Connection::run`] what is next.

use crate::client::{Client, ReplyMode};
use crate::commands::args::{Args, is};
use crate::commands::{self, Call, Entry, Flags, OutsideCall, Ran, Run, table};
use crate::context::unix_ms;
use crate::error::{self, ErrorReply, Outcome};
use crate::input::Input;
use crate::limits::{Limit, Limits};
use crate::resp::{Bounds, Decoded, Decoder, Range, Reply, SecondWords};
use crate::transaction::runs_at_once;
use crate::worker::Host;
use ferrite_hybridlog::{Inside, Operation, Session, Token};
use gate::Gate;
use std::any::Any;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Commands of one batch: the store is left after as many.
const BATCH: usize = 64;
/// Commands whose keys are brought towards the cache together.
const GROUP: usize = 16;
/// Commands of one connection after which the others have their turn.
const ROUND: usize = 1024;
/// Commands behind a waiting one that are looked at.
const LOOK_AHEAD: usize = 256;
/// Places for commands that wait which a connection keeps when none does.
const QUEUE_KEPT: usize = 16;
/// Bytes of replies at which they are sent before more commands run.
const SEND_AT: usize = 64 * 1024;
/// The longest key, in bytes.
pub const KEY_MAX: usize = 65_535;

/// What a connection needs to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// More bytes.
    Read,
    /// Its operation, its job, or that the server is no longer halted; its worker calls
    /// [`Connection::resume`] or [`Connection::finish_job`], or wakes it.
    Wait,
    /// Its output to be sent.
    Flush,
    /// Another turn, soon.
    Again,
    /// To be closed, its output sent first.
    Close,
    /// To be closed at once.
    Abort,
}

/// Why a client is closed that did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    /// It sent nothing.
    Idle,
    /// It took none of its replies.
    Stalled,
}

/// See the module.
pub struct Connection {
    /// Who is at the other end.
    pub client: Client,
    slot: u32,
    input: Input,
    /// Where the decoder's current command begins in the stream.
    frame: u64,
    decoder: Decoder,
    /// Whether the decoder has a command that has not run.
    decoded: bool,
    /// Commands before `frame` that have not run; the first is the one to run.
    queue: VecDeque<Queued>,
    waiting: Waiting,
    /// What the last run asked for.
    next: Next,
    /// Since when none of the unsent replies was taken, in Unix milliseconds.
    stalled_since_ms: Option<u64>,
    /// The peer sends no more.
    ended: bool,
    /// The peer sends what only a browser sends: nothing of it runs any more.
    attacked: bool,
    output: Vec<u8>,
    sent: usize,
    gate: Gate,
    /// Whether replies wait for the disk, as it was when this turn began.
    replies_wait: bool,
    /// Whether it is in its worker's list of those whose replies wait.
    pub listed: bool,
    /// For the decoder's command, while it is not queued.
    op: Operation,
    op_token: Token,
    progress: Option<Box<dyn Any>>,
    tokens: u32,
    /// What the worker's counters have of this connection.
    accounted: Held,
}

/// What a connection holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Held {
    /// Bytes of the query buffer, and what tells its commands apart.
    input: usize,
    /// Bytes of the output buffer.
    output: usize,
    /// Commands in the queue.
    queued: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Waiting {
    No,
    ForOperation(Token),
    ForJob,
}

/// A command that has arrived and waits for the ones before it.
struct Queued {
    start: u64,
    end: u64,
    /// Empty if the command was refused for its size.
    words: Box<[Range]>,
    unfolded: Option<Box<[u8]>>,
    op: Operation,
    token: Token,
    progress: Option<Box<dyn Any>>,
}

/// Why a batch ended.
enum BatchEnd {
    /// It had its commands.
    Full,
    /// Nothing more runs inside now.
    Out,
    Pending,
    Again,
}

impl Connection {
    /// A connection of `client` that is its worker's number `slot`.
    pub fn new(client: Client, slot: u32) -> Self {
        Self {
            client,
            slot,
            input: Input::default(),
            frame: 0,
            decoder: Decoder::default(),
            decoded: false,
            queue: VecDeque::new(),
            waiting: Waiting::No,
            next: Next::Read,
            stalled_since_ms: None,
            ended: false,
            attacked: false,
            output: Vec::new(),
            sent: 0,
            gate: Gate::default(),
            replies_wait: false,
            listed: false,
            op: Operation::new(token(slot, 0)),
            op_token: token(slot, 0),
            progress: None,
            tokens: 0,
            accounted: Held::default(),
        }
    }
    /// Where received bytes go. `spare` is the worker's buffer, lent to connections that hold
    /// nothing.
    pub fn room(&mut self, spare: &mut Input) -> &mut [u8] {
        // Memory that was lent for this turn is used until its end.
        if self.input.is_empty() && self.input.capacity() < Input::SIZE {
            if spare.capacity() < Input::SIZE {
                *spare = Input::spare();
            }
            self.input.swap_memory(spare);
        }
        self.input.room(self.decoder.wanted())
    }
    /// `n` bytes were put into the room.
    pub fn received(&mut self, n: usize) {
        self.input.received(n);
    }
    /// The peer sends no more: what it has sent is answered, then the connection closes.
    pub fn end(&mut self) {
        self.ended = true;
    }
    /// Replies that are not yet sent and may be.
    pub fn unsent(&self) -> &[u8] {
        &self.output[self.sent..self.gate.open()]
    }
    /// Bytes of replies that are not yet sent, those included that wait for the disk.
    fn unsent_bytes(&self) -> usize {
        self.output.len() - self.sent
    }
    /// Lets those replies go that wait for nothing any more. True while some do wait: the worker calls
    /// this again when the journal has come further.
    pub fn open_gate(&mut self, host: &Host) -> bool {
        let durable = match host.context.journal() {
            Some(_) => host.context.store.redo_durable(),
            None => 0,
        };
        if self.gate.advance(self.output.len(), durable) {
            return false;
        }
        if let Some(journal) = host.context.journal()
            && journal.is_failing()
        {
            self.give_up_held(&journal.state().failure.unwrap_or_default());
            return false;
        }
        true
    }
    /// What the replies that wait tell of may be lost, and whoever waits for them must hear of it.
    #[cold]
    fn give_up_held(&mut self, why: &str) {
        self.output.truncate(self.gate.open());
        let error = ErrorReply::owned(format!(
            "MISCONF {why}. Whether what this command wrote, or read, outlives a crash is not known."
        ));
        for _ in 0..self.gate.give_up() {
            self.reply_to_output().error(&error);
        }
        self.gate.advance(self.output.len(), 0);
    }
    /// The first `n` unsent bytes are on their way.
    pub fn sent(&mut self, n: usize) {
        self.sent += n;
        self.stalled_since_ms = None;
        debug_assert!(self.sent <= self.output.len());
        if self.sent == self.output.len() {
            self.gate.shift(self.sent);
            self.output.clear();
            self.sent = 0;
        } else if self.sent > self.output.len() / 2 && self.sent > SEND_AT {
            self.output.drain(..self.sent);
            self.gate.shift(self.sent);
            self.sent = 0;
        }
    }
    /// Gives lent memory back and counts what is kept.
    pub fn settle_memory(&mut self, spare: &mut Spare, host: &Host) {
        if self.input.is_empty() {
            let mut own = Input::default();
            self.input.swap_memory(&mut own);
            if own.capacity() == Input::SIZE {
                spare.input = own;
            }
        } else if self.input.capacity() >= Input::SIZE && self.input.len() < Input::SIZE / 4 {
            let mut large = Input::default();
            self.input.shrink(&mut large);
            if large.capacity() == Input::SIZE {
                spare.input = large;
            }
        }
        if self.output.is_empty() && self.output.capacity() > 0 {
            let own = std::mem::take(&mut self.output);
            if own.capacity() <= Spare::OUTPUT_MAX {
                spare.output = own;
            }
        }
        if !self.decoded {
            self.decoder.rest();
        }
        if self.queue.is_empty() && self.queue.capacity() > QUEUE_KEPT {
            self.queue = VecDeque::new();
        }
        let held = Held {
            input: self.input.capacity()
                + self.decoder.held()
                + self.queue_bytes()
                + self.queued_bytes(),
            output: self.output.capacity(),
            queued: self.queue.len(),
        };
        self.account(held, host);
        let shared = &self.client.shared;
        shared.query_bytes.store(self.input.len() as u64, Relaxed);
        let free = self.input.capacity() - self.input.len();
        shared.query_free_bytes.store(free as u64, Relaxed);
        shared.output_bytes.store(self.unsent_bytes() as u64, Relaxed);
    }
    /// Memory of the queue, but for its commands' bytes.
    fn queue_bytes(&self) -> usize {
        let command = |queued: &Queued| {
            size_of_val(&*queued.words) + queued.unfolded.as_ref().map_or(0, |bytes| bytes.len())
        };
        match self.queue.capacity() {
            0..=QUEUE_KEPT => self.queue.iter().map(command).sum(),
            places => places * size_of::<Queued>() + self.queue.iter().map(command).sum::<usize>(),
        }
    }
    /// Forgets what it holds; its memory counts no more.
    pub fn forget(&mut self, host: &Host) {
        self.account(Held::default(), host);
    }
    fn account(&mut self, held: Held, host: &Host) {
        if held != self.accounted {
            let (counters, before) = (host.counters(), self.accounted);
            let change = |to: usize, from: usize| (to as u64).wrapping_sub(from as u64);
            counters.query_buffer_bytes.add(change(held.input, before.input));
            counters.output_buffer_bytes.add(change(held.output, before.output));
            counters.looked_ahead.add(change(held.queued, before.queued));
            self.accounted = held;
        }
    }
    /// `token`'s operation can go on. True if the connection waited for it.
    pub fn resume(&mut self, token: Token) -> bool {
        let awaited = self.waiting == Waiting::ForOperation(token);
        if awaited {
            self.waiting = Waiting::No;
        }
        awaited
    }
    /// The job of its command is done; `reply` is what it wrote, and depends on `position`.
    pub fn finish_job(&mut self, reply: &[u8], position: u64) {
        debug_assert_eq!(self.waiting, Waiting::ForJob);
        self.waiting = Waiting::No;
        let begun = self.output.len();
        self.output.extend_from_slice(reply);
        self.gate.depend(position);
        self.apply_reply_mode(begun);
    }
    /// Whether all that was read is answered and sent; a command that waits for a job or for the
    /// end of a pause counts as answered.
    pub fn is_quiet(&self) -> bool {
        let rests = matches!(self.next, Next::Read | Next::Close | Next::Abort);
        (self.client.paused || self.waiting == Waiting::ForJob || rests) && self.unsent_bytes() == 0
    }
    /// Whether the client was silent, or took none of its replies, for longer than it may.
    pub fn is_late(&mut self, now_ms: u64, limits: &Limits) -> Option<Late> {
        let (idle_s, stall_s) = (limits.idle_timeout_s.get(), limits.output_stall_s.get());
        if !self.unsent().is_empty() {
            let since = *self.stalled_since_ms.get_or_insert(now_ms);
            let stalled = stall_s > 0 && now_ms.saturating_sub(since) > stall_s * 1000;
            return stalled.then_some(Late::Stalled);
        }
        let active_at_ms = self.client.shared.active_at_ms.load(Relaxed);
        let idle = now_ms.saturating_sub(active_at_ms) > idle_s * 1000;
        let waits = self.waiting != Waiting::No || self.client.paused;
        (idle_s > 0 && idle && !waits).then_some(Late::Idle)
    }
    /// Runs what can run and says what is needed next. `blocked`: the socket took not all of the
    /// replies when they were last offered; then commands run up to the limit of unsent bytes.
    pub fn run(
        &mut self,
        session: Option<&mut Session>,
        host: &mut Host,
        spare: &mut Spare,
        blocked: bool,
    ) -> Next {
        if self.waiting != Waiting::No {
            self.next = Next::Wait;
            return Next::Wait;
        }
        if self.output.capacity() == 0 {
            self.output = std::mem::take(&mut spare.output);
        }
        self.replies_wait = host.context.replies_wait();
        self.next = self.run_round(session, host, blocked);
        if self.open_gate(host) && !std::mem::replace(&mut self.listed, true) {
            host.gated.push(self.slot);
        }
        host.end_round(&self.client);
        self.next
    }

    fn run_round(
        &mut self,
        mut session: Option<&mut Session>,
        host: &mut Host,
        blocked: bool,
    ) -> Next {
        let limits = Round::new(host, blocked);
        let mut left = ROUND;
        while let Some(entry) = self.load(host, &limits) {
            if session.is_none() && !host.context.is_loading() {
                // The store was opened in this very round: the next one has a session.
                return Next::Again;
            }
            match entry.spec.run {
                Run::Inside(_) => {}
                Run::Transaction => {
                    let session = session.as_deref_mut();
                    match self.run_transaction(entry, session, host, &limits) {
                        true => continue,
                        false => return Next::Wait,
                    }
                }
                Run::Outside(_) | Run::Container => {
                    match self.run_outside(entry, session.as_deref_mut(), host, &limits) {
                        true => continue,
                        false => return Next::Wait,
                    }
                }
            }
            let session =
                session.as_deref_mut().expect("nothing that runs inside is admitted before");
            match self.run_batch(entry, session, host, &limits, &mut left) {
                BatchEnd::Pending => return Next::Wait,
                BatchEnd::Again => return Next::Again,
                BatchEnd::Full if left == 0 => return Next::Again,
                BatchEnd::Full | BatchEnd::Out => {}
            }
        }
        self.open_gate(host);
        self.what_is_next(&limits, host)
    }
    /// Why nothing was loaded.
    fn what_is_next(&self, limits: &Round, host: &Host) -> Next {
        let counters = host.counters();
        if self.attacked {
            return Next::Abort;
        }
        if limits.output_max > 0 && self.unsent_bytes() as u64 > limits.output_max {
            counters.output_limit_closed.add(1);
            self.warn_of_closing("unsent bytes of replies", self.unsent_bytes());
            return Next::Abort;
        }
        // Replies that wait for the disk go before the end; the worker comes again when they may.
        let waits_for_disk = self.gate.open() < self.output.len();
        if self.client.close_after_reply {
            return if waits_for_disk { Next::Wait } else { Next::Close };
        }
        // While the server is halted or paused it is woken when commands may run again.
        if self.waiting != Waiting::No || limits.halted || self.client.paused {
            return Next::Wait;
        }
        if self.over_the_pause(limits) {
            return if self.unsent().is_empty() { Next::Wait } else { Next::Flush };
        }
        let unfinished = self.input.len() + self.queued_bytes();
        if unfinished as u64 > limits.query_buffer_max {
            counters.query_limit_closed.add(1);
            self.warn_of_closing("bytes of unfinished commands", unfinished);
            return Next::Abort;
        }
        match self.ended {
            true if waits_for_disk => Next::Wait,
            true => Next::Close,
            false => Next::Read,
        }
    }
    #[cold]
    fn warn_of_closing(&self, what: &str, bytes: usize) {
        let (id, address) = (self.client.id(), &self.client.shared.address);
        tracing::warn!("closing client {id} from {address}: {bytes} {what} are over the limit");
    }
    fn over_the_pause(&self, limits: &Round) -> bool {
        self.output.len() - self.sent > limits.output_pause
    }

    /// Makes sure that the next command is there, and finds its row. Commands that have none, or
    /// another number of words, are answered here.
    #[inline]
    fn load(&mut self, host: &mut Host, limits: &Round) -> Option<&'static Entry> {
        let over = self.client.close_after_reply || self.attacked;
        if over || self.waiting != Waiting::No || limits.halted {
            return None;
        }
        self.client.paused = false;
        loop {
            if self.over_the_pause(limits) || !self.arrive(limits, host) {
                return None;
            }
            let found = match self.current() {
                Some(args) => table().resolve(args).and_then(|entry| {
                    let long = self.current_length() > KEY_MAX as u64;
                    if long {
                        check_keys(entry, args)?;
                    }
                    if self.client.transaction.is_some() && entry.spec.flags.has(Flags::NO_MULTI) {
                        return Err(error::NOT_IN_A_TRANSACTION);
                    }
                    commands::admit(entry, &self.client, &host.context).map(|()| entry)
                }),
                None => Err(error::STRING_TOO_LONG),
            };
            match found {
                Ok(entry) if self.is_held(entry, host) => return None,
                Ok(entry) if self.client.transaction.is_some() && !runs_at_once(entry) => {
                    self.enqueue(entry, host);
                }
                Ok(entry) => return Some(entry),
                Err(_) if self.current().is_some_and(is_http) => {
                    self.attacked = true;
                    warn_of_attack(&self.client);
                    return None;
                }
                Err(error) => self.refuse(&error, host),
            }
        }
    }
    /// Whether a CLIENT PAUSE lets a command wait.
    #[inline]
    fn is_held(&mut self, entry: &'static Entry, host: &mut Host) -> bool {
        let pause = &host.context.pause;
        if !pause.holds(commands::writes(entry, &self.client)) {
            return false;
        }
        self.client.paused = true;
        host.last_command = entry.id;
        true
    }
    /// Whether a command is there: queued, decoded, or decoded now.
    fn arrive(&mut self, limits: &Round, host: &mut Host) -> bool {
        if self.decoded || !self.queue.is_empty() {
            return true;
        }
        loop {
            match self.decoder.next(self.input.from(self.frame), &limits.bounds) {
                Decoded::Command => {
                    self.decoded = true;
                    return true;
                }
                Decoded::Oversized => {
                    let queued = self.oversized();
                    self.queue.push_back(queued);
                    return true;
                }
                Decoded::Skip(n) => {
                    self.frame += n as u64;
                    self.input.consume_to(self.frame);
                }
                Decoded::Incomplete => return false,
                Decoded::Failed(error) => {
                    let begun = self.output.len();
                    let error = ErrorReply::owned(error.text());
                    self.reply_to_output().error(&error);
                    host.counters().errors.add(1);
                    host.ledger.errors.count(&error);
                    self.apply_reply_mode(begun);
                    self.client.close_after_reply = true;
                    return false;
                }
            }
        }
    }
    /// The decoder's command was too large: only its end is here.
    fn oversized(&mut self) -> Queued {
        let start = self.frame;
        self.frame += self.decoder.length() as u64;
        let (op, token) = self.new_operation();
        let words = Box::default();
        Queued { start, end: self.frame, words, unfolded: None, op, token, progress: None }
    }
    /// The words of the command that is to run; `None` if it was too large.
    fn current(&self) -> Option<Args<'_>> {
        match self.queue.front() {
            None => {
                let input = self.input.from(self.frame);
                let bytes = self.decoder.unfolded().unwrap_or(input);
                Some(Args::new(bytes, self.decoder.words()))
            }
            Some(queued) if queued.words.is_empty() => None,
            Some(queued) => Some(queued.args(&self.input)),
        }
    }
    fn current_length(&self) -> u64 {
        match self.queue.front() {
            None => self.decoder.length() as u64,
            Some(queued) => queued.end - queued.start,
        }
    }
    /// The command has run: its bytes are of no use any more.
    #[inline]
    fn consume(&mut self) {
        match self.queue.pop_front() {
            None => {
                self.decoded = false;
                self.frame += self.decoder.length() as u64;
                self.op.clear();
                self.progress = None;
                self.input.consume_to(self.frame);
            }
            Some(queued) => self.input.consume_to(queued.end),
        }
    }
    fn refuse(&mut self, error: &ErrorReply, host: &mut Host) {
        let begun = self.output.len();
        let entry = self.current().and_then(|args| table().find(args.at(0)));
        let aborts = entry.is_some_and(|entry| matches!(entry.spec.run, Run::Transaction));
        let discarded = aborts.then(|| error::aborted(error));
        let error = discarded.as_ref().unwrap_or(error);
        match &mut self.client.transaction {
            transaction if aborts => *transaction = None,
            Some(transaction) => transaction.failed = true,
            None => {}
        }
        self.reply_to_output().error(error);
        host.ledger.errors.count(error);
        if let Some(entry) = entry {
            host.counters().by_command[entry.id].rejected.add(1);
        }
        host.counters().errors.add(1);
        self.apply_reply_mode(begun);
        self.consume();
    }
    fn reply_to_output(&mut self) -> Reply<'_> {
        Reply::new(&mut self.output, self.client.protocol)
    }
    /// CLIENT REPLY: takes the reply back that nobody wants.
    #[inline]
    fn apply_reply_mode(&mut self, begun: usize) {
        if self.client.reply_mode != ReplyMode::On {
            self.output.truncate(begun);
            self.client.reply_mode = self.client.reply_mode.after_a_command();
        }
        // Each reply that may have to wait is known by its beginning.
        if self.replies_wait && self.output.len() > begun {
            self.gate.reply(begun);
        }
    }

    /// Runs up to [`BATCH`] commands inside, beginning with the current one, whose row is `entry`.
    fn run_batch(
        &mut self,
        entry: &'static Entry,
        session: &mut Session,
        host: &mut Host,
        limits: &Round,
        left: &mut usize,
    ) -> BatchEnd {
        let mut inside = session.enter();
        let end = self.run_commands(entry, &mut inside, host, limits, left);
        if host.context.replies_wait() {
            self.gate.depend(inside.depends_on());
        }
        end
    }
    fn run_commands(
        &mut self,
        mut entry: &'static Entry,
        inside: &mut Inside<'_>,
        host: &mut Host,
        limits: &Round,
        left: &mut usize,
    ) -> BatchEnd {
        self.client.shared.active_at_ms.store(inside.now_ms(), Relaxed);
        // Those that follow are looked at inside.
        if self.is_held(entry, host) {
            return BatchEnd::Out;
        }
        for n in 0..BATCH.min(*left) {
            let Run::Inside(run) = entry.spec.run else { return BatchEnd::Out };
            if n.is_multiple_of(GROUP) {
                self.foresee(inside);
            }
            host.ledger.start(entry.id, &host.context.workers[host.number]);
            let begun = self.output.len();
            match self.run_inside(run, inside, host, begun) {
                Ran::Pending => {
                    host.counters().pending.add(1);
                    self.wait(inside, limits);
                    return BatchEnd::Pending;
                }
                Ran::Again => return BatchEnd::Again,
                ran => self.ran(&ran, entry, begun, host),
            }
            *left -= 1;
            match self.load(host, limits) {
                Some(next) => entry = next,
                None => return BatchEnd::Out,
            }
        }
        BatchEnd::Full
    }
    /// Brings what the next commands will look at towards the processor's cache.
    fn foresee(&self, inside: &Inside<'_>) {
        let rest = self.input.from(self.frame);
        let behind = self.decoder.length();
        if !self.queue.is_empty() || behind == rest.len() {
            return;
        }
        let mut foreseen = [None; GROUP];
        let keys = SecondWords::of(rest);
        for (place, key) in foreseen.iter_mut().zip(keys) {
            *place = Some(inside.foresee(self.client.db, key));
        }
        foreseen.into_iter().map_while(|known| known).for_each(|known| inside.bring_in(known));
    }
    #[inline]
    fn run_inside(
        &mut self,
        run: fn(&mut Call<'_, '_>) -> Outcome,
        inside: &mut Inside<'_>,
        host: &Host,
        begun: usize,
    ) -> Ran {
        let Self { client, input, frame, decoder, queue, output, op, progress, .. } = self;
        let (args, op, progress) = match queue.front_mut() {
            None => {
                let bytes = decoder.unfolded().unwrap_or(input.from(*frame));
                (Args::new(bytes, decoder.words()), op, progress)
            }
            Some(Queued { start, words, unfolded, op, progress, .. }) => {
                let bytes = unfolded.as_deref().unwrap_or(input.from(*start));
                (Args::new(bytes, words), op, progress)
            }
        };
        let reply = Reply::new(output, client.protocol);
        let (context, counters) = (&*host.context, host.counters());
        let mut call = Call { args, inside, op, client, reply, progress, counters, context };
        let outcome = run(&mut call);
        commands::settle(outcome, &mut call.reply, begun)
    }
    /// The current command has its reply.
    #[inline]
    fn ran(&mut self, ran: &Ran, entry: &'static Entry, begun: usize, host: &mut Host) {
        let counters = &host.context.workers[host.number];
        counters.commands.add(1);
        counters.by_command[entry.id].calls.add(1);
        if let Ran::Failed(error) = ran {
            counters.errors.add(1);
            counters.by_command[entry.id].failed.add(1);
            host.ledger.errors.count(error);
        }
        host.last_command = entry.id;
        self.apply_reply_mode(begun);
        self.consume();
    }
    /// Runs a command that goes inside itself, or alone. False if it waits for the disk.
    fn run_outside(
        &mut self,
        entry: &'static Entry,
        session: Option<&mut Session>,
        host: &mut Host,
        limits: &Round,
    ) -> bool {
        let Run::Outside(run) = entry.spec.run else {
            unreachable!("a batch runs what runs inside, and resolve gives no containers")
        };
        let writes = commands::writes(entry, &self.client);
        let mut session = session.filter(|_| writes);
        if let Some(session) = &mut session
            && !self.may_write(session)
        {
            self.wait(&mut session.enter(), limits);
            return false;
        }
        let alone = session.map(Session::alone);
        let wrote = alone.is_some();
        if self.is_held(entry, host) {
            return true;
        }
        if let Some(Err(e)) = alone.as_ref().map(|alone| alone.refuse_unwritable(0)) {
            drop(alone);
            self.fail(e.into(), entry, host);
            return true;
        }
        host.ledger.start(entry.id, &host.context.workers[host.number]);
        // Before it runs: CLIENT LIST shows itself.
        self.client.shared.last_command.store(entry.id as u32, Relaxed);
        self.client.show();
        self.client.shared.active_at_ms.store(unix_ms(), Relaxed);
        let begun = self.output.len();
        let Self { client, input, frame, decoder, queue, output, .. } = self;
        let args = match queue.front() {
            None => {
                let bytes = decoder.unfolded().unwrap_or(input.from(*frame));
                Args::new(bytes, decoder.words())
            }
            Some(queued) => queued.args(input),
        };
        let reply = Reply::new(output, client.protocol);
        let (context, alone) = (&host.context, alone.as_ref());
        let mut call = OutsideCall { args, client, reply, context, alone, job: None };
        let outcome = run(&mut call);
        let ran = commands::settle(outcome, &mut call.reply, begun);
        let job = call.job.take();
        drop(call);
        if wrote {
            self.depend_on_all(host);
        }
        debug_assert!(!matches!(ran, Ran::Pending | Ran::Again), "nothing to wait for outside");
        let started = match job {
            Some(job) if ran == Ran::Done => host.start_job(job, entry.id, self.slot, &self.client),
            _ => {
                self.ran(&ran, entry, begun, host);
                return true;
            }
        };
        match started {
            Ok(()) => {
                self.waiting = Waiting::ForJob;
                host.ledger.hand_over();
                host.last_command = entry.id;
                self.consume();
            }
            Err(e) => {
                let error = ErrorReply::owned(format!("ERR Can't start a thread: {e}"));
                self.output.truncate(begun);
                self.reply_to_output().error(&error);
                self.ran(&Ran::Failed(error), entry, begun, host);
            }
        }
        true
    }

    /// Whether the current command, which is to run alone, need not wait for the disk; else it is called
    /// again. Asked before the gate is closed, so that nobody waits with it.
    fn may_write(&mut self, session: &mut Session) -> bool {
        let Self { queue, op, .. } = self;
        let op = queue.front_mut().map_or(op, |queued| &mut queued.op);
        session.enter().may_write(op)
    }

    /// What was replied depends on all that was written so far.
    fn depend_on_all(&mut self, host: &Host) {
        if host.context.replies_wait() {
            self.gate.depend(host.context.store.redo_tail());
        }
    }

    /// The current command waits for its operation; those behind it are looked at meanwhile.
    fn wait(&mut self, inside: &mut Inside<'_>, limits: &Round) {
        if self.queue.is_empty() {
            let queued = self.take_decoded();
            self.queue.push_back(queued);
        }
        let head = self.queue.front().expect("pushed above");
        self.waiting = Waiting::ForOperation(head.token);
        if self.queue.len() <= limits.look_ahead / 2 {
            self.look_ahead(inside, limits);
        }
    }
    fn new_operation(&mut self) -> (Operation, Token) {
        self.tokens = self.tokens.wrapping_add(1);
        let token = token(self.slot, self.tokens);
        (Operation::new(token), token)
    }
    /// Moves the decoder's command to the queue, with what it has of the store.
    fn take_decoded(&mut self) -> Queued {
        let (next_op, next_token) = self.new_operation();
        let queued = Queued {
            start: self.frame,
            end: self.frame + self.decoder.length() as u64,
            words: self.decoder.words().into(),
            unfolded: self.decoder.unfolded().map(Box::from),
            op: std::mem::replace(&mut self.op, next_op),
            token: std::mem::replace(&mut self.op_token, next_token),
            progress: self.progress.take(),
        };
        self.frame = queued.end;
        self.decoded = false;
        queued
    }
    /// Queues the commands that are here and begins the reads of their keys. Stops at a command
    /// that may change what the next ones mean.
    fn look_ahead(&mut self, inside: &mut Inside<'_>, limits: &Round) {
        while self.queue.len() < limits.look_ahead {
            match self.decoder.next(self.input.from(self.frame), &limits.bounds) {
                Decoded::Command => {}
                Decoded::Oversized => {
                    let queued = self.oversized();
                    self.queue.push_back(queued);
                    continue;
                }
                // The bytes before it may not go before the queue's: they wait.
                Decoded::Skip(n) => {
                    self.frame += n as u64;
                    continue;
                }
                // An error is found again when its turn comes.
                Decoded::Incomplete | Decoded::Failed(_) => return,
            }
            let mut queued = self.take_decoded();
            let args = queued.args(&self.input);
            let entry = table().resolve(args).ok();
            let goes_on = match entry {
                Some(entry) => matches!(entry.spec.run, Run::Inside(_)),
                None => true,
            };
            if let Some(entry) = entry {
                let bytes = queued.unfolded.as_deref().unwrap_or(self.input.from(queued.start));
                let args = Args::new(bytes, &queued.words);
                for i in entry.spec.keys.iter().flat_map(|keys| keys.indices(args.len())) {
                    inside.prefetch(&mut queued.op, self.client.db, args.at(i));
                }
            }
            self.queue.push_back(queued);
            if !goes_on {
                return;
            }
        }
    }
}

impl Queued {
    fn args<'a>(&'a self, input: &'a Input) -> Args<'a> {
        Args::new(self.unfolded.as_deref().unwrap_or(input.from(self.start)), &self.words)
    }
}

/// The limits of one round, read once.
struct Round {
    /// No command is to run.
    halted: bool,
    bounds: Bounds,
    output_pause: usize,
    /// Commands that the queue may hold.
    look_ahead: usize,
    output_max: u64,
    query_buffer_max: u64,
}

impl Round {
    fn new(host: &Host, blocked: bool) -> Self {
        let (limits, counters) = (&host.context.limits, host.counters());
        let share = |limit: &Limit| limit.get() / host.context.workers.len() as u64;
        let crowded = counters.output_buffer_bytes.get() > share(&limits.output_all);
        let pause = limits.output_pause.get() as usize;
        let others = counters.looked_ahead.get();
        let look_ahead = share(&limits.looked_ahead_all).saturating_sub(others) as usize;
        Self {
            halted: host.context.lifecycle.is_halted(),
            bounds: Bounds {
                bulk_max: limits.bulk_max.get(),
                value_max: host.context.value_limit() as u64,
                stores_values: |name| {
                    let entry = table().find(name);
                    entry.is_some_and(|entry| entry.spec.flags.has(Flags::DENY_OOM))
                },
            },
            output_pause: if blocked && !crowded { pause } else { pause.min(SEND_AT) },
            look_ahead: look_ahead.min(LOOK_AHEAD),
            output_max: limits.output_max.get(),
            query_buffer_max: limits.query_buffer_max.get().min(QUERY_BUFFER_MAX),
        }
    }
}

/// Words are 32-bit ranges of their command.
const QUERY_BUFFER_MAX: u64 = (1 << 32) - (1 << 20);

/// Buffers that a worker lends to the connection whose turn it is.
#[derive(Debug, Default)]
pub struct Spare {
    /// For what is received.
    pub input: Input,
    /// For replies.
    pub output: Vec<u8>,
}

impl Spare {
    /// An output buffer larger than this is not kept for the next connection.
    const OUTPUT_MAX: usize = 256 * 1024;
}

fn token(slot: u32, number: u32) -> Token {
    u64::from(slot) << 32 | u64::from(number)
}

/// The slot of the connection that an operation belongs to.
pub fn slot_of(token: Token) -> u32 {
    (token >> 32) as u32
}

/// Keys have 16 bits of length in the log.
#[cold]
fn check_keys(entry: &Entry, args: Args<'_>) -> Result<(), ErrorReply> {
    let mut keys = entry.spec.keys.iter().flat_map(|keys| keys.indices(args.len()));
    match keys.any(|i| args.at(i).len() > KEY_MAX) {
        true => Err(error::KEY_TOO_LONG),
        false => Ok(()),
    }
}

/// Whether these are words of an HTTP request, which a web page can let a browser send to any
/// address: what follows them in its body would be commands.
#[cold]
fn is_http(args: Args<'_>) -> bool {
    is(args.at(0), "POST") || is(args.at(0), "HOST:")
}

/// At most once a minute, as Redis does.
#[cold]
fn warn_of_attack(client: &Client) {
    static NEXT_AT_MS: AtomicU64 = AtomicU64::new(0);
    let now = unix_ms();
    // Two threads that come at once may both warn.
    if now >= NEXT_AT_MS.load(Relaxed) {
        NEXT_AT_MS.store(now + 60_000, Relaxed);
        tracing::warn!(
            "Possible SECURITY ATTACK detected. It looks like somebody is sending POST or Host: \
             commands to Ferrite. This is likely due to an attacker attempting to use Cross \
             Protocol Scripting to compromise your Ferrite instance. Connection aborted: {}",
            client.shared.address
        );
    }
}

mod gate;
#[cfg(test)]
mod tests;
mod transaction;
