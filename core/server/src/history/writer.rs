//! The history on disk: lines of JSON in two files of bounded size, the newer and the older one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::Receiver;

use super::{Entry, Order, Past};
use crate::lock::is_same_file;

/// Where lines are added.
pub(super) const FILE: &str = "history.jsonl";
/// What that file was before it was full.
pub(super) const OLDER: &str = "history.jsonl.1";
/// Bytes of a file. With the next line it would have more: it becomes the older one.
pub(super) const LARGEST: u64 = 1024 * 1024;

/// All entries that can be read, the oldest first. What was torn by a crash or a full disk is left out.
pub(super) fn read(folder: &Path) -> Vec<Entry> {
    let mut entries = Vec::new();
    for file in [OLDER, FILE].map(|name| folder.join(name)) {
        let bytes = match read_file(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => {
                tracing::warn!("history: {} cannot be read: {error}", file.display());
                continue;
            }
        };
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let mut unreadable = 0;
        for line in lines {
            match serde_json::from_slice(line) {
                Ok(entry) => entries.push(entry),
                Err(_) => unreadable += 1,
            }
        }
        if unreadable > 0 {
            tracing::warn!("history: unreadable lines of {} are left out: {unreadable}", file.display());
        }
    }
    entries
}

fn read_file(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // A device may have no end.
    if fs::metadata(file)?.is_file() {
        File::open(file)?.take(2 * LARGEST).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// Writes what is noted.
pub struct Writer {
    folder: PathBuf,
    orders: Receiver<Order>,
    past: Arc<Past>,
    page: Option<Page>,
    /// The last line was not written, which was said.
    fails: bool,
}

/// The open file.
struct Page {
    file: File,
    size: u64,
}

impl Page {
    /// Opens the file behind its last line. One that was torn, by a crash or a full disk, ends there: it
    /// must not spoil the next one.
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        let size = file.metadata()?.len();
        let mut page = Self { file, size };
        if size > 0 {
            let mut last = [0];
            page.file.read_exact_at(&mut last, size - 1)?;
            if last != *b"\n" {
                page.append(b"\n")?;
            }
        }
        Ok(page)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.size += bytes.len() as u64;
        Ok(())
    }
}

impl Writer {
    pub(super) fn new(folder: &Path, orders: Receiver<Order>, past: Arc<Past>) -> Self {
        Self { folder: folder.into(), orders, past, page: None, fails: false }
    }

    /// Writes until the end. On a thread of its own.
    pub fn run(mut self) {
        while let Ok(order) = self.orders.recv() {
            match order {
                Order::Write(entry) => self.write(&entry),
                Order::End(done) => {
                    if let Some(page) = &self.page {
                        let _ = page.file.sync_data();
                    }
                    let _ = done.try_send(());
                    return;
                }
            }
        }
    }

    /// Writes one line, or counts that it could not.
    pub(super) fn write(&mut self, entry: &Entry) {
        let path = self.folder.join(FILE);
        let failed = self.try_write(entry, &path).err();
        let failed_before = std::mem::replace(&mut self.fails, failed.is_some());
        match failed {
            None if failed_before => tracing::info!("history: {} is written again", path.display()),
            None => {}
            Some(error) => {
                self.past.lost.fetch_add(1, Ordering::Relaxed);
                if !failed_before {
                    tracing::warn!(
                        "history: {} cannot be written ({error}); until it can, what happens is in memory only",
                        path.display()
                    );
                }
            }
        }
    }

    fn try_write(&mut self, entry: &Entry, path: &Path) -> io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        // Not put back after an error: the next line opens the file anew, and sees what is torn there.
        // Nor where somebody removed the file.
        let page = self.page.take().filter(|page| is_same_file(&page.file, path));
        let mut page = match page {
            Some(page) => page,
            None => Page::open(path)?,
        };
        if page.size > 0 && page.size + line.len() as u64 > LARGEST {
            fs::rename(path, self.folder.join(OLDER))?;
            page = Page::open(path)?;
        }
        page.append(&line)?;
        self.page = Some(page);
        Ok(())
    }
}
