//! Who waits for room in the log, in order.
//!
//! A writer that finds no room leaves, joins the queue and is called back with room in hand: the
//! page thread grants to the first in line only, so small writers never starve a large one. While
//! anybody waits, newcomers join the queue.

use super::tail::Tail;
use crate::store::operation::{ReadyQueue, Token};
use crate::sync::{
    Arc, Locked, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, Ordering},
    mutant,
};
use std::collections::VecDeque;

/// Room in words, on its way to whoever asked for it.
#[derive(Default)]
pub(crate) struct Grant(Mutex<GrantState>);

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum GrantState {
    #[default]
    Waiting,
    Granted(u64),
    Abandoned,
}

impl Grant {
    /// Takes what was granted and ends the waiting; 0 when nothing was.
    pub fn take(&self) -> u64 {
        match std::mem::replace(&mut *self.lock(), GrantState::Abandoned) {
            GrantState::Granted(words) => words,
            GrantState::Waiting | GrantState::Abandoned => 0,
        }
    }
    fn lock(&self) -> MutexGuard<'_, GrantState> {
        self.0.locked()
    }
}

/// Who waits, and what calls it back without room. A log that is broken calls back all.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// A session, for its next stay inside: a log that takes no writes, and a gate that closes.
    Session,
    /// Compaction, for its next stay inside, which may use the disk's reserve: a gate that closes.
    Compaction,
    /// Who has closed the gate, or holds no room when it does. It may use the disk's reserve too.
    Alone,
}

struct Waiter {
    words: u64,
    standing: Standing,
    grant: Arc<Grant>,
    token: Token,
    ready: Arc<ReadyQueue>,
}

#[derive(Default)]
pub(crate) struct RoomQueue {
    waiting: AtomicBool,
    queue: Mutex<VecDeque<Waiter>>,
    /// Granted and perhaps not taken yet.
    granted: Mutex<Vec<Arc<Grant>>>,
    parked: AtomicU64,
}

impl RoomQueue {
    /// Whether somebody waits already.
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    /// How often an operation had to wait.
    pub fn parked(&self) -> u64 {
        self.parked.load(Ordering::Relaxed)
    }

    /// Joins the queue for `words`; the token becomes ready with the grant filled. The caller
    /// wakes the page thread.
    pub fn join(&self, words: u64, token: Token, ready: &Arc<ReadyQueue>) -> Arc<Grant> {
        self.enqueue(words, Standing::Session, token, ready)
    }

    /// The same for compaction, which may use the disk's reserve.
    pub fn join_to_copy(&self, words: u64, token: Token, ready: &Arc<ReadyQueue>) -> Arc<Grant> {
        self.enqueue(words, Standing::Compaction, token, ready)
    }

    /// The same for who has closed the gate, or gives back what it was granted before it does.
    pub fn join_privileged(&self, words: u64, ready: &Arc<ReadyQueue>) -> Arc<Grant> {
        self.enqueue(words, Standing::Alone, 0, ready)
    }

    fn enqueue(
        &self,
        words: u64,
        standing: Standing,
        token: Token,
        ready: &Arc<ReadyQueue>,
    ) -> Arc<Grant> {
        let grant = Arc::new(Grant::default());
        let waiter =
            Waiter { words, standing, grant: Arc::clone(&grant), token, ready: Arc::clone(ready) };
        let mut queue = self.lock();
        queue.push_back(waiter);
        self.waiting.store(true, Ordering::Release);
        self.parked.fetch_add(1, Ordering::Relaxed);
        grant
    }

    /// What the first in line asks for.
    pub fn first_need(&self) -> Option<u64> {
        if !self.is_waiting() {
            return None;
        }
        self.lock().front().map(|w| w.words)
    }

    /// Grants in order while room lasts. `exhausted` says that no more frames can be freed for
    /// the first in line: then it gets all there is, as soon as no other ticket is out, since the
    /// rest of the page and one whole page hold any record.
    pub fn serve(&self, tail: &Tail, exhausted: bool) {
        let mut queue = self.lock();
        if mutant!("room_to_the_smallest") {
            queue.make_contiguous().sort_by_key(|waiter| waiter.words);
        }
        while let Some(first) = queue.front() {
            let mut state = first.grant.lock();
            if *state == GrantState::Waiting {
                let mut words = first.words;
                if !tail.grant(words) {
                    words = tail.limit().saturating_sub(tail.load());
                    let alone = tail.granted() == tail.load();
                    if !(exhausted && alone && words > 0 && tail.grant(words)) {
                        break;
                    }
                }
                *state = GrantState::Granted(words);
                drop(state);
                self.remember(Arc::clone(&first.grant));
                first.ready.push(first.token);
            } else {
                drop(state); // its operation has gone
            }
            queue.pop_front();
        }
        self.waiting.store(!queue.is_empty(), Ordering::Release);
    }

    /// Calls back without room who waits for it: the log takes no writes, let them see why. While
    /// that is only for lack of space the privileged stay.
    pub fn dismiss(&self, broken: bool) {
        self.call_back(|standing| broken || standing == Standing::Session);
    }

    fn call_back(&self, whom: impl Fn(Standing) -> bool) {
        let mut queue = self.lock();
        queue.retain(|waiter| {
            let goes = whom(waiter.standing);
            if goes {
                waiter.ready.push(waiter.token);
            }
            !goes
        });
        self.waiting.store(!queue.is_empty(), Ordering::Release);
    }

    /// Takes back all room that was granted and not taken, and calls back who would take some at the
    /// gate: for a command that runs alone, whose supply must not depend on those who wait there. The
    /// caller has closed it. They join the line only while inside, so none comes before it opens.
    pub fn revoke(&self, tail: &Tail) {
        self.call_back(|standing| standing != Standing::Alone);
        for grant in self.lock_granted().drain(..) {
            tail.give_back(grant.take());
        }
    }

    fn remember(&self, grant: Arc<Grant>) {
        let mut granted = self.lock_granted();
        granted.retain(|g| matches!(*g.lock(), GrantState::Granted(_)));
        granted.push(grant);
    }

    fn lock_granted(&self) -> MutexGuard<'_, Vec<Arc<Grant>>> {
        self.granted.locked()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Waiter>> {
        self.queue.locked()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::device::fault::FaultDevice;
    use crate::{Change, Config, Database, Operation, Stop, Store};

    fn ready() -> Arc<ReadyQueue> {
        Arc::new(ReadyQueue::new(Box::new(|| {})))
    }

    fn called(ready: &ReadyQueue) -> Vec<Token> {
        let mut tokens = Vec::new();
        ready.drain(&mut tokens);
        tokens
    }

    #[test]
    fn who_came_first_is_served_first_however_much_it_needs() {
        let (tail, queue, ready) = (Tail::new(64, 164, 64), RoomQueue::default(), ready());
        assert!(tail.grant(50));
        let large = queue.join(80, 1, &ready);
        let small = queue.join(5, 2, &ready);
        queue.serve(&tail, false);
        assert_eq!(called(&ready), [], "there is room for the small one, and it is not its turn");
        assert_eq!(queue.first_need(), Some(80));
        tail.give_back(50);
        queue.serve(&tail, false);
        assert_eq!(called(&ready), [1, 2]);
        assert_eq!((large.take(), small.take()), (80, 5));
        assert!(!queue.is_waiting());
    }

    /// Room that comes back while others wait for more of it would feed newcomers for ever.
    #[test]
    fn a_newcomer_waits_behind_those_who_wait() {
        let mut config = Config::new("simulated");
        (config.page_size, config.segment_size) = (4096, 4096);
        (config.mutable_size, config.readonly_size) = (4 * 4096, 4 * 4096);
        let store = Store::open_on(config, FaultDevice::new()).expect("opens");
        let log = &store.inner().log;
        // With a ticket out, so much is granted to nobody.
        assert!(log.tail.grant(1));
        let first = log.room.join(1 << 40, 1, &ready());
        let mut session = store.session(|| {});
        let mut operation = Operation::new(7);
        let mut upsert = || {
            let put = Change::Put { value: b"value", expires_at_ms: None, encoding: 0 };
            session.enter().update(&mut operation, Database(0), b"key", |_, _| (put, ()))
        };
        assert!(matches!(upsert(), Err(Stop::Pending)), "there is room, and it is not its turn");
        assert_eq!(first.take(), 0);
        log.tail.give_back(1);
        while upsert().is_err() {
            log.wake();
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_last_room_there_is_goes_to_the_first_alone() {
        let (tail, queue, ready) = (Tail::new(64, 164, 64), RoomQueue::default(), ready());
        assert!(tail.grant(10));
        let first = queue.join(500, 1, &ready);
        queue.serve(&tail, true);
        assert_eq!(called(&ready), [], "a ticket is out that may come back");
        tail.give_back(10);
        queue.serve(&tail, false);
        assert_eq!(called(&ready), [], "frames can still be freed");
        queue.serve(&tail, true);
        assert_eq!((called(&ready), first.take()), (vec![1], 100));
    }

    #[test]
    fn a_full_disk_calls_back_all_but_the_privileged() {
        let (tail, queue, ready) = (Tail::new(64, 164, 64), RoomQueue::default(), ready());
        queue.join(10, 1, &ready);
        let privileged = queue.join_privileged(20, &ready);
        queue.dismiss(false);
        assert_eq!(called(&ready), [1]);
        queue.serve(&tail, false);
        assert_eq!((called(&ready), privileged.take()), (vec![0], 20));
        queue.join_privileged(20, &ready);
        queue.dismiss(true);
        assert_eq!(called(&ready), [0], "what is broken stays so");
    }

    /// Compaction stayed in line, was granted room behind a closed gate and waited there with it.
    #[test]
    fn a_gate_that_closes_calls_back_whoever_goes_through_it() {
        let (tail, queue, ready) = (Tail::new(64, 164, 64), RoomQueue::default(), ready());
        assert!(tail.grant(100));
        let session = queue.join(10, 1, &ready);
        let compaction = queue.join_to_copy(10, 2, &ready);
        let cut = queue.join_privileged(10, &ready);
        queue.dismiss(false);
        assert_eq!(called(&ready), [1], "compaction may use the disk's reserve");
        queue.revoke(&tail);
        assert_eq!(called(&ready), [2]);
        tail.give_back(100);
        queue.serve(&tail, false);
        assert_eq!(called(&ready), [0]);
        assert_eq!((session.take(), compaction.take(), cut.take()), (0, 0, 10));
    }

    #[test]
    fn what_was_granted_and_not_taken_can_be_taken_back() {
        let (tail, queue, ready) = (Tail::new(64, 164, 64), RoomQueue::default(), ready());
        let granted = queue.join(100, 1, &ready);
        queue.serve(&tail, false);
        assert!(!tail.grant(1));
        queue.revoke(&tail);
        assert!(tail.grant(100));
        assert_eq!(granted.take(), 0);
    }
}
