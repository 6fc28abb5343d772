//! A client for one running server: a command, its reply, one after the other.

use super::ToolError;
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// Where a server listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Address {
    /// Host and port.
    Tcp(String, u16),
    /// A Unix socket.
    Unix(PathBuf),
}

/// A reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Reply {
    Text(String),
    Error(String),
    Integer(i64),
    None,
    Array(Vec<Reply>),
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// A connection.
pub(super) struct Wire {
    address: Address,
    stream: BufReader<Box<dyn Stream>>,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Wire {
    pub fn connect(address: &Address) -> Result<Self, ToolError> {
        let stream: io::Result<Box<dyn Stream>> = match address {
            Address::Tcp(host, port) => {
                TcpStream::connect((host.as_str(), *port)).map(|s| Box::new(s) as _)
            }
            Address::Unix(path) => UnixStream::connect(path).map(|s| Box::new(s) as _),
        };
        let stream = stream.map_err(|e| {
            ToolError::Refused(format!(
                "no server answers at {address}: {e}; name it with --host and --port or --socket, or give \
                 --data-dir if none runs"
            ))
        })?;
        Ok(Self { address: address.clone(), stream: BufReader::new(stream) })
    }

    /// Sends a command and waits for its reply, however long that takes.
    pub fn call(&mut self, words: &[&str]) -> Result<Reply, ToolError> {
        let mut command = format!("*{}\r\n", words.len());
        for word in words {
            command.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        let sent = self.stream.get_mut().write_all(command.as_bytes());
        sent.and_then(|()| self.reply()).map_err(|e| {
            let address = &self.address;
            ToolError::Refused(format!("the server at {address} does not answer {}: {e}", words[0]))
        })
    }

    /// The same; an error reply is an error.
    pub fn ask(&mut self, words: &[&str]) -> Result<Reply, ToolError> {
        match self.call(words)? {
            Reply::Error(error) => {
                let (address, command) = (&self.address, words.join(" "));
                Err(ToolError::Refused(format!(
                    "the server at {address} answers {command} with: {error}"
                )))
            }
            reply => Ok(reply),
        }
    }

    fn reply(&mut self) -> io::Result<Reply> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let Some(line) = line.strip_suffix("\r\n") else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let strange = || io::Error::new(io::ErrorKind::InvalidData, format!("{line:?}"));
        let rest = line.get(1..).ok_or_else(strange)?;
        let number = || rest.parse::<i64>().map_err(|_| strange());
        Ok(match line.as_bytes()[0] {
            b'+' => Reply::Text(rest.to_owned()),
            b'-' => Reply::Error(rest.to_owned()),
            b':' => Reply::Integer(number()?),
            b'$' => match usize::try_from(number()?) {
                Err(_) => Reply::None,
                Ok(length) => {
                    let mut bytes = Vec::new();
                    let wanted = length as u64 + 2;
                    (&mut self.stream).take(wanted).read_to_end(&mut bytes)?;
                    if bytes.len() as u64 != wanted {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    bytes.truncate(length);
                    Reply::Text(String::from_utf8_lossy(&bytes).into_owned())
                }
            },
            b'*' => {
                let count = number()?.max(0);
                Reply::Array((0..count).map(|_| self.reply()).collect::<io::Result<_>>()?)
            }
            _ => return Err(strange()),
        })
    }

    /// What CONFIG GET says of one setting.
    pub fn setting(&mut self, name: &str) -> Result<String, ToolError> {
        let reply = self.ask(&["CONFIG", "GET", name])?;
        match &reply {
            Reply::Array(pair) if let [_, Reply::Text(value)] = &pair[..] => Ok(value.clone()),
            _ => Err(ToolError::Refused(format!(
                "the server at {} knows no {name}; it is no Ferrite of this version",
                self.address
            ))),
        }
    }

    /// What INFO says of one field.
    pub fn field(&mut self, section: &str, name: &str) -> Result<Option<String>, ToolError> {
        let Reply::Text(info) = self.ask(&["INFO", section])? else { return Ok(None) };
        let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        Ok(value.map(str::to_owned))
    }
}
