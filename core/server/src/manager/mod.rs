//! The service manager: owns every service, and is the only one who changes what lives.
//!
//! One thread takes messages from a queue: commands, events of instances, reports, the steps of a
//! reload. It asks the [`supervisor`](crate::supervisor) what is to be done and does it; it never runs
//! a plugin's code and never waits for one, so that `status` and `stop` always get through.

mod command;
mod container;
pub mod life;
mod order;
mod replace;
mod status;

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use zeph_abi::{Readiness, ServiceId, StopReason, status::PANICKED};
use zeph_contract::Error;
use zeph_contract::event::{Change, SERVICE_CHANGED, ServiceChanged};

use crate::bus::Bus;
use crate::loader::Loaded;
use crate::phase::{Phase, Phases};
use crate::registry::Down;
use crate::reload::Job;
use crate::settings::{ServiceOptions, ServicePath, ServiceSettings, Settings};
use crate::supervisor::{Action, Event, State};

pub use command::{Command, Ticket, listed, unknown_verb};
use container::{Container, Life, Retired};
pub use order::start_order;
pub use replace::{Borrowed, Candidate, Replacing, Subject};

/// How many messages wait for the manager at most; who sends more waits.
const QUEUE: usize = 4096;

/// A panic in an entry of an instance.
pub struct Crash {
    pub slot: u32,
    pub serial: u32,
    /// Where: `call greet/1`.
    pub step: String,
    /// What the panic said, with file and line.
    pub text: String,
}

/// What the manager is told.
pub enum Message {
    /// An instance's thread tells something.
    Life { id: ServiceId, event: life::Event },
    /// A service reports that it is ready.
    Ready(ServiceId),
    /// A service reports figures.
    Metrics(ServiceId, serde_json::Value),
    /// A service leaves state for after a crash.
    Checkpoint(ServiceId, Vec<u8>),
    /// An entry panicked.
    Crashed(Crash),
    /// Somebody calls a service that sleeps.
    Called(u32),
    /// The libraries are open and the settings checked: this is to live.
    Adopt(Vec<Arc<Loaded>>, Vec<Listed>),
    /// Start everything that was adopted; the answer is the reason why that failed.
    StartAll(Sender<Result<(), String>>),
    /// Stop everything; the answer names who did not stop.
    StopAll(Sender<Vec<String>>),
    /// Somebody wants something.
    Command(Command, Ticket),
    /// A reload goes on.
    Replacing(Replacing),
    /// A library was opened for a command that waits for it.
    Opened(Result<Loaded, Error>, Box<(Command, Ticket)>),
    /// An instance that was replaced has no call inside and no job left.
    Drained(ServiceId),
    /// Nothing more comes.
    Quit,
}

/// One plugin as far as it is known.
pub struct Plugin {
    /// What is loaded of it.
    pub loaded: Arc<Loaded>,
    /// Why its newest file is not loaded: hash and reason.
    pub refused: Option<(String, String)>,
}

/// A service as SERVICE_LIST and its plugin want it.
pub struct Listed {
    pub path: ServicePath,
    pub settings: ServiceSettings,
    /// Services that must be ready first.
    pub needs: Vec<String>,
}

/// The start of the whole server.
struct Startup {
    /// Still to be started, in order.
    rest: std::collections::VecDeque<u32>,
    current: Option<u32>,
    ticket: Sender<Result<(), String>>,
}

/// The stop of the whole server.
struct Shutdown {
    rest: Vec<u32>,
    current: Option<u32>,
    /// Until when replaced instances are waited for, once all services have stopped.
    until: Option<Instant>,
    ticket: Sender<Vec<String>>,
}

/// All services of a server.
pub struct Manager {
    bus: Arc<Bus>,
    settings: Arc<Settings>,
    phases: Phases,
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
    started_at: SystemTime,
    generations: u64,
}

/// The queue towards a manager.
pub fn queue() -> (Sender<Message>, Receiver<Message>) {
    crossbeam_channel::bounded(QUEUE)
}

/// A number from 0 to 1.
fn roll() -> f64 {
    RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64
}

impl Manager {
    pub fn new(
        bus: Arc<Bus>,
        settings: Arc<Settings>,
        phases: Phases,
        (sender, messages): (Sender<Message>, Receiver<Message>),
        jobs: Sender<Job>,
    ) -> Self {
        Self {
            bus,
            settings,
            phases,
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
            started_at: SystemTime::now(),
            generations: 0,
        }
    }

    fn adopt(&mut self, loaded: Vec<Arc<Loaded>>, listed: Vec<Listed>) {
        for loaded in loaded {
            self.register(loaded);
        }
        for Listed { path, settings, .. } in listed {
            if let Err(error) = self.add(path, settings) {
                tracing::error!("{error}");
            }
        }
    }

    fn register(&mut self, loaded: Arc<Loaded>) {
        self.generations += 1;
        self.plugins.insert(loaded.name.clone(), Plugin { loaded, refused: None });
    }

    /// Makes room for a service that does not run yet.
    fn add(&mut self, path: ServicePath, settings: ServiceSettings) -> Result<u32, Error> {
        let slot = self.bus.registry.resolve(&path.to_string())?;
        slot.set_down(Down::Coming);
        self.containers.insert(slot.number, Container::new(slot.number, path, settings));
        self.order.push(slot.number);
        Ok(slot.number)
    }

    fn start_all(&mut self, ticket: Sender<Result<(), String>>) {
        if self.is_stopping() {
            let _ = ticket.send(Err("it was stopped while it started".into()));
            return;
        }
        self.startup = Some(Startup { rest: self.order.iter().copied().collect(), current: None, ticket });
        self.go_on();
    }

    fn stop_all(&mut self, ticket: Sender<Vec<String>>) {
        if let Some(startup) = self.startup.take() {
            let _ = startup.ticket.send(Err("it was stopped while it started".into()));
        }
        // A reload that is under way is over: its commit will be refused.
        let libraries: Vec<String> = self.plugins.keys().cloned().collect();
        libraries.iter().for_each(|library| self.release(library));
        let names: Vec<(ServiceId, String)> =
            self.retired.keys().map(|id| (*id, self.bus.who(*id).to_string())).collect();
        for (id, name) in names {
            self.bus.fail_calls_of(id, &Error::cancelled("the server stops"));
            self.retired
                .get_mut(&id)
                .into_iter()
                .for_each(|retired| retired.stop(&name, StopReason::Replaced));
        }
        self.shutdown = Some(Shutdown { rest: self.order.clone(), current: None, until: None, ticket });
        self.go_on();
    }

    /// Takes messages until `Quit`. On a thread of its own.
    pub fn run(mut self) {
        loop {
            let wakes = self.containers.values().filter_map(|container| container.wake);
            let wake = wakes.chain(self.shutdown.as_ref().and_then(|shutdown| shutdown.until)).min();
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
        }
    }

    fn wake_due(&mut self) {
        let now = Instant::now();
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
                container.fail(format!("not ready within {limit} s (start_timeout); it hangs in {step}"));
            }
        });
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Life { id, event } => self.on_life(id, event),
            Message::Ready(id) => self.on_ready(id),
            Message::Metrics(id, metrics) => self.with_instance(id, |container| container.metrics = metrics),
            Message::Checkpoint(id, state) => {
                self.with_instance(id, |container| container.checkpoint = Some(state));
            }
            Message::Crashed(crash) => self.on_crash(crash),
            Message::Called(_) if self.is_stopping() => {}
            Message::Called(slot) => self.step(slot, Event::Called),
            Message::Adopt(loaded, listed) => self.adopt(loaded, listed),
            Message::StartAll(ticket) => self.start_all(ticket),
            Message::StopAll(ticket) => self.stop_all(ticket),
            Message::Command(command, ticket) => self.on_command(command, ticket),
            Message::Replacing(step) => self.on_replacing(step),
            Message::Opened(opened, waiting) => self.on_opened(opened, *waiting),
            Message::Drained(id) => self.on_drained(id),
            Message::Quit => {}
        }
    }

    fn on_drained(&mut self, id: ServiceId) {
        let name = self.bus.who(id).to_string();
        if let Some(retired) = self.retired.get_mut(&id) {
            retired.stop(&name, StopReason::Replaced);
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

    fn on_life(&mut self, id: ServiceId, event: life::Event) {
        if let Some(candidate) = self.candidates.get(&id) {
            // The reload waits for it; gone means that it has given up.
            if candidate.send(event).is_err() {
                self.candidates.remove(&id);
            }
            return;
        }
        let Some(slot) = id.slot() else { return };
        if !self.containers.get(&slot).is_some_and(|container| container.is_now(id)) {
            return self.on_retired(id, event);
        }
        match event {
            life::Event::Created(instance) => {
                let stopping = self.with(slot, |container| container.created(instance)).unwrap_or(true);
                let order = match stopping {
                    true => life::Order::End(None),
                    false => life::Order::Start(self.checkpoint(slot)),
                };
                self.order(slot, order);
            }
            life::Event::Initialized => self.on_initialized(slot),
            life::Event::Failed { step, failure } => {
                tracing::error!("{}: {step} failed: {failure}", self.bus.registry.name(slot));
                self.with(slot, |container| {
                    container.main_runs(false);
                    container.fail(format!("{step}: {failure}"));
                });
                self.ended(slot, Event::Failed);
            }
            life::Event::Returned(result) => {
                self.with(slot, |container| container.main_runs(false));
                self.on_returned(slot, result);
            }
            life::Event::Ready => {}
            life::Event::Gone => {
                self.with(slot, |container| container.life = None);
                self.forget_dealings(slot, id);
                self.step(slot, Event::Gone);
            }
        }
    }

    /// What an instance that follows a failed one begins with.
    fn checkpoint(&self, slot: u32) -> Option<life::Inherited> {
        let container = self.containers.get(&slot)?;
        let bytes = container.checkpoint.clone()?;
        let plugin = self.plugins.get(&container.path.library)?;
        let version = plugin.loaded.declaration.service(&container.path.kind)?.state_version;
        Some(life::Inherited { version, state: zeph_abi::Exported { bytes, fds: Vec::new() } })
    }

    fn on_initialized(&mut self, slot: u32) {
        let Some(container) = self.containers.get_mut(&slot) else { return };
        container.main_runs(true);
        let stopping = matches!(container.supervisor.state(), State::Stopping { .. });
        let kind = container.path.kind.clone();
        let is_ready = container.life.as_ref().is_some_and(|life| life.reported);
        let readiness = self.declared(slot, &kind);
        if stopping {
            self.ask_stop(slot, StopReason::Disabled);
        } else if readiness == Readiness::Initialized || is_ready {
            self.step(slot, Event::Ready);
        }
    }

    fn declared(&self, slot: u32, kind: &str) -> Readiness {
        let container = self.containers.get(&slot);
        let plugin = container.and_then(|container| self.plugins.get(&container.path.library));
        let service = plugin.and_then(|plugin| plugin.loaded.declaration.service(kind));
        service.map_or(Readiness::Initialized, |service| service.readiness)
    }

    fn on_ready(&mut self, id: ServiceId) {
        let Some(slot) = id.slot() else { return };
        if let Some(candidate) = self.candidates.get(&id) {
            let _ = candidate.send(life::Event::Ready);
            return;
        }
        let initialized = self
            .containers
            .get_mut(&slot)
            .filter(|container| container.is_now(id))
            .and_then(|container| container.life.as_mut())
            .map(|life| {
                life.reported = true;
                life.main_runs
            });
        if initialized == Some(true) {
            self.step(slot, Event::Ready);
        }
    }

    fn on_returned(&mut self, slot: u32, result: Result<(), zeph_abi::Failure>) {
        let name = self.bus.registry.name(slot).to_string();
        let stopping = self
            .containers
            .get(&slot)
            .is_some_and(|container| matches!(container.supervisor.state(), State::Stopping { .. }));
        let event = match &result {
            Ok(()) if stopping => Event::Returned { well: true },
            Ok(()) => {
                tracing::warn!("{name}: main returned without being asked to; it is run again");
                Event::Returned { well: true }
            }
            Err(failure) if failure.status == PANICKED => {
                tracing::error!("{name}: crashed in main: {failure}");
                self.with(slot, |container| container.fail(format!("main {failure}")));
                Event::Crashed
            }
            Err(failure) => {
                tracing::error!("{name}: main failed: {failure}");
                self.with(slot, |container| container.fail(format!("main: {failure}")));
                Event::Returned { well: false }
            }
        };
        self.ended(slot, event);
    }

    /// `main` is over, or never began: the thread waits for its next order.
    fn ended(&mut self, slot: u32, event: Event) {
        let state = self.containers.get(&slot).map(|container| container.supervisor.state());
        if matches!(state, Some(State::Stopping { .. })) {
            let seat = self.containers.get_mut(&slot).and_then(|container| container.close());
            return self.order(slot, life::Order::End(seat));
        }
        self.step(slot, event);
    }

    /// An instance that was discarded or replaced, or is left behind, ends on its own.
    fn on_retired(&mut self, id: ServiceId, event: life::Event) {
        match event {
            life::Event::Gone => {
                self.retired.remove(&id);
                self.left.remove(&id);
                self.go_on();
            }
            life::Event::Returned(_) | life::Event::Failed { .. } | life::Event::Created(_) => {
                // Its thread is to be the last owner of the instance.
                drop(event);
                self.retired.get_mut(&id).into_iter().for_each(Retired::main_ended);
            }
            life::Event::Initialized | life::Event::Ready => {}
        }
    }

    fn on_crash(&mut self, crash: Crash) {
        let id = ServiceId::instance(crash.slot, crash.serial);
        if !self.containers.get(&crash.slot).is_some_and(|container| container.is_now(id)) {
            let name = self.bus.registry.name(crash.slot);
            tracing::error!("{name}: an instance that was replaced {} in {}", crash.text, crash.step);
            return;
        }
        tracing::error!("{}: crashed in {}: {}", self.bus.registry.name(crash.slot), crash.step, crash.text);
        self.with(crash.slot, |container| container.fail(format!("{} {}", crash.step, crash.text)));
        self.step(crash.slot, Event::Crashed);
    }

    /// Takes an event of a service: asks the supervisor and does what it says.
    fn step(&mut self, slot: u32, event: Event) {
        let Some(container) = self.containers.get_mut(&slot) else { return };
        if container.reloading {
            return container.postponed.push(event);
        }
        let before = container.supervisor.state();
        let actions = container.supervisor.step(event, Instant::now(), roll());
        for action in actions {
            self.perform(slot, action);
        }
        self.note(slot, before);
        self.go_on();
    }

    fn perform(&mut self, slot: u32, action: Action) {
        match action {
            Action::Launch => self.launch(slot),
            Action::RunAgain => {
                self.with(slot, |container| {
                    container.restarts += 1;
                    container.main_runs(true);
                });
                self.order(slot, life::Order::Again);
                self.reopen(slot);
            }
            Action::Serve => self.serve(slot),
            Action::Discard => self.discard(slot, StopReason::Failed),
            Action::AskStop => self.ask_stop(slot, StopReason::Disabled),
            Action::LeaveBehind => self.leave_behind(slot),
            Action::Wake(at) => {
                self.with(slot, |container| container.wake = Some(at));
            }
        }
    }

    /// What follows from a new state: why callers wait or not, who hears of it, which waits are over.
    fn note(&mut self, slot: u32, before: State) {
        let Some(container) = self.containers.get_mut(&slot) else { return };
        let state = container.supervisor.state();
        if state != before {
            container.since = SystemTime::now();
        }
        if matches!(state, State::Enabled | State::Ended | State::Available) {
            container.wake = None;
        }
        if matches!(state, State::Stopping { .. }) {
            // Whoever is stopped in order begins from nothing.
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
        let generation = slot.generation.load(std::sync::atomic::Ordering::Relaxed);
        let event = ServiceChanged { service: slot.name.clone(), generation, change };
        if let Ok(payload) = serde_json::to_vec(&event) {
            self.bus.publish(SERVICE_CHANGED, &payload);
        }
    }

    fn order(&mut self, slot: u32, order: life::Order) {
        let life = self.containers.get_mut(&slot).and_then(|container| container.life.as_mut());
        let Some(life) = life else { return };
        if matches!(order, life::Order::End(_)) {
            // The thread is to be the last owner: what an author does in `drop` must not hold us up.
            life.instance = None;
        }
        if life.orders.try_send(order).is_err() {
            tracing::error!("{}: its thread takes no orders", self.bus.registry.name(slot));
        }
    }

    fn launch(&mut self, slot: u32) {
        let Some(container) = self.containers.get_mut(&slot) else { return };
        if container.failure_count > 0 {
            container.restarts += 1;
        }
        let loaded = match self.plugins.get(&container.path.library) {
            Some(plugin) => plugin.loaded.clone(),
            None => return container.fail("its library is not open".into()),
        };
        let Some(place) = self.bus.registry.slot(u64::from(slot)) else { return };
        place.set_down(Down::Coming);
        let id = ServiceId::instance(slot, place.next_serial());
        match life::begin(container.birth(&loaded, id), self.sender.clone()) {
            Ok(orders) => container.life = Some(Life::new(id, &loaded, orders)),
            Err(error) => {
                container.fail(format!("no thread for it: {error}"));
                container.wake = Some(Instant::now());
            }
        }
    }

    fn serve(&mut self, slot: u32) {
        let Some(place) = self.bus.registry.slot(u64::from(slot)) else { return };
        let Some(container) = self.containers.get_mut(&slot) else { return };
        let Some(life) = container.life.as_mut() else { return };
        let Some(instance) = life.instance.clone() else { return };
        let serial = life.id.serial();
        let seat = place.gate.seat(instance, serial);
        life.seat = Some(seat);
        self.bus.subscriptions.keep_only(slot, serial);
        self.bus.clock.keep_only(slot, serial);
        place.generation.store(life.generation, std::sync::atomic::Ordering::Relaxed);
        place.gate.admit(seat);
        let (name, generation) = (&place.name, life.generation);
        tracing::info!("{name}: ready (generation {generation}, {})", life.hash);
        self.tell_change(slot, Change::Ready);
    }

    /// Lets callers in again after `main` had returned.
    fn reopen(&mut self, slot: u32) {
        let Some(place) = self.bus.registry.slot(u64::from(slot)) else { return };
        let seat = self.containers.get(&slot).and_then(|container| container.life.as_ref()?.seat);
        if let Some(seat) = seat {
            place.gate.admit(seat);
        }
    }

    /// Lets nobody in, and lets the instance end by itself.
    fn discard(&mut self, slot: u32, reason: StopReason) {
        let Some(container) = self.containers.get_mut(&slot) else { return };
        container.close();
        let Some(life) = container.life.take() else { return };
        let name = self.bus.registry.name(slot).to_string();
        self.forget_dealings(slot, life.id);
        self.mark_stopping(life.id);
        let id = life.id;
        let mut retired = Retired::new(life);
        retired.stop(&name, reason);
        self.retired.insert(id, retired);
    }

    /// Ends what an instance that is gone had under way: calls to it, calls by it, timers, subscriptions.
    fn forget_dealings(&self, slot: u32, id: ServiceId) {
        let text = format!("{} ended before it answered; the log says why", self.bus.registry.name(slot));
        self.bus.fail_calls_of(id, &Error::unavailable(text));
        self.bus.cancel_calls_by(slot);
        self.bus.clock.forget(slot, 0);
        self.bus.subscriptions.forget(slot, 0);
        self.bus.registry.slot(u64::from(slot)).inspect(|slot| slot.mailbox.forget_dealings());
    }

    fn mark_stopping(&self, id: ServiceId) {
        let slot = id.slot().and_then(|slot| self.bus.registry.slot(u64::from(slot)));
        if let Some(slot) = slot {
            slot.stopping.fetch_max(id.serial(), std::sync::atomic::Ordering::Relaxed);
        }
    }

    fn ask_stop(&mut self, slot: u32, reason: StopReason) {
        let Some(container) = self.containers.get_mut(&slot) else { return };
        container.close();
        let name = self.bus.registry.name(slot).to_string();
        let Some(life) = container.life.as_mut() else {
            return self.step(slot, Event::Gone);
        };
        let id = life.id;
        if life.main_runs {
            life.stop(&name, reason);
        } else if life.instance.is_some() && life.seat.is_some() {
            // Its main had returned already: it waits for an order.
            let seat = life.seat;
            self.order(slot, life::Order::End(seat));
        }
        self.mark_stopping(id);
    }

    fn leave_behind(&mut self, slot: u32) {
        let Some(container) = self.containers.get_mut(&slot) else { return };
        container.close();
        let limit = container.settings.options.stop_timeout.as_secs_f64();
        if let Some(life) = container.life.take() {
            let name = self.bus.registry.name(slot).to_string();
            tracing::error!(
                "{name}: did not stop within {limit} s (stop_timeout); its thread is left behind"
            );
            self.bus.fail_calls_of(life.id, &Error::unavailable(format!("{name} did not stop in time")));
            container.fail(format!("did not stop within {limit} s; left behind"));
            let id = life.id;
            self.left.insert(id, name);
            let mut retired = Retired::new(life);
            retired.give_up();
            self.retired.insert(id, retired);
        }
    }

    /// Goes on with the start or the stop of the whole server.
    fn go_on(&mut self) {
        self.go_on_starting();
        self.go_on_stopping();
    }

    fn go_on_starting(&mut self) {
        while let Some(startup) = &mut self.startup {
            if let Some(slot) = startup.current {
                let Some(container) = self.containers.get(&slot) else { return };
                let failed = match container.supervisor.state() {
                    State::Enabled | State::Ended => None,
                    State::Starting if container.failure_count == 0 => return,
                    _ if container.settings.options.optional => None,
                    _ => Some(container.failure.clone().unwrap_or_else(|| "it did not start".into())),
                };
                if let Some(reason) = failed {
                    let _ = startup.ticket.send(Err(format!("{}: {reason}", container.path)));
                    self.startup = None;
                    return;
                }
                startup.current = None;
            }
            match startup.rest.pop_front() {
                Some(slot) => {
                    startup.current = Some(slot);
                    return self.step(slot, Event::Start);
                }
                None => {
                    let _ = startup.ticket.send(Ok(()));
                    self.startup = None;
                }
            }
        }
    }

    fn go_on_stopping(&mut self) {
        while let Some(shutdown) = &mut self.shutdown {
            if let Some(slot) = shutdown.current {
                match self.containers.get(&slot).map(|container| container.supervisor.state()) {
                    Some(State::Available) | None => shutdown.current = None,
                    Some(_) => return,
                }
            }
            match shutdown.rest.pop() {
                Some(slot) => {
                    shutdown.current = Some(slot);
                    return self.step(slot, Event::Stop);
                }
                None => {
                    let now = Instant::now();
                    let until = *shutdown.until.get_or_insert(now + ServiceOptions::default().stop_timeout);
                    let ending = |id: &ServiceId| !self.left.contains_key(id);
                    let names: Vec<String> = self
                        .retired
                        .keys()
                        .filter(|id| ending(id))
                        .map(|id| format!("{} (a replaced instance)", self.bus.who(*id)))
                        .collect();
                    if !names.is_empty() && now < until {
                        return;
                    }
                    let left = self.left.values().cloned().chain(names).collect();
                    let _ = shutdown.ticket.send(left);
                    self.shutdown = None;
                }
            }
        }
    }

    fn is_stopping(&self) -> bool {
        self.phases.now() == Phase::Stopping
    }
}
