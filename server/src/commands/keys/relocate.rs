//! Values that change their place: RENAME, RENAMENX, COPY, MOVE. Expiry and encoding go with them.

use crate::commands::args::is;
use crate::commands::{Call, database};
use crate::error::{self, Outcome};
use ferrite_hybridlog::Change;

/// What became of source and destination.
enum Moved {
    Done,
    NoSource,
    Occupied,
}

pub(super) fn rename(call: &mut Call<'_, '_>) -> Outcome {
    match rename_key(call, true)? {
        Moved::NoSource => return Err(error::NO_SUCH_KEY.into()),
        Moved::Done | Moved::Occupied => call.reply.ok(),
    }
    Ok(())
}

pub(super) fn rename_nx(call: &mut Call<'_, '_>) -> Outcome {
    match rename_key(call, false)? {
        Moved::NoSource => return Err(error::NO_SUCH_KEY.into()),
        Moved::Done => call.reply.integer(1),
        Moved::Occupied => call.reply.integer(0),
    }
    Ok(())
}

fn rename_key(call: &mut Call<'_, '_>, replace: bool) -> Result<Moved, error::Stop> {
    let db = call.client.db;
    let keys = [(db, call.args.at(1)), (db, call.args.at(2))];
    let moved = call.inside.update_many(call.op, &keys, |many| {
        if many.get(0).is_none() {
            return Moved::NoSource;
        }
        // A key under its own name stays as it is, and the name is taken.
        if keys[0] == keys[1] || (!replace && many.get(1).is_some()) {
            return Moved::Occupied;
        }
        many.copy(0, 1);
        many.set(0, Change::Delete);
        Moved::Done
    })?;
    Ok(moved)
}

pub(super) fn copy(call: &mut Call<'_, '_>) -> Outcome {
    let source = (call.client.db, call.args.at(1));
    let mut destination = (call.client.db, call.args.at(2));
    let mut replace = false;
    let mut words = call.args.cursor(3);
    while let Some(word) = words.next() {
        if is(word, "REPLACE") {
            replace = true;
        } else if is(word, "DB") {
            destination.0 = database(call.context, words.word()?)?;
        } else {
            return Err(error::SYNTAX.into());
        }
    }
    if source == destination {
        return Err(error::SAME_OBJECT.into());
    }
    let moved = call.inside.update_many(call.op, &[source, destination], |many| {
        if many.get(0).is_none() {
            return Moved::NoSource;
        }
        if !replace && many.get(1).is_some() {
            return Moved::Occupied;
        }
        many.copy(0, 1);
        Moved::Done
    })?;
    call.count_lookup(!matches!(moved, Moved::NoSource));
    call.reply.integer(i64::from(matches!(moved, Moved::Done)));
    Ok(())
}

pub(super) fn move_key(call: &mut Call<'_, '_>) -> Outcome {
    let key = call.args.at(1);
    let source = (call.client.db, key);
    let destination = (database(call.context, call.args.at(2))?, key);
    if source == destination {
        return Err(error::SAME_OBJECT.into());
    }
    let moved = call.inside.update_many(call.op, &[source, destination], |many| {
        if many.get(0).is_none() || many.get(1).is_some() {
            return false;
        }
        many.copy(0, 1);
        many.set(0, Change::Delete);
        true
    })?;
    call.reply.integer(i64::from(moved));
    Ok(())
}
