//! What one client has: its database, its protocol, its name; and the part of it that other
//! threads see (CLIENT LIST, CLIENT KILL).

use crate::resp::Protocol;
use crate::transaction::Transaction;
use ferrite_hybridlog::Database;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

/// A client as its own worker sees it. One for each connection.
#[derive(Debug)]
pub struct Client {
    /// The database that SELECT chose.
    pub db: Database,
    /// The protocol that HELLO chose.
    pub protocol: Protocol,
    /// What CLIENT REPLY chose.
    pub reply_mode: ReplyMode,
    /// CLIENT NO-TOUCH: its reads do not make a key younger.
    pub no_touch: bool,
    /// What it collects since MULTI.
    pub transaction: Option<Box<Transaction>>,
    /// Its transaction has asked for a checkpoint, which is taken once it has ended.
    pub saves_afterwards: bool,
    /// Its command waits for the end of a CLIENT PAUSE.
    pub paused: bool,
    /// Close once all replies are sent (QUIT, a protocol error, CLIENT KILL of itself).
    pub close_after_reply: bool,
    /// What other threads see of it.
    pub shared: Arc<Shared>,
}

/// Which replies a client wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ReplyMode {
    /// All of them.
    #[default]
    On,
    /// None until CLIENT REPLY ON.
    Off,
    /// Not that of the command after this one.
    SkipNext,
    /// Not that of this command.
    SkipThis,
}

impl ReplyMode {
    /// What holds for the next command.
    pub fn after_a_command(self) -> Self {
        match self {
            Self::SkipNext => Self::SkipThis,
            Self::SkipThis => Self::On,
            same => same,
        }
    }
}

impl Client {
    /// A client that has just connected.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            db: Database(0),
            protocol: Protocol::Resp2,
            reply_mode: ReplyMode::On,
            no_touch: false,
            transaction: None,
            saves_afterwards: false,
            paused: false,
            close_after_reply: false,
            shared,
        }
    }
    /// Shows other threads what belongs to it now.
    pub fn show(&self) {
        let shared = &self.shared;
        shared.db.store(self.db.0, Relaxed);
        shared.paused.store(self.paused, Relaxed);
        let queued = self.transaction.as_ref().map(|t| (t.len() as i64, t.bytes() as u64));
        let (commands, bytes) = queued.unwrap_or((-1, 0));
        shared.queued_commands.store(commands, Relaxed);
        shared.queued_bytes.store(bytes, Relaxed);
    }
    /// Its number.
    pub fn id(&self) -> u64 {
        self.shared.id
    }
    /// Bytes came from it or went to it at `now_ms` or a little later.
    pub fn moved(&self, now_ms: u64) {
        let at = &self.shared.active_at_ms;
        if at.load(Relaxed) < now_ms {
            at.store(now_ms, Relaxed);
        }
    }
    /// RESET: as it was when it connected, but for its number, its library's name and NO-EVICT,
    /// which Redis leaves, too.
    pub fn reset(&mut self) {
        self.db = Database(0);
        self.protocol = Protocol::Resp2;
        self.reply_mode = ReplyMode::On;
        self.no_touch = false;
        self.transaction = None;
        self.shared.no_touch.store(false, Relaxed);
        self.shared.texts().name.clear();
    }
}

/// A client as other threads see it. Numbers are refreshed by its worker once a round, so they
/// may be a round old; none of them orders anything, hence `Relaxed`.
#[derive(Debug)]
pub struct Shared {
    /// Its number, never reused.
    pub id: u64,
    /// Its address: `127.0.0.1:50312`, or `/path:0` on a unix socket.
    pub address: String,
    /// The address that it connected to.
    pub local_address: String,
    /// The descriptor of its socket.
    pub descriptor: i32,
    /// The worker that serves it.
    pub worker: usize,
    /// When it connected, in Unix milliseconds.
    pub connected_at_ms: u64,
    /// When it last sent or took something, in Unix milliseconds; a second early at most, unless a
    /// command began then.
    pub active_at_ms: AtomicU64,
    /// Its database.
    pub db: AtomicU8,
    /// 2 or 3.
    pub protocol: AtomicU8,
    /// The number of its last command's row; `u32::MAX` before the first.
    pub last_command: AtomicU32,
    /// Bytes received and not yet run.
    pub query_bytes: AtomicU64,
    /// Room left in the query buffer.
    pub query_free_bytes: AtomicU64,
    /// Bytes of replies not yet sent.
    pub output_bytes: AtomicU64,
    /// CLIENT NO-EVICT.
    pub no_evict: AtomicBool,
    /// CLIENT NO-TOUCH.
    pub no_touch: AtomicBool,
    /// Its command waits for the end of a CLIENT PAUSE.
    pub paused: AtomicBool,
    /// Commands queued since MULTI; -1 without one.
    pub queued_commands: AtomicI64,
    /// Bytes that these take.
    pub queued_bytes: AtomicU64,
    /// Somebody wants it closed.
    pub kill: AtomicBool,
    /// Its position in its worker's table.
    pub slot: AtomicI64,
    texts: Mutex<Texts>,
}

/// The names that a client gave itself.
#[derive(Clone, Debug, Default)]
pub struct Texts {
    /// CLIENT SETNAME.
    pub name: Vec<u8>,
    /// CLIENT SETINFO LIB-NAME.
    pub library: Vec<u8>,
    /// CLIENT SETINFO LIB-VER.
    pub library_version: Vec<u8>,
}

/// Where a new connection comes from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The peer's address, as CLIENT LIST prints it.
    pub address: String,
    /// Our address.
    pub local_address: String,
    /// The descriptor of the socket.
    pub descriptor: i32,
    /// The worker that serves it.
    pub worker: usize,
}

impl Shared {
    /// For the client `id` that connected at `now_ms`.
    pub fn new(id: u64, origin: Origin, now_ms: u64) -> Self {
        Self {
            id,
            address: origin.address,
            local_address: origin.local_address,
            descriptor: origin.descriptor,
            worker: origin.worker,
            connected_at_ms: now_ms,
            active_at_ms: AtomicU64::new(now_ms),
            db: AtomicU8::new(0),
            protocol: AtomicU8::new(2),
            last_command: AtomicU32::new(u32::MAX),
            query_bytes: AtomicU64::new(0),
            query_free_bytes: AtomicU64::new(0),
            output_bytes: AtomicU64::new(0),
            no_evict: AtomicBool::new(false),
            no_touch: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            queued_commands: AtomicI64::new(-1),
            queued_bytes: AtomicU64::new(0),
            kill: AtomicBool::new(false),
            slot: AtomicI64::new(-1),
            texts: Mutex::default(),
        }
    }
    /// The names it gave itself.
    pub fn texts(&self) -> MutexGuard<'_, Texts> {
        self.texts.lock().expect("nothing panics while it holds the names")
    }
}

/// All clients of the server, by number.
#[derive(Debug, Default)]
pub struct Clients {
    last_id: AtomicU64,
    all: Mutex<BTreeMap<u64, Arc<Shared>>>,
}

impl Clients {
    /// Registers a client unless there are `max` already.
    pub fn add(&self, origin: Origin, now_ms: u64, max: usize) -> Option<Arc<Shared>> {
        let mut all = self.lock();
        if all.len() >= max {
            return None;
        }
        let id = self.last_id.fetch_add(1, Relaxed) + 1;
        let shared = Arc::new(Shared::new(id, origin, now_ms));
        all.insert(id, shared.clone());
        Some(shared)
    }
    /// Forgets a client that is gone.
    pub fn remove(&self, id: u64) {
        self.lock().remove(&id);
    }
    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().len()
    }
    /// All of them, oldest first.
    pub fn list(&self) -> Vec<Arc<Shared>> {
        self.lock().values().cloned().collect()
    }
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Shared>>> {
        self.all.lock().expect("nothing panics while it holds the clients")
    }
}

#[cfg(test)]
mod tests {
    use crate::commands::testing::Bench;

    /// NO-TOUCH goes, as in redis-server 7.2; NO-EVICT stays, as in 7.0.15.
    #[test]
    fn a_reset_takes_back_what_redis_takes_back() {
        let mut bench = Bench::new();
        let flags = |bench: &mut Bench| {
            let list = bench.text("client list");
            list.split("flags=").nth(1).and_then(|rest| rest.split(' ').next()).map(str::to_owned)
        };
        assert_eq!(bench.text("client no-touch on"), "+OK\r\n");
        assert_eq!(bench.text("client no-evict on"), "+OK\r\n");
        assert_eq!(flags(&mut bench).as_deref(), Some("eT"));
        assert_eq!(bench.text("reset"), "+RESET\r\n");
        assert_eq!(flags(&mut bench).as_deref(), Some("e"));
        assert!(!bench.client.no_touch);
    }
}
