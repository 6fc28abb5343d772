//! A new data directory, made beside its place under another name and renamed once it is whole.
//!
//! ```text
//!   backup/.today.ferrite-new/     while it is being made, locked
//!   backup/today/                  afterwards: all of it, on the disk
//! ```
//!
//! Promises: the place is new or empty before; whatever fails, nothing is there that looks like a data
//! directory; what a killed tool has left under the other name, the next one removes. Files that
//! nobody writes any more become second names of the originals where the file system can do that;
//! all others are copied.

use super::ToolError;
use super::progress::Bar;
use crate::aof::aside::directory_of;
use ferrite_hybridlog::{StoredCheckpoint, StoredCheckpoints, StoredFile};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The folder of checkpoints in a data directory.
const CHECKPOINTS: &str = "checkpoints";
/// Bytes that are copied at a time.
const STEP: u64 = 16 << 20;

/// The directory that is being made. Dropped before [`Staging::finish`], it is removed.
pub(crate) struct Staging {
    folder: PathBuf,
    to: PathBuf,
    /// Held on `folder`, so that nobody takes it for what a killed tool has left.
    _lock: File,
    is_finished: bool,
    /// What was copied, and what got a second name.
    pub copied: Count,
    /// What got a second name.
    pub linked: Count,
}

/// Files and their bytes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Count {
    pub files: u64,
    pub bytes: u64,
}

/// How a file comes into the new directory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// As a second name where that works, else as a copy.
    Link,
    /// As a copy.
    Copy,
}

impl Staging {
    /// Makes the directory for `to`, which is new or empty.
    pub fn begin(to: &Path) -> Result<Self, ToolError> {
        let to = place(to)?;
        let parent = directory_of(&to).to_owned();
        fs::create_dir_all(&parent).map_err(failed("make", &parent))?;
        let name = to.file_name().unwrap_or_default().to_string_lossy();
        let folder = parent.join(format!(".{name}.ferrite-new"));
        let mut lock = None;
        if let Err(e) = fs::create_dir(&folder) {
            if e.kind() != io::ErrorKind::AlreadyExists {
                return Err(failed("make", &folder)(e));
            }
            // A tool that was killed has left it, or one is at work.
            lock = Some(lock_folder(&folder)?);
            fs::remove_dir_all(&folder).map_err(failed("remove", &folder))?;
            fs::create_dir(&folder).map_err(failed("make", &folder))?;
        }
        drop(lock);
        let _lock = lock_folder(&folder)?;
        let (copied, linked) = Default::default();
        let staging = Self { folder, to, _lock, is_finished: false, copied, linked };
        let checkpoints = staging.path(CHECKPOINTS);
        fs::create_dir(&checkpoints).map_err(failed("make", &checkpoints))?;
        Ok(staging)
    }

    /// Where it is being made.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
    /// Where it will be.
    pub fn to(&self) -> &Path {
        &self.to
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Brings a file of a checkpoint here, `bytes` of which count.
    pub fn bring_checkpoint_file(
        &mut self,
        from: &Path,
        name: &str,
        bytes: u64,
        how: How,
        bar: &Bar,
    ) -> Result<(), ToolError> {
        let to = self.path(CHECKPOINTS).join(name);
        if how == How::Link {
            // A file that is a link itself would get a second name that leads nowhere.
            let original = from.canonicalize().map_err(failed("read", from))?;
            match fs::hard_link(original, &to) {
                Ok(()) => {
                    self.linked.add(bytes);
                    bar.advance(bytes);
                    return self.link(name);
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return Err(failed("read", from)(e));
                }
                // Another file system, or one that has no second names, or no more: a copy does.
                Err(_) => {}
            }
        }
        self.copy(from, &to, bytes, true, bar)?;
        self.link(name)
    }

    /// Gives the files of one checkpoint second names here, and writes a manifest of it alone.
    pub fn link_checkpoint(
        &mut self,
        all: &StoredCheckpoints,
        checkpoint: &StoredCheckpoint,
    ) -> Result<(), ToolError> {
        let bar = Bar::hidden();
        let own_name = all.manifest_name();
        for StoredFile { path, name, bytes, .. } in &checkpoint.files {
            let name = if all.is_in_memory() { &own_name } else { name };
            self.bring_checkpoint_file(path, name, *bytes, How::Link, &bar)?;
        }
        if all.is_in_memory() {
            return self.holds(all, checkpoint);
        }
        self.write_manifest(&all.manifest_name(), &all.manifest(Some(checkpoint.number)))
    }

    /// Fails if the one file of a store in memory was replaced by another one while it was brought here.
    pub fn holds(
        &self,
        all: &StoredCheckpoints,
        checkpoint: &StoredCheckpoint,
    ) -> Result<(), ToolError> {
        let name = all.manifest_name();
        let stem = name.strip_suffix(".ckpt").unwrap_or(&name);
        let found = StoredCheckpoints::find(&self.folder, stem);
        let found = found.map_err(|e| ToolError::Refused(e.to_string()))?;
        let number = found.and_then(|found| Some(found.checkpoints().first()?.number));
        if number == Some(checkpoint.number) {
            return Ok(());
        }
        let text = format!("checkpoint {} was replaced while it was copied", checkpoint.number);
        Err(ToolError::Refused(text))
    }

    /// Writes the manifest.
    pub fn write_manifest(&mut self, name: &str, bytes: &[u8]) -> Result<(), ToolError> {
        let to = self.path(CHECKPOINTS).join(name);
        let written = create(&to).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        written.map_err(failed("write", &to))?;
        self.copied.add(bytes.len() as u64);
        self.link(name)
    }

    /// Copies the first `bytes` of a part of the append-only file here.
    pub fn bring_part(
        &mut self,
        from: &Path,
        name: &str,
        bytes: u64,
        bar: &Bar,
    ) -> Result<(), ToolError> {
        let to = self.path(name);
        self.copy(from, &to, bytes, false, bar)
    }

    /// Makes `alias` another name of the part `name`.
    pub fn name_newest_part(&mut self, name: &str, alias: &str) -> Result<(), ToolError> {
        let to = self.path(alias);
        fs::hard_link(self.path(name), &to).map_err(failed("link", &to))
    }

    /// Copies and syncs. What lies behind the bytes that count becomes a hole of the same length, if
    /// the length is to stay.
    fn copy(
        &mut self,
        from: &Path,
        to: &Path,
        bytes: u64,
        keeps_length: bool,
        bar: &Bar,
    ) -> Result<(), ToolError> {
        let source = File::open(from).map_err(failed("read", from))?;
        let length = source.metadata().map_err(failed("read", from))?.len();
        let mut copy = create(to).map_err(failed("make", to))?;
        let mut done = 0;
        while done < bytes {
            let step = STEP.min(bytes - done);
            let n = io::copy(&mut (&source).take(step), &mut copy).map_err(failed("copy", from))?;
            if n == 0 {
                let short = format!("it has {done} bytes, and {bytes} belong to it");
                let error = io::Error::new(io::ErrorKind::UnexpectedEof, short);
                return Err(failed("copy", from)(error));
            }
            done += n;
            bar.advance(n);
        }
        let ended = match keeps_length && length > bytes {
            true => copy.set_len(length),
            false => Ok(()),
        };
        ended.and_then(|()| copy.sync_all()).map_err(failed("write", to))?;
        self.copied.add(bytes);
        Ok(())
    }

    /// The link that `cp *.ckpt` follows, as a server makes it.
    fn link(&self, name: &str) -> Result<(), ToolError> {
        if !name.ends_with(".ckpt") {
            return Ok(());
        }
        let link = self.path(name);
        std::os::unix::fs::symlink(Path::new(CHECKPOINTS).join(name), &link)
            .map_err(failed("link", &link))
    }

    /// Takes away what was begun for checkpoints, when there are none.
    pub fn without_checkpoints(&self) -> Result<(), ToolError> {
        let folder = self.path(CHECKPOINTS);
        fs::remove_dir(&folder).map_err(failed("remove", &folder))
    }

    /// Syncs all names and gives the directory its own.
    pub fn finish(mut self) -> Result<(), ToolError> {
        let sync = |folder: &Path| File::open(folder).and_then(|f| f.sync_all());
        let checkpoints = self.path(CHECKPOINTS);
        for folder in [&checkpoints, &self.folder] {
            if folder.is_dir() {
                sync(folder).map_err(failed("sync", folder))?;
            }
        }
        // It replaces an empty directory, and nothing else.
        fs::rename(&self.folder, &self.to).map_err(failed("make", &self.to))?;
        self.is_finished = true;
        let parent = directory_of(&self.to);
        sync(parent).map_err(failed("sync", parent))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.is_finished {
            // What cannot be removed the next one removes: its name tells.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

impl Count {
    fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

/// Where the directory is to be, absolute; refused unless it is new or empty.
fn place(to: &Path) -> Result<PathBuf, ToolError> {
    let refused = |why: &str| {
        let to = to.display();
        Err(ToolError::Refused(format!("{to} {why}; name a new or an empty directory")))
    };
    match fs::metadata(to) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let to = std::path::absolute(to).map_err(failed("find", to))?;
            return match to.file_name() {
                Some(_) => Ok(to),
                None => refused("is no name for a directory"),
            };
        }
        Err(e) => return Err(failed("look at", to)(e)),
        Ok(found) if !found.is_dir() => return refused("is no directory"),
        Ok(_) => {}
    }
    if fs::read_dir(to).map_err(failed("list", to))?.next().is_some() {
        return refused("is not empty");
    }
    let to = to.canonicalize().map_err(failed("find", to))?;
    let device = |path: &Path| -> Result<u64, ToolError> {
        Ok(fs::metadata(path).map_err(failed("look at", path))?.dev())
    };
    if to.file_name().is_none() || device(&to)? != device(directory_of(&to))? {
        return refused(
            "is a file system by itself, which no directory can replace; name one in it",
        );
    }
    Ok(to)
}

/// Holds a folder that is being made.
fn lock_folder(folder: &Path) -> Result<File, ToolError> {
    let lock = File::open(folder).map_err(failed("open", folder))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(ToolError::Refused(format!(
            "another ferrite is at work on {}; wait until it has ended",
            folder.display()
        ))),
        Err(TryLockError::Error(e)) => Err(failed("lock", folder)(e)),
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}

/// For `map_err`: what was tried with which file.
pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ToolError {
    let path = path.to_owned();
    move |source| ToolError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_there_until_it_is_finished() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        fs::write(at("one"), "0123456789").expect("written");
        let bar = Bar::of(0, "copying");
        let stage = |to: &Path| {
            let mut staging = Staging::begin(to).expect("begun");
            let mut bring = |name, how| {
                let brought = staging.bring_checkpoint_file(&at("one"), name, 4, how, &bar);
                brought.expect("brought");
            };
            bring("a.ckpt", How::Link);
            bring("b.ckpt", How::Copy);
            staging.bring_part(&at("one"), "x.000001.aof", 3, &bar).expect("copied");
            staging.name_newest_part("x.000001.aof", "x.aof").expect("linked");
            staging.write_manifest("m.ckpt", b"manifest").expect("written");
            assert_eq!((staging.copied.files, staging.linked.files), (3, 1));
            staging
        };
        let to = at("new/data");
        drop(stage(&to));
        assert!(fs::read_dir(at("new")).expect("a folder").next().is_none());
        // What a killed one has left is no obstacle, one at work is.
        let left = stage(&to);
        assert!(Staging::begin(&to).err().expect("locked").to_string().contains("at work"));
        let folder = left.folder().to_owned();
        left._lock.unlock().expect("unlocked");
        std::mem::forget(left);
        fs::create_dir(&to).expect("an empty one will do");
        let staging = stage(&to);
        assert!(folder.exists());
        staging.finish().expect("finished");
        assert!(!folder.exists());
        let read = |name: &str| fs::read(to.join(name)).expect("read");
        assert_eq!(read("a.ckpt"), b"0123456789", "the same file");
        assert_eq!(read("b.ckpt"), b"0123\0\0\0\0\0\0", "what counts, and the length");
        assert_eq!((read("x.aof"), read("m.ckpt")), (b"012".to_vec(), b"manifest".to_vec()));
        let inode = |path: PathBuf| fs::metadata(path).expect("there").ino();
        assert_eq!(inode(to.join("a.ckpt")), inode(at("one")));
        assert_ne!(inode(to.join("b.ckpt")), inode(at("one")));
        assert!(Staging::begin(&to).err().expect("full").to_string().contains("is not empty"));
        assert!(Staging::begin(&at("one")).err().expect("a file").to_string().contains("no dir"));
    }

    #[test]
    fn a_file_that_is_too_short_or_gone_is_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        fs::write(at("one"), "0123").expect("written");
        let mut staging = Staging::begin(&at("new")).expect("begun");
        let bar = Bar::of(0, "copying");
        let short = staging.bring_part(&at("one"), "one", 5, &bar).expect_err("short");
        assert!(short.to_string().contains("it has 4 bytes, and 5 belong to it"), "{short}");
        let gone = staging.bring_checkpoint_file(&at("two"), "two", 1, How::Link, &bar);
        assert!(gone.is_err());
    }
}
