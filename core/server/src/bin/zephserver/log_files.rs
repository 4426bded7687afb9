//! The files of a log as one row of lines: the present one, and those that were put aside before.
//!
//! Names move while this reads, so a file is known by its inode. Whoever looks for files goes from the
//! present one to the oldest, as they move themselves: so it may meet one twice, and misses none.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use zephserver::{MOST_LOG_FILES, rotated_log};

use crate::show;

/// Looks at the files while they are rotated.
const TRIES: u32 = 10;

/// A line with its line break.
pub type Line = Vec<u8>;

/// A log, read up to somewhere.
pub struct Log {
    path: PathBuf,
    /// Whose lines are wanted: those of a service, or of a library and its services; None: all.
    name: Option<String>,
    part: Part,
}

impl Log {
    /// Opens a log and answers its last lines. None: there is no file.
    pub fn open(
        path: &Path,
        name: Option<String>,
        count: usize,
    ) -> io::Result<Option<(Self, VecDeque<Line>)>> {
        // Rotated files are beside the file, not beside a link to it.
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.into());
        let mut last = VecDeque::new();
        let mut newest: Option<Part> = None;
        for mut part in parts(&path)? {
            let mut lines = part.last_lines(name.as_deref(), count - last.len())?;
            lines.append(&mut last);
            last = lines;
            newest.get_or_insert(part);
            if last.len() == count {
                break;
            }
        }
        Ok(newest.map(|part| (Self { path, name, part }, last)))
    }

    /// The next line; None: there is none yet.
    pub fn next_line(&mut self) -> io::Result<Option<Line>> {
        let name = self.name.as_deref();
        loop {
            if let Some(line) = self.part.next_line(name)? {
                return Ok(Some(line));
            }
            let Some(newer) = newer(&self.path, &self.part)? else { return Ok(None) };
            // Now that there is a newer one, nobody writes into this one: what it has left comes first.
            if let Some(line) = self.part.next_line(name)? {
                return Ok(Some(line));
            }
            let rest = std::mem::replace(&mut self.part, newer).rest(name);
            if rest.is_some() {
                return Ok(rest);
            }
        }
    }

    /// What stands behind the last line break: a line that was cut off.
    pub fn rest(mut self) -> Option<Line> {
        self.part.rest(self.name.as_deref())
    }
}

/// The file that lines go into after another one; None: they still go into that one.
fn newer(log: &Path, old: &Part) -> io::Result<Option<Part>> {
    if log.metadata().is_ok_and(|there| id(&there) == old.id) {
        return Ok(None);
    }
    let parts = parts(log)?;
    let at = match parts.iter().position(|part| part.id == old.id) {
        Some(at) => at.checked_sub(1),
        // It was moved away by somebody, or was the oldest and is gone: on with the first one after it.
        None => {
            let written = old.reader.get_ref().metadata()?.modified()?;
            let at = parts.iter().rposition(|part| part.number == 0 || part.modified >= written);
            if at.is_some_and(|at| parts[at].number > 0) {
                show::error("the log is rotated faster than it is read; lines may be missing here");
            }
            at
        }
    };
    let newer = at.and_then(|at| parts.into_iter().nth(at));
    // Somebody may have put an empty file there, of which the server does not know yet.
    Ok(newer.filter(|newer| newer.number > 0 || newer.size > 0))
}

/// The files of a log, from the newest to the oldest.
fn parts(log: &Path) -> io::Result<Vec<Part>> {
    // Where it was rotated meanwhile, newer files may stand behind older ones.
    for _ in 0..TRIES {
        let parts = scan(log)?;
        let newest = parts.first().filter(|part| part.number == 0).map(|part| part.id);
        if log.metadata().ok().map(|metadata| id(&metadata)) == newest {
            return Ok(parts);
        }
    }
    scan(log)
}

fn scan(log: &Path) -> io::Result<Vec<Part>> {
    let mut parts: Vec<Part> = Vec::new();
    for number in 0..=MOST_LOG_FILES {
        if let Some(part) = Part::open(log, number)?
            && parts.iter().all(|known| known.id != part.id)
        {
            parts.push(part);
        }
    }
    Ok(parts)
}

/// One file of a log.
struct Part {
    reader: BufReader<File>,
    /// As in its name when it was opened; 0: the present one.
    number: u32,
    id: (u64, u64),
    /// When it was opened.
    size: u64,
    modified: SystemTime,
    /// The beginning of a line whose end is not written yet.
    rest: Line,
    /// The message before this place is wanted, and so are the lines that continue it.
    is_wanted: bool,
}

fn id(metadata: &std::fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

impl Part {
    fn open(log: &Path, number: u32) -> io::Result<Option<Self>> {
        let path = if number == 0 { log.to_path_buf() } else { rotated_log(log, number) };
        // A folder, a device or a pipe has no lines to read again.
        if !path.is_file() {
            return Ok(None);
        }
        let file = match File::open(&path) {
            Ok(file) => file,
            // It has got its next name at this moment.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display())));
            }
        };
        let metadata = file.metadata()?;
        Ok(Some(Self {
            reader: BufReader::new(file),
            number,
            id: id(&metadata),
            size: metadata.len(),
            modified: metadata.modified()?,
            rest: Vec::new(),
            is_wanted: false,
        }))
    }

    /// The last lines that are wanted, at most `count`.
    fn last_lines(&mut self, name: Option<&str>, count: usize) -> io::Result<VecDeque<Line>> {
        let mut lines = VecDeque::new();
        let mut keep = |line| {
            lines.push_back(line);
            if lines.len() > count {
                lines.pop_front();
            }
        };
        while let Some(line) = self.next_line(name)? {
            keep(line);
        }
        if self.number > 0 {
            // Nobody writes its end any more.
            self.rest(name).into_iter().for_each(keep);
        }
        Ok(lines)
    }

    fn next_line(&mut self, name: Option<&str>) -> io::Result<Option<Line>> {
        loop {
            self.reader.read_until(b'\n', &mut self.rest)?;
            if !self.rest.ends_with(b"\n") {
                return Ok(None);
            }
            let line = std::mem::take(&mut self.rest);
            if self.wants(&line, name) {
                return Ok(Some(line));
            }
        }
    }

    fn rest(&mut self, name: Option<&str>) -> Option<Line> {
        let mut line = std::mem::take(&mut self.rest);
        if line.is_empty() || !self.wants(&line, name) {
            return None;
        }
        line.push(b'\n');
        Some(line)
    }

    fn wants(&mut self, line: &[u8], name: Option<&str>) -> bool {
        let Some(name) = name else { return true };
        if let Some(message) = message(&String::from_utf8_lossy(line)) {
            self.is_wanted = is_of(message, name);
        }
        self.is_wanted
    }
}

/// What follows time and level; None: the line continues the message above.
fn message(line: &str) -> Option<&str> {
    let (time, rest) = line.split_once(' ')?;
    let (level, message) = rest.trim_start().split_once(' ')?;
    let is_first = time.ends_with('Z') && ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"].contains(&level);
    is_first.then_some(message)
}

/// True where a message begins with the name of a service, or of a library or one of its services.
fn is_of(message: &str, name: &str) -> bool {
    message
        .strip_prefix(name)
        .is_some_and(|rest| rest.starts_with(": ") || (!name.contains('/') && rest.starts_with('/')))
}

#[cfg(test)]
mod tests {
    use std::fs::{rename, write};
    use std::io::Write;

    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn log(&self) -> PathBuf {
            self.0.path().join("log")
        }

        fn add(&self, text: &str) {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(self.log());
            file.unwrap().write_all(text.as_bytes()).unwrap();
        }

        /// As the server does it.
        fn rotate(&self) {
            for number in (1..9).rev().filter(|number| rotated_log(&self.log(), *number).exists()) {
                let old = |number| rotated_log(&self.log(), number);
                rename(old(number), old(number + 1)).unwrap();
            }
            rename(self.log(), rotated_log(&self.log(), 1)).unwrap();
        }

        fn open(&self, name: Option<&str>, count: usize) -> (Log, String) {
            let (log, last) = Log::open(&self.log(), name.map(Into::into), count).unwrap().unwrap();
            (log, last.into_iter().map(|line| String::from_utf8(line).unwrap()).collect())
        }
    }

    fn more(log: &mut Log) -> String {
        std::iter::from_fn(|| log.next_line().unwrap()).map(|line| String::from_utf8(line).unwrap()).collect()
    }

    #[test]
    fn the_last_lines_come_from_as_many_files_as_it_takes() {
        let folder = Folder::new();
        for text in ["1\n2\n", "3\ncut", "4\n5\n"] {
            folder.add(text);
            folder.rotate();
        }
        folder.add("6\n7");
        let last = |count| folder.open(None, count).1;
        assert_eq!(last(0), "");
        assert_eq!(last(1), "6\n");
        assert_eq!(last(2), "5\n6\n");
        assert_eq!(last(5), "3\ncut\n4\n5\n6\n");
        assert_eq!(last(100), "1\n2\n3\ncut\n4\n5\n6\n");
        assert_eq!(folder.open(None, 1).0.rest().unwrap(), b"7\n");
        assert!(Log::open(&folder.0.path().join("other"), None, 1).unwrap().is_none());
    }

    #[test]
    fn it_follows_over_any_number_of_rotations() {
        let folder = Folder::new();
        folder.add("old\n");
        folder.rotate();
        folder.add("1\n2");
        let (mut log, _) = folder.open(None, 0);
        assert_eq!(more(&mut log), "");
        folder.add("2\n");
        assert_eq!(more(&mut log), "22\n");
        folder.add("3\n");
        folder.rotate();
        assert_eq!(more(&mut log), "3\n");
        folder.add("4\n");
        for number in 5..9 {
            folder.rotate();
            folder.add(&format!("{number}\n"));
        }
        folder.rotate();
        assert_eq!(more(&mut log), "4\n5\n6\n7\n8\n");
        folder.add("9\n");
        assert_eq!(more(&mut log), "9\n");
    }

    #[test]
    fn it_follows_when_the_file_is_moved_away() {
        let folder = Folder::new();
        folder.add("old\n");
        folder.rotate();
        let long_ago = SystemTime::now() - std::time::Duration::from_secs(60);
        File::open(rotated_log(&folder.log(), 1)).unwrap().set_modified(long_ago).unwrap();
        folder.add("1\n");
        let (mut log, last) = folder.open(None, 1);
        assert_eq!(last, "1\n");
        let moved = folder.0.path().join("moved");
        rename(folder.log(), &moved).unwrap();
        assert_eq!(more(&mut log), "");
        // The server has the moved one open still, and does not know the new one.
        write(folder.log(), "").unwrap();
        std::fs::OpenOptions::new().append(true).open(&moved).unwrap().write_all(b"2\n").unwrap();
        assert_eq!(more(&mut log), "2\n");
        folder.add("3\n");
        assert_eq!(more(&mut log), "3\n");
    }

    #[test]
    fn lines_of_a_name_with_what_continues_them() {
        let folder = Folder::new();
        let time = "2026-01-01T00:00:00.000000Z";
        folder.add(&format!(
            "{time}  INFO hello/Hello: hello: one\n    two\n    {time}  INFO room/Room: no line of its own\n\
             {time} ERROR room/Room: three\n    four\n{time}  WARN hello/Hello@b: ready\n\
             {time}  INFO hello: generation 2\n{time}  INFO hellos/Hello: ready\n{time}  INFO ready\n"
        ));
        let last = |name| folder.open(Some(name), 100).1.lines().count();
        assert_eq!(last("hello"), 5);
        assert_eq!(last("hello/Hello"), 3);
        assert_eq!(last("hello/Hello@b"), 1);
        assert_eq!(last("room/Room"), 2);
        assert_eq!(last("nobody"), 0);
    }
}
