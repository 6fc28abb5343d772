//! A connection that gives whole replies, as the bytes they are.

#![allow(dead_code, reason = "each test program uses its part of this")]

use crate::support::{Server, Wire, command};

/// See the module.
pub struct Replies(Wire);

impl Replies {
    /// A connection to a server.
    pub fn of(server: &Server) -> Self {
        Self(server.connect())
    }
    /// Sends a command; its reply is still to come.
    pub fn send(&mut self, words: &[&[u8]]) {
        assert!(self.0.send(&command(words)), "the server is there");
    }
    /// The bytes of one reply, elements and all.
    pub fn reply(&mut self) -> Vec<u8> {
        let (mut bytes, ended) = self.0.receive_until(b"\r\n");
        assert!(!ended, "closed after {}", bytes.escape_ascii());
        match shape(&bytes) {
            Shape::Line => {}
            Shape::Bytes(n) => bytes.extend(self.0.receive(n + 2)),
            Shape::Elements(n) => (0..n).for_each(|_| bytes.extend(self.reply())),
        }
        bytes
    }
    /// A command and its reply.
    pub fn call(&mut self, words: &[&[u8]]) -> Vec<u8> {
        self.send(words);
        self.reply()
    }
    /// A command whose words are parted by blanks, and its reply.
    pub fn line(&mut self, line: &str) -> Vec<u8> {
        let words: Vec<_> = line.split(' ').map(str::as_bytes).collect();
        self.call(&words)
    }
    /// The same, of a reply that is text.
    pub fn text(&mut self, line: &str) -> String {
        String::from_utf8(self.line(line)).expect("text")
    }
    /// The same, of a reply that is an integer.
    pub fn integer(&mut self, line: &str) -> i64 {
        let text = self.text(line);
        let digits = text.strip_prefix(':').and_then(|text| text.trim_end().parse().ok());
        digits.unwrap_or_else(|| panic!("{line}: no integer but {text}"))
    }
}

/// What follows the first line of a reply.
enum Shape {
    Line,
    Bytes(usize),
    Elements(usize),
}

fn shape(line: &[u8]) -> Shape {
    let number = || {
        let digits = std::str::from_utf8(&line[1..]).expect("digits").trim_end();
        digits.parse::<i64>().expect("a length")
    };
    match line[0] {
        b'$' | b'=' => usize::try_from(number()).map_or(Shape::Line, Shape::Bytes),
        b'*' | b'~' | b'>' => usize::try_from(number()).map_or(Shape::Line, Shape::Elements),
        b'%' => Shape::Elements(2 * usize::try_from(number()).expect("a count")),
        _ => Shape::Line,
    }
}

/// A reply as a tree. Numbers and errors are texts too; no value is `None`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tree {
    Leaf(Option<Vec<u8>>),
    Node(Vec<Tree>),
}

impl Tree {
    /// Of a whole reply.
    pub fn of(reply: &[u8]) -> Self {
        let (tree, rest) = Self::first_of(reply);
        assert!(rest.is_empty(), "{} behind a reply", rest.escape_ascii());
        tree
    }
    fn first_of(bytes: &[u8]) -> (Self, &[u8]) {
        let line = bytes.windows(2).position(|w| w == b"\r\n").expect("a line") + 2;
        let (head, mut rest) = bytes.split_at(line);
        let value = match shape(head) {
            Shape::Line if head.ends_with(b"-1\r\n") && head[0] != b':' => None,
            Shape::Line => Some(head[1..line - 2].to_vec()),
            Shape::Bytes(n) => {
                let value = rest[..n].to_vec();
                rest = &rest[n + 2..];
                Some(value)
            }
            Shape::Elements(n) => {
                let mut elements = Vec::with_capacity(n);
                for _ in 0..n {
                    let (element, behind) = Self::first_of(rest);
                    elements.push(element);
                    rest = behind;
                }
                return (Tree::Node(elements), rest);
            }
        };
        (Tree::Leaf(value), rest)
    }
    /// What a list holds.
    pub fn elements(&self) -> &[Tree] {
        match self {
            Tree::Node(elements) => elements,
            Tree::Leaf(_) => panic!("{self:?} is no list"),
        }
    }
    /// What a list holds, in order of its own.
    pub fn sorted(&self) -> Vec<Tree> {
        let mut all = self.elements().to_vec();
        all.sort();
        all
    }
    /// The bytes of a leaf.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Tree::Leaf(Some(bytes)) => bytes,
            _ => panic!("{self:?} is no value"),
        }
    }
}
