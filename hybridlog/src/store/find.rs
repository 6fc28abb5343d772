//! From a bucket's entry down the chain to the record of a key.
//!
//! A chain descends in address and holds every key that shares bucket and tag. A write unlinks
//! the version it replaces when that is the chain's head, so chains stay about one long; a dead
//! version can lie further down only behind another key.

use super::Inner;
use super::operation::Operation;
use crate::record::{Loaded, RecordRef};
use ferrite_index::{Address, Pin};

/// Boundaries and clock as one stay inside found them.
#[derive(Clone, Copy)]
pub(crate) struct View<'s> {
    pub inner: &'s Inner,
    head: u64,
    read_only: u64,
    begin: u64,
    pub now_ms: u64,
}

impl<'s> View<'s> {
    /// Loads them. Call it after the pin.
    pub fn load(inner: &'s Inner, _pin: &Pin<'_>) -> Self {
        let b = &inner.log.boundaries;
        let (begin, head, read_only) = (b.begin(), b.head(), b.read_only());
        Self { inner, head, read_only, begin, now_ms: inner.now_ms() }
    }

    /// The view together with the pin that it was loaded in.
    pub fn pinned<'p>(&self, pin: &'p Option<Pin<'_>>) -> Pinned<'p>
    where
        's: 'p,
    {
        let pin = pin.as_ref().expect("only a command that runs alone is inside without a pin");
        let Self { inner, head, read_only, begin, now_ms } = *self;
        Pinned { inner, pin, head, read_only, begin, now_ms }
    }
}

/// What one pinned session sees. Boundaries are loaded after the pin, so that what lies at or
/// above `head` stays in memory and what lies at or above `read_only` may change in place until
/// the pin ends.
#[derive(Clone, Copy)]
pub(crate) struct Pinned<'p> {
    pub inner: &'p Inner,
    pub pin: &'p Pin<'p>,
    pub head: u64,
    pub read_only: u64,
    pub begin: u64,
    pub now_ms: u64,
}

/// The newest record of a key, deleted ones included.
#[derive(Clone, Copy)]
pub(crate) struct Located<'p> {
    pub address: Address,
    pub record: RecordRef<'p>,
    /// At or above `read_only`.
    pub mutable: bool,
}

/// A key's newest record, if its chain has one.
#[derive(Clone, Copy)]
pub(crate) struct Lookup<'p> {
    pub at: Option<Located<'p>>,
}

impl<'p> Pinned<'p> {
    /// The record at an address, from memory or from what the operation fetched. `None`: it must
    /// be fetched.
    pub fn resolve<'a>(&self, op: &'a Operation, address: Address) -> Option<RecordRef<'a>>
    where
        'p: 'a,
    {
        if address.raw() >= self.head
            && let Some(record) = self.inner.log.record(self.pin, self.head, address)
        {
            return Some(record);
        }
        op.fetched(address).map(|fetched| fetched.record())
    }

    /// Whether an address of a chain still belongs to the log.
    pub fn is_live(&self, address: Address) -> bool {
        address.is_valid() && address.raw() >= self.begin
    }

    /// Finds the newest record of `key`. `Err` is the address that must be fetched first.
    pub fn find<'a>(
        &self,
        op: &'a Operation,
        first: Option<Address>,
        key: &[u8],
    ) -> Result<Lookup<'a>, Address>
    where
        'p: 'a,
    {
        let mut address = first.unwrap_or(Address::INVALID);
        while self.is_live(address) {
            let record = self.resolve(op, address).ok_or(address)?;
            if record.key() == key {
                let mutable = address.raw() >= self.read_only;
                return Ok(Lookup { at: Some(Located { address, record, mutable }) });
            }
            let previous = record.info().previous();
            assert!(previous < address, "a chain must descend");
            address = previous;
        }
        Ok(Lookup { at: None })
    }

    /// Up to where the redo log must be durable before anybody is told what this key holds.
    #[inline]
    pub fn last_entry_of(&self, hash: ferrite_index::KeyHash) -> u64 {
        self.inner.redo.as_ref().map_or(0, |redo| redo.last_of(hash))
    }

    /// Whether an expiry has passed. In its last millisecond the key is still there, as in Redis.
    pub fn is_due(&self, expires_at_ms: Option<u64>) -> bool {
        expires_at_ms.is_some_and(|at| at < self.now_ms)
    }
}

impl<'p> Lookup<'p> {
    /// The record, unless it says that the key was deleted.
    pub fn present(&self) -> Option<Located<'p>> {
        self.at.filter(|l| !l.record.info().is_tombstone())
    }

    /// The value of a present record, expired or not.
    pub fn load<'b>(&self, scratch: &'b mut Vec<u8>) -> Option<Loaded<'b>>
    where
        'p: 'b,
    {
        self.present().map(|l| l.record.load(scratch))
    }
}
