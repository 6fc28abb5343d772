//! Sealed segments of the log as objects in an object store.
