//! The `ferrite` server: RESP in, RESP out.
