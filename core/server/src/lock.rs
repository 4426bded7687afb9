//! One server for each lock file. The lock is the operating system's, so it ends with the process,
//! however that ends; the text inside is for people.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use fs2::FileExt;

use crate::error::Error;

/// Held for as long as the server runs. The file goes when it is dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock. `socket` is named in the error, for whoever wants to stop the other one.
    pub fn take(path: &Path, socket: &Path) -> Result<Self, Error> {
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
                .map_err(Error::io("cannot open the lock file", path))?;
            if let Err(error) = file.try_lock_exclusive() {
                return Err(match error.kind() {
                    std::io::ErrorKind::WouldBlock => {
                        let (lock, socket) = (path.to_path_buf(), socket.to_path_buf());
                        Error::Running { lock, holder: read_holder(file), socket }
                    }
                    _ => Error::io("cannot lock", path)(error),
                });
            }
            // A server that just ended may have removed the file between our open and our lock.
            if !is_same_file(&file, path) {
                continue;
            }
            let mut lock = Self { file, path: path.to_path_buf() };
            lock.write_holder().map_err(Error::io("cannot write the lock file", path))?;
            return Ok(lock);
        }
    }

    fn write_holder(&mut self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        let now = humantime::format_rfc3339_seconds(SystemTime::now());
        writeln!(self.file, "pid {}, started {now}", std::process::id())?;
        self.file.sync_data()
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while it is still locked: nobody can have locked this file in between.
        let _ = std::fs::remove_file(&self.path);
        let _ = FileExt::unlock(&self.file);
    }
}

fn read_holder(mut file: File) -> String {
    let mut text = String::new();
    let _ = file.read_to_string(&mut text);
    match text.trim() {
        "" => "a process that has not written its pid yet".into(),
        holder => holder.into(),
    }
}

/// True where the path leads to the file that is open.
pub fn is_same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(ours), Ok(named)) => (ours.dev(), ours.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time_and_nothing_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let lock = Lock::take(&path, Path::new("/s")).unwrap();
        let second = Lock::take(&path, Path::new("/s")).unwrap_err();
        assert!(second.to_string().contains(&format!("pid {}", std::process::id())), "{second}");
        assert_eq!(second.exit_code(), crate::error::exit::RUNNING);
        drop(lock);
        assert!(!path.exists());
        drop(Lock::take(&path, Path::new("/s")).unwrap());
    }

    #[test]
    fn a_stale_file_is_no_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        std::fs::write(&path, "pid 1, started long ago").unwrap();
        Lock::take(&path, Path::new("/s")).unwrap();
    }
}
