//! `ferrite.ckpt`: the one file that makes a checkpoint real.
//!
//! ```text
//!   magic "FERRCKPT" | version u32 | body bytes u32 | body | CRC32C of all before u32
//!
//!   body    store id 16 | hash algorithm u8 | hash secret 16 | index smallest bits u8
//!           page words u64 | segment words u64 | next number u64 | next segment u64
//!           checkpoints u8
//!   each    number u64 | taken at (Unix ms) u64 | begin u64 | cut u64
//!           image: number u64 (0 none), fuzzy start u64, bytes u64
//!           extents u32, each: from u64, to u64          addresses in words of 8 bytes
//!           databases u16, each: slot u8
//!           slots u16, each: floor u64, keys u64, expiring keys u64, live words u64
//! ```
//!
//! Little-endian throughout, padded with zeros to a block. The newest checkpoint comes first. It is written whole to
//! `ferrite.ckpt.new`, synced, and renamed over the old one.

use crate::tier::raw::block_crc;

const MAGIC: &[u8; 8] = b"FERRCKPT";
const VERSION: u32 = 3;

/// Whether a file begins as a manifest.
pub(crate) fn is_manifest(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub store_id: [u8; 16],
    pub hash_algorithm: u8,
    pub hash_secret: [u8; 16],
    pub index_smallest_bits: u8,
    pub page_words: u64,
    pub segment_words: u64,
    /// No checkpoint or image that was ever begun has this number or a higher one.
    pub next_number: u64,
    /// No segment that a start has found, or that lies below a cut, has this number or a higher
    /// one.
    pub next_segment: u64,
    pub checkpoints: Vec<Checkpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub number: u64,
    pub taken_at_ms: u64,
    pub begin: u64,
    pub cut: u64,
    pub image: ImageRef,
    /// The log's live ranges, ascending; the last ends at `cut`.
    pub extents: Vec<(u64, u64)>,
    pub map: Vec<u8>,
    pub slots: Vec<SlotState>,
}

/// An image of the index; number 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ImageRef {
    pub number: u64,
    pub fuzzy_start: u64,
    pub length: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotState {
    pub floor: u64,
    pub keys: u64,
    pub expiring: u64,
    pub live: u64,
}

impl Manifest {
    pub fn newest(&self) -> Option<&Checkpoint> {
        self.checkpoints.first()
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend_from_slice(&self.store_id);
        body.push(self.hash_algorithm);
        body.extend_from_slice(&self.hash_secret);
        body.push(self.index_smallest_bits);
        put(&mut body, &[self.page_words, self.segment_words]);
        put(&mut body, &[self.next_number, self.next_segment]);
        body.push(self.checkpoints.len() as u8);
        self.checkpoints.iter().for_each(|c| c.encode(&mut body));
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        out.extend_from_slice(&body);
        let crc = block_crc(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// `Err` is the offset of what is wrong, and what.
    pub fn decode(bytes: &[u8]) -> Result<Self, (u64, String)> {
        let mut r = Reader { bytes, at: 0 };
        if r.take(8)? != MAGIC {
            return Err((0, "it does not start as a Ferrite manifest".into()));
        }
        let version = r.u32()?;
        if version != VERSION {
            return Err((8, format!("its version is {version}; this Ferrite reads {VERSION}")));
        }
        let length = r.u32()? as usize;
        let end = r.at + length;
        let stored = bytes
            .get(end..end + 4)
            .ok_or_else(|| (bytes.len() as u64, "it ends early".to_owned()))?;
        let expected = u32::from_le_bytes(stored.try_into().expect("four bytes"));
        let found = block_crc(&bytes[..end]);
        if expected != found {
            return Err((
                0,
                format!("it fails its checksum (expected {expected:08x}, found {found:08x})"),
            ));
        }
        r.bytes = &bytes[..end];
        let mut manifest = Self {
            store_id: r.array()?,
            hash_algorithm: r.u8()?,
            hash_secret: r.array()?,
            index_smallest_bits: r.u8()?,
            page_words: r.u64()?,
            segment_words: r.u64()?,
            next_number: r.u64()?,
            next_segment: r.u64()?,
            checkpoints: Vec::new(),
        };
        for _ in 0..r.u8()? {
            manifest.checkpoints.push(Checkpoint::decode(&mut r)?);
        }
        Ok(manifest)
    }
}

impl Checkpoint {
    fn encode(&self, out: &mut Vec<u8>) {
        put(out, &[self.number, self.taken_at_ms, self.begin, self.cut]);
        put(out, &[self.image.number, self.image.fuzzy_start, self.image.length]);
        out.extend_from_slice(&(self.extents.len() as u32).to_le_bytes());
        self.extents.iter().for_each(|(from, to)| put(out, &[*from, *to]));
        out.extend_from_slice(&(self.map.len() as u16).to_le_bytes());
        out.extend_from_slice(&self.map);
        out.extend_from_slice(&(self.slots.len() as u16).to_le_bytes());
        self.slots.iter().for_each(|s| put(out, &[s.floor, s.keys, s.expiring, s.live]));
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, (u64, String)> {
        let (number, taken_at_ms, begin, cut) = (r.u64()?, r.u64()?, r.u64()?, r.u64()?);
        let image = ImageRef { number: r.u64()?, fuzzy_start: r.u64()?, length: r.u64()? };
        let extents = (0..r.u32()?)
            .map(|_| Ok((r.u64()?, r.u64()?)))
            .collect::<Result<Vec<_>, (u64, String)>>()?;
        let databases = usize::from(r.u16()?);
        let map = r.take(databases)?.to_vec();
        let slots = (0..r.u16()?)
            .map(|_| {
                let (floor, keys) = (r.u64()?, r.u64()?);
                Ok(SlotState { floor, keys, expiring: r.u64()?, live: r.u64()? })
            })
            .collect::<Result<Vec<_>, (u64, String)>>()?;
        Ok(Self { number, taken_at_ms, begin, cut, image, extents, map, slots })
    }
}

fn put(out: &mut Vec<u8>, fields: &[u64]) {
    fields.iter().for_each(|f| out.extend_from_slice(&f.to_le_bytes()));
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], (u64, String)> {
        let out = self
            .bytes
            .get(self.at..self.at + count)
            .ok_or_else(|| (self.at as u64, "it ends early".to_owned()))?;
        self.at += count;
        Ok(out)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], (u64, String)> {
        Ok(self.take(N)?.try_into().expect("as many were taken"))
    }
    fn u8(&mut self) -> Result<u8, (u64, String)> {
        Ok(self.take(1)?[0])
    }
    fn u16(&mut self) -> Result<u16, (u64, String)> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    fn u32(&mut self) -> Result<u32, (u64, String)> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    fn u64(&mut self) -> Result<u64, (u64, String)> {
        Ok(u64::from_le_bytes(self.array()?))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        let slot = SlotState { floor: 512, keys: 3, expiring: 1, live: 40 };
        let image = ImageRef { number: 7, fuzzy_start: 1000, length: 4096 };
        Manifest {
            store_id: [1; 16],
            hash_algorithm: 1,
            hash_secret: [2; 16],
            index_smallest_bits: 12,
            page_words: 512,
            segment_words: 2048,
            next_number: 9,
            next_segment: 1,
            checkpoints: vec![Checkpoint {
                number: 7,
                taken_at_ms: 1,
                begin: 512,
                cut: 1024,
                image,
                extents: vec![(512, 1024)],
                map: vec![0, 1],
                slots: vec![slot, slot],
            }],
        }
    }

    #[test]
    fn a_manifest_comes_back_as_it_was() {
        assert_eq!(Manifest::decode(&sample().encode()), Ok(sample()));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let bytes = sample().encode();
        for at in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert!(Manifest::decode(&bad).is_err(), "bit {at}");
        }
        for length in 0..bytes.len() {
            assert!(Manifest::decode(&bytes[..length]).is_err(), "length {length}");
        }
    }
}
