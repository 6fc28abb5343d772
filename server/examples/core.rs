//! scratch
use ferrite_server::{context::Context, listener::Listeners, server};
use std::sync::Arc;
fn main() {
    let port: u16 = std::env::args().nth(1).unwrap().parse().unwrap();
    let workers: usize = std::env::args().nth(2).unwrap().parse().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let listeners = Listeners::bind(&[([127, 0, 0, 1], port).into()], None).unwrap();
    let mut config = ferrite_hybridlog::Config::new(dir.path());
    config.index_max_size = 0;
    let store = ferrite_hybridlog::Store::open(config).unwrap();
    let context = Arc::new(Context::new(store, 16, workers));
    server::end_on_signals(context.clone()).unwrap();
    let server = server::Server::start(context, listeners).unwrap();
    eprintln!("ready");
    server.run();
}
