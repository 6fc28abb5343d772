//! Redis's error texts, once; and how the store's errors become replies.
//!
//! An [`ErrorReply`] is what follows the `-` of a RESP error: a code in capitals, a blank, a text.
//! Line ends in it are written as blanks by the encoder, as Redis does.

use ferrite_hybridlog::OperationError;
use std::borrow::Cow;

/// A RESP error without its `-` and its line end. May hold bytes that a client sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorReply(pub Cow<'static, [u8]>);

/// Why a handler did not finish.
#[derive(Debug)]
pub enum Stop {
    /// A record is on its way, or room in the log: the handler runs again from its first line once
    /// its [`Operation`](ferrite_hybridlog::Operation) is ready. What it wrote to the reply is
    /// thrown away; what it put into `progress` stays.
    Pending,
    /// The handler has worked for a slice and wants to go on after others had their turn: like
    /// [`Stop::Pending`], with nothing to wait for. For KEYS and the like.
    Again,
    /// The command fails with this reply. What it wrote to the reply is thrown away.
    Error(ErrorReply),
}

/// What a handler answers.
pub type Outcome = Result<(), Stop>;

impl ErrorReply {
    /// A text known at compile time.
    pub const fn new(text: &'static str) -> Self {
        Self(Cow::Borrowed(text.as_bytes()))
    }
    /// A text made for this reply.
    pub fn owned(text: impl Into<Vec<u8>>) -> Self {
        Self(Cow::Owned(text.into()))
    }
    /// The code: what stands before the first blank (`ERR`, `WRONGTYPE`).
    pub fn code(&self) -> &[u8] {
        self.0.split(|b| *b == b' ').next().unwrap_or_default()
    }
}

impl From<ErrorReply> for Stop {
    fn from(e: ErrorReply) -> Self {
        Stop::Error(e)
    }
}

impl From<OperationError> for ErrorReply {
    fn from(e: OperationError) -> Self {
        match e {
            OperationError::NotWritable(why) => ErrorReply::owned(format!("MISCONF {why}")),
            OperationError::TooLarge { .. } => STRING_TOO_LONG,
            OperationError::IndexFull { .. } => OUT_OF_MEMORY,
            other => ErrorReply::owned(format!("ERR {other}")),
        }
    }
}

impl From<OperationError> for Stop {
    fn from(e: OperationError) -> Self {
        Stop::Error(e.into())
    }
}

impl From<ferrite_hybridlog::Stop> for Stop {
    fn from(stop: ferrite_hybridlog::Stop) -> Self {
        match stop {
            ferrite_hybridlog::Stop::Pending => Stop::Pending,
            ferrite_hybridlog::Stop::Failed(e) => e.into(),
        }
    }
}

/// An argument or a value is no 64-bit integer.
pub const NOT_AN_INTEGER: ErrorReply =
    ErrorReply::new("ERR value is not an integer or out of range");
/// An argument is no 32-bit integer.
pub const NOT_32_BITS: ErrorReply =
    ErrorReply::new("ERR value is out of range, value must between -2147483648 and 2147483647");
/// An argument or a value is no number.
pub const NOT_A_FLOAT: ErrorReply = ErrorReply::new("ERR value is not a valid float");
/// An option is unknown or stands where it cannot.
pub const SYNTAX: ErrorReply = ErrorReply::new("ERR syntax error");
/// A command that needs its key found none.
pub const NO_SUCH_KEY: ErrorReply = ErrorReply::new("ERR no such key");
/// INCR or DECR beyond 64 bits.
pub const OVERFLOW: ErrorReply = ErrorReply::new("ERR increment or decrement would overflow");
/// INCRBYFLOAT beyond what a number can be.
pub const NAN_OR_INFINITY: ErrorReply =
    ErrorReply::new("ERR increment would produce NaN or Infinity");
/// SETRANGE or SETBIT before the value's first byte.
pub const OFFSET_OUT_OF_RANGE: ErrorReply = ErrorReply::new("ERR offset is out of range");
/// A value, or an argument on its way in, is longer than a value can be.
pub const STRING_TOO_LONG: ErrorReply =
    ErrorReply::new("ERR string exceeds maximum allowed size (proto-max-bulk-len)");
/// A key is longer than a key can be.
pub const KEY_TOO_LONG: ErrorReply = ErrorReply::new("ERR key exceeds 65535 bytes");
/// The index has reached its limit.
pub const OUT_OF_MEMORY: ErrorReply =
    ErrorReply::new("OOM command not allowed when used memory > 'maxmemory'.");
/// SELECT of a database that is not there.
pub const DB_OUT_OF_RANGE: ErrorReply = ErrorReply::new("ERR DB index is out of range");
/// Source and destination of MOVE or COPY are one.
pub const SAME_OBJECT: ErrorReply =
    ErrorReply::new("ERR source and destination objects are the same");
/// One connection too many.
pub const MAX_CLIENTS: ErrorReply = ErrorReply::new("ERR max number of clients reached");
/// A cursor that SCAN never gave.
pub const INVALID_CURSOR: ErrorReply = ErrorReply::new("ERR invalid cursor");

/// What a container answers to a subcommand that it does not know, or that has words too many.
pub fn wrong_subcommand(name: &[u8], container: &str) -> ErrorReply {
    let shown = name.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = [
        b"ERR unknown subcommand or wrong number of arguments for '",
        &shown[..shown.len().min(128)],
        b"'. Try ",
        container.as_bytes(),
        b" HELP.",
    ];
    ErrorReply::owned(text.concat())
}

/// The store is not yet open.
pub const LOADING: ErrorReply = ErrorReply::new("LOADING Redis is loading the dataset in memory");
/// A command that cannot be queued.
pub const NOT_IN_A_TRANSACTION: ErrorReply =
    ErrorReply::new("ERR Command not allowed inside a transaction");
/// EXEC of nothing.
pub const EXEC_WITHOUT_MULTI: ErrorReply = ErrorReply::new("ERR EXEC without MULTI");
/// EXEC after a command was refused.
pub const EXEC_ABORTED: ErrorReply =
    ErrorReply::new("EXECABORT Transaction discarded because of previous errors.");

/// What EXEC answers when it is itself refused with `error`.
pub fn aborted(error: &ErrorReply) -> ErrorReply {
    let why = error.0.strip_prefix(b"ERR ").unwrap_or(&error.0);
    ErrorReply::owned([b"EXECABORT Transaction discarded because of: ", why].concat())
}

/// `ERR invalid expire time in 'set' command`; `command` in lower case.
pub fn invalid_expire(command: &str) -> ErrorReply {
    ErrorReply::owned(format!("ERR invalid expire time in '{command}' command"))
}

/// `ERR wrong number of arguments for 'get' command`; `command` in lower case, a subcommand as
/// `client|id`.
pub fn wrong_arity(command: &str) -> ErrorReply {
    ErrorReply::owned(format!("ERR wrong number of arguments for '{command}' command"))
}
