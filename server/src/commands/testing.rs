//! One client on an empty store, without a socket: for the handlers' unit tests.

use super::args::Args;
use super::{Call, OutsideCall, Ran, Run, admit, settle, table, writes};
use crate::client::{Client, Origin};
use crate::context::{Context, unix_ms};
use crate::error::Stop;
use crate::resp::{Range, Reply};
use ferrite_hybridlog::{Config, Operation, Session, Store};
use std::sync::Arc;

/// A client on a store of its own.
pub(crate) struct Bench {
    pub(crate) context: Arc<Context>,
    pub(crate) client: Client,
    session: Session,
    directory: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(Config::new(directory.path())).unwrap();
        let session = store.session(|| {});
        let context = Arc::new(Context::new(store, 16, 1));
        let origin = Origin {
            address: "127.0.0.1:1".into(),
            local_address: "127.0.0.1:2".into(),
            descriptor: 1,
            worker: 0,
        };
        let shared = context.clients.add(origin, unix_ms(), 1).unwrap();
        Self { context, client: Client::new(shared), session, directory }
    }
    /// The store's directory.
    pub(crate) fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }
    /// Runs one command to its end and returns the bytes of its reply.
    pub(crate) fn run(&mut self, words: &[&[u8]]) -> Vec<u8> {
        let bytes = words.concat();
        let mut end = 0;
        let ranges: Vec<_> = (words.iter())
            .map(|w| {
                end += w.len();
                Range::new(end - w.len(), end)
            })
            .collect();
        let args = Args::new(&bytes, &ranges);
        let mut out = Vec::new();
        let found = table().resolve(args);
        let admitted = |entry| admit(entry, &self.client, &self.context).map(|()| entry);
        let found = found.and_then(admitted);
        let entry = match found {
            Ok(entry) => entry,
            Err(e) => {
                Reply::new(&mut out, self.client.protocol).error(&e);
                return out;
            }
        };
        match entry.spec.run {
            Run::Inside(run) => self.inside(run, args, &mut out),
            Run::Outside(run) => self.outside(run, args, &mut out, writes(entry, &self.client)),
            Run::Transaction => unreachable!("a transaction needs a connection"),
            Run::Container => unreachable!("resolve gives what runs"),
        }
        out
    }
    /// [`Bench::run`] with words and reply as text.
    pub(crate) fn text(&mut self, line: &str) -> String {
        let words: Vec<_> = line.split(' ').map(str::as_bytes).collect();
        String::from_utf8(self.run(&words)).unwrap()
    }
    fn inside(
        &mut self,
        run: fn(&mut Call<'_, '_>) -> Result<(), Stop>,
        args: Args<'_>,
        out: &mut Vec<u8>,
    ) {
        let (mut op, mut progress) = (Operation::new(1), None);
        loop {
            let mut inside = self.session.enter();
            let mut call = Call {
                args,
                inside: &mut inside,
                op: &mut op,
                client: &mut self.client,
                reply: Reply::new(out, Default::default()),
                progress: &mut progress,
                counters: &self.context.workers[0],
                context: &self.context,
            };
            call.reply.switch(call.client.protocol);
            let outcome = run(&mut call);
            let ran = settle(outcome, &mut call.reply, 0);
            drop(inside);
            match ran {
                Ran::Done | Ran::Failed(_) => return,
                Ran::Again => {}
                Ran::Pending => {
                    let mut ready = Vec::new();
                    while ready.is_empty() {
                        self.session.ready(&mut ready);
                        std::thread::yield_now();
                    }
                }
            }
        }
    }
    fn outside(
        &mut self,
        run: fn(&mut OutsideCall<'_>) -> Result<(), Stop>,
        args: Args<'_>,
        out: &mut Vec<u8>,
        writes: bool,
    ) {
        let alone = writes.then(|| self.session.alone());
        if let Some(alone) = &alone {
            alone.refuse_unwritable(0).expect("the store is writable");
        }
        let protocol = self.client.protocol;
        let mut call = OutsideCall {
            args,
            client: &mut self.client,
            reply: Reply::new(out, protocol),
            context: &self.context,
            alone: alone.as_ref(),
            job: None,
        };
        let mut outcome = run(&mut call);
        if let Some(job) = call.job.take() {
            outcome = job(&self.context, &mut call.reply);
        }
        settle(outcome, &mut call.reply, 0);
    }
}

#[test]
fn commands_run_without_a_socket() {
    let mut bench = Bench::new();
    for _ in 0..20 {
        assert_eq!(bench.text("set a 1"), "+OK\r\n");
        assert_eq!(bench.text("GET a"), "$1\r\n1\r\n");
        assert_eq!(bench.text("del a a b"), ":1\r\n");
        assert_eq!(bench.text("get a"), "$-1\r\n");
    }
    assert_eq!(bench.text("get"), "-ERR wrong number of arguments for 'get' command\r\n");
    assert_eq!(
        bench.text("foo a bc"),
        "-ERR unknown command 'foo', with args beginning with: 'a' 'bc' \r\n"
    );
}
