//! How long one 4 KiB random read of a segment takes, by form of I/O and number in flight.
//!
//! 1 GiB in four segments, written and synced first; reads go past the page cache where the file
//! system allows, and the run says so where it does not. One thread submits and takes the
//! completions, as a session does. The figure is the wall time divided by the reads.
//!
//! `cargo bench -p ferrite-benches --bench device`; the files lie in `TMPDIR`.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use ferrite_benches::keys::Random;
use ferrite_hybridlog::IoChoice;
use ferrite_hybridlog::device::{self, ALIGNMENT, Buffer, Bytes, Device, FileId, Request};

const SEGMENTS: u64 = 4;
const SEGMENT_SIZE: u64 = 256 << 20;
const BLOCK: u64 = ALIGNMENT as u64;
const SEED: u64 = 0x5eed;

/// Writes the data set, in megabytes that no file system can compress or share.
fn fill(directory: &Path) {
    let device = device::open(directory, "ferrite", IoChoice::Posix).expect("a device").device;
    let mut random = Random::new(SEED);
    let (sender, receiver) = mpsc::channel();
    for segment in 0..SEGMENTS {
        let file = FileId::Segment(segment);
        device.create(file, SEGMENT_SIZE).expect("a segment");
        for offset in (0..SEGMENT_SIZE).step_by(1 << 20) {
            let bytes: Vec<u8> = (0..1 << 17).flat_map(|_| random.bits().to_le_bytes()).collect();
            let sender = sender.clone();
            let done = Box::new(move |result| sender.send(result).expect("the bench waits"));
            device.submit(Request::Write { file, offset, bytes: Bytes::new(bytes), done });
            receiver.recv().expect("a completion").expect("a write");
        }
        let sender = sender.clone();
        let done = Box::new(move |result| sender.send(result).expect("the bench waits"));
        device.submit(Request::Sync { file, done });
        receiver.recv().expect("a completion").expect("a sync");
    }
}

/// Reads with a constant number in flight.
struct Reader {
    device: Arc<dyn Device>,
    random: Random,
    sender: Sender<Buffer>,
    receiver: Receiver<Buffer>,
}

impl Reader {
    fn new(device: Arc<dyn Device>) -> Self {
        let (sender, receiver) = mpsc::channel();
        Self { device, random: Random::new(SEED), sender, receiver }
    }

    fn submit(&mut self, buffer: Buffer) {
        let block = self.random.bits() % (SEGMENTS * SEGMENT_SIZE / BLOCK);
        let offset = block * BLOCK;
        let sender = self.sender.clone();
        self.device.submit(Request::Read {
            file: FileId::Segment(offset / SEGMENT_SIZE),
            offset: offset % SEGMENT_SIZE,
            buffer,
            done: Box::new(move |result| {
                sender.send(result.expect("a read")).expect("the bench waits");
            }),
        });
    }

    /// The time for `count` reads, of which up to `depth` are in flight.
    fn read(&mut self, count: u64, depth: u64) -> Duration {
        let start = Instant::now();
        let first = count.min(depth);
        for _ in 0..first {
            self.submit(Buffer::zeroed(ALIGNMENT));
        }
        for _ in first..count {
            let buffer = black_box(self.receiver.recv().expect("a completion"));
            self.submit(buffer);
        }
        for _ in 0..first {
            black_box(self.receiver.recv().expect("a completion"));
        }
        start.elapsed()
    }
}

fn main() {
    let directory = tempfile::tempdir().expect("a directory for the data set");
    fill(directory.path());
    let mut criterion = Criterion::default()
        .sample_size(30)
        .measurement_time(Duration::from_secs(10))
        .configure_from_args();
    let mut group = criterion.benchmark_group("device_read_4k");
    group.throughput(Throughput::Elements(1));
    for io in [IoChoice::Posix, IoChoice::IoUring] {
        let device = match device::open(directory.path(), "ferrite", io) {
            Ok(opened) => opened.device,
            Err(error) => {
                eprintln!("{io:?} is left out: {error}");
                continue;
            }
        };
        if let Err(why) = device.direct_reads() {
            eprintln!("reads may come from the page cache: {why}");
        }
        let mut reader = Reader::new(Arc::clone(&device));
        for depth in [1, 32] {
            let name = BenchmarkId::new(device.io_kind(), depth);
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|count| reader.read(count, depth));
            });
        }
    }
    group.finish();
    criterion.final_summary();
}
