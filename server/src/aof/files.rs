//! What a writer asks of the file system, so that tests can say no.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// A directory with parts.
pub trait Files: Clone {
    /// A part that is being written.
    type File: PartFile;
    /// Makes a file; one of that name must not be there.
    fn create(&self, path: &Path) -> io::Result<Self::File>;
    /// Makes `link` another name of the file `original`. Whatever had that name loses it in the same
    /// instant.
    fn replace_link(&self, original: &Path, link: &Path) -> io::Result<()>;
    /// Gives a file another name, which no other has.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Takes a name away.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Returns when all names in the directory are on disk as they are.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
}

/// A part that is being written. Shared: a sync may run while other bytes are written.
pub trait PartFile {
    /// Writes all bytes at `offset`, which is the file's end.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Returns when all that was written before the call is on disk.
    fn sync(&self) -> io::Result<()>;
}

/// The real file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalFiles;

impl Files for LocalFiles {
    type File = File;

    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create_new(true).open(path)
    }
    fn replace_link(&self, original: &Path, link: &Path) -> io::Result<()> {
        // No part's name and none that `cp *.aof` takes.
        let mut new = link.as_os_str().to_owned();
        new.push(".new");
        let new = Path::new(&new);
        remove_if_there(new)?;
        fs::hard_link(original, new)?;
        fs::rename(new, link)?;
        // A rename to another name of the same file leaves both.
        remove_if_there(new)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

impl PartFile for File {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn a_link_is_replaced_also_by_itself() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let inode = |name: &str| fs::metadata(path(name)).expect("it is there").ino();
        for name in ["one", "two"] {
            let file = LocalFiles.create(&path(name)).expect("made");
            PartFile::write_at(&file, name.as_bytes(), 0).expect("written");
            file.sync().expect("synced");
        }
        assert!(LocalFiles.create(&path("one")).is_err(), "it is there");
        fs::write(path("link.new"), "left behind by a crash").expect("written");
        for original in ["one", "two", "two"] {
            LocalFiles.replace_link(&path(original), &path("link")).expect("linked");
            assert_eq!(inode("link"), inode(original));
            assert!(!path("link.new").exists());
        }
        LocalFiles.sync_directory(directory.path()).expect("synced");
        LocalFiles.remove(&path("two")).expect("removed");
        assert_eq!(fs::read_to_string(path("link")).expect("read"), "two");
    }
}
