//! CRC32C (Castagnoli, as in iSCSI): the checksum of all of Ferrite's files.

use crc_fast::{CrcAlgorithm::Crc32Iscsi, Digest};

/// The checksum of `bytes`.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(Crc32Iscsi, bytes) as u32
}

/// The checksum of bytes that come in pieces.
pub(super) struct Running(Digest);

impl Running {
    pub(super) fn new() -> Self {
        Self(Digest::new(Crc32Iscsi))
    }
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
    pub(super) fn value(&self) -> u32 {
        self.0.finalize() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_castagnolis_in_one_piece_or_several() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283, "the catalogue's check value");
        let mut running = Running::new();
        running.update(b"1234");
        running.update(b"");
        running.update(b"56789");
        assert_eq!(running.value(), 0xE306_9283);
        assert_eq!((crc32c(b""), Running::new().value()), (0, 0));
    }
}
