//! Numbers beyond 64 bits: 80-bit floats for INCRBYFLOAT, and the exact arithmetic that converting
//! them from and to decimal takes. Nothing here depends on the machine's floating point unit.

mod extended;
mod natural;

pub use extended::Extended;
