//! The configuration of a running server: what CONFIG GET reads and CONFIG SET moves.
//!
//! Every thread may ask, but no hot path: the values are behind one lock, and what is read often
//! is copied into [`Limits`]. A change is all or nothing: it is parsed, checked against the other
//! settings and handed to those who must act on it before it counts.

use super::Loaded;
use super::aliases::{ALIASES, Alias};
use super::table::{self, Applies, ROWS, RowIndex};
use super::typed::Config;
use super::value::Value;
use super::values::{Source, Values};
use crate::limits::Limits;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Called with the old and the new configuration; an error refuses the change.
type Listener = Box<dyn Fn(&Config, &Config) -> Result<(), String> + Send>;

/// A running server's configuration.
pub struct Live {
    state: Mutex<State>,
    file: Option<PathBuf>,
}

struct State {
    values: Values,
    config: Arc<Config>,
    listeners: Vec<Listener>,
}

/// Why CONFIG SET changed nothing. `Display` is the reply, without its `-`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// No setting has this name.
    #[error("ERR Unknown option or number of arguments for CONFIG SET - '{0}'")]
    Unknown(String),
    /// This setting does not take this value.
    #[error("ERR CONFIG SET failed (possibly related to argument '{0}') - {1}")]
    Failed(String, String),
}

impl Live {
    /// From what the start put together.
    pub fn new(loaded: Loaded) -> Self {
        let state =
            State { values: loaded.values, config: Arc::new(loaded.config), listeners: Vec::new() };
        Self { state: Mutex::new(state), file: loaded.file }
    }

    /// All settings as they are now.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.state().config)
    }
    /// The file that CONFIG REWRITE writes.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }
    /// A copy of every value.
    pub fn values(&self) -> Values {
        self.state().values.clone()
    }
    /// Calls `listener` at every later change, before it counts.
    pub fn on_change(
        &self,
        listener: impl Fn(&Config, &Config) -> Result<(), String> + Send + 'static,
    ) {
        self.state().listeners.push(Box::new(listener));
    }

    /// Names and values of the settings for which `matches` holds, dotted names and Redis's, each
    /// once, in the table's order.
    pub fn get(&self, matches: impl Fn(&str) -> bool) -> Vec<(&'static str, String)> {
        let values = self.values();
        let rows = ROWS.iter().enumerate().filter(|(_, row)| matches(row.name));
        let rows = rows.map(|(i, row)| (row.name, values.get(RowIndex(i)).to_config_get()));
        let aliases = ALIASES.iter().filter(|alias| matches(alias.name));
        rows.chain(aliases.map(|alias| (alias.name, alias.get(&values)))).collect()
    }

    /// Sets several settings, all or none.
    pub fn set(&self, pairs: &[(&str, &str)]) -> Result<(), SetError> {
        self.set_and(pairs, |_| ())
    }

    /// The same; `apply` is given what is in force then, before another change can be made: so what
    /// it copies elsewhere is never the older of two.
    pub fn set_and(
        &self,
        pairs: &[(&str, &str)],
        apply: impl FnOnce(&Config),
    ) -> Result<(), SetError> {
        let names: Vec<_> = pairs.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        for ((written, _), name) in pairs.iter().zip(&names) {
            Name::find(name).ok_or_else(|| SetError::Unknown((*written).to_owned()))?;
        }
        let mut state = self.state();
        let mut values = state.values.clone();
        for (i, ((written, text), name)) in pairs.iter().zip(&names).enumerate() {
            let failed = |why: String| SetError::Failed((*written).to_owned(), why);
            if names[..i].contains(name) {
                return Err(failed("duplicate parameter".into()));
            }
            let known = Name::find(name).expect("looked up above");
            // What a restart changes is refused even when it is set to what it is, as Redis does;
            // what this version does not have may be set to what it is.
            if known.is_immutable() {
                return Err(failed("can't set immutable config".into()));
            }
            for (row, value) in known.parse(text).map_err(failed)? {
                values.set(row, value, Source::Command);
            }
        }
        let last = || pairs.last().map_or(String::new(), |p| p.0.to_owned());
        let config =
            Config::from_values(&values).map_err(|e| SetError::Failed(last(), e.to_string()))?;
        let old = Arc::clone(&state.config);
        for listener in &state.listeners {
            listener(&old, &config).map_err(|why| SetError::Failed(last(), why))?;
        }
        state.values = values;
        state.config = Arc::new(config);
        apply(&state.config);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("config", &self.config()).finish_non_exhaustive()
    }
}

impl Default for Live {
    /// The defaults of the table, without file, environment or flags.
    fn default() -> Self {
        let values = Values::defaults();
        let config = Config::from_values(&values).expect("the defaults go together: a test looks");
        let state = State { values, config: Arc::new(config), listeners: Vec::new() };
        Self { state: Mutex::new(state), file: None }
    }
}

/// Copies what connections read often.
pub fn apply_limits(config: &Config, limits: &Limits) {
    let server = &config.server;
    limits.max_connections.set(server.max_connections);
    limits.idle_timeout_s.set(whole_seconds(server.timeout));
    limits.tcp_keepalive_s.set(whole_seconds(server.tcp_keepalive));
    limits.output_stall_s.set(whole_seconds(server.output_stall));
    limits.bulk_max.set(server.max_bulk_size);
    limits.query_buffer_max.set(server.max_query_buffer);
    limits.output_max.set(server.max_output_buffer);
}

fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// What a name of CONFIG SET means.
enum Name {
    Row(RowIndex),
    Alias(&'static Alias),
}

impl Name {
    fn find(name: &str) -> Option<Self> {
        let alias = || ALIASES.iter().find(|a| a.name == name).map(Name::Alias);
        table::find(name).map(Name::Row).or_else(alias)
    }
    fn parse(&self, text: &str) -> Result<Vec<(RowIndex, Value)>, String> {
        match self {
            Name::Row(row) => ROWS[row.0].parse(text).map(|v| vec![(*row, v)]).map_err(|e| e.redis),
            Name::Alias(alias) => alias.parse(text),
        }
    }
    fn is_immutable(&self) -> bool {
        let immutable = |row: &RowIndex| {
            let row = &ROWS[row.0];
            row.available && row.applies == Applies::Restart
        };
        match self {
            Name::Row(row) => immutable(row),
            Name::Alias(alias) => alias.rows().iter().any(immutable),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(pairs: &[(&str, &str)]) -> String {
        Live::default().set(pairs).expect_err("refused").to_string()
    }

    #[test]
    fn a_live_setting_takes_effect() {
        let (live, limits) = (Live::default(), Limits::default());
        let pairs = [("timeout", "7"), ("server.max_connections", "5")];
        live.set_and(&pairs, |config| apply_limits(config, &limits)).expect("both are live");
        assert_eq!((limits.idle_timeout_s.get(), limits.max_connections.get()), (7, 5));
        let get = live.get(|name| name == "maxclients" || name == "server.timeout");
        assert_eq!(get, [("server.timeout", "7".into()), ("maxclients", "5".to_owned())]);
    }

    #[test]
    fn of_two_changes_at_a_time_the_one_in_force_is_applied_last() {
        let (live, limits) = (Live::default(), Limits::default());
        let (told, applied) = std::sync::mpsc::channel();
        let set = |seconds: &str, before: &mut dyn FnMut()| {
            let apply = |config: &Config| {
                before();
                apply_limits(config, &limits);
            };
            live.set_and(&[("timeout", seconds)], apply).expect("live");
        };
        std::thread::scope(|scope| {
            set("1", &mut || {
                let told = told.clone();
                scope.spawn(move || set("2", &mut || told.send(()).expect("somebody waits")));
                let early = applied.recv_timeout(Duration::from_millis(200));
                assert!(early.is_err(), "the later change came in between");
            });
        });
        assert_eq!(limits.idle_timeout_s.get(), 2);
        assert_eq!(live.config().server.timeout, Duration::from_secs(2));
    }

    #[test]
    fn one_bad_pair_changes_nothing() {
        let live = Live::default();
        assert!(live.set(&[("timeout", "7"), ("maxclients", "x")]).is_err());
        live.on_change(|_, new| match new.server.max_connections {
            3 => Err("not three".into()),
            _ => Ok(()),
        });
        assert_eq!(
            live.set(&[("timeout", "7"), ("maxclients", "3")]).expect_err("refused").to_string(),
            "ERR CONFIG SET failed (possibly related to argument 'maxclients') - not three"
        );
        assert_eq!(live.config().server.timeout, Duration::ZERO);
    }

    #[test]
    fn refusals_have_redis_words() {
        let failed = |name: &str, why: &str| {
            format!("ERR CONFIG SET failed (possibly related to argument '{name}') - {why}")
        };
        assert_eq!(
            error(&[("timeout", "1"), ("Foo", "x")]),
            "ERR Unknown option or number of arguments for CONFIG SET - 'Foo'"
        );
        assert_eq!(
            error(&[("maxclients", "x")]),
            failed("maxclients", "argument couldn't be parsed into an integer")
        );
        assert_eq!(error(&[("databases", "3")]), failed("databases", "can't set immutable config"));
        assert_eq!(
            error(&[("timeout", "1"), ("TIMEOUT", "2")]),
            failed("TIMEOUT", "duplicate parameter")
        );
        assert_eq!(
            error(&[("cloud.bucket", "b")]),
            failed("cloud.bucket", "not available in this version")
        );
        assert_eq!(error(&[("save", "x")]), failed("save", "Invalid save parameters"));
        assert!(
            Live::default()
                .set(&[
                    ("appendfsync", "always"),
                    ("maxmemory", "0"),
                    ("maxmemory-policy", "noeviction")
                ])
                .is_ok()
        );
    }
}
