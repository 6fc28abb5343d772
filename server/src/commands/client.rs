//! CLIENT: who is connected, under which name, and who is to go.

use super::args::{self, Cursor};
use super::{Categories, CommandSpec, Flags, Group, OutsideCall, Run, help, table};
use crate::client::{Client, ReplyMode, Shared};
use crate::context::{Context, unix_ms};
use crate::error::{self, ErrorReply, Outcome};
use crate::pause::{self, Paused};
use crate::worker::Message;
use std::sync::atomic::Ordering::Relaxed;

const BASE: CommandSpec = CommandSpec {
    flags: Flags::NO_SCRIPT.and(Flags::LOADING).and(Flags::STALE),
    categories: Categories::CONNECTION,
    group: Group::Connection,
    complexity: "O(1)",
    ..CommandSpec::BASE
};
const ADMIN: CommandSpec = CommandSpec {
    flags: BASE.flags.and(Flags::ADMIN),
    complexity: "O(N) where N is the number of client connections",
    ..BASE
};

pub(super) const CLIENT: CommandSpec = CommandSpec {
    name: "CLIENT",
    arity: -2,
    since: "2.4.0",
    group: Group::Connection,
    summary: "A container for commands about clients.",
    subcommands: &[
        CommandSpec {
            name: "GETNAME",
            arity: 2,
            since: "2.6.9",
            summary: "Returns the name of the connection.",
            run: Run::Outside(get_name),
            ..BASE
        },
        CommandSpec {
            name: "HELP",
            arity: 2,
            flags: Flags::LOADING.and(Flags::STALE),
            since: "5.0.0",
            summary: "Tells what the subcommands are for.",
            run: Run::Outside(client_help),
            ..BASE
        },
        CommandSpec {
            name: "ID",
            arity: 2,
            since: "5.0.0",
            summary: "Returns the number of the connection.",
            run: Run::Outside(id),
            ..BASE
        },
        CommandSpec {
            name: "INFO",
            arity: 2,
            tips: &["nondeterministic_output"],
            since: "6.2.0",
            summary: "Describes the connection.",
            run: Run::Outside(info),
            ..BASE
        },
        CommandSpec {
            name: "KILL",
            arity: -3,
            since: "2.4.0",
            summary: "Closes connections.",
            run: Run::Outside(kill),
            ..ADMIN
        },
        CommandSpec {
            name: "LIST",
            arity: -2,
            tips: &["nondeterministic_output"],
            since: "2.4.0",
            summary: "Describes the connections.",
            run: Run::Outside(list),
            ..ADMIN
        },
        CommandSpec {
            name: "NO-EVICT",
            arity: 3,
            since: "7.0.0",
            complexity: "O(1)",
            summary: "Keeps the connection when clients are closed to save memory.",
            run: Run::Outside(no_evict),
            ..ADMIN
        },
        CommandSpec {
            name: "NO-TOUCH",
            arity: 3,
            since: "7.2.0",
            summary: "Sets the mark that CLIENT LIST shows; no read of any connection uses a key.",
            run: Run::Outside(no_touch),
            ..BASE
        },
        CommandSpec {
            name: "PAUSE",
            arity: -3,
            since: "2.9.50",
            complexity: "O(1)",
            summary: "Lets commands of all clients wait, or those that write.",
            run: Run::Outside(pause_command),
            ..ADMIN
        },
        CommandSpec {
            name: "REPLY",
            arity: 3,
            since: "3.2.0",
            summary: "Chooses which replies the server sends.",
            run: Run::Outside(reply),
            ..BASE
        },
        CommandSpec {
            name: "SETINFO",
            arity: 4,
            since: "7.2.0",
            summary: "Tells the server about the client's library.",
            run: Run::Outside(set_info),
            ..BASE
        },
        CommandSpec {
            name: "SETNAME",
            arity: 3,
            since: "2.6.9",
            summary: "Gives the connection a name.",
            run: Run::Outside(set_name_command),
            ..BASE
        },
        CommandSpec {
            name: "UNPAUSE",
            arity: 2,
            since: "6.2.0",
            complexity: "O(N) where N is the number of clients",
            summary: "Lets the commands go on that CLIENT PAUSE stopped.",
            run: Run::Outside(unpause),
            ..ADMIN
        },
    ],
    ..CommandSpec::BASE
};

fn client_help(call: &mut OutsideCall<'_>) -> Outcome {
    let lines = [
        "GETNAME",
        "    Return the name of the current connection.",
        "ID",
        "    Return the ID of the current connection.",
        "INFO",
        "    Return information about the current client connection.",
        "KILL <ip:port>",
        "    Kill connection made from <ip:port>.",
        "KILL <option> <value> [<option> <value> [...]]",
        "    Kill connections. Options are:",
        "    * ADDR (<ip:port>|<unixsocket>:0)",
        "      Kill connections made from the specified address",
        "    * ID <client-id>",
        "      Kill the connection of that number",
        "    * LADDR (<ip:port>|<unixsocket>:0)",
        "      Kill connections made to specified local address",
        "    * TYPE (NORMAL|MASTER|REPLICA|PUBSUB)",
        "      Kill connections by type.",
        "    * USER <username>",
        "      Kill connections authenticated by <username>.",
        "    * SKIPME (YES|NO)",
        "      Skip killing current connection (default: yes).",
        "LIST [options ...]",
        "    Return information about client connections. Options:",
        "    * ID <client-id> [<client-id> ...]",
        "      Return clients of these numbers.",
        "    * TYPE (NORMAL|MASTER|REPLICA|PUBSUB)",
        "      Return clients of specified type.",
        "NO-EVICT (ON|OFF)",
        "    Protect current client connection from eviction.",
        "NO-TOUCH (ON|OFF)",
        "    Will not touch LRU/LFU stats when this mode is on.",
        "PAUSE <timeout> [WRITE|ALL]",
        "    Suspend all, or just write, clients for <timeout> milliseconds.",
        "REPLY (ON|OFF|SKIP)",
        "    Control the replies sent to the current connection.",
        "SETINFO <option> <value>",
        "    Set client meta attr. Options are:",
        "    * LIB-NAME: the client lib name.",
        "    * LIB-VER: the client lib version.",
        "SETNAME <name>",
        "    Assign the name <name> to the current connection.",
        "UNPAUSE",
        "    Stop the current client pause, resuming traffic.",
    ];
    help(&mut call.reply, "CLIENT", &lines);
    Ok(())
}

fn id(call: &mut OutsideCall<'_>) -> Outcome {
    call.reply.integer(call.client.id() as i64);
    Ok(())
}

fn get_name(call: &mut OutsideCall<'_>) -> Outcome {
    match call.client.shared.texts().name.as_slice() {
        b"" => call.reply.null(),
        name => call.reply.bulk(name),
    }
    Ok(())
}

fn set_name_command(call: &mut OutsideCall<'_>) -> Outcome {
    set_name(call.client, call.args.at(2))?;
    call.reply.ok();
    Ok(())
}

/// Names a client; an empty name takes the name away.
pub(super) fn set_name(client: &Client, name: &[u8]) -> Result<(), ErrorReply> {
    if !is_plain(name) {
        let text = "ERR Client names cannot contain spaces, newlines or special characters.";
        return Err(ErrorReply::new(text));
    }
    client.shared.texts().name = name.to_vec();
    Ok(())
}

fn is_plain(text: &[u8]) -> bool {
    text.iter().all(u8::is_ascii_graphic)
}

fn set_info(call: &mut OutsideCall<'_>) -> Outcome {
    let (option, value) = (call.args.at(2), call.args.at(3));
    let mut texts = call.client.shared.texts();
    let (text, name) = if args::is(option, "LIB-NAME") {
        (&mut texts.library, "lib-name")
    } else if args::is(option, "LIB-VER") {
        (&mut texts.library_version, "lib-ver")
    } else {
        let text = [b"ERR Unrecognized option '", option, b"'"].concat();
        return Err(ErrorReply::owned(text).into());
    };
    if !is_plain(value) {
        let text = format!("ERR {name} cannot contain spaces, newlines or special characters.");
        return Err(ErrorReply::owned(text).into());
    }
    *text = value.to_vec();
    call.reply.ok();
    Ok(())
}

fn on_or_off(word: &[u8]) -> Result<bool, ErrorReply> {
    match (args::is(word, "ON"), args::is(word, "OFF")) {
        (true, _) => Ok(true),
        (_, true) => Ok(false),
        _ => Err(error::SYNTAX),
    }
}

fn no_evict(call: &mut OutsideCall<'_>) -> Outcome {
    call.client.shared.no_evict.store(on_or_off(call.args.at(2))?, Relaxed);
    call.reply.ok();
    Ok(())
}

fn no_touch(call: &mut OutsideCall<'_>) -> Outcome {
    call.client.no_touch = on_or_off(call.args.at(2))?;
    call.client.shared.no_touch.store(call.client.no_touch, Relaxed);
    call.reply.ok();
    Ok(())
}

fn reply(call: &mut OutsideCall<'_>) -> Outcome {
    let mode = call.args.at(2);
    if args::is(mode, "ON") {
        call.client.reply_mode = ReplyMode::On;
        call.reply.ok();
    } else if args::is(mode, "OFF") {
        call.client.reply_mode = ReplyMode::Off;
    } else if args::is(mode, "SKIP") {
        if call.client.reply_mode != ReplyMode::Off {
            call.client.reply_mode = ReplyMode::SkipNext;
        }
    } else {
        return Err(error::SYNTAX.into());
    }
    Ok(())
}

fn pause_command(call: &mut OutsideCall<'_>) -> Outcome {
    let kind = match call.args.get(3) {
        Some(word) if args::is(word, "WRITE") => Paused::Writes,
        Some(word) if !args::is(word, "ALL") => {
            let text = "ERR CLIENT PAUSE mode must be WRITE or ALL";
            return Err(ErrorReply::new(text).into());
        }
        _ => Paused::All,
    };
    if call.args.len() > 4 {
        return Err(error::wrong_subcommand(call.args.at(1), "CLIENT").into());
    }
    const NO_TIME: ErrorReply = ErrorReply::new("ERR timeout is not an integer or out of range");
    let ms = args::parse_i64(call.args.at(2)).ok_or(NO_TIME)?;
    let ms = u64::try_from(ms).map_err(|_| ErrorReply::new("ERR timeout is negative"))?;
    // A time that no clock shows is past, as in Redis.
    let until_ms = i64::try_from(ms.saturating_add(unix_ms())).unwrap_or(0) as u64;
    pause::begin(call, kind, until_ms);
    call.reply.ok();
    Ok(())
}

fn unpause(call: &mut OutsideCall<'_>) -> Outcome {
    pause::end(call.context);
    call.reply.ok();
    Ok(())
}

fn info(call: &mut OutsideCall<'_>) -> Outcome {
    let mut line = Vec::new();
    describe(&call.client.shared, unix_ms(), &mut line);
    call.reply.verbatim("txt", &line);
    Ok(())
}

fn list(call: &mut OutsideCall<'_>) -> Outcome {
    let mut ids = None;
    let mut kind = Kind::Normal;
    let mut options = call.args.cursor(2);
    if options.remaining() == 2 && options.keyword("TYPE") {
        kind = Kind::named(options.word()?)?;
    } else if options.remaining() > 1 && options.keyword("ID") {
        let number = |word| args::parse_i64(word).ok_or(ErrorReply::new("ERR Invalid client ID"));
        ids = Some(options.map(number).collect::<Result<Vec<_>, _>>()?);
    } else if !options.is_empty() {
        return Err(error::SYNTAX.into());
    }
    let (all, now_ms) = (call.context.clients.list(), unix_ms());
    let mut text = Vec::new();
    let chosen = all.iter().filter(|_| kind == Kind::Normal);
    let chosen: Vec<_> = match ids {
        None => chosen.collect(),
        Some(ids) => {
            let with = |id: &i64| all.iter().find(|client| client.id == *id as u64);
            ids.iter().filter_map(with).collect()
        }
    };
    chosen.into_iter().for_each(|client| describe(client, now_ms, &mut text));
    call.reply.verbatim("txt", &text);
    Ok(())
}

/// Redis's kinds of clients; all of ours are normal ones.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Other,
}

impl Kind {
    fn named(word: &[u8]) -> Result<Self, ErrorReply> {
        if args::is(word, "normal") {
            return Ok(Self::Normal);
        }
        if ["slave", "replica", "pubsub", "master"].iter().any(|kind| args::is(word, kind)) {
            return Ok(Self::Other);
        }
        Err(ErrorReply::owned([b"ERR Unknown client type '", word, b"'"].concat()))
    }
}

/// One line of CLIENT LIST, in the form of Redis 7.0, the library's name and version at the end.
fn describe(client: &Shared, now_ms: u64, line: &mut Vec<u8>) {
    let seconds = |since_ms: u64| now_ms.saturating_sub(since_ms) / 1000;
    let flag = |set: bool, letter| if set { letter } else { "" };
    let mut flags = String::new();
    let queued = client.queued_commands.load(Relaxed);
    let queued_bytes = client.queued_bytes.load(Relaxed);
    flags += flag(queued >= 0, "x");
    flags += flag(client.paused.load(Relaxed), "b");
    flags += flag(client.no_evict.load(Relaxed), "e");
    flags += flag(client.no_touch.load(Relaxed), "T");
    flags += flag(client.address.ends_with(":0"), "U");
    let flags = if flags.is_empty() { "N".into() } else { flags };
    let command = client.last_command.load(Relaxed) as usize;
    let command = table().entries().get(command).map_or("NULL", |entry| &entry.name);
    let texts = client.texts();
    let (query, free) = (client.query_bytes.load(Relaxed), client.query_free_bytes.load(Relaxed));
    let output = client.output_bytes.load(Relaxed);
    let total = query + free + output + queued_bytes + size_of::<Shared>() as u64;
    line.extend_from_slice(
        format!(
            "id={} addr={} laddr={} fd={} name=",
            client.id, client.address, client.local_address, client.descriptor
        )
        .as_bytes(),
    );
    line.extend_from_slice(&texts.name);
    line.extend_from_slice(
        format!(
            " age={} idle={} flags={flags} db={} sub=0 psub=0 ssub=0 multi={queued} \
             qbuf={query} qbuf-free={free} argv-mem=0 multi-mem={queued_bytes} rbs={output} rbp={output} obl={output} oll=0 \
             omem=0 tot-mem={total} events={} cmd={command} user=default redir=-1 resp={} lib-name=",
            seconds(client.connected_at_ms),
            seconds(client.active_at_ms.load(Relaxed)),
            client.db.load(Relaxed),
            if output > 0 { "rw" } else { "r" },
            client.protocol.load(Relaxed),
        )
        .as_bytes(),
    );
    line.extend_from_slice(&texts.library);
    line.extend_from_slice(b" lib-ver=");
    line.extend_from_slice(&texts.library_version);
    line.push(b'\n');
}

/// Which clients CLIENT KILL means.
#[derive(Default)]
struct Victims<'a> {
    id: Option<u64>,
    address: Option<&'a [u8]>,
    local_address: Option<&'a [u8]>,
    none: bool,
    skip_me: bool,
}

impl<'a> Victims<'a> {
    fn parse(mut options: Cursor<'a>) -> Result<Self, ErrorReply> {
        let mut victims = Self { skip_me: true, ..Self::default() };
        while !options.is_empty() {
            let option = options.word()?;
            let value = options.word()?;
            if args::is(option, "ID") {
                let number = args::parse_i64(value).filter(|n| *n > 0);
                let wrong = ErrorReply::new("ERR client-id should be greater than 0");
                victims.id = Some(number.ok_or(wrong)? as u64);
            } else if args::is(option, "TYPE") {
                victims.none |= Kind::named(value)? != Kind::Normal;
            } else if args::is(option, "ADDR") {
                victims.address = Some(value);
            } else if args::is(option, "LADDR") {
                victims.local_address = Some(value);
            } else if args::is(option, "USER") {
                if value != b"default" {
                    let text = [b"ERR No such user '", value, b"'"].concat();
                    return Err(ErrorReply::owned(text));
                }
            } else if args::is(option, "SKIPME") {
                victims.skip_me = match (args::is(value, "YES"), args::is(value, "NO")) {
                    (true, _) => true,
                    (_, true) => false,
                    _ => return Err(error::SYNTAX),
                };
            } else {
                return Err(error::SYNTAX);
            }
        }
        Ok(victims)
    }
    fn include(&self, client: &Shared, me: u64) -> bool {
        let address = |wanted: Option<&[u8]>, is: &str| wanted.is_none_or(|w| w == is.as_bytes());
        let spared = self.none || self.skip_me && client.id == me;
        !spared
            && self.id.is_none_or(|id| id == client.id)
            && address(self.address, &client.address)
            && address(self.local_address, &client.local_address)
    }
}

fn kill(call: &mut OutsideCall<'_>) -> Outcome {
    let old_form = call.args.len() == 3;
    let victims = match old_form {
        true => Victims { address: call.args.get(2), ..Victims::default() },
        false => Victims::parse(call.args.cursor(2))?,
    };
    let me = call.client.id();
    let all = call.context.clients.list();
    let chosen: Vec<_> = all.iter().filter(|client| victims.include(client, me)).collect();
    for client in &chosen {
        if client.id == me {
            call.client.close_after_reply = true;
        } else {
            close(client, call.context);
        }
    }
    match (old_form, chosen.len()) {
        (true, 0) => return Err(ErrorReply::new("ERR No such client").into()),
        (true, _) => call.reply.ok(),
        (false, n) => call.reply.count(n),
    }
    Ok(())
}

/// Has a client closed by its worker; it is not listed any more.
fn close(client: &Shared, context: &Context) {
    client.kill.store(true, Relaxed);
    context.clients.remove(client.id);
    let mailbox = context.mailboxes.get().and_then(|all| all.get(client.worker));
    if let Some(mailbox) = mailbox {
        // A client that its worker has not yet taken in has no slot; it is closed when it has.
        if let Ok(slot) = u32::try_from(client.slot.load(Relaxed)) {
            mailbox.send(Message::Kill { slot, id: client.id });
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::commands::testing::Bench;

    /// The replies of redis-server 7.0.15.
    #[test]
    fn errors_are_redis_ones() {
        let mut bench = Bench::new();
        for (line, reply) in [
            (
                "client setname \u{1}",
                "-ERR Client names cannot contain spaces, newlines or special characters.\r\n",
            ),
            ("client no-evict x", "-ERR syntax error\r\n"),
            ("client reply x", "-ERR syntax error\r\n"),
            ("client kill 1.2.3.4:5", "-ERR No such client\r\n"),
            ("client kill id 99999", ":0\r\n"),
            ("client kill id abc", "-ERR client-id should be greater than 0\r\n"),
            ("client kill id 0", "-ERR client-id should be greater than 0\r\n"),
            ("client kill type foo", "-ERR Unknown client type 'foo'\r\n"),
            ("client kill type normal skipme x", "-ERR syntax error\r\n"),
            ("client kill foo bar", "-ERR syntax error\r\n"),
            ("client kill id 1 foo", "-ERR syntax error\r\n"),
            ("client kill user foo", "-ERR No such user 'foo'\r\n"),
            ("client list type foo", "-ERR Unknown client type 'foo'\r\n"),
            ("client list type", "-ERR syntax error\r\n"),
            ("client list foo", "-ERR syntax error\r\n"),
            ("client list id abc", "-ERR Invalid client ID\r\n"),
            ("client list id 1000", "$0\r\n\r\n"),
            ("client list type master", "$0\r\n\r\n"),
            ("client tracking on", "-ERR unknown subcommand 'tracking'. Try CLIENT HELP.\r\n"),
            ("client pause x", "-ERR timeout is not an integer or out of range\r\n"),
            ("client pause -1", "-ERR timeout is negative\r\n"),
            ("client pause x foo", "-ERR CLIENT PAUSE mode must be WRITE or ALL\r\n"),
            (
                "client pause 1 write x",
                "-ERR unknown subcommand or wrong number of arguments for 'pause'. Try CLIENT \
                 HELP.\r\n",
            ),
            ("client pause 9223372036854775807", "+OK\r\n"),
            ("client pause 0", "+OK\r\n"),
            ("client unpause", "+OK\r\n"),
            ("client", "-ERR wrong number of arguments for 'client' command\r\n"),
            ("client id x", "-ERR wrong number of arguments for 'client|id' command\r\n"),
        ] {
            assert_eq!(bench.text(line), reply, "{line}");
        }
    }

    #[test]
    fn a_client_is_listed_with_what_it_said_of_itself() {
        let mut bench = Bench::new();
        assert_eq!(bench.text("client getname"), "$-1\r\n");
        for line in ["client setname me", "client setinfo lib-name lib", "client no-touch on"] {
            assert_eq!(bench.text(line), "+OK\r\n");
        }
        let listed = bench.text("client list");
        for part in ["id=1 addr=127.0.0.1:1 ", " name=me ", " flags=T ", " lib-name=lib lib-ver=\n"]
        {
            assert!(listed.contains(part), "{listed}");
        }
        assert_eq!(listed, bench.text("client list id 1"));
        assert_eq!(bench.text("client kill id 1"), ":0\r\n", "SKIPME is the default");
        assert!(!bench.client.close_after_reply);
        assert_eq!(bench.text("client kill id 1 skipme no"), ":1\r\n");
        assert!(bench.client.close_after_reply);
    }
}
