//! Bytes in and out. Nothing outside of this folder knows which transport runs: a transport takes
//! sockets from its worker's mailbox, reads into [`Worker::room`](crate::worker::Worker::room),
//! sends what [`Connection::unsent`](crate::connection::Connection::unsent) shows, and does what
//! [`Worker::advance`](crate::worker::Worker::advance) asks for next.

mod epoll;

use crate::client::Shared;
use crate::context::Context;
use crate::worker::Mailbox;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

/// A socket that was accepted, set to not block.
#[derive(Debug)]
pub enum Socket {
    /// Over TCP.
    Tcp(std::net::TcpStream),
    /// Over a path.
    Unix(std::os::unix::net::UnixStream),
}

/// A client for a worker.
#[derive(Debug)]
pub struct Accepted {
    /// Its socket.
    pub socket: Socket,
    /// Its entry in the list of clients.
    pub client: Arc<Shared>,
}

/// A worker's thread and the way to it.
pub struct WorkerThread {
    /// Where messages for it go.
    pub mailbox: Arc<Mailbox>,
    /// Ends after [`Message::Stop`](crate::worker::Message::Stop).
    pub thread: JoinHandle<()>,
}

/// The transport that works here, as the start log and INFO name it.
pub fn name() -> &'static str {
    "epoll"
}

/// Starts worker `number`. It serves the clients that come through its mailbox.
pub fn start(context: Arc<Context>, number: usize) -> io::Result<WorkerThread> {
    epoll::start(context, number)
}
