//! The boundaries of the log: their order, and that each only ever moves up.
//!
//! ```text
//!   begin <= safe_head <= head <= flushed_until <= safe_read_only <= read_only <= tail
//! ```
//!
//! Addresses are in words of 8 bytes. A boundary is first *announced* (`head`, `read_only`) and
//! is *safe* one grace period later, when every thread that could have seen the old value has
//! left. All but `begin` are moved by the page thread alone (`read_only` also by a checkpoint: in
//! steps while sessions are inside, then at its cut); `tail` lives in [`super::tail::Tail`].
//!
//! * At or above `read_only`: values may change in place.
//! * Below `safe_read_only`: nothing changes any more; it may be written to the device.
//! * Below `flushed_until`: written and checksummed.
//! * Below `head`: read from the device. Below `safe_head`: the frame may be used again.
//! * Where a page at or above `head` lies, in a frame or in a mapped file, is the page table's to
//!   say ([`super::page_table`]).

use crate::sync::{AtomicU64, Ordering, mutant, ordering};
use ferrite_index::Epoch;

#[derive(Debug)]
pub(crate) struct Boundaries {
    begin: AtomicU64,
    safe_head: AtomicU64,
    head: AtomicU64,
    flushed_until: AtomicU64,
    safe_read_only: AtomicU64,
    read_only: AtomicU64,
}

impl Boundaries {
    /// A log whose tail is at `start`; what lies below it, if anything, is on the device from
    /// `begin` on, and from `head` on may be in memory too.
    pub fn new(begin: u64, head: u64, start: u64) -> Self {
        assert!(begin <= head && head <= start);
        Self {
            begin: AtomicU64::new(begin),
            safe_head: AtomicU64::new(head),
            head: AtomicU64::new(head),
            flushed_until: AtomicU64::new(start),
            safe_read_only: AtomicU64::new(start),
            read_only: AtomicU64::new(start),
        }
    }

    pub fn begin(&self) -> u64 {
        self.begin.load(Ordering::Acquire)
    }
    pub fn safe_head(&self) -> u64 {
        self.safe_head.load(Ordering::Acquire)
    }
    pub fn head(&self) -> u64 {
        // Acquire: pairs with the release in `raise`; loaded after a pin, so that a thread that
        // sees an old value is one that the grace period waits for.
        self.head.load(Ordering::Acquire)
    }
    pub fn flushed_until(&self) -> u64 {
        self.flushed_until.load(Ordering::Acquire)
    }
    pub fn safe_read_only(&self) -> u64 {
        self.safe_read_only.load(ordering!(Acquire, "boundary_acquire"))
    }
    pub fn read_only(&self) -> u64 {
        self.read_only.load(Ordering::Acquire)
    }

    /// Gives up the log below `to`. A durable checkpoint does not need it.
    pub fn truncate(&self, to: u64) {
        assert!(to <= self.safe_head());
        self.begin.fetch_max(to, Ordering::AcqRel);
    }
    /// Announces that the log below `to` is immutable.
    pub fn announce_read_only(&self, to: u64) {
        self.read_only.fetch_max(to, Ordering::AcqRel);
    }
    /// Begins the grace period after which what is announced will be safe; `None` when it is.
    pub fn begin_read_only(&self, epoch: &Epoch) -> Option<Announced> {
        let to = self.read_only();
        (to > self.safe_read_only()).then(|| Announced { epoch: epoch.bump(), to })
    }
    /// Whether its grace period has passed; what was announced is safe then.
    pub fn settle_read_only(&self, epoch: &Epoch, announced: &Announced) -> bool {
        let passed = epoch.is_safe(announced.epoch) || mutant!("read_only_without_grace");
        if passed {
            assert!(announced.to <= self.read_only());
            raise(&self.safe_read_only, announced.to);
        }
        passed
    }
    /// The prefix below `to` is written.
    pub fn flushed(&self, to: u64) {
        assert!(to <= self.safe_read_only());
        raise(&self.flushed_until, to);
    }
    /// Announces that the log below `to` is read from the device, and begins the grace period.
    pub fn begin_head(&self, epoch: &Epoch, to: u64) -> Announced {
        assert!(to <= self.flushed_until());
        if mutant!("head_after_its_grace_began") {
            let announced = Announced { epoch: epoch.bump(), to };
            raise(&self.head, to);
            return announced;
        }
        raise(&self.head, to);
        Announced { epoch: epoch.bump(), to }
    }
    /// Whether its grace period has passed; frames below it may be used again then.
    pub fn settle_head(&self, epoch: &Epoch, announced: &Announced) -> bool {
        let passed = epoch.is_safe(announced.epoch) || mutant!("head_without_grace");
        if passed {
            assert!(announced.to <= self.head());
            raise(&self.safe_head, announced.to);
        }
        passed
    }
}

/// A boundary that was announced, and the epoch that began after it was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Announced {
    epoch: u64,
    pub to: u64,
}

fn raise(boundary: &AtomicU64, to: u64) {
    // Only one thread raises it, so a load and a store do.
    assert!(boundary.load(Ordering::Relaxed) <= to, "a boundary moved down");
    boundary.store(to, ordering!(Release, "boundary_release"));
}
