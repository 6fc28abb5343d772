//! Waiting for a device, for the threads that may.

use super::{ALIGNMENT, Buffer, Bytes, Device, Done, FileId, Request};
use crate::sync::mpsc;
use ferrite_index::assert_unpinned;
use std::io;

/// Bytes of one request of a long read or write.
const STEP: usize = 1 << 20;

fn wait<T: Send + 'static>(submit: impl FnOnce(Done<T>)) -> io::Result<T> {
    assert_unpinned();
    let (tx, rx) = mpsc::sync_channel(1);
    submit(Box::new(move |result| drop(tx.send(result))));
    rx.recv().unwrap_or_else(|_| Err(io::Error::other("the device dropped a request")))
}

/// Writes all of `bytes`.
pub(crate) fn write(
    device: &dyn Device,
    file: FileId,
    offset: u64,
    bytes: Vec<u8>,
) -> io::Result<()> {
    let bytes = Bytes::new(bytes);
    wait(|done| device.submit(Request::Write { file, offset, bytes, done }))
}

/// Makes completed writes durable.
pub(crate) fn sync(device: &dyn Device, file: FileId) -> io::Result<()> {
    wait(|done| device.submit(Request::Sync { file, done }))
}

/// The first `length` bytes of a file, a multiple of [`ALIGNMENT`].
pub(crate) fn read(device: &dyn Device, file: FileId, length: u64) -> io::Result<Vec<u8>> {
    read_at(device, file, 0, length)
}

/// `length` bytes of a file from `start` on, both multiples of [`ALIGNMENT`].
pub(crate) fn read_at(
    device: &dyn Device,
    file: FileId,
    start: u64,
    length: u64,
) -> io::Result<Vec<u8>> {
    assert!(length.is_multiple_of(ALIGNMENT as u64));
    let mut all = Vec::with_capacity(length as usize);
    while (all.len() as u64) < length {
        let offset = start + all.len() as u64;
        let buffer = Buffer::zeroed(STEP.min(length as usize - all.len()));
        let got = wait(|done| device.submit(Request::Read { file, offset, buffer, done }))?;
        all.extend_from_slice(&got);
    }
    Ok(all)
}
