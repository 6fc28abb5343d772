//! tokio's epoll: one thread, one runtime, one task for each connection.
//!
//! A task's turn is: send what is left, run what can run, send, read, and again until the socket
//! has nothing more to give. A read that does not fill its buffer tells that the socket is empty,
//! so a request costs one read and one write.
//!
//! The worker is borrowed for the length of a turn and never across a wait.

use super::{Accepted, Socket, WorkerThread};
use crate::connection::Next;
use crate::context::{Context, unix_ms};
use crate::worker::{Mailbox, Received, Worker};
use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};
use std::task::{Context as Task, Poll, Waker, ready};
use std::thread;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::{Builder, LocalRuntime};
use tokio::sync::Notify;

/// How often idle and stalled clients are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// Turns of one connection after which the others are served, however much it sends.
const STEPS: usize = 16;

/// See [`super::start`].
pub(super) fn start(context: Arc<Context>, number: usize) -> io::Result<WorkerThread> {
    let bell = Arc::new(Notify::new());
    let ring = bell.clone();
    let mailbox = Arc::new(Mailbox::new(move || ring.notify_one()));
    let (started, has_started) = mpsc::channel();
    let theirs = mailbox.clone();
    let waits = Arc::new(AtomicBool::new(false));
    let (seen, store) = (waits.clone(), context.clone());
    // Before the thread waits for its sockets: everything that was there to run has run.
    let at_rest = move || {
        if seen.load(Relaxed)
            && let Some(store) = store.store.get()
        {
            store.redo_has_written();
        }
    };
    let thread = thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
        let mut builder = Builder::new_current_thread();
        builder.enable_io().enable_time().on_thread_park(at_rest);
        match builder.build_local(Default::default()) {
            Ok(runtime) => {
                // The starter waits for this answer.
                let _ = started.send(Ok(()));
                serve(&runtime, Hall::new(context, number, theirs, waits), &bell);
            }
            Err(e) => drop(started.send(Err(e))),
        }
    })?;
    let answer = has_started.recv().unwrap_or_else(|_| Err(io::Error::other("worker died")));
    answer.map(|()| WorkerThread { mailbox, thread })
}

/// What the tasks of one thread share.
struct Hall {
    worker: RefCell<Worker>,
    wakers: RefCell<Vec<Option<Waker>>>,
    context: Arc<Context>,
    /// Whether replies wait for the disk.
    waits: Arc<AtomicBool>,
}

fn serve(runtime: &LocalRuntime, hall: Hall, bell: &Notify) {
    let hall = Rc::new(hall);
    runtime.block_on(async {
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            tokio::select! {
                () = bell.notified() => {}
                _ = sweep.tick() => hall.sweep(),
            }
            if hall.receive() {
                return;
            }
        }
    });
}

impl Hall {
    fn new(
        context: Arc<Context>,
        number: usize,
        mailbox: Arc<Mailbox>,
        waits: Arc<AtomicBool>,
    ) -> Self {
        let worker = RefCell::new(Worker::new(context.clone(), number, mailbox));
        Self { worker, wakers: RefCell::default(), context, waits }
    }
    /// Takes note of whether replies wait.
    fn note_waits(&self, worker: &Worker) {
        self.waits.store(worker.has_waiting_replies(), Relaxed);
    }
    fn wake(&self, slot: u32) {
        if let Some(Some(waker)) = self.wakers.borrow().get(slot as usize) {
            waker.wake_by_ref();
        }
    }
    fn sweep(&self) {
        let late = self.worker.borrow_mut().sweep(unix_ms());
        late.into_iter().for_each(|slot| self.wake(slot));
    }
    /// Does what the mailbox says. True when the worker is to stop.
    fn receive(self: &Rc<Self>) -> bool {
        let mut worker = self.worker.borrow_mut();
        let Received { accepted, stop } = worker.receive(|slot| self.wake(slot));
        self.note_waits(&worker);
        drop(worker);
        accepted.into_iter().for_each(|accepted| self.admit(accepted));
        stop
    }
    fn admit(self: &Rc<Self>, Accepted { socket, client }: Accepted) {
        let stream = match Stream::new(socket) {
            Ok(stream) => stream,
            Err(e) => {
                tracing::warn!("a client's socket cannot be watched: {e}");
                self.context.clients.remove(client.id);
                return;
            }
        };
        let slot = self.worker.borrow_mut().open(client);
        let served = Served { hall: self.clone(), slot, stream, next: Next::Read };
        tokio::task::spawn_local(served);
    }
    fn remember(&self, slot: u32, waker: &Waker) {
        let (mut wakers, slot) = (self.wakers.borrow_mut(), slot as usize);
        if wakers.len() <= slot {
            wakers.resize(slot + 1, None);
        }
        if !wakers[slot].as_ref().is_some_and(|known| known.will_wake(waker)) {
            wakers[slot] = Some(waker.clone());
        }
    }
}

/// One connection, until it is closed.
struct Served {
    hall: Rc<Hall>,
    slot: u32,
    stream: Stream,
    /// What it needed when its last turn ended.
    next: Next,
}

impl Future for Served {
    type Output = ();
    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<()> {
        let this = self.get_mut();
        let hall = this.hall.clone();
        hall.remember(this.slot, task.waker());
        let mut worker = hall.worker.borrow_mut();
        let done = this.turn(&mut worker, task);
        worker.pause(this.slot);
        hall.note_waits(&worker);
        // An error of the socket needs no answer: the peer is gone.
        done.map(drop)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.hall.worker.borrow_mut().close(self.slot);
        if let Some(waker) = self.hall.wakers.borrow_mut().get_mut(self.slot as usize) {
            *waker = None;
        }
    }
}

impl Served {
    /// Ready when the connection is to be closed.
    fn turn(&mut self, worker: &mut Worker, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        if worker.is_killed(self.slot) {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..STEPS {
            let blocked = self.send(worker, task)?.is_pending();
            self.next = match self.next {
                Next::Abort => return Poll::Ready(Ok(())),
                Next::Close if blocked => return Poll::Pending,
                Next::Close => return Poll::Ready(Ok(())),
                Next::Read if !worker.may_read() => return Poll::Pending,
                Next::Read => {
                    ready!(self.read(worker, task))?;
                    worker.advance(self.slot, blocked)
                }
                Next::Wait | Next::Again | Next::Flush => worker.advance(self.slot, blocked),
            };
            match self.next {
                Next::Flush if blocked => return Poll::Pending,
                Next::Wait => {
                    let _ = self.send(worker, task)?;
                    return Poll::Pending;
                }
                Next::Again => {
                    let _ = self.send(worker, task)?;
                    break;
                }
                _ => {}
            }
        }
        task.waker().wake_by_ref();
        Poll::Pending
    }
    /// Ready when all replies are sent.
    fn send(&mut self, worker: &mut Worker, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        loop {
            let unsent = worker.connection(self.slot).unsent();
            if unsent.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let n = ready!(self.stream.poll_write(task, unsent))?;
            worker.sent(self.slot, n);
        }
    }
    /// Ready when something was received, or the peer's end.
    fn read(&mut self, worker: &mut Worker, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        let mut room = ReadBuf::new(worker.room(self.slot));
        ready!(self.stream.poll_read(task, &mut room))?;
        match room.filled().len() {
            0 => worker.connection(self.slot).end(),
            n => worker.received(self.slot, n),
        }
        Poll::Ready(Ok(()))
    }
}

/// A socket that the runtime watches.
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn new(socket: Socket) -> io::Result<Self> {
        Ok(match socket {
            Socket::Tcp(socket) => Self::Tcp(TcpStream::from_std(socket)?),
            Socket::Unix(socket) => Self::Unix(UnixStream::from_std(socket)?),
        })
    }
    fn poll_read(&mut self, task: &mut Task<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(task, room),
            Self::Unix(stream) => Pin::new(stream).poll_read(task, room),
        }
    }
    fn poll_write(&mut self, task: &mut Task<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write(task, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(task, bytes),
        }
    }
}
