//! The wish that a service stops, as something to wait for; and, before that, that it serves.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use zeph_abi::StopReason;

/// Set once, when the service is to stop.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
    #[cfg(feature = "tokio")]
    notify: tokio::sync::Notify,
}

#[derive(Debug, Default)]
struct State {
    is_serving: bool,
    is_set: bool,
    is_replaced: bool,
}

impl Stop {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Callers are let in.
    pub(crate) fn set_serving(&self) {
        self.state().is_serving = true;
        self.0.changed.notify_all();
    }

    /// Waits until callers are let in. False: it is to stop instead.
    pub(crate) fn until_serving(&self) -> bool {
        let wait = |state: &mut State| !state.is_serving && !state.is_set;
        let waited = self.0.changed.wait_while(self.state(), wait);
        // One that is to stop as soon as it serves has something to end in order.
        waited.unwrap_or_else(PoisonError::into_inner).is_serving
    }

    /// False: it was set already.
    pub(crate) fn set(&self, reason: StopReason) -> bool {
        let mut state = self.state();
        let before = std::mem::replace(&mut state.is_set, true);
        state.is_replaced |= !before && reason == StopReason::Replaced;
        drop(state);
        self.0.changed.notify_all();
        #[cfg(feature = "tokio")]
        self.0.notify.notify_waiters();
        !before
    }

    /// True where it is to stop because a new generation serves in its place.
    pub fn is_replaced(&self) -> bool {
        self.state().is_replaced
    }

    /// True once the service is to stop.
    pub fn is_set(&self) -> bool {
        self.state().is_set
    }

    /// Waits until the service is to stop.
    pub fn wait(&self) {
        drop(self.0.changed.wait_while(self.state(), |state| !state.is_set));
    }

    /// Waits that long at most. True: the service is to stop.
    pub fn wait_for(&self, limit: Duration) -> bool {
        let waited = self.0.changed.wait_timeout_while(self.state(), limit, |state| !state.is_set);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_set
    }

    /// Waits until the service is to stop, in async code.
    #[cfg(feature = "tokio")]
    pub async fn stopped(&self) {
        let notified = self.0.notify.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        if !self.is_set() {
            notified.await;
        }
    }
}
