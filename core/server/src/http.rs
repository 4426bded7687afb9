//! Health and figures of the server itself over HTTP, for load balancers and monitoring.
//!
//! It asks nobody who he is: so it only tells, and listens on a loopback address only. A page of a stranger
//! may have its own name lead there, and a browser would let it read along; so a name in the Host header
//! must be localhost. A question to the manager has its limit: whoever asks is answered, also where the
//! manager has no time.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;
use warp::http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use warp::http::{Method, Response, StatusCode};
use warp::path::FullPath;
use warp::{Filter, Rejection};

use crate::control::Desk;
use crate::error::Error;
use crate::metrics::{self, Process};
use crate::phase::Phase;

/// Connections at a time; further ones wait to be accepted.
const CONNECTIONS: usize = 64;
/// A connection, with its one request and the answer, may take this long.
const LONGEST: Duration = Duration::from_secs(5);
/// Questions to the manager at a time; further ones wait.
const QUESTIONS: usize = 4;
/// A question that is not answered within this time is not answered.
const PATIENCE: Duration = Duration::from_millis(800);
/// After it could not accept, out of descriptors most likely, it waits.
const PAUSE: Duration = Duration::from_millis(20);

/// Opens the socket. Nobody is answered before [`Http::serve`].
pub fn listen(address: SocketAddr) -> Result<std::net::TcpListener, Error> {
    std::net::TcpListener::bind(address).map_err(|source| Error::Listen { address, source })
}

/// Answers until it is closed.
pub struct Http {
    /// Where it listens.
    pub address: SocketAddr,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Http {
    /// Answers on a thread of its own.
    pub fn serve(listener: std::net::TcpListener, desk: Desk) -> io::Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(QUESTIONS)
            .build()?;
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let desk = Reception { desk, places: Arc::new(Semaphore::new(QUESTIONS)) };
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("zephserver-http".into()).spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = accept(listener, desk) => {}
                    _ = stopped => {}
                }
            });
            // A question may still be under way.
            runtime.shutdown_background();
        })?;
        Ok(Self { address, stop, thread })
    }

    /// Closes the socket and all connections.
    pub fn close(self) {
        drop(self.stop);
        let _ = self.thread.join();
    }
}

async fn accept(listener: TcpListener, desk: Reception) {
    let routes = routes(desk);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((socket, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let service = TowerToHyperService::new(warp::service(routes.clone()));
        tokio::spawn(async move {
            let mut server = http1::Builder::new();
            let visit = server.keep_alive(false).serve_connection(TokioIo::new(socket), service);
            // Whoever goes early, or stays too long, loses nothing but the answer.
            let _ = timeout(LONGEST, visit).await;
            drop(place);
        });
    }
}

fn routes(desk: Reception) -> impl Filter<Extract = (Response<String>,), Error = Rejection> + Clone {
    let request = warp::method().and(warp::path::full()).and(warp::header::optional::<String>("host"));
    request.then(move |method: Method, path: FullPath, host: Option<String>| {
        answer(desk.clone(), method, path, host)
    })
}

async fn answer(desk: Reception, method: Method, path: FullPath, host: Option<String>) -> Response<String> {
    if host.is_some_and(|host| !is_harmless(&host)) {
        return words(StatusCode::FORBIDDEN, "the Host header must be localhost or an IP address\n");
    }
    match (path.as_str(), &method) {
        ("/health", &Method::GET | &Method::HEAD) => desk.health().await,
        ("/metrics", &Method::GET | &Method::HEAD) => desk.metrics().await,
        ("/health" | "/metrics", _) => {
            let mut response = words(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            response
        }
        _ => words(StatusCode::NOT_FOUND, "here are /health and /metrics\n"),
    }
}

/// True where a Host header is no name that a stranger could have lead here.
fn is_harmless(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let name = host.split_once(':').map_or(host, |(name, _)| name);
    host.parse::<SocketAddr>().is_ok()
        || bare.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
}

fn words(code: StatusCode, words: &str) -> Response<String> {
    response(code, "text/plain; charset=utf-8", words.into())
}

fn response(code: StatusCode, content_type: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The desk, with a limit to how many ask there and to how long they wait.
#[derive(Clone)]
struct Reception {
    desk: Desk,
    places: Arc<Semaphore>,
}

impl Reception {
    /// How everything stands; None: the manager has no time, or is gone.
    async fn status(&self) -> Option<Value> {
        let asked = async {
            let place = self.places.clone().acquire_owned().await.ok()?;
            let desk = self.desk.clone();
            let answered = tokio::task::spawn_blocking(move || {
                // Kept until there is an answer, also where nobody waits for it any more.
                let _place = place;
                desk.answer("status")
            });
            answered.await.ok()?.ok()
        };
        timeout(PATIENCE, asked).await.ok().flatten()
    }

    async fn health(&self) -> Response<String> {
        let status = self.status().await;
        let (code, said) = health(self.desk.phases.now(), status.as_ref());
        response(code, "application/json", format!("{said}\n"))
    }

    async fn metrics(&self) -> Response<String> {
        match self.status().await {
            Some(status) => {
                response(StatusCode::OK, metrics::CONTENT_TYPE, metrics::page(&status, &Process::now()))
            }
            None => words(StatusCode::SERVICE_UNAVAILABLE, "the manager did not answer in time\n"),
        }
    }
}

/// Whether all is well; if not, who does not serve though it should.
fn health(phase: Phase, status: Option<&Value>) -> (StatusCode, Value) {
    let services = status.and_then(|status| status["services"].as_array()).into_iter().flatten();
    let shown = |service: &Value| {
        let [name, state, failure] = ["name", "state", "last_failure"].map(|key| &service[key]);
        json!({"name": name, "state": state, "last_failure": failure})
    };
    let down: Vec<Value> = services.filter(|service| is_down(phase, service)).map(shown).collect();
    let word = match (phase, status) {
        (Phase::Ready, Some(_)) if down.is_empty() => return (StatusCode::OK, json!({"status": "ok"})),
        (Phase::Ready, Some(_)) => "degraded",
        (Phase::Ready, None) => "busy",
        _ => phase.name(),
    };
    (StatusCode::SERVICE_UNAVAILABLE, json!({"status": word, "services": down}))
}

fn is_down(phase: Phase, service: &Value) -> bool {
    // While the server starts, not all of them have had their turn.
    let is_wanted = service["wanted"] == true || phase == Phase::Starting;
    is_wanted && service["optional"] == false && service["state"] != "enabled"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_local_names_and_addresses_are_harmless() {
        for host in ["localhost", "LOCALHOST:9100", "127.0.0.1", "127.0.0.1:9100", "[::1]", "[::1]:9100"] {
            assert!(is_harmless(host), "{host}");
        }
        for host in ["", "example.org", "example.org:9100", "localhost.example.org", "127.0.0.1.org"] {
            assert!(!is_harmless(host), "{host}");
        }
    }

    fn service(name: &str, state: &str, wanted: bool, optional: bool) -> Value {
        json!({"name": name, "state": state, "wanted": wanted, "optional": optional, "last_failure": "why"})
    }

    #[test]
    fn health_names_who_is_down() {
        let well = [
            service("a/A", "enabled", true, false),
            service("b/B", "waiting", true, true),
            service("c/C", "available", false, false),
        ];
        let status = json!({"services": well});
        assert_eq!(health(Phase::Ready, Some(&status)), (StatusCode::OK, json!({"status": "ok"})));
        let mut ill = well.to_vec();
        ill.push(service("d/D", "waiting", true, false));
        let (code, said) = health(Phase::Ready, Some(&json!({"services": ill})));
        assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
        let down = json!([{"name": "d/D", "state": "waiting", "last_failure": "why"}]);
        assert_eq!(said, json!({"status": "degraded", "services": down}));
    }

    #[test]
    fn only_a_server_that_is_ready_and_answers_is_well() {
        let status = json!({"services": [service("a/A", "available", false, false)]});
        for (phase, status, word, down) in [
            (Phase::Starting, Some(&status), "starting", 1),
            (Phase::Starting, None, "starting", 0),
            (Phase::Ready, None, "busy", 0),
            (Phase::Stopping, Some(&status), "stopping", 0),
        ] {
            let (code, said) = health(phase, status);
            assert_eq!((code, said["status"].as_str()), (StatusCode::SERVICE_UNAVAILABLE, Some(word)));
            assert_eq!(said["services"].as_array().unwrap().len(), down, "{said}");
        }
    }
}
