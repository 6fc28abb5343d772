//! Where buckets live: one reserved range of address space that is given memory from its start on,
//! a step at a time, and never moves. `[unsafe]`: everything else in this crate asks for `&Bucket`s.
//!
//! Fresh memory is all zero, which is an empty bucket, so making a large index touches no page.
//! Huge pages are asked for beyond the first 2 MiB (within them, only if the first step is at least
//! as large), so that the small indexes of unused databases stay small.
//!
//! Under loom the buckets are a plain vector of loom's atomics.

use crate::bucket::Bucket;
use std::io;

/// Memory is granted in steps of this many bytes: a huge page.
#[cfg(not(loom))]
const STEP: usize = 2 << 20;

#[cfg(not(loom))]
pub(crate) use mapped::Buckets;
#[cfg(loom)]
pub(crate) use modelled::Buckets;

#[cfg(not(loom))]
mod mapped {
    use super::{Bucket, STEP, io};
    use crate::sync::{Acquire, AtomicU64, Release};
    use std::ptr::{self, NonNull};

    const BUCKET: usize = size_of::<Bucket>();

    /// A growing array of buckets at a fixed place.
    pub(crate) struct Buckets {
        /// Aligned to `STEP`; `reserved` bytes from here belong to us alone until drop, and the
        /// first `committed` of them are readable and writable, and were zero when granted.
        base: NonNull<Bucket>,
        reserved: usize,
        /// A multiple of the page size; only grows.
        committed: AtomicU64,
        /// Bytes from the start on that stay on small pages.
        small_until: usize,
        huge_pages: bool,
        mapping: *mut libc::c_void,
        mapping_len: usize,
    }

    // SAFETY: the range is owned by this value and moves with it; what is shared are `Bucket`s,
    // which are made of atomics.
    unsafe impl Send for Buckets {}
    // SAFETY: as above; `commit` may run at the same time as itself and as `get`, since granting
    // memory twice changes nothing and never takes any away.
    unsafe impl Sync for Buckets {}

    impl Buckets {
        /// Reserves room for up to `most` buckets and grants memory for the first `first`.
        pub(crate) fn new(first: u64, most: u64, huge_pages: bool) -> io::Result<Self> {
            let bytes = |buckets: u64| {
                usize::try_from(buckets).ok().and_then(|buckets| buckets.checked_mul(BUCKET))
            };
            let too_much = || io::Error::from(io::ErrorKind::OutOfMemory);
            let reserved = bytes(most).and_then(|b| b.checked_next_multiple_of(STEP));
            let reserved = reserved.ok_or_else(too_much)?;
            let mapping_len = reserved.checked_add(STEP).ok_or_else(too_much)?;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            // SAFETY: a new anonymous mapping at a place of the kernel's choosing touches no
            // memory that anything else uses.
            let mapping =
                unsafe { libc::mmap(ptr::null_mut(), mapping_len, libc::PROT_NONE, flags, -1, 0) };
            if mapping == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let skip = mapping.cast::<u8>().align_offset(STEP);
            // SAFETY: `skip < STEP` and the mapping is `STEP` longer than `reserved`, so the
            // result lies inside it.
            let base = unsafe { mapping.cast::<u8>().add(skip) };
            let buckets = Self {
                base: NonNull::new(base.cast()).expect("the kernel maps nothing at null here"),
                reserved,
                committed: AtomicU64::new(0),
                small_until: if bytes(first).is_some_and(|b| b >= STEP) { 0 } else { STEP },
                huge_pages,
                mapping,
                mapping_len,
            };
            buckets.commit(first)?;
            Ok(buckets)
        }

        /// Grants memory for the first `buckets` buckets. Those that had it keep what they hold.
        pub(crate) fn commit(&self, buckets: u64) -> io::Result<()> {
            let had = self.committed.load(Acquire) as usize;
            let wanted = usize::try_from(buckets).ok().and_then(|b| b.checked_mul(BUCKET));
            let wanted = wanted.filter(|w| *w <= self.reserved);
            let wanted = wanted.ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
            if wanted <= had {
                return Ok(());
            }
            let until = wanted.next_multiple_of(STEP).min(self.reserved);
            // SAFETY: `had < until <= reserved`, so this is inside the mapping.
            let start = unsafe { self.base.as_ptr().cast::<u8>().add(had) };
            let access = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: the range is ours; allowing more access to it breaks no reference.
            if unsafe { libc::mprotect(start.cast(), until - had, access) } != 0 {
                return Err(io::Error::last_os_error());
            }
            if self.huge_pages && until > self.small_until {
                let from = had.max(self.small_until);
                // SAFETY: as for `start`: `from < until <= reserved`.
                let start = unsafe { self.base.as_ptr().cast::<u8>().add(from) };
                // A hint: where it is refused, small pages do.
                // SAFETY: the range is ours, and the advice changes no contents.
                let _ = unsafe { libc::madvise(start.cast(), until - from, libc::MADV_HUGEPAGE) };
            }
            // Release pairs with the acquire load above: whoever sees the number may rely on it.
            self.committed.fetch_max(until as u64, Release);
            Ok(())
        }

        /// Bucket `number`.
        ///
        /// # Safety
        /// [`commit`](Self::commit) has succeeded for more than `number` buckets, and that is known
        /// to this thread (it happened before).
        #[inline]
        pub(crate) unsafe fn get(&self, number: u64) -> &Bucket {
            debug_assert!((number as usize) < self.reserved / BUCKET);
            // SAFETY: the caller promises that the bucket lies in granted memory.
            let bucket = unsafe { self.base.add(number as usize) };
            // SAFETY: that memory is aligned, was zero when granted (a valid Bucket), is only
            // touched as Buckets, and is unmapped no earlier than `self` is dropped.
            unsafe { bucket.as_ref() }
        }

        /// Bytes of it that are in memory, as the kernel counts them.
        pub(crate) fn resident_bytes(&self) -> u64 {
            const PAGES: usize = 16 << 10;
            // SAFETY: sysconf has no preconditions.
            let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(4096) as usize;
            let committed = self.committed.load(Acquire) as usize;
            let mut present = vec![0u8; PAGES.min(committed.div_ceil(page))];
            let mut resident = 0;
            for offset in (0..committed).step_by(PAGES * page) {
                let len = (committed - offset).min(PAGES * page);
                // SAFETY: `offset < committed`, inside the mapping.
                let start = unsafe { self.base.as_ptr().cast::<u8>().add(offset) };
                // SAFETY: the range is mapped, page aligned, and `present` has a byte for each of
                // its pages.
                let failed = unsafe { libc::mincore(start.cast(), len, present.as_mut_ptr()) } != 0;
                let pages = &present[..len.div_ceil(page)];
                let counted = pages.iter().filter(|page| **page & 1 == 1).count() * page;
                resident += if failed { len } else { counted.min(len) };
            }
            resident as u64
        }
    }

    impl Drop for Buckets {
        fn drop(&mut self) {
            // SAFETY: mapping and length are what mmap gave, and no `&Bucket` outlives `self`.
            let unmapped = unsafe { libc::munmap(self.mapping, self.mapping_len) };
            debug_assert_eq!(unmapped, 0, "our own mapping can be unmapped");
        }
    }
}

#[cfg(loom)]
mod modelled {
    use super::{Bucket, io};

    pub(crate) struct Buckets {
        buckets: Vec<Bucket>,
    }

    impl Buckets {
        pub(crate) fn new(_first: u64, most: u64, _huge_pages: bool) -> io::Result<Self> {
            Ok(Self { buckets: (0..most).map(|_| Bucket::empty()).collect() })
        }

        pub(crate) fn commit(&self, buckets: u64) -> io::Result<()> {
            let fits = buckets <= self.buckets.len() as u64;
            fits.then_some(()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
        }

        /// # Safety
        /// None here; the mapped form has one.
        pub(crate) unsafe fn get(&self, number: u64) -> &Bucket {
            &self.buckets[number as usize]
        }

        pub(crate) fn resident_bytes(&self) -> u64 {
            (self.buckets.len() * size_of::<Bucket>()) as u64
        }
    }
}
