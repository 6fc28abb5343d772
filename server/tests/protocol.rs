//! Raw bytes to the real server and back: malformed, split and coalesced frames, oversized bulks,
//! long pipelines, half-open and slow clients, limits. Where redis-server is installed its bytes
//! are what is expected; elsewhere that test says `skipped`, and with `CI=true` it fails.

mod support;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};
use support::{PATIENCE, Server, Wire, command};

/// Sent behind each case: what comes back before its reply belongs to the case.
const MARK: &[u8] = b"*2\r\n$4\r\nECHO\r\n$6\r\n<mark>\r\n";
const MARKED: &[u8] = b"$6\r\n<mark>\r\n";

/// What a server answers to a case, and whether it closes.
fn answer(server: &Server, chunks: &[&[u8]]) -> (Vec<u8>, bool) {
    let mut wire = server.connect();
    for chunk in chunks {
        wire.send(chunk);
    }
    wire.send(MARK);
    wire.receive_until(MARKED)
}

/// An answer in which the number of the connection, which HELLO tells, is a word.
fn without_the_id((mut bytes, closed): (Vec<u8>, bool)) -> (Vec<u8>, bool) {
    const ID: &[u8] = b"$2\r\nid\r\n:";
    if let Some(at) = bytes.windows(ID.len()).position(|w| w == ID) {
        let digits = at + ID.len();
        let n = bytes[digits..].iter().take_while(|b| b.is_ascii_digit()).count();
        bytes.splice(digits..digits + n, *b"number");
    }
    (bytes, closed)
}

fn cases() -> Vec<Vec<u8>> {
    let long = |n: usize| vec![b'a'; n];
    let text = [
        "*\r\n",
        "*a\r\n",
        "*1a\r\n",
        "*01\r\n",
        "*+1\r\n",
        "*-0\r\n",
        "*2147483648\r\n",
        "*99999999999999999999\r\n",
        "*-1\r\nPING\r\n",
        "*0\r\nPING\r\n",
        "*-9\r\n*1\r\n$4\r\nPING\r\n",
        "*1\r\nPING\r\n",
        "*1\r\n:1\r\n",
        "*1\r\n\r\n",
        "*2\r\n$4\r\nPING\r\n*1\r\n",
        "*1\r\n$-1\r\n",
        "*1\r\n$-2\r\n",
        "*1\r\n$\r\n",
        "*1\r\n$a\r\n",
        "*1\r\n$04\r\nPING\r\n",
        "*1\r\n$4a\r\nPING\r\n",
        "*1\r\n$536870913\r\n",
        "*1\r\n$99999999999999999999\r\n",
        "*1\r\n$4\r\nPINGxx*1\r\n$4\r\nPING\r\n",
        "*1\r\n$0\r\n\r\n",
        "*2\r\n$4\r\nECHO\r\n$0\r\n\r\n",
        "\r\n\r\n\nPING\r\n",
        "   \r\nPING\r\n",
        "PING\n",
        " PING \r\n",
        "PING\r\r\n",
        "ECHO \"a b\"\r\n",
        "ECHO \"\\x41\\n\\\"\"\r\n",
        "ECHO 'it\\'s'\r\n",
        "ECHO 'a'b\r\n",
        "ECHO \"a\r\nPING\r\n",
        "$4\r\nPING\r\n",
        "+PING\r\n",
        "foo\r\n",
        "foo 'a b' c\r\n",
        "get\r\n",
        "GET a b\r\n",
        "ping a b\r\n",
        "*1\r\n$7\r\nfoo\r\nba\r\n",
        "SET k v\r\nGET k\r\n*1\r\n$x\r\nGET k\r\n",
        "CLIENT\r\nCLIENT FOO\r\nCLIENT ID x\r\n",
        "OBJECT\r\nOBJECT FOO\r\nOBJECT ENCODING\r\n",
        "SELECT 16\r\nSELECT x\r\nSELECT 3\r\nSELECT 0\r\n",
        "CLIENT REPLY SKIP\r\nPING\r\nPING 1\r\n",
        "CLIENT REPLY OFF\r\nPING\r\nfoo\r\nCLIENT REPLY ON\r\nPING 1\r\n",
        "CLIENT REPLY OFF\r\nCLIENT REPLY SKIP\r\nPING\r\nCLIENT REPLY ON\r\n",
        "HELLO 3\r\nGET nothing\r\nRESET\r\nGET nothing\r\n",
        "HELLO 2\r\nGET nothing\r\n",
        "HELLO 4\r\nHELLO x\r\nHELLO 3 SETNAME\r\nHELLO 3 FOO\r\nGET nothing\r\n",
        "PING\r\nQUIT\r\nPING\r\n",
        "QUIT now\r\n",
        "AUTH x\r\nAUTH default x\r\nAUTH other x\r\nAUTH a b c\r\n",
    ];
    let mut cases: Vec<_> = text.iter().map(|t| t.as_bytes().to_vec()).collect();
    // A zero byte ends what Redis looks at: the line never ends.
    cases.push([b"ECHO a\0b\r\nPING\r\n".to_vec(), long(70_000)].concat());
    cases.push([&long(200)[..], b" ", &long(200), b" b c\r\n"].concat());
    cases.push([b"foo ", &[b"abc ".repeat(50), b"\r\n".to_vec()].concat()[..]].concat());
    cases.push(command(&[b"fo\0o", b"a\0b", b"c"]));
    cases.push(command(&[b"foo", b"a\r\nb"]));
    cases.push(command(&[b"SET", b"k", &long(100_000)]));
    cases
}

#[test]
fn malformed_frames_get_the_bytes_of_redis_server() {
    let Some(redis) = Server::redis() else { return };
    let ferrite = Server::ferrite(&[]);
    for case in cases() {
        let expected = without_the_id(answer(&redis, &[&case]));
        let got = without_the_id(answer(&ferrite, &[&case]));
        let shown = String::from_utf8_lossy(&case[..case.len().min(60)]).into_owned();
        let both = (String::from_utf8_lossy(&got.0), String::from_utf8_lossy(&expected.0));
        assert_eq!(got, expected, "{shown:?}: ferrite and redis-server say {both:?}");
    }
}

#[test]
fn an_endless_line_is_refused_as_redis_server_does() {
    let ferrite = Server::ferrite(&[]);
    for (start, reason) in [
        ("", "too big inline request"),
        ("*", "too big mbulk count string"),
        ("*1\r\n$", "too big bulk count string"),
    ] {
        let mut wire = ferrite.connect();
        wire.send(start.as_bytes());
        wire.send(&vec![b'1'; 70_000]);
        let (got, closed) = wire.receive_until(b"never");
        assert_eq!(String::from_utf8_lossy(&got), format!("-ERR Protocol error: {reason}\r\n"));
        assert!(closed);
    }
}

#[test]
fn a_split_at_every_byte_gives_the_same_replies() {
    let ferrite = Server::ferrite(&[]);
    let mut sent = command(&[b"SET", b"k", b"a\r\nb"]);
    sent.extend(b"GET k\r\n\r\n*0\r\nfoo \"a b\"\r\n");
    sent.extend(command(&[b"GET", b"nothing"]));
    sent.extend(command(&[b"DEL", b"k"]));
    let whole = answer(&ferrite, &[&sent]);
    assert_eq!(
        String::from_utf8_lossy(&whole.0),
        "+OK\r\n$4\r\na\r\nb\r\n-ERR unknown command 'foo', with args beginning with: 'a b' \r\n\
         $-1\r\n:1\r\n$6\r\n<mark>\r\n"
    );
    for cut in 1..sent.len() {
        assert_eq!(answer(&ferrite, &[&sent[..cut], &sent[cut..]]), whole, "cut at {cut}");
    }
    let bytes: Vec<_> = sent.chunks(1).collect();
    assert_eq!(answer(&ferrite, &bytes), whole);
}

#[test]
fn an_oversized_value_is_refused_and_the_connection_stays_in_step() {
    let ferrite = Server::ferrite(&["storage.hybridlog_page_size=64KiB"]);
    let mut wire = ferrite.connect();
    let value = vec![b'x'; 64 * 1024];
    wire.send(&command(&[b"SET", b"k", &value]));
    wire.send(b"GET k\r\n");
    wire.send(&command(&[b"SET", b"k", &value[..60_000]]));
    wire.send(b"STRLEN k\r\n");
    let expected =
        "-ERR string exceeds maximum allowed size (proto-max-bulk-len)\r\n$-1\r\n+OK\r\n:60000\r\n";
    assert_eq!(String::from_utf8_lossy(&wire.receive(expected.len())), expected);
}

#[test]
fn an_oversized_value_is_not_buffered() {
    let ferrite = Server::ferrite(&["storage.hybridlog_page_size=64KiB"]);
    let mut wire = ferrite.connect();
    let length = 300 << 20;
    wire.send(format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${length}\r\n").as_bytes());
    let chunk = vec![b'x'; 1 << 20];
    let mut most = 0;
    for n in 0..300 {
        assert!(wire.send(&chunk));
        if n % 50 == 0 {
            most = most.max(resident_bytes(ferrite.id()));
        }
    }
    wire.send(b"\r\nPING\r\n");
    let expected = "-ERR string exceeds maximum allowed size (proto-max-bulk-len)\r\n+PONG\r\n";
    assert_eq!(String::from_utf8_lossy(&wire.receive(expected.len())), expected);
    assert!(most < 250 << 20, "{most} bytes of memory while 300 MiB were skipped");
}

/// Only commands that store values are held to what a value can be.
#[test]
fn what_is_no_value_may_be_longer_than_one() {
    let ferrite = Server::ferrite(&["storage.hybridlog_page_size=4KiB"]);
    let mut wire = ferrite.connect();
    let long = vec![b'x'; 100_000];
    let reply = |text: &[u8]| [format!("${}\r\n", text.len()).as_bytes(), text, b"\r\n"].concat();
    for name in ["ECHO", "PING"] {
        wire.send(&command(&[name.as_bytes(), &long]));
        assert!(wire.receive(long.len() + 11) == reply(&long), "{name}");
    }
    for (words, expected) in [
        (vec![&b"GET"[..], &long], "-ERR key exceeds 65535 bytes"),
        (
            vec![b"APPEND", b"k", &long],
            "-ERR string exceeds maximum allowed size (proto-max-bulk-len)",
        ),
        (vec![b"CLIENT", b"SETNAME", &long], "+OK"),
        (vec![b"NOSUCH", b"a"], "-ERR unknown command 'NOSUCH', with args beginning with: 'a' "),
    ] {
        wire.send(&command(&words));
        let (line, _) = wire.receive_until(b"\r\n");
        assert_eq!(String::from_utf8_lossy(&line).trim_end_matches("\r\n"), expected);
    }
}

fn resident_bytes(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it lives");
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("every process has it");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

#[test]
fn a_pipeline_of_any_length_is_answered_in_order() {
    let ferrite = Server::ferrite(&[]);
    let wire = ferrite.connect();
    let mut sending = wire.socket.try_clone().expect("a socket");
    let commands = 200_000;
    let sender = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        for n in 0..commands {
            let text = n.to_string();
            let key = format!("key:{}", n % 1000);
            bytes.extend(command(&[b"SET", key.as_bytes(), text.as_bytes()]));
            bytes.extend(command(&[b"GET", key.as_bytes()]));
        }
        sending.write_all(&bytes).expect("all of it is taken");
    });
    let mut expected = Vec::new();
    for n in 0..commands {
        let text = n.to_string();
        expected.extend(format!("+OK\r\n${}\r\n{text}\r\n", text.len()).into_bytes());
    }
    let mut wire = wire;
    assert!(wire.receive(expected.len()) == expected, "another reply, or another order");
    sender.join().expect("it sends all");
}

#[test]
fn a_client_that_sends_all_before_it_reads_is_served() {
    let ferrite = Server::ferrite(&[]);
    let mut wire = ferrite.connect();
    let value = vec![b'v'; 10_000];
    wire.send(&command(&[b"SET", b"k", &value]));
    assert_eq!(wire.receive(5), b"+OK\r\n");
    // 20 MB of replies: far more than the sockets hold.
    assert!(wire.send(&b"GET k\r\n".repeat(2000)));
    let reply = [b"$10000\r\n", &value[..], b"\r\n"].concat();
    for _ in 0..2000 {
        assert!(wire.receive(reply.len()) == reply);
    }
}

#[test]
fn a_client_that_has_closed_its_half_gets_its_replies() {
    let ferrite = Server::ferrite(&[]);
    let mut wire = ferrite.connect();
    wire.send(&b"INCR n\r\n".repeat(1000));
    wire.socket.shutdown(Shutdown::Write).expect("a socket");
    let (got, closed) = wire.receive_until(b"never");
    let expected: String = (1..=1000).map(|n| format!(":{n}\r\n")).collect();
    assert!(closed);
    assert_eq!(String::from_utf8_lossy(&got), expected);
}

#[test]
fn a_frame_that_never_ends_harms_nobody() {
    let ferrite = Server::ferrite(&[]);
    let mut half = ferrite.connect();
    half.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$100\r\nabc");
    let mut other = ferrite.connect();
    assert_eq!(other.line("GET k"), "$-1");
    drop(half);
    assert_eq!(other.line("EXISTS k"), ":0");
}

#[test]
fn a_client_that_takes_no_replies_is_closed() {
    let ferrite = Server::ferrite(&["server.output_stall=1"]);
    let mut wire = ferrite.connect();
    let value = vec![b'v'; 1 << 20];
    wire.send(&command(&[b"SET", b"k", &value]));
    assert_eq!(wire.receive(5), b"+OK\r\n");
    wire.send(&b"GET k\r\n".repeat(1000));
    let mut other = ferrite.connect();
    let since = Instant::now();
    while other.bulk("CLIENT LIST").lines().count() > 1 {
        assert!(since.elapsed() < PATIENCE, "the slow client stays");
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut received = 0;
    let mut chunk = vec![0; 1 << 20];
    // What was on its way may still come; then the end.
    while let Ok(n @ 1..) = wire.socket.read(&mut chunk) {
        received += n;
    }
    assert!(received < 1000 << 20);
}

#[test]
fn over_the_limit_of_unsent_replies_a_client_is_closed() {
    let ferrite = Server::ferrite(&["server.max_output_buffer=1MB"]);
    let mut wire = ferrite.connect();
    let value = vec![b'v'; 100_000];
    wire.send(&command(&[b"SET", b"k", &value]));
    assert_eq!(wire.receive(5), b"+OK\r\n");
    let keys: Vec<&[u8]> = std::iter::once(&b"MGET"[..]).chain([&b"k"[..]; 1000]).collect();
    wire.send(&command(&keys));
    let (_, closed) = wire.receive_until(b"never");
    assert!(closed, "100 MB of one reply exceed 1 MB");
    assert_eq!(ferrite.connect().line("PING"), "+PONG");
}

#[test]
fn one_client_too_many_is_told_so() {
    let ferrite = Server::ferrite(&["server.max_connections=2"]);
    let (mut a, mut b) = (ferrite.connect(), ferrite.connect());
    assert_eq!((a.line("PING"), b.line("PING")), ("+PONG".into(), "+PONG".into()));
    let (got, closed) = ferrite.connect().receive_until(b"never");
    assert_eq!(String::from_utf8_lossy(&got), "-ERR max number of clients reached\r\n");
    assert!(closed);
    drop(b);
    let since = Instant::now();
    loop {
        let mut wire = ferrite.connect();
        wire.send(b"PING\r\n");
        if wire.receive_until(b"+PONG\r\n").0 == b"+PONG\r\n" {
            break;
        }
        assert!(since.elapsed() < PATIENCE, "the place of the one that left stays taken");
    }
}

#[test]
fn a_silent_client_is_closed_after_the_timeout() {
    let ferrite = Server::ferrite(&["server.timeout=1"]);
    let mut wire = ferrite.connect();
    assert_eq!(wire.line("PING"), "+PONG");
    assert!(wire.receive_until(b"never").1);
}

#[test]
fn clients_of_all_workers_can_be_killed() {
    let ferrite = Server::ferrite(&["server.workers=2"]);
    let mut wires: Vec<_> = (0..4).map(|_| ferrite.connect()).collect();
    let ids: Vec<_> = wires.iter_mut().map(|w| w.line("CLIENT ID").replace(':', "")).collect();
    let mut killer = wires.pop().expect("four");
    for (wire, id) in wires.iter_mut().zip(&ids) {
        assert_eq!(killer.line(&format!("CLIENT KILL ID {id}")), ":1");
        assert!(wire.receive_until(b"never").1);
    }
    assert_eq!(killer.bulk("CLIENT LIST").lines().count(), 1);
    let me = killer.socket.local_addr().expect("a socket");
    assert_eq!(killer.line(&format!("CLIENT KILL {me}")), "+OK");
    assert!(killer.receive_until(b"never").1);
}

#[test]
fn a_unix_socket_serves_too() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("ferrite.sock");
    let setting = format!("server.unix_socket={}", path.display());
    let ferrite = Server::ferrite(&[&setting]);
    let mut socket = std::os::unix::net::UnixStream::connect(&path).expect("it listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
    socket.write_all(b"SET a 1\r\nGET a\r\n").expect("it is taken");
    let mut reply = [0; 12];
    socket.read_exact(&mut reply).expect("a reply");
    assert_eq!(&reply, b"+OK\r\n$1\r\n1\r\n");
    let list = ferrite.connect().bulk("CLIENT LIST");
    assert!(list.contains("flags=U"), "{list}");
}

/// Only a socket that a killed server has left is replaced.
#[test]
fn a_file_where_the_unix_socket_is_to_be_stays() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("precious");
    std::fs::write(&path, "data").expect("written");
    let setting = format!("server.unix_socket={}", path.display());
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ferrite"));
    let command = command.args(["--port", "0", "--set", &setting]).current_dir(&directory);
    assert_eq!(command.status().expect("it runs").code(), Some(1));
    assert_eq!(std::fs::read(&path).expect("it is there"), b"data");
    std::fs::remove_file(&path).expect("removed");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
    let ferrite = Server::ferrite(&[&setting]);
    assert_eq!(ferrite.connect().line("PING"), "+PONG");
}

#[test]
fn the_end_answers_what_was_read_and_keeps_it() {
    let mut ferrite = Server::ferrite(&[]);
    let mut wire = ferrite.connect();
    wire.send(&b"INCR n\r\n".repeat(10_000));
    assert_eq!(wire.receive(4), b":1\r\n");
    ferrite.signal("TERM");
    let (got, closed) = wire.receive_until(b"never");
    assert!(closed);
    let text = String::from_utf8(got).expect("text");
    assert!(text.ends_with("\r\n"), "half a reply: {text:?}");
    assert_eq!(ferrite.wait(), Some(0));
    assert!(TcpStream::connect(ferrite.address).is_err(), "nobody listens any more");
    let answered = 1 + text.lines().count();
    let again = Server::ferrite_in(ferrite.directory.clone(), &[]);
    assert_eq!(again.connect().bulk("GET n"), answered.to_string());
}

#[test]
fn clients_of_all_workers_see_one_store() {
    let ferrite = Server::ferrite(&["server.workers=2"]);
    let mut wires: Vec<Wire> = (0..100).map(|_| ferrite.connect()).collect();
    for (n, wire) in wires.iter_mut().enumerate() {
        assert_eq!(wire.line(&format!("SET k{n} {n}")), "+OK");
    }
    for (n, wire) in wires.iter_mut().enumerate() {
        assert_eq!(wire.bulk(&format!("GET k{}", 99 - n)), (99 - n).to_string());
    }
}
