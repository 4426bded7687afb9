//! The gate: where every call enters an instance, and what a reload shuts.
//!
//! A [`Gate`] belongs to a service's name and lives for ever. It leads to the current [`Seat`], which
//! holds one instance. Entering is one atomic addition on the seat's word, leaving one subtraction:
//!
//! ```text
//! word = CLOSED | SHUT | QUIET | callers inside
//! ```
//! * open: callers come and go.
//! * SHUT: callers wait ([`Closed::Shut`]), but whoever comes from inside may pass ([`Gate::enter_inside`]).
//! * SHUT + QUIET: nobody is inside and nobody may pass; set only together with "callers = 0".
//! * CLOSED: the seat has no instance, or one that takes no calls any more ([`Closed::Down`]).
//!
//! Seats are never freed: a caller may hold one that was replaced a moment ago. They are used again for
//! later instances of the same name, once nobody is inside, so that their number is that of the
//! instances that ever lived at the same time.

use std::cell::UnsafeCell;
use std::ops::Deref;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use crate::instance::Instance;

const CLOSED: u64 = 1 << 63;
const SHUT: u64 = 1 << 62;
const QUIET: u64 = 1 << 61;
const FLAGS: u64 = CLOSED | SHUT | QUIET;

/// Why nobody can enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// A reload holds the gate: wait.
    Shut,
    /// No instance serves.
    Down,
}

/// The place of one instance behind a gate.
pub struct Seat {
    word: AtomicU64,
    instance: UnsafeCell<Option<Arc<Instance>>>,
    serial: AtomicU32,
    gate: &'static Gate,
}

// SAFETY: `instance` is written only while the word says CLOSED with nobody inside (`Gate::seat`,
// `Seat::vacate`, both under the gate's lock), and read only by those who are inside.
unsafe impl Sync for Seat {}
// SAFETY: as above.
unsafe impl Send for Seat {}

/// The way to the instances of one service's name.
pub struct Gate {
    current: AtomicPtr<Seat>,
    seats: Mutex<Vec<&'static Seat>>,
    changed: Condvar,
}

/// A caller inside: leaves when dropped.
pub struct Entry {
    seat: &'static Seat,
}

impl Deref for Entry {
    type Target = Instance;

    #[inline]
    fn deref(&self) -> &Instance {
        // SAFETY: we are counted in the word, so the instance stays until we leave.
        match unsafe { &*self.seat.instance.get() } {
            Some(instance) => instance,
            None => unreachable!("an open seat has an instance"),
        }
    }
}

impl Drop for Entry {
    #[inline]
    fn drop(&mut self) {
        self.seat.leave();
    }
}

impl Entry {
    /// The seat that was entered.
    pub fn seat(&self) -> &'static Seat {
        self.seat
    }
}

impl Gate {
    /// A gate with no instance behind it.
    pub fn new() -> &'static Self {
        let gate: &'static Self = Box::leak(Box::new(Self {
            current: AtomicPtr::new(std::ptr::null_mut()),
            seats: Mutex::new(Vec::new()),
            changed: Condvar::new(),
        }));
        let empty = gate.free_seat(&mut gate.seats());
        gate.current.store(empty as *const Seat as *mut Seat, Ordering::Release);
        gate
    }

    fn seats(&self) -> std::sync::MutexGuard<'_, Vec<&'static Seat>> {
        self.seats.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn free_seat(&'static self, seats: &mut Vec<&'static Seat>) -> &'static Seat {
        // SAFETY: under the gate's lock; a closed seat with nobody inside has no reader.
        let is_free = |seat: &&&'static Seat| {
            seat.word.load(Ordering::Acquire) == CLOSED && unsafe { (*seat.instance.get()).is_none() }
        };
        if let Some(seat) = seats.iter().find(is_free) {
            return seat;
        }
        let seat: &'static Seat = Box::leak(Box::new(Seat {
            word: AtomicU64::new(CLOSED),
            instance: UnsafeCell::new(None),
            serial: AtomicU32::new(0),
            gate: self,
        }));
        seats.push(seat);
        seat
    }

    #[inline]
    fn current(&self) -> &'static Seat {
        // SAFETY: set in `new`, and seats are never freed.
        unsafe { &*self.current.load(Ordering::Acquire) }
    }

    /// Enters the current instance.
    #[inline]
    pub fn enter(&self) -> Result<Entry, Closed> {
        loop {
            let seat = self.current();
            let before = seat.word.fetch_add(1, Ordering::SeqCst);
            if before & FLAGS == 0 {
                return Ok(Entry { seat });
            }
            seat.leave();
            if !std::ptr::eq(seat, self.current()) {
                continue;
            }
            return Err(if before & CLOSED != 0 { Closed::Down } else { Closed::Shut });
        }
    }

    /// Enters through a shut gate, for a caller whose chain is inside already. Refused once the gate
    /// is quiet: then the chain's outer call is not inside any more.
    pub fn enter_inside(&self) -> Result<Entry, Closed> {
        let seat = self.current();
        let mut word = seat.word.load(Ordering::SeqCst);
        loop {
            if word & CLOSED != 0 {
                return Err(Closed::Down);
            }
            if word & QUIET != 0 || word & !FLAGS == 0 {
                return Err(Closed::Shut);
            }
            match seat.word.compare_exchange(word, word + 1, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Ok(Entry { seat }),
                Err(now) => word = now,
            }
        }
    }

    /// Waits until the gate is open, or the deadline. The caller tries again either way.
    pub fn wait(&self, deadline: Instant) {
        let mut seats = self.seats();
        while self.current().word.load(Ordering::SeqCst) & FLAGS != 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            seats = self.changed.wait_timeout(seats, left).unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }

    /// Takes a seat for an instance, the `serial`-th of its name; nobody can enter it before [`Gate::admit`].
    pub fn seat(&'static self, instance: Arc<Instance>, serial: u32) -> &'static Seat {
        let mut seats = self.seats();
        let seat = self.free_seat(&mut seats);
        // SAFETY: free, and we hold the gate's lock.
        unsafe { *seat.instance.get() = Some(instance) };
        seat.serial.store(serial, Ordering::Relaxed);
        seat
    }

    /// Makes a seat the current one and opens it; the one before is closed. Waiting callers go on.
    pub fn admit(&self, seat: &'static Seat) {
        let seats = self.seats();
        let before = self.current();
        seat.word.fetch_and(!FLAGS, Ordering::SeqCst);
        self.current.store(seat as *const Seat as *mut Seat, Ordering::SeqCst);
        if !std::ptr::eq(before, seat) {
            before.word.fetch_or(CLOSED, Ordering::SeqCst);
        }
        drop(seats);
        self.changed.notify_all();
    }

    /// Lets waiting callers look again.
    pub fn wake(&self) {
        drop(self.seats());
        self.changed.notify_all();
    }

    /// True while an instance serves or a reload holds the gate.
    pub fn is_up(&self) -> bool {
        self.current().word.load(Ordering::SeqCst) & CLOSED == 0
    }
}

impl Seat {
    #[inline]
    fn leave(&self) {
        let before = self.word.fetch_sub(1, Ordering::SeqCst);
        // Only the last one to leave can be what somebody waits for.
        if before & FLAGS != 0 && before & !FLAGS == 1 {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        self.gate.wake();
    }

    /// The serial of its instance. Sure only for whoever is inside.
    pub fn serial(&self) -> u32 {
        self.serial.load(Ordering::Relaxed)
    }

    /// Lets callers wait from now on.
    pub fn shut(&self) {
        self.word.fetch_or(SHUT, Ordering::SeqCst);
    }

    /// Lets callers in again after [`Seat::shut`].
    pub fn open(&self) {
        self.word.fetch_and(!(SHUT | QUIET), Ordering::SeqCst);
        self.wake();
    }

    /// Lets nobody in any more. False: it was closed already.
    pub fn close(&self) -> bool {
        let before = self.word.fetch_or(CLOSED, Ordering::SeqCst);
        self.wake();
        before & CLOSED == 0
    }

    /// True once nobody is let in any more.
    pub fn is_closed(&self) -> bool {
        self.word.load(Ordering::SeqCst) & CLOSED != 0
    }

    /// How many callers are inside.
    pub fn inside(&self) -> u64 {
        self.word.load(Ordering::SeqCst) & !FLAGS
    }

    /// Waits until nobody is inside the shut or closed seat, and keeps it so. False at the deadline,
    /// and for a seat that is open.
    pub fn quiesce(&self, deadline: Instant) -> bool {
        let mut seats = self.gate.seats();
        loop {
            let word = self.word.load(Ordering::SeqCst);
            if word & (SHUT | CLOSED) == 0 {
                return false;
            }
            if word & !FLAGS == 0 {
                let quiet = word | QUIET;
                if self.word.compare_exchange(word, quiet, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                    return true;
                }
                continue;
            }
            let now = Instant::now();
            if now >= deadline {
                return false;
            }
            let waited = self.gate.changed.wait_timeout(seats, deadline - now);
            seats = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }

    /// Takes the instance out of a closed seat once nobody is inside; None while somebody is, or where
    /// it was taken already. The seat is free then.
    pub fn vacate(&self) -> Option<Arc<Instance>> {
        let _seats = self.gate.seats();
        // Whoever passes by now sees CLOSED and touches only the word.
        let word = self.word.load(Ordering::SeqCst);
        if word & CLOSED == 0 || word & !FLAGS != 0 {
            return None;
        }
        // SAFETY: closed, nobody inside, and we hold the gate's lock.
        let instance = unsafe { (*self.instance.get()).take() };
        self.word.fetch_and(!(SHUT | QUIET), Ordering::SeqCst);
        instance
    }
}
