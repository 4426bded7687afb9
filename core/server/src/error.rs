//! What can go wrong with the server as a whole, and with which exit code the process then ends.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::settings::Faults;

/// The exit codes of all three commands.
pub mod exit {
    /// All well.
    pub const OK: u8 = 0;
    /// It failed; the message says why.
    pub const FAILED: u8 = 1;
    /// Wrong words on the command line, or wrong settings.
    pub const USAGE: u8 = 2;
    /// A server with this lock file runs already.
    pub const RUNNING: u8 = 3;
    /// Nobody listens on the control socket, or it may not be used.
    pub const UNREACHABLE: u8 = 4;
    /// No such service, plugin or verb.
    pub const NOT_FOUND: u8 = 5;
    /// It did not come to an end in time.
    pub const TIMEOUT: u8 = 6;
}

/// Why the server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings file says something that cannot be.
    #[error("{0}")]
    Settings(#[from] Faults),
    /// Another server holds the lock.
    #[error(
        "already running: {holder} holds {lock}\n  to stop it: zephserver-stop {socket}\n  to run a second \
         server, give it a LOCK_FILE of its own", lock = .lock.display(), socket = .socket.display()
    )]
    Running {
        /// The lock file.
        lock: PathBuf,
        /// Pid and start time.
        holder: String,
        /// Where the other one listens, by our settings.
        socket: PathBuf,
    },
    /// Something that the server needs of the machine is not to be had.
    #[error("{what} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried: "cannot open the log file".
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the machine said.
        source: std::io::Error,
    },
    /// The address of `[server] http_address` is not to be had.
    #[error(
        "cannot listen on {address} (http_address): {source}; `ss -ltnp 'sport = :{port}'` shows who does",
        port = .address.port()
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the machine said.
        source: std::io::Error,
    },
    /// A service did not start.
    #[error("{0}")]
    Start(String),
    /// A stop was asked for while the server still started.
    #[error("stopped while it started")]
    Stopped,
}

impl Error {
    /// The exit code of a process that ends with this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Settings(_) => exit::USAGE,
            Self::Running { .. } => exit::RUNNING,
            Self::Io { .. } | Self::Listen { .. } | Self::Start(_) => exit::FAILED,
            Self::Stopped => exit::OK,
        }
    }

    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }
}
