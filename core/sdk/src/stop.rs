//! The wish that a service stops, as something to wait for.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Set once, when the service is to stop.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    set: Mutex<bool>,
    changed: Condvar,
    #[cfg(feature = "tokio")]
    notify: tokio::sync::Notify,
}

impl Stop {
    /// False: it was set already.
    pub(crate) fn set(&self) -> bool {
        let before = std::mem::replace(&mut *self.0.set.lock().unwrap_or_else(PoisonError::into_inner), true);
        self.0.changed.notify_all();
        #[cfg(feature = "tokio")]
        self.0.notify.notify_waiters();
        !before
    }

    /// True once the service is to stop.
    pub fn is_set(&self) -> bool {
        *self.0.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the service is to stop.
    pub fn wait(&self) {
        let mut set = self.0.set.lock().unwrap_or_else(PoisonError::into_inner);
        while !*set {
            set = self.0.changed.wait(set).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits that long at most. True: the service is to stop.
    pub fn wait_for(&self, limit: Duration) -> bool {
        let set = self.0.set.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.changed.wait_timeout_while(set, limit, |set| !*set);
        *waited.unwrap_or_else(PoisonError::into_inner).0
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
