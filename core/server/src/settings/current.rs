//! The settings in force. `apply` exchanges them while the server runs, so nobody keeps them.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use super::Settings;

/// The settings in force, for all threads.
#[derive(Clone)]
pub struct Current(Arc<ArcSwap<Settings>>);

impl Current {
    /// The settings that the server was started with.
    pub fn new(settings: Arc<Settings>) -> Self {
        Self(Arc::new(ArcSwap::new(settings)))
    }

    /// The settings in force, to work with.
    pub fn get(&self) -> Arc<Settings> {
        self.0.load_full()
    }

    /// A short look at them: no lock, and nothing is counted.
    pub fn look(&self) -> Guard<Arc<Settings>> {
        self.0.load()
    }

    /// These are in force from now on.
    pub fn set(&self, settings: Settings) {
        self.0.store(Arc::new(settings));
    }
}
