//! A connection between MULTI and EXEC: what is queued, and how EXEC comes to run it.

use super::{Connection, Round};
use crate::commands::{Entry, Ran};
use crate::context::unix_ms;
use crate::error::{self, ErrorReply};
use crate::transaction::{self, Transaction};
use crate::worker::Host;
use ferrite_hybridlog::Session;
use std::sync::atomic::Ordering::Relaxed;

impl Connection {
    /// Adds the current command to its client's transaction.
    pub(super) fn enqueue(&mut self, entry: &'static Entry, host: &mut Host) {
        let mut transaction = self.client.transaction.take().expect("a command is queued in one");
        transaction.push(entry, self.current().expect("a command that was found has words"));
        self.client.transaction = Some(transaction);
        let begun = self.output.len();
        self.reply_to_output().simple("QUEUED");
        self.apply_reply_mode(begun);
        host.last_command = entry.id;
        self.consume();
    }
    /// Bytes of the transaction that its client collects.
    pub(super) fn queued_bytes(&self) -> usize {
        self.client.transaction.as_ref().map_or(0, |transaction| transaction.bytes())
    }
    /// EXEC. False if it waits for what its commands need of the device, or for the disk.
    pub(super) fn run_transaction(
        &mut self,
        entry: &'static Entry,
        mut session: Option<&mut Session>,
        host: &mut Host,
        limits: &Round,
    ) -> bool {
        host.ledger.start(entry.id, &host.context.workers[host.number]);
        self.client.shared.active_at_ms.store(unix_ms(), Relaxed);
        let transaction = match self.client.transaction.take() {
            None => {
                self.fail(error::EXEC_WITHOUT_MULTI, entry, host);
                return true;
            }
            Some(transaction) if transaction.failed => {
                self.fail(error::EXEC_ABORTED, entry, host);
                return true;
            }
            Some(transaction) => transaction,
        };
        if let Some(session) = &mut session
            && !(self.fetch_ahead(&transaction, session, host)
                && (!transaction.writes() || self.may_write(session)))
        {
            host.counters().pending.add(1);
            self.client.transaction = Some(transaction);
            self.wait(&mut session.enter(), limits);
            return false;
        }
        // The transaction begins here and ends where `alone` is dropped.
        let mut alone = session.map(Session::alone);
        self.client.transaction = Some(transaction);
        if self.is_held(entry, host) {
            return true;
        }
        // Before it is taken: CLIENT LIST shows itself.
        self.client.show();
        self.client.shared.last_command.store(entry.id as u32, Relaxed);
        let transaction = self.client.transaction.take().expect("put there above");
        let bytes = transaction.bytes() as u64;
        let writes = alone.as_ref().filter(|_| transaction.writes());
        if let Some(Err(e)) = writes.map(|alone| alone.refuse_unwritable(bytes)) {
            drop(alone);
            self.fail(error::aborted(&e.into()), entry, host);
            return true;
        }
        let Self { client, queue, output, op, .. } = self;
        let op = queue.front_mut().map_or(op, |queued| &mut queued.op);
        let begun = output.len();
        transaction::execute(&transaction, alone.as_mut(), op, client, output, host);
        drop(alone);
        if std::mem::take(&mut self.client.saves_afterwards) {
            host.context.checkpoints.schedule();
            host.context.bell.notify_one();
        }
        self.depend_on_all(host);
        if self.replies_wait && self.output.len() > begun {
            self.gate.reply(begun);
        }
        let counters = host.counters();
        counters.commands.add(1);
        counters.by_command[entry.id].calls.add(1);
        host.last_command = entry.id;
        self.client.reply_mode = self.client.reply_mode.after_a_command();
        self.consume();
        true
    }
    /// Begins the reads of what a transaction needs; true once it need not wait any more. What other
    /// clients write meanwhile may need more reads, but not for ever.
    fn fetch_ahead(
        &mut self,
        transaction: &Transaction,
        session: &mut Session,
        host: &Host,
    ) -> bool {
        const ROUNDS_MAX: u32 = 8;
        let Self { client, queue, op, progress, .. } = self;
        let (op, progress) = match queue.front_mut() {
            None => (op, progress),
            Some(queued) => (&mut queued.op, &mut queued.progress),
        };
        let rounds: &mut u32 = progress
            .get_or_insert_with(|| Box::new(0u32))
            .downcast_mut()
            .expect("EXEC counts its rounds");
        *rounds += 1;
        let at_hand = transaction.fetch_ahead(client.db, &host.context, op, session);
        at_hand || *rounds > ROUNDS_MAX
    }
    /// The current command, which has written nothing, has this error for its reply.
    pub(super) fn fail(&mut self, error: ErrorReply, entry: &'static Entry, host: &mut Host) {
        let begun = self.output.len();
        self.reply_to_output().error(&error);
        self.ran(&Ran::Failed(error), entry, begun, host);
    }
}
