//! The key that all nodes of a cluster share. Whoever has it can pretend to be any node of it.

use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hkdf::Hkdf;
use sha2::Sha256;

/// Bytes of a key.
const LENGTH: usize = 32;
/// Keys of a file at most.
const MOST: usize = 8;

/// One key.
#[derive(Clone)]
pub struct Key {
    secret: [u8; LENGTH],
    /// Tells keys apart on the wire, and says nothing of the key.
    pub(crate) id: u8,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({:02x})", self.id)
    }
}

/// The keys that are accepted; the first is the one that this node uses itself.
#[derive(Clone, Debug)]
pub struct Keys(Vec<Key>);

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("key file {path}: {what}", path = path.display())]
pub struct KeyError {
    path: PathBuf,
    what: String,
}

impl Key {
    fn new(secret: [u8; LENGTH]) -> Self {
        let mut key = Self { secret, id: 0 };
        key.id = key.derive("id")[0];
        key
    }

    /// A key for one purpose.
    pub(crate) fn derive(&self, purpose: &str) -> [u8; LENGTH] {
        let mut derived = [0; LENGTH];
        // Fails for lengths that are too large only.
        let _ = Hkdf::<Sha256>::new(Some(b"zephserver cluster 1"), &self.secret)
            .expand(purpose.as_bytes(), &mut derived);
        derived
    }

    fn read(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 2 * LENGTH || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let mut secret = [0; LENGTH];
        for (byte, at) in secret.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
        }
        Some(Self::new(secret))
    }
}

impl Keys {
    /// The key that everybody knows: for nodes on one machine that were given none.
    pub fn of_everybody() -> Self {
        Self(vec![Key::new([0; LENGTH])])
    }

    /// Those of a file: one in a line, as `zephserver cluster key` makes them. The first is used, all are
    /// accepted: so a new one can be brought in node by node. Nobody but its owner may read the file.
    pub fn read(file: &Path) -> Result<Self, KeyError> {
        let fault = |what: String| KeyError { path: file.into(), what };
        let metadata = std::fs::metadata(file).map_err(|error| {
            fault(format!(
                "{error}; make one with `zephserver cluster key FILE`, and give all nodes the same"
            ))
        })?;
        let us = std::fs::metadata("/proc/self").map_or(u32::MAX, |metadata| metadata.uid());
        if metadata.uid() != us && metadata.uid() != 0 {
            return Err(fault(format!(
                "it belongs to uid {}, this server is uid {us}: chown it",
                metadata.uid()
            )));
        }
        if metadata.mode() & 0o077 != 0 {
            let mode = metadata.mode() & 0o777;
            return Err(fault(format!("others may use it (mode {mode:03o}): chmod 600 {}", file.display())));
        }
        let text = std::fs::read_to_string(file).map_err(|error| fault(error.to_string()))?;
        let lines = text.lines().map(str::trim).enumerate();
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let keys: Vec<Key> = lines
            .map(|(at, line)| {
                let what = || fault(format!("line {}: a key is {} hexadecimal digits", at + 1, 2 * LENGTH));
                Key::read(line).ok_or_else(what)
            })
            .collect::<Result<_, _>>()?;
        for (at, key) in keys.iter().enumerate() {
            if keys[..at].iter().any(|known| known.id == key.id) {
                // One in 256 pairs; on the wire nobody could tell which is meant.
                return Err(fault("two of its keys cannot be told apart: make another one".into()));
            }
        }
        match keys.len() {
            0 => Err(fault("there is no key in it".into())),
            1..=MOST => Ok(Self(keys)),
            count => Err(fault(format!("{count} keys; {MOST} at most are accepted at a time"))),
        }
    }

    /// Writes a file with a new key that only its owner can read. Never replaces one.
    pub fn make(file: &Path) -> Result<(), KeyError> {
        let fault = |what: String| KeyError { path: file.into(), what };
        let mut secret = [0; LENGTH];
        getrandom::fill(&mut secret).map_err(|error| fault(error.to_string()))?;
        let line: String = secret.iter().map(|byte| format!("{byte:02x}")).chain(["\n".into()]).collect();
        let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
        made.and_then(|mut file| std::io::Write::write_all(&mut file, line.as_bytes()))
            .map_err(|error| fault(error.to_string()))
    }

    /// The one that this node uses.
    pub(crate) fn own(&self) -> &Key {
        &self.0[0]
    }

    /// All that are accepted.
    pub(crate) fn all(&self) -> &[Key] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_file_is_made_once_and_read_by_its_owner_only() {
        let folder = std::env::temp_dir().join(format!("zephserver-key-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let file = folder.join("cluster.key");
        assert!(Keys::read(&file).unwrap_err().to_string().contains("zephserver cluster key"));
        Keys::make(&file).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        let keys = Keys::read(&file).unwrap();
        assert!(Keys::make(&file).is_err(), "a key is never lost by making another");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(!format!("{keys:?}").contains(&text[..8]), "secrets are not printed");
        std::fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        assert!(Keys::read(&file).unwrap_err().to_string().contains("chmod 600"));
        std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&file, format!("# new\n{}\n# old\n{text}", "0f".repeat(32))).unwrap();
        let both = Keys::read(&file).unwrap();
        assert_eq!((both.all().len(), both.all()[1].secret), (2, keys.own().secret));
        for wrong in ["", "# none\n", "0f", &"0g".repeat(32)] {
            std::fs::write(&file, wrong).unwrap();
            assert!(Keys::read(&file).is_err(), "{wrong}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
