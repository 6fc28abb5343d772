//! Huge pages for a whole process: given to everybody alike, refused, counted.
//!
//! Ferrite advises the kernel that its index and its frames want huge pages (`MADV_HUGEPAGE`). Where
//! `/sys/kernel/mm/transparent_hugepage/enabled` is `madvise`, memory from malloc gets none. So before
//! a measurement [`collapse`] has the kernel put all anonymous memory of the process on huge pages at
//! once, whoever asked for it (`MADV_COLLAPSE`, Linux 6.1). What was really granted stands in
//! `/proc/self/smaps_rollup`. `[unsafe]`: one call of madvise.

use std::io;
use std::ops::Range;

/// What transparent huge pages are made of.
const HUGE_PAGE: usize = 2 << 20;
/// One call's share of a mapping: a call ends at the first page that cannot be had.
const STEP: usize = 16 * HUGE_PAGE;

/// Puts the private anonymous memory of this process on huge pages, as far as the kernel has some.
/// Memory that is on them already takes no time.
///
/// # Errors
/// Where there is no `/proc/self/maps`.
pub fn collapse() -> io::Result<()> {
    for mapping in anonymous(&std::fs::read_to_string("/proc/self/maps")?) {
        for start in mapping.clone().step_by(STEP) {
            let bytes = STEP.min(mapping.end - start);
            let start = std::ptr::without_provenance_mut(start);
            // SAFETY: the advice is about the size of pages and changes the contents of none,
            // whatever is mapped there by now. Where it is refused, small pages do.
            let _ = unsafe { libc::madvise(start, bytes, libc::MADV_COLLAPSE) };
        }
    }
    Ok(())
}

/// The whole huge pages of the private, writable, anonymous mappings in the text of
/// `/proc/self/maps`; stacks are none of them.
fn anonymous(maps: &str) -> Vec<Range<usize>> {
    let huge_pages = |line: &str| {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let access = fields.next()?;
        let name = fields.nth(3).unwrap_or("");
        let wanted = access == "rw-p" && (name.is_empty() || name == "[heap]");
        let address = |hex| usize::from_str_radix(hex, 16).ok();
        let start = address(start)?.checked_next_multiple_of(HUGE_PAGE)?;
        let end = address(end)? / HUGE_PAGE * HUGE_PAGE;
        (wanted && start < end).then_some(start..end)
    };
    maps.lines().filter_map(huge_pages).collect()
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
    fn the_whole_huge_pages_of_anonymous_memory_are_found() {
        let maps = "55550000-55950000 rw-p 00000000 00:00 0   [heap]\n\
                    7f0000000000-7f0000800000 rw-p 00000000 00:00 0 \n\
                    7f0001000000-7f0001800000 ---p 00000000 00:00 0 \n\
                    7f0002000000-7f0002800000 rw-p 00000000 08:01 77 /data/file\n\
                    7ffc00000000-7ffc00800000 rw-p 00000000 00:00 0 [stack]\n\
                    7f0003001000-7f0003300000 rw-p 00000000 00:00 0 \n";
        assert_eq!(anonymous(maps), [0x5560_0000..0x5580_0000, 0x7f00_0000_0000..0x7f00_0080_0000]);
    }

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
