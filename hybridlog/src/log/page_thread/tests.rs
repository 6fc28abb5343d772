//! The page thread's rules, on a thread that goes round by hand.

use super::*;
use crate::config::Config;
use crate::device::fault::FaultDevice;
use crate::log::Origin;
use crate::record::Draft;
use ferrite_index::{Address, Epoch, Participant};

const PAGE: u64 = 4096;

/// A log in an empty device, and the thread that would serve it.
struct ByHand {
    log: Arc<Log>,
    thread: PageThread,
    device: Arc<FaultDevice>,
    participant: Participant,
}

impl ByHand {
    /// Memory of four pages, half of them mutable, and segments of four; `free` bytes of disk.
    fn new(free: u64) -> Self {
        let mut config = Config::new("simulated");
        (config.page_size, config.segment_size) = (PAGE, 4 * PAGE);
        (config.mutable_size, config.readonly_size) = (2 * PAGE, 2 * PAGE);
        let geometry = config.parse().expect("it can work");
        let device = FaultDevice::new();
        device.set_free_space(free);
        let epoch = Arc::new(Epoch::new(4));
        let participant = epoch.register("test").expect("there is room");
        let start = geometry.segment_words;
        let origin = Origin { begin: start, start, extents: Vec::new() };
        let log = Log::new(geometry, origin, device.clone(), epoch, 0).expect("there is memory");
        let thread = PageThread::new(Arc::clone(&log), Arc::default());
        Self { log, thread, device, participant }
    }

    /// Appends a record of about a quarter of a page, if there is room.
    fn append(&self) -> bool {
        let draft = Draft {
            slot: 0,
            key: b"key",
            value: &[1; 900],
            expires_at_ms: None,
            encoding: 0,
            tombstone: false,
            capacity: None,
        };
        let mut credit = 2 * draft.words();
        if !self.log.tail.grant(credit) {
            return false;
        }
        let pin = self.participant.pin();
        let place = self.log.append(&pin, &draft, Address::INVALID, &mut credit);
        place.expect("twice the record is enough");
        drop(pin);
        self.log.tail.give_back(credit);
        true
    }

    /// The page after `pages` others of this run.
    fn page(&self, pages: u64) -> u64 {
        self.log.start + pages * PAGE / 8
    }

    fn look_at_space(&mut self, free: u64) -> Option<String> {
        self.device.set_free_space(free);
        self.thread.space_checked -= SPACE_INTERVAL;
        self.thread.look_at_space();
        self.log.health.refusal()
    }
}

/// The frame would be given to a page that follows, whose words the helper then gives back to the
/// kernel.
#[test]
fn head_does_not_pass_a_page_whose_frame_is_being_given_back() {
    let mut by_hand = ByHand::new(1 << 30);
    while by_hand.log.tail.load() < by_hand.page(2) {
        assert!(by_hand.append());
    }
    // Nobody needs its frame yet, so it is mapped; what has settled is reported in a later round.
    while by_hand.thread.window.holds().is_none() {
        by_hand.thread.round();
        std::thread::sleep(Duration::from_micros(100));
    }
    assert_eq!(by_hand.thread.window.holds(), Some(by_hand.page(0)));
    while by_hand.append() {}
    assert!(by_hand.thread.head_wanted() >= by_hand.page(1), "a frame is needed");
    assert!(by_hand.log.boundaries.flushed_until() >= by_hand.page(1), "the page could leave");
    by_hand.thread.announce_head();
    assert_eq!(by_hand.log.boundaries.head(), by_hand.page(0));
    // Once its frame was given back it leaves.
    while by_hand.log.boundaries.safe_head() < by_hand.page(1) {
        by_hand.thread.round();
    }
    assert!(by_hand.append());
}

/// Checkpoint and compaction must find room on a disk that is full to everybody else.
#[test]
fn writes_are_refused_while_the_disk_holds_its_reserve_still() {
    // Two segments, or an eighth of what was free.
    for (free, reserve) in [(1 << 30, 2 * 4 * PAGE), (80_000, 10_000)] {
        let mut by_hand = ByHand::new(free);
        assert!(by_hand.append());
        let unflushed = (by_hand.log.tail.load() - by_hand.log.boundaries.flushed_until()) * 8;
        assert_eq!(by_hand.look_at_space(unflushed + reserve), None);
        let refusal = by_hand.look_at_space(unflushed + reserve - 1).expect("it is too little");
        assert!(refusal.contains(&format!("{} are needed", unflushed + reserve)), "{refusal}");
        assert_eq!(by_hand.look_at_space(unflushed + reserve), None, "it heals");
    }
}
