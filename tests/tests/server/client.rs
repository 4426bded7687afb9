//! Peers: one that tungstenite drives, which we did not write, and one that sends bytes made by hand.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::{ClientRequestBuilder, Error, HandshakeError, Message, WebSocket};
use zephserver_testkit::{TestServer, deadline};

/// The service that peers connect to.
pub const EDGE: &str = "websocket/WebSocket";

/// Everything that is shipped; everybody is anonymous.
pub const RING: [&str; 5] = ["session/Session", "room/Room", "tasks/Tasks", "router/Router", EDGE];

/// Tasks of the ring, as settings; further tables may follow.
pub const SETTINGS: &str =
    "PORT_ZEPH = 0\n[TASKS_PATH]\nTaskEcho = \"tasks/TaskEcho\"\n\"chat.say\" = \"tasks/ChatSay\"";

/// The ring, with users by name and tasks of every kind from the fixture.
pub const STAGE: [&str; 6] =
    ["stage/Names", "room/Room", "tasks/Tasks", "stage/Tasks", "router/Router", EDGE];

const STAGE_SETTINGS: &str = r#"
PORT_ZEPH = 0
MY_SESSION_HANDLER = "stage/Names"
[TASKS_PATH]
TaskPing = "tasks/TaskPing"
TaskEcho = "tasks/TaskEcho"
"chat.say" = "tasks/ChatSay"
"chat.whisper" = "tasks/ChatWhisper"
Slow = "stage/Slow"
Quick = "stage/Slow"
Step = "stage/Step"
Short = "stage/Short"
Long = "stage/Short"
Extra = "stage/Extra"
Twice = "stage/Twice"
Fall = "stage/Fall"
Moderators = "stage/Moderators"
Members = "stage/Members"
Nowhere = "stage/Nowhere"
"#;

/// The ring of [`STAGE`] with further tables of settings.
pub fn stage(settings: &str) -> TestServer {
    TestServer::with(&STAGE).settings(STAGE_SETTINGS).settings(settings).start()
}

/// The same with another room service.
pub fn stage_with_room(room: &str, settings: &str) -> TestServer {
    let services = STAGE.map(|service| if service == "room/Room" { room } else { service });
    let stage = format!("MY_ROOM_HANDLER = \"{room}\"{STAGE_SETTINGS}");
    TestServer::with(&services).settings(&stage).settings(settings).start()
}

/// How many peers are in a room. They get a frame of task `test`.
pub fn in_room(server: &TestServer, room: &str) -> u64 {
    let push = json!({"room": room, "task": "test", "data": null});
    server.call("room", "send_to_room/1", &push.to_string()).unwrap().as_u64().unwrap()
}

/// A connection on which no read and no write waits for ever.
fn connect(server: &TestServer) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", server.port(EDGE))).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(deadline())).unwrap();
    stream.set_write_timeout(Some(deadline())).unwrap();
    stream
}

/// A peer. Every wait of it has a deadline, which the server's pings do not put off.
pub struct Client {
    pub socket: WebSocket<TcpStream>,
    last_id: u64,
}

impl Client {
    pub fn connect(server: &TestServer) -> Self {
        match Self::connect_with(server, "/ws", &[]) {
            Ok(client) => client,
            Err(status) => panic!("refused with {status}"),
        }
    }

    /// Connects with further headers; the error is the status that it was refused with.
    pub fn connect_with(server: &TestServer, path: &str, headers: &[(&str, &str)]) -> Result<Self, u16> {
        let stream = connect(server);
        let url = format!("ws://{}{path}", stream.peer_addr().unwrap());
        let mut request = ClientRequestBuilder::new(url.parse().unwrap());
        for (name, value) in headers {
            request = request.with_header(*name, *value);
        }
        match tungstenite::client(request, stream) {
            Ok((socket, _)) => Ok(Self { socket, last_id: 0 }),
            Err(HandshakeError::Failure(Error::Http(response))) => Err(response.status().as_u16()),
            Err(error) => panic!("{url}: {error}"),
        }
    }

    /// Connects and joins a room; its first list has been read.
    pub fn join(server: &TestServer, room: &str) -> Self {
        let mut client = Self::connect(server);
        client.send(json!({"room": room}));
        client.until("its first list", |frame| frame["msgtype"] == "user_list");
        client
    }

    /// Connects and joins a room under a name; the list with that name has been read.
    pub fn join_as(server: &TestServer, room: &str, name: &str) -> Self {
        let mut client = Self::connect(server);
        client.hello(room, name);
        client.until_listed(name);
        client
    }

    /// Says hello as a user of the fixture.
    pub fn hello(&mut self, room: &str, name: &str) {
        self.send(json!({"room": room, "session_id": name}));
    }

    pub fn send(&mut self, message: Value) {
        self.send_text(&message.to_string());
    }

    pub fn send_text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).unwrap();
    }

    /// Sends a request with an id of its own, and answers what comes back with that; all that comes
    /// before is passed over.
    pub fn request(&mut self, task: &str, data: Value) -> Value {
        self.last_id += 1;
        let id = self.last_id;
        self.send(json!({"task": task, "data": data, "id": id}));
        self.until(&format!("the answer of {task}"), |frame| frame["id"] == id)
    }

    /// The next message of any kind, or why there is none.
    fn message(&mut self, end: Instant) -> Result<Message, String> {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err("the time is over".into());
        }
        self.socket.get_ref().set_read_timeout(Some(left)).unwrap();
        self.socket.read().map_err(|error| error.to_string())
    }

    /// The text of the next frame.
    pub fn read_text(&mut self) -> String {
        let end = Instant::now() + deadline();
        loop {
            match self.message(end) {
                Ok(Message::Text(text)) => return text.to_string(),
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                other => panic!("{other:?} instead of a text"),
            }
        }
    }

    pub fn read(&mut self) -> Value {
        serde_json::from_str(&self.read_text()).unwrap()
    }

    /// Reads until there is a frame that `is_it`, or fails the test.
    pub fn until(&mut self, what: &str, mut is_it: impl FnMut(&Value) -> bool) -> Value {
        let (end, mut seen) = (Instant::now() + deadline(), Vec::new());
        loop {
            match self.message(end) {
                Ok(Message::Text(text)) => {
                    let frame: Value = serde_json::from_str(text.as_str()).unwrap();
                    if is_it(&frame) {
                        return frame;
                    }
                    seen.push(frame);
                }
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                other => panic!("{other:?} instead of {what}, after {seen:?}"),
            }
        }
    }

    /// Reads until a list names somebody.
    pub fn until_listed(&mut self, name: &str) -> Value {
        self.until(&format!("a list with {name}"), |frame| {
            let names = frame["data"].as_array().filter(|_| frame["msgtype"] == "user_list");
            names.is_some_and(|names| names.iter().any(|one| one == name))
        })
    }

    /// The next frames are these, to the letter.
    pub fn expect(&mut self, frames: &[&str]) {
        for frame in frames {
            assert_eq!(self.read_text(), *frame);
        }
    }

    /// Nothing waits for it: what comes next is the answer to this.
    pub fn expect_nothing(&mut self) {
        self.send_text(r#"{"task":"TaskEcho","data":"and nothing before","id":"nothing"}"#);
        self.expect(&[r#"{"task":"TaskEcho","data":"and nothing before","id":"nothing"}"#]);
    }

    /// Reads to the close frame: its code and reason.
    pub fn closed_with(&mut self) -> (u16, String) {
        let end = Instant::now() + deadline();
        loop {
            match self.message(end) {
                Ok(Message::Close(Some(frame))) => return (frame.code.into(), frame.reason.to_string()),
                Ok(Message::Close(None)) => panic!("a close frame without a code"),
                Ok(_) => {}
                Err(error) => panic!("{error} instead of a close frame"),
            }
        }
    }
}

pub const TEXT: u8 = 0x81;
pub const BINARY: u8 = 0x82;
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8a;

const MASK: [u8; 4] = [1, 2, 3, 4];

/// The head of an upgrade, with further lines.
pub fn head(path: &str, lines: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: zeph.example:81\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{lines}\r\n"
    )
}

/// The head of a client's frame that claims this length.
pub fn frame_head(first: u8, length: u64) -> Vec<u8> {
    let mut head = vec![first];
    match length {
        0..126 => head.push(0x80 | length as u8),
        126..65_536 => {
            head.push(0x80 | 126);
            head.extend((length as u16).to_be_bytes());
        }
        _ => {
            head.push(0x80 | 127);
            head.extend(length.to_be_bytes());
        }
    }
    head.extend(MASK);
    head
}

/// A client's frame; `first` has the final bit and the opcode.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = frame_head(first, payload.len() as u64);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// A connection of which every byte is made by hand.
pub struct Raw {
    pub stream: TcpStream,
    unread: Vec<u8>,
}

impl Raw {
    /// A connection, and nothing more.
    pub fn open(server: &TestServer) -> Self {
        Self { stream: connect(server), unread: Vec::new() }
    }

    /// One that sent this, and what was answered up to the blank line.
    pub fn ask(server: &TestServer, head: &str) -> (Self, String) {
        let mut raw = Self::open(server);
        raw.write(head.as_bytes());
        let answer = raw.read_head();
        (raw, answer)
    }

    /// One that has upgraded.
    pub fn connect(server: &TestServer) -> Self {
        let (raw, answer) = Self::ask(server, &head("/ws", ""));
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        raw
    }

    /// One that has joined a room, as a user of the fixture where it names one; the list has been read.
    pub fn join(server: &TestServer, room: &str, name: Option<&str>) -> Self {
        let mut raw = Self::connect(server);
        raw.text(&json!({"room": room, "session_id": name}).to_string());
        while !raw.read_text().contains("\"user_list\"") {}
        raw
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The same towards a server that may have had enough.
    pub fn try_write(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    pub fn send(&mut self, first: u8, payload: &[u8]) {
        self.write(&frame(first, payload));
    }

    pub fn text(&mut self, text: &str) {
        self.send(TEXT, text.as_bytes());
    }

    /// Says that nothing more will come.
    pub fn finish(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Reads some more. False: it has ended.
    fn fill(&mut self, end: Instant) -> bool {
        let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.stream.set_read_timeout(Some(left)).unwrap();
        let mut bytes = [0; 64 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(count) => {
                self.unread.extend_from_slice(&bytes[..count]);
                assert!(Instant::now() < end, "the time is over, after {} bytes", self.unread.len());
                true
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) if error.kind() == ErrorKind::Interrupted => true,
            Err(error) => panic!("{error}, after {:?}", String::from_utf8_lossy(&self.unread)),
        }
    }

    /// What comes up to a blank line, or to the end.
    pub fn read_head(&mut self) -> String {
        let end = Instant::now() + deadline();
        loop {
            let blank = self.unread.windows(4).position(|window| window == b"\r\n\r\n");
            let length = blank.map(|at| at + 4);
            if length.is_some() || !self.fill(end) {
                let length = length.unwrap_or(self.unread.len());
                return String::from_utf8(self.unread.drain(..length).collect()).unwrap();
            }
        }
    }

    /// The same if something comes within a time.
    pub fn read_head_within(&mut self, limit: Duration) -> Option<String> {
        self.stream.set_read_timeout(Some(limit)).unwrap();
        match self.stream.peek(&mut [0]) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            _ => Some(self.read_head()),
        }
    }

    /// What comes up to the end.
    pub fn read_rest(&mut self) -> String {
        let end = Instant::now() + deadline();
        while self.fill(end) {}
        String::from_utf8_lossy(&std::mem::take(&mut self.unread)).into_owned()
    }

    /// The next frame: its first byte and its payload. None: the end.
    pub fn read_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let end = Instant::now() + deadline();
        loop {
            if let Some((head, length)) = lengths(&self.unread)
                && self.unread.len() >= head + length
            {
                let first = self.unread[0];
                let payload = self.unread[head..head + length].to_vec();
                self.unread.drain(..head + length);
                return Some((first, payload));
            }
            if !self.fill(end) {
                return None;
            }
        }
    }

    /// The text of the next frame, but for pings.
    pub fn read_text(&mut self) -> String {
        let end = Instant::now() + deadline();
        while Instant::now() < end {
            match self.read_frame() {
                Some((TEXT, text)) => return String::from_utf8(text).unwrap(),
                Some((PING, _)) => {}
                Some((first, payload)) => panic!("{first:#x} {:?}", String::from_utf8_lossy(&payload)),
                None => panic!("the end instead of a text"),
            }
        }
        panic!("nothing but pings came");
    }

    pub fn read(&mut self) -> Value {
        serde_json::from_str(&self.read_text()).unwrap()
    }

    /// Reads to the close frame, behind which is nothing but the end: its code.
    pub fn closed_with(&mut self) -> u16 {
        let end = Instant::now() + deadline();
        while Instant::now() < end {
            match self.read_frame() {
                Some((CLOSE, payload)) => {
                    assert_eq!(self.read_frame(), None, "the last frame");
                    return u16::from_be_bytes([payload[0], payload[1]]);
                }
                Some(_) => {}
                None => panic!("the end without a close frame"),
            }
        }
        panic!("no close frame came");
    }
}

/// Lengths of head and payload of the server's frame that these bytes begin with.
fn lengths(bytes: &[u8]) -> Option<(usize, usize)> {
    match *bytes.get(1)? {
        126 => Some((4, usize::from(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?)))),
        127 => Some((10, u64::from_be_bytes(*bytes.get(2..)?.first_chunk()?) as usize)),
        short => Some((2, usize::from(short))),
    }
}
