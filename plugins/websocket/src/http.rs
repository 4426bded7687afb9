//! Requests that are no upgrade: the chat page, the client library, health, and which services run.
//! Served by warp on a thread and runtime of its own; the sockets come from the loops, with what was
//! read of them.

use std::convert::Infallible;
use std::io;
use std::net::TcpStream;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc::{self, Receiver, Sender};
use warp::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use warp::http::{Response, StatusCode};
use warp::{Filter, Rejection, Reply};
use zephserver_plugin::{Host, tracing};

/// Visitors that wait to be served at most, and that are served at a time.
const WAITING: usize = 256;
/// A visit may take this long.
const LONGEST_VISIT: Duration = Duration::from_secs(30);
/// And this long at a stop.
const GOODBYE: Duration = Duration::from_secs(1);

const PAGE: &str = include_str!("../web/index.html");
const LIBRARY: &str = include_str!("../web/zephclient.js");
const TYPES: &str = include_str!("../web/zephclient.d.ts");
const POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; \
                      script-src 'self' 'unsafe-inline'; connect-src 'self' ws: wss:";

type Visitor = (TcpStream, Vec<u8>);

/// Where the loops hand sockets over.
#[derive(Clone)]
pub struct Visitors(Sender<Visitor>);

/// Where the HTTP server takes them.
pub struct Visited(Receiver<Visitor>);

/// Both ends.
pub fn visitors() -> (Visitors, Visited) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Visitors(sender), Visited(receiver))
}

impl Visitors {
    /// Hands a socket over, with what was read of it. Where too many wait it is closed.
    pub fn hand_over(&self, socket: TcpStream, bytes: Vec<u8>) {
        if self.0.try_send((socket, bytes)).is_err() {
            tracing::warn!("{WAITING} HTTP requests wait already; closed one");
        }
    }
}

impl Visited {
    /// Serves until the last loop has gone. If another generation has taken over, who is here is served to the
    /// end.
    pub fn serve(mut self, host: Host, with_page: bool, is_replaced: impl Fn() -> bool) -> io::Result<()> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build()?;
        runtime.block_on(async {
            let routes = routes(host, with_page);
            let places = std::sync::Arc::new(tokio::sync::Semaphore::new(WAITING));
            while let Some((socket, bytes)) = self.0.recv().await {
                let Ok(place) = places.clone().acquire_owned().await else { return };
                let Ok(socket) = tokio::net::TcpStream::from_std(socket) else { continue };
                let service = TowerToHyperService::new(warp::service(routes.clone()));
                tokio::spawn(async move {
                    // One request for each connection: the next one passes the head reader again.
                    let io = TokioIo::new(Visit { unread: bytes, socket });
                    let mut server = hyper::server::conn::http1::Builder::new();
                    let visit = server.keep_alive(false).serve_connection(io, service);
                    // Whoever goes early, or stays too long, loses nothing but the answer.
                    let _ = tokio::time::timeout(LONGEST_VISIT, visit).await;
                    drop(place);
                });
            }
            let patience = if is_replaced() { LONGEST_VISIT } else { GOODBYE };
            let _ = tokio::time::timeout(patience, places.acquire_many(WAITING as u32)).await;
        });
        // A question to the server may still be under way.
        runtime.shutdown_timeout(GOODBYE);
        Ok(())
    }
}

fn routes(host: Host, with_page: bool) -> impl Filter<Extract = (impl Reply,), Error = Infallible> + Clone {
    let health = warp::path!("health").map(|| text("application/json", "{\"status\":\"ok\"}\n".into()));
    let shown = warp::any()
        .and_then(move || async move { if with_page { Ok(()) } else { Err(warp::reject::not_found()) } });
    let page = warp::path::end().map(|| text("text/html; charset=utf-8", PAGE.into()));
    let library = warp::path!("zephclient.js").map(|| text("text/javascript; charset=utf-8", LIBRARY.into()));
    let types = warp::path!("zephclient.d.ts").map(|| text("text/plain; charset=utf-8", TYPES.into()));
    // There is no picture; without an answer browsers complain in their logs.
    let picture = warp::path!("favicon.ico").map(|| {
        let mut response = text("image/x-icon", String::new());
        *response.status_mut() = StatusCode::NO_CONTENT;
        response
    });
    let services = warp::path!("services").and_then(move || services(host.clone()));
    let shown = shown
        .untuple_one()
        .and(page.or(library).unify().or(types).unify().or(picture).unify().or(services).unify());
    warp::get().or(warp::head()).unify().and(health.or(shown).unify()).recover(unknown)
}

fn text(content_type: &str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, content_type),
        (CACHE_CONTROL, "no-cache"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (CONTENT_SECURITY_POLICY, POLICY),
    ] {
        if let Ok(value) = value.parse() {
            headers.insert(name, value);
        }
    }
    response
}

/// Name, state and generation of each service, and nothing else of the status.
async fn services(host: Host) -> Result<Response<String>, Rejection> {
    let status = tokio::task::spawn_blocking(move || host.control("services")).await;
    let services: Vec<Value> = match status {
        Ok(Ok(status)) => serde_json::from_slice(&status).unwrap_or_default(),
        _ => return Err(warp::reject::not_found()),
    };
    let shown = services.iter().map(|service| {
        json!({"service": service["name"], "state": service["state"], "generation": service["generation"]})
    });
    Ok(text("application/json", Value::Array(shown.collect()).to_string()))
}

async fn unknown(rejection: Rejection) -> Result<Response<String>, Infallible> {
    let (status, body) = match rejection.is_not_found() {
        true => (StatusCode::NOT_FOUND, "nothing is here\n"),
        false => (StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n"),
    };
    let mut response = text("text/plain; charset=utf-8", body.into());
    *response.status_mut() = status;
    Ok(response)
}

/// A socket of which some bytes were read before.
struct Visit {
    unread: Vec<u8>,
    socket: tokio::net::TcpStream,
}

impl AsyncRead for Visit {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            return Pin::new(&mut self.socket).poll_read(cx, buffer);
        }
        let count = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..count]);
        self.unread.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Visit {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
