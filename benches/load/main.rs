//! Load with latencies: 50 connections that each wait for their reply, before, during and after something
//! that the server is told to do.
//!
//! ```text
//! load --port 6379 --fill                                 each key once, in pipelines
//! load --port 6379 --seconds 10                           one window
//! load --port 6379 --seconds 10 --while BGSAVE rdb_bgsave_in_progress
//!                                                         10 s before, while it runs, as long again after it
//! ```
//!
//! One line of JSON a window: operations, seconds, microseconds of the percentiles and of the longest
//! reply. A request belongs to the window in which it was answered, and to the one in which something was
//! done if it was sent there. Half of the commands are SET, half are GET, of uniformly random keys; each
//! value read is checked.

use ferrite_benches::keys::Random;
use hdrhistogram::Histogram;
use rustix::event::epoll;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of a key and of a value.
const KEY: usize = 16;
/// Bytes of a value, which begins with its key.
const VALUE: usize = 100;

/// The windows, as they come.
const NAMES: [&str; 3] = ["before", "during", "after"];
const END: usize = 3;
/// Nanoseconds; what takes longer counts as this.
const LONGEST: u64 = 120_000_000_000;

struct Options {
    port: u16,
    keys: u64,
    connections: usize,
    seconds: f64,
    fills: bool,
    /// A command, and the field of INFO that is 1 while it runs.
    action: Option<(String, String)>,
}

impl Options {
    fn from_arguments() -> Result<Self, String> {
        let mut options = Self {
            port: 6379,
            keys: 5_000_000,
            connections: 50,
            seconds: 10.0,
            fills: false,
            action: None,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut next = || words.next().ok_or(format!("{word} needs a value"));
            let wrong = |text: String| format!("{word}: {text} is no number");
            match word.as_str() {
                "--port" => options.port = next().and_then(|t| t.parse().map_err(|_| wrong(t)))?,
                "--keys" => options.keys = next().and_then(|t| t.parse().map_err(|_| wrong(t)))?,
                "--connections" => {
                    options.connections = next().and_then(|t| t.parse().map_err(|_| wrong(t)))?;
                }
                "--seconds" => {
                    options.seconds = next().and_then(|t| t.parse().map_err(|_| wrong(t)))?;
                }
                "--fill" => options.fills = true,
                "--while" => options.action = Some((next()?, next()?)),
                _ => return Err(format!("{word} is not known; the head of the file says what is")),
            }
        }
        Ok(options)
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], self.port)))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::from_arguments()?;
    if options.fills {
        return Ok(fill(&options)?);
    }
    let window = AtomicUsize::new(0);
    let (measured, lengths) = thread::scope(|scope| {
        let control = scope.spawn(|| {
            let done = control(&options, &window);
            window.store(END, Ordering::SeqCst);
            done
        });
        let measured = run(&options, &window);
        (measured, control.join().expect("the control connection does not panic"))
    });
    for ((name, length), histogram) in NAMES.iter().zip(lengths?).zip(&measured?) {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        println!(
            "{{\"window\": \"{name}\", \"seconds\": {:.3}, \"operations\": {}, \"p50\": {:.1}, \"p99\": {:.1}, \
             \"p99.9\": {:.1}, \"longest\": {:.1}}}",
            length.as_secs_f64(),
            histogram.len(),
            at(0.5),
            at(0.99),
            at(0.999),
            histogram.max() as f64 / 1000.0
        );
    }
    Ok(())
}

/// Begins the windows one after the other; how long each was.
fn control(options: &Options, window: &AtomicUsize) -> io::Result<Vec<Duration>> {
    let mut lengths = Vec::new();
    let mut line = BufReader::new(options.connect()?);
    let before = Instant::now();
    thread::sleep(Duration::from_secs_f64(options.seconds));
    if let Some((command, field)) = &options.action {
        window.store(1, Ordering::SeqCst);
        lengths.push(before.elapsed());
        let during = Instant::now();
        let answer = call(&mut line, command)?;
        if !answer.starts_with('+') {
            return Err(io::Error::other(format!("{command}: {answer}")));
        }
        let runs = format!("{field}:1\r\n");
        while call(&mut line, "INFO persistence")?.contains(&runs) {
            thread::sleep(Duration::from_millis(20));
        }
        lengths.push(during.elapsed());
        window.store(2, Ordering::SeqCst);
        let after = Instant::now();
        thread::sleep(lengths[1]);
        lengths.push(after.elapsed());
    } else {
        lengths.push(before.elapsed());
    }
    Ok(lengths)
}

/// One inline command and its reply: a line, or a bulk string.
fn call(line: &mut BufReader<TcpStream>, command: &str) -> io::Result<String> {
    line.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
    let mut answer = String::new();
    line.read_line(&mut answer)?;
    if let Some(length) = answer.strip_prefix('$').and_then(|l| l.trim_end().parse::<usize>().ok())
    {
        let mut bulk = vec![0; length + 2];
        line.read_exact(&mut bulk)?;
        answer = String::from_utf8_lossy(&bulk).into_owned();
    }
    Ok(answer)
}

/// Key `number`.
fn key(number: u64) -> [u8; KEY] {
    let mut key = *b"key:000000000000";
    let mut rest = number;
    for digit in key[4..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    key
}

fn set(number: u64, into: &mut Vec<u8>) {
    into.extend_from_slice(b"*3\r\n$3\r\nSET\r\n$16\r\n");
    into.extend_from_slice(&key(number));
    into.extend_from_slice(b"\r\n$100\r\n");
    into.extend_from_slice(&key(number));
    into.extend_from_slice(&[b'.'; VALUE - KEY]);
    into.extend_from_slice(b"\r\n");
}

fn get(number: u64, into: &mut Vec<u8>) {
    into.extend_from_slice(b"*2\r\n$3\r\nGET\r\n$16\r\n");
    into.extend_from_slice(&key(number));
    into.extend_from_slice(b"\r\n");
}

/// Sets each key once.
fn fill(options: &Options) -> io::Result<()> {
    let mut stream = options.connect()?;
    let (mut bytes, mut answers) = (Vec::new(), Vec::new());
    for from in (0..options.keys).step_by(256) {
        let numbers = from..options.keys.min(from + 256);
        bytes.clear();
        numbers.clone().for_each(|number| set(number, &mut bytes));
        stream.write_all(&bytes)?;
        answers.resize(numbers.count() * 5, 0);
        stream.read_exact(&mut answers)?;
        if !answers.chunks(5).all(|answer| answer == b"+OK\r\n") {
            return Err(io::Error::other(String::from_utf8_lossy(&answers).into_owned()));
        }
    }
    Ok(())
}

/// A connection and the request that it waits for.
struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    reply: Vec<u8>,
    wanted: Vec<u8>,
    sent: Instant,
    window: usize,
}

impl Connection {
    fn ask(&mut self, number: u64, reads: bool, window: usize) -> io::Result<()> {
        self.request.clear();
        self.reply.clear();
        self.wanted.clear();
        if reads {
            get(number, &mut self.request);
            self.wanted.extend_from_slice(b"$100\r\n");
            self.wanted.extend_from_slice(&key(number));
            self.wanted.extend_from_slice(&[b'.'; VALUE - KEY]);
            self.wanted.extend_from_slice(b"\r\n");
        } else {
            set(number, &mut self.request);
            self.wanted.extend_from_slice(b"+OK\r\n");
        }
        self.window = window;
        self.sent = Instant::now();
        // So few bytes always fit into a socket that holds nothing else.
        self.stream.write_all(&self.request)
    }

    /// Whether the reply is there.
    fn hear(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 256];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                self.reply.extend_from_slice(&bytes[..n]);
                if !self.wanted.starts_with(&self.reply) {
                    let reply = String::from_utf8_lossy(&self.reply).into_owned();
                    return Err(io::Error::other(format!("an unexpected reply: {reply}")));
                }
                Ok(self.reply.len() == self.wanted.len())
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// Keeps all connections busy until the last window is over; nanoseconds by window.
fn run(options: &Options, window: &AtomicUsize) -> io::Result<Vec<Histogram<u64>>> {
    let mut numbers = Random::new(1);
    let mut measured: Vec<Histogram<u64>> =
        (0..END).map(|_| Histogram::new_with_max(LONGEST, 3).expect("three digits")).collect();
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut connections = Vec::with_capacity(options.connections);
    for place in 0..options.connections {
        let stream = options.connect()?;
        stream.set_nonblocking(true)?;
        let data = epoll::EventData::new_u64(place as u64);
        epoll::add(&epoll, &stream, data, epoll::EventFlags::IN)?;
        let (request, reply, wanted) = Default::default();
        let sent = Instant::now();
        let mut connection = Connection { stream, request, reply, wanted, sent, window: 0 };
        connection.ask(numbers.below(options.keys), place % 2 == 0, 0)?;
        connections.push(connection);
    }
    let mut events = Vec::with_capacity(options.connections);
    let mut turn = 0_u64;
    loop {
        events.clear();
        let patience = rustix::event::Timespec { tv_sec: 60, tv_nsec: 0 };
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&patience))?;
        if events.is_empty() {
            return Err(io::Error::other("no reply for a minute"));
        }
        for event in &events {
            let connection = &mut connections[event.data.u64() as usize];
            if !connection.hear()? {
                continue;
            }
            let now = window.load(Ordering::SeqCst);
            if now == END {
                return Ok(measured);
            }
            let of = if connection.window == 1 { 1 } else { now };
            measured[of].saturating_record(connection.sent.elapsed().as_nanos() as u64);
            turn += 1;
            connection.ask(numbers.below(options.keys), turn.is_multiple_of(2), now)?;
        }
    }
}
