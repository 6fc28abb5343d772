//! Clients that the server closes: the log says which and why, and /metrics counts them.

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use support::{Server, Wire};

/// The page of /metrics.
fn metrics(server: &Server) -> String {
    let log = server.log();
    let address = log.split("metrics on http://").nth(1).and_then(|rest| rest.split('/').next());
    let mut stream = TcpStream::connect(address.expect("it is told")).expect("it listens");
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("sent");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("a page");
    page
}

/// The end of a connection, whatever comes before it.
fn ends(mut wire: Wire) {
    assert!(wire.receive_until(b"never").1);
}

#[test]
fn each_closing_is_logged_and_counted() {
    let server = Server::ferrite(&[
        "metrics.enabled=true",
        "metrics.port=0",
        "server.max_query_buffer=1MiB",
        "server.max_output_buffer=32MiB",
        "server.output_stall=1",
        "logging.level=debug",
    ]);
    let mut wire = server.connect();
    // The server closes before it has read all of it.
    wire.send(&[b"*2\r\n$4\r\nECHO\r\n$3000000\r\n".to_vec(), vec![b'x'; 2_000_000]].concat());
    ends(wire);
    server.wait_for_log("bytes of unfinished commands are over the limit");

    let mut wire = server.connect();
    assert_eq!(wire.line("SETRANGE a 1000000 x"), ":1000001");
    assert!(wire.send(format!("MGET{}\r\n", " a".repeat(40)).as_bytes()));
    ends(wire);
    server.wait_for_log("unsent bytes of replies are over the limit");

    // Less than the limit, more than the sockets take.
    let mut wire = server.connect();
    assert!(wire.send(format!("MGET{}\r\n", " a".repeat(30)).as_bytes()));
    server.wait_for_log("bytes of replies for 1 seconds");

    let mut idle = server.connect();
    assert_eq!(idle.line("CONFIG SET timeout 1"), "+OK");
    ends(idle);
    server.wait_for_log("closing idle client");

    let page = metrics(&server);
    for reason in ["query_buffer", "output_buffer", "stalled", "idle"] {
        let line = format!("ferrite_closed_clients_total{{reason=\"{reason}\"}} 1\n");
        assert!(page.contains(&line), "no {line}in {page}");
    }
}

#[test]
fn an_attack_by_way_of_a_browser_is_logged_once_a_minute() {
    let server = Server::ferrite(&[]);
    for _ in 0..3 {
        let mut wire = server.connect();
        assert!(wire.send(b"POST / HTTP/1.1\r\nHost: a\r\n\r\nSET evil 1\r\n"));
        ends(wire);
    }
    server.wait_for_log("Possible SECURITY ATTACK detected.");
    assert_eq!(server.connect().line("GET evil"), "$-1");
    assert_eq!(server.log().matches("SECURITY ATTACK").count(), 1);
}
