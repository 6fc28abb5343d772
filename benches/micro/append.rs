//! How long it takes until a group of commands is on disk at a file's end: what the append-only file does under
//! `always`.
//!
//! 4 KiB more each time, then `fdatasync`: as two system calls, or as two linked requests of one io_uring
//! that are submitted and waited for in one call. Into a file that grows, as the append-only file does, and
//! into one whose blocks are there and written. The figure is the wall time of one append with its sync;
//! processor time is printed behind it.
//!
//! `cargo bench -p ferrite-benches --bench append`; the files lie in `TMPDIR`.

use criterion::Criterion;
use io_uring::{IoUring, opcode, squeue::Flags, types};
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

const GROUP: usize = 4096;
/// A file is begun anew when it is as long as this.
const LENGTH: u64 = 64 << 20;

/// The two ways.
enum Form {
    Calls,
    Ring(Box<IoUring>),
}

struct Appender {
    form: Form,
    file: File,
    at: u64,
    is_written: bool,
    bytes: Vec<u8>,
}

impl Appender {
    fn new(form: Form, is_written: bool) -> Self {
        let file = tempfile::tempfile().expect("a file");
        let mut appender = Self { form, file, at: 0, is_written, bytes: vec![b'.'; GROUP] };
        appender.begin();
        appender
    }

    fn begin(&mut self) {
        self.at = 0;
        self.file.set_len(0).expect("emptied");
        if self.is_written {
            let zeros = vec![0; 1 << 20];
            for at in (0..LENGTH).step_by(zeros.len()) {
                self.file.write_all_at(&zeros, at).expect("written");
            }
        }
        self.file.sync_all().expect("synced");
    }

    fn append(&mut self) {
        match &mut self.form {
            Form::Calls => {
                self.file.write_all_at(&self.bytes, self.at).expect("written");
                self.file.sync_data().expect("synced");
            }
            Form::Ring(ring) => {
                let file = types::Fd(self.file.as_raw_fd());
                let write = opcode::Write::new(file, self.bytes.as_ptr(), GROUP as u32)
                    .offset(self.at)
                    .build()
                    .flags(Flags::IO_LINK);
                let sync = opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build();
                // SAFETY: the bytes are this appender's and stay as they are until both requests are done,
                // which is before this function returns.
                unsafe { ring.submission().push_multiple(&[write, sync]) }.expect("room");
                ring.submit_and_wait(2).expect("done");
                let results: Vec<i32> = ring.completion().map(|done| done.result()).collect();
                assert_eq!(results, [GROUP as i32, 0]);
            }
        }
        self.at += GROUP as u64;
    }

    fn run(&mut self, count: u64) -> Duration {
        let mut time = Duration::ZERO;
        for _ in 0..count {
            if self.at == LENGTH {
                self.begin();
            }
            let start = Instant::now();
            self.append();
            time += start.elapsed();
        }
        time
    }
}

fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .measurement_time(Duration::from_secs(8))
        .configure_from_args();
    let mut group = criterion.benchmark_group("append 4 KiB and sync");
    for is_written in [false, true] {
        for ring in [false, true] {
            let form = match ring {
                false => Form::Calls,
                true => Form::Ring(Box::new(IoUring::new(8).expect("an io_uring"))),
            };
            let name = format!(
                "{}, {}",
                if ring { "io_uring" } else { "calls" },
                if is_written { "written before" } else { "growing" }
            );
            let mut appender = Appender::new(form, is_written);
            let (mut count, before) = (0, processor_time());
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|n| {
                    count += n;
                    appender.run(n)
                });
            });
            let time = processor_time() - before;
            println!(
                "    processor time: {:.1} us an append",
                time.as_secs_f64() * 1e6 / count as f64
            );
        }
    }
    group.finish();
}
