//! `ferrite doctor`: whether this machine gives a server what its configuration asks for.
//!
//! One line each: `ok`, `warn` (it works, with less), or `bad` (it will not start, or fail under load), and what to
//! do about it. Only a nameless file is written, in the data directory or where it would be made.

use super::{Outcome, ToolError};
use crate::config::{self, Arguments, Config};
use crate::start;
use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint};
use ferrite_hybridlog::{Backend, IoChoice, device};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Which configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Action {
    config: Option<String>,
    settings: Vec<String>,
}

/// The command.
pub(super) fn command() -> Command {
    Command::new("doctor")
        .about("Says whether this machine has what the configuration asks for.")
        .arg(
            Arg::new("config")
                .long("config")
                .short('c')
                .value_name("FILE")
                .value_hint(ValueHint::FilePath)
                .help("Configuration file [default: ./ferrite.toml, when it exists]"),
        )
        .arg(
            Arg::new("set")
                .long("set")
                .value_name("SECTION.KEY=VALUE")
                .action(ArgAction::Append)
                .help("Sets any setting; may stand several times"),
        )
        .after_help("Exit status: 0 when nothing is bad, 1 otherwise.")
}

/// How a thing is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Ok,
    Warn,
    Bad,
}

/// One line.
type Finding = (Verdict, String);

fn ok(text: impl Into<String>) -> Finding {
    (Verdict::Ok, text.into())
}
fn warn(text: impl Into<String>) -> Finding {
    (Verdict::Warn, text.into())
}
fn bad(text: impl Into<String>) -> Finding {
    (Verdict::Bad, text.into())
}

impl Action {
    /// What `ferrite doctor ...` asks for.
    pub(super) fn from_matches(matches: &ArgMatches) -> Self {
        let settings = matches.get_many::<String>("set").unwrap_or_default().cloned().collect();
        Self { config: matches.get_one::<String>("config").cloned(), settings }
    }

    /// Does it.
    pub(super) fn run(&self, out: &mut dyn Write) -> Result<Outcome, ToolError> {
        let mut words = vec!["ferrite".to_owned()];
        words.extend(self.config.iter().flat_map(|c| ["--config".to_owned(), c.clone()]));
        words.extend(self.settings.iter().flat_map(|s| ["--set".to_owned(), s.clone()]));
        let arguments = Arguments::parse(words).map_err(|e| ToolError::Refused(e.to_string()))?;
        let loaded = match config::load(&arguments, std::env::vars_os()) {
            Ok(loaded) => loaded,
            Err(errors) => {
                for error in errors {
                    tell(out, "configuration", &bad(error.to_string()))?;
                }
                return Ok(Outcome::Bad);
            }
        };
        let from = loaded.file.map_or("defaults".to_owned(), |path| path.display().to_string());
        let config = &loaded.config;
        let folder = existing(&config.store.directory);
        let mut findings = vec![
            ("configuration", ok(from)),
            ("open files", open_files(config.server.max_connections)),
            ("memory", memory(config, config::memory_limit())),
            ("disk space", disk(config, &folder)),
        ];
        findings.extend(files(config, &folder));
        findings
            .push(("huge pages", huge_pages(read("/sys/kernel/mm/transparent_hugepage/enabled"))));
        findings.push(("overcommit", overcommit(read("/proc/sys/vm/overcommit_memory"))));
        for (name, finding) in &findings {
            tell(out, name, finding)?;
        }
        match findings.iter().any(|(_, (verdict, _))| *verdict == Verdict::Bad) {
            true => Ok(Outcome::Bad),
            false => Ok(Outcome::Good),
        }
    }
}

fn tell(out: &mut dyn Write, name: &str, (verdict, text): &Finding) -> Result<(), ToolError> {
    let verdict = match verdict {
        Verdict::Ok => "ok  ",
        Verdict::Warn => "warn",
        Verdict::Bad => "bad ",
    };
    Ok(writeln!(out, "{verdict} {name}: {text}")?)
}

/// The folder itself, or the nearest above it that is there.
fn existing(folder: &Path) -> PathBuf {
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let there = folder.ancestors().find(|f| f.is_dir()).unwrap_or(Path::new("/"));
    there.to_owned()
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn open_files(wanted: u64) -> Finding {
    use rustix::process::{Resource, getrlimit};
    // A start raises the limit itself, as far as it goes.
    let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    match start::clients_under(most) {
        fit if fit >= wanted => ok(format!("{most} are enough for {wanted} clients")),
        0 => bad(format!("{most} leave none for clients; raise the limit with ulimit -Hn")),
        fit => warn(format!(
            "{most} leave room for {fit} clients of {wanted} (server.max_connections); raise the limit with ulimit \
             -Hn (LimitNOFILE= of systemd), or lower the setting"
        )),
    }
}

fn memory(config: &Config, limit: Option<u64>) -> Finding {
    let store = &config.store;
    let in_memory = store.backend == Backend::Memory;
    let log = if in_memory {
        config.memory_max.max(store.mutable_size)
    } else {
        store.mutable_size + store.readonly_size
    };
    let fixed = log + store.block_cache_size + crate::memory::FIXED_BYTES;
    let mib = fixed >> 20;
    let Some(limit) = limit else { return warn("the system does not tell how much there is") };
    let all = limit >> 20;
    let advice = match in_memory {
        true => "lower storage.memory_max or storage.hybridlog_mutable_size",
        false => "lower storage.hybridlog_mutable_size or storage.hybridlog_readonly_size",
    };
    match fixed {
        fixed if in_memory && config.memory_max == 0 && fixed <= limit => warn(format!(
            "all data is in memory, {all} MiB, and storage.memory_max sets no limit: when it is used up the \
             system ends the server"
        )),
        fixed if fixed > limit => {
            bad(format!("{mib} MiB are configured, and there are {all}; {advice}"))
        }
        fixed if fixed > limit / 4 * 3 => warn(format!(
            "{mib} of {all} MiB are configured; index and clients' buffers come on top: {advice}"
        )),
        _ => {
            ok(format!("{mib} of {all} MiB are configured; index and clients' buffers come on top"))
        }
    }
}

fn disk(config: &Config, folder: &Path) -> Finding {
    let place = folder.display();
    let free = match rustix::fs::statvfs(folder) {
        Ok(figures) => figures.f_bavail.saturating_mul(figures.f_frsize),
        Err(e) => {
            return bad(format!("{place} cannot be asked: {e}; choose another storage.data_dir"));
        }
    };
    let store = &config.store;
    // What memory holds must fit, beside the reserve of two segments.
    let needed = match store.backend {
        Backend::HybridLog => store.mutable_size + store.readonly_size + 2 * store.segment_size,
        // Two checkpoints and one that is being written.
        Backend::Memory => 3 * config.memory_max,
    };
    let (free_mib, needed_mib) = (free >> 20, needed >> 20);
    match free {
        free if free < 2 * store.segment_size => bad(format!(
            "{free_mib} MiB are free at {place}, less than two segments; free some, choose another storage.data_dir, \
             or lower storage.hybridlog_segment_size for a new store"
        )),
        free if free < needed => warn(format!(
            "{free_mib} MiB are free at {place}; {needed_mib} are needed for what memory holds and the reserve: free \
             some"
        )),
        _ => ok(format!("{free_mib} MiB are free at {place}")),
    }
}

/// How files are written and read: io_uring, O_DIRECT, locked memory.
fn files(config: &Config, folder: &Path) -> Vec<(&'static str, Finding)> {
    let probe = folder.join(format!(".ferrite-doctor-{}", std::process::id()));
    let findings = probed(config, &probe);
    // It is ours, and empty. What cannot be removed could not be made either.
    let _ = fs::remove_dir(&probe);
    findings
}

fn probed(config: &Config, probe: &Path) -> Vec<(&'static str, Finding)> {
    let opened = match device::open(probe, "doctor", IoChoice::Auto) {
        Ok(opened) => opened,
        Err(e) => {
            let advice = "choose another storage.data_dir, or give the user that runs ferrite the right to write";
            return vec![("data directory", bad(format!("{e}; {advice}")))];
        }
    };
    let device = opened.device;
    let uring = match (&opened.fallback, config.store.io) {
        (None, _) => ok("can be used for files"),
        (Some(why), IoChoice::IoUring) => bad(format!(
            "{why}; set storage.io to auto, or let the kernel or the container allow it"
        )),
        (Some(why), _) => {
            warn(format!("{why}: pread and pwrite do the work, with more processor time"))
        }
    };
    let direct = match device.direct_reads() {
        Ok(()) => ok("reads go past the page cache"),
        Err(why) => warn(format!("{why}: reads take memory of the page cache as well")),
    };
    let window = match device.can_map(config.store.readonly_size) {
        _ if config.store.backend == Backend::Memory => ok("memory files need no lock"),
        Ok(()) => ok("the read-only window can be locked"),
        Err(why) => warn(format!(
            "{why}: the read-only region stays in anonymous memory; raise the limit with ulimit -l (LimitMEMLOCK= of \
             systemd)"
        )),
    };
    vec![
        ("data directory", ok("can be written")),
        ("io_uring", uring),
        ("O_DIRECT", direct),
        ("locked memory", window),
    ]
}

fn huge_pages(enabled: Option<String>) -> Finding {
    let advice = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled: index and log are up to twice as fast";
    match enabled.as_deref() {
        Some(text) if text.contains("[madvise]") || text.contains("[always]") => ok(text),
        Some(text) => warn(format!("{text}: {advice}")),
        None => warn(format!("the kernel does not tell; where it has them: {advice}")),
    }
}

fn overcommit(mode: Option<String>) -> Finding {
    match mode.as_deref() {
        Some("2") => warn(
            "vm.overcommit_memory is 2: address space that is reserved counts as memory; set it to 0 or 1 if a \
             start cannot get its memory",
        ),
        Some(mode) => ok(format!("vm.overcommit_memory is {mode}; checkpoints do not fork")),
        None => warn("the kernel does not tell vm.overcommit_memory"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(settings: &[&str]) -> (Outcome, String) {
        let settings = settings.iter().map(|s| (*s).to_owned()).collect();
        let action = Action { config: None, settings };
        let mut out = Vec::new();
        let outcome = action.run(&mut out).expect("it tells");
        (outcome, String::from_utf8(out).expect("text"))
    }

    #[test]
    fn every_thing_has_its_line_and_nothing_is_left_behind() {
        let directory = tempfile::tempdir().expect("a directory");
        let data = directory.path().join("not/yet");
        let place = format!("storage.data_dir={}", data.display());
        let (_, out) = run(&[&place, "storage.hybridlog_segment_size=4MiB"]);
        for name in [
            "configuration",
            "open files",
            "memory",
            "disk space",
            "data directory",
            "io_uring",
            "O_DIRECT",
            "locked memory",
            "huge pages",
            "overcommit",
        ] {
            assert!(
                out.lines().any(|line| line[5..].starts_with(&format!("{name}: "))),
                "{name}: {out}"
            );
        }
        assert!(fs::read_dir(directory.path()).expect("a folder").next().is_none());
        let (outcome, out) = run(&[&place, "storage.hybridlog_mutable_size=1TiB"]);
        assert!(outcome == Outcome::Bad && out.contains("bad  memory: "), "{out}");
        let (outcome, out) = run(&["storage.data_dir=/proc/none"]);
        assert!(outcome == Outcome::Bad && out.contains("bad  data directory: "), "{out}");
        let (outcome, out) = run(&["server.port=x"]);
        assert!(outcome == Outcome::Bad && out.starts_with("bad  configuration: "), "{out}");
    }

    #[test]
    fn what_the_kernel_says_is_judged() {
        let of = |(verdict, _): Finding| verdict;
        assert_eq!(of(huge_pages(Some("always [madvise] never".into()))), Verdict::Ok);
        assert_eq!(of(huge_pages(Some("always madvise [never]".into()))), Verdict::Warn);
        assert_eq!(of(huge_pages(None)), Verdict::Warn);
        assert_eq!(of(overcommit(Some("1".into()))), Verdict::Ok);
        assert_eq!(of(overcommit(Some("2".into()))), Verdict::Warn);
        assert_eq!(of(open_files(1)), Verdict::Ok);
        assert_eq!(of(open_files(u64::MAX)), Verdict::Warn);
    }
}
