//! How much of the past stays: which parts, and from which states on, so that every instant of the last
//! `aof_retention` can be had again.
//!
//! ```text
//!   anchors:   41           47           base 19          53
//!   ───────────┼────────────┼───────┬────┼────────────────┼──────> now
//!              goes         stays   └── now - retention
//!                           its parts, and all behind them, stay
//! ```

/// A state from which the append-only file goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Anchor {
    /// Its instant, in Unix milliseconds.
    pub at_ms: u64,
    /// The part that goes on from it; `None` when none does, and it gives its own instant alone.
    pub first: Option<u64>,
}

/// What stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Kept {
    /// Anchors of earlier instants go; 0: none does.
    pub from_ms: u64,
    /// Parts of lower numbers go; 0: none does.
    pub first_part: u64,
}

/// What stays, so that `until_ms` and every later instant can be had again: the newest anchor at or before
/// it, and all that is later. Where no anchor is that old, everything.
pub fn kept(anchors: &[Anchor], until_ms: u64) -> Kept {
    let is_old = |anchor: &&Anchor| anchor.at_ms <= until_ms && anchor.first.is_some();
    let Some(oldest) = anchors.iter().filter(is_old).max_by_key(|anchor| anchor.at_ms) else {
        return Kept::default();
    };
    let stay = anchors.iter().filter(|anchor| anchor.at_ms >= oldest.at_ms);
    let first_part = stay.filter_map(|anchor| anchor.first).min().unwrap_or(0);
    Kept { from_ms: oldest.at_ms, first_part }
}

/// Whether a checkpoint of the instant `at_ms` is to become an anchor, `last_ms` being that of the newest
/// one: a handful of them covers the time that is kept.
pub fn wants_anchor(at_ms: u64, last_ms: Option<u64>, retention_ms: u64) -> bool {
    last_ms.is_none_or(|last| at_ms.saturating_sub(last) >= retention_ms / ANCHORS)
}

/// So many anchors, and one or two more, are there at a time, unless checkpoints are rarer.
const ANCHORS: u64 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn anchor(at_ms: u64, first: u64) -> Anchor {
        Anchor { at_ms, first: Some(first) }
    }

    #[test]
    fn the_newest_anchor_that_is_old_enough_and_all_behind_it_stay() {
        let anchors = [anchor(300, 7), anchor(100, 1), anchor(200, 4), anchor(250, 5)];
        for (until, from_ms, first_part) in
            [(99, 0, 0), (100, 100, 1), (199, 100, 1), (200, 200, 4), (299, 250, 5), (900, 300, 7)]
        {
            assert_eq!(kept(&anchors, until), Kept { from_ms, first_part }, "{until}");
        }
        assert_eq!(kept(&[], 100), Kept::default());
    }

    #[test]
    fn an_anchor_from_which_nothing_goes_on_does_not_let_others_go() {
        let alone = Anchor { at_ms: 200, first: None };
        assert_eq!(kept(&[anchor(100, 3), alone], 250), Kept { from_ms: 100, first_part: 3 });
        assert_eq!(kept(&[alone], 250), Kept::default());
    }

    #[test]
    fn a_base_may_be_younger_than_the_part_of_a_later_anchor() {
        // A rewrite takes its number when it is complete, and a checkpoint its instant at the cut.
        assert_eq!(
            kept(&[anchor(100, 9), anchor(101, 8)], 200),
            Kept { from_ms: 101, first_part: 8 }
        );
        assert_eq!(
            kept(&[anchor(100, 9), anchor(101, 8)], 100),
            Kept { from_ms: 100, first_part: 8 }
        );
    }

    #[test]
    fn anchors_are_an_eighth_of_the_time_apart() {
        assert!(wants_anchor(5, None, 800));
        assert!(!wants_anchor(199, Some(100), 800));
        assert!(wants_anchor(200, Some(100), 800));
        assert!(!wants_anchor(50, Some(100), 800), "a clock that went back");
    }
}
