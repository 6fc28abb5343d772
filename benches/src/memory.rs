//! Huge pages for a whole process: asked for, refused, counted.
//!
//! Ferrite advises the kernel that its index and its frames want huge pages (`MADV_HUGEPAGE`). Where
//! `/sys/kernel/mm/transparent_hugepage/enabled` is `madvise`, memory from malloc gets none unless
//! glibc advises it too, which its tunable `glibc.malloc.hugetlb=1` makes it do for all that it takes
//! from the kernel. glibc reads it once, so the process starts itself again with it set. What was
//! really granted stands in `/proc/self/smaps_rollup`.

use std::io;
use std::process::Command;

const TUNABLES: &str = "GLIBC_TUNABLES";
const ADVISE: &str = "glibc.malloc.hugetlb=1";

/// Makes malloc ask for huge pages, by running this program anew unless `GLIBC_TUNABLES` is set
/// already. Call it first in `main`: on success it does not return to who set nothing.
pub fn malloc_asks_for_huge_pages() {
    if std::env::var_os(TUNABLES).is_some() {
        return;
    }
    let error = match std::env::current_exe() {
        Ok(program) => run_instead(
            Command::new(program).args(std::env::args_os().skip(1)).env(TUNABLES, ADVISE),
        ),
        Err(error) => error,
    };
    eprintln!("memory from malloc stays on small pages: {error}");
}

#[cfg(unix)]
fn run_instead(command: &mut Command) -> io::Error {
    std::os::unix::process::CommandExt::exec(command)
}

#[cfg(not(unix))]
fn run_instead(_: &mut Command) -> io::Error {
    io::ErrorKind::Unsupported.into()
}

/// Lets the kernel give this process no huge page from now on, whoever asks for one. Those that it
/// has stay.
///
/// # Errors
/// What the kernel says.
pub fn refuse_huge_pages() -> io::Result<()> {
    Ok(rustix::thread::disable_transparent_huge_pages(true)?)
}

/// Anonymous memory of this process that is resident, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Resident {
    /// On pages of any size.
    pub bytes: u64,
    /// On huge pages.
    pub huge_bytes: u64,
}

impl Resident {
    /// As the kernel counts it now.
    ///
    /// # Errors
    /// Where there is no `/proc/self/smaps_rollup`.
    pub fn now() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read_to_string("/proc/self/smaps_rollup")?))
    }

    /// What came since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(earlier.bytes),
            huge_bytes: self.huge_bytes.saturating_sub(earlier.huge_bytes),
        }
    }

    fn parse(rollup: &str) -> Self {
        let field = |name: &str| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            kib.unwrap_or(0) << 10
        };
        Self { bytes: field("Anonymous:"), huge_bytes: field("AnonHugePages:") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_report_is_read() {
        let rollup = "55d0-7ffd ---p 00000000 00:00 0 [rollup]\nRss:            9000 kB\n\
                      Anonymous:          8192 kB\nAnonHugePages:      4096 kB\n";
        let seen = Resident::parse(rollup);
        assert_eq!(seen, Resident { bytes: 8 << 20, huge_bytes: 4 << 20 });
        let earlier = Resident { bytes: 1 << 20, huge_bytes: 5 << 20 };
        assert_eq!(seen.since(earlier), Resident { bytes: 7 << 20, huge_bytes: 0 });
    }
}
