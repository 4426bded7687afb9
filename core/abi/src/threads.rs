//! Living threads, counted by the routine that they began in: it lies in the library that started them.
//! A part of the hook in [`keys`](crate::keys), under the same rules.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use libc::{pthread_attr_t, pthread_key_t, pthread_t};

use crate::keys::{self, Real};
use crate::truth;

/// The routine that a thread begins in. It may be ended from inside, by `pthread_exit`.
pub type Start = unsafe extern "C-unwind" fn(*mut c_void) -> *mut c_void;
type Create = unsafe extern "C" fn(*mut pthread_t, *const pthread_attr_t, Start, *mut c_void) -> c_int;

/// Routines that can be told apart, as a power of two. A copy written in Rust has one.
const MOST_BITS: u32 = 14;
const MOST: usize = 1 << MOST_BITS;
/// At a thread's end glibc asks for its values in four rounds, as long as there are any. Our own is kept
/// until the third: those of others are done with by then.
const LAST_ROUND: u32 = 3;

/// The threads of one routine.
pub(crate) struct Threads {
    /// Its address; 0 before it is taken.
    start: AtomicUsize,
    living: AtomicU32,
    /// When the last one ended, by [`truth::monotonic`].
    ended: AtomicU64,
}

/// Found by the address, or the next free place after. Never emptied: code is never unloaded.
static THREADS: [Threads; MOST] = [const { Threads::new() }; MOST];
/// Some thread is not counted.
static LOST_COUNT: AtomicBool = AtomicBool::new(false);

static CREATE: Real = Real::new(c"pthread_create");

impl Threads {
    const fn new() -> Self {
        Self { start: AtomicUsize::new(0), living: AtomicU32::new(0), ended: AtomicU64::new(0) }
    }

    pub(crate) fn began(&self) {
        self.living.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn ended(&self) {
        self.ended.fetch_max(truth::monotonic(), Ordering::AcqRel);
        self.living.fetch_sub(1, Ordering::AcqRel);
    }

    fn is_of(&self, start: usize) -> bool {
        match self.start.compare_exchange(0, start, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(other) => other == start,
        }
    }
}

/// The count of a routine. None: there are too many.
pub(crate) fn of(start: usize) -> Option<&'static Threads> {
    // The upper bits of the product depend on all bits of the address.
    let first = start.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (usize::BITS - MOST_BITS);
    (0..MOST).map(|step| &THREADS[(first + step) % MOST]).find(|threads| threads.is_of(start))
}

/// The routines with living threads, or with one that ended at `since` or later, and how many live.
pub(crate) fn since(since: u64) -> impl Iterator<Item = (usize, u32)> {
    let counts = THREADS.iter().map(move |threads| {
        // In this order: whoever is not counted any more has left the time of its end.
        let living = threads.living.load(Ordering::Acquire);
        (threads.start.load(Ordering::Acquire), living, threads.ended.load(Ordering::Acquire))
    });
    counts
        .filter(move |(start, living, ended)| *start != 0 && (*living > 0 || *ended >= since))
        .map(|(start, living, _)| (start, living))
}

/// True: some threads are not counted, so nobody can tell any more where nothing runs.
pub(crate) fn lost_count() -> bool {
    LOST_COUNT.load(Ordering::Acquire)
}

/// What is known of a counted thread, from before its beginning to its end.
struct Thread {
    threads: &'static Threads,
    start: Start,
    argument: *mut c_void,
    rounds: u32,
}

/// `pthread_create`, counted.
///
/// # Safety
/// As the C library says.
pub unsafe fn create(
    thread: *mut pthread_t,
    attributes: *const pthread_attr_t,
    start: Start,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: that is its type.
    let Some(create) = (unsafe { CREATE.get::<Create>() }) else { return libc::EAGAIN };
    let (Some(threads), Some(_)) = (of(start as *const () as usize), end_key()) else {
        LOST_COUNT.store(true, Ordering::Release);
        // SAFETY: passed on as it came.
        return unsafe { create(thread, attributes, start, argument) };
    };
    let known = Box::into_raw(Box::new(Thread { threads, start, argument, rounds: 0 }));
    threads.began();
    // SAFETY: `begin` takes what is passed to it here, once.
    let failure = unsafe { create(thread, attributes, begin, known.cast()) };
    if failure != 0 {
        threads.ended();
        // SAFETY: made above, and nobody else got it.
        drop(unsafe { Box::from_raw(known) });
    }
    failure
}

/// The first function of a counted thread.
unsafe extern "C-unwind" fn begin(known: *mut c_void) -> *mut c_void {
    // SAFETY: `create` made it, for this thread alone.
    let (start, argument) = unsafe {
        let known = &*known.cast::<Thread>();
        (known.start, known.argument)
    };
    // Where the value cannot be kept, the thread counts as living for ever: keys are not given back then.
    if let Some(key) = end_key() {
        // SAFETY: the key exists, and `end` takes this value.
        unsafe { libc::pthread_setspecific(key, known) };
    }
    // Nothing is to be done after it: it may end by unwinding through here.
    // SAFETY: as whoever asked for the thread has promised.
    unsafe { start(argument) }
}

/// The end of a counted thread, however it ended.
unsafe extern "C" fn end(known: *mut c_void) {
    // SAFETY: `begin` left it, for this thread alone.
    let round = unsafe {
        let known = &mut *known.cast::<Thread>();
        known.rounds += 1;
        known.rounds
    };
    let keep = |key| {
        // SAFETY: as in `begin`.
        unsafe { libc::pthread_setspecific(key, known) == 0 }
    };
    if round < LAST_ROUND && end_key().is_some_and(keep) {
        return;
    }
    // SAFETY: made by `Box::into_raw` in `create`; nobody gets it after this.
    let known = unsafe { Box::from_raw(known.cast::<Thread>()) };
    known.threads.ended();
}

/// The key that tells us of a thread's end. None: there is none left.
fn end_key() -> Option<pthread_key_t> {
    const NONE: pthread_key_t = pthread_key_t::MAX;
    static KEY: AtomicU32 = AtomicU32::new(NONE);
    let key = KEY.load(Ordering::Acquire);
    if key != NONE {
        return Some(key);
    }
    let mut key = 0;
    // SAFETY: `key` is valid for writing, and `end` takes what `begin` sets.
    if unsafe { keys::create(&mut key, Some(end)) } != 0 {
        return None;
    }
    match KEY.compare_exchange(NONE, key, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Some(key),
        Err(other) => {
            // SAFETY: made above, and used by nobody.
            unsafe { keys::delete(key) };
            Some(other)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::ptr::null_mut;

    use super::*;

    fn living(start: Start) -> u32 {
        since(0).find(|(known, _)| *known == start as *const () as usize).map_or(0, |(_, living)| living)
    }

    fn run(start: Start, argument: *mut c_void) -> *mut c_void {
        let (mut thread, mut result) = (0, null_mut());
        // SAFETY: `thread` is valid for writing; the tests' routines take these arguments.
        assert_eq!(unsafe { create(&mut thread, std::ptr::null(), start, argument) }, 0);
        // SAFETY: it was started above and is joined once.
        assert_eq!(unsafe { libc::pthread_join(thread, &mut result) }, 0);
        result
    }

    /// Looks at the count of its own thread when it is dropped.
    struct Last(&'static AtomicU32);

    impl Drop for Last {
        fn drop(&mut self) {
            self.0.store(living(slow), Ordering::Relaxed);
        }
    }

    static AT_DROP: AtomicU32 = AtomicU32::new(0);

    thread_local! {
        static LAST: Cell<Option<Last>> = const { Cell::new(None) };
    }

    unsafe extern "C-unwind" fn slow(argument: *mut c_void) -> *mut c_void {
        LAST.set(Some(Last(&AT_DROP)));
        argument
    }

    #[test]
    fn a_thread_is_counted_until_its_values_are_destroyed() {
        let argument = std::ptr::without_provenance_mut(7);
        assert_eq!(living(slow), 0);
        assert_eq!(run(slow, argument), argument, "arguments and results pass");
        assert_eq!(AT_DROP.load(Ordering::Relaxed), 1, "its destructors were still to run");
        assert_eq!(living(slow), 0);
        assert!(!lost_count());
    }

    unsafe extern "C-unwind" fn counts(_: *mut c_void) -> *mut c_void {
        std::ptr::without_provenance_mut(living(counts) as usize)
    }

    #[test]
    fn threads_are_counted_while_they_live_and_remembered_for_a_while() {
        let before = truth::monotonic();
        assert_eq!(run(counts, null_mut()), std::ptr::without_provenance_mut(1));
        assert_eq!(living(counts), 0);
        let is_counts = |(start, _): &(usize, u32)| *start == counts as *const () as usize;
        assert!(since(before).any(|known| is_counts(&known)));
        assert!(!since(truth::monotonic() + 1).any(|known| is_counts(&known)));
    }

    #[test]
    fn each_routine_has_a_count_of_its_own() {
        let counts: Vec<_> = (1..2000).map(|number| of(number * 4096).unwrap()).collect();
        assert!(counts.iter().zip(&counts[1..]).all(|(one, other)| !std::ptr::eq(*one, *other)));
        assert!((1..2000).all(|number| std::ptr::eq(of(number * 4096).unwrap(), counts[number - 1])));
    }
}
