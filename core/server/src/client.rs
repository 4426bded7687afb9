//! The other end of the control socket, for the commands and for tests.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Why a command got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error(
        "no server listens on {path} ({source}); start one: zephserver-start --settings FILE",
        path = path.display()
    )]
    NobodyListens {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It may not be used.
    #[error(
        "not permitted to use {path}: it belongs to uid {owner}, you are uid {us}; run the command as its owner",
        path = path.display()
    )]
    NotPermitted {
        /// The socket.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The uid of this process.
        us: u32,
    },
    /// The server went away while it should answer.
    #[error("the server at {path} went away without an answer: {source}", path = path.display())]
    NoAnswer {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Sends one command and waits for its answer, however long it takes.
pub fn ask(socket: &Path, line: &str) -> Result<Value, ClientError> {
    let mut stream = UnixStream::connect(socket).map_err(|error| unreachable(socket, error))?;
    let no_answer = |source| ClientError::NoAnswer { path: socket.into(), source };
    stream.write_all(format!("{line}\n").as_bytes()).map_err(no_answer)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(no_answer)?;
    serde_json::from_str(&answer).map_err(|error| no_answer(io::Error::other(error)))
}

fn unreachable(socket: &Path, source: io::Error) -> ClientError {
    let path = socket.to_path_buf();
    if source.kind() != io::ErrorKind::PermissionDenied {
        return ClientError::NobodyListens { path, source };
    }
    let uid = |path: &Path| std::fs::metadata(path).map_or(u32::MAX, |metadata| metadata.uid());
    ClientError::NotPermitted { owner: uid(socket), us: uid(Path::new("/proc/self")), path }
}
