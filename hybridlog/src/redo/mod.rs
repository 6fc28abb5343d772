//! The redo log's near end: what every write leaves behind for whoever makes it durable.
//!
//! The store says what changed, in the order in which it became visible; where that goes (a file, a
//! replica) is the business of the one [`RedoReader`].
//!
//! Promises:
//!
//! 1. An entry is reserved under its key's latch before the change shows, and filled before the
//!    latch is free. So the order of the entries is the order in which changes became visible, and an
//!    entry that a cut finds reserved at a safepoint is whole.
//! 2. A write that finds no room for its entry has changed nothing; it is called again.
//! 3. The effects of one command of several keys stand together, between `Begin` and `End`.
//! 4. Who asks ([`Inside::depends_on`](crate::Inside::depends_on)) learns up to where the log must be
//!    durable before anybody may be told what it read or wrote: its own last entry, and the last one of
//!    each key's *stripe* that it read.

mod entry;
mod ring;

pub(crate) use entry::Effect;
pub use entry::{RedoEffect, RedoEntry};

use crate::store::Inner;
use crate::store::operation::{ReadyQueue, Token};
use crate::sync::{
    Arc, Locked, Mutex, OnceLock,
    atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence},
    mutant,
    thread::{self, Thread},
};
use entry::Raw;
use ferrite_index::{KeyHash, assert_unpinned};
use ring::{Header, Reserved, Ring};
use std::collections::HashMap;
use std::time::Duration;

/// Stripes of keys whose last entries are remembered for readers.
const STRIPES: usize = 1 << 16;

/// What the store's sessions and the reader share.
pub(crate) struct Redo {
    ring: Ring,
    /// Whether writes leave entries: not while a start replays.
    active: AtomicBool,
    /// Whether writes must wait although there is room.
    held: AtomicBool,
    /// The bytes of entries too large for the ring, by their positions.
    aside: Mutex<HashMap<u64, Box<[u8]>>>,
    aside_bytes: AtomicU64,
    durable: AtomicU64,
    /// Operations to be called again when there is room.
    waiters: Mutex<Vec<(Token, Arc<ReadyQueue>)>>,
    waiting: AtomicBool,
    parked: AtomicU64,
    reader: Mutex<Option<Thread>>,
    sleeping: AtomicBool,
    /// The reader waits a moment for more, or is about to.
    lingering: AtomicBool,
    /// The end of the last entry of each stripe; made when somebody asks for it.
    stripes: OnceLock<Box<[AtomicU64]>>,
    tracks_readers: AtomicBool,
    /// The end of the last entry that concerns every key.
    last_of_every_key: AtomicU64,
    /// Whether somebody runs alone, and has a transaction: [`NONE`], [`ALONE`], [`WANTED`] or
    /// [`BEGUN`].
    transaction: AtomicU8,
    /// The last mark that the reader has dealt with.
    cut: AtomicU64,
}

/// Nobody runs alone.
const NONE: u8 = 0;
/// Whoever runs alone writes one entry.
const ALONE: u8 = 1;
/// The first entry of a transaction is to come, before which `Begin` must stand.
const WANTED: u8 = 2;
/// `Begin` is there.
const BEGUN: u8 = 3;

/// A place in the redo log, reserved for an effect that comes next. Dropped, it is skipped.
pub(crate) struct Entry<'r> {
    redo: &'r Redo,
    reserved: Reserved<'r>,
}

impl Redo {
    /// With a ring of `bytes`, a power of two.
    pub fn new(bytes: u64) -> Self {
        Self {
            ring: Ring::new((bytes / 8) as usize),
            active: AtomicBool::new(false),
            held: AtomicBool::new(false),
            aside: Mutex::default(),
            aside_bytes: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            waiters: Mutex::default(),
            waiting: AtomicBool::new(false),
            parked: AtomicU64::new(0),
            reader: Mutex::default(),
            sleeping: AtomicBool::new(false),
            lingering: AtomicBool::new(false),
            stripes: OnceLock::new(),
            tracks_readers: AtomicBool::new(false),
            last_of_every_key: AtomicU64::new(0),
            transaction: AtomicU8::new(NONE),
            cut: AtomicU64::new(0),
        }
    }

    /// Whether writes leave entries. It changes at a safepoint only.
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    /// Words that these effects take, as one reservation.
    pub fn words<'a>(&self, effects: impl IntoIterator<Item = Effect<'a>>) -> u64 {
        effects.into_iter().map(|effect| effect.words(&self.ring)).sum()
    }

    /// The most that one reservation may take: what needs more runs alone, entry by entry.
    pub fn reservation_limit(&self) -> u64 {
        self.ring.capacity() / 4
    }

    /// Reserves `words`. `None`: there is no room, or writes are held.
    pub fn reserve(&self, words: u64, time_ms: u64) -> Option<Entry<'_>> {
        if !self.takes_more() {
            return None;
        }
        let wanted = self.transaction.load(Ordering::Relaxed) == WANTED;
        let begin = if wanted { Effect::Begin.words(&self.ring) } else { 0 };
        let reserved = self.ring.reserve(words + begin)?;
        let mut entry = Entry { redo: self, reserved };
        if wanted {
            entry.split(Effect::Begin).fill(Effect::Begin, 0, time_ms);
            self.transaction.store(BEGUN, Ordering::Relaxed);
        }
        Some(entry)
    }

    /// Somebody runs alone from now on, up to [`end_transaction`]; `several` entries are to be one
    /// transaction. Whether it was not so already.
    pub fn run_alone(&self, several: bool) -> bool {
        let none = self.transaction.load(Ordering::Relaxed) == NONE;
        if none {
            self.transaction.store(if several { WANTED } else { ALONE }, Ordering::Relaxed);
        }
        none
    }

    /// Whether writes must wait for the reader's disk.
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::SeqCst)
    }

    /// Makes writes wait, or lets them go on.
    pub fn hold(&self, held: bool) {
        self.held.store(held, Ordering::SeqCst);
        if !held {
            self.call_waiters();
        }
    }

    /// Whether a reservation would be granted now.
    pub fn has_room(&self, words: u64) -> bool {
        self.takes_more() && self.ring.has_room(words)
    }

    /// Whether writes are not held, and no more bytes lie aside than the ring has. Whoever runs alone
    /// was let in before ([`crate::Inside::may_write`]): the end of a transaction that waited for the
    /// disk, which waits for that end, would wait for ever, and so would all those outside the gate.
    fn takes_more(&self) -> bool {
        let admitted = || {
            self.transaction.load(Ordering::Relaxed) != NONE && !mutant!("redo_holds_who_is_alone")
        };
        (!self.is_held() || admitted())
            && self.aside_bytes.load(Ordering::Relaxed) <= self.ring.capacity() * 8
    }

    /// Notes that an entry concerns this key. Under the key's latch, before the change shows.
    pub fn note(&self, hash: KeyHash, entry: &Entry<'_>) {
        if self.tracks_readers.load(Ordering::Relaxed)
            && let Some(stripes) = self.stripes.get()
            && !mutant!("redo_note_forgotten")
        {
            // Release comes with the change itself, which is published after this.
            stripes[stripe(hash)].fetch_max(entry.reserved.end(), Ordering::Relaxed);
        }
    }

    /// Up to where the log must be durable before anybody is told what this key held, if readers
    /// wait at all. After the key was read.
    pub fn last_of(&self, hash: KeyHash) -> u64 {
        if !self.tracks_readers.load(Ordering::Relaxed) {
            return 0;
        }
        let every = self.last_of_every_key.load(Ordering::Relaxed);
        let of_stripe = |stripes: &[AtomicU64]| stripes[stripe(hash)].load(Ordering::Relaxed);
        self.stripes.get().map_or(0, |stripes| of_stripe(stripes).max(every))
    }

    /// The same for what many keys held together (DBSIZE, SCAN).
    pub fn last_of_all(&self) -> u64 {
        if self.tracks_readers.load(Ordering::Relaxed) { self.ring.tail() } else { 0 }
    }

    /// Arranges that the operation is called again when `words` may be had.
    pub fn wait_for_room(&self, words: u64, token: Token, ready: &Arc<ReadyQueue>) {
        self.parked.fetch_add(1, Ordering::Relaxed);
        {
            let mut waiters = self.waiters.locked();
            waiters.push((token, Arc::clone(ready)));
            // Set before the second look, under the lock that the reader takes after it has made
            // room: one of the two sees the other.
            self.waiting.store(true, Ordering::SeqCst);
            if self.has_room(words) {
                self.waiting.store(false, Ordering::SeqCst);
                let all = std::mem::take(&mut *waiters);
                drop(waiters);
                return all.iter().for_each(|(token, ready)| ready.push(*token));
            }
        }
        self.ring_bell();
    }

    fn call_waiters(&self) {
        // SeqCst: pairs with the store in `wait_for_room`.
        fence(Ordering::SeqCst);
        if !self.waiting.load(Ordering::SeqCst) {
            return;
        }
        let all = {
            let mut waiters = self.waiters.locked();
            self.waiting.store(false, Ordering::SeqCst);
            std::mem::take(&mut *waiters)
        };
        all.iter().for_each(|(token, ready)| ready.push(*token));
    }

    /// Wakes the reader if it sleeps. After a batch that wrote.
    pub fn ring_bell(&self) {
        // SeqCst: pairs with the fence in `RedoReader::sleep`: either the reader sees the entry or
        // this sees that it sleeps.
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed)
            && self.sleeping.swap(false, Ordering::AcqRel)
            && let Some(reader) = &*self.reader.locked()
        {
            reader.unpark();
        }
    }

    /// Ends the reader's lingering. Whoever comes too late for it costs some time, no more.
    pub fn has_written(&self) {
        if self.lingering.load(Ordering::Relaxed)
            && self.lingering.swap(false, Ordering::AcqRel)
            && let Some(reader) = &*self.reader.locked()
        {
            reader.unpark();
        }
    }

    /// Wakes the reader whether it sleeps or is about to: what it is to look at is no entry.
    pub fn wake(&self) {
        if let Some(reader) = &*self.reader.locked() {
            reader.unpark();
        }
    }

    /// How often an operation waited for room in the redo log.
    pub fn parked(&self) -> u64 {
        self.parked.load(Ordering::Relaxed)
    }
    pub fn tail(&self) -> u64 {
        self.ring.tail()
    }
    pub fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }
}

/// Places for the effects of one command, one behind the other. With more than one effect, `Begin`
/// and `End` stand around them, unless they are part of a transaction.
pub(crate) struct Group<'r> {
    rest: Option<Entry<'r>>,
    /// Effects to come.
    left: usize,
    has_end: bool,
}

impl<'r> Group<'r> {
    /// One reservation for all of them, and `Begin` is filled. `Err`: words that there is no room
    /// for.
    pub fn reserve<'a>(
        redo: &'r Redo,
        effects: impl ExactSizeIterator<Item = Effect<'a>>,
        time_ms: u64,
    ) -> Result<Self, u64> {
        let left = effects.len();
        let several = left > 1 && redo.transaction.load(Ordering::Relaxed) == NONE;
        let around = if several { redo.words([Effect::Begin, Effect::End]) } else { 0 };
        let words = redo.words(effects) + around;
        if words > redo.reservation_limit() && left > 1 {
            return Err(words);
        }
        let mut rest = redo.reserve(words, time_ms).ok_or(words)?;
        if several {
            rest.split(Effect::Begin).fill(Effect::Begin, 0, time_ms);
        }
        Ok(Self { rest: Some(rest), left, has_end: several })
    }

    /// Notes that the command changes this key.
    pub fn note(&self, hash: KeyHash) {
        if let Some(rest) = &self.rest
            && !mutant!("redo_group_note_forgotten")
        {
            rest.redo.note(hash, rest);
        }
    }

    /// The next effect's place.
    pub fn next(&mut self, effect: Effect<'_>) -> Entry<'r> {
        self.left -= 1;
        if self.left > 0 || self.has_end {
            return self.rest.as_mut().expect("more is to come").split(effect);
        }
        self.rest.take().expect("the last effect takes what is left")
    }

    /// All effects have taken place. Returns where the entries end.
    pub fn finish(self, time_ms: u64) -> u64 {
        let Some(rest) = self.rest else { return 0 };
        let end = rest.end();
        rest.fill(Effect::End, 0, time_ms);
        end
    }
}

impl<'r> Entry<'r> {
    /// Where it ends.
    pub fn end(&self) -> u64 {
        self.reserved.end()
    }

    /// The place of `effect`, taken off the front of a reservation for several.
    fn split(&mut self, effect: Effect<'_>) -> Entry<'r> {
        let words = effect.words(&self.redo.ring);
        Self { redo: self.redo, reserved: self.reserved.split(words) }
    }

    /// Fills it in: the effect has taken place.
    pub fn fill(self, effect: Effect<'_>, slot: u8, time_ms: u64) {
        let aside = effect.lies_aside(&self.redo.ring);
        if aside {
            let bytes = effect.aside();
            self.redo.aside_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            self.redo.aside.locked().insert(self.reserved.position, bytes);
        }
        if mutant!("redo_entry_lost") {
            return;
        }
        effect.fill(self.reserved, slot, time_ms, aside);
    }
}

fn stripe(hash: KeyHash) -> usize {
    // The top bits: those below choose bucket and tag.
    (hash.raw() >> 48) as usize & (STRIPES - 1)
}

/// The one reader of a store's redo log: see [`Store::redo`](crate::Store::redo).
///
/// It takes entries in order with [`RedoReader::next`], gives their room back with
/// [`RedoReader::release`], and tells with [`RedoReader::durable`] how far they are safe.
pub struct RedoReader {
    inner: Arc<Inner>,
    /// The end of the last entry that was taken.
    at: u64,
    bytes: Vec<u8>,
    /// Slot to database.
    databases: Vec<u8>,
}

impl RedoReader {
    /// From now on writes leave entries. At a safepoint, once.
    pub(crate) fn begin(inner: Arc<Inner>) -> Self {
        let redo = inner.redo.as_ref().expect("the caller has looked");
        *redo.reader.locked() = Some(thread::current());
        let mut databases = vec![0; 256];
        for (database, slot) in (0..).zip(&inner.tables().1.map) {
            databases[usize::from(*slot)] = database;
        }
        let at = redo.ring.tail();
        redo.durable.store(at, Ordering::Release);
        redo.active.store(true, Ordering::Release);
        inner.run_clock();
        Self { inner, at, bytes: Vec::new(), databases }
    }

    fn redo(&self) -> &Redo {
        self.inner.redo.as_ref().expect("there was one when the reader began")
    }

    /// To be called on the thread that reads, before it sleeps for the first time.
    pub fn move_here(&self) {
        *self.redo().reader.locked() = Some(thread::current());
    }

    /// The next entry, if it is there.
    #[expect(clippy::should_implement_trait, reason = "the entry borrows the reader")]
    pub fn next(&mut self) -> Option<RedoEntry<'_>> {
        let redo = self.inner.redo.as_ref()?;
        let (position, header) = loop {
            let header = redo.ring.header(self.at)?;
            if header.kind() != Header::PAD {
                break (self.at, header);
            }
            redo.ring.clear(self.at, header.words());
            self.at += header.words();
        };
        let raw = Raw::read(&redo.ring, position, header, &mut self.bytes);
        if raw.lies_aside {
            let bytes = redo.aside.locked().remove(&position);
            let bytes = bytes.expect("kept before the entry was filled");
            redo.aside_bytes.fetch_sub(bytes.len() as u64, Ordering::Relaxed);
            self.bytes = bytes.into_vec();
        }
        redo.ring.clear(position, header.words());
        self.at = position + header.words();
        let database = self.databases[usize::from(raw.slot)];
        let mut effect = raw.effect(&self.bytes);
        if let RedoEffect::Swap { with } = &mut effect {
            let (a, b) = (usize::from(raw.slot), usize::from(*with));
            *with = self.databases[b];
            self.databases.swap(a, b);
        }
        Some(RedoEntry { position: self.at, time_ms: raw.time_ms, database, effect })
    }

    /// Up to where everything was taken. It may lie behind the last entry's position: places that were
    /// reserved and not used are taken without a word.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Gives the room of all entries that were taken back to the writers.
    pub fn release(&self) {
        self.redo().ring.release(self.at);
        self.redo().call_waiters();
    }

    /// Everything up to this entry's position is on the disk. Calls the sessions back, if any reply
    /// may wait for it.
    pub fn durable(&self, position: u64) {
        self.redo().durable.fetch_max(position, Ordering::AcqRel);
        if self.redo().tracks_readers.load(Ordering::Relaxed) {
            // Before they are called back: who then writes all that it can ends the lingering that
            // follows, however late that begins.
            self.redo().lingering.store(true, Ordering::Release);
            self.inner.notify_sessions();
        }
    }

    /// Waits for more to come, after [`RedoReader::durable`] or when the first entry has: until somebody
    /// has written all that it can for now ([`crate::Store::redo_has_written`]), or the time has passed.
    /// What is made durable together costs its writers less.
    pub fn linger(&self, at_most: Duration) {
        assert_unpinned();
        let redo = self.redo();
        if redo.lingering.load(Ordering::Acquire) {
            thread::park_timeout(at_most);
            redo.lingering.store(false, Ordering::Relaxed);
        }
    }

    /// What comes after this mark goes where a start finds it that begins with the mark's checkpoint,
    /// or it could not be made to. The checkpoint waits for this call: once it is complete, what
    /// follows it is found, or writes are refused ([`RedoReader::refuse`]).
    pub fn cut_done(&self, mark: u64) {
        self.redo().cut.store(mark, Ordering::Release);
    }

    /// The log cannot be written: writes are refused with the reason. `None` takes them again.
    pub fn refuse(&self, reason: Option<String>) {
        self.inner.log.health.redo(reason);
        self.redo().call_waiters();
        self.inner.notify_sessions();
    }

    /// Waits until something comes, [`crate::Store::wake_redo`] is called, or the time has passed.
    /// Afterwards it may [`RedoReader::linger`].
    pub fn sleep(&self, at_most: Duration) {
        assert_unpinned();
        let redo = self.redo();
        redo.sleeping.store(true, Ordering::Relaxed);
        // SeqCst: pairs with the fence in `ring_bell`.
        fence(Ordering::SeqCst);
        let waits = redo.waiting.load(Ordering::SeqCst) && redo.ring.tail() > self.at;
        if redo.ring.header(self.at).is_none() && !waits {
            redo.lingering.store(true, Ordering::Relaxed);
            thread::park_timeout(at_most);
        }
        redo.sleeping.store(false, Ordering::Relaxed);
    }

    /// Words that wait to be read, and words that fit.
    pub fn backlog(&self) -> (u64, u64) {
        (self.redo().ring.tail() - self.at, self.redo().ring.capacity())
    }
}

impl Drop for RedoReader {
    /// Writes no longer leave entries that nobody would take.
    fn drop(&mut self) {
        self.redo().active.store(false, Ordering::Release);
        self.redo().hold(false);
    }
}

/// Makes readers learn which entries they depend on ([`crate::Inside::depends_on`]), or no more.
/// Blocks shortly.
pub(crate) fn track_readers(inner: &Inner, redo: &Redo, tracked: bool) {
    if tracked {
        redo.stripes.get_or_init(|| (0..STRIPES).map(|_| AtomicU64::new(0)).collect());
    }
    // At a safepoint: no write is under way that has looked already.
    let closed = inner.gate.close(&inner.log.epoch);
    redo.tracks_readers.store(tracked, Ordering::Relaxed);
    if tracked && let Some(stripes) = redo.stripes.get() {
        // Who wrote what came before is not known: all of it must be durable.
        let tail = redo.ring.tail();
        stripes.iter().for_each(|stripe| stripe.store(tail, Ordering::Relaxed));
    }
    drop(closed);
}

/// Whoever runs alone is done, and its transaction over. It waits for the room that takes.
pub(crate) fn end_transaction(inner: &Inner) {
    let Some(redo) = &inner.redo else { return };
    if redo.transaction.load(Ordering::Relaxed) == BEGUN {
        append_waiting(inner, Effect::End, 0);
    }
    redo.transaction.store(NONE, Ordering::Relaxed);
}

/// An effect on a whole database or the log, at a safepoint. The caller waits with the gate open when
/// there is no room.
pub(crate) fn append_at_safepoint(inner: &Inner, effect: Effect<'_>, slot: u8) -> Result<u64, u64> {
    let Some(redo) = inner.redo.as_ref().filter(|redo| redo.is_active()) else { return Ok(0) };
    let words = effect.words(&redo.ring);
    let now_ms = inner.now_ms();
    let entry = redo.reserve(words, now_ms).ok_or(words)?;
    let end = entry.end();
    if matches!(effect, Effect::Flush | Effect::FlushAll | Effect::Swap { .. }) {
        // At a safepoint, before anybody sees the databases changed.
        redo.last_of_every_key.fetch_max(end, Ordering::Relaxed);
    }
    entry.fill(effect, slot, now_ms);
    redo.ring_bell();
    Ok(end)
}

/// The same, and waits where it stands: the reader needs no gate.
pub(crate) fn append_waiting(inner: &Inner, effect: Effect<'_>, slot: u8) -> u64 {
    loop {
        match append_at_safepoint(inner, effect, slot) {
            Ok(end) => return end,
            Err(words) => wait_while_full(inner, words),
        }
    }
}

/// Waits until the reader has dealt with a checkpoint's mark, if there is a reader.
pub(crate) fn wait_until_cut(inner: &Inner, mark: u64) {
    let Some(redo) = &inner.redo else { return };
    while redo.is_active()
        && redo.cut.load(Ordering::Acquire) < mark
        && !mutant!("checkpoint_without_its_part")
    {
        redo.ring_bell();
        thread::sleep(Duration::from_micros(200));
    }
}

/// Waits on the calling thread, which is not pinned, until `words` may be had. However long: room
/// comes, since the reader takes entries even while it can write none, and half a transaction must
/// not be the end of it.
pub(crate) fn wait_while_full(inner: &Inner, words: u64) {
    assert_unpinned();
    let Some(redo) = &inner.redo else { return };
    let thread = thread::current();
    let ready = Arc::new(ReadyQueue::new(Box::new(move || thread.unpark())));
    while redo.is_active() && !redo.has_room(words) {
        redo.wait_for_room(words, 0, &ready);
        thread::park_timeout(Duration::from_millis(20));
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
