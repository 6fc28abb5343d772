//! What a command's row says about it. COMMAND, arity errors, ACL categories and docs/commands.md
//! come from the rows.

use super::{Call, OutsideCall};
use crate::error::Outcome;

/// A row: one command, or one subcommand of a container such as CLIENT. Fill in what differs from
/// [`CommandSpec::BASE`].
#[derive(Debug)]
pub struct CommandSpec {
    /// In upper case; of a subcommand the second word alone.
    pub name: &'static str,
    /// Words including the name (and the container's); negative: at least that many.
    pub arity: i16,
    /// Redis's flags.
    pub flags: Flags,
    /// ACL categories beyond those that follow from the flags and the group.
    pub categories: Categories,
    /// Where its keys are.
    pub keys: &'static [KeySpec],
    /// Redis's hints to proxies (`nondeterministic_output`).
    pub tips: &'static [&'static str],
    /// The Redis version that brought it.
    pub since: &'static str,
    /// COMMAND DOCS' group.
    pub group: Group,
    /// In big-O notation.
    pub complexity: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// What it does.
    pub run: Run,
    /// The rows of a container.
    pub subcommands: &'static [CommandSpec],
}

/// How a command runs.
#[derive(Clone, Copy, Debug)]
pub enum Run {
    /// On the store, inside a batch. Must not block.
    Inside(fn(&mut Call<'_, '_>) -> Outcome),
    /// Outside of any batch: for what takes a safepoint, locks or waits. What writes runs alone
    /// (`OutsideCall::alone`).
    Outside(fn(&mut OutsideCall<'_>) -> Outcome),
    /// EXEC: what its client has collected runs, each command by its own row.
    Transaction,
    /// Its subcommands do the work.
    Container,
}

impl CommandSpec {
    /// A row with nothing in it.
    pub const BASE: Self = Self {
        name: "",
        arity: 0,
        flags: Flags::NONE,
        categories: Categories::NONE,
        keys: &[],
        tips: &[],
        since: "1.0.0",
        group: Group::Generic,
        complexity: "",
        summary: "",
        run: Run::Container,
        subcommands: &[],
    };
    /// Whether a command of `words` words fits.
    pub fn arity_fits(&self, words: usize) -> bool {
        let arity = usize::from(self.arity.unsigned_abs());
        if self.arity < 0 { words >= arity } else { words == arity }
    }
    /// All of its ACL categories, those that follow from its flags included.
    pub fn all_categories(&self) -> Categories {
        let implied = [
            (Flags::WRITE, Categories::WRITE),
            (Flags::READ, Categories::READ),
            (Flags::ADMIN, Categories::ADMIN.and(Categories::DANGEROUS)),
            (Flags::PUBSUB, Categories::PUBSUB),
            (Flags::FAST, Categories::FAST),
            (Flags::BLOCKING, Categories::BLOCKING),
        ];
        let mut all = self.categories;
        for (flag, categories) in implied {
            if self.flags.has(flag) {
                all = all.and(categories);
            }
        }
        if self.flags.has(Flags::FAST) { all } else { all.and(Categories::SLOW) }
    }
}

/// Where some of a command's keys are, and what it does with them.
#[derive(Clone, Copy, Debug)]
pub struct KeySpec {
    /// Index of the first key's word.
    pub first: u16,
    /// Index of the last one: relative to `first`, or, when negative, counted from the end.
    pub last: i16,
    /// Words from one key to the next.
    pub step: u16,
    /// What happens to them.
    pub access: Access,
    /// Why, where it is not plain.
    pub notes: &'static str,
}

impl KeySpec {
    /// One key at word `first`.
    pub const fn one(first: u16, access: Access) -> Self {
        Self { first, last: 0, step: 1, access, notes: "" }
    }
    /// Keys from word `first` to the end, each `step` words.
    pub const fn all(first: u16, step: u16, access: Access) -> Self {
        Self { first, last: -1, step, access, notes: "" }
    }
    /// The same, with notes.
    pub const fn noted(self, notes: &'static str) -> Self {
        Self { notes, ..self }
    }
    /// Indices of the keys in a command of `words` words.
    pub fn indices(&self, words: usize) -> impl Iterator<Item = usize> + use<> {
        let first = usize::from(self.first);
        let back = usize::from(self.last.unsigned_abs());
        let end = if self.last < 0 { (words + 1).saturating_sub(back) } else { first + back + 1 };
        (first..end.min(words)).step_by(usize::from(self.step.max(1)))
    }
}

/// A set of names, each a bit, and the words Redis has for them.
macro_rules! bit_names {
    ($(#[$doc:meta])* $type:ident($repr:ty) { $($(#[$each:meta])* $name:ident = $bit:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct $type($repr);
        impl $type {
            /// None of them.
            pub const NONE: Self = Self(0);
            $($(#[$each])* pub const $name: Self = Self(1 << $bit);)*
            const NAMES: &'static [(Self, &'static str)] = &[$((Self::$name, $text)),*];
            /// Both sets together.
            pub const fn and(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
            /// Whether all of `other` are in it.
            pub const fn has(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }
            /// Whether one of `other` is in it.
            pub const fn any(self, other: Self) -> bool {
                self.0 & other.0 != 0
            }
            /// Their names, in Redis's order.
            pub fn names(self) -> impl Iterator<Item = &'static str> {
                Self::NAMES.iter().filter(move |(bit, _)| self.has(*bit)).map(|(_, name)| *name)
            }
            /// The one with that name, in any case.
            pub fn named(name: &[u8]) -> Option<Self> {
                let found = |(_, n): &&(Self, &str)| name.eq_ignore_ascii_case(n.as_bytes());
                Self::NAMES.iter().find(found).map(|(bit, _)| *bit)
            }
        }
    };
}

bit_names! {
    /// Redis's command flags.
    Flags(u32) {
        /// May change the data.
        WRITE = 0, "write";
        /// Reads keys and changes nothing.
        READ = 1, "readonly";
        /// Refused when memory is used up.
        DENY_OOM = 2, "denyoom";
        /// For operators.
        ADMIN = 3, "admin";
        /// About channels.
        PUBSUB = 4, "pubsub";
        /// Not from scripts.
        NO_SCRIPT = 5, "noscript";
        /// May wait for other clients.
        BLOCKING = 6, "blocking";
        /// While loading too.
        LOADING = 7, "loading";
        /// On a stale replica too.
        STALE = 8, "stale";
        /// Not shown by MONITOR.
        SKIP_MONITOR = 9, "skip_monitor";
        /// Not in the slow log.
        SKIP_SLOWLOG = 10, "skip_slowlog";
        /// In a cluster, on a slot that is being imported.
        ASKING = 11, "asking";
        /// Constant or logarithmic time.
        FAST = 12, "fast";
        /// Before authentication too.
        NO_AUTH = 13, "no_auth";
        /// May be replicated though it is no write.
        MAY_REPLICATE = 14, "may_replicate";
        /// Not during asynchronous loading.
        NO_ASYNC_LOADING = 15, "no_async_loading";
        /// Not in a transaction.
        NO_MULTI = 16, "no_multi";
        /// Its keys cannot be told from its key specifications alone.
        MOVABLE_KEYS = 17, "movablekeys";
        /// While a script runs too long.
        ALLOW_BUSY = 18, "allow_busy";
    }
}

bit_names! {
    /// ACL categories.
    Categories(u32) {
        /// On keys of any type.
        KEYSPACE = 0, "keyspace";
        /// Reads keys.
        READ = 1, "read";
        /// Changes keys.
        WRITE = 2, "write";
        /// On sets.
        SET = 3, "set";
        /// On sorted sets.
        SORTED_SET = 4, "sortedset";
        /// On lists.
        LIST = 5, "list";
        /// On hashes.
        HASH = 6, "hash";
        /// On strings.
        STRING = 7, "string";
        /// On bitmaps.
        BITMAP = 8, "bitmap";
        /// On HyperLogLogs.
        HYPERLOGLOG = 9, "hyperloglog";
        /// On geo sets.
        GEO = 10, "geo";
        /// On streams.
        STREAM = 11, "stream";
        /// About channels.
        PUBSUB = 12, "pubsub";
        /// For operators.
        ADMIN = 13, "admin";
        /// Constant or logarithmic time.
        FAST = 14, "fast";
        /// All the others.
        SLOW = 15, "slow";
        /// May wait for other clients.
        BLOCKING = 16, "blocking";
        /// Think before use.
        DANGEROUS = 17, "dangerous";
        /// About the connection.
        CONNECTION = 18, "connection";
        /// Transactions.
        TRANSACTION = 19, "transaction";
        /// Scripts.
        SCRIPTING = 20, "scripting";
    }
}

bit_names! {
    /// What a command does with a key.
    Access(u16) {
        /// Reads it and writes it.
        RW = 0, "RW";
        /// Reads it.
        RO = 1, "RO";
        /// Overwrites it.
        OW = 2, "OW";
        /// Removes it.
        RM = 3, "RM";
        /// Returns its data.
        ACCESS = 4, "access";
        /// Changes its data.
        UPDATE = 5, "update";
        /// Adds data.
        INSERT = 6, "insert";
        /// Removes data.
        DELETE = 7, "delete";
        /// It is no key.
        NOT_KEY = 8, "not_key";
        /// There may be more keys than the specification finds.
        INCOMPLETE = 9, "incomplete";
        /// The flags depend on the arguments.
        VARIABLE_FLAGS = 10, "variable_flags";
    }
}

/// COMMAND DOCS' groups.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    /// Keys of any type.
    Generic,
    /// Strings.
    String,
    /// The connection.
    Connection,
    /// The server.
    Server,
    /// Transactions.
    Transactions,
}

impl Group {
    /// As COMMAND DOCS prints it.
    pub fn name(self) -> &'static str {
        match self {
            Group::Generic => "generic",
            Group::String => "string",
            Group::Connection => "connection",
            Group::Server => "server",
            Group::Transactions => "transactions",
        }
    }
}
