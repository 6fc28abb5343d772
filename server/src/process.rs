//! What the kernel says about this process and its machine, read from /proc when asked.

use std::fs;

/// Memory of the process, in bytes; 0 where the kernel does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident, files included.
    pub resident: u64,
    /// Resident and anonymous: what the process itself allocated.
    pub anonymous: u64,
    /// Resident and shared: pages of a log in memory.
    pub shared: u64,
    /// Locked: pages of the read-only window that must stay.
    pub locked: u64,
}

/// CPU time of the process in seconds, all threads.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cpu {
    /// In the kernel.
    pub system: f64,
    /// In the program.
    pub user: f64,
}

/// The kernel's clock tick in /proc/*/stat. It is fixed for programs, whatever the kernel's own.
const TICKS_PER_SECOND: f64 = 100.0;

/// Memory now. Costs one small read; nothing walks the page tables.
pub fn memory() -> Memory {
    parse_status(&fs::read_to_string("/proc/self/status").unwrap_or_default())
}

/// CPU time so far.
pub fn cpu() -> Cpu {
    parse_stat(&fs::read_to_string("/proc/self/stat").unwrap_or_default()).unwrap_or_default()
}

/// `Linux 6.18.44 x86_64`.
pub fn system() -> String {
    let read = |name| fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
    let (kind, release) = (read("ostype"), read("osrelease"));
    format!("{} {} {}", kind.trim(), release.trim(), std::env::consts::ARCH)
}

fn parse_status(text: &str) -> Memory {
    let kib = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        number.unwrap_or(0) * 1024
    };
    Memory {
        resident: kib("VmRSS"),
        anonymous: kib("RssAnon"),
        shared: kib("RssShmem"),
        locked: kib("VmLck"),
    }
}

/// Fields 14 and 15, counted behind the name, which may hold anything.
fn parse_stat(text: &str) -> Option<Cpu> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let seconds = |i: usize| Some(fields.get(i)?.parse::<f64>().ok()? / TICKS_PER_SECOND);
    Some(Cpu { user: seconds(11)?, system: seconds(12)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_stat_are_read_in_bytes_and_seconds() {
        let text = "Name:\tx\nVmHWM:\t 20 kB\nVmRSS:\t    12 kB\nRssAnon:\t 8 kB\nRssShmem:\t 2 kB\nVmLck:\t 4 kB\n";
        let expected = Memory { resident: 12288, anonymous: 8192, shared: 2048, locked: 4096 };
        assert_eq!(parse_status(text), expected);
        assert_eq!(parse_status(""), Memory::default());
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 25 0";
        assert_eq!(parse_stat(stat), Some(Cpu { user: 1.5, system: 0.25 }));
        assert_eq!(parse_stat("7 (a"), None);
    }

    #[test]
    fn this_process_has_memory() {
        let now = memory();
        assert!(now.anonymous > 0 && now.resident >= now.anonymous);
        assert!(system().starts_with("Linux "));
    }
}
