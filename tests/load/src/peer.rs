//! A raw peer as a process of its own, so that its CPU time can be told from ours.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use crate::raw::Work;
use crate::{DEADLINE, Result};

/// A raw peer that runs. Ends with this value.
pub struct RawPeer {
    child: Child,
}

impl RawPeer {
    /// Starts this same program as a raw peer.
    pub fn spawn(work: Work, connections: usize) -> Result<Self> {
        let verb = match work {
            Work::Echo => "raw-echo",
            Work::Send => "raw-send",
        };
        let child = Command::new(std::env::current_exe()?)
            .args([verb, "--connections", &connections.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        Ok(Self { child })
    }

    /// The port that it listens on; can be asked once.
    pub fn port(&mut self) -> Result<u16> {
        let stdout = self.child.stdout.take().ok_or("the raw peer's port was asked for twice")?;
        let (sender, receiver) = mpsc::channel();
        // A read of a pipe has no deadline; a wait for a thread has.
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = sender.send(line);
        });
        let line = receiver
            .recv_timeout(DEADLINE)
            .map_err(|_| format!("the raw peer did not name its port in {} s", DEADLINE.as_secs()))?;
        let port = line.trim().parse::<u16>();
        port.map_err(|_| format!("the raw peer said {line:?} instead of its port").into())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for RawPeer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
