//! What a file is called on disk, and which file a name means.
//!
//! ```text
//!   stem.ckpt              Manifest
//!   stem.ckpt.new          ManifestNew
//!   stem.ckpt.previous     Previous
//!   stem.index-N.ckpt      Index(N)
//!   stem.log-N.ckpt        Segment(N)
//!   stem.log-N.side.ckpt   Side(N)
//! ```
//!
//! Numbers are decimal without leading zeros, so that every name has one meaning and every file
//! one name. Never rename: stored on disk, in backups and in scripts.

use super::FileId;

impl FileId {
    /// The file's name in a store whose files carry `stem`.
    pub fn name(self, stem: &str) -> String {
        match self {
            Self::Manifest => format!("{stem}.ckpt"),
            Self::ManifestNew => format!("{stem}.ckpt.new"),
            Self::Previous => format!("{stem}.ckpt.previous"),
            Self::Index(number) => format!("{stem}.index-{number}.ckpt"),
            Self::Segment(number) => format!("{stem}.log-{number}.ckpt"),
            Self::Side(number) => format!("{stem}.log-{number}.side.ckpt"),
        }
    }

    /// The file that `name` means in a store whose files carry `stem`; `None` for a name that
    /// is not the store's.
    pub fn parse(stem: &str, name: &str) -> Option<Self> {
        let rest = name.strip_prefix(stem)?;
        match rest {
            ".ckpt" => return Some(Self::Manifest),
            ".ckpt.new" => return Some(Self::ManifestNew),
            ".ckpt.previous" => return Some(Self::Previous),
            _ => {}
        }
        let rest = rest.strip_suffix(".ckpt")?;
        if let Some(digits) = rest.strip_prefix(".index-") {
            return number(digits).map(Self::Index);
        }
        let rest = rest.strip_prefix(".log-")?;
        match rest.strip_suffix(".side") {
            Some(digits) => number(digits).map(Self::Side),
            None => number(rest).map(Self::Segment),
        }
    }

    /// Whether the data directory holds a link to the file. The manifest being written has none:
    /// a copy of all `*.ckpt` must hold finished files only. Nor has what is kept beside the newest
    /// checkpoint: such a copy needs one.
    pub(super) fn is_linked(self) -> bool {
        !matches!(self, Self::ManifestNew | Self::Previous)
    }
}

/// A number as `Display` prints it: digits only, no leading zero.
fn number(digits: &str) -> Option<u64> {
    let canonical = digits.bytes().all(|byte| byte.is_ascii_digit())
        && (digits == "0" || !digits.starts_with('0'));
    if canonical { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back_as_its_file() {
        for stem in ["ferrite", "my.store", "a.log-1"] {
            for file in [
                FileId::Manifest,
                FileId::ManifestNew,
                FileId::Previous,
                FileId::Index(0),
                FileId::Index(17),
                FileId::Segment(3),
                FileId::Segment(u64::MAX),
                FileId::Side(0),
                FileId::Side(90),
            ] {
                assert_eq!(FileId::parse(stem, &file.name(stem)), Some(file));
            }
        }
    }

    #[test]
    fn a_name_that_the_store_would_not_write_is_not_the_stores() {
        for name in [
            "ferrite",
            "ferrite.aof",
            "ferrite.ckpt.old",
            "ferrite.log-.ckpt",
            "ferrite.log-03.ckpt",
            "ferrite.log-+3.ckpt",
            "ferrite.log-3.ckpt.bak",
            "ferrite.log-3.side",
            "ferrite.log-3.g1.ckpt",
            "ferrite.log-18446744073709551616.ckpt",
            "ferrite.index-1.side.ckpt",
            "other.ckpt",
        ] {
            assert_eq!(FileId::parse("ferrite", name), None, "{name}");
        }
    }
}
