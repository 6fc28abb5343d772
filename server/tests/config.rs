//! Configuration, start and stop of the real binary: where settings come from, what is refused and
//! how, what CONFIG, INFO and the HTTP pages answer.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Far more than anything here takes: a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

fn ferrite(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferrite"));
    command.current_dir(directory).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FERRITE_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs it to its end.
fn output(directory: &Path, arguments: &[&str]) -> Output {
    ferrite(directory).args(arguments).output().expect("ferrite runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("it prints text")
}

fn dump(directory: &Path, arguments: &[&str]) -> String {
    let output = output(directory, &[arguments, &["--dump-config"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// A running server on a free port.
struct Server {
    child: Child,
    lines: Receiver<String>,
    /// What it has logged up to `ready`.
    log: Vec<String>,
    address: SocketAddr,
}

impl Server {
    fn start(directory: &Path, arguments: &[&str]) -> Self {
        Self::start_with(ferrite(directory).args(arguments))
    }
    fn start_with(command: &mut Command) -> Self {
        let mut child =
            command.args(["--port", "0"]).stderr(Stdio::piped()).spawn().expect("ferrite runs");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).try_for_each(|l| sender.send(l))
        });
        let mut server =
            Self { child, lines, log: Vec::new(), address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        while !server.log.last().is_some_and(|line| line.contains("ready")) {
            let line = server.lines.recv_timeout(PATIENCE);
            server.log.push(line.unwrap_or_else(|e| panic!("not ready: {e}\n{:#?}", server.log)));
        }
        let listening = server.logged("listening on ");
        let address = listening.split([' ', ',']).next().expect("a word");
        server.address = address.parse().expect("an address");
        server
    }
    /// What follows `before` in the line of the log that has it.
    fn logged(&self, before: &str) -> String {
        let line = self.log.iter().find_map(|line| line.split_once(before));
        line.unwrap_or_else(|| panic!("no {before:?} in {:#?}", self.log)).1.to_owned()
    }
    fn client(&self) -> BufReader<TcpStream> {
        let stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        BufReader::new(stream)
    }
    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status().expect("kill runs");
        assert!(status.success());
    }
    /// SIGTERM, and the code it exits with.
    fn terminate(mut self) -> Option<i32> {
        self.signal("TERM");
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a command and reads its reply; the items of an array without their types.
fn ask(client: &mut BufReader<TcpStream>, words: &[&str]) -> Vec<String> {
    let mut request = format!("*{}\r\n", words.len());
    words.iter().for_each(|w| request += &format!("${}\r\n{w}\r\n", w.len()));
    client.get_mut().write_all(request.as_bytes()).expect("sent");
    reply(client)
}

fn reply(client: &mut BufReader<TcpStream>) -> Vec<String> {
    let mut line = String::new();
    client.read_line(&mut line).expect("a reply");
    let line = line.trim_end();
    let (kind, rest) = line.split_at(1);
    match kind {
        "*" => (0..rest.parse().expect("a length")).flat_map(|_| reply(client)).collect(),
        "$" => {
            let mut bytes = vec![0; rest.parse::<usize>().expect("a length") + 2];
            client.read_exact(&mut bytes).expect("a bulk string");
            vec![text(&bytes[..bytes.len() - 2])]
        }
        "-" => vec![line.to_owned()],
        _ => vec![rest.to_owned()],
    }
}

fn info(client: &mut BufReader<TcpStream>, field: &str) -> String {
    let all = ask(client, &["INFO", "everything"]).remove(0);
    let found = all.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    found.unwrap_or_else(|| panic!("no {field} in {all}")).to_owned()
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    answer
}

#[test]
fn a_dump_that_is_fed_back_changes_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let settings = ["--set", "server.timeout=15min", "--set", "storage.data_dir=a \"b\""];
    let first = dump(directory.path(), &settings);
    assert!(first.contains("\ntimeout = 900\n"), "{first}");
    let file = directory.path().join("f.toml");
    fs::write(&file, &first).expect("written");
    let again = dump(directory.path(), &["--config", "f.toml"]);
    assert_eq!(first, again);
}

#[test]
fn defaults_yield_to_the_file_that_to_the_environment_and_that_to_flags() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    assert!(dump(path, &[]).contains("\nport = 6379\n"));
    fs::write(path.join("ferrite.toml"), "[server]\nport = 1\n").expect("written");
    assert!(dump(path, &[]).contains("\nport = 1\n"));
    let with_environment = |arguments: &[&str]| {
        let mut command = ferrite(path);
        command.env("FERRITE_SERVER_PORT", "2").arg("--dump-config").args(arguments);
        text(&command.output().expect("ferrite runs").stdout)
    };
    assert!(with_environment(&[]).contains("\nport = 2\n"));
    assert!(with_environment(&["--port", "3"]).contains("\nport = 3\n"));
    assert!(with_environment(&["--port", "3", "--set", "server.port=4"]).contains("\nport = 4\n"));
}

#[test]
fn blocks_that_are_pasted_twice_are_merged() {
    const CHECKPOINTS: &str = "[persistence]\ncheckpoint_enabled = true\n\
        checkpoint_interval = 300       # Seconds between checkpoints\n\
        checkpoint_file = \"ferrite.ckpt\"\n\
        checkpoint_compression = true   # Compress checkpoint files\n";
    const AOF: &str = "[persistence]\naof_enabled = true\n\
        aof_sync = \"everysec\"           # always, everysec, no\n\
        aof_file = \"appendonly.aof\"\naof_rewrite_percentage = 100\n\
        aof_rewrite_min_size = \"64MB\"   # Minimum size before considering rewrite\n";
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("ferrite.toml");
    fs::write(&file, CHECKPOINTS.repeat(2)).expect("written");
    assert_eq!(output(directory.path(), &["--test-config"]).status.code(), Some(0));

    // Both blocks twice, as someone copies them from a guide.
    fs::write(&file, [CHECKPOINTS, AOF].concat().repeat(2)).expect("written");
    let taken = output(directory.path(), &["--test-config"]);
    assert_eq!(taken.status.code(), Some(0), "{}", text(&taken.stderr));
}

#[test]
fn what_is_wrong_is_one_line_each_and_exit_1() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(
        directory.path().join("ferrite.toml"),
        "[server]\nport = 99999\nprot = 1\n\n[server]\ntimeout = 1\ntimeout = 2\n",
    )
    .expect("written");
    let refused = output(directory.path(), &["--databases", "0"]);
    assert_eq!((refused.status.code(), text(&refused.stdout)), (Some(1), String::new()));
    assert_eq!(
        text(&refused.stderr),
        "ferrite: ferrite.toml line 2: server.port = \"99999\" does not work: must be a whole \
         number from 0 to 65535\n\
         ferrite: ferrite.toml line 3: unknown setting 'server.prot'; did you mean \
         'server.port'?\n\
         ferrite: ferrite.toml: server.timeout is set to \"1\" on line 6 and to \"2\" on line 7; \
         keep one\n\
         ferrite: --databases: storage.databases = \"0\" does not work: must be a whole number \
         from 1 to 256\n"
    );
    let missing = output(directory.path(), &["--config", "nosuch.toml"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("nosuch.toml"), "{missing:?}");
}

#[test]
fn help_and_version_are_answered() {
    let directory = tempfile::tempdir().expect("a directory");
    let version = output(directory.path(), &["--version"]);
    assert_eq!(text(&version.stdout), format!("ferrite {}\n", env!("CARGO_PKG_VERSION")));
    let help = text(&output(directory.path(), &["--help"]).stdout);
    for flag in [
        "--config",
        "--port",
        "--bind",
        "--data-dir",
        "--databases",
        "--log-level",
        "--set",
        "--rebuild-index",
        "--test-config",
        "--dump-config",
        "--help",
        "--version",
    ] {
        assert!(help.contains(flag), "{flag} in {help}");
    }
    assert_eq!(output(directory.path(), &["--prot", "1"]).status.code(), Some(2));
}

#[test]
fn a_start_tells_what_it_found_and_a_signal_ends_it_with_0() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("ferrite.toml"), "[server]\nworkers = 1\n").expect("written");
    let server = Server::start(directory.path(), &[]);
    let path = directory.path().canonicalize().expect("it exists");
    assert!(server.logged("Ferrite ").starts_with(env!("CARGO_PKG_VERSION")));
    assert_eq!(
        server.logged("configuration from "),
        format!("{}/ferrite.toml, found in the working directory", path.display())
    );
    assert_eq!(server.logged("data directory "), format!("{}/data", path.display()));
    assert!(server.logged("backend ").starts_with("hybridlog, file I/O "));
    assert!(server.logged("recovered ").starts_with("0 keys"));
    assert!(server.logged("memory budget ").contains("MiB"));
    assert!(server.logged("listening on ").contains("1 workers"));
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn a_port_or_a_directory_in_use_is_one_line_and_exit_1() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path(), &[]);
    let port = server.address.port().to_string();
    let last_line = |output: &Output| {
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let all = text(&output.stderr);
        let of_us: Vec<_> = all.lines().filter(|l| l.starts_with("ferrite: ")).collect();
        assert_eq!(of_us.len(), 1, "{all}");
        assert!(!all.contains("panicked"), "{all}");
        of_us[0].to_owned()
    };
    let busy = last_line(&output(directory.path(), &["--port", &port, "--data-dir", "other"]));
    assert!(busy.contains(&format!("127.0.0.1:{port}")) && busy.contains("--port"), "{busy}");
    let locked = last_line(&output(directory.path(), &["--port", "0"]));
    assert!(locked.contains(&server.child.id().to_string()), "{locked}");
    fs::write(directory.path().join("file"), "").expect("written");
    let no_place = last_line(&output(directory.path(), &["--port", "0", "--data-dir", "file/x"]));
    assert!(no_place.contains("file/x") && no_place.contains("--data-dir"), "{no_place}");
}

/// A damaged index image refuses the start, in one line that names the flag which mends it. The flag
/// is for one start: CONFIG REWRITE leaves it out, and the next start needs it no more.
#[test]
fn a_damaged_image_refuses_the_start_until_one_rebuilds_the_index() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("ferrite.toml");
    fs::write(&file, "[server]\nworkers = 1\nport = 0\n").expect("written");
    let server = Server::start(directory.path(), &[]);
    let mut client = server.client();
    assert_eq!(ask(&mut client, &["MSET", "a", "1", "b", "2"]), ["OK"]);
    assert_eq!(server.terminate(), Some(0));
    let checkpoints = directory.path().join("data/checkpoints");
    let files = fs::read_dir(checkpoints).expect("it is there").map(|e| e.expect("lists").path());
    let image = files.filter(|p| p.to_string_lossy().contains("index-")).max().expect("an image");
    let mut bytes = fs::read(&image).expect("reads");
    bytes[26] ^= 1;
    fs::write(&image, &bytes).expect("writes");

    let refused = output(directory.path(), &[]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let all = text(&refused.stderr);
    let line = all.lines().last().expect("a line");
    for part in [image.to_str().expect("text"), "at offset 24: ", "; ", "--rebuild-index"] {
        assert!(line.starts_with("ferrite: ") && line.contains(part), "no {part:?} in {line}");
    }

    let server = Server::start(directory.path(), &["--rebuild-index"]);
    assert!(server.logged("the index was rebuilt from the log").contains("--rebuild-index"));
    let mut client = server.client();
    assert_eq!(ask(&mut client, &["MGET", "a", "b"]), ["1", "2"]);
    assert_eq!(ask(&mut client, &["CONFIG", "REWRITE"]), ["OK"]);
    assert!(!fs::read_to_string(&file).expect("reads").contains("rebuild"));
    server.signal("KILL");
    drop(server);

    let server = Server::start(directory.path(), &[]);
    assert!(!server.log.iter().any(|line| line.contains("rebuil")), "{:#?}", server.log);
    assert_eq!(ask(&mut server.client(), &["MGET", "a", "b"]), ["1", "2"]);
}

/// The checkpoint after a rebuild holds what the append-only file has beyond the last one: taken before
/// the replay, it would be what the next start goes on from, and no part does.
#[test]
fn a_rebuilt_index_is_saved_after_the_append_only_file_is_replayed() {
    let directory = tempfile::tempdir().expect("a directory");
    let aof = ["--set", "persistence.aof_enabled=true", "--set", "persistence.aof_sync=always"];
    let server = Server::start(directory.path(), &aof);
    let mut client = server.client();
    for words in [&["SET", "a", "1"][..], &["SAVE"], &["SET", "b", "2"]] {
        assert_eq!(ask(&mut client, words), ["OK"]);
    }
    server.signal("KILL");
    drop(server);
    let checkpoints = directory.path().join("data/checkpoints");
    let files = fs::read_dir(checkpoints).expect("it is there").map(|e| e.expect("lists").path());
    let image = files.filter(|p| p.to_string_lossy().contains("index-")).max().expect("an image");
    fs::write(&image, "damaged").expect("writes");
    let rebuild = [&aof[..], &["--rebuild-index"]].concat();
    let server = Server::start(directory.path(), &rebuild);
    assert_eq!(ask(&mut server.client(), &["MGET", "a", "b"]), ["1", "2"]);
    assert_eq!(ask(&mut server.client(), &["SET", "c", "3"]), ["OK"]);
    server.signal("KILL");
    drop(server);
    let server = Server::start(directory.path(), &aof);
    assert_eq!(ask(&mut server.client(), &["MGET", "a", "b", "c"]), ["1", "2", "3"]);
}

#[test]
fn config_set_takes_effect_and_rewrite_keeps_comments() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("mine.toml");
    fs::write(&file, "# Mine.\n[server]\nworkers = 1\ntimeout = 100 # long\n").expect("written");
    let server = Server::start(directory.path(), &["--config", "mine.toml"]);
    let mut client = server.client();
    assert_eq!(ask(&mut client, &["CONFIG", "GET", "timeout"]), ["timeout", "100"]);
    assert_eq!(ask(&mut client, &["CONFIG", "GET", "save"]), ["save", "300 1"]);
    assert_eq!(ask(&mut client, &["CONFIG", "GET", "appendonly"]), ["appendonly", "yes"]);
    let pairs = ["CONFIG", "SET", "timeout", "200", "maxclients", "1", "logging.level", "debug"];
    assert_eq!(ask(&mut client, &pairs), ["OK"]);
    let mut second = server.client();
    assert_eq!(reply(&mut second), ["-ERR max number of clients reached"]);
    assert_eq!(ask(&mut client, &["CONFIG", "REWRITE"]), ["OK"]);
    let written = fs::read_to_string(&file).expect("it is there");
    // The port 0 of the test's own flag is in force as well, and not the default.
    assert_eq!(
        written,
        "# Mine.\n[server]\nworkers = 1\ntimeout = 200 # long\nport = 0\nmax_connections = 1\n\n\
         [logging]\nlevel = \"debug\"\n"
    );
    assert_eq!(
        ask(&mut client, &["CONFIG", "SET", "databases", "3"]),
        ["-ERR CONFIG SET failed (possibly related to argument 'databases') - can't set \
          immutable config"]
    );
}

#[test]
fn the_interval_takes_checkpoints_and_info_tells() {
    let directory = tempfile::tempdir().expect("a directory");
    let interval = ["--set", "persistence.checkpoint_interval=1"];
    let server = Server::start(directory.path(), &interval);
    let mut client = server.client();
    assert_eq!(info(&mut client, "checkpoint_completed"), "0");
    assert_eq!(info(&mut client, "aof_enabled"), "1");
    assert_eq!(info(&mut client, "role"), "master");
    assert_eq!(ask(&mut client, &["SET", "a", "1"]), ["OK"]);
    let begin = Instant::now();
    while info(&mut client, "checkpoint_completed") == "0" {
        assert!(begin.elapsed() < PATIENCE, "no checkpoint was taken");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(info(&mut client, "checkpoint_last_status"), "ok");
    assert_eq!(info(&mut client, "rdb_changes_since_last_save"), "0");
    assert!(info(&mut client, "cmdstat_set").starts_with("calls=1,"));
    assert_eq!(ask(&mut client, &["CONFIG", "RESETSTAT"]), ["OK"]);
    assert!(!ask(&mut client, &["INFO", "commandstats"])[0].contains("cmdstat_set"));
}

#[test]
fn a_start_after_a_kill_tells_what_it_recovered() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path(), &[]);
    let mut client = server.client();
    assert_eq!(ask(&mut client, &["MSET", "a", "1", "b", "2"]), ["OK"]);
    assert_eq!(ask(&mut client, &["SAVE"]), ["OK"]);
    let saved = info(&mut client, "checkpoint_last_save_time");
    assert_eq!(ask(&mut client, &["LASTSAVE"])[0], saved);
    // Killed, not ended.
    drop(server);
    let server = Server::start(directory.path(), &[]);
    assert!(server.logged("recovered ").starts_with("2 keys from checkpoint "));
    let mut client = server.client();
    assert_eq!(ask(&mut client, &["GET", "b"]), ["2"]);
    assert_eq!(info(&mut client, "recovered_keys"), "2");
    assert_eq!(info(&mut client, "checkpoint_last_save_time"), saved);
}

#[test]
fn metrics_and_health_are_served_when_asked_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let settings = ["--set", "metrics.enabled=true", "--set", "metrics.port=0"];
    let server = Server::start(directory.path(), &settings);
    let address = server.logged("metrics on http://");
    let address = address.split('/').next().expect("a word");
    let mut client = server.client();
    assert_eq!(ask(&mut client, &["SET", "a", "1"]), ["OK"]);
    let health = get(address, "/health");
    assert!(health.starts_with("HTTP/1.0 200 OK\r\n"), "{health}");
    assert!(health.ends_with("{\"status\":\"ok\"}"), "{health}");
    let metrics = get(address, "/metrics");
    for line in ["ferrite_keys{db=\"0\"} 1\n", "ferrite_connected_clients 1\n", "# EOF\n"] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    assert!(get(address, "/nosuch").starts_with("HTTP/1.0 404 "));
}

#[test]
fn the_log_can_be_json_lines_in_a_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut command = ferrite(directory.path());
    command.args(["--port", "0", "--set", "logging.format=json", "--set", "logging.file=log"]);
    let mut child = command.stderr(Stdio::null()).spawn().expect("ferrite runs");
    let begin = Instant::now();
    let read = || fs::read_to_string(directory.path().join("log")).unwrap_or_default();
    while !read().contains("\"ready\"") && begin.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    let log = read();
    assert!(log.contains("\"message\":\"ready\""), "{log}");
    for line in log.lines() {
        let value: serde_json::Value = serde_json::from_str(line).expect(line);
        assert!(value["level"].is_string() && value["timestamp"].is_string(), "{line}");
    }
}

/// Writes it anew with `FERRITE_UPDATE_DOCS=1` in the environment.
#[test]
fn the_settings_in_the_documentation_are_the_tables() {
    const BEGIN: &str = "<!-- generated from the table of settings: FERRITE_UPDATE_DOCS=1 cargo test -p \
                         ferrite-server --test config -->\n";
    const END: &str = "\n<!-- end -->";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operating.md");
    let page = fs::read_to_string(&path).expect("docs/operating.md is there");
    let (before, rest) = page.split_once(BEGIN).expect("the mark of the beginning");
    let (_, after) = rest.split_once(END).expect("the mark of the end");
    let current = [before, BEGIN, &ferrite_server::config::operating_table(), END, after].concat();
    if std::env::var_os("FERRITE_UPDATE_DOCS").is_some() {
        fs::write(&path, &current).expect("written");
    } else {
        assert!(page == current, "docs/operating.md is not current: {BEGIN}");
    }
}

/// Under `ulimit -n 256` the store keeps a quarter, other things 64, and clients what is left.
#[test]
fn clients_cannot_take_the_stores_descriptors() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut limited = Command::new("sh");
    limited.current_dir(directory.path()).env_clear();
    limited.args(["-c", "ulimit -n 256; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_ferrite")]);
    limited.args(["--set", "storage.hybridlog_mutable_size=16MiB"]);
    let server = Server::start_with(&mut limited);
    assert!(
        server.logged("server.max_connections has been ").starts_with("reduced from 10000 to 128")
    );
    let mut client = server.client();
    assert_eq!(ask(&mut client, &["CONFIG", "GET", "maxclients"]), ["maxclients", "128"]);
    let refused = "-ERR CONFIG SET failed (possibly related to argument 'maxclients') - The operating \
                   system is not able to handle the specified number of clients, try with 128";
    assert_eq!(ask(&mut client, &["CONFIG", "SET", "maxclients", "129"]), [refused]);
    assert_eq!(ask(&mut client, &["CONFIG", "SET", "maxclients", "100"]), ["OK"]);
    assert_eq!(ask(&mut client, &["CONFIG", "SET", "maxclients", "128"]), ["OK"]);
    assert_eq!(server.terminate(), Some(0));
}
