//! Names and slots: what handles are resolved against. A slot belongs to a service's path for as long
//! as the server runs, whether something lives in it or not.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use zeph_abi::Gate;
use zeph_contract::Error;

use crate::mailbox::Mailbox;

/// How many names a server knows at most. A bound against plugins that make up names without end.
pub const CAPACITY: usize = 4096;

/// One service's name and the way to whoever lives under it.
pub struct Slot {
    /// Its number: the handle.
    pub number: u32,
    /// The service's path.
    pub name: String,
    /// Where calls enter.
    pub gate: &'static Gate,
    /// Events that wait for their delivery.
    pub mailbox: Mailbox,
    /// Which load of its library serves; 0: none.
    pub generation: AtomicU32,
    /// Serial of the instance that serves, or did last.
    pub instance: AtomicU32,
    serials: AtomicU32,
    /// Instances up to this serial were told to stop.
    pub stopping: AtomicU32,
    /// Direct calls to it that took longer than a second.
    pub slow_calls: AtomicU64,
    /// Why it does not serve, for the error of whoever calls it.
    down: Mutex<Down>,
}

/// Why a service does not serve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Down {
    /// Nobody ever made a service of this name.
    #[default]
    Unknown,
    /// It is on its way: wait.
    Coming,
    /// A call brings it back.
    Asleep,
    /// A call does not bring it back.
    Off(String),
}

/// All slots of a server.
pub struct Registry {
    slots: Box<[OnceLock<Slot>]>,
    names: Mutex<HashMap<String, u32>>,
}

impl Registry {
    /// No names yet. Slot 0 is the server itself.
    pub fn new() -> Self {
        let registry = Self {
            slots: (0..CAPACITY).map(|_| OnceLock::new()).collect(),
            names: Mutex::new(HashMap::new()),
        };
        let _ = registry.resolve("zephserver");
        registry
    }

    /// The slot of a name; made where there is none.
    pub fn resolve(&self, name: &str) -> Result<&Slot, Error> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let next = names.len() as u32;
        let number = *names.entry(name.into()).or_insert(next);
        let Some(cell) = self.slots.get(number as usize) else {
            names.remove(name);
            return Err(Error::busy(format!("this server knows {CAPACITY} service names already")));
        };
        Ok(cell.get_or_init(|| Slot {
            number,
            name: name.into(),
            gate: Gate::new(),
            mailbox: Mailbox::default(),
            generation: AtomicU32::new(0),
            instance: AtomicU32::new(0),
            serials: AtomicU32::new(0),
            stopping: AtomicU32::new(0),
            slow_calls: AtomicU64::new(0),
            down: Mutex::new(Down::default()),
        }))
    }

    /// The slot of a number that `resolve` gave.
    #[inline]
    pub fn slot(&self, number: u64) -> Option<&Slot> {
        self.slots.get(number as usize)?.get()
    }

    /// The name of a slot, for messages.
    pub fn name(&self, number: u32) -> &str {
        self.slot(u64::from(number)).map_or("(unknown)", |slot| &slot.name)
    }
}

impl Slot {
    /// The serial of the next instance of this name.
    pub fn next_serial(&self) -> u32 {
        self.serials.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Why it does not serve.
    pub fn down(&self) -> Down {
        self.down.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says why it does not serve.
    pub fn set_down(&self, down: Down) {
        *self.down.lock().unwrap_or_else(PoisonError::into_inner) = down;
        self.gate.wake();
    }
}
