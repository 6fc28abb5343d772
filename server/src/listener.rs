//! Listening: addresses and a path, clients handed to the workers in turn, so that they spread
//! evenly however few they are.

use crate::client::Origin;
use crate::context::{Context, unix_ms};
use crate::error;
use crate::transport::{Accepted, Socket, WorkerThread};
use crate::worker::{Mailbox, Message};
use socket2::{Domain, SockAddr, SockRef, TcpKeepalive, Type};
use std::future::poll_fn;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::task::Poll;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Connections that the kernel holds until they are accepted, as Redis asks for.
const BACKLOG: i32 = 511;

/// Sockets that listen, bound before anything else starts.
#[derive(Debug, Default)]
pub struct Listeners {
    tcp: Vec<std::net::TcpListener>,
    unix: Option<(std::os::unix::net::UnixListener, PathBuf)>,
}

/// Why the server does not listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody else does.
    #[error("{address} is in use; stop the other server or choose another port with --port")]
    InUse {
        /// The address.
        address: String,
    },
    /// The system refused.
    #[error(
        "cannot listen on {address}: {source}; choose an address of this machine with --bind, or another port with --port"
    )]
    Refused {
        /// The address.
        address: String,
        /// The system's answer.
        source: io::Error,
    },
}

impl Listeners {
    /// Listens on `addresses` and, if there is one, on the socket `path`.
    pub fn bind(addresses: &[SocketAddr], path: Option<&Path>) -> Result<Self, ListenError> {
        let mut listeners = Self::default();
        let mut port = None;
        for address in addresses {
            let mut address = *address;
            // With port 0 all addresses get the port that the first one got.
            if let (0, Some(port)) = (address.port(), port) {
                address.set_port(port);
            }
            let socket = bind_tcp(address).map_err(|e| refused(address.to_string(), e))?;
            port = socket.local_addr().ok().map(|a| a.port());
            listeners.tcp.push(socket);
        }
        if let Some(path) = path {
            let shown = || path.display().to_string();
            let socket = bind_unix(path).map_err(|e| refused(shown(), e))?;
            listeners.unix = Some((socket, path.to_owned()));
        }
        Ok(listeners)
    }
    /// The addresses, with the ports that the system chose.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.tcp.iter().filter_map(|l| l.local_addr().ok()).collect()
    }
    /// Inside of a runtime: lets it watch them.
    fn watch(self) -> io::Result<Vec<Watched>> {
        let tcp = |socket| tokio::net::TcpListener::from_std(socket).map(Watched::Tcp);
        let mut all = self.tcp.into_iter().map(tcp).collect::<io::Result<Vec<_>>>()?;
        if let Some((socket, path)) = self.unix {
            all.push(Watched::Unix(tokio::net::UnixListener::from_std(socket)?, path));
        }
        Ok(all)
    }
}

fn refused(address: String, source: io::Error) -> ListenError {
    match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse { address },
        _ => ListenError::Refused { address, source },
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// A path that nobody listens on any more is taken over.
fn bind_unix(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    use std::os::unix::fs::FileTypeExt as _;
    use std::os::unix::net::{UnixListener, UnixStream};
    let listener = match UnixListener::bind(path) {
        // A server that was killed has left it. What is no socket somebody needs.
        Err(e)
            if e.kind() == io::ErrorKind::AddrInUse
                && std::fs::symlink_metadata(path)?.file_type().is_socket()
                && UnixStream::connect(path).is_err() =>
        {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        other => other,
    }?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The thread that accepts.
pub struct Acceptor {
    orders: UnboundedSender<Order>,
    thread: JoinHandle<()>,
}

enum Order {
    /// Close the listening sockets and answer.
    Close(mpsc::Sender<()>),
    /// Listen where it did before.
    Open,
}

impl Acceptor {
    /// Accepts from `listeners` for `workers`.
    pub fn start(
        context: Arc<Context>,
        listeners: Listeners,
        workers: &[WorkerThread],
    ) -> io::Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let addresses = listeners.addresses();
        let path = listeners.unix.as_ref().map(|(_, path)| path.clone());
        let open = {
            let _inside = runtime.enter();
            listeners.watch()?
        };
        let mailboxes = workers.iter().map(|w| w.mailbox.clone()).collect();
        let (orders, ordered) = unbounded_channel();
        let thread = thread::Builder::new().name("acceptor".into()).spawn(move || {
            let accepting = Accepting { context, mailboxes, turn: 0, addresses, path, open };
            runtime.block_on(accepting.run(ordered));
        })?;
        Ok(Self { orders, thread })
    }
    /// Closes the listening sockets: when this returns, new clients are refused.
    pub fn close(&self) {
        let (done, closed) = mpsc::channel();
        // An error means that the thread has ended, and its sockets are closed.
        if self.orders.send(Order::Close(done)).is_ok() {
            let _ = closed.recv();
        }
    }
    /// Listens again, on the same addresses, as soon as the system lets it.
    pub fn open(&self) {
        // As above; a panic of the thread was reported when it happened.
        let _ = self.orders.send(Order::Open);
    }
    /// Closes the listening sockets and ends.
    pub fn stop(self) {
        drop(self.orders);
        // A panic of the thread was reported when it happened.
        let _ = self.thread.join();
    }
}

struct Accepting {
    context: Arc<Context>,
    mailboxes: Vec<Arc<Mailbox>>,
    /// Whose turn it is to get a client.
    turn: usize,
    /// Where it listens, or did before it was closed.
    addresses: Vec<SocketAddr>,
    path: Option<PathBuf>,
    /// None while it is closed.
    open: Vec<Watched>,
}

/// A listening socket that the runtime watches.
enum Watched {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener, PathBuf),
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // It may be gone already.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Accepting {
    /// Until the orders end.
    async fn run(mut self, mut orders: UnboundedReceiver<Order>) {
        let mut open_at = None;
        loop {
            let accepted = tokio::select! {
                order = orders.recv() => {
                    let Some(order) = order else { return };
                    open_at = None;
                    match order {
                        Order::Close(done) => {
                            self.open.clear();
                            // Nobody may wait for it any more.
                            let _ = done.send(());
                        }
                        Order::Open => open_at = Some(Instant::now()),
                    }
                    continue;
                }
                () = at(open_at) => {
                    open_at = self.listen_again();
                    continue;
                }
                accepted = poll_fn(|task| accept_any(&self.open, task)) => accepted,
            };
            match accepted.and_then(|socket| self.admit(socket)) {
                Ok(()) => {}
                Err(e) => {
                    // No descriptors, most likely: a client that leaves gives one back.
                    tracing::warn!("a client could not be accepted: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
    /// Listens where it did before; if somebody else does, says when to try again.
    fn listen_again(&mut self) -> Option<Instant> {
        if !self.open.is_empty() {
            return None;
        }
        let bound = Listeners::bind(&self.addresses, self.path.as_deref());
        let watched = bound.map_err(|e| e.to_string());
        match watched.and_then(|bound| bound.watch().map_err(|e| e.to_string())) {
            Ok(open) => {
                self.open = open;
                None
            }
            Err(why) => {
                tracing::error!("clients cannot connect again: {why}");
                Some(Instant::now() + Duration::from_secs(1))
            }
        }
    }
    /// Gives a client to a worker, or sends it away.
    fn admit(&mut self, socket: Socket) -> io::Result<()> {
        let limits = &self.context.limits;
        let worker = self.turn % self.mailboxes.len();
        let origin = match describe(&socket, worker) {
            // It left before it was looked at.
            Err(e) if e.kind() == io::ErrorKind::NotConnected => return Ok(()),
            other => other?,
        };
        if let Socket::Tcp(stream) = &socket {
            prepare(stream, Duration::from_secs(limits.tcp_keepalive_s.get()))?;
        }
        let max = usize::try_from(limits.max_connections.get()).unwrap_or(usize::MAX);
        let Some(client) = self.context.clients.add(origin, unix_ms(), max) else {
            self.context.workers[0].refused_connections.add(1);
            send_away(socket);
            return Ok(());
        };
        self.turn = worker + 1;
        self.mailboxes[worker].send(Message::Accepted(Accepted { socket, client }));
        Ok(())
    }
}

/// Ready then; without a time, never.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

fn accept_any(all: &[Watched], task: &mut std::task::Context<'_>) -> Poll<io::Result<Socket>> {
    for listener in all {
        let accepted = match listener {
            Watched::Tcp(tcp) => tcp
                .poll_accept(task)
                .map(|accepted| accepted.and_then(|(s, _)| s.into_std()).map(Socket::Tcp)),
            Watched::Unix(unix, _) => unix
                .poll_accept(task)
                .map(|accepted| accepted.and_then(|(s, _)| s.into_std()).map(Socket::Unix)),
        };
        if accepted.is_ready() {
            return accepted;
        }
    }
    Poll::Pending
}

/// Replies go out at once, and peers that are gone are noticed.
fn prepare(stream: &std::net::TcpStream, keepalive: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    if !keepalive.is_zero() {
        // As Redis does: probes begin after that time and are repeated three times within it.
        let between = (keepalive / 3).max(Duration::from_secs(1));
        let probes =
            TcpKeepalive::new().with_time(keepalive).with_interval(between).with_retries(3);
        SockRef::from(stream).set_tcp_keepalive(&probes)?;
    }
    Ok(())
}

fn describe(socket: &Socket, worker: usize) -> io::Result<Origin> {
    Ok(match socket {
        Socket::Tcp(stream) => Origin {
            address: stream.peer_addr()?.to_string(),
            local_address: stream.local_addr()?.to_string(),
            descriptor: stream.as_raw_fd(),
            worker,
        },
        Socket::Unix(stream) => {
            let local = stream.local_addr()?;
            let path = local.as_pathname().map(|p| p.display().to_string()).unwrap_or_default();
            let address = format!("{path}:0");
            let descriptor = stream.as_raw_fd();
            Origin { local_address: address.clone(), address, descriptor, worker }
        }
    })
}

/// One line and goodbye. A peer whose socket does not take a line at once gets none.
fn send_away(socket: Socket) {
    let line = [b"-", &*error::MAX_CLIENTS.0, b"\r\n"].concat();
    // Whether it heard why is its own affair.
    let _ = match socket {
        Socket::Tcp(mut stream) => stream.write(&line),
        Socket::Unix(mut stream) => stream.write(&line),
    };
}
