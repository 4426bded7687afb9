//! Revocations in a file: what a server that starts anew begins with, and when it is written.

use std::fs::{File, OpenOptions, remove_file, rename};
use std::io::{ErrorKind, Result as IoResult, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use zephserver_plugin::contract::session::Revoked;
use zephserver_plugin::{Error, Result};

/// What other nodes say is kept after this time: together with all that comes until then.
pub const PAUSE: Duration = Duration::from_millis(200);

/// Since when something is to be kept.
#[derive(Debug, Default)]
pub struct Owed(Option<Instant>);

/// When something is to be kept.
#[derive(Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing is, or a timer is set for it.
    Nothing,
    /// After [`PAUSE`]: a timer is to be set.
    Later,
    /// The timer is late, or lost.
    Now,
}

impl Owed {
    /// A word has come. `is_new`: something in it is to be kept.
    pub fn owe(&mut self, is_new: bool, now: Instant) -> Due {
        match self.0 {
            Some(since) if now.saturating_duration_since(since) >= PAUSE => Due::Now,
            None if is_new => {
                self.0 = Some(now);
                Due::Later
            }
            Some(_) | None => Due::Nothing,
        }
    }

    /// It is kept now. False: nothing was to be.
    pub fn take(&mut self) -> bool {
        self.0.take().is_some()
    }
}

/// What a file keeps; nothing where it does not exist yet.
pub fn read(file: &Path) -> Result<Vec<Revoked>> {
    let wrong = |what: String| {
        Error::invalid(format!(
            "[session] revocations_file {}: {what}; mend it, or remove it to forget what was revoked",
            file.display()
        ))
    };
    match std::fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(wrong(error.to_string())),
    }
}

/// Replaces what it keeps: whoever reads it sees all of the old or all of the new.
pub fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    replace(file, bytes).map_err(|error| {
        Error::internal(format!(
            "[session] revocations_file {} cannot be written: {error}; what is revoked counts until the \
             service or the server is started anew",
            file.display()
        ))
    })
}

fn replace(file: &Path, bytes: &[u8]) -> IoResult<()> {
    let mut beside = file.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // One that was left half written, perhaps with other rights.
    match remove_file(&beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    new.write_all(bytes)?;
    new.sync_all()?;
    rename(&beside, file)?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_comes_at_once_is_kept_at_once_and_late_by_no_more_than_a_pause() {
        let (mut owed, start) = (Owed::default(), Instant::now());
        assert_eq!(owed.owe(false, start), Due::Nothing, "nothing new");
        assert_eq!(owed.owe(true, start), Due::Later);
        let soon = start + PAUSE / 2;
        assert_eq!((owed.owe(true, soon), owed.owe(false, soon)), (Due::Nothing, Due::Nothing));
        assert_eq!(owed.owe(false, start + PAUSE), Due::Now, "the timer has not come");
        assert!(owed.take() && !owed.take());
        assert_eq!(owed.owe(true, start + PAUSE), Due::Later, "it is owed anew");
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_read_by_its_owner_only() {
        let folder = std::env::temp_dir().join(format!("zephserver-revocations-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let file = folder.join("revocations.json");
        assert_eq!(read(&file).unwrap(), []);
        std::fs::write(folder.join("revocations.json.new"), "half").unwrap();
        let revoked = [Revoked { user: "7".into(), before: 9 }];
        for _ in 0..2 {
            write(&file, &serde_json::to_vec(&revoked).unwrap()).unwrap();
            assert_eq!(read(&file).unwrap(), revoked);
            assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "nothing is left beside it");
        std::fs::write(&file, "{").unwrap();
        assert!(read(&file).unwrap_err().text.contains("revocations.json"));
        std::fs::remove_dir_all(&folder).unwrap();
        let error = write(&file, b"[]").unwrap_err();
        assert!(error.text.contains("cannot be written"), "{error}");
    }
}
