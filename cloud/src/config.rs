//! How objects are named and how much runs at once.

/// Settings of one [`ObjectSegments`](crate::ObjectSegments).
#[derive(Clone, Debug)]
pub struct Config {
    /// What every object's name begins with, `/` between its parts; may be empty.
    pub prefix: String,
    /// Uploads that run at once; more wait. At least 1.
    pub concurrent_uploads: usize,
    /// An upload's unit, in bytes; each running upload holds one in memory. Providers ask for at
    /// least 5 MiB. At least 1.
    pub part_size: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { prefix: String::new(), concurrent_uploads: 4, part_size: 8 << 20 }
    }
}
