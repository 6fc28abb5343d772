//! CRC32C (Castagnoli, as in iSCSI): the checksum of all of Ferrite's files.

use crc_fast::CrcAlgorithm::Crc32Iscsi;

/// The checksum of `bytes`.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(Crc32Iscsi, bytes) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283, "the catalogue's check value");
        assert_eq!(crc32c(b""), 0);
    }
}
