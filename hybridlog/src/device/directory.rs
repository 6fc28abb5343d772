//! The directories of a store on a local file system, and the links between them.
//!
//! ```text
//!   data/ferrite.ckpt       -> checkpoints/ferrite.ckpt         links, so that
//!   data/ferrite.log-3.ckpt -> checkpoints/ferrite.log-3.ckpt   `cp data/*.ckpt` is a backup
//!   data/checkpoints/ferrite.ckpt                               the files
//!   data/checkpoints/ferrite.log-3.ckpt
//! ```
//!
//! Promises:
//! * `checkpoints/` is the truth; a link never brings back what was moved away with it.
//! * A directory that holds the files themselves and neither `checkpoints` nor anything called
//!   `checkpoints.*` is a restored copy. It is read where it lies; the first change moves the
//!   files into `checkpoints/`, all in one rename.
//! * Opening changes nothing but creating the data directory. Before the first change, missing
//!   links are made and links to files that are gone are removed.
//! * What the store would not have made itself is never touched. A file where a link belongs
//!   stops the open with its name: either it or `checkpoints/` is the data, and only the
//!   operator knows which.

use crate::sync::{
    Arc, Mutex, OnceLock, PoisonError,
    atomic::{AtomicU8, Ordering},
};
use std::ffi::CString;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::descriptors::{Access, Descriptor, Descriptors};
use super::{ALIGNMENT, Buffer, FileId};
use crate::OpenError;

/// The folder of the real files.
const CHECKPOINTS: &str = "checkpoints";

/// Where the real files are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Home {
    /// In `checkpoints/`.
    Checkpoints = 0,
    /// In the data directory: a restored copy.
    Root = 1,
    /// Nowhere yet: `checkpoints/` is made by the first change.
    Nowhere = 2,
}

/// The files of one store. See the module's promises.
pub(super) struct Directory {
    data: PathBuf,
    checkpoints: PathBuf,
    stem: String,
    /// A [`Home`], written under `changes`.
    home: AtomicU8,
    /// Held by whoever changes names; true once the links are known to be right.
    changes: Mutex<bool>,
    descriptors: Descriptors,
    /// Why reads go through the page cache, once that is known.
    direct_refused: OnceLock<String>,
}

impl Directory {
    /// Opens the store's directory, which is created when it does not exist.
    pub(super) fn open(data: &Path, stem: &str) -> Result<Self, OpenError> {
        check_stem(stem)?;
        let failed = |action, path: &Path| {
            let path = path.to_path_buf();
            move |source| OpenError::Io { action, path, source }
        };
        create_durably(data).map_err(failed("create", data))?;
        let home = find_home(data, stem).map_err(failed("look into", data))?;
        let directory = Self {
            data: data.to_path_buf(),
            checkpoints: data.join(CHECKPOINTS),
            stem: stem.to_owned(),
            home: AtomicU8::new(home as u8),
            changes: Mutex::new(false),
            descriptors: Descriptors::new(descriptor_limit()),
            direct_refused: OnceLock::new(),
        };
        if home != Home::Root {
            directory.refuse_strangers()?;
        }
        let probed = directory.probe().map_err(failed("write a file in", directory.folder()))?;
        if let Err(why) = probed {
            directory.refuse_direct(why);
        }
        Ok(directory)
    }

    /// Where a file lies.
    pub(super) fn path(&self, file: FileId) -> PathBuf {
        match self.home() {
            Home::Root => self.data.join(file.name(&self.stem)),
            Home::Checkpoints | Home::Nowhere => self.checkpoints.join(file.name(&self.stem)),
        }
    }

    /// Creates a file and its link. See [`super::Device::create`].
    pub(super) fn create(&self, file: FileId, size: u64) -> io::Result<()> {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        self.settle(&mut changes)?;
        let path = self.path(file);
        let open = || OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let opened = self.descriptors.open(open)?;
        let made = allocate(&opened, size).and_then(|()| self.link(file));
        if made.is_err() {
            // What cannot be used must not be found by the next start. The first error counts.
            let _ = fs::remove_file(&path);
        }
        made
    }

    /// Removes a file and its link.
    pub(super) fn remove(&self, file: FileId) -> io::Result<()> {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        self.settle(&mut changes)?;
        // The file first: without it there is nothing to do, and a link alone is mended by the
        // next start.
        fs::remove_file(self.path(file))?;
        self.descriptors.forget(file);
        self.unlink(file)
    }

    /// Renames a file over another and puts the links right.
    pub(super) fn rename(&self, from: FileId, to: FileId) -> io::Result<()> {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        self.settle(&mut changes)?;
        fs::rename(self.path(from), self.path(to))?;
        self.descriptors.rename(from, to);
        self.link(to)?;
        self.unlink(from)
    }

    /// Gives a file a second name. See [`super::Device::link`].
    pub(super) fn second_name(&self, from: FileId, to: FileId) -> io::Result<()> {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        self.settle(&mut changes)?;
        // A name of its own first, which then replaces what has the other.
        let fresh = self.checkpoints.join(format!(".{}-link", self.stem));
        let remove = |path: &Path| match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        remove(&fresh)?;
        match fs::hard_link(self.path(from), &fresh) {
            Err(error) if has_one_name(&error) => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, error));
            }
            other => other?,
        }
        fs::rename(&fresh, self.path(to))?;
        // Two names of one file already are left as they are by a rename.
        remove(&fresh)?;
        self.descriptors.forget(to);
        self.link(to)
    }

    /// The length of a file in bytes.
    pub(super) fn size(&self, file: FileId) -> io::Result<u64> {
        Ok(fs::metadata(self.path(file))?.len())
    }

    /// The store's files, sorted.
    pub(super) fn list(&self) -> io::Result<Vec<FileId>> {
        let mut files = match self.home() {
            Home::Nowhere => Vec::new(),
            Home::Checkpoints | Home::Root => regular_files(self.folder(), &self.stem)?,
        };
        files.sort_unstable();
        Ok(files)
    }

    /// Makes changes of names durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        let sync = |folder| self.descriptors.open(|| File::open(folder))?.sync_all();
        if self.home() == Home::Checkpoints {
            sync(&self.checkpoints)?;
        }
        sync(&self.data)
    }

    /// Bytes that an unprivileged user can still write.
    pub(super) fn free_space(&self) -> io::Result<u64> {
        let path = CString::new(self.folder().as_os_str().as_bytes())?;
        let mut figures = std::mem::MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: `path` is NUL-terminated and `figures` is valid for writes of a statvfs.
        let result = unsafe { libc::statvfs(path.as_ptr(), figures.as_mut_ptr()) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: statvfs returned 0, so it has filled the structure.
        let figures = unsafe { figures.assume_init() };
        Ok(figures.f_bavail.saturating_mul(figures.f_frsize))
    }

    /// Whether reads bypass the page cache, and why not.
    pub(super) fn direct_reads(&self) -> Result<(), String> {
        self.direct_refused.get().map_or(Ok(()), |why| Err(why.clone()))
    }

    /// Notes that the file system refuses direct reads; the first reason is kept.
    pub(super) fn refuse_direct(&self, why: String) {
        let _ = self.direct_refused.set(why);
    }

    /// The descriptor for writing or syncing a file, or for reading it through the page cache.
    pub(super) fn buffered(&self, file: FileId) -> io::Result<Arc<Descriptor>> {
        self.descriptors.get(file, Access::Buffered, || {
            let path = self.path(file);
            match OpenOptions::new().read(true).write(true).open(&path) {
                // A restored copy may be read-only, and old segments are only read.
                Err(error) if refuses_writing(&error) => File::open(&path),
                other => other,
            }
        })
    }

    /// The descriptor for reading a file at `offset`: past the page cache for segments, whose
    /// reads are rarely repeated, where file system and alignment allow.
    pub(super) fn for_read(
        &self,
        file: FileId,
        offset: u64,
    ) -> io::Result<(Arc<Descriptor>, Access)> {
        let direct = matches!(file, FileId::Segment(_))
            && offset.is_multiple_of(ALIGNMENT as u64)
            && self.direct_refused.get().is_none();
        if direct {
            let opened = self.descriptors.get(file, Access::Direct, || {
                let mut options = OpenOptions::new();
                options.read(true).custom_flags(libc::O_DIRECT).open(self.path(file))
            });
            match opened {
                Ok(descriptor) => return Ok((descriptor, Access::Direct)),
                Err(error) if refuses_direct(&error) => self.refuse_direct(refusal(&error)),
                Err(error) => return Err(error),
            }
        }
        Ok((self.buffered(file)?, Access::Buffered))
    }

    fn home(&self) -> Home {
        match self.home.load(Ordering::SeqCst) {
            0 => Home::Checkpoints,
            1 => Home::Root,
            _ => Home::Nowhere,
        }
    }

    /// The folder that exists and is closest to where the files are.
    fn folder(&self) -> &Path {
        match self.home() {
            Home::Checkpoints => &self.checkpoints,
            Home::Root | Home::Nowhere => &self.data,
        }
    }

    /// Before the first change of a name: the files into `checkpoints/`, and the links right.
    fn settle(&self, settled: &mut bool) -> io::Result<()> {
        if *settled {
            return Ok(());
        }
        match self.home() {
            Home::Checkpoints => {}
            Home::Nowhere => fs::create_dir(&self.checkpoints)?,
            Home::Root => self.adopt()?,
        }
        self.home.store(Home::Checkpoints as u8, Ordering::SeqCst);
        sync_folder(&self.data)?;
        self.mend_links()?;
        *settled = true;
        Ok(())
    }

    /// Moves the files of a restored copy into `checkpoints/`. They are linked into a folder
    /// under another name first, which is then renamed, so that a crash leaves either all of
    /// them there or `checkpoints/` absent.
    fn adopt(&self) -> io::Result<()> {
        let staging = self.data.join(format!(".{}-adopting", self.stem));
        if staging.is_dir() {
            for file in regular_files(&staging, &self.stem)? {
                fs::remove_file(staging.join(file.name(&self.stem)))?;
            }
            fs::remove_dir(&staging)?;
        }
        fs::create_dir(&staging)?;
        for file in regular_files(&self.data, &self.stem)? {
            let name = file.name(&self.stem);
            // Whoever copied the file need not have synced it.
            File::open(self.data.join(&name))?.sync_all()?;
            fs::hard_link(self.data.join(&name), staging.join(&name))?;
        }
        sync_folder(&staging)?;
        fs::rename(&staging, &self.checkpoints)
    }

    /// Makes the links equal to the files.
    fn mend_links(&self) -> io::Result<()> {
        for file in regular_files(&self.checkpoints, &self.stem)? {
            if file.is_linked() {
                self.link(file)?;
            }
        }
        for entry in fs::read_dir(&self.data)? {
            let Some(file) = our_file(&entry?, &self.stem) else { continue };
            let link = self.data.join(file.name(&self.stem));
            if self.is_our_link(file, &link)? && !fs::exists(&link)? {
                fs::remove_file(&link)?;
            }
        }
        Ok(())
    }

    /// Links a file from the data directory, unless it is linked.
    fn link(&self, file: FileId) -> io::Result<()> {
        if !file.is_linked() {
            return Ok(());
        }
        let name = file.name(&self.stem);
        let link = self.data.join(&name);
        let target = Path::new(CHECKPOINTS).join(&name);
        match std::os::unix::fs::symlink(&target, &link) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => return other,
        }
        if self.is_our_link(file, &link)? {
            return Ok(());
        }
        if !same_content(&link, &self.checkpoints.join(&name))? {
            return Err(stranger(file, &self.stem));
        }
        // An adoption was cut short, and the same file has two names; or the folder was copied by a
        // program that copies what links lead to. The link replaces it whole.
        let fresh = self.data.join(format!(".{}-link", self.stem));
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::os::unix::fs::symlink(&target, &fresh)?;
        fs::rename(&fresh, &link)
    }

    /// Removes the link of a file that is gone.
    fn unlink(&self, file: FileId) -> io::Result<()> {
        let link = self.data.join(file.name(&self.stem));
        if file.is_linked() && self.is_our_link(file, &link)? {
            fs::remove_file(&link)?;
        }
        Ok(())
    }

    /// Whether `link` is the link that the store makes for `file`; false when there is none.
    fn is_our_link(&self, file: FileId, link: &Path) -> io::Result<bool> {
        match fs::read_link(link) {
            Ok(target) => Ok(target == Path::new(CHECKPOINTS).join(file.name(&self.stem))),
            // EINVAL: not a link.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Fails when something else stands where a link belongs.
    fn refuse_strangers(&self) -> Result<(), OpenError> {
        let failed = |action, path: &Path| {
            let path = path.to_path_buf();
            move |source| OpenError::Io { action, path, source }
        };
        let entries = fs::read_dir(&self.data).map_err(failed("list", &self.data))?;
        for entry in entries {
            let entry = entry.map_err(failed("list", &self.data))?;
            let Some(file) = our_file(&entry, &self.stem) else { continue };
            let path = entry.path();
            let ours = self.is_our_link(file, &path).map_err(failed("read", &path))?
                || same_content(&path, &self.path(file)).map_err(failed("read", &path))?;
            if !ours && file.is_linked() {
                return Err(failed("use", &path)(stranger(file, &self.stem)));
            }
        }
        Ok(())
    }

    /// Whether direct reads work here, tried on an unnamed file. The outer error is that no
    /// file can be written at all.
    fn probe(&self) -> io::Result<Result<(), String>> {
        let file = unnamed_file(self.folder(), &self.stem)?;
        file.write_all_at(&Buffer::zeroed(ALIGNMENT), 0)?;
        // It may be refused here or by the read.
        let tried =
            make_direct(&file).and_then(|()| file.read_exact_at(&mut Buffer::zeroed(ALIGNMENT), 0));
        Ok(tried.map_err(|error| refusal(&error)))
    }
}

/// Whether an error says that the file system gives files no second names.
fn has_one_name(error: &io::Error) -> bool {
    let refusals = [libc::EPERM, libc::EOPNOTSUPP, libc::ENOSYS, libc::EMLINK, libc::EXDEV];
    error.raw_os_error().is_some_and(|number| refusals.contains(&number))
}

/// Whether an error says that the file system, or this file, does no direct reads.
pub(super) fn refuses_direct(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOTBLK))
}

/// What [`Directory::direct_reads`] says after such an error.
pub(super) fn refusal(error: &io::Error) -> String {
    format!("the file system refuses O_DIRECT ({error})")
}

fn refuses_writing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

fn check_stem(stem: &str) -> Result<(), OpenError> {
    let why = if stem.is_empty() {
        "it must have at least one character"
    } else if stem.contains(['/', '\0']) {
        "it is the start of a file's name and cannot contain a slash or a NUL"
    } else if stem.starts_with('.') {
        "a leading dot would hide the files from `cp *.ckpt`"
    } else if stem.len() > 200 {
        "it must have at most 200 bytes"
    } else {
        return Ok(());
    };
    Err(OpenError::Config { setting: "file_stem", value: stem.to_owned(), why: why.to_owned() })
}

/// Creates a folder and those above it, and makes their names durable. One that exists is as it
/// was.
pub(crate) fn create_durably(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    create_durably(parent)?;
    match DirBuilder::new().create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
        Err(error) => return Err(error),
        Ok(()) => {}
    }
    sync_folder(parent)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The folder of the store's files, and whether it is the data directory itself; `None` when they are
/// nowhere. Changes nothing.
pub(crate) fn home_of(data: &Path, stem: &str) -> io::Result<Option<(PathBuf, bool)>> {
    Ok(match find_home(data, stem)? {
        Home::Checkpoints => Some((data.join(CHECKPOINTS), false)),
        Home::Root => Some((data.to_path_buf(), true)),
        Home::Nowhere => None,
    })
}

fn find_home(data: &Path, stem: &str) -> io::Result<Home> {
    let checkpoints = data.join(CHECKPOINTS);
    match fs::symlink_metadata(&checkpoints) {
        Ok(_) if checkpoints.is_dir() => return Ok(Home::Checkpoints),
        Ok(_) => {
            let why = format!("{CHECKPOINTS} in it is not a folder; move it away");
            return Err(io::Error::new(io::ErrorKind::NotADirectory, why));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    for entry in fs::read_dir(data)? {
        if entry?.file_name().as_bytes().starts_with(b"checkpoints.") {
            // Moved aside by hand: what is left beside it is not the store.
            return Ok(Home::Nowhere);
        }
    }
    let copied = !regular_files(data, stem)?.is_empty();
    Ok(if copied { Home::Root } else { Home::Nowhere })
}

/// The files of the store that are real files, not links, in a folder.
fn regular_files(folder: &Path, stem: &str) -> io::Result<Vec<FileId>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if let Some(file) = our_file(&entry, stem)
            && entry.file_type()?.is_file()
        {
            files.push(file);
        }
    }
    Ok(files)
}

fn our_file(entry: &fs::DirEntry, stem: &str) -> Option<FileId> {
    FileId::parse(stem, entry.file_name().to_str()?)
}

/// Whether two paths name one regular file, neither being a link.
fn same_file(one: &Path, other: &Path) -> io::Result<bool> {
    let identity = |path: &Path| match fs::symlink_metadata(path) {
        Ok(found) => {
            Ok(Some(found).filter(Metadata::is_file).map(|found| (found.dev(), found.ino())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let one = identity(one)?;
    Ok(one.is_some() && one == identity(other)?)
}

/// Whether two paths, neither being a link, name one regular file or two with the same bytes.
fn same_content(one: &Path, other: &Path) -> io::Result<bool> {
    if same_file(one, other)? {
        return Ok(true);
    }
    let is_file = |path: &Path| match fs::symlink_metadata(path) {
        Ok(found) => Ok(Some(found).filter(Metadata::is_file).map(|found| found.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let (first, second) = (is_file(one)?, is_file(other)?);
    if first.is_none() || first != second {
        return Ok(false);
    }
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let n = one.read(&mut a)?;
        if n == 0 {
            return Ok(true);
        }
        other.read_exact(&mut b[..n])?;
        if a[..n] != b[..n] {
            return Ok(false);
        }
    }
}

fn stranger(file: FileId, stem: &str) -> io::Error {
    let name = file.name(stem);
    io::Error::new(
        io::ErrorKind::AlreadyExists,
        format!(
            "it stands where the link to {CHECKPOINTS}/{name} belongs; to use the files in \
             {CHECKPOINTS}, move this one away; to start from a restored copy, put the copy into \
             a directory without {CHECKPOINTS}"
        ),
    )
}

/// Gives a new file its size, with blocks behind it where the file system can.
fn allocate(file: &File, size: u64) -> io::Result<()> {
    let length = libc::off_t::try_from(size)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a file size beyond 2^63"))?;
    if length == 0 {
        return Ok(());
    }
    loop {
        // SAFETY: `file` is an open descriptor for the length of the call; no memory is passed.
        let result = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => return file.set_len(size),
            _ => return Err(error),
        }
    }
}

/// A file without a name, which vanishes when it is closed.
fn unnamed_file(folder: &Path, stem: &str) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    match options.custom_flags(libc::O_TMPFILE).open(folder) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {}
        other => return other,
    }
    let path = folder.join(format!(".{stem}-probe-{}", std::process::id()));
    let file = options.custom_flags(0).create(true).truncate(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// Switches an open file to direct I/O.
fn make_direct(file: &File) -> io::Result<()> {
    // SAFETY: `file` is an open descriptor for the length of the call; no memory is passed.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_DIRECT) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How many descriptors the process may have open.
fn descriptor_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for writes of an rlimit.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    // The smallest limit that POSIX allows, should it be unknown.
    if result == 0 { limit.rlim_cur } else { 20 }
}

#[cfg(test)]
mod tests;
