//! What the tests of the store share: tiny layouts, keys that collide, and a plain map to compare
//! the store with.
#![allow(dead_code, reason = "each test file uses its part")]

use ferrite_hybridlog::device::fault::FaultDevice;
use ferrite_hybridlog::device::{Device, FileId};
use ferrite_hybridlog::{Backend, BlockingSession, Change, Config, Database, Store};
use ferrite_index::HashSecret;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

/// An expiry that has come whatever the clock says.
pub const PAST: u64 = 1000;
/// The first of the expiries that no test lives to see.
pub const FUTURE: u64 = 1 << 43;

/// A ring of `frames` pages of `page_size` bytes, half of them mutable, and segments of four pages.
pub fn layout(directory: &Path, page_size: u64, frames: u64) -> Config {
    let mut config = Config::new(directory);
    config.page_size = page_size;
    config.segment_size = 4 * page_size;
    config.mutable_size = frames / 2 * page_size;
    config.readonly_size = (frames - frames / 2) * page_size;
    config.block_cache_size = 0;
    config.databases = 3;
    config
}

/// The same for a store whose log lies in memory alone.
pub fn in_memory(mut config: Config) -> Config {
    config.backend = Backend::Memory;
    config.index_basis = config.mutable_size + config.readonly_size;
    config
}

/// Two pages of memory, of 4 KiB each.
pub fn tiny() -> Config {
    layout(Path::new("simulated"), 4096, 2)
}

/// A key's value and what is kept with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub value: Vec<u8>,
    pub expires_at_ms: Option<u64>,
    pub encoding: u8,
}

/// What the store should hold: keys that have not expired, by database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model(pub Vec<BTreeMap<Vec<u8>, Entry>>);

impl Model {
    pub fn new(databases: usize) -> Self {
        Self(vec![BTreeMap::new(); databases])
    }
    pub fn put(&mut self, db: u8, key: &[u8], entry: Entry) {
        if entry.expires_at_ms.is_some_and(|at| at <= PAST) {
            self.remove(db, key);
        } else {
            self.0[usize::from(db)].insert(key.to_vec(), entry);
        }
    }
    pub fn get(&self, db: u8, key: &[u8]) -> Option<&Entry> {
        self.0[usize::from(db)].get(key)
    }
    pub fn remove(&mut self, db: u8, key: &[u8]) {
        self.0[usize::from(db)].remove(key);
    }
    pub fn expire(&mut self, db: u8, key: &[u8], at: Option<u64>) {
        if let Some(mut entry) = self.get(db, key).cloned() {
            entry.expires_at_ms = at;
            self.put(db, key, entry);
        }
    }
    pub fn counts(&self, db: u8) -> (u64, u64) {
        let keys = &self.0[usize::from(db)];
        let expiring = keys.values().filter(|e| e.expires_at_ms.is_some()).count();
        (keys.len() as u64, expiring as u64)
    }
}

/// The manifest in the file of that name: in the checkpoint of a store in memory it stands at its end.
pub fn manifest_in(file: &[u8]) -> &[u8] {
    if !file.starts_with(b"FERRSNAP") {
        return file;
    }
    let foot = file.len() - 4096;
    let at = u64::from_le_bytes(file[foot + 32..foot + 40].try_into().expect("8 bytes"));
    &file[at as usize + 32..]
}

/// Keys of a store: `groups` times `each` keys that share bucket and tag, so that their records
/// form chains. The hash is keyed anew in each store, so the bytes differ from run to run, but key
/// `i` plays the same part in each.
pub fn colliding_keys(manifest: &[u8], groups: usize, each: usize) -> Vec<Vec<u8>> {
    let manifest = manifest_in(manifest);
    let secret = HashSecret::from_bytes(manifest[33..49].try_into().expect("16 bytes"));
    let smallest_bits = u32::from(manifest[49]);
    let name_bits = smallest_bits + 15;
    let mut by_name: HashMap<u64, Vec<Vec<u8>>> = HashMap::new();
    let mut found = Vec::new();
    for candidate in 0u64.. {
        let key = candidate.to_string().into_bytes();
        let name = secret.hash(&key).raw() & ((1 << name_bits) - 1);
        let group = by_name.entry(name).or_default();
        group.push(key);
        if group.len() == each {
            found.append(group);
            if found.len() == groups * each {
                break;
            }
        }
    }
    found
}

/// The keys for a store on a simulated device.
pub fn keys_on(device: &FaultDevice, groups: usize, each: usize) -> Vec<Vec<u8>> {
    let manifest = device.contents(FileId::Manifest).expect("an open store has a manifest");
    colliding_keys(&manifest, groups, each)
}

/// Opens a store on a simulated device, its expiry cycle held.
pub fn open(config: &Config, device: &Arc<FaultDevice>) -> Store {
    let device: Arc<dyn Device> = device.clone();
    let store = Store::open_on(config.clone(), device).expect("opens");
    store.pause_expiry_cycle(true);
    store
}

/// One key as the store has it.
pub fn entry_of(s: &mut BlockingSession, db: u8, key: &[u8]) -> Option<Entry> {
    s.run(|inside, op| {
        inside.read(op, Database(db), key, |v| {
            v.map(|v| Entry {
                value: v.bytes.to_vec(),
                expires_at_ms: v.expires_at_ms,
                encoding: v.encoding,
            })
        })
    })
    .expect("reads")
}

/// Every key that a whole walk meets.
pub fn walk(s: &mut BlockingSession, db: u8) -> BTreeSet<Vec<u8>> {
    let mut all = BTreeSet::new();
    let mut cursor = 0;
    loop {
        let mut found = Vec::new();
        cursor = s
            .run(|inside, op| {
                found.clear();
                inside.walk(op, Database(db), cursor, |v| found.push(v.key.to_vec()))
            })
            .expect("walks");
        all.extend(found);
        if cursor == 0 {
            return all;
        }
    }
}

/// Compares all of the store with the model: every key that was ever used, the walk, the counts.
pub fn check(store: &Store, s: &mut BlockingSession, model: &Model, universe: &[Vec<u8>]) {
    for db in 0..model.0.len() as u8 {
        for key in universe {
            let name = String::from_utf8_lossy(key);
            assert_eq!(entry_of(s, db, key).as_ref(), model.get(db, key), "key {name} of {db}");
            // A touch removes the key for good if it has expired, so that the counts are exact.
            s.rmw(Database(db), key, |_, _| (Change::Keep, ())).expect("touches");
        }
        let expected: BTreeSet<Vec<u8>> = model.0[usize::from(db)].keys().cloned().collect();
        assert_eq!(walk(s, db), expected, "the walk of {db}");
        assert_eq!(store.key_count(Database(db)), model.counts(db), "the counts of {db}");
    }
}

/// Threads that borrow, like [`std::thread::scope`]'s, each joined by name at the end: the scope's
/// own wait happens inside std, where ThreadSanitizer does not see that the threads are done.
pub struct Threads<'scope, 'env> {
    scope: &'scope std::thread::Scope<'scope, 'env>,
    handles: std::cell::RefCell<Vec<std::thread::ScopedJoinHandle<'scope, ()>>>,
}

impl<'scope> Threads<'scope, '_> {
    /// Starts one.
    pub fn spawn(&self, run: impl FnOnce() + Send + 'scope) {
        self.handles.borrow_mut().push(self.scope.spawn(run));
    }
}

/// Runs `start`, then waits for the threads that it started.
pub fn threads<'env>(start: impl for<'scope> FnOnce(&Threads<'scope, 'env>)) {
    std::thread::scope(|scope| {
        let threads = Threads { scope, handles: std::cell::RefCell::default() };
        start(&threads);
        for handle in threads.handles.into_inner() {
            handle.join().expect("a thread's test holds");
        }
    });
}
