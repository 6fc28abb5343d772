//! What it costs a writer that the log's tail crosses a page's border: the PAD, and waking the page
//! thread, which readies the next frames.
//!
//! One session overwrites one key with an 8-byte value whose encoding changes each time, so that each
//! overwrite is a copy to the tail of 48 bytes. Memory has room for all of them (when it is full, a new
//! store is opened while the clock stands still), so nothing is flushed. Larger pages turn less often,
//! and everything else stays the same: the difference, times the records of a page, is the turn.
//!
//! The reservation of a record's place at the tail is measured alone too, in its production file,
//! compiled into this program: the tail is private to the store.

use crate::production_tail::Tail;
use crate::{Rows, repeated};
use ferrite_hybridlog::{Change, Config, Database, Operation, Session, Store};
use std::hint::black_box;
use std::time::{Duration, Instant};

const RECORD_BYTES: u64 = 48;
const MEMORY: u64 = 512 << 20;
/// How many records fit with the frames untouched that the page thread keeps ahead of the tail.
const RECORDS: u64 = MEMORY / 8 * 7 / RECORD_BYTES;
/// Overwrites in a stay inside.
const BATCH: u64 = 64;

pub(crate) fn run(rows: &mut Rows) {
    let words = RECORD_BYTES / 8;
    let tail = Tail::new(1 << 20, 1 << 47, 1 << 19);
    rows.row("tail: a ticket, and a record's place", |count| {
        let mut credit = 0;
        repeated(count, || {
            assert!(tail.grant(2 * words), "2^47 words suffice");
            credit += 2 * words;
            let place = tail.reserve(black_box(words), &mut credit);
            tail.give_back(std::mem::take(&mut credit));
            place
        })
    });
    let mut overwrites = |page_size: u64| {
        let mut log = Appending::new(page_size);
        rows.measure(&format!("a copy to the tail, pages of {} KiB", page_size >> 10), |count| {
            log.append(count)
        })
    };
    let (tiny, _, large) = (overwrites(4 << 10), overwrites(64 << 10), overwrites(4 << 20));
    if let (Some(tiny), Some(large)) = (tiny, large) {
        let turn = (tiny - large) * ((4 << 10) / RECORD_BYTES) as f64;
        rows.table.row([
            "page turn: from pages of 4 KiB and 4 MiB".to_owned(),
            format!("{turn:.1}"),
            "computed".to_owned(),
        ]);
    }
}

/// A store that takes so many records more before its memory is full.
struct Appending {
    page_size: u64,
    open: Option<Open>,
}

struct Open {
    session: Session,
    left: u64,
    store: Store,
    directory: tempfile::TempDir,
}

impl Appending {
    fn new(page_size: u64) -> Self {
        Self { page_size, open: None }
    }

    fn append(&mut self, mut count: u64) -> Duration {
        let mut time = Duration::ZERO;
        while count > 0 {
            let open = match &mut self.open {
                Some(open) if open.left > 0 => open,
                full => {
                    *full = None;
                    full.insert(Open::new(self.page_size))
                }
            };
            let now = count.min(open.left);
            time += open.append(now);
            count -= now;
        }
        time
    }
}

impl Open {
    fn new(page_size: u64) -> Self {
        let directory = tempfile::tempdir().expect("a directory for the store");
        let mut config = Config::new(directory.path());
        config.page_size = page_size;
        config.mutable_size = MEMORY;
        config.readonly_size = 0;
        let store = Store::open(config).expect("a fresh store opens");
        let mut open = Self { session: store.session(|| {}), left: RECORDS, store, directory };
        // The first record of a key is in another form.
        open.append(2);
        open
    }

    fn append(&mut self, count: u64) -> Duration {
        let mut operation = Operation::new(0);
        let start = Instant::now();
        for batch in (0..count).step_by(BATCH as usize) {
            let mut inside = self.session.enter();
            for n in batch..count.min(batch + BATCH) {
                let encoding = ((self.left - n) & 1) as u8;
                let put = Change::Put { value: &[1; 8], expires_at_ms: None, encoding };
                inside
                    .update(&mut operation, Database(0), b"12345678", |_, _| (put, ()))
                    .expect("there is room, and nobody else");
            }
        }
        self.left -= count;
        start.elapsed()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let stats = self.store.stats();
        assert_eq!(stats.device_write_bytes, 0, "{:?} was written to", self.directory.path());
    }
}
