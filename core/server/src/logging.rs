//! The log: one line an event, to a file that is rotated and can be reopened at any time, or to stderr.
//!
//! A process has one tracing subscriber for ever, but may start several servers one after the other:
//! level and target are therefore state of the process, which each start sets anew.

use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing::Level;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::{filter, fmt};

use crate::error::Error;
use crate::log_file::{LogFile, Rotation};

static LEVEL: AtomicU32 = AtomicU32::new(3);
static LOST: AtomicU64 = AtomicU64::new(0);
/// None: stderr.
static TARGET: Mutex<Option<LogFile>> = Mutex::new(None);

/// Logs from now on at this level to this file; None: to stderr.
pub fn start(level: Level, path: Option<&Path>, rotation: Rotation) -> Result<(), Error> {
    let open =
        |path: &Path| LogFile::open(path, rotation).map_err(Error::io("cannot open the log file", path));
    *TARGET.lock().unwrap_or_else(PoisonError::into_inner) = path.map(open).transpose()?;
    set_level(level);
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(install);
    Ok(())
}

/// Logs from now on at this level.
pub fn set_level(level: Level) {
    LEVEL.store(number(level), Ordering::Relaxed);
}

fn install() {
    let enabled = filter::dynamic_filter_fn(|metadata, _| number(*metadata.level()) <= self::level());
    let lines = fmt::layer().with_ansi(false).with_writer(|| Line).with_target(false).with_filter(enabled);
    // Refused only where the program that embeds us has a subscriber of its own: its choice.
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(lines));
}

/// Opens the log file anew, after somebody moved it away.
pub fn reopen() -> io::Result<()> {
    let mut target = TARGET.lock().unwrap_or_else(PoisonError::into_inner);
    target.as_mut().map_or(Ok(()), LogFile::reopen)
}

/// The most detailed level that is kept: 1 error … 5 trace.
pub fn level() -> u32 {
    LEVEL.load(Ordering::Relaxed)
}

/// Lines that could not be written.
pub fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

fn number(level: Level) -> u32 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

/// A line as a plugin sent it.
pub fn plugin_line(level: u32, who: &str, target: &str, message: &str) {
    // Line breaks would let a message pass for lines of others.
    let message = message.trim_end().replace('\n', "\n    ");
    match level {
        0 | 1 => tracing::error!("{who}: {target}: {message}"),
        2 => tracing::warn!("{who}: {target}: {message}"),
        3 => tracing::info!("{who}: {target}: {message}"),
        4 => tracing::debug!("{who}: {target}: {message}"),
        _ => tracing::trace!("{who}: {target}: {message}"),
    }
}

/// Writes one line to wherever lines go at present.
struct Line;

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut target = TARGET.lock().unwrap_or_else(PoisonError::into_inner);
        let written = match target.as_mut() {
            Some(file) => file.write(line),
            None => io::stderr().write_all(line),
        };
        if written.is_err() {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
