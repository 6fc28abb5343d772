//! One thread's handle on the store, and the short stays inside.
//!
//! Inside means pinned: addresses stay valid, and no safepoint happens. Nothing in here waits
//! for I/O, room or a latch beyond a short spin; what would have to leaves with
//! [`Stop::Pending`].

use super::alone::{Alone, close_gate};
use super::find::View;
use super::operation::{Operation, ReadyQueue, Stop, Token};
use super::tables::{Database, Tables};
use super::write::Blocked;
use super::{Inner, Store};
use crate::redo::Redo;
use crate::sync::{Arc, mutant, thread};
use ferrite_index::{Participant, Pin};

/// One thread's handle on a store.
pub struct Session {
    /// The threads and the directory's lock stay while a session can use them. The store's own
    /// sessions have none.
    _store: Option<Store>,
    inner: Arc<Inner>,
    participant: Participant,
    ready: Arc<ReadyQueue>,
    tables: Arc<Tables>,
    generation: u64,
    scratch: Scratch,
}

/// Buffers that live as long as the session, so that the hot path allocates nothing.
#[derive(Default)]
pub(crate) struct Scratch {
    /// A consistent copy of an in-place value.
    pub value: Vec<u8>,
    /// What an update's closure makes.
    pub out: Vec<u8>,
    random: Random,
}

impl Scratch {
    /// A number that need not be unpredictable.
    pub fn random(&mut self) -> u64 {
        self.random.next()
    }
}

/// splitmix64 (Steele, Lea, Flood 2014): the same seed gives the same numbers.
#[derive(Default)]
pub(crate) struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Session {
    pub(crate) fn new(
        inner: &Arc<Inner>,
        store: Option<Store>,
        notify: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        let inner = Arc::clone(inner);
        let participant = inner
            .log
            .epoch
            .register("session")
            .expect("the store's limit of sessions is far above the server's of workers");
        let (generation, tables) = inner.tables();
        let place = if cfg!(shuttle) { 0 } else { std::ptr::from_ref(&*tables) as u64 };
        let seed = inner.now_ms() ^ place << 16;
        Self {
            _store: store,
            participant,
            ready: inner.ready_queue(notify),
            tables,
            generation,
            scratch: Scratch { random: Random(seed), ..Scratch::default() },
            inner,
        }
    }

    /// Goes inside for a batch of operations: at most some 64 commands or 20 µs. Waits while a
    /// safepoint is taken. Never hold it across a wait.
    pub fn enter(&mut self) -> Inside<'_> {
        let Self { inner, participant, ready, tables, generation, scratch, _store } = self;
        let inner: &Arc<Inner> = inner;
        let pin = participant.enter(&inner.gate);
        take_tables(inner, generation, tables);
        let view = View::load(inner, &pin);
        Inside {
            view,
            pin: Some(pin),
            inner,
            participant,
            tables,
            generation,
            ready,
            scratch,
            credit: 0,
            alone_at_ms: None,
            depends_on: 0,
            depended_on: 0,
        }
    }

    /// Shuts everybody else out: see [`Alone`]. Waits for those who are inside, and for who is
    /// alone already. The calling thread must hold no [`Inside`].
    pub fn alone(&mut self) -> Alone<'_> {
        let Self { inner, participant, ready, tables, generation, scratch, _store } = self;
        let inner: &Arc<Inner> = inner;
        let closed = (!mutant!("transaction_without_gate")).then(|| close_gate(inner));
        take_tables(inner, generation, tables);
        let now_ms = inner.now_ms();
        if let Some(redo) = &inner.redo {
            redo.run_alone(true);
        }
        Alone { inner, participant, ready, tables, generation, scratch, now_ms, _closed: closed }
    }

    /// Waits, on a thread that `notify` unparks and that holds no [`Inside`], until an operation can go
    /// on, or until `given_up` says so.
    pub(crate) fn wait_until_called(&mut self, mut given_up: impl FnMut() -> bool) {
        ferrite_index::assert_unpinned();
        let mut tokens = Vec::new();
        loop {
            self.ready(&mut tokens);
            if !tokens.is_empty() || given_up() {
                return;
            }
            thread::park_timeout(std::time::Duration::from_millis(10));
        }
    }

    /// Moves the tokens of operations that can go on to the end of `into`.
    pub fn ready(&mut self, into: &mut Vec<Token>) {
        // A session that rests must not keep a database that was flushed in memory.
        take_tables(&self.inner, &mut self.generation, &mut self.tables);
        self.ready.drain(into);
    }
}

/// Takes the tables anew if a safepoint has replaced them. What goes inside calls it after the pin.
pub(crate) fn take_tables(inner: &Inner, generation: &mut u64, tables: &mut Arc<Tables>) {
    if inner.generation() != *generation {
        (*generation, *tables) = inner.tables();
    }
}

/// A session inside: pinned, so that addresses stay valid. Leaves on drop.
pub struct Inside<'s> {
    pub(crate) view: View<'s>,
    /// `None` only while a command waits alone.
    pub(crate) pin: Option<Pin<'s>>,
    pub(crate) inner: &'s Arc<Inner>,
    pub(crate) participant: &'s Participant,
    pub(crate) tables: &'s mut Arc<Tables>,
    pub(crate) generation: &'s mut u64,
    pub(crate) ready: &'s Arc<ReadyQueue>,
    pub(crate) scratch: &'s mut Scratch,
    /// Room in the log that this stay may use, in words; given back before it leaves.
    pub(crate) credit: u64,
    /// In a stay alone, its clock: nobody else is inside, and what blocks is waited for.
    pub(crate) alone_at_ms: Option<u64>,
    /// See [`Inside::depends_on`].
    pub(crate) depends_on: u64,
    /// The highest that `depends_on` was, to know whether this stay wrote.
    pub(super) depended_on: u64,
}

impl Inside<'_> {
    /// The batch's clock, in Unix milliseconds: one reading for all of its operations.
    pub fn now_ms(&self) -> u64 {
        self.view.now_ms
    }

    /// Which of [`Store::places`](crate::Store::places) this database has now.
    pub fn place(&self, db: Database) -> u8 {
        self.tables.map[usize::from(db.0)]
    }

    /// A lower bound of the time since the record at [`crate::Value::address`] was written, in
    /// milliseconds: 0 while it lies in the mutable region, where it may be written in place.
    pub fn idle_ms(&self, address: u64) -> u64 {
        self.inner.log.ages.idle_ms(address, self.view.now_ms)
    }

    /// Up to where the redo log must be durable ([`crate::Store::redo_durable`]) before anybody is
    /// told what the operations since the last call read or wrote. What they wrote always counts,
    /// what they read while [`crate::Store::track_readers`] is on.
    pub fn depends_on(&mut self) -> u64 {
        self.depended_on = self.depended_on.max(self.depends_on);
        std::mem::take(&mut self.depends_on)
    }

    /// As if the operations since the last [`Inside::depends_on`] had read every key: for what is
    /// told of all of them together.
    pub fn depends_on_all(&mut self) {
        if let Some(redo) = &self.inner.redo {
            self.depends_on = self.depends_on.max(redo.last_of_all());
        }
    }

    /// Whether writes need not wait until what was written before is durable
    /// ([`crate::Store::hold_redo`]). If they must, `op` is to be called again when its token is ready.
    /// To be asked before a session goes alone, for all others wait for one that does.
    pub fn may_write(&self, op: &mut Operation) -> bool {
        let held = self.inner.redo.as_ref().is_some_and(Redo::is_held);
        if !held || self.alone_at_ms.is_some() {
            return true;
        }
        op.wait_for_redo(1, self.inner, self.ready);
        false
    }

    /// Arranges that the operation is called again once what blocks it may have passed.
    /// In a stay alone it waits here instead, and the call can be made again at once.
    pub(crate) fn wait<R>(&mut self, op: &mut Operation, blocked: Blocked) -> Result<R, Stop> {
        if self.alone_at_ms.is_some() {
            return self.wait_alone(op, blocked);
        }
        let log = &self.inner.log;
        match blocked {
            Blocked::Busy => op.again_soon(self.ready),
            Blocked::Fetch(missing) => {
                if let Some(e) = missing.iter().find_map(|address| op.failure(*address)) {
                    return Err(Stop::Failed(e));
                }
                missing.into_iter().for_each(|address| op.fetch(address, log, self.ready));
            }
            Blocked::Room(words) => op.wait_for_room(words, log, self.ready),
            Blocked::Redo(words) => op.wait_for_redo(words, self.inner, self.ready),
            Blocked::Failed(e) => return Err(Stop::Failed(e)),
        }
        Err(Stop::Pending)
    }

    pub(crate) fn return_credit(&mut self) {
        self.inner.log.tail.give_back(std::mem::take(&mut self.credit));
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.return_credit();
        if self.depends_on.max(self.depended_on) > 0
            && let Some(redo) = &self.inner.redo
        {
            redo.ring_bell();
        }
    }
}
