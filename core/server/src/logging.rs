//! The log: one line an event, to a file that is rotated and can be reopened at any time, or to stderr.
//!
//! A process has one tracing subscriber for ever, but may start several servers one after the other:
//! level and target are therefore state of the process, which each start sets anew.

use std::borrow::Cow;
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
    let message = message.trim_end();
    match level {
        0 | 1 => tracing::error!("{who}: {target}: {message}"),
        2 => tracing::warn!("{who}: {target}: {message}"),
        3 => tracing::info!("{who}: {target}: {message}"),
        4 => tracing::debug!("{who}: {target}: {message}"),
        _ => tracing::trace!("{who}: {target}: {message}"),
    }
}

/// A line as it is written: breaks within it would let a text, perhaps a client's, pass for lines of others.
fn one_message(line: &[u8]) -> Cow<'_, [u8]> {
    let text = line.strip_suffix(b"\n").unwrap_or(line);
    if !text.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
        return Cow::Borrowed(line);
    }
    let mut whole = Vec::with_capacity(line.len() + 64);
    for byte in text {
        match byte {
            b'\n' => whole.extend_from_slice(b"\n    "),
            b'\r' => whole.extend_from_slice(b"\\r"),
            other => whole.push(*other),
        }
    }
    whole.push(b'\n');
    Cow::Owned(whole)
}

/// Writes one line to wherever lines go at present.
struct Line;

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let message = one_message(line);
        let mut target = TARGET.lock().unwrap_or_else(PoisonError::into_inner);
        let written = match target.as_mut() {
            Some(file) => file.write(&message),
            None => io::stderr().write_all(&message),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_passes_for_a_line_of_others() {
        assert_eq!(*one_message(b"a line\n"), *b"a line\n");
        let forged = one_message(b"bad: x\r\n2026-01-01T00:00:00Z  INFO a/A: forged\n");
        assert_eq!(*forged, *b"bad: x\\r\n    2026-01-01T00:00:00Z  INFO a/A: forged\n");
    }
}
