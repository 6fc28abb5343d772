//! A bar for long work, on standard error and only when a terminal watches.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Counts bytes. Dropped, it leaves no trace on the terminal.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// A bar of `bytes`; `verb` says what is done with them.
    pub fn of(bytes: u64, verb: &'static str) -> Self {
        // Hidden unless standard error is a terminal.
        let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template(
            "{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
        );
        bar.set_style(style.expect("the template is a constant, which a test draws"));
        bar.set_message(verb);
        Self(bar)
    }

    /// A bar that nobody sees.
    pub fn hidden() -> Self {
        Self(ProgressBar::hidden())
    }

    /// So many bytes more are done.
    pub fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_counts_without_a_terminal() {
        let bar = Bar::of(100, "reading");
        bar.advance(40);
        bar.advance(2);
        assert_eq!(bar.0.position(), 42);
    }
}
