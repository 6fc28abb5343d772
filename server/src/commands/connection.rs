//! The connection: greeting, database, end. CLIENT is in `client.rs`.

use super::args::{self, Cursor};
use super::{Call, Categories, CommandSpec, Flags, Group, OutsideCall, Run, client, database};
use crate::error::{self, ErrorReply, Outcome};
use crate::info::REDIS_VERSION;
use crate::resp::Protocol;
use std::sync::atomic::Ordering::Relaxed;

/// For what greets and leaves: allowed at any time.
const ALWAYS: Flags = Flags::NO_SCRIPT
    .and(Flags::LOADING)
    .and(Flags::STALE)
    .and(Flags::FAST)
    .and(Flags::NO_AUTH)
    .and(Flags::ALLOW_BUSY);

const BASE: CommandSpec = CommandSpec {
    categories: Categories::CONNECTION,
    group: Group::Connection,
    complexity: "O(1)",
    ..CommandSpec::BASE
};

pub(super) const COMMANDS: &[CommandSpec] = &[
    CommandSpec {
        name: "PING",
        arity: -1,
        flags: Flags::FAST,
        tips: &["request_policy:all_shards", "response_policy:all_succeeded"],
        since: "1.0.0",
        summary: "Answers PONG, or its argument.",
        run: Run::Inside(ping),
        ..BASE
    },
    CommandSpec {
        name: "ECHO",
        arity: 2,
        flags: Flags::LOADING.and(Flags::STALE).and(Flags::FAST),
        since: "1.0.0",
        summary: "Answers its argument.",
        run: Run::Outside(echo),
        ..BASE
    },
    CommandSpec {
        name: "SELECT",
        arity: 2,
        flags: Flags::LOADING.and(Flags::STALE).and(Flags::FAST),
        since: "1.0.0",
        summary: "Chooses the logical database of the connection.",
        run: Run::Outside(select),
        ..BASE
    },
    CommandSpec {
        name: "HELLO",
        arity: -1,
        flags: ALWAYS,
        since: "6.0.0",
        summary: "Introduces the server and chooses the version of the protocol.",
        run: Run::Outside(hello),
        ..BASE
    },
    CommandSpec {
        name: "AUTH",
        arity: -2,
        flags: ALWAYS,
        since: "1.0.0",
        complexity: "O(N) where N is the number of passwords defined for the user",
        summary: "Authenticates the connection.",
        run: Run::Outside(auth),
        ..BASE
    },
    CommandSpec {
        name: "QUIT",
        arity: -1,
        flags: ALWAYS,
        since: "1.0.0",
        summary: "Closes the connection.",
        run: Run::Outside(quit),
        ..BASE
    },
    CommandSpec {
        name: "RESET",
        arity: 1,
        flags: ALWAYS,
        since: "6.2.0",
        summary: "Makes the connection as it was when it began.",
        run: Run::Outside(reset),
        ..BASE
    },
    client::CLIENT,
];

/// Nobody but the default user exists, and it has no password.
const WRONG_PASSWORD: ErrorReply =
    ErrorReply::new("WRONGPASS invalid username-password pair or user is disabled.");
const NO_PASSWORD: ErrorReply = ErrorReply::new(
    "ERR AUTH <password> called without any password configured for the default user. Are you \
     sure your configuration is correct?",
);

fn ping(call: &mut Call<'_, '_>) -> Outcome {
    match call.args.len() {
        1 => call.reply.simple("PONG"),
        2 => call.reply.bulk(call.args.at(1)),
        _ => return Err(error::wrong_arity("ping").into()),
    }
    Ok(())
}

fn echo(call: &mut OutsideCall<'_>) -> Outcome {
    call.reply.bulk(call.args.at(1));
    Ok(())
}

fn select(call: &mut OutsideCall<'_>) -> Outcome {
    call.client.db = database(call.context, call.args.at(1))?;
    call.reply.ok();
    Ok(())
}

fn hello(call: &mut OutsideCall<'_>) -> Outcome {
    let mut protocol = call.client.protocol;
    if let Some(version) = call.args.get(1) {
        protocol = match args::parse_i64(version) {
            Some(2) => Protocol::Resp2,
            Some(3) => Protocol::Resp3,
            Some(_) => {
                return Err(ErrorReply::new("NOPROTO unsupported protocol version").into());
            }
            None => {
                let text = "ERR Protocol version is not an integer or out of range";
                return Err(ErrorReply::new(text).into());
            }
        };
    }
    let mut options = call.args.cursor(2);
    while !options.is_empty() {
        hello_option(call, &mut options)?;
    }
    call.client.protocol = protocol;
    call.reply.switch(protocol);
    call.client.shared.protocol.store(call.reply.is_resp3() as u8 + 2, Relaxed);
    let reply = &mut call.reply;
    reply.map(7);
    for (name, value) in [("server", "redis"), ("version", REDIS_VERSION)] {
        reply.bulk(name.as_bytes());
        reply.bulk(value.as_bytes());
    }
    reply.bulk(b"proto");
    reply.integer(if protocol == Protocol::Resp3 { 3 } else { 2 });
    reply.bulk(b"id");
    reply.integer(call.client.id() as i64);
    for (name, value) in [("mode", "standalone"), ("role", "master")] {
        reply.bulk(name.as_bytes());
        reply.bulk(value.as_bytes());
    }
    reply.bulk(b"modules");
    reply.array(0);
    Ok(())
}

fn hello_option(call: &mut OutsideCall<'_>, options: &mut Cursor<'_>) -> Outcome {
    let left = options.remaining() - 1;
    let option = options.word()?;
    if args::is(option, "AUTH") && left >= 2 {
        let (user, _password) = (options.word()?, options.word()?);
        authenticate(user)?;
    } else if args::is(option, "SETNAME") && left >= 1 {
        client::set_name(call.client, options.word()?)?;
    } else {
        let text = [b"ERR Syntax error in HELLO option '", option, b"'"].concat();
        return Err(ErrorReply::owned(text).into());
    }
    Ok(())
}

fn auth(call: &mut OutsideCall<'_>) -> Outcome {
    match call.args.len() {
        2 => return Err(NO_PASSWORD.into()),
        3 => authenticate(call.args.at(1))?,
        _ => return Err(error::SYNTAX.into()),
    }
    call.reply.ok();
    Ok(())
}

/// The default user takes any password, as in Redis while none is set.
fn authenticate(user: &[u8]) -> Result<(), ErrorReply> {
    if user == b"default" { Ok(()) } else { Err(WRONG_PASSWORD) }
}

fn quit(call: &mut OutsideCall<'_>) -> Outcome {
    call.client.close_after_reply = true;
    call.reply.ok();
    Ok(())
}

fn reset(call: &mut OutsideCall<'_>) -> Outcome {
    call.client.reset();
    call.client.shared.protocol.store(2, Relaxed);
    call.reply.switch(Protocol::Resp2);
    call.reply.simple("RESET");
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::commands::testing::Bench;

    /// The replies of redis-server 7.0.15.
    #[test]
    fn greetings_are_redis_ones() {
        let mut bench = Bench::new();
        for (line, reply) in [
            ("hello 4", "-NOPROTO unsupported protocol version\r\n"),
            ("hello x", "-ERR Protocol version is not an integer or out of range\r\n"),
            ("hello 2 foo", "-ERR Syntax error in HELLO option 'foo'\r\n"),
            ("hello 3 auth a", "-ERR Syntax error in HELLO option 'auth'\r\n"),
            (
                "hello 3 auth foo x",
                "-WRONGPASS invalid username-password pair or user is disabled.\r\n",
            ),
            ("auth default x", "+OK\r\n"),
            ("auth a b c", "-ERR syntax error\r\n"),
            ("select 16", "-ERR DB index is out of range\r\n"),
            ("select -1", "-ERR DB index is out of range\r\n"),
            ("select abc", "-ERR value is not an integer or out of range\r\n"),
            ("ping a b", "-ERR wrong number of arguments for 'ping' command\r\n"),
            ("echo a", "$1\r\na\r\n"),
        ] {
            assert_eq!(bench.text(line), reply, "{line}");
        }
        let hello = bench.text("hello 3 setname me");
        assert!(hello.starts_with("%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n"), "{hello}");
        assert_eq!(bench.text("get nothing"), "_\r\n");
        assert_eq!(bench.text("client getname"), "$2\r\nme\r\n");
        assert_eq!(bench.text("select 3"), "+OK\r\n");
        assert_eq!(bench.text("reset"), "+RESET\r\n");
        assert_eq!(bench.client.db.0, 0);
        assert_eq!(bench.text("get nothing"), "$-1\r\n");
        assert_eq!(bench.text("quit"), "+OK\r\n");
        assert!(bench.client.close_after_reply);
    }
}
