//! The manager's own record of one service.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::Sender;
use serde_json::{Value, json};
use zeph_abi::{Instance, Seat, ServiceId, StopReason};
use zeph_contract::Error;

use super::postponed::Postponed;
use crate::history::{Entry, History, What, milliseconds};
use crate::life::{Birth, Inherited, Order};
use crate::loader::{Loaded, short};
use crate::messages::{Listed, Ticket};
use crate::registry::Down;
use crate::reload::Steps;
use crate::settings::{ServiceOptions, ServicePath, ServiceSettings};
use crate::supervisor::{Event, State, Supervisor};

/// One service.
pub struct Container {
    pub slot: u32,
    pub path: ServicePath,
    /// Those in force.
    pub settings: ServiceSettings,
    /// Why newer ones are not.
    pub settings_refused: Option<String>,
    /// What must be ready before it starts: paths, or names of libraries.
    pub needs: Vec<String>,
    pub supervisor: Supervisor,
    pub life: Option<Life>,
    /// When the supervisor wants to be asked again.
    pub wake: Option<Instant>,
    /// A reload holds it: what happens meanwhile waits in `postponed`.
    pub reloading: bool,
    pub postponed: Postponed,
    pub restarts: u64,
    pub failure: Option<String>,
    pub failure_count: u64,
    /// It is to run: it was started, was not stopped since, and has not ended as it may.
    pub is_wanted: bool,
    pub since: SystemTime,
    pub metrics: Value,
    pub checkpoint: Option<Inherited>,
    history: History,
    /// Generation and hash of its present instance, or of the one before.
    build: Option<(u32, String)>,
    /// Why it was told to start, and to stop.
    pub start_reason: Option<Cow<'static, str>>,
    pub stop_reason: Option<Cow<'static, str>>,
    /// Who waits until it runs.
    pub start_tickets: Vec<Ticket>,
    /// Who waits until it does not.
    pub stop_tickets: Vec<Ticket>,
}

/// The present instance of a service.
pub struct Life {
    pub id: ServiceId,
    /// What it is made of.
    pub loaded: Arc<Loaded>,
    pub generation: u32,
    pub hash: String,
    pub orders: Sender<Order>,
    pub instance: Option<Arc<Instance>>,
    pub seat: Option<&'static Seat>,
    /// What reloads ask of it.
    pub steps: Arc<Steps>,
    pub main_runs: bool,
    /// It said itself that it is ready.
    pub reported: bool,
}

/// An instance that serves no more and ends by itself.
pub struct Retired {
    life: Life,
    /// Its main has returned, or never ran.
    main_is_over: bool,
    /// It has no call inside and no job left, or is not to finish them.
    is_drained: bool,
    ended: bool,
    /// How long it may take to stop.
    stop_timeout: Duration,
    /// By when it is to be gone, from when it was told to stop until it was named.
    until: Option<Instant>,
}

impl Life {
    pub fn new(id: ServiceId, loaded: &Arc<Loaded>, orders: Sender<Order>) -> Self {
        Self {
            id,
            loaded: loaded.clone(),
            generation: loaded.generation,
            hash: short(&loaded.hash).into(),
            orders,
            instance: None,
            seat: None,
            steps: Arc::default(),
            main_runs: false,
            reported: false,
        }
    }

    /// What it is at while it starts.
    pub fn step(&self) -> &'static str {
        match (&self.instance, self.main_runs) {
            (None, _) => "create",
            (Some(_), false) => "init",
            (Some(_), true) => "main, and never reported ready",
        }
    }

    /// Asks the instance to stop. On a thread of its own, since `disable` is the author's code.
    pub fn stop(&self, name: &str, reason: StopReason) {
        let Some(instance) = self.instance.clone() else { return };
        let owned = name.to_string();
        let asked = std::thread::Builder::new().name("zephserver-stop".into()).spawn(move || {
            if let Err(failure) = instance.stop(reason) {
                tracing::error!("{owned}: disable failed: {failure}");
            }
        });
        if let Err(error) = asked {
            tracing::error!("{name}: cannot be asked to stop: no thread: {error}");
        }
    }
}

impl Retired {
    pub fn new(life: Life, stop_timeout: Duration) -> Self {
        let main_is_over = !life.main_runs && life.instance.is_some();
        Self { life, main_is_over, is_drained: false, ended: false, stop_timeout, until: None }
    }

    /// Asks it to stop, once it has nothing left to do.
    pub fn stop(&mut self, name: &str, reason: StopReason) {
        if !std::mem::replace(&mut self.is_drained, true) {
            self.until = Some(Instant::now() + self.stop_timeout);
            if self.life.main_runs {
                self.life.stop(name, reason);
            }
        }
        self.end_if_over();
    }

    /// When it is to be looked at.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Once, where it is not gone in time: how much time it had.
    pub fn overdue(&mut self, now: Instant) -> Option<Duration> {
        self.until.take_if(|until| *until <= now).map(|_| self.stop_timeout)
    }

    /// It did not stop in time: it ends when it ends.
    pub fn give_up(&mut self) {
        self.is_drained = true;
        self.end_if_over();
    }

    /// Its main has returned, or could not begin.
    pub fn main_ended(&mut self) {
        self.main_is_over = true;
        self.end_if_over();
    }

    /// Has it destroyed. Its thread does so when the last caller has left, and is to be the last owner.
    fn end_if_over(&mut self) {
        if self.main_is_over && self.is_drained && !std::mem::replace(&mut self.ended, true) {
            self.life.instance = None;
            let _ = self.life.orders.try_send(Order::End(self.life.seat));
        }
    }

    /// It was replaced by a reload, and finishes its calls and jobs.
    pub fn drains(&self) -> bool {
        !self.is_drained
    }

    pub fn generation(&self) -> u32 {
        self.life.generation
    }

    /// Its generation and hash.
    pub fn build(&self) -> (u32, &str) {
        (self.life.generation, self.life.hash.as_str())
    }
}

impl Container {
    pub fn new(slot: u32, listed: Listed, history: History) -> Self {
        let Listed { path, settings, needs } = listed;
        Self {
            slot,
            path,
            supervisor: Supervisor::new(settings.options.clone()),
            settings,
            settings_refused: None,
            needs,
            life: None,
            wake: None,
            reloading: false,
            postponed: Postponed::default(),
            restarts: 0,
            failure: None,
            failure_count: 0,
            is_wanted: false,
            since: SystemTime::now(),
            metrics: Value::Null,
            checkpoint: None,
            history,
            build: None,
            start_reason: None,
            stop_reason: None,
            start_tickets: Vec::new(),
            stop_tickets: Vec::new(),
        }
    }

    /// These options count from now on.
    pub fn set_options(&mut self, options: ServiceOptions) {
        self.supervisor.adapt(options.clone());
        self.settings.options = options;
    }

    /// True where `id` is the present instance; a serial of 0 leaves that open.
    pub fn is_now(&self, id: ServiceId) -> bool {
        self.life.as_ref().is_some_and(|life| id.serial() == 0 || life.id == id)
    }

    /// What a new instance is made of.
    pub fn birth(&self, loaded: &Loaded, id: ServiceId) -> Birth {
        Birth {
            library: loaded.library.clone(),
            id,
            kind: self.path.kind.clone(),
            name: self.path.to_string(),
            settings: self.settings.values.clone(),
        }
    }

    /// Its instance exists. True: it is not wanted any more.
    pub fn created(&mut self, instance: Arc<Instance>) -> bool {
        if let Some(life) = &mut self.life {
            life.instance = Some(instance);
        }
        matches!(self.supervisor.state(), State::Stopping { .. })
    }

    pub fn main_runs(&mut self, runs: bool) {
        if let Some(life) = &mut self.life {
            life.main_runs = runs;
        }
    }

    /// Makes an instance the present one; answers the one before.
    pub fn replace_life(&mut self, life: Life) -> Option<Life> {
        self.build = Some((life.generation, life.hash.clone()));
        self.life.replace(life)
    }

    /// It failed in this way, for this reason: no failure is without an entry in the history.
    pub fn fail(&mut self, what: What, reason: String) {
        self.record(what, Some(&reason));
        self.failure = Some(reason);
        self.failure_count += 1;
    }

    fn entry(&self, what: What) -> Entry {
        let entry = Entry::new(self.path.to_string(), what);
        match &self.build {
            Some((generation, hash)) => entry.of_build(*generation, hash),
            None => entry,
        }
    }

    /// Notes what happened to it.
    pub fn record(&self, what: What, cause: Option<&str>) {
        let entry = self.entry(what);
        self.history.record(match cause {
            Some(cause) => entry.because(cause),
            None => entry,
        });
    }

    /// Notes what an event has led to from where it stood `before`. What actions do they note themselves.
    pub fn record_step(&self, before: State, event: Event) {
        match (before, event, self.supervisor.state()) {
            (State::Stopping { .. }, Event::Gone, _)
            | (State::Waiting { .. } | State::Blocked, Event::Stop, State::Available) => {
                self.record(What::Stopped, self.stop_reason.as_deref());
            }
            (_, _, State::Blocked) if before != State::Blocked => {
                self.record(What::Waiting, Some("what it needs is not ready"));
            }
            (_, _, after @ State::Waiting { until, .. }) if after != before => {
                let retry_at = SystemTime::now() + until.saturating_duration_since(Instant::now());
                let entry = Entry { retry_at: Some(milliseconds(retry_at)), ..self.entry(What::Waiting) };
                self.history.record(entry);
            }
            _ => {}
        }
    }

    /// Lets nobody in any more.
    pub fn close(&mut self) -> Option<&'static Seat> {
        let seat = self.life.as_ref().and_then(|life| life.seat);
        if let Some(seat) = seat {
            seat.close();
        }
        seat
    }

    /// Notes whether it is to run, by where it stands now and where it stood `before`.
    pub fn note_wish(&mut self, before: State) {
        self.is_wanted = match self.supervisor.state() {
            State::Starting | State::Blocked | State::Enabled | State::Stopping { again: true } => true,
            State::Ended | State::Stopping { again: false } => false,
            // Nothing but a stop leads from there to here.
            State::Available
                if matches!(before, State::Stopping { .. } | State::Blocked | State::Waiting { .. }) =>
            {
                false
            }
            State::Available | State::Waiting { .. } => self.is_wanted,
        };
    }

    /// Why it does not serve, for its callers, and where it stood `before`. None: it does.
    pub fn down(&self, before: State) -> Option<Down> {
        let failure = || self.failure.clone().unwrap_or_default();
        let name = &self.path;
        Some(match self.supervisor.state() {
            State::Enabled => return None,
            // Where what it needs does not come, the manager says so.
            State::Starting | State::Blocked => Down::Coming,
            State::Ended => Down::Asleep,
            State::Available if matches!(before, State::Enabled | State::Ended) => Down::Asleep,
            State::Available if before == State::Starting => {
                Down::Off(format!("it did not start ({}); start it: zephserver start {name}", failure()))
            }
            State::Available => Down::Off(format!("it is disabled; start it: zephserver start {name}")),
            State::Stopping { again: true } => Down::Coming,
            State::Stopping { again: false } => Down::Off("it is being stopped".into()),
            State::Waiting { fresh: false, .. } => Down::Asleep,
            State::Waiting { until, .. } => {
                let wait = until.saturating_duration_since(Instant::now());
                match wait.as_millis() {
                    0..=1500 => Down::Coming,
                    _ => Down::Off(format!(
                        "it failed ({}) and is tried again in {} s",
                        failure(),
                        wait.as_secs()
                    )),
                }
            }
        })
    }

    /// Tells whoever waits for its start why it does not run.
    pub fn fail_starts(&mut self, reason: &str) {
        let error = Error::unavailable(format!("{} does not run: {reason}", self.path));
        self.start_tickets.drain(..).for_each(|ticket| ticket.answer(Err(error.clone())));
    }

    /// Answers whoever waited for the state that it has reached.
    pub fn answer_tickets(&mut self) {
        let state = self.supervisor.state();
        match state {
            State::Enabled => {
                let generation = self.life.as_ref().map_or(0, |life| life.generation);
                let view =
                    json!({"service": self.path.to_string(), "state": "enabled", "generation": generation});
                self.start_tickets.drain(..).for_each(|ticket| ticket.answer(Ok(view.clone())));
            }
            State::Waiting { .. } | State::Available => {
                let reason = self.failure.clone().unwrap_or_else(|| "it was stopped".into());
                self.fail_starts(&reason);
            }
            State::Ended | State::Starting | State::Blocked | State::Stopping { .. } => {}
        }
        match state {
            State::Available => {
                let view = json!({"service": self.path.to_string(), "state": "available"});
                self.stop_tickets.drain(..).for_each(|ticket| ticket.answer(Ok(view.clone())));
            }
            // It is to run again, and the stop that was waited for does not come any more.
            State::Enabled | State::Starting | State::Blocked | State::Waiting { .. }
                if !self.postponed.has_stop() =>
            {
                let again = Error::cancelled(format!("{} was started again meanwhile", self.path));
                self.stop_tickets.drain(..).for_each(|ticket| ticket.answer(Err(again.clone())));
            }
            _ => {}
        }
    }
}
