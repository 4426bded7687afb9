//! The thread keys of the C library, counted.
//!
//! Each loaded copy of a plugin has a std of its own. That takes one of glibc's 1,024 thread keys when the
//! copy starts a thread, or first asks which thread it is on, and never gives it back: a library is never
//! unloaded. Hence the server's program has functions of its own before `pthread_key_create`,
//! `pthread_key_delete` and `pthread_create` (see [`export_key_hook`](crate::export_key_hook)); plugins get
//! them, since the dynamic linker looks into the program first. They do what the C library does, and keep
//! count. [`copies`](crate::copies()) gives back the keys of copies in which nothing runs any more.
//!
//! They are called from everywhere and at any time, also before `main` and while a std sets itself up:
//! no locks here, no thread-locals, no memory of the heap.

use std::ffi::{CStr, c_int, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use libc::pthread_key_t;

use crate::truth;

/// What is called with a thread's value at its end.
pub type Destructor = Option<unsafe extern "C" fn(*mut c_void)>;
type Create = unsafe extern "C" fn(*mut pthread_key_t, Destructor) -> c_int;
type Delete = unsafe extern "C" fn(pthread_key_t) -> c_int;

/// All keys that there are: glibc's PTHREAD_KEYS_MAX. A key is a number below.
pub(crate) const MOST: usize = 1024;
/// A key that nobody has.
const FREE: usize = 0;
/// A key without destructor: whose it is, nobody can tell.
const PLAIN: usize = 1;

/// For each key FREE, PLAIN, or its destructor's address.
static KEYS: [AtomicUsize; MOST] = [const { AtomicUsize::new(FREE) }; MOST];

static CREATE: Real = Real::new(c"pthread_key_create");
static DELETE: Real = Real::new(c"pthread_key_delete");

/// A function of the C library that one of ours stands before.
pub(crate) struct Real {
    name: &'static CStr,
    address: AtomicPtr<c_void>,
}

impl Real {
    pub(crate) const fn new(name: &'static CStr) -> Self {
        Self { name, address: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// The function. None: the C library has none of this name.
    ///
    /// # Safety
    /// `F` must be the type of the function with this name.
    pub(crate) unsafe fn get<F: Copy>(&self) -> Option<F> {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        let mut address = self.address.load(Ordering::Acquire);
        if address.is_null() {
            // Whoever comes at the same time finds the same.
            // SAFETY: the name is a C string.
            address = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
            self.address.store(address, Ordering::Release);
        }
        // SAFETY: the caller says that `F` is a function's type; those are addresses.
        (!address.is_null()).then(|| unsafe { std::mem::transmute_copy(&address) })
    }
}

/// `pthread_key_create`, counted.
///
/// # Safety
/// As the C library says.
pub unsafe fn create(key: *mut pthread_key_t, destructor: Destructor) -> c_int {
    // SAFETY: that is its type.
    let Some(create) = (unsafe { CREATE.get::<Create>() }) else { return libc::EAGAIN };
    // SAFETY: passed on as it came.
    let failure = unsafe { create(key, destructor) };
    if failure == 0 {
        // SAFETY: it was written just now.
        let key = unsafe { *key };
        let mark = destructor.map_or(PLAIN, |destructor| destructor as *const () as usize);
        KEYS.get(key as usize).inspect(|entry| entry.store(mark, Ordering::Release));
    }
    failure
}

/// `pthread_key_delete`, counted.
///
/// # Safety
/// As the C library says.
pub unsafe fn delete(key: pthread_key_t) -> c_int {
    // SAFETY: that is its type.
    let Some(delete) = (unsafe { DELETE.get::<Delete>() }) else { return libc::EINVAL };
    let entry = KEYS.get(key as usize);
    // Before it is deleted: after that it may be somebody else's at once.
    let before = entry.map_or(FREE, |entry| entry.swap(FREE, Ordering::AcqRel));
    // SAFETY: passed on as it came.
    let failure = unsafe { delete(key) };
    if failure != 0 && before != FREE {
        entry.inspect(|entry| entry.store(before, Ordering::Release));
    }
    failure
}

/// How many keys are in use.
pub(crate) fn in_use() -> usize {
    KEYS.iter().filter(|entry| entry.load(Ordering::Acquire) != FREE).count()
}

/// The keys that have a destructor, with its address.
pub(crate) fn destructors() -> impl Iterator<Item = (pthread_key_t, usize)> {
    let marks = KEYS.iter().enumerate().map(|(key, entry)| (key, entry.load(Ordering::Acquire)));
    marks.filter(|(_, mark)| *mark > PLAIN).map(|(key, mark)| (key as pthread_key_t, mark))
}

/// Deletes a key for its owner, in whose code nothing runs any more. False: it is not that owner's now.
pub(crate) fn give_back(key: pthread_key_t, destructor: usize) -> bool {
    // SAFETY: that is its type.
    let Some(delete) = (unsafe { DELETE.get::<Delete>() }) else { return false };
    let Some(entry) = KEYS.get(key as usize) else { return false };
    // In one step: its owner may be deleting it just now, and somebody else may get it at once.
    if entry.compare_exchange(destructor, FREE, Ordering::AcqRel, Ordering::Acquire).is_err() {
        return false;
    }
    // SAFETY: any number may be asked for; glibc calls no destructor for values of a key that is deleted.
    let is_deleted = unsafe { delete(key) } == 0;
    if !is_deleted {
        // Unless somebody got it meanwhile.
        let _ = entry.compare_exchange(FREE, destructor, Ordering::AcqRel, Ordering::Acquire);
    }
    is_deleted
}

/// True where plugins get our functions, so that the counts are true.
pub(crate) fn is_active() -> bool {
    static ACTIVE: OnceLock<bool> = OnceLock::new();
    *ACTIVE.get_or_init(probe)
}

fn probe() -> bool {
    // SAFETY: the names are C strings. This is what the dynamic linker gives to whoever is opened later.
    let given = |name: &CStr| unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    let [create, delete, thread] =
        [c"pthread_key_create", c"pthread_key_delete", c"pthread_create"].map(given);
    let here = base_of(probe as *const () as *const c_void);
    if here.is_none() || [create, delete, thread].into_iter().any(|given| base_of(given) != here) {
        return false;
    }
    // They lie in this program. That they are not some others of the same name is seen by what they do.
    // SAFETY: these are their types.
    let (create, delete) = unsafe {
        (
            std::mem::transmute::<*mut c_void, Create>(create),
            std::mem::transmute::<*mut c_void, Delete>(delete),
        )
    };
    let (mut key, mark) = (0, of_the_probe as *const () as usize);
    // SAFETY: `key` is valid for writing; the destructor never gets a value.
    if unsafe { create(&mut key, Some(of_the_probe)) } != 0 {
        return false;
    }
    let was_seen = destructors().any(|entry| entry == (key, mark));
    // SAFETY: it was made above.
    unsafe { delete(key) };
    was_seen && !destructors().any(|(_, destructor)| destructor == mark)
}

/// Where the library of an address begins, if there is one.
fn base_of(address: *const c_void) -> Option<usize> {
    truth::origin(address).map(|(_, base)| base)
}

unsafe extern "C" fn of_the_probe(_: *mut c_void) {}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    static CALLED: AtomicU32 = AtomicU32::new(0);

    // It does something, so that the compiler does not make one function of it and others.
    unsafe extern "C" fn called(_: *mut c_void) {
        CALLED.fetch_add(1, Ordering::Relaxed);
    }

    fn keys_of(destructor: usize) -> Vec<pthread_key_t> {
        destructors().filter(|(_, other)| *other == destructor).map(|(key, _)| key).collect()
    }

    #[test]
    fn keys_are_counted_from_creation_to_deletion() {
        let (mut key, mark) = (0, called as *const () as usize);
        // SAFETY: `key` is valid for writing, the destructor takes any value.
        assert_eq!(unsafe { create(&mut key, Some(called)) }, 0);
        assert_eq!(keys_of(mark), [key]);
        assert!(in_use() >= 1);
        let worker = std::thread::spawn(move || {
            // SAFETY: the key exists, and its destructor takes any value.
            unsafe { libc::pthread_setspecific(key, std::ptr::without_provenance(1)) }
        });
        assert_eq!(worker.join().unwrap(), 0);
        assert_eq!(CALLED.load(Ordering::Relaxed), 1, "the C library knows the destructor");
        assert!(!give_back(key, mark + 1), "it belongs to another");
        assert!(give_back(key, mark));
        assert!(keys_of(mark).is_empty() && !give_back(key, mark));
    }

    #[test]
    fn a_value_of_a_key_that_was_given_back_is_nobodys() {
        let (mut key, mark) = (0, called as *const () as usize + 1);
        // SAFETY: `key` is valid for writing.
        assert_eq!(unsafe { create(&mut key, None) }, 0);
        KEYS[key as usize].store(mark, Ordering::Relaxed);
        // SAFETY: the key exists.
        assert_eq!(unsafe { libc::pthread_setspecific(key, std::ptr::without_provenance(1)) }, 0);
        assert!(give_back(key, mark));
        // SAFETY: glibc answers null for a key that is not there, and for one that was made anew since.
        assert!(unsafe { libc::pthread_getspecific(key) }.is_null());
    }

    #[test]
    fn a_program_without_the_hook_knows_that() {
        assert!(!is_active());
    }
}
