//! Which replies may be sent: those that tell of nothing that could still be lost.
//!
//! ```text
//!   output   |sent....|open ......|stage .......|behind ........|
//!                     ^ may be sent             ^ waits for `next`
//!                                 ^ waits until `stage.1` is durable
//! ```
//!
//! Commands run on while replies wait, up to the limit of unsent bytes. Two steps suffice: what waits
//! for the disk now, and all that has come since.

/// The gate of one connection's output.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Bytes from the output's beginning that may be sent.
    open: usize,
    /// Bytes that may be sent once the journal is durable up to a position.
    stage: Option<(usize, u64)>,
    /// What the bytes behind depend on.
    next: u64,
    /// Where replies begin that may have to wait.
    replies: Vec<usize>,
}

impl Gate {
    /// Replies that were written since the last [`Gate::advance`] depend on `position`; 0 is nothing.
    pub fn depend(&mut self, position: u64) {
        self.next = self.next.max(position);
    }
    /// A reply begins at `begun`. While replies wait at all, each must be told of.
    pub fn reply(&mut self, begun: usize) {
        self.replies.push(begun);
    }
    /// Forgets what waits, which the caller replaces, and answers how many replies that are.
    pub fn give_up(&mut self) -> usize {
        let waiting = self.replies.iter().filter(|begun| **begun >= self.open).count();
        self.replies.clear();
        self.stage = None;
        self.next = 0;
        waiting
    }
    /// Opens what may be sent of `length` bytes of output while the journal is durable up to
    /// `durable`. Whether that is all.
    pub fn advance(&mut self, length: usize, durable: u64) -> bool {
        if let Some((end, position)) = self.stage
            && position <= durable
        {
            self.open = end;
            self.stage = None;
        }
        if self.stage.is_none() && self.next <= durable {
            self.open = length;
            self.next = 0;
        } else if self.stage.is_none() {
            self.stage = Some((length, std::mem::take(&mut self.next)));
        }
        if self.open == length {
            self.replies.clear();
        }
        self.open == length
    }
    /// Bytes that may be sent, from the output's beginning.
    pub fn open(&self) -> usize {
        self.open
    }
    /// The first `n` bytes, all sent, have left the output.
    pub fn shift(&mut self, n: usize) {
        self.open -= n;
        if let Some((end, _)) = &mut self.stage {
            *end -= n;
        }
        self.replies.retain(|begun| *begun >= n);
        self.replies.iter_mut().for_each(|begun| *begun -= n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_wait_for_what_they_depend_on_and_for_those_before_them() {
        let mut gate = Gate::default();
        assert!(gate.advance(10, 0), "nothing depends on anything");
        gate.depend(100);
        gate.depend(50);
        assert!(!gate.advance(20, 99));
        assert_eq!(gate.open(), 10);
        // Behind it comes a reply that depends on nothing, then one that depends on more.
        assert!(!gate.advance(25, 99));
        gate.depend(200);
        assert!(!gate.advance(30, 99));
        assert_eq!(gate.open(), 10);
        assert!(!gate.advance(30, 100));
        assert_eq!(gate.open(), 20, "what came later waits for the latest");
        gate.shift(20);
        assert_eq!(gate.open(), 0);
        assert!(gate.advance(10, 200));
        assert_eq!(gate.open(), 10);
    }

    #[test]
    fn what_is_given_up_is_counted() {
        let mut gate = Gate::default();
        for begun in [0, 10] {
            gate.reply(begun);
        }
        gate.depend(100);
        assert!(!gate.advance(20, 0));
        gate.reply(20);
        assert!(gate.advance(30, 100), "the first two are open, and the third waits for nothing");
        gate.reply(30);
        assert!(gate.advance(40, 200));
        gate.reply(40);
        gate.depend(300);
        assert!(!gate.advance(50, 200));
        assert_eq!((gate.open(), gate.give_up()), (40, 1));
        assert!(gate.advance(45, 0), "what replaces them waits for nothing");
    }

    #[test]
    fn without_dependencies_all_is_open() {
        let mut gate = Gate::default();
        for length in [5, 7, 100] {
            assert!(gate.advance(length, 0));
            assert_eq!(gate.open(), length);
        }
        gate.depend(3);
        assert!(gate.advance(200, 3), "it is durable already");
    }
}
