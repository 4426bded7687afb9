//! Where the server as a whole stands. A phase is published only when it is true.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Where the server stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Not every service is ready yet.
    Starting,
    /// Every service serves.
    Ready,
    /// It was asked to stop.
    Stopping,
    /// Everything has ended; the lock is free.
    Stopped,
}

impl Phase {
    /// The word that `status` says.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

/// The phase, to be set and waited for.
#[derive(Clone)]
pub struct Phases(Arc<(Mutex<Phase>, Condvar)>);

impl Default for Phases {
    fn default() -> Self {
        Self(Arc::new((Mutex::new(Phase::Starting), Condvar::new())))
    }
}

impl Phases {
    /// The phase now.
    pub fn now(&self) -> Phase {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on to a phase. False: it is there already, or beyond.
    pub fn advance(&self, phase: Phase) -> bool {
        let mut now = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = *now < phase;
        if is_new {
            *now = phase;
            self.0.1.notify_all();
        }
        is_new
    }

    /// Waits for a phase, or one beyond it. False: not within the limit.
    pub fn wait_for(&self, phase: Phase, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut now = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        while *now < phase {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            now = self.0.1.wait_timeout(now, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Waits for a phase, or one beyond it.
    pub fn wait(&self, phase: Phase) {
        let now = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.0.1.wait_while(now, |now| *now < phase));
    }
}
