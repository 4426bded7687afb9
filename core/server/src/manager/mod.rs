//! The service manager: owns every service, and is the only one who changes what lives.
//!
//! One thread takes messages from a queue: commands, events of instances, reports, the steps of a
//! reload. It asks the [`supervisor`](crate::supervisor) what is to be done and does it; it never runs
//! a plugin's code and never waits for one, so that `status` and `stop` always get through.

mod apply;
mod back;
mod command;
mod container;
mod lives;
mod needs;
mod order;
mod perform;
mod postponed;
mod replace;
mod status;
mod told;
mod whole;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use zeph_abi::ServiceId;
use zeph_contract::Error;
use zeph_contract::event::{Change, SERVICE_CHANGED, ServiceChanged};

use crate::bus::Bus;
use crate::history::{Entry, History, What};
use crate::life;
use crate::listener::Listeners;
use crate::loader::{Loaded, Loader, short};
use crate::messages::{Job, Listed, Message};
use crate::phase::{Phase, Phases};
use crate::registry::Down;
use crate::settings::Current;
use crate::supervisor::{Conditions, Event, State};

use back::{Verdict, Watch};
pub use command::{listed, unknown_verb};
use container::{Container, Retired};
pub use order::start_order;
use whole::{Shutdown, Startup};

/// One plugin as far as it is known.
pub struct Plugin {
    /// What new instances are made of.
    pub loaded: Arc<Loaded>,
    /// The highest generation so far.
    pub newest: u32,
    /// Why its newest file is not loaded: hash and reason.
    pub refused: Option<(String, String)>,
    /// The hash of a newer file that is loaded only when somebody asks for it.
    pub waiting: Option<String>,
    /// What is loaded is new, and if it fails, the build before serves again.
    pub watch: Option<Watch>,
}

impl Plugin {
    /// What is said of a newer file that waits.
    fn waiting_build(&self) -> Option<String> {
        let name = &self.loaded.name;
        self.waiting.as_ref().map(|hash| format!("{} waits; load it: zephserver reload {name}", short(hash)))
    }
}

/// What the manager works with, and others as well.
pub struct Tools {
    pub bus: Arc<Bus>,
    pub settings: Current,
    pub listeners: Arc<Listeners>,
    pub loader: Arc<Loader>,
    pub phases: Phases,
    pub history: History,
}

/// All services of a server.
pub struct Manager {
    bus: Arc<Bus>,
    settings: Current,
    listeners: Arc<Listeners>,
    loader: Arc<Loader>,
    phases: Phases,
    history: History,
    messages: Receiver<Message>,
    sender: Sender<Message>,
    jobs: Sender<Job>,
    plugins: BTreeMap<String, Plugin>,
    containers: HashMap<u32, Container>,
    /// Slots in the order of their start.
    order: Vec<u32>,
    retired: HashMap<ServiceId, Retired>,
    candidates: HashMap<ServiceId, Sender<life::Event>>,
    /// Instances that did not stop in time, by name.
    left: HashMap<ServiceId, String>,
    startup: Option<Startup>,
    shutdown: Option<Shutdown>,
    /// Start or stop of the whole is just going on.
    goes_on: bool,
    started_at: SystemTime,
    generations: u64,
}

/// A number from 0 to 1.
fn roll() -> f64 {
    RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64
}

impl Manager {
    pub fn new(
        tools: Tools,
        (sender, messages): (Sender<Message>, Receiver<Message>),
        jobs: Sender<Job>,
    ) -> Self {
        let Tools { bus, settings, listeners, loader, phases, history } = tools;
        Self {
            bus,
            settings,
            listeners,
            loader,
            phases,
            history,
            messages,
            sender,
            jobs,
            plugins: BTreeMap::new(),
            containers: HashMap::new(),
            order: Vec::new(),
            retired: HashMap::new(),
            candidates: HashMap::new(),
            left: HashMap::new(),
            startup: None,
            shutdown: None,
            goes_on: false,
            started_at: SystemTime::now(),
            generations: 0,
        }
    }

    fn adopt(&mut self, loaded: Vec<Arc<Loaded>>, listed: Vec<Listed>) {
        for loaded in loaded {
            self.register(loaded, "the server starts");
        }
        for listed in listed {
            if let Err(error) = self.add(listed) {
                tracing::error!("{error}");
            }
        }
    }

    fn register(&mut self, loaded: Arc<Loaded>, cause: &str) {
        self.note_loaded(&loaded, cause);
        let (name, newest) = (loaded.name.clone(), loaded.generation);
        self.plugins.insert(name, Plugin { loaded, newest, refused: None, waiting: None, watch: None });
    }

    /// New instances are made of this build from now on.
    fn note_loaded(&mut self, loaded: &Loaded, cause: &str) {
        self.generations += 1;
        let entry = Entry::new(loaded.name.clone(), What::Loaded);
        self.history.record(entry.of_build(loaded.generation, &loaded.hash).because(cause));
    }

    /// Makes room for a service that does not run yet.
    fn add(&mut self, listed: Listed) -> Result<u32, Error> {
        let slot = self.bus.registry.resolve(&listed.path.to_string())?;
        slot.set_down(Down::Coming);
        let container = Container::new(slot.number, listed, self.history.clone());
        self.containers.insert(slot.number, container);
        self.order.push(slot.number);
        Ok(slot.number)
    }

    /// Takes messages until `Quit`. On a thread of its own.
    pub fn run(mut self) {
        loop {
            let wakes = self.containers.values().filter_map(|container| container.wake);
            let watches = self.plugins.values().filter_map(|plugin| Some(plugin.watch.as_ref()?.until));
            let shutdown = self.shutdown.as_ref().and_then(|shutdown| shutdown.until);
            let retired = self.retired.values().filter_map(Retired::until);
            let wake = wakes.chain(watches).chain(shutdown).chain(retired).min();
            let message = match wake {
                Some(at) => self.messages.recv_deadline(at),
                None => self.messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match message {
                Ok(Message::Quit) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.wake_due();
            self.see_to_blocked();
        }
    }

    fn wake_due(&mut self) {
        let now = Instant::now();
        self.end_watches(now);
        self.name_overdue(now);
        if self.shutdown.as_ref().is_some_and(|shutdown| shutdown.until.is_some_and(|until| until <= now)) {
            self.go_on();
        }
        let is_due = |container: &&Container| container.wake.is_some_and(|at| at <= now);
        let due: Vec<u32> = self.containers.values().filter(is_due).map(|container| container.slot).collect();
        for slot in due {
            self.note_overdue(slot);
            self.with(slot, |container| container.wake = None);
            self.step(slot, Event::Due);
        }
    }

    fn note_overdue(&mut self, slot: u32) {
        self.with(slot, |container| {
            let settings = &container.settings.options;
            if container.supervisor.state() == State::Starting {
                let step = container.life.as_ref().map_or("create", |life| life.step());
                let limit = settings.start_timeout.as_secs_f64();
                let reason = format!("not ready within {limit} s (start_timeout); it hangs in {step}");
                container.fail(What::Failed, reason);
            }
        });
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Life { id, event } => self.on_life(id, event),
            Message::Ready(id) => self.on_ready(id),
            Message::Metrics(id, metrics) => self.with_instance(id, |container| container.metrics = metrics),
            Message::Checkpoint(id, state) => self.on_checkpoint(id, state),
            Message::Crashed(crash) => self.on_crash(crash),
            Message::Called(_) if self.is_stopping() => {}
            Message::Called(slot) => self.wish(slot, Event::Called, "it was called"),
            Message::Adopt(loaded, listed) => self.adopt(loaded, listed),
            Message::StartAll(ticket) => self.start_all(ticket),
            Message::StopAll(ticket) => self.stop_all(ticket),
            Message::Command(command, ticket) => self.on_command(command, ticket),
            Message::Replacing(step) => self.on_replacing(step),
            Message::Applying(step) => self.on_applying(*step),
            Message::Opened(opened, waiting) => self.on_opened(opened, *waiting),
            Message::Drained(id) => self.on_drained(id),
            Message::Quit => {}
        }
    }

    fn with<R>(&mut self, slot: u32, f: impl FnOnce(&mut Container) -> R) -> Option<R> {
        self.containers.get_mut(&slot).map(f)
    }

    /// Runs `f` on the container whose present instance `id` is (a serial of 0 means just that).
    fn with_instance(&mut self, id: ServiceId, f: impl FnOnce(&mut Container)) {
        let container = id.slot().and_then(|slot| self.containers.get_mut(&slot));
        if let Some(container) = container.filter(|container| container.is_now(id)) {
            f(container);
        }
    }

    /// Takes somebody's wish that a service starts or stops; the history says why it did.
    fn wish(&mut self, slot: u32, event: Event, reason: impl Into<Cow<'static, str>>) {
        self.with(slot, |container| match event {
            Event::Stop => container.stop_reason = Some(reason.into()),
            _ => container.start_reason = Some(reason.into()),
        });
        self.step(slot, event);
    }

    /// Takes an event of a service: asks the supervisor and does what it says.
    fn step(&mut self, slot: u32, event: Event) {
        let Some(container) = self.containers.get_mut(&slot) else { return };
        if container.reloading {
            return container.postponed.add(event);
        }
        match self.verdict(slot, event) {
            Verdict::Usual => self.step_now(slot, event),
            verdict => self.go_back(slot, verdict),
        }
    }

    /// The same, whatever else is under way.
    fn step_now(&mut self, slot: u32, event: Event) {
        let conditions = Conditions { now: Instant::now(), roll: roll(), needs: self.needs(slot) };
        let Some(container) = self.containers.get_mut(&slot) else { return };
        let before = container.supervisor.state();
        let actions = container.supervisor.step(event, conditions);
        container.record_step(before, event);
        for action in actions {
            self.perform(slot, action);
        }
        self.note(slot, before);
        self.go_on();
    }

    /// What follows from a new state: why callers wait or not, who hears of it, which waits are over.
    fn note(&mut self, slot: u32, before: State) {
        let Some(container) = self.containers.get_mut(&slot) else { return };
        let state = container.supervisor.state();
        container.note_wish(before);
        if state != before {
            container.since = SystemTime::now();
        }
        if !matches!(state, State::Stopping { .. } | State::Blocked) {
            // Fulfilled, or without effect.
            (container.start_reason, container.stop_reason) = (None, None);
        }
        if matches!(state, State::Enabled | State::Ended | State::Available | State::Blocked) {
            container.wake = None;
        }
        let stopped = matches!(before, State::Stopping { .. } | State::Waiting { .. } | State::Blocked);
        if state == State::Available && stopped {
            // Whoever was stopped in order begins from nothing.
            container.checkpoint = None;
            tracing::info!("{}: stopped", container.path);
            // Nobody will accept there; whoever connects is to be told so at once.
            self.listeners.release(&container.path.to_string());
        }
        if matches!(state, State::Stopping { .. }) {
            container.checkpoint = None;
        }
        if matches!(state, State::Waiting { .. } | State::Ended) {
            container.close();
        }
        let down = container.down(before);
        container.answer_tickets();
        if let (Some(down), Some(slot)) = (down, self.bus.registry.slot(u64::from(slot))) {
            slot.set_down(down);
        }
        if before == State::Enabled && state != State::Enabled {
            self.tell_change(slot, Change::Down);
        }
    }

    fn tell_change(&self, slot: u32, change: Change) {
        let Some(slot) = self.bus.registry.slot(u64::from(slot)) else { return };
        let generation = slot.generation.load(Ordering::Relaxed);
        let instance = slot.instance.load(Ordering::Relaxed);
        let event = ServiceChanged { service: slot.name.clone(), generation, instance, change };
        if let Ok(payload) = serde_json::to_vec(&event) {
            self.bus.publish(SERVICE_CHANGED, &payload);
        }
    }

    fn is_stopping(&self) -> bool {
        self.phases.now() == Phase::Stopping
    }
}
