//! The log's file: put aside when it has grown too large, and opened anew where somebody moved it away.
//!
//! `logging.log` becomes `logging.log.1`, that one `logging.log.2`, and so on; the oldest goes. All of it
//! happens between two lines, under the lock that every line is written under: a line is in one file, and
//! whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::lock::is_same_file;

/// Old files that can be kept at most.
pub const MOST_LOG_FILES: u32 = 100;

/// The name of an old file of a log: 1 is the one before the present one.
pub fn rotated_log(log: &Path, number: u32) -> PathBuf {
    let mut name = log.as_os_str().to_os_string();
    name.push(format!(".{number}"));
    name.into()
}

/// When the file is put aside.
#[derive(Clone, Copy, Debug)]
pub struct Rotation {
    /// A line that would make the file larger than this goes into a new one, in bytes; 0: never.
    pub size: u64,
    /// Old files that are kept.
    pub files: u32,
}

/// The file that lines go into.
pub struct LogFile {
    path: PathBuf,
    /// The same without links: rotated files are beside the file, not beside a link to it.
    real: PathBuf,
    rotation: Rotation,
    file: File,
    /// Its bytes.
    size: u64,
    /// With more bytes than this it is rotated.
    limit: u64,
    /// It could not be rotated, and that was said.
    is_stuck: bool,
    /// It ends within a line: a disk was full.
    is_torn: bool,
}

impl LogFile {
    pub fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
        let metadata = file.metadata()?;
        // A device or a pipe is nothing that could be renamed.
        let limit = if rotation.size > 0 && metadata.is_file() { rotation.size } else { u64::MAX };
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.into());
        let (size, is_stuck, is_torn) = (metadata.len(), false, false);
        Ok(Self { path: path.into(), real, rotation, file, size, limit, is_stuck, is_torn })
    }

    /// Opens the file anew, after somebody moved it away.
    pub fn reopen(&mut self) -> io::Result<()> {
        *self = Self::open(&self.path, self.rotation)?;
        Ok(())
    }

    /// Writes a line; into a new file where it would make this one too large.
    pub fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size.saturating_add(line.len() as u64) > self.limit {
            self.make_room();
        }
        self.append(line)
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.is_torn {
            self.file.write_all(b"\n")?;
            (self.size, self.is_torn) = (self.size + 1, false);
        }
        let written = self.file.write_all(line);
        if written.is_ok() {
            self.size += line.len() as u64;
        } else if let Ok(metadata) = self.file.metadata() {
            // A part of it may be there: the next line is not to stand behind that.
            self.is_torn = metadata.len() > self.size;
            self.size = metadata.len();
        }
        written
    }

    /// Goes on with a new file, or says once why it cannot, and tries again a little later.
    fn make_room(&mut self) {
        let Err(reason) = self.rotate() else { return };
        if !std::mem::replace(&mut self.is_stuck, true) {
            let now = humantime::format_rfc3339_micros(SystemTime::now());
            let path = self.path.display();
            let line =
                format!("{now}  WARN the log is not rotated: {reason}; {path} grows until it can be\n");
            // Where this line cannot be written, the one after it cannot either, and that one is counted.
            let _ = self.append(line.as_bytes());
        }
        self.limit = self.size.saturating_add(self.rotation.size / 10);
    }

    fn rotate(&mut self) -> Result<(), String> {
        // Where somebody moved the file away, what has its name now is not ours to put aside.
        if is_same_file(&self.file, &self.real) {
            self.put_aside()?;
        }
        let new = Self::open(&self.real, self.rotation);
        let new = new.map_err(|error| format!("cannot open {}: {error}", self.real.display()))?;
        *self = Self { path: std::mem::take(&mut self.path), ..new };
        Ok(())
    }

    fn put_aside(&self) -> Result<(), String> {
        let old = |number| rotated_log(&self.real, number);
        let files = self.rotation.files;
        if files == 0 {
            let real = &self.real;
            return fs::remove_file(real)
                .map_err(|error| format!("cannot remove {}: {error}", real.display()));
        }
        // Up to the first gap: what a try that failed has moved already is not moved once more.
        let is_free = |number: &u32| old(*number).symlink_metadata().is_err();
        let last = (1..files).find(is_free).unwrap_or(files);
        (1..last).rev().try_for_each(|number| rename(&old(number), &old(number + 1)))?;
        rename(&self.real, &old(1))
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), String> {
    fs::rename(from, to)
        .map_err(|error| format!("cannot rename {} to {}: {error}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Mutex;

    use super::*;

    fn text(path: &Path) -> String {
        fs::read_to_string(path).unwrap_or_default()
    }

    /// All files of a log, the oldest first.
    fn files(log: &Path) -> Vec<String> {
        let old = (1..=MOST_LOG_FILES).rev().map(|number| rotated_log(log, number));
        old.chain([log.to_path_buf()]).filter(|file| file.exists()).map(|file| text(&file)).collect()
    }

    fn open(log: &Path, size: u64, files: u32) -> LogFile {
        LogFile::open(log, Rotation { size, files }).unwrap()
    }

    #[test]
    fn many_threads_write_while_it_rotates_and_every_line_is_there_once() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let file = Mutex::new(open(&log, 4096, MOST_LOG_FILES));
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let file = &file;
                scope.spawn(move || {
                    for number in 0..1000 {
                        let line = format!("thread {thread} line {number}\n");
                        file.lock().unwrap().write(line.as_bytes()).unwrap();
                    }
                });
            }
        });
        let files = files(&log);
        assert!(files.len() > 10, "{}", files.len());
        assert!(files.iter().all(|file| file.len() <= 4096 && file.ends_with('\n')));
        let mut next: HashMap<&str, usize> = HashMap::new();
        for line in files.iter().flat_map(|file| file.lines()) {
            let (thread, number) = line.split_once(" line ").unwrap();
            let next = next.entry(thread).or_default();
            assert_eq!(number.parse::<usize>().unwrap(), *next, "{line}");
            *next += 1;
        }
        assert_eq!(next.len(), 8);
        assert!(next.values().all(|count| *count == 1000), "{next:?}");
    }

    #[test]
    fn the_oldest_goes_and_a_long_line_has_a_file_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut file = open(&log, 4, 2);
        for line in ["1\n", "2\n", "3\n", "a long one\n", "4\n"] {
            file.write(line.as_bytes()).unwrap();
        }
        assert_eq!(files(&log), ["3\n", "a long one\n", "4\n"]);
        let mut file = open(&log, 4, 0);
        file.write(b"567\n").unwrap();
        assert_eq!(files(&log), ["3\n", "a long one\n", "567\n"], "none is kept");
        let mut file = open(&log, 0, 2);
        file.write(b"8\n").unwrap();
        assert_eq!(text(&log), "567\n8\n", "never");
    }

    #[test]
    fn what_fails_is_said_once_and_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut file = open(&log, 200, 1);
        // A file takes no folder's place.
        fs::create_dir(rotated_log(&log, 1)).unwrap();
        let line = "x".repeat(49) + "\n";
        for _ in 0..20 {
            file.write(line.as_bytes()).unwrap();
        }
        assert_eq!(text(&log).matches("the log is not rotated: cannot rename").count(), 1, "{}", text(&log));
        assert_eq!(text(&log).lines().filter(|other| *other == line.trim_end()).count(), 20);
        fs::remove_dir(rotated_log(&log, 1)).unwrap();
        file.write(line.as_bytes()).unwrap();
        assert_eq!(text(&log), line);
    }

    #[test]
    fn a_try_that_fails_moves_nothing_twice() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut file = open(&log, 2, 3);
        for line in ["1\n", "2\n", "3\n"] {
            file.write(line.as_bytes()).unwrap();
        }
        // As a rotation leaves it that moved the first old file, and then could not go on.
        fs::rename(rotated_log(&log, 2), rotated_log(&log, 3)).unwrap();
        fs::rename(rotated_log(&log, 1), rotated_log(&log, 2)).unwrap();
        file.write(b"4\n").unwrap();
        assert_eq!(files(&log), ["1\n", "2\n", "3\n", "4\n"]);
    }

    #[test]
    fn a_file_that_was_moved_away_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (log, moved) = (folder.path().join("log"), folder.path().join("moved"));
        let mut file = open(&log, 10, 3);
        file.write(b"before\n").unwrap();
        fs::rename(&log, &moved).unwrap();
        file.write(b"b\n").unwrap();
        file.reopen().unwrap();
        file.write(b"after\n").unwrap();
        assert_eq!((text(&moved).as_str(), text(&log).as_str()), ("before\nb\n", "after\n"));
        // Moved away, and nobody says so: the next rotation finds out.
        fs::rename(&log, &moved).unwrap();
        file.write(b"later\n").unwrap();
        assert_eq!((files(&log), text(&moved).as_str()), (vec!["later\n".into()], "after\n"));
    }

    #[test]
    fn a_link_stays_and_a_device_is_not_renamed() {
        let folder = tempfile::tempdir().unwrap();
        let (link, log) = (folder.path().join("link"), folder.path().join("log"));
        std::os::unix::fs::symlink(&log, &link).unwrap();
        let mut file = open(&link, 2, 3);
        file.write(b"1\n").unwrap();
        file.write(b"2\n").unwrap();
        assert_eq!((files(&log), text(&link).as_str()), (vec!["1\n".into(), "2\n".into()], "2\n"));
        let mut device = open(Path::new("/dev/null"), 2, 3);
        device.write(b"1\n").unwrap();
        device.write(b"2\n").unwrap();
        assert_eq!(device.limit, u64::MAX);
    }
}
