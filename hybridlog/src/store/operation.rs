//! One command in flight: what it has fetched, what it waits for, and how it is called back.
//!
//! A command is run again from its start after each wait. It keeps what it fetched, by address,
//! until it ends: nothing below `safe_read_only` changes, so a fetched record stays true.

use super::Inner;
use crate::OperationError;
use crate::log::Log;
use crate::log::room::Grant;
use crate::sync::{Arc, Locked, Mutex, MutexGuard};
use crate::tier::raw::{Fetched, ReadFailure};
use ferrite_index::Address;
use std::collections::{HashMap, HashSet};

/// The caller's name for one command in flight; comes back from [`crate::Session::ready`].
pub type Token = u64;

/// Why a call on [`crate::Inside`] did not finish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// Call again with the same arguments and the same [`Operation`] once its token is ready.
    /// Nothing was changed.
    Pending,
    /// It failed; nothing was changed.
    Failed(OperationError),
}

impl From<OperationError> for Stop {
    fn from(e: OperationError) -> Self {
        Stop::Failed(e)
    }
}

/// The state of one command across its tries. Empty ones cost nothing; one is used for one
/// command and then [`Operation::clear`]ed or dropped.
#[derive(Debug)]
pub struct Operation {
    token: Token,
    state: Option<Box<State>>,
}

#[derive(Default)]
struct State {
    /// By address: a command of many cold keys looks each of them up.
    fetched: HashMap<Address, Fetched>,
    /// Reads that failed: they fail the command if it needs the record.
    failed: HashMap<Address, ReadFailure>,
    fetches: Option<Arc<Fetches>>,
    waiting_for_room: Option<(Arc<Grant>, Arc<Log>)>,
    /// How often it found a bucket busy.
    tries: u32,
    /// Where a search for a random key goes on.
    search: Option<Search>,
}

/// How far a search for a random key has come: a try that ends goes on from here.
#[derive(Clone, Copy)]
pub(crate) struct Search {
    /// The state of the random numbers.
    pub random: u64,
    pub attempt: u32,
    /// Of the walk that comes when chance finds nothing.
    pub cursor: u64,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "State({} fetched)", self.fetched.len())
    }
}

/// Device reads that were started for one operation.
struct Fetches {
    token: Token,
    ready: Arc<ReadyQueue>,
    inner: Mutex<FetchesInner>,
}

#[derive(Default)]
struct FetchesInner {
    outstanding: HashSet<Address>,
    arrived: Vec<Result<Fetched, (Address, ReadFailure)>>,
}

impl Operation {
    /// For the command that the caller calls `token`.
    pub fn new(token: Token) -> Self {
        Self { token, state: None }
    }

    /// Forgets what was fetched, for the next command (or slice of one) under the same token.
    pub fn clear(&mut self) {
        self.state = None;
    }

    /// Begins the next command of the same transaction: keeps what was fetched, which may serve that
    /// one too, and forgets the rest.
    pub fn next_command(&mut self) {
        if let Some(state) = &mut self.state {
            (state.tries, state.search) = (0, None);
            state.failed.clear();
        }
    }

    /// Takes in what has arrived since the last try; adds granted room to `credit`.
    pub(crate) fn begin(&mut self, credit: &mut u64) {
        let Some(state) = &mut self.state else { return };
        if let Some((grant, _)) = state.waiting_for_room.take() {
            *credit += grant.take();
        }
        let Some(fetches) = &state.fetches else { return };
        let arrived = std::mem::take(&mut fetches.lock().arrived);
        for result in arrived {
            match result {
                Ok(fetched) => drop(state.fetched.insert(fetched.address, fetched)),
                Err((address, e)) => drop(state.failed.insert(address, e)),
            }
        }
    }

    /// Why a record that is needed cannot be had, if its read has failed.
    pub(crate) fn failure(&self, address: Address) -> Option<OperationError> {
        let why = self.state.as_ref()?.failed.get(&address)?;
        Some(OperationError::Unreadable(why.clone()))
    }

    /// A record that this operation has fetched.
    pub(crate) fn fetched(&self, address: Address) -> Option<&Fetched> {
        self.state.as_ref()?.fetched.get(&address)
    }

    /// How often it was sent away by a busy bucket.
    pub(crate) fn tries(&self) -> u32 {
        self.state.as_ref().map_or(0, |state| state.tries)
    }

    /// Where its search goes on: at a random place at its first try.
    pub(crate) fn search(&mut self, draw: impl FnOnce() -> u64) -> &mut Search {
        let begin = || Search { random: draw(), attempt: 0, cursor: 0 };
        self.state.get_or_insert_default().search.get_or_insert_with(begin)
    }

    /// Keeps a record that was fetched for this operation otherwise.
    pub(crate) fn keep(&mut self, fetched: Fetched) {
        self.state.get_or_insert_default().fetched.insert(fetched.address, fetched);
    }

    /// Starts the read of a record, unless it is on its way.
    pub(crate) fn fetch(&mut self, address: Address, log: &Log, ready: &Arc<ReadyQueue>) {
        let token = self.token;
        let state = self.state.get_or_insert_default();
        let fetches = state.fetches.get_or_insert_with(|| {
            Arc::new(Fetches { token, ready: Arc::clone(ready), inner: Mutex::default() })
        });
        {
            let mut inner = fetches.lock();
            if !inner.outstanding.insert(address) {
                return;
            }
        }
        let fetches = Arc::clone(fetches);
        log.raw.fetch(address, Box::new(move |result| fetches.arrived(address, result)));
    }

    /// Joins the queue for `words` of room.
    pub(crate) fn wait_for_room(&mut self, words: u64, log: &Arc<Log>, ready: &Arc<ReadyQueue>) {
        let grant = log.room.join(words, self.token, ready);
        self.state.get_or_insert_default().waiting_for_room = Some((grant, Arc::clone(log)));
        log.wake();
    }

    /// The same for compaction. It is called while inside, like all who take their room there: so who
    /// closes the gate finds them in line, or holding a grant that can be taken back.
    pub(crate) fn wait_for_room_to_copy(
        &mut self,
        words: u64,
        log: &Arc<Log>,
        ready: &Arc<ReadyQueue>,
    ) {
        let grant = log.room.join_to_copy(words, self.token, ready);
        self.state.get_or_insert_default().waiting_for_room = Some((grant, Arc::clone(log)));
        log.wake();
    }

    /// Asks to be called again when the redo log has room.
    pub(crate) fn wait_for_redo(&mut self, words: u64, inner: &Inner, ready: &Arc<ReadyQueue>) {
        match &inner.redo {
            Some(redo) => redo.wait_for_room(words, self.token, ready),
            None => unreachable!("without a redo log nobody lacks room in it"),
        }
    }

    /// Asks to be called again in the next round.
    pub(crate) fn again_soon(&mut self, ready: &ReadyQueue) {
        self.state.get_or_insert_default().tries += 1;
        ready.push(self.token);
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if let Some((grant, log)) = self.waiting_for_room.take() {
            log.tail.give_back(grant.take());
        }
    }
}

impl Fetches {
    fn arrived(&self, address: Address, result: Result<Fetched, ReadFailure>) {
        let mut inner = self.lock();
        inner.outstanding.remove(&address);
        inner.arrived.push(result.map_err(|e| (address, e)));
        let last = inner.outstanding.is_empty();
        drop(inner);
        if last {
            self.ready.push(self.token);
        }
    }
    fn lock(&self) -> MutexGuard<'_, FetchesInner> {
        self.inner.locked()
    }
}

/// Tokens of one session's operations that can go on, filled from any thread.
pub(crate) struct ReadyQueue {
    tokens: Mutex<Vec<Token>>,
    notify: Box<dyn Fn() + Send + Sync>,
}

impl ReadyQueue {
    pub fn new(notify: Box<dyn Fn() + Send + Sync>) -> Self {
        Self { tokens: Mutex::default(), notify }
    }
    pub fn push(&self, token: Token) {
        self.tokens.locked().push(token);
        (self.notify)();
    }
    /// Calls the session, which may have something else to look at.
    pub fn notify(&self) {
        (self.notify)();
    }
    pub fn drain(&self, into: &mut Vec<Token>) {
        into.append(&mut self.tokens.locked());
    }
}
