//! What is due later: timers of services and deadlines of pending calls. One thread, which only hands
//! over to others.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Timers that one server keeps at most.
const CAPACITY: usize = 100_000;

#[derive(Clone, Copy)]
struct Timer {
    slot: u32,
    serial: u32,
    period: Duration,
}

/// What became due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// A timer of a slot.
    Timer { token: u64, slot: u32 },
    /// The deadline of a pending call, if it still pends.
    Call { token: u64 },
}

/// Everything that is due later.
#[derive(Default)]
pub struct Clock {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    heap: BinaryHeap<Reverse<(Instant, u64)>>,
    timers: HashMap<u64, Timer>,
    stopped: bool,
    /// How long the heap may get before what is over already is swept out.
    sweep_at: usize,
}

impl Clock {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets a timer. False: there are too many. `pends` says which calls still pend.
    pub fn set_timer(
        &self,
        token: u64,
        (slot, serial): (u32, u32),
        after: Duration,
        period: Duration,
        pends: impl Fn(u64) -> bool,
    ) -> bool {
        let mut state = self.state();
        if state.timers.len() >= CAPACITY {
            return false;
        }
        // Timers that are cancelled stay in it until they would be due.
        if state.heap.len() >= state.sweep_at {
            state.sweep(pends);
        }
        state.timers.insert(token, Timer { slot, serial, period });
        state.heap.push(Reverse((Instant::now() + after, token)));
        self.changed.notify_one();
        true
    }

    /// Ends a timer. False: there is no such one.
    pub fn cancel(&self, token: u64) -> bool {
        self.state().timers.remove(&token).is_some()
    }

    /// Ends the timers of a slot that were set by other instances than this one.
    pub fn keep_only(&self, slot: u32, serial: u32) {
        self.state().timers.retain(|_, timer| timer.slot != slot || timer.serial == serial);
    }

    /// Ends the timers that an instance set; serial 0: that any instance of the slot set.
    pub fn forget(&self, slot: u32, serial: u32) {
        let is_its = |timer: &Timer| timer.slot == slot && (serial == 0 || timer.serial == serial);
        self.state().timers.retain(|_, timer| !is_its(timer));
    }

    /// Tells about a pending call at its deadline. `pends` says which calls still pend.
    pub fn set_deadline(&self, token: u64, at: Instant, pends: impl Fn(u64) -> bool) {
        let mut state = self.state();
        if state.heap.len() >= state.sweep_at {
            state.sweep(pends);
        }
        state.heap.push(Reverse((at, token)));
        self.changed.notify_one();
    }

    /// Waits for the next thing that is due. None once it was stopped.
    pub fn next(&self) -> Option<Due> {
        let mut state = self.state();
        loop {
            if state.stopped {
                return None;
            }
            let Some(Reverse((at, token))) = state.heap.peek().copied() else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let now = Instant::now();
            if at > now {
                let waited = self.changed.wait_timeout(state, at - now);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            state.heap.pop();
            return Some(state.due(token, now));
        }
    }

    /// Ends the wait of `next`.
    pub fn stop(&self) {
        self.state().stopped = true;
        self.changed.notify_all();
    }
}

impl State {
    /// Most deadlines are over long before they are due: their calls were answered.
    fn sweep(&mut self, pends: impl Fn(u64) -> bool) {
        let timers = &self.timers;
        self.heap.retain(|Reverse((_, token))| timers.contains_key(token) || pends(*token));
        self.sweep_at = 2 * self.heap.len() + 1024;
    }

    fn due(&mut self, token: u64, now: Instant) -> Due {
        // Tokens are unique among timers and calls; a cancelled timer is an unknown call: no harm.
        let Some(timer) = self.timers.get(&token).copied() else { return Due::Call { token } };
        if timer.period.is_zero() {
            self.timers.remove(&token);
        } else {
            self.heap.push(Reverse((now + timer.period, token)));
        }
        Due::Timer { token, slot: timer.slot }
    }
}
