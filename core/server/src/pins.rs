//! Which plugins were rolled back, and to what. That holds over restarts of the server, for as long as the
//! dropped-in file that was left behind stays as it is.
//!
//! The reload thread changes them, and the bootstrap when all services are ready. Everybody may read, and waits for
//! no disk.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::copies::Copies;
use crate::loader::{Checked, check_kept, owned_by_us, short};

/// The last second that can be shown: the year 9999 ends.
const LAST_SECOND: u64 = 253_402_300_799;

/// Which build is loaded instead of which file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// SHA-256 of the dropped-in file that was left behind, in hex; empty where it could not be read.
    pub file: String,
    /// SHA-256 of the build that runs instead.
    pub build: String,
    /// Since when, in seconds since 1970.
    pub at: u64,
}

impl Pin {
    /// From now on this build is loaded instead of that file.
    pub fn new(file: &str, build: &str) -> Self {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self { file: file.into(), build: build.into(), at }
    }
}

/// The pins of one server, by library.
pub struct Pins {
    path: PathBuf,
    pins: Mutex<BTreeMap<String, Pin>>,
    /// Those that are over, as was seen when their libraries were loaded. They end when that build serves.
    over: Mutex<BTreeMap<String, Pin>>,
    /// Held by whoever changes them, until that is on the disk.
    turn: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read(path: &Path) -> Result<BTreeMap<String, Pin>, String> {
    if matches!(path.symlink_metadata(), Err(error) if error.kind() == ErrorKind::NotFound) {
        return Ok(BTreeMap::new());
    }
    owned_by_us(path)?;
    let bytes = fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    serde_json::from_slice(&bytes).map_err(|error| format!("it says nothing about rollbacks: {error}"))
}

fn write(path: &Path, pins: &BTreeMap<String, Pin>) -> io::Result<()> {
    if pins.is_empty() {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    // Nobody else can read such a file.
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new().prefix("pins.json.").tempfile_in(folder)?;
    file.write_all(&serde_json::to_vec_pretty(pins)?)?;
    file.as_file().sync_data()?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

impl Pins {
    /// Reads `pins.json` of this folder. What cannot be read is said, set aside, and forgotten.
    pub fn read(state_path: &Path) -> Self {
        let path = state_path.join("pins.json");
        let pins = read(&path).unwrap_or_else(|reason| {
            let aside = path.with_extension("json.bad");
            let fate = match fs::rename(&path, &aside) {
                Ok(()) => format!("it is now {}", aside.display()),
                Err(error) => format!("and it cannot be renamed: {error}"),
            };
            tracing::error!("{}: {reason}; rollbacks are forgotten, {fate}", path.display());
            BTreeMap::new()
        });
        Self { path, pins: Mutex::new(pins), over: Mutex::default(), turn: Mutex::new(()) }
    }

    /// The pin of a library.
    pub fn get(&self, library: &str) -> Option<Pin> {
        lock(&self.pins).get(library).cloned()
    }

    /// Pins a library. An error: only until the server ends, which was said in the log.
    pub fn set(&self, library: &str, pin: Pin) -> io::Result<()> {
        self.change(|pins| drop(pins.insert(library.into(), pin)))
    }

    /// The library's dropped-in file counts again. An error: as above.
    pub fn end(&self, library: &str) -> io::Result<()> {
        match self.get(library) {
            Some(_) => self.change(|pins| drop(pins.remove(library))),
            None => Ok(()),
        }
    }

    /// What [`Pins::choose`] chose serves: a pin that was over by then ends.
    pub fn settle(&self, library: &str) {
        let Some(over) = lock(&self.over).remove(library) else { return };
        // Not a newer one. What cannot be written was said, and the next start finds it to be over once more.
        let _ = self.change(|pins| pins.retain(|name, pin| name != library || *pin != over));
    }

    fn change(&self, f: impl FnOnce(&mut BTreeMap<String, Pin>)) -> io::Result<()> {
        let _turn = lock(&self.turn);
        let changed = {
            let mut pins = lock(&self.pins);
            f(&mut pins);
            pins.clone()
        };
        write(&self.path, &changed).inspect_err(|error| {
            let path = self.path.display();
            tracing::error!("{path} cannot be written: {error}; a restart does not know what changed");
        })
    }

    /// What is said of a library that was rolled back.
    pub fn text(&self, library: &str) -> Option<String> {
        let pin = self.get(library).filter(|pin| lock(&self.over).get(library) != Some(pin))?;
        let since = UNIX_EPOCH + Duration::from_secs(pin.at.min(LAST_SECOND));
        let since = humantime::format_rfc3339_seconds(since);
        let build = short(&pin.build);
        Some(format!("rolled back to {build} since {since}; zephserver reload {library} ends it"))
    }

    /// What is to be loaded of a library: its dropped-in file, or the kept build that was rolled back to. A pin
    /// that is over stays on the disk until [`Pins::settle`]: nothing serves yet.
    pub fn choose(&self, copies: &Copies, library: &str, file: Checked) -> Checked {
        let Some(pin) = self.get(library) else { return file };
        if pin.file != file.hash {
            tracing::warn!("{library}: its file has changed: the rollback to {} is over", short(&pin.build));
            lock(&self.over).insert(library.into(), pin);
            return file;
        }
        let kept = copies.find(library, &pin.build).ok_or_else(|| "it is not kept any more".to_string());
        match kept.and_then(|kept| check_kept(&kept).map_err(|refusal| refusal.to_string())) {
            Ok(kept) => {
                let (build, left) = (short(&kept.hash), short(&file.hash));
                tracing::warn!(
                    "{library}: build {build} is loaded, to which it was rolled back, and not its file ({left}); to \
                     load that: zephserver reload {library}"
                );
                kept.in_place_of(&file.dropped)
            }
            Err(reason) => {
                let build = short(&pin.build);
                tracing::error!(
                    "{library}: not rolled back to {build} any more, its file is loaded: {reason}"
                );
                lock(&self.over).insert(library.into(), pin);
                file
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn pins_outlive_a_server() {
        let folder = tempfile::tempdir().unwrap();
        let pins = Pins::read(folder.path());
        assert_eq!(pins.get("a"), None);
        let pin = Pin { file: "f".repeat(64), build: "b".repeat(64), at: 0 };
        pins.set("a", pin.clone()).unwrap();
        let mode = folder.path().join("pins.json").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let pins = Pins::read(folder.path());
        assert_eq!(pins.get("a"), Some(pin));
        let text = "rolled back to bbbbbbbbbbbb since 1970-01-01T00:00:00Z; zephserver reload a ends it";
        assert_eq!(pins.text("a").unwrap(), text);
        pins.end("a").unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    }

    #[test]
    fn a_pin_that_is_over_ends_when_something_serves() {
        let folder = tempfile::tempdir().unwrap();
        let (copies, pins) = (Copies::open(folder.path()).unwrap(), Pins::read(folder.path()));
        pins.set("a", Pin::new("another file", "build")).unwrap();
        let file = folder.path().join("liba.so");
        fs::copy("/proc/self/exe", &file).unwrap();
        let checked = crate::loader::check(&file).unwrap();
        let hash = checked.hash.clone();
        assert_eq!(pins.choose(&copies, "a", checked).hash, hash);
        assert_eq!(pins.text("a"), None);
        assert!(Pins::read(folder.path()).get("a").is_some(), "nothing serves yet");
        pins.settle("a");
        assert_eq!((pins.get("a"), Pins::read(folder.path()).get("a")), (None, None));
    }

    #[test]
    fn what_cannot_be_written_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let pins = Pins::read(&folder.path().join("gone"));
        assert!(pins.set("a", Pin::new("f", "b")).is_err());
        assert!(pins.get("a").is_some(), "until the server ends it holds all the same");
    }

    #[test]
    fn a_time_that_cannot_be_is_shown_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let pins = Pins::read(folder.path());
        pins.set("a", Pin { file: String::new(), build: "b".into(), at: u64::MAX }).unwrap();
        assert!(pins.text("a").unwrap().contains("since 9999-12-31"));
    }

    #[test]
    fn what_cannot_be_read_is_set_aside() {
        for text in ["{", "[]", "{\"a\": {\"file\": 7}}"] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("pins.json"), text).unwrap();
            let pins = Pins::read(folder.path());
            assert_eq!(pins.get("a"), None);
            assert_eq!(fs::read_to_string(folder.path().join("pins.json.bad")).unwrap(), text);
            assert!(!folder.path().join("pins.json").exists());
        }
    }
}
