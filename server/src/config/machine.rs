//! What some defaults depend on: the cores and the memory that this process may use.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

const MIB: u64 = 1 << 20;

/// Cores that this process may run on.
pub fn cores() -> u64 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u64).min(256)
}

/// An eighth of the memory in whole megabytes (at least 8), and at most `most`.
pub fn eighth_of_memory(most: u64) -> u64 {
    let eighth = memory_limit().map_or(most, |bytes| bytes / 8);
    (eighth / MIB * MIB).clamp((8 * MIB).min(most), most)
}

/// Bytes of memory: the machine's, or the limit of a cgroup around this process where that is
/// less. `None` where the system does not tell. Read once.
pub fn memory_limit() -> Option<u64> {
    static LIMIT: OnceLock<Option<u64>> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        machine_memory().into_iter().chain(cgroup_limits(&groups)).min()
    })
}

fn machine_memory() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    parse_meminfo(&info)
}

fn parse_meminfo(info: &str) -> Option<u64> {
    let line = info.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The limits of the process's cgroup and of those around it, in both hierarchies. Inside a
/// container the group's path often does not exist, since its root is mounted instead: that root
/// is looked at in any case.
fn cgroup_limits(groups: &str) -> Vec<u64> {
    let mut limits = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            c if c.split(',').any(|c| c == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        for group in Path::new(path).ancestors() {
            let group = group.strip_prefix("/").unwrap_or(group);
            let limit = fs::read_to_string(Path::new(root).join(group).join(file));
            limits.extend(limit.ok().and_then(|l| l.trim().parse::<u64>().ok()));
        }
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_total_is_read_in_bytes() {
        assert_eq!(parse_meminfo("MemTotal:  24684084 kB\nMemFree: 1 kB\n"), Some(25_276_502_016));
        assert_eq!(parse_meminfo("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn an_eighth_is_whole_and_bounded() {
        let eighth = eighth_of_memory(256 * MIB);
        assert!((8 * MIB..=256 * MIB).contains(&eighth) && eighth.is_multiple_of(MIB));
        assert_eq!(eighth_of_memory(MIB), MIB);
    }
}
