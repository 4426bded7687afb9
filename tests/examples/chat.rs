//! A chat client for the terminal: `chat ROOM [PORT]`. Lines that are typed are said to the room.
#![allow(missing_docs)]

use std::io::{BufRead, ErrorKind};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use tungstenite::{Error, Message, WebSocket};

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let room = words.next().unwrap_or_else(|| "lobby".into());
    let port = words.next().unwrap_or_else(|| "8080".into());
    if let Err(error) = chat(&room, &port) {
        eprintln!("chat: {error}; is a server running? ./scripts/start");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn chat(room: &str, port: &str) -> Result<(), Box<dyn std::error::Error>> {
    let stream = TcpStream::connect(format!("127.0.0.1:{port}"))?;
    let (mut socket, _) = tungstenite::client(format!("ws://127.0.0.1:{port}/ws"), stream)?;
    socket.get_ref().set_read_timeout(Some(Duration::from_millis(50)))?;
    socket.send(Message::text(json!({"room": room}).to_string()))?;
    println!("You are in room `{room}`. Type a line to say it; end with Ctrl-D.");
    let (typed, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if typed.send(line).is_err() {
                return;
            }
        }
    });
    loop {
        match lines.try_recv() {
            Ok(line) => {
                let say = json!({"task": "chat.say", "data": {"text": line}});
                socket.send(Message::text(say.to_string()))?;
            }
            Err(std::sync::mpsc::TryRecvError::Disconnected) => {
                // What was said last still comes back.
                hear(&mut socket)?;
                return Ok(socket.close(None)?);
            }
            Err(std::sync::mpsc::TryRecvError::Empty) => {}
        }
        hear(&mut socket)?;
    }
}

/// Prints what comes within the socket's timeout.
fn hear(socket: &mut WebSocket<TcpStream>) -> Result<(), Error> {
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => show(&serde_json::from_str(&text).unwrap_or(Value::Null)),
            Ok(_) => {}
            Err(Error::Io(error)) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
}

fn show(frame: &Value) {
    if frame["task"] == "chat.say" {
        let from = frame["data"]["from"].as_str().unwrap_or("somebody");
        println!("{from}: {}", frame["data"]["text"].as_str().unwrap_or_default());
    } else {
        println!("* {frame}");
    }
}
