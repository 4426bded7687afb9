//! The head of a request (RFC 6455, section 4), sans I/O: who may come in, and as what.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

/// The longest head, in bytes.
pub const LONGEST: usize = 16 * 1024;
/// Headers of a request at most.
const HEADERS: usize = 64;
/// RFC 6455, section 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The answer to a head that is not complete in time.
pub const TOO_LATE: &[u8] = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
/// The answer to a connection beyond the limits.
pub const TOO_MANY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 5\r\nconnection: close\r\n\r\n";

/// Where the sockets are, and for whom.
#[derive(Clone, Debug)]
pub struct Entrance {
    /// The path of the WebSocket.
    pub path: String,
    /// The path of a bare echo; empty: there is none.
    pub echo_path: String,
    /// Origins beside the server's own: `https://example.org`.
    pub origins: Vec<String>,
}

/// The head of an upgrade.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Where the head ends.
    pub length: usize,
}

/// What to do with what came so far.
#[derive(Debug, PartialEq, Eq)]
pub enum Reading {
    /// The head is not complete yet.
    More,
    /// An upgrade: send `answer`.
    Upgrade { head: Head, answer: Vec<u8>, is_echo: bool },
    /// A request that is no upgrade: for the HTTP server.
    Other,
    /// Send `answer` and close.
    Refuse { answer: Vec<u8> },
}

/// Reads the head of a request.
pub fn read(bytes: &[u8], entrance: &Entrance) -> Reading {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= LONGEST => length,
        Ok(httparse::Status::Partial) if bytes.len() < LONGEST => return Reading::More,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => {
            return refuse("431 Request Header Fields Too Large", "the head is too long");
        }
        Err(_) => return refuse("400 Bad Request", "this is no HTTP request"),
    };
    let (method, version) = (request.method.unwrap_or_default(), request.version);
    let headers = request.headers.iter().map(|header| {
        (header.name.to_ascii_lowercase(), String::from_utf8_lossy(header.value).trim().to_string())
    });
    let head =
        Head { path: request.path.unwrap_or_default().to_string(), headers: headers.collect(), length };
    let path = path(&head.path);
    let is_echo = !entrance.echo_path.is_empty() && path == entrance.echo_path;
    if path != entrance.path && !is_echo {
        return match head.get("upgrade") {
            Some(_) => refuse("404 Not Found", &format!("the WebSocket is at {}", entrance.path)),
            None => Reading::Other,
        };
    }
    if version != Some(1) {
        return refuse("400 Bad Request", "an upgrade is HTTP/1.1");
    }
    match accept(&head, method, &entrance.origins) {
        Ok(key) => Reading::Upgrade { answer: switching(&key), head, is_echo },
        Err((status, reason)) => refuse(status, reason),
    }
}

/// The path of a request's target, which may be a whole address (RFC 9112, section 3.2.2).
fn path(target: &str) -> &str {
    let target = match target.split_once("://") {
        Some((scheme, rest)) if !scheme.contains('/') => rest.find('/').map_or("/", |at| &rest[at..]),
        _ => target,
    };
    target.split('?').next().unwrap_or_default()
}

impl Head {
    fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.headers.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn lists(&self, name: &str, word: &str) -> bool {
        let values = self.headers.iter().filter(|(known, _)| known == name);
        let mut words = values.flat_map(|(_, value)| value.split(','));
        words.any(|one| one.trim().eq_ignore_ascii_case(word))
    }
}

/// Checks an upgrade; answers the key to accept it with.
fn accept(head: &Head, method: &str, origins: &[String]) -> Result<String, (&'static str, &'static str)> {
    if method != "GET" {
        return Err(("405 Method Not Allowed", "an upgrade is a GET"));
    }
    if !head.lists("connection", "upgrade") || !head.lists("upgrade", "websocket") {
        return Err(("426 Upgrade Required", "this address speaks WebSocket only"));
    }
    if head.get("sec-websocket-version") != Some("13") {
        return Err(("426 Upgrade Required", "only version 13 of WebSocket is spoken here"));
    }
    let Some(key) =
        head.get("sec-websocket-key").filter(|key| STANDARD.decode(key).is_ok_and(|key| key.len() == 16))
    else {
        return Err(("400 Bad Request", "Sec-WebSocket-Key is missing or malformed"));
    };
    // A browser says where the page came from; natives do not, and are let in. There is no TLS here: our
    // own pages come by http.
    if head.all("host").count() != 1 {
        return Err(("400 Bad Request", "a request has one Host header"));
    }
    for origin in head.all("origin") {
        let is_own = head.get("host").is_some_and(|host| same_origin(origin, &format!("http://{host}")));
        if !is_own && !origins.iter().any(|known| same_origin(origin, known)) {
            return Err(("403 Forbidden", "pages of this origin may not connect ([websocket] origins)"));
        }
    }
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(GUID);
    Ok(STANDARD.encode(hash.finalize()))
}

/// Scheme, host and port are the same; a port that is the scheme's own may be left out.
fn same_origin(one: &str, other: &str) -> bool {
    fn parts(origin: &str) -> Option<(String, String, String)> {
        let (scheme, rest) = origin.split_once("://")?;
        let scheme = scheme.to_ascii_lowercase();
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
                (host, port)
            }
            _ => (rest, if scheme == "https" { "443" } else { "80" }),
        };
        let is_host = !host.is_empty() && !host.contains(['/', '@', '?', '#']);
        is_host.then(|| (scheme, host.to_ascii_lowercase(), port.to_string()))
    }
    parts(one).is_some_and(|one| Some(one) == parts(other))
}

fn switching(key: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: {key}\r\n\r\n"
    )
    .into_bytes()
}

fn refuse(status: &str, reason: &str) -> Reading {
    let upgrade =
        if status.starts_with("426") { "upgrade: websocket\r\nsec-websocket-version: 13\r\n" } else { "" };
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n{upgrade}connection: close\r\n\r\n{reason}\n",
        reason.len() + 1
    );
    Reading::Refuse { answer: answer.into_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entrance() -> Entrance {
        Entrance {
            path: "/ws".into(),
            echo_path: "/echo".into(),
            origins: vec!["https://chat.example".into()],
        }
    }

    fn request(change: impl Fn(&str) -> String) -> Reading {
        let text = "GET /ws HTTP/1.1\r\nHost: a:1\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
                    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        read(change(text).as_bytes(), &entrance())
    }

    fn status(reading: Reading) -> String {
        match reading {
            Reading::Refuse { answer } => String::from_utf8(answer[9..12].to_vec()).unwrap(),
            Reading::Upgrade { is_echo, .. } => if is_echo { "echo" } else { "in" }.into(),
            Reading::Other => "other".into(),
            Reading::More => "more".into(),
        }
    }

    #[test]
    fn the_example_of_the_rfc_is_accepted() {
        let Reading::Upgrade { head, answer, is_echo: false } = request(str::to_string) else { panic!() };
        assert!(String::from_utf8(answer).unwrap().contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(head.path, "/ws");
    }

    #[test]
    fn own_pages_listed_origins_and_natives_are_let_in() {
        let with =
            |origin: &str| status(request(|text| text.replace("Host", &format!("Origin: {origin}\r\nHost"))));
        assert_eq!((with("http://a:1"), with("HTTP://A:1")), ("in".into(), "in".into()));
        for wrong in
            ["http://evil:1", "https://a:1", "http://a", "http://a:10", "null", "http://a:1/x", "a:1", ""]
        {
            assert_eq!(with(wrong), "403", "{wrong}");
        }
        assert_eq!(
            (with("https://chat.example"), with("https://chat.example:443")),
            ("in".into(), "in".into())
        );
        assert_eq!(
            (with("http://chat.example"), with("https://x.chat.example")),
            ("403".into(), "403".into())
        );
        let two = request(|text| text.replace("Host", "Origin: http://a:1\r\nOrigin: http://evil\r\nHost"));
        assert_eq!(status(two), "403", "each of them counts");
        let default_port = request(|text| text.replace("Host: a:1", "Host: a\r\nOrigin: http://a:80"));
        assert_eq!(status(default_port), "in");
    }

    #[test]
    fn what_is_no_upgrade_is_refused_or_for_others() {
        assert_eq!(status(request(|text| text.replace("/ws", "/echo?x=1"))), "echo");
        assert_eq!(status(request(|text| text.replace("/ws", "/"))), "404", "an upgrade elsewhere");
        assert_eq!(
            status(request(|text| text.replace("/ws", "/").replace("Upgrade: websocket\r\n", ""))),
            "other"
        );
        assert_eq!(status(request(|text| text.replace("GET", "POST"))), "405");
        assert_eq!(status(request(|text| text.replace("websocket\r\n", "h2c\r\n"))), "426");
        assert_eq!(status(request(|text| text.replace("13\r\n", "8\r\n"))), "426");
        assert_eq!(status(request(|text| text.replace("dGhl", ""))), "400");
        assert_eq!(status(request(|text| text.replace("/ws", "http://a:1/ws"))), "in");
        assert_eq!(status(request(|text| text.replace("HTTP/1.1", "HTTP/1.0"))), "400");
        assert_eq!(status(request(|text| text.replace("Host: a:1\r\n", ""))), "400");
        assert_eq!(status(read(b"no HTTP at all\r\n\r\n", &entrance())), "400");
        assert_eq!(request(|text| text.trim_end().into()), Reading::More);
        let long = format!("GET /ws HTTP/1.1\r\nX: {}", "x".repeat(LONGEST));
        assert_eq!(status(read(long.as_bytes(), &entrance())), "431");
    }
}
