//! What the settings say.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use zephserver_plugin::{Declare, Error, Result, Start};

use crate::codec::Bounds;
use crate::handshake::Entrance;

/// The settings of an edge, read once.
#[derive(Clone, Debug)]
pub struct Settings {
    pub address: SocketAddr,
    pub entrance: Entrance,
    pub bounds: Bounds,
    /// Loops, each on a thread of its own.
    pub threads: usize,
    pub connections: usize,
    pub connections_per_address: usize,
    pub backlog: usize,
    /// A silent peer is asked after this time; zero: never.
    pub ping: Duration,
    /// Messages in a row that make no sense, before the peer is closed.
    pub bad_messages: u32,
    /// Requests of one peer that wait for their answers.
    pub requests: u32,
    /// How long the session service may take.
    pub session_timeout: Duration,
    /// Serve the chat page, the client library, and the list of services.
    pub page: bool,
}

pub fn declare(declare: Declare) -> Declare {
    declare
        .setting("port", 8080, "the port to listen on; 0: a free one")
        .alias("PORT_ZEPH")
        .setting("address", "127.0.0.1", "the address to listen on")
        .setting("path", "/ws", "the path of the WebSocket")
        .setting("echo_path", "", "a path that answers every message with itself, for tests; \"\": none")
        .setting("origins", serde_json::json!([]), "origins of pages that may connect, beside our own")
        .setting("page", true, "serve the chat page, the client library and the list of services")
        .setting("threads", 0, "threads for sockets; 0: one for each core")
        .setting("connections", 50_000, "connections at a time")
        .setting("connections_per_address", 20_000, "connections at a time from one IP address")
        .setting("message_size", 1024 * 1024, "bytes of a message")
        .setting("fragments", 4096, "frames of a message")
        .setting("backlog", 1024 * 1024, "bytes that wait for one slow peer")
        .setting("requests", 256, "requests of one peer that wait for their answers")
        .setting("bad_messages", 100, "messages in a row that make no sense, before the peer is closed")
        .setting("ping", 30.0, "seconds of silence before a peer is pinged; 0: never")
        .setting("session_timeout", 30.0, "seconds that the session service may take")
        .setting("session", "session/Session", "the service that knows who a peer is")
        .alias("MY_SESSION_HANDLER")
        .setting("room", "room/Room", "the service that keeps the rooms")
        .alias("MY_ROOM_HANDLER")
        .setting("router", "router/Router", "the service that runs tasks")
        .needs_setting("session")
        .needs_setting("room")
        .needs_setting("router")
}

impl Settings {
    pub fn read(start: &Start) -> Result<Self> {
        let wrong = |what: &str| Error::invalid(format!("[websocket] {what}"));
        let address: IpAddr = start
            .setting::<String>("address")?
            .parse()
            .map_err(|_| wrong("address is an IP address, such as \"127.0.0.1\""))?;
        let seconds = |name: &str| {
            Duration::try_from_secs_f64(start.setting(name)?)
                .map_err(|_| wrong(&format!("{name} is a number of seconds")))
        };
        let path = |name: &str| {
            let path: String = start.setting(name)?;
            match path.starts_with('/') || path.is_empty() && name == "echo_path" {
                true => Ok(path),
                false => Err(wrong(&format!("{name} begins with a `/`"))),
            }
        };
        let entrance = Entrance {
            path: path("path")?,
            echo_path: path("echo_path")?,
            origins: start.setting("origins")?,
        };
        if let Some(origin) = entrance.origins.iter().find(|origin| !origin.contains("://")) {
            return Err(wrong(&format!("origins: \"{origin}\" is written \"https://example.org\"")));
        }
        if entrance.path == entrance.echo_path {
            return Err(wrong("path and echo_path are the same"));
        }
        let threads = match start.setting("threads")? {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let session_timeout = seconds("session_timeout")?;
        if session_timeout.is_zero() {
            return Err(wrong("session_timeout is above 0"));
        }
        Ok(Self {
            address: SocketAddr::new(address, start.setting("port")?),
            entrance,
            bounds: Bounds {
                message: start.setting("message_size")?,
                fragments: start.setting("fragments")?,
            },
            threads: threads.min(64),
            connections: start.setting("connections")?,
            connections_per_address: start.setting("connections_per_address")?,
            backlog: start.setting("backlog")?,
            ping: seconds("ping")?,
            bad_messages: start.setting("bad_messages")?,
            requests: start.setting("requests")?,
            session_timeout,
            page: start.setting("page")?,
        })
    }
}
