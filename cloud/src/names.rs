//! Which object a sealed segment is, and which segment an object is.

use crate::OpenError;
use ferrite_hybridlog::segment_store::{SealedName, StoreId};
use object_store::path::Path;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// The folder of a store that holds uploads on their way.
const UNFINISHED: &str = "unfinished";

/// The names under one prefix. This process's uploads carry a random number of its own, so that a
/// later process can tell them from its own.
pub(crate) struct Names {
    prefix: Path,
    process: u64,
    uploads: AtomicU64,
}

impl Names {
    pub(crate) fn new(prefix: &str) -> Result<Self, OpenError> {
        let path = Path::parse(prefix).map_err(|error| OpenError::Config {
            setting: "prefix",
            value: prefix.to_owned(),
            why: error.to_string(),
        })?;
        let process = RandomState::new().build_hasher().finish();
        Ok(Self { prefix: path, process, uploads: AtomicU64::new(0) })
    }

    /// The folder of one store's objects.
    pub(crate) fn store(&self, store: StoreId) -> Path {
        self.prefix.clone().join(store.to_string())
    }

    /// Where a whole object lies.
    pub(crate) fn object(&self, name: SealedName) -> Path {
        self.store(name.store).join(format!("log-{}.g{}.ckpt", name.segment, name.generation))
    }

    /// The segment that an object of `store` holds; `None` for a file that is no object of ours.
    pub(crate) fn parse(store: StoreId, path: &Path) -> Option<SealedName> {
        let numbers = path.filename()?.strip_prefix("log-")?.strip_suffix(".ckpt")?;
        let (segment, generation) = numbers.split_once(".g")?;
        Some(SealedName { store, segment: decimal(segment)?, generation: decimal(generation)? })
    }

    /// The folder of one store's unfinished uploads.
    pub(crate) fn unfinished(&self, store: StoreId) -> Path {
        self.store(store).join(UNFINISHED)
    }

    /// A place for one upload that no other has.
    pub(crate) fn upload(&self, store: StoreId) -> Path {
        let number = self.uploads.fetch_add(1, Ordering::Relaxed);
        self.unfinished(store).join(format!("{}{number}", self.mine()))
    }

    /// What the names of this process's uploads begin with.
    pub(crate) fn mine(&self) -> String {
        format!("{:016x}-", self.process)
    }
}

/// A number as `Display` prints it; nothing else, so that no two names mean one segment.
fn decimal(text: &str) -> Option<u64> {
    let number = text.parse::<u64>().ok()?;
    (number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE: StoreId = StoreId([0xab; 16]);

    #[test]
    fn a_name_survives_its_path() {
        let names = Names::new("cold-data/").unwrap();
        for (segment, generation) in [(0, 0), (7, 1), (u64::MAX, u64::MAX)] {
            let name = SealedName { store: STORE, segment, generation };
            assert_eq!(Names::parse(STORE, &names.object(name)), Some(name));
        }
        let name = SealedName { store: STORE, segment: 7, generation: 1 };
        let path = format!("cold-data/{STORE}/log-7.g1.ckpt");
        assert_eq!(names.object(name).to_string(), path);
    }

    #[test]
    fn what_is_not_ours_has_no_name() {
        for file in [
            "log-7.ckpt",
            "log-07.g1.ckpt",
            "log-+7.g1.ckpt",
            "log-7.g1.ckpt.old",
            "log--7.g1.ckpt",
            "log-18446744073709551616.g1.ckpt",
            "heartbeat",
        ] {
            assert_eq!(Names::parse(STORE, &Path::from(file)), None, "{file}");
        }
    }

    #[test]
    fn uploads_are_told_apart_by_process() {
        let (ours, theirs) = (Names::new("").unwrap(), Names::new("").unwrap());
        let (first, second) = (ours.upload(STORE), ours.upload(STORE));
        assert_ne!(first, second);
        assert!(first.filename().unwrap().starts_with(&ours.mine()));
        assert!(second.filename().unwrap().starts_with(&ours.mine()));
        assert!(!theirs.upload(STORE).filename().unwrap().starts_with(&ours.mine()));
    }
}
