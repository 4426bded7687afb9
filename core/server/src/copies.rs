//! The private copies of plugins on disk. What is loaded is one of them, and of each plugin those of its last
//! contents are kept, over restarts too, to go back to.
//!
//! A copy's name says which load it was and what is in it: `0002-<SHA-256>-<pid>-<number>.so`. Generations
//! begin with 1 in every server, so the file's time says which copy is younger.

use std::cmp::Reverse;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Different contents of each plugin that are kept; the one that runs is among them.
const KEPT: usize = 3;

/// The copies of one server.
pub struct Copies {
    folder: PathBuf,
    /// What this server copied itself; a process loads 10,000 copies at most.
    made: Mutex<Vec<PathBuf>>,
}

/// A build that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its youngest copy.
    pub path: PathBuf,
    /// SHA-256 of its content in hex, as its name says.
    pub hash: String,
    /// When it was loaded last, or served again.
    pub at: SystemTime,
}

/// Hash and number of a copy's name.
fn parse(name: &str) -> Option<(&str, u32)> {
    let parts: Vec<&str> = name.strip_suffix(".so")?.split('-').collect();
    let [_, hash, _, number] = parts.as_slice() else { return None };
    let is_hash = hash.len() == 64 && hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    Some((*hash, number.parse().ok()?)).filter(|_| is_hash)
}

/// Nobody but us, root, and whoever the sticky bit keeps from it, can rename what is in the folder.
fn check_owner(folder: &Path) -> io::Result<()> {
    let (metadata, me) = (fs::metadata(folder)?, fs::metadata("/proc/self")?.uid());
    let (owner, mode, path) = (metadata.uid(), metadata.mode(), folder.display());
    let text = if owner != me && owner != 0 {
        format!("it belongs to uid {owner}, not to us (uid {me}) or root: chown {me} {path}")
    } else if mode & 0o002 != 0 && mode & 0o1000 == 0 {
        format!("it can be written by others: chmod o-w {path}")
    } else {
        return Ok(());
    };
    Err(io::Error::new(ErrorKind::PermissionDenied, text))
}

/// Makes a folder that only we can write to, or makes sure that it is one.
fn make_private(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let (metadata, me) = (fs::symlink_metadata(folder)?, fs::metadata("/proc/self")?.uid());
    if !metadata.is_dir() || metadata.uid() != me || metadata.mode() & 0o022 != 0 {
        let text = format!("{} must be a folder of uid {me} that nobody else can write to", folder.display());
        return Err(io::Error::new(ErrorKind::PermissionDenied, text));
    }
    Ok(())
}

impl Copies {
    /// The copies below `state_path`. Of each content one is kept: servers that ended before they were ready have
    /// perhaps left many.
    pub fn open(state_path: &Path) -> io::Result<Self> {
        let folder = state_path.join("copies");
        DirBuilder::new().recursive(true).mode(0o700).create(state_path)?;
        check_owner(state_path)?;
        make_private(&folder)?;
        let copies = Self { folder, made: Mutex::default() };
        for library in fs::read_dir(&copies.folder)?.flatten() {
            library.file_name().to_str().into_iter().for_each(|library| copies.keep(library, usize::MAX));
        }
        Ok(copies)
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn made(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a copy under a name that this process never used before: the dynamic loader would answer a
    /// name that it knows with the old code.
    pub fn write(&self, library: &str, hash: &str, bytes: &[u8], generation: u32) -> io::Result<PathBuf> {
        // Unique also when a second server is started in the same process.
        static NUMBERS: AtomicU32 = AtomicU32::new(1);
        let folder = self.folder.join(library);
        make_private(&folder)?;
        let folder = folder.canonicalize()?;
        let (path, part, mut file) = loop {
            let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!("{generation:04}-{hash}-{}-{number}.so", std::process::id()));
            let part = path.with_extension("part");
            match OpenOptions::new().write(true).create_new(true).mode(0o500).open(&part) {
                // Either of them was left by an earlier process of the same pid.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Ok(_) if path.exists() => fs::remove_file(&part)?,
                opened => break (path, part, opened?),
            }
        };
        // Half a copy is none to go back to: it has its name when it is whole.
        let written = file.write_all(bytes).and_then(|()| fs::rename(&part, &path));
        written.inspect_err(|_| drop(fs::remove_file(&part)))?;
        self.made().push(path.clone());
        Ok(path)
    }

    /// Removes the copy of a load that was refused: it may stay mapped, but nobody goes back to it.
    pub fn discard(&self, copy: &Path) {
        self.made().retain(|made| made != copy);
        let _ = fs::remove_file(copy);
    }

    /// The different contents of which there are copies, the youngest first.
    pub fn kept(&self, library: &str) -> Vec<Kept> {
        let entries = fs::read_dir(self.folder.join(library)).into_iter().flatten().flatten();
        let mut files: Vec<(u32, Kept)> = entries
            .filter_map(|entry| {
                let name = entry.file_name();
                let (hash, number) = parse(name.to_str()?)?;
                let at = entry.metadata().ok()?.modified().ok()?;
                Some((number, Kept { path: entry.path(), hash: hash.into(), at }))
            })
            .collect();
        // Two within one tick of the file system's clock: the number tells.
        files.sort_by_key(|(number, copy)| Reverse((copy.at, *number)));
        let mut kept = Vec::<Kept>::new();
        for (_, copy) in files {
            if !kept.iter().any(|known| known.hash == copy.hash) {
                kept.push(copy);
            }
        }
        kept
    }

    /// The copy of a content.
    pub fn find(&self, library: &str, hash: &str) -> Option<Kept> {
        self.kept(library).into_iter().find(|kept| kept.hash == hash)
    }

    /// A content serves again that was loaded some time ago: that counts as young.
    pub fn renew(&self, library: &str, hash: &str) -> io::Result<()> {
        let kept = self.find(library, hash).ok_or(ErrorKind::NotFound)?;
        File::open(&kept.path)?.set_modified(SystemTime::now())
    }

    /// Removes all but the youngest copy of each of the last contents. Those that are mapped stay alive without
    /// a name. Not before the newest build serves: one that is refused must not push out a good one.
    pub fn prune(&self, library: &str) {
        self.keep(library, KEPT);
    }

    /// Removes all but the youngest copy of each of so many contents.
    fn keep(&self, library: &str, contents: usize) {
        // First what is there: what comes meanwhile is not to go.
        let there = fs::read_dir(self.folder.join(library)).into_iter().flatten().flatten();
        let there: Vec<PathBuf> = there.map(|entry| entry.path()).collect();
        let kept = self.kept(library);
        for path in there {
            if !kept.iter().take(contents).any(|kept| kept.path == path) {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Removes what this server copied, and the folders that are empty then: after a start that came to
    /// nothing.
    pub fn clean_up(&self, state_path: &Path) {
        for copy in std::mem::take(&mut *self.made()) {
            let _ = fs::remove_file(copy);
        }
        for folder in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(folder.path());
        }
        let _ = fs::remove_dir(&self.folder);
        let _ = fs::remove_dir(state_path);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::*;

    fn hash(letter: char) -> String {
        letter.to_string().repeat(64)
    }

    /// A copy of the content that this letter stands for, so many seconds old.
    fn put(copies: &Copies, letter: char, age: u64) -> PathBuf {
        let path = copies.write("a", &hash(letter), b"content", 1).unwrap();
        let at = SystemTime::now() - Duration::from_secs(age);
        File::open(&path).unwrap().set_modified(at).unwrap();
        path
    }

    fn kept(copies: &Copies) -> String {
        copies.kept("a").iter().map(|kept| &kept.hash[..1]).collect()
    }

    fn files(copies: &Copies) -> usize {
        fs::read_dir(copies.folder().join("a")).map_or(0, Iterator::count)
    }

    #[test]
    fn the_last_contents_are_kept_and_one_file_of_each() {
        let folder = tempfile::tempdir().unwrap();
        let copies = Copies::open(folder.path()).unwrap();
        for (letter, age) in [('a', 50), ('b', 40), ('c', 30), ('b', 20), ('d', 10), ('d', 5)] {
            put(&copies, letter, age);
        }
        assert_eq!((kept(&copies).as_str(), files(&copies)), ("dbca", 6));
        copies.prune("a");
        assert_eq!((kept(&copies).as_str(), files(&copies)), ("dbc", 3));
        copies.renew("a", &hash('c')).unwrap();
        assert_eq!(kept(&copies), "cdb");
        assert!(copies.renew("a", &hash('a')).is_err(), "it is not there any more");
    }

    #[test]
    fn the_next_server_finds_what_was_kept() {
        let folder = tempfile::tempdir().unwrap();
        let died = Copies::open(folder.path()).unwrap();
        for (letter, age) in [('c', 40), ('b', 30), ('a', 20), ('d', 15), ('a', 10)] {
            put(&died, letter, age);
        }
        let copies = Copies::open(folder.path()).unwrap();
        assert_eq!((kept(&copies).as_str(), files(&copies)), ("adbc", 4), "one of each content");
        put(&copies, 'e', 0);
        copies.clean_up(folder.path());
        assert_eq!(kept(&copies), "adbc", "only its own are removed");
    }

    #[test]
    fn what_is_refused_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let state_path = folder.path().join("state");
        let copies = Copies::open(&state_path).unwrap();
        let (first, second) = (put(&copies, 'a', 1), put(&copies, 'a', 0));
        copies.discard(&second);
        assert_eq!((files(&copies), first.exists()), (1, true), "the same content served before");
        copies.discard(&first);
        assert_eq!(files(&copies), 0);
        copies.clean_up(&state_path);
        assert!(!state_path.exists());
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for (mode, is_taken) in [(0o777, false), (0o1777, true), (0o775, true)] {
            fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
            let taken = Copies::open(folder.path()).map(drop);
            assert_eq!(taken.is_ok(), is_taken, "{mode:o}");
            assert!(taken.err().is_none_or(|error| error.to_string().contains("chmod o-w")));
        }
    }

    #[test]
    fn other_files_are_no_copies() {
        let name = format!("0001-{}-17-3.so", hash('a'));
        assert_eq!(parse(&name), Some((hash('a').as_str(), 3)));
        for name in ["0001-abcdefabcdef-17-3.so", "x.so", &name.replace(".so", ""), &name.replace("-3", "")] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
