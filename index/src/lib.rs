//! The lock-free hash index of Ferrite: a key's hash in, a logical address out.
