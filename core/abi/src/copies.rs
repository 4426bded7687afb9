//! The books of loaded copies: how many there are, which of them are retired, and what those still keep.
//!
//! A copy is **retired** when its [`Library`](crate::Library) is dropped: its instances are destroyed then, and
//! with them every call, job and step that could lead into it. It is **quiet** when, besides, no thread lives that
//! was started by its code, and all that was over [`GRACE`] ago. When a further copy is opened, and when somebody
//! asks how things stand, the thread keys of quiet copies are given back, and the kernel gets the memory of retired
//! ones. Copies that never get quiet keep
//! theirs, and are shown as held.
//!
//! What may still happen in a quiet copy: a thread of somebody else, of the server's pool perhaps, has been in
//! it and ends later. Then the destructors of its thread-local values run, in code that is still there. glibc
//! calls no destructor for a value that was set before its key was deleted, so nothing of the old copy comes to
//! whoever has the key now; what is lost is the small handle that the thread had in the old copy. Should such a
//! late destructor be the first to ask std which thread it is on, std sets the mark 1 for the key that
//! it remembers. Where that key is deleted, this is an error that std ignores. Where it is the key of another
//! copy's std, that one finds a mark that it sets itself. Only C code in a plugin that keeps pointers under a
//! key would be wronged, if its key had been one before: it would find that 1, on a thread at its end.
//!
//! A thread that a third library started for a copy is not known to belong to that copy.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::{keys, threads, truth};

/// How many copies may be loaded: each takes about five memory maps, and the kernel allows 65,530.
const MOST: u32 = 10_000;
/// When the server is to warn.
const WARNING: u32 = 5_000;
/// The same where keys are not given back, and run out at about 1,020 copies.
const MOST_WITHOUT_HOOK: u32 = 900;
const WARNING_WITHOUT_HOOK: u32 = 500;
/// Keys that are left for everything else.
const SPARE_KEYS: usize = 64;
/// How long a copy must be without threads: those that left it last may still be on their way out.
const GRACE: Duration = Duration::from_secs(1);

/// How it stands with the copies of this process.
#[derive(Clone, Debug)]
pub struct Copies {
    /// Copies loaded so far. They stay in memory.
    pub loaded: u32,
    /// The number at which a warning is due.
    pub warning: u32,
    /// The number at which [`Library::open`](crate::Library::open) refuses.
    pub limit: u32,
    /// Copies that nobody enters any more.
    pub retired: u32,
    /// Those of them that keep their thread keys, since threads that they started still live.
    pub held: Vec<Held>,
    /// The thread keys; None: the hook is not at work in this program, and nothing of them is known.
    pub keys: Option<Keys>,
}

/// The thread keys of the C library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys {
    /// How many there are.
    pub most: usize,
    /// How many are in use, by whomever.
    pub in_use: usize,
    /// How many of retired copies were given back.
    pub freed: usize,
}

/// A retired copy that is not quiet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its file, and the folder of that.
    pub copy: String,
    /// The living threads that its code started.
    pub threads: u32,
}

/// What keeps this process from loading one more copy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The number of copies.
    #[error("this process has loaded {0} plugin copies and may not load more; restart the server")]
    Copies(u32),
    /// The thread keys.
    #[error(
        "{in_use} of the C library's {most} thread keys are in use; old copies of plugins keep theirs until their \
         jobs and threads have ended, and {held} have threads that do not end: restart the server, and mend \
         the plugins that `held` in `zephserver status --json` names"
    )]
    Keys {
        /// Keys in use.
        in_use: usize,
        /// Keys that there are.
        most: usize,
        /// Copies that threads hold.
        held: usize,
    },
    /// The number of copies, where keys are not given back.
    #[error(
        "this process has loaded {0} plugin copies, and at about 1,020 the C library's thread keys run out; \
         restart the server to load more"
    )]
    CopiesWithoutHook(u32),
}

/// How it stands with the copies of this process, after giving back what can be given back.
pub fn copies() -> Copies {
    let mut books = books();
    let (now, has_hook) = (truth::monotonic(), keys::is_active());
    books.release(now);
    if has_hook && !threads::lost_count() {
        books.settle(now);
    }
    books.show(has_hook)
}

/// Whether one more copy may be opened.
pub(crate) fn admit() -> Result<(), Full> {
    copies().full().map_or(Ok(()), Err)
}

/// One more copy is in memory.
pub(crate) fn count() {
    books().loaded += 1;
}

/// A copy in the books, until it is retired by being dropped.
pub(crate) struct Account {
    base: usize,
}

impl Account {
    /// A copy of this file, in this part of memory.
    pub(crate) fn open(file: &Path, memory: Range<usize>, segments: Vec<Range<usize>>) -> Self {
        let mut words: Vec<_> = file.iter().rev().take(2).map(|word| word.to_string_lossy()).collect();
        words.reverse();
        let copy = Copy { end: memory.end, segments, name: words.join("/"), retired: None };
        books().copies.insert(memory.start, copy);
        Self { base: memory.start }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let now = truth::monotonic();
        books().copies.get_mut(&self.base).into_iter().for_each(|copy| copy.retired = Some(now));
    }
}

impl Copies {
    fn full(&self) -> Option<Full> {
        let loaded = self.loaded;
        match self.keys {
            None => (loaded >= self.limit).then_some(Full::CopiesWithoutHook(loaded)),
            Some(_) if loaded >= self.limit => Some(Full::Copies(loaded)),
            Some(Keys { most, in_use, .. }) => (most.saturating_sub(in_use) < SPARE_KEYS)
                .then_some(Full::Keys { in_use, most, held: self.held.len() }),
        }
    }
}

struct Copy {
    end: usize,
    /// Where it lies in memory; empty once the kernel was told that it may have that.
    segments: Vec<Range<usize>>,
    name: String,
    /// Since when nobody enters it, by [`truth::monotonic`].
    retired: Option<u64>,
}

/// All copies, by where they begin in memory.
struct Books {
    copies: BTreeMap<usize, Copy>,
    loaded: u32,
    freed: usize,
}

static BOOKS: Mutex<Books> = Mutex::new(Books::new());

fn books() -> MutexGuard<'static, Books> {
    BOOKS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Books {
    const fn new() -> Self {
        Self { copies: BTreeMap::new(), loaded: 0, freed: 0 }
    }

    /// The copy that an address lies in, and where that begins.
    fn owner(&self, address: usize) -> Option<(usize, &Copy)> {
        let (base, copy) = self.copies.range(..=address).next_back()?;
        (address < copy.end).then_some((*base, copy))
    }

    /// Living threads of each copy that has some, or had one at `since`.
    fn threads(&self, since: u64) -> BTreeMap<usize, u32> {
        let mut counts = BTreeMap::new();
        for (start, living) in threads::since(since) {
            if let Some((base, _)) = self.owner(start) {
                *counts.entry(base).or_default() += living;
            }
        }
        counts
    }

    /// Lets the kernel have the memory of copies that nobody enters any more.
    fn release(&mut self, now: u64) {
        let since = now.saturating_sub(GRACE.as_nanos() as u64);
        for copy in self.copies.values_mut().filter(|copy| copy.retired.is_some_and(|at| at <= since)) {
            truth::release(&std::mem::take(&mut copy.segments));
        }
    }

    /// Gives back the keys of quiet copies.
    fn settle(&mut self, now: u64) {
        let since = now.saturating_sub(GRACE.as_nanos() as u64);
        let noisy = self.threads(since);
        for (key, destructor) in keys::destructors() {
            let is_quiet = self.owner(destructor).is_some_and(|(base, copy)| {
                copy.retired.is_some_and(|at| at <= since) && !noisy.contains_key(&base)
            });
            if is_quiet && keys::give_back(key, destructor) {
                self.freed += 1;
            }
        }
    }

    fn show(&self, has_hook: bool) -> Copies {
        let (warning, limit) =
            if has_hook { (WARNING, MOST) } else { (WARNING_WITHOUT_HOOK, MOST_WITHOUT_HOOK) };
        // Without the hook nobody counts threads.
        let living = self.threads(u64::MAX).into_iter().filter_map(|(base, threads)| {
            let copy = self.copies.get(&base).filter(|copy| copy.retired.is_some())?;
            Some(Held { copy: copy.name.clone(), threads })
        });
        Copies {
            loaded: self.loaded,
            warning,
            limit,
            retired: self.copies.values().filter(|copy| copy.retired.is_some()).count() as u32,
            held: living.collect(),
            keys: has_hook.then(|| Keys { most: keys::MOST, in_use: keys::in_use(), freed: self.freed }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::c_void;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn has_key(destructor: usize) -> bool {
        keys::destructors().any(|(_, other)| other == destructor)
    }

    /// Books with one copy, in which nothing lies but what is at `address`.
    fn books_with(address: usize, retired: Option<u64>) -> Books {
        let copy = Copy { end: address + 1, segments: Vec::new(), name: "x/0001.so".into(), retired };
        Books { copies: BTreeMap::from([(address, copy)]), ..Books::new() }
    }

    static ONE: AtomicU32 = AtomicU32::new(0);
    static OTHER: AtomicU32 = AtomicU32::new(0);

    unsafe extern "C" fn one(_: *mut c_void) {
        ONE.fetch_add(1, Ordering::Relaxed);
    }

    unsafe extern "C" fn other(_: *mut c_void) {
        OTHER.fetch_add(1, Ordering::Relaxed);
    }

    fn make_key(destructor: unsafe extern "C" fn(*mut c_void)) {
        let mut key = 0;
        // SAFETY: `key` is valid for writing; the destructor takes any value.
        assert_eq!(unsafe { keys::create(&mut key, Some(destructor)) }, 0);
    }

    #[test]
    fn the_keys_of_a_copy_are_kept_until_it_was_retired_for_a_while() {
        let address = one as *const () as usize;
        make_key(one);
        let mut books = books_with(address, None);
        books.settle(u64::MAX);
        assert!(has_key(address), "it is in use");
        books.copies.get_mut(&address).unwrap().retired = Some(5 * SECOND);
        books.settle(6 * SECOND - 1);
        assert!(has_key(address) && books.freed == 0, "somebody may be on the way out");
        books.settle(6 * SECOND);
        assert!(!has_key(address));
        assert_eq!((books.freed, books.show(true).retired), (1, 1));
    }

    #[test]
    fn a_copy_with_threads_is_held() {
        let address = other as *const () as usize;
        make_key(other);
        let threads = threads::of(address).unwrap();
        threads.began();
        threads.began();
        let mut books = books_with(address, Some(0));
        // The end of a thread is marked with the clock's time.
        let long_after = truth::monotonic() + 3600 * SECOND;
        books.settle(long_after);
        assert!(has_key(address));
        assert_eq!(books.show(true).held, [Held { copy: "x/0001.so".into(), threads: 2 }]);
        threads.ended();
        books.settle(long_after);
        assert!(has_key(address));
        threads.ended();
        books.settle(truth::monotonic());
        assert!(has_key(address), "its last thread ended just now");
        assert!(books.show(true).held.is_empty());
        books.settle(long_after);
        assert!(!has_key(address));
    }

    #[test]
    fn an_address_belongs_to_the_copy_around_it() {
        let copy = |end: usize| Copy { end, segments: Vec::new(), name: String::new(), retired: None };
        let copies = BTreeMap::from([(100, copy(200)), (300, copy(400))]);
        let books = Books { copies, ..Books::new() };
        let owner = |address| books.owner(address).map(|(base, _)| base);
        assert_eq!(
            [99, 100, 199, 200, 399, 400].map(owner),
            [None, Some(100), Some(100), None, Some(300), None]
        );
    }

    #[test]
    fn what_is_full_is_named() {
        let keys = |in_use| Some(Keys { most: 1024, in_use, freed: 0 });
        let books = |loaded| Books { loaded, ..Books::new() };
        let full = |loaded, keys| Copies { keys, ..books(loaded).show(keys.is_some()) }.full();
        assert_eq!(full(899, None), None);
        assert_eq!(full(900, None), Some(Full::CopiesWithoutHook(900)));
        assert_eq!(full(9_999, keys(960)), None);
        assert_eq!(full(10_000, keys(10)), Some(Full::Copies(10_000)));
        assert_eq!(full(950, keys(961)), Some(Full::Keys { in_use: 961, most: 1024, held: 0 }));
    }

    #[test]
    fn a_dropped_account_is_retired() {
        let find = |base| books().copies.get(&base).map(|copy| (copy.name.clone(), copy.retired.is_some()));
        // No library is loaded so far down.
        let account = Account::open(Path::new("/state/copies/hello/0001-abc.so"), 4096..4097, Vec::new());
        assert_eq!(find(4096), Some(("hello/0001-abc.so".into(), false)));
        drop(account);
        assert_eq!(find(4096), Some(("hello/0001-abc.so".into(), true)));
        let copies = copies();
        assert_eq!((copies.limit, copies.warning, copies.keys), (900, 500, None), "no hook in this program");
    }
}
