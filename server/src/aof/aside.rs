//! Cutting a part short, and moving files out of the way, without losing a byte: what is cut off or
//! not understood is kept in the folder `quarantine` beside the parts.

use super::files::{Files as _, LocalFiles};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

/// The folder for what is cut off, or not understood.
pub const QUARANTINE: &str = "quarantine";

/// Cuts the file at `offset`. What lies behind is on disk in the file that is answered before the
/// file is any shorter.
pub fn cut_tail(path: &Path, offset: u64) -> io::Result<PathBuf> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    if offset > length {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("the file ends at {length}, before {offset}"),
        ));
    }
    let (aside, mut kept) = new_file(path, offset)?;
    file.seek(SeekFrom::Start(offset))?;
    let copied = io::copy(&mut (&mut file).take(length - offset), &mut kept)?;
    if copied != length - offset {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    kept.sync_all()?;
    LocalFiles.sync_directory(directory_of(&aside))?;
    LocalFiles.sync_directory(directory_of(path))?;
    file.set_len(offset)?;
    file.sync_all()?;
    Ok(aside)
}

/// Gives the file a name under which no start finds it.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    path.symlink_metadata()?;
    // The name is taken first, so that nothing that has it is replaced.
    let (aside, _) = new_file(path, 0)?;
    fs::rename(path, &aside)?;
    LocalFiles.sync_directory(directory_of(&aside))?;
    LocalFiles.sync_directory(directory_of(path))?;
    Ok(aside)
}

/// The directory that a path's last name is in.
pub fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// A new file `quarantine/NAME.cut-OFFSET`, or with `.2`, `.3` ... behind it.
fn new_file(path: &Path, offset: u64) -> io::Result<(PathBuf, File)> {
    let folder = directory_of(path).join(QUARANTINE);
    fs::create_dir_all(&folder)?;
    let path = folder.join(path.file_name().unwrap_or_default());
    for attempt in 1u32.. {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".cut-{offset:015}"));
        if attempt > 1 {
            name.push(format!(".{attempt}"));
        }
        let name = PathBuf::from(name);
        match OpenOptions::new().write(true).create_new(true).open(&name) {
            Ok(file) => return Ok((name, file)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && attempt < u32::MAX => {}
            Err(e) => return Err(e),
        }
    }
    unreachable!("the last attempt returns")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_off_is_kept_each_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("appendonly.000012.aof");
        fs::write(&path, "0123456789").expect("written");
        let first = cut_tail(&path, 7).expect("cut");
        assert_eq!(
            first,
            directory.path().join("quarantine/appendonly.000012.aof.cut-000000000000007")
        );
        fs::write(&path, "0123456xyz").expect("written");
        let second = cut_tail(&path, 7).expect("cut");
        assert_eq!(
            second,
            directory.path().join("quarantine/appendonly.000012.aof.cut-000000000000007.2")
        );
        let read = |path: &Path| fs::read_to_string(path).expect("read");
        assert_eq!(
            (read(&path), read(&first), read(&second)),
            ("0123456".into(), "789".into(), "xyz".into())
        );
        assert!(cut_tail(&path, 8).is_err());
        let aside = set_aside(&path).expect("renamed");
        assert_eq!((read(&aside), path.exists()), ("0123456".into(), false));
        assert!(cut_tail(&path, 0).is_err() && set_aside(&path).is_err(), "it is gone");
    }
}
