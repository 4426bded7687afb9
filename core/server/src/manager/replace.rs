//! The manager's part in a reload: it lends the services of a library to the reloader, and makes the
//! new instances the present ones when the reloader says so.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender};
use serde_json::{Map, Value};
use zeph_abi::{Instance, Seat, ServiceId, StopReason};
use zeph_contract::Error;
use zeph_contract::event::Change;

use super::container::{Life, Retired};
use super::{Manager, life};
use crate::bus::Bus;
use crate::loader::Loaded;
use crate::settings::{ServiceOptions, ServicePath};
use crate::supervisor::{Event, State};

/// The steps of a reload that only the manager can do.
pub enum Replacing {
    /// Lend me the services of this library, and leave them alone meanwhile.
    Begin { library: String, ticket: Sender<Result<Borrowed, Error>> },
    /// Send me what this new instance tells.
    Candidate { id: ServiceId, events: Sender<life::Event> },
    /// The new instances serve from now on.
    Commit { loaded: Arc<Loaded>, candidates: Vec<Candidate>, ticket: Sender<()> },
    /// Nothing has changed; the file (its hash) is not to be tried again for this reason.
    Abort { library: String, refused: Option<(String, String)> },
}

/// What the reloader is lent.
pub struct Borrowed {
    pub loaded: Arc<Loaded>,
    pub subjects: Vec<Subject>,
    /// Hash and reason of the newest file that was refused.
    pub refused: Option<(String, String)>,
}

/// A service that runs, to be replaced.
pub struct Subject {
    pub slot: u32,
    pub path: ServicePath,
    pub values: Map<String, Value>,
    pub options: ServiceOptions,
    pub instance: Arc<Instance>,
    pub seat: &'static Seat,
}

/// Its successor, ready to serve.
pub struct Candidate {
    pub slot: u32,
    pub id: ServiceId,
    pub orders: Sender<life::Order>,
    pub instance: Arc<Instance>,
    pub values: Map<String, Value>,
    /// State was handed over: what belonged to the one before belongs to it now.
    pub inherits: bool,
    /// What it has told since it is ready.
    pub events: Receiver<life::Event>,
}

impl Manager {
    pub(super) fn on_replacing(&mut self, step: Replacing) {
        match step {
            Replacing::Begin { library, ticket } => {
                let borrowed = self.lend(&library);
                let _ = ticket.send(borrowed);
            }
            Replacing::Candidate { id, events } => {
                self.candidates.insert(id, events);
            }
            Replacing::Commit { loaded, candidates, ticket } => {
                self.commit(loaded, candidates);
                let _ = ticket.send(());
            }
            Replacing::Abort { library, refused } => self.abort(&library, refused),
        }
    }

    fn lend(&mut self, library: &str) -> Result<Borrowed, Error> {
        let plugin = self.plugins.get(library);
        let Some(plugin) = plugin else {
            return Err(Error::not_found(format!(
                "plugin `{library}` is not loaded; start it: zephserver start {library}"
            )));
        };
        if self.is_stopping() || self.startup.is_some() {
            return Err(Error::unavailable("the server starts or stops; nothing is reloaded meanwhile"));
        }
        let of_library = |slot: &&u32| self.containers.get(slot).is_some_and(|c| c.path.library == library);
        let slots: Vec<u32> = self.order.iter().filter(of_library).copied().collect();
        for container in slots.iter().filter_map(|slot| self.containers.get(slot)) {
            if matches!(container.supervisor.state(), State::Starting | State::Stopping { .. }) {
                return Err(Error::busy(format!(
                    "{} is just starting or stopping; try again",
                    container.path
                )));
            }
        }
        let (loaded, refused) = (plugin.loaded.clone(), plugin.refused.clone());
        let mut subjects = Vec::new();
        for slot in slots {
            let Some(container) = self.containers.get_mut(&slot) else { continue };
            let Some(life) =
                container.life.as_ref().filter(|_| container.supervisor.state() == State::Enabled)
            else {
                continue;
            };
            let (Some(instance), Some(seat)) = (life.instance.clone(), life.seat) else { continue };
            subjects.push(Subject {
                slot,
                path: container.path.clone(),
                values: container.settings.values.clone(),
                options: container.settings.options.clone(),
                instance,
                seat,
            });
            container.reloading = true;
        }
        Ok(Borrowed { loaded, subjects, refused })
    }

    fn commit(&mut self, loaded: Arc<Loaded>, candidates: Vec<Candidate>) {
        let library = loaded.name.clone();
        self.register(loaded.clone());
        for candidate in candidates {
            self.take_over(&loaded, candidate);
        }
        self.release(&library);
        // Who could not run with the old build may run with the new one.
        let waits: Vec<u32> = self
            .containers
            .values()
            .filter(|c| c.path.library == library && matches!(c.supervisor.state(), State::Waiting { .. }))
            .map(|container| container.slot)
            .collect();
        waits.into_iter().for_each(|slot| self.step(slot, Event::Start));
    }

    fn take_over(&mut self, loaded: &Arc<Loaded>, candidate: Candidate) {
        let Candidate { slot, id, orders, instance, values, inherits, events } = candidate;
        self.candidates.remove(&id);
        // This thread forwards them: whatever came before now is in the channel.
        let main_runs = !events.try_iter().any(|event| matches!(event, life::Event::Returned(_)));
        let Some(place) = self.bus.registry.slot(u64::from(slot)) else { return };
        let Some(container) = self.containers.get_mut(&slot) else { return };
        let seat = place.gate.seat(instance.clone(), id.serial());
        let mut new = Life::new(id, loaded, orders);
        (new.instance, new.seat, new.main_runs, new.reported) = (Some(instance), Some(seat), main_runs, true);
        let old = container.life.replace(new);
        container.settings.values = values;
        container.since = SystemTime::now();
        // What happened to the old instance meanwhile does not concern the new one; a wish to stop does.
        container.postponed.retain(|event| matches!(event, Event::Stop | Event::Start));
        container.supervisor.replaced(container.settings.options.clone());
        if !inherits {
            self.bus.subscriptions.keep_only(slot, id.serial());
            self.bus.clock.keep_only(slot, id.serial());
        }
        place.generation.store(loaded.generation, Ordering::Relaxed);
        place.gate.admit(seat);
        tracing::info!("{}: generation {} serves", place.name, loaded.generation);
        self.tell_change(slot, Change::Reloaded);
        if let Some(old) = old {
            self.drain(old);
        }
        if !main_runs {
            self.step(slot, Event::Returned { well: true });
        }
    }

    /// Lets an old instance finish its calls and jobs, then asks it to stop.
    fn drain(&mut self, old: Life) {
        let (id, seat, instance) = (old.id, old.seat, old.instance.clone());
        let runs = old.main_runs;
        let mut retired = Retired::new(old);
        if !runs {
            retired.end();
        }
        self.retired.insert(id, retired);
        self.mark_stopping(id);
        let (bus, limit) = (self.bus.clone(), self.bus.limits.drain_timeout);
        let drained = std::thread::Builder::new().name("zephserver-drain".into()).spawn(move || {
            wait_until_drained(&bus, id, seat, limit);
            if let (Some(instance), true) = (instance, runs)
                && let Err(failure) = instance.stop(StopReason::Replaced)
            {
                tracing::error!("{}: the old instance's disable failed: {failure}", bus.who(id));
            }
        });
        if let Err(error) = drained {
            tracing::error!("{}: the old instance stays: no thread to drain it: {error}", self.bus.who(id));
        }
    }

    fn abort(&mut self, library: &str, refused: Option<(String, String)>) {
        if let (Some(plugin), Some(refused)) = (self.plugins.get_mut(library), refused) {
            plugin.refused = Some(refused);
        }
        self.release(library);
    }

    /// The reload is over, one way or the other: what was postponed happens now.
    fn release(&mut self, library: &str) {
        let held: Vec<u32> = self
            .containers
            .values()
            .filter(|container| container.reloading && container.path.library == library)
            .map(|container| container.slot)
            .collect();
        for slot in held {
            let postponed = self.with(slot, |container| {
                container.reloading = false;
                std::mem::take(&mut container.postponed)
            });
            for event in postponed.into_iter().flatten() {
                self.step(slot, event);
            }
        }
    }
}

/// Waits until an instance has no call inside and no job left; cancels the jobs at the limit.
fn wait_until_drained(bus: &Bus, id: ServiceId, seat: Option<&'static Seat>, limit: Duration) {
    let deadline = Instant::now() + limit;
    let is_idle = || bus.pending.of_callee(id) == 0 && seat.is_none_or(|seat| seat.inside() == 0);
    while !is_idle() && Instant::now() < deadline {
        match seat {
            Some(seat) if seat.inside() > 0 => {
                seat.quiesce(deadline.min(Instant::now() + Duration::from_millis(20)));
            }
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    if !is_idle() {
        let text =
            format!("{}: not done {} s after a new generation took over", bus.who(id), limit.as_secs());
        tracing::warn!("{text}");
        bus.fail_calls_of(id, &Error::cancelled(text));
    }
}
