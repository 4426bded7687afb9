//! External control: the operator's door. A Unix socket that only its owner may use.
//!
//! A command is one line; it also ends with the input, or after 200 ms of silence (the original's
//! client sends `stop` without a newline). Every command gets one line of JSON: what it asked for, or
//! `{"error": {"code", "text"}}`. Nobody can stand in anybody's way: connections are bounded, and who
//! is silent makes room; `stop` needs no thread and no manager to be heard.

mod desk;
mod nodes;
mod past;

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use zeph_contract::Error;

pub use desk::Desk;

/// A command without its newline ends after this silence.
const SILENCE: Duration = Duration::from_millis(200);
/// Who says nothing at all is dropped after this time.
const IDLE: Duration = Duration::from_secs(30);
/// Who does not take its answer is dropped after this time.
const UNREAD: Duration = Duration::from_secs(5);
/// The longest command, in bytes.
const LONGEST: usize = 256 * 1024;
/// Connections at a time.
const CONNECTIONS: usize = 128;
/// Commands under way at a time; `stop` does not count.
const COMMANDS: usize = 32;

/// The open door.
pub struct Control {
    path: PathBuf,
    stopped: watch::Sender<Option<Value>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Control {
    /// Opens the socket, with rights for its owner only from its first moment, and answers until
    /// [`Control::close`]. A socket that a dead server left is replaced: the lock is ours.
    pub fn open(path: &Path, desk: Desk) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(COMMANDS)
            .build()?;
        let listener = {
            let _inside = runtime.enter();
            bind(path)?
        };
        let (stopped, when_stopped) = watch::channel(None);
        let thread = std::thread::Builder::new().name("zephserver-control".into()).spawn(move || {
            runtime.block_on(accept(listener, Arc::new(desk), when_stopped));
            runtime.shutdown_background();
        })?;
        Ok(Self { path: path.to_path_buf(), stopped, thread: Some(thread) })
    }

    /// Removes the socket's file: nobody new comes in.
    pub fn remove_file(&self) {
        let _ = std::fs::remove_file(&self.path);
    }

    /// Answers everybody who waits for the stop, then ends.
    pub fn close(mut self, answer: Value) {
        self.stopped.send_replace(Some(answer));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Bound under another name and renamed, so that it never stands there with wider rights. Takes the
/// place of a dead server's socket, and of nothing else.
fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Ok(there) = std::fs::symlink_metadata(path) {
        let text = match there.file_type().is_socket() {
            true if std::os::unix::net::UnixStream::connect(path).is_err() => None,
            true => Some("another server listens there; give this one a socket of its own"),
            false => Some("something else than a socket is there"),
        };
        if let Some(text) = text {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}", std::process::id()));
    let hidden = path.with_file_name(name);
    let _ = std::fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&hidden, path)?;
    Ok(listener)
}

/// One connection, as the door sees it.
struct Guest {
    task: AbortHandle,
    /// It has a command under way.
    is_served: Arc<AtomicBool>,
}

async fn accept(listener: UnixListener, desk: Arc<Desk>, mut stopped: watch::Receiver<Option<Value>>) {
    let mut guests: VecDeque<Guest> = VecDeque::new();
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.changed() => break,
        };
        guests.retain(|guest| !guest.task.is_finished());
        while tasks.try_join_next().is_some() {}
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, most likely: who is silent makes room.
            if let Some(at) = guests.iter().position(|guest| !guest.is_served.load(Ordering::Relaxed)) {
                guests.remove(at).inspect(|guest| guest.task.abort());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        if guests.len() >= CONNECTIONS {
            let silent = guests.iter().position(|guest| !guest.is_served.load(Ordering::Relaxed));
            guests.remove(silent.unwrap_or(0)).inspect(|guest| guest.task.abort());
        }
        let is_served = Arc::new(AtomicBool::new(false));
        let serve = serve(stream, desk.clone(), stopped.clone(), is_served.clone());
        guests.push_back(Guest { task: tasks.spawn(serve), is_served });
    }
    // Those who wait for the stop are answered; nobody else holds up the end.
    let _ = timeout(Duration::from_secs(1), async {
        guests.retain(|guest| guest.is_served.load(Ordering::Relaxed));
        while !guests.is_empty() && tasks.join_next().await.is_some() {
            guests.retain(|guest| !guest.task.is_finished());
        }
    })
    .await;
}

async fn serve(
    mut stream: UnixStream,
    desk: Arc<Desk>,
    stopped: watch::Receiver<Option<Value>>,
    is_served: Arc<AtomicBool>,
) {
    let mut buffer = Vec::new();
    loop {
        let line = match next_line(&mut stream, &mut buffer).await {
            Ok(Some(line)) => line,
            Ok(None) => return,
            Err(error) => {
                let _ = write(&mut stream, &error_json(&error)).await;
                return;
            }
        };
        if line.trim().is_empty() {
            continue;
        }
        is_served.store(true, Ordering::Relaxed);
        let answer = answer(&desk, line, stopped.clone()).await;
        let written = write(&mut stream, &answer).await;
        is_served.store(false, Ordering::Relaxed);
        if written.is_err() {
            return;
        }
    }
}

/// The next command; None at the end of the input.
async fn next_line(stream: &mut UnixStream, buffer: &mut Vec<u8>) -> Result<Option<String>, Error> {
    let text = |bytes: Vec<u8>| {
        String::from_utf8(bytes).map(Some).map_err(|_| Error::invalid("the command is not UTF-8"))
    };
    let mut searched = 0;
    loop {
        if let Some(end) = buffer[searched..].iter().position(|byte| *byte == b'\n') {
            let rest = buffer.split_off(searched + end + 1);
            return text(std::mem::replace(buffer, rest));
        }
        searched = buffer.len();
        if buffer.len() >= LONGEST {
            return Err(Error::invalid(format!("a command has at most {LONGEST} bytes")));
        }
        let patience = if buffer.is_empty() { IDLE } else { SILENCE };
        match timeout(patience, stream.read_buf(buffer)).await {
            Ok(Ok(1..)) => {}
            // Gone, reset, or silent: what came so far is the command.
            _ if buffer.is_empty() => return Ok(None),
            _ => return text(std::mem::take(buffer)),
        }
    }
}

async fn answer(desk: &Arc<Desk>, line: String, mut stopped: watch::Receiver<Option<Value>>) -> Value {
    if line.trim() == "stop" {
        desk.request_stop();
        let stopped = stopped.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone());
        return stopped.unwrap_or_else(|| json!({"state": "stopped"}));
    }
    let desk = desk.clone();
    let answered = tokio::task::spawn_blocking(move || desk.answer(line.trim())).await;
    match answered {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => error_json(&error),
        Err(_) => error_json(&Error::internal("the server panicked while it served this; see its log")),
    }
}

/// An error as it goes over the socket.
pub fn error_json(error: &Error) -> Value {
    json!({"error": {"code": error.code.name(), "text": error.text}})
}

async fn write(stream: &mut UnixStream, answer: &Value) -> io::Result<()> {
    let mut line = answer.to_string();
    line.push('\n');
    let unread = || io::Error::from(io::ErrorKind::TimedOut);
    timeout(UNREAD, stream.write_all(line.as_bytes())).await.map_err(|_| unread())?
}
