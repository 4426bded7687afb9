//! The upgrade (RFC 6455, section 4), sans I/O: a request's head in, an answer out.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

/// The longest head, in bytes.
pub const LONGEST: usize = 16 * 1024;
/// Headers of a request at most.
const HEADERS: usize = 64;
/// RFC 6455, section 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

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
    Upgrade { head: Head, answer: Vec<u8> },
    /// Send `answer` and close.
    Refuse { answer: Vec<u8> },
}

/// Reads the head of a request for `path`.
pub fn read(bytes: &[u8], path: &str) -> Reading {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < LONGEST => return Reading::More,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return refuse("431 Request Header Fields Too Large", "the head is too long");
        }
        Err(_) => return refuse("400 Bad Request", "this is no HTTP request"),
    };
    let full_path = request.path.unwrap_or_default().to_string();
    let method = request.method.unwrap_or_default();
    let headers = request.headers.iter().map(|header| {
        (header.name.to_ascii_lowercase(), String::from_utf8_lossy(header.value).trim().to_string())
    });
    let head = Head { path: full_path, headers: headers.collect(), length };
    if head.path.split('?').next() != Some(path) {
        return refuse("404 Not Found", &format!("nothing is here; the WebSocket is at {path}"));
    }
    match accept(&head, method) {
        Ok(key) => Reading::Upgrade { answer: switching(&key), head },
        Err((status, reason)) => refuse(status, reason),
    }
}

impl Head {
    fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn lists(&self, name: &str, word: &str) -> bool {
        self.get(name).is_some_and(|value| value.split(',').any(|one| one.trim().eq_ignore_ascii_case(word)))
    }
}

/// Checks an upgrade; answers the key to accept it with.
fn accept(head: &Head, method: &str) -> Result<String, (&'static str, &'static str)> {
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
    // A browser says where the page came from; natives do not, and are let in.
    let origin = head.get("origin").and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
    if head.get("origin").is_some() && origin != head.get("host") {
        return Err(("403 Forbidden", "pages of another origin may not connect"));
    }
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(GUID);
    Ok(STANDARD.encode(hash.finalize()))
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

    fn request(change: impl Fn(&str) -> String) -> Reading {
        let text = "GET /ws HTTP/1.1\r\nHost: a:1\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
                    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        read(change(text).as_bytes(), "/ws")
    }

    fn status(reading: Reading) -> String {
        match reading {
            Reading::Refuse { answer } => String::from_utf8(answer[9..12].to_vec()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_example_of_the_rfc_is_accepted() {
        let Reading::Upgrade { head, answer } = request(str::to_string) else { panic!() };
        assert!(String::from_utf8(answer).unwrap().contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(head.path, "/ws");
    }

    #[test]
    fn same_origin_and_natives_are_let_in() {
        let with = |origin: &str| request(|text| text.replace("Host", &format!("Origin: {origin}\r\nHost")));
        assert!(matches!(with("http://a:1"), Reading::Upgrade { .. }));
        assert_eq!(status(with("http://evil:1")), "403");
        assert_eq!(status(with("null")), "403");
    }

    #[test]
    fn what_is_no_upgrade_is_refused() {
        assert_eq!(status(request(|text| text.replace("/ws", "/"))), "404");
        assert_eq!(status(request(|text| text.replace("GET", "POST"))), "405");
        assert_eq!(status(request(|text| text.replace("websocket\r\n", "h2c\r\n"))), "426");
        assert_eq!(status(request(|text| text.replace("13\r\n", "8\r\n"))), "426");
        assert_eq!(status(request(|text| text.replace("dGhl", ""))), "400");
        assert_eq!(status(read(b"no HTTP at all\r\n\r\n", "/ws")), "400");
        assert_eq!(request(|text| text.trim_end().into()), Reading::More);
    }
}
