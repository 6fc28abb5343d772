//! The `ferrite` binary: arguments, logging, wiring, exit code; nothing else.

use ferrite_server::config::{self, Action, Arguments, Live, Loaded};
use ferrite_server::context::Context;
use ferrite_server::control::Control;
use ferrite_server::lifecycle;
use ferrite_server::listener::Listeners;
use ferrite_server::logging;
use ferrite_server::metrics::Status;
use ferrite_server::server::{self, Server};
use ferrite_server::start::{self, StartError};
use sd_notify::NotifyState;
use std::process::ExitCode;
use std::sync::Arc;

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args_os()) {
        Ok(arguments) => arguments,
        // Prints help or version and ends with 0, or the mistake and ends with 2.
        Err(e) => e.exit(),
    };
    if let Some(tool) = arguments.tool {
        return tool.run();
    }
    let loaded = match config::load(&arguments, std::env::vars_os()) {
        Ok(loaded) => loaded,
        Err(errors) => {
            errors.iter().for_each(|e| eprintln!("ferrite: {e}"));
            return ExitCode::FAILURE;
        }
    };
    match arguments.action {
        Action::DumpConfig => print!("{}", config::dump(&loaded.values)),
        Action::TestConfig => println!("the configuration is good"),
        Action::Run => {
            if let Err(e) = serve(loaded, arguments.rebuild_index) {
                eprintln!("ferrite: {e}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

/// Starts the server and serves until its end.
fn serve(loaded: Loaded, rebuild_index: bool) -> Result<(), StartError> {
    lifecycle::end_on_panic();
    let config = loaded.config.clone();
    let level = start::log(&config)?;
    start::tell_configuration(&loaded);
    let live = Live::new(loaded);
    start::fit_clients(&live);

    // What fails quickly comes first: the sockets, then the data.
    let unix_socket = config.server.unix_socket.as_deref();
    let listeners = Listeners::bind(&config.listen_addresses(), unix_socket)?;
    let status = Arc::new(Status::default());
    let metrics = start::metrics_listeners(&config)?;
    start::tell_metrics(&metrics);
    let control = Control::start(metrics, Arc::clone(&status)).map_err(StartError::Thread)?;
    let directory = start::data_directory(&config.store.directory)?;

    live.on_change(follow(level));
    live.on_change(start::refuse_too_many_clients);
    let context = Arc::new(Context::with_config(live, directory.clone()));
    context.config.on_change(start::follow_policy(&context));
    context.config.on_change(start::follow_store(&context));
    status.recovering(Arc::clone(&context));
    server::end_on_signals(Arc::clone(&context)).map_err(StartError::Thread)?;
    // Clients are answered LOADING until the data is there.
    let server = Server::start(Arc::clone(&context), listeners).map_err(StartError::Thread)?;
    start::tell_listening(&context);
    let store = start::open_store(&config, &directory, rebuild_index)?;
    let journal = start::open_journal(&context, &directory, &store)?;
    if journal.is_some() && store.recovery().index_rebuilt {
        store.save_rebuilt_index();
    }
    context.open(store.clone(), journal.clone());
    // It may have been set while the data was loaded.
    let policy = context.config.config().persistence.aof_sync;
    if journal.as_ref().is_some_and(|journal| journal.policy() != policy) {
        start::settle_policy(Arc::clone(&context), policy).map_err(StartError::Policy)?;
    }
    start::set_space(&store, &context.config.config());
    start::tell_store(&context);
    status.ready();
    tracing::info!("ready");
    notify(NotifyState::Ready);

    let is_saved = server.run();
    notify(NotifyState::Stopping);
    control.stop();
    let written = journal.map_or(Ok(()), |journal| journal.stop());
    drop(status);
    store.close();
    if let (Err(why), false) = (written, is_saved) {
        return Err(StartError::End(why));
    }
    tracing::info!("bye");
    Ok(())
}

/// CONFIG SET logging.level.
fn follow(
    level: logging::Level,
) -> impl Fn(&config::Config, &config::Config) -> Result<(), String> {
    move |old, new| match old.logging.level == new.logging.level {
        true => Ok(()),
        false => level.set(new.logging.level),
    }
}

/// Tells systemd, when it has started us.
fn notify(state: NotifyState<'_>) {
    if let Err(e) = sd_notify::notify(&[state]) {
        tracing::debug!("systemd was not told: {e}");
    }
}
