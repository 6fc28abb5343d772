//! The small HTTP server of `[metrics]`: GET /metrics and GET /health.

use crate::metrics::Status;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Connections at a time; more wait in the system's queue.
const CONNECTIONS_MAX: usize = 64;
/// Time for a request's head to arrive, and for an idle connection to stay.
const PATIENCE: Duration = Duration::from_secs(10);
/// What Prometheus expects of the OpenMetrics format.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, status: Arc<Status>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = Arc::clone(&room).acquire_owned().await.expect("nobody closes the semaphore");
        match listener.accept().await {
            Ok((stream, _)) => {
                let status = Arc::clone(&status);
                tokio::spawn(async move {
                    connection(stream, status).await;
                    drop(permit);
                });
            }
            Err(e) => {
                // Out of descriptors, most likely: asking again at once would not help.
                tracing::warn!("the metrics server cannot accept a connection: {e}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, status: Arc<Status>) {
    let answer = service_fn(move |request| {
        let response = answer(&request, &status);
        async move { Ok::<_, Infallible>(response) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), answer);
    if let Err(e) = served.await {
        tracing::debug!("a connection to the metrics server ended: {e}");
    }
}

fn answer(request: &Request<Incoming>, status: &Status) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET only\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/metrics" => match status.metrics() {
            Ok(page) => respond(StatusCode::OK, OPENMETRICS, page),
            Err(e) => {
                tracing::error!("the metrics cannot be printed: {e}");
                respond(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", "no metrics\n")
            }
        },
        "/health" => {
            let health = status.health();
            let code = match health.healthy {
                true => StatusCode::OK,
                false => StatusCode::SERVICE_UNAVAILABLE,
            };
            respond(code, "application/json", health.json)
        }
        _ => respond(StatusCode::NOT_FOUND, "text/plain", "/metrics or /health\n"),
    }
}

fn respond(code: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
