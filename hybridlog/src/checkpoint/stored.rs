//! Checkpoints as they lie in a folder, read without a store: for tools that copy or verify them.
//!
//! Promises: nothing in the folder is ever changed, made or removed. It may be that of a running
//! server: the manifest is read whole, and what it names stays as it is below each cut. A file that
//! the server removes meanwhile shows as missing; read the manifest again then.

use super::blocks::{pieces, read_verified};
use super::image;
use super::manifest::{Checkpoint, Manifest};
use super::recover;
use super::snapshot::Snapshot;
use crate::OpenError;
use crate::config::{BLOCK_WORDS, Geometry};
use crate::device::{Device, FileId, Mapping, Request, home_of};
use crate::log::scan::records_of;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// The checkpoints of one store.
pub struct StoredCheckpoints {
    folder: Folder,
    is_copy: bool,
    manifest: Manifest,
    geometry: Geometry,
    /// Of a store in memory: its files, each with a checkpoint, the newest first.
    snapshots: Vec<Snapshot>,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct StoredCheckpoint {
    /// Its number.
    pub number: u64,
    /// Unix time of its cut, in milliseconds.
    pub taken_at_ms: u64,
    /// Keys, over all databases.
    pub keys: u64,
    /// Bytes of the log that it needs.
    pub log_bytes: u64,
    /// The files that it needs, but the manifest.
    pub files: Vec<StoredFile>,
}

/// A file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoredFile {
    /// Its name, the same in every folder.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// So many of its bytes belong to the checkpoint; what lies behind is of no meaning.
    pub bytes: u64,
    /// Whether nobody writes it any more: a second name for it is as good as a copy.
    pub is_final: bool,
}

impl StoredCheckpoints {
    /// Looks for the checkpoints of a data directory, in `checkpoints/` or, in a copy, beside it;
    /// `None` where a start would find an empty store.
    ///
    /// # Errors
    /// [`OpenError`], as a start would tell it.
    pub fn find(data: &Path, stem: &str) -> Result<Option<Self>, OpenError> {
        let failed = |source| OpenError::Io { action: "list", path: data.to_owned(), source };
        let Some((folder, is_copy)) = home_of(data, stem).map_err(failed)? else {
            return Ok(None);
        };
        let folder = Folder { folder, stem: stem.to_owned() };
        if !recover::manifest_is_there(&folder)? {
            return Ok(None);
        }
        let mut snapshots = Vec::new();
        let manifest = match recover::read_stored_manifest(&folder) {
            Err(OpenError::OtherBackend { .. }) => {
                snapshots.push(Snapshot::open(&folder, FileId::Manifest)?);
                // One that is damaged is none; `faults` tells of it. And it may be a second name of the
                // newest, made a moment before that got another.
                let previous = Snapshot::open(&folder, FileId::Previous).ok();
                let is_another = |s: &Snapshot| s.checkpoint() != snapshots[0].checkpoint();
                let previous = previous.filter(is_another);
                snapshots.extend(previous);
                let mut manifest = snapshots[0].manifest.clone();
                let all = snapshots.iter().map(|s| s.checkpoint().clone());
                manifest.checkpoints = all.collect();
                manifest
            }
            other => other?,
        };
        let (page_words, segment_words) = (manifest.page_words, manifest.segment_words);
        let geometry = Geometry { page_words, segment_words, frames: 2, mutable_pages: 1 };
        Ok(Some(Self { folder, is_copy, manifest, geometry, snapshots }))
    }

    /// Whether the checkpoints are those of a store in memory: each is one file, which under the
    /// manifest's name is a store. There is no manifest beside them then.
    pub fn is_in_memory(&self) -> bool {
        !self.snapshots.is_empty()
    }

    /// The folder of the files.
    pub fn folder(&self) -> &Path {
        &self.folder.folder
    }
    /// Whether the files lie in the data directory itself: a copy that no server has made its own.
    pub fn is_copy(&self) -> bool {
        self.is_copy
    }
    /// Whether these are checkpoints of the same store: another one has their numbers for other states.
    pub fn is_same_store(&self, other: &Self) -> bool {
        self.manifest.store_id == other.manifest.store_id
    }
    /// Bytes of a page: what the store must be opened with.
    pub fn page_size(&self) -> u64 {
        self.manifest.page_words * 8
    }
    /// Bytes of a segment: what the store must be opened with.
    pub fn segment_size(&self) -> u64 {
        self.manifest.segment_words * 8
    }
    /// Where the manifest lies.
    pub fn manifest_path(&self) -> PathBuf {
        self.folder.path(FileId::Manifest)
    }
    /// The manifest's name.
    pub fn manifest_name(&self) -> String {
        FileId::Manifest.name(&self.folder.stem)
    }

    /// The checkpoints, newest first.
    pub fn checkpoints(&self) -> Vec<StoredCheckpoint> {
        self.manifest.checkpoints.iter().map(|c| self.describe(c)).collect()
    }

    fn describe(&self, checkpoint: &Checkpoint) -> StoredCheckpoint {
        let newest = self.manifest.newest().map_or(0, |c| c.cut);
        let file = |file: FileId, bytes, is_final| StoredFile {
            name: file.name(&self.folder.stem),
            path: self.folder.path(file),
            bytes,
            is_final,
        };
        let mut files = Vec::new();
        let snapshot = self.snapshots.iter().find(|s| s.checkpoint() == checkpoint);
        if let Some(snapshot) = snapshot {
            files.push(file(snapshot.file, snapshot.length, true));
            return StoredCheckpoint { files, ..self.described(checkpoint) };
        }
        if checkpoint.image.number > 0 {
            let image = checkpoint.image;
            files.push(file(FileId::Index(image.number), image.length, true));
        }
        for (segment, bytes) in recover::segments_of(&self.geometry, checkpoint) {
            // The log goes on in the segment of the newest cut.
            let is_final = segment < self.geometry.segment_of(newest);
            files.push(file(FileId::Segment(segment), bytes, is_final));
            files.push(file(FileId::Side(segment), recover::side_bytes(bytes), is_final));
        }
        StoredCheckpoint { files, ..self.described(checkpoint) }
    }

    /// All but the files.
    fn described(&self, checkpoint: &Checkpoint) -> StoredCheckpoint {
        StoredCheckpoint {
            number: checkpoint.number,
            taken_at_ms: checkpoint.taken_at_ms,
            keys: checkpoint.slots.iter().map(|s| s.keys).sum(),
            log_bytes: recover::bytes_from(checkpoint, checkpoint.begin),
            files: Vec::new(),
        }
    }

    /// The manifest with all checkpoints, or with one alone, as it is to be written to a file (which a
    /// store in memory does not have).
    ///
    /// # Panics
    /// When there is no checkpoint of that number.
    pub fn manifest(&self, only: Option<u64>) -> Vec<u8> {
        let mut manifest = self.manifest.clone();
        if let Some(number) = only {
            manifest.checkpoints.retain(|c| c.number == number);
            assert!(!manifest.checkpoints.is_empty(), "there is no checkpoint {number}");
        }
        super::manifest_file(&manifest)
    }

    /// Bytes that [`StoredCheckpoints::faults`] reads.
    pub fn bytes(&self) -> u64 {
        let files = self.checkpoints().into_iter().flat_map(|c| c.files);
        let longest: BTreeMap<_, _> = files.map(|f| (f.name, f.bytes)).collect();
        longest.values().sum()
    }

    /// Compares all that the checkpoints need with its checksums, images and records decoded. Of a file
    /// that is damaged in several places the first is told. Only images and segments whose names are
    /// `wanted` are read, segments with their side files. `read` is told of bytes as they are read.
    pub fn faults(
        &self,
        wanted: impl Fn(&str) -> bool,
        mut read: impl FnMut(u64),
    ) -> Vec<OpenError> {
        let wanted = |file: FileId| wanted(&file.name(&self.folder.stem));
        let mut faults = Vec::new();
        if self.is_in_memory() {
            let all = self.snapshots.iter().filter(|snapshot| wanted(snapshot.file));
            faults.extend(all.filter_map(|snapshot| snapshot.fault(&self.folder, &mut read)));
            if wanted(FileId::Previous) && self.folder.size(FileId::Previous).is_ok() {
                faults.extend(Snapshot::open(&self.folder, FileId::Previous).err());
            }
            return faults;
        }
        let mut images: Vec<_> = self.manifest.checkpoints.iter().map(|c| c.image).collect();
        images.retain(|image| image.number > 0 && wanted(FileId::Index(image.number)));
        images.dedup();
        for image in images {
            let bits = u32::from(self.manifest.index_smallest_bits);
            if let Err((offset, found)) = image::read(&self.folder, &image, bits, |_, _, _, _| {}) {
                let path = self.folder.path(FileId::Index(image.number));
                faults.push(OpenError::DamagedImage { path, offset, found });
            }
            read(image.length);
        }
        let mut ranges = BTreeMap::new();
        for checkpoint in &self.manifest.checkpoints {
            for (from, to) in self.ranges(checkpoint) {
                if !wanted(FileId::Segment(self.geometry.segment_of(from))) {
                    continue;
                }
                // Of two checkpoints the newer one reaches farther, the older one begins lower.
                let range = ranges.entry(self.geometry.segment_of(from)).or_insert((from, to));
                *range = (range.0.min(from), range.1.max(to));
            }
        }
        for (from, to) in ranges.into_values() {
            if let Err(fault) = self.read_range(from, to, &mut read) {
                faults.push(fault);
            }
        }
        faults
    }

    /// What a checkpoint needs of the log, segment by segment, in words.
    fn ranges<'a>(&'a self, checkpoint: &'a Checkpoint) -> impl Iterator<Item = (u64, u64)> + 'a {
        checkpoint.extents.iter().flat_map(move |(from, to)| {
            pieces((*from).max(checkpoint.begin), *to, self.geometry.segment_words)
        })
    }

    /// Reads a part of one segment.
    fn read_range(&self, from: u64, to: u64, read: &mut impl FnMut(u64)) -> Result<(), OpenError> {
        recover::check_segment(&self.folder, &self.geometry, from, to)?;
        let first_block = from / BLOCK_WORDS * BLOCK_WORDS;
        let ranges = pieces(first_block, to, self.geometry.page_words);
        read_verified(&self.folder, &self.geometry, ranges, |(first, to), bytes| {
            let start = first.max(from);
            read(bytes.len() as u64);
            let records = &bytes[(start - first) as usize * 8..((to - first) * 8) as usize];
            let end = records_of(records, start, |_, _| {})
                .map_err(|(at, found)| self.no_record(at, found))?;
            match end < to {
                true => Err(self.no_record(end, "records end there, before the cut".into())),
                false => Ok(()),
            }
        })
    }

    fn no_record(&self, at: u64, found: String) -> OpenError {
        recover::no_record(&self.folder, &self.geometry, at, found)
    }
}

/// A folder that is only read.
struct Folder {
    folder: PathBuf,
    stem: String,
}

fn refused<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "the folder is only read"))
}

impl Device for Folder {
    fn submit(&self, request: Request) {
        match request {
            Request::Read { file, offset, mut buffer, done } => {
                let read = File::open(self.path(file))
                    .and_then(|opened| opened.read_exact_at(&mut buffer, offset));
                done(read.map(|()| buffer));
            }
            Request::Write { done, .. } | Request::Sync { done, .. } => done(refused()),
        }
    }
    fn create(&self, _: FileId, _: u64) -> io::Result<()> {
        refused()
    }
    fn size(&self, file: FileId) -> io::Result<u64> {
        Ok(fs::metadata(self.path(file))?.len())
    }
    fn remove(&self, _: FileId) -> io::Result<()> {
        refused()
    }
    fn rename(&self, _: FileId, _: FileId) -> io::Result<()> {
        refused()
    }
    fn link(&self, _: FileId, _: FileId) -> io::Result<()> {
        refused()
    }
    fn list(&self) -> io::Result<Vec<FileId>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            files.extend(name.to_str().and_then(|name| FileId::parse(&self.stem, name)));
        }
        files.sort_unstable();
        Ok(files)
    }
    fn sync_directory(&self) -> io::Result<()> {
        refused()
    }
    fn free_space(&self) -> io::Result<u64> {
        Ok(0)
    }
    fn path(&self, file: FileId) -> PathBuf {
        self.folder.join(file.name(&self.stem))
    }
    fn io_kind(&self) -> &'static str {
        "posix"
    }
    fn direct_reads(&self) -> Result<(), String> {
        Err("a folder that is only read is read through the page cache".into())
    }
    fn can_map(&self, _: u64) -> Result<(), String> {
        Err("a folder that is only read is not mapped".into())
    }
    fn map(&self, _: FileId, _: u64, _: usize) -> io::Result<Mapping> {
        refused()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{Config, Database, Store};
    use std::io::{Seek as _, Write as _};

    fn config(directory: &Path) -> Config {
        let mut config = Config::new(directory);
        (config.page_size, config.segment_size) = (4 << 10, 16 << 10);
        (config.mutable_size, config.readonly_size) = (16 << 10, 16 << 10);
        config
    }

    fn put(store: &Store, keys: std::ops::Range<u32>) {
        let mut session = store.blocking_session();
        for key in keys {
            session.upsert(Database(0), &key.to_le_bytes(), &[7; 200]).expect("written");
        }
    }

    /// Three checkpoints over several segments and two runs of the store.
    fn store(directory: &Path) -> Vec<u64> {
        let mut taken = Vec::new();
        for run in 0..2 {
            let store = Store::open(config(directory)).expect("opens");
            for step in 0..2 {
                let first = run * 1000 + step * 300;
                put(&store, first..first + 300);
                taken.push(store.checkpoint().expect("taken").number);
            }
            store.close();
        }
        taken
    }

    #[test]
    fn what_a_store_left_is_found_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(StoredCheckpoints::find(directory.path(), "ferrite").expect("listed").is_none());
        let taken = store(directory.path());
        let found = StoredCheckpoints::find(directory.path(), "ferrite").expect("read");
        let found = found.expect("it is there");
        let checkpoints = found.checkpoints();
        let numbers: Vec<_> = checkpoints.iter().map(|c| c.number).collect();
        assert_eq!(numbers, [taken[3], taken[2]]);
        assert_eq!((checkpoints[0].keys, checkpoints[1].keys), (1200, 900));
        let mut read = 0;
        assert!(found.faults(|_| true, |bytes| read += bytes).is_empty());
        assert!(read > checkpoints[0].log_bytes && !found.is_copy());
        // What is final is never the segment in which the log goes on.
        let last = checkpoints[0].files.iter().rfind(|f| !f.name.contains("side"));
        assert!(!last.expect("a segment").is_final);
        assert!(checkpoints[0].files.iter().filter(|f| f.is_final).count() > 4);
    }

    /// An older checkpoint's files and a manifest with it alone are a store.
    #[test]
    fn the_files_of_an_older_checkpoint_are_that_checkpoint() {
        let directory = tempfile::tempdir().expect("a directory");
        store(directory.path());
        let found = StoredCheckpoints::find(directory.path(), "ferrite").expect("read");
        let found = found.expect("it is there");
        let older = found.checkpoints().pop().expect("two are kept");
        let copy = tempfile::tempdir().expect("a directory");
        for file in &older.files {
            fs::copy(&file.path, copy.path().join(&file.name)).expect("copied");
        }
        let manifest = found.manifest(Some(older.number));
        fs::write(copy.path().join(found.manifest_name()), manifest).expect("written");
        let copied = StoredCheckpoints::find(copy.path(), "ferrite").expect("read");
        let copied = copied.expect("it is there");
        assert!(copied.is_copy() && copied.faults(|_| true, |_| {}).is_empty());
        let store = Store::open(config(copy.path())).expect("opens");
        assert_eq!(store.recovery().checkpoint, Some(older.number));
        assert_eq!(store.key_count(Database(0)).0, 900);
    }

    #[test]
    fn damage_is_told_with_its_file_and_what_is_missing_by_its_name() {
        let directory = tempfile::tempdir().expect("a directory");
        store(directory.path());
        let find = || {
            let found = StoredCheckpoints::find(directory.path(), "ferrite").expect("read");
            found.expect("it is there")
        };
        let files = find().checkpoints()[0].files.clone();
        for file in &files {
            let whole = fs::read(&file.path).expect("read");
            let mut opened = File::options().write(true).open(&file.path).expect("there");
            // A byte of the first block: both files of every segment begin with what counts.
            opened.seek(io::SeekFrom::Start(1)).expect("sought");
            opened.write_all(&[!whole[1]]).expect("written");
            let faults = find().faults(|_| true, |_| {});
            let told = faults.first().map(ToString::to_string).unwrap_or_default();
            let stem = file.name.replace(".side", "");
            assert!(faults.len() == 1 && told.contains(&stem), "{}: {told}", file.name);
            fs::remove_file(&file.path).expect("removed");
            let told = find().faults(|_| true, |_| {})[0].to_string();
            assert!(told.contains(&file.name) && told.contains("missing"), "{told}");
            fs::write(&file.path, &whole).expect("written");
        }
        assert!(find().faults(|_| true, |_| {}).is_empty());
        fs::remove_file(find().manifest_path()).expect("removed");
        let told = StoredCheckpoints::find(directory.path(), "ferrite").err().expect("refused");
        assert!(told.to_string().contains("the manifest is missing"), "{told}");
    }

    #[test]
    fn the_checkpoints_of_a_store_in_memory_are_a_file_each() {
        let directory = tempfile::tempdir().expect("a directory");
        let in_memory = |directory: &Path| {
            let mut config = config(directory);
            config.backend = crate::Backend::Memory;
            config
        };
        let store = Store::open(in_memory(directory.path())).expect("opens");
        let taken = [0, 300].map(|first| {
            put(&store, first..first + 300);
            store.checkpoint().expect("taken").number
        });
        let find = |directory: &Path| {
            let found = StoredCheckpoints::find(directory, "ferrite").expect("read");
            found.expect("it is there")
        };
        let found = find(directory.path());
        let checkpoints = found.checkpoints();
        assert!(found.is_in_memory() && found.segment_size() == 16 << 10);
        assert_eq!([checkpoints[0].number, checkpoints[1].number], [taken[1], taken[0]]);
        assert_eq!([checkpoints[0].keys, checkpoints[1].keys], [600, 300]);
        let mut read = 0;
        assert!(found.faults(|_| true, |bytes| read += bytes).is_empty());
        assert_eq!(read, found.bytes());
        for checkpoint in &checkpoints {
            let [file] = &checkpoint.files[..] else { panic!("{:?}", checkpoint.files) };
            let copy = tempfile::tempdir().expect("a directory");
            fs::copy(&file.path, copy.path().join(found.manifest_name())).expect("copied");
            let store = Store::open(in_memory(copy.path())).expect("opens");
            assert_eq!(store.recovery().checkpoint, Some(checkpoint.number));
            assert_eq!(store.key_count(Database(0)).0, checkpoint.keys);
            // Damage is told with its file, wherever it is.
            let whole = fs::read(&file.path).expect("read");
            for at in [9, 5000, whole.len() / 2, whole.len() - 9] {
                let mut bytes = whole.clone();
                bytes[at] ^= 4;
                fs::write(&file.path, bytes).expect("written");
                let told = match StoredCheckpoints::find(directory.path(), "ferrite") {
                    Ok(found) => found.expect("there").faults(|_| true, |_| {})[0].to_string(),
                    Err(e) => e.to_string(),
                };
                assert!(told.contains(&format!("{} at", file.name)), "{at}: {told}");
                // In its place, so that it stays the same file.
                fs::write(&file.path, &whole).expect("written");
            }
        }
        assert!(find(directory.path()).faults(|_| true, |_| {}).is_empty());
    }
}
