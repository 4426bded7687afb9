//! What happens to a service when something happened to it: a pure function from state, event and
//! conditions to the next state and actions. The manager performs the actions and decides nothing itself.
//!
//! ```text
//!            Start                Ready                Stop
//! Available ───────► Starting ───────────► Enabled ───────────► Stopping ─► Available
//!     ▲                 │ failed              │ main returned        Gone, or overdue
//!     │                 ▼                     ▼ crashed
//!     └──────────── Waiting (back-off) ◄──────┘
//!      Stop             │ due ─► Starting, or Enabled again with the same instance
//!
//! Enabled ─ main returned, and is not to be run again by itself ─► Ended ─ called ─► Enabled
//! every arrow to Starting, while something that it needs is missing ─► Blocked ─ NeedsReady ─► Starting
//! ```
//! A first failure within a period is mended at once; from the second on there is a growing wait with
//! full jitter; beyond the intensity the service is on probation: it is tried again slowly, for ever.
//! Being blocked is no failure, and counts for nothing. A manual start always works, and forgets what was.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::settings::{Restart, ServiceOptions};

/// First wait of the back-off.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Longest wait of the back-off, and the wait between tries on probation.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Where a service stands. "Available" and "enabled" are the words of the seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It does not run.
    Available,
    /// It is to run, and waits until everything that it needs is ready. There is no instance.
    Blocked,
    /// It is being made, or gets ready.
    Starting,
    /// Its main runs, and it serves.
    Enabled,
    /// Its main has returned and is not run again by itself; the instance is there, and a call or a
    /// start runs it again.
    Ended,
    /// It was asked to stop. `again`: it is started again afterwards.
    Stopping { again: bool },
    /// It failed, and is tried again then. `fresh`: with a new instance.
    Waiting { until: Instant, fresh: bool },
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody wants it to run.
    Start,
    /// Everything that it needs is ready.
    NeedsReady,
    /// It serves now.
    Ready,
    /// It could not start, or not in time.
    Failed,
    /// Its main returned without being asked to; `well`: without an error.
    Returned { well: bool },
    /// An entry panicked.
    Crashed,
    /// Somebody wants it to stop.
    Stop,
    /// Its instance is gone.
    Gone,
    /// The time set by the last action has come.
    Due,
    /// Somebody calls it while it does not run.
    Called,
    /// Its library has a new build, and what there is of this service is of the old one.
    NewBuild,
}

/// What a decision depends on, beside state and event.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// The time.
    pub now: Instant,
    /// A random number from 0 to 1, for the jitter.
    pub roll: f64,
    /// Whether it could start.
    pub needs: Needs,
}

/// How the services stand that must be ready before this one starts. They count for its start only:
/// one that goes down later stops nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// All are ready.
    Met,
    /// At least one is not.
    Missing,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make an instance and start it.
    Launch,
    /// Run `main` of the same instance again.
    RunAgain,
    /// Let callers in.
    Serve,
    /// Let nobody in, ask the instance to stop, and forget it: it ends by itself.
    Discard,
    /// Let nobody in and ask the instance to stop; wait for it.
    AskStop,
    /// It did not stop in time: count it, name it, go on without it.
    LeaveBehind,
    /// Send `Due` at that time; replaces an earlier one.
    Wake(Instant),
}

/// Where it stands next, and what is to be done for it.
type Decision = (State, Vec<Action>);

/// The supervisor of one service.
#[derive(Clone, Debug)]
pub struct Supervisor {
    state: State,
    options: ServiceOptions,
    /// When it was restarted within the period; the latest only, as many as matter.
    restarts: VecDeque<Instant>,
}

impl Supervisor {
    /// A service that does not run.
    pub fn new(options: ServiceOptions) -> Self {
        Self { state: State::Available, options, restarts: VecDeque::new() }
    }

    /// Where the service stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Takes other options, which count from the next event on.
    pub fn adapt(&mut self, options: ServiceOptions) {
        self.options = options;
    }

    /// Takes an event.
    pub fn step(&mut self, event: Event, conditions: Conditions) -> Vec<Action> {
        let (next, actions) = self.decide(event, &conditions);
        self.state = next;
        actions
    }

    fn decide(&mut self, event: Event, conditions: &Conditions) -> Decision {
        use Action::*;
        if event == Event::Start {
            self.forget_if_it_waits();
        }
        let unchanged = (self.state, Vec::new());
        match (self.state, event) {
            (State::Available, Event::Start | Event::Called) => self.launch(conditions, vec![]),
            (State::Available, _) => unchanged,

            (State::Blocked, Event::NeedsReady | Event::Start | Event::Called) => {
                self.launch(conditions, vec![])
            }
            (State::Blocked, Event::Stop) => (State::Available, vec![]),
            (State::Blocked, _) => unchanged,

            (State::Starting, Event::Ready) => (State::Enabled, vec![Serve]),
            (
                State::Starting,
                Event::Failed | Event::Due | Event::Crashed | Event::Returned { .. } | Event::Gone,
            ) => self.fall(conditions),
            (State::Enabled, Event::Crashed | Event::Failed | Event::Gone) => self.fall(conditions),
            (State::Enabled, Event::Returned { well }) => match self.options.restart {
                Restart::Temporary => (State::Ended, vec![]),
                Restart::Transient if well => (State::Ended, vec![]),
                _ => self.run_again(conditions),
            },
            (State::Starting | State::Enabled, Event::Stop) => self.stop(conditions, false),
            (State::Starting | State::Enabled, Event::NewBuild) => self.stop(conditions, true),
            (State::Starting | State::Enabled, _) => unchanged,

            (State::Ended, Event::Start | Event::Called) => (State::Enabled, vec![RunAgain]),
            (State::Ended, Event::Stop) => self.stop(conditions, false),
            (State::Ended, Event::Crashed | Event::Gone | Event::NewBuild) => {
                (State::Available, vec![Discard])
            }
            (State::Ended, _) => unchanged,

            (State::Waiting { fresh: true, .. }, Event::Due | Event::Start) => {
                self.launch(conditions, vec![])
            }
            (State::Waiting { fresh: true, .. }, Event::NewBuild) => self.begin_anew(conditions, vec![]),
            (State::Waiting { fresh: true, .. }, Event::Stop) => (State::Available, vec![]),
            (State::Waiting { fresh: false, .. }, Event::Due | Event::Start | Event::Called) => {
                (State::Enabled, vec![RunAgain])
            }
            (State::Waiting { fresh: false, .. }, Event::NewBuild) => {
                self.begin_anew(conditions, vec![Discard])
            }
            (State::Waiting { fresh: false, .. }, Event::Stop) => self.stop(conditions, false),
            (State::Waiting { fresh: false, .. }, Event::Crashed | Event::Gone) => self.fall(conditions),
            // A call does not shorten the wait for a new instance: else a busy caller would undo it.
            (State::Waiting { .. }, _) => unchanged,

            (State::Stopping { again }, Event::Gone) => self.stopped(again, conditions, vec![]),
            (State::Stopping { again }, Event::Due) => self.stopped(again, conditions, vec![LeaveBehind]),
            (State::Stopping { .. }, Event::Start) => (State::Stopping { again: true }, vec![]),
            (State::Stopping { .. }, Event::Stop) => (State::Stopping { again: false }, vec![]),
            (State::Stopping { .. }, _) => unchanged,
        }
    }

    fn forget_if_it_waits(&mut self) {
        if matches!(self.state, State::Waiting { .. } | State::Blocked) {
            self.restarts.clear();
        }
    }

    /// A new instance, as soon as everything that it needs is ready.
    fn launch(&self, conditions: &Conditions, mut actions: Vec<Action>) -> Decision {
        match conditions.needs {
            Needs::Missing => (State::Blocked, actions),
            Needs::Met => {
                let limit = conditions.now + self.options.start_timeout;
                actions.extend([Action::Launch, Action::Wake(limit)]);
                (State::Starting, actions)
            }
        }
    }

    /// What failed with the old build may do better with the new one.
    fn begin_anew(&mut self, conditions: &Conditions, actions: Vec<Action>) -> Decision {
        self.restarts.clear();
        self.launch(conditions, actions)
    }

    fn stop(&self, conditions: &Conditions, again: bool) -> Decision {
        let limit = conditions.now + self.options.stop_timeout;
        // The limit first: it may be gone as soon as it is asked, and what follows sets its own.
        (State::Stopping { again }, vec![Action::Wake(limit), Action::AskStop])
    }

    fn stopped(&mut self, again: bool, conditions: &Conditions, actions: Vec<Action>) -> Decision {
        self.restarts.clear();
        if again { self.launch(conditions, actions) } else { (State::Available, actions) }
    }

    /// Its instance is not to be trusted any more: another one, now or later.
    fn fall(&mut self, conditions: &Conditions) -> Decision {
        if self.options.restart == Restart::Temporary {
            return (State::Available, vec![Action::Discard]);
        }
        match self.wait(conditions) {
            None => self.launch(conditions, vec![Action::Discard]),
            Some(until) => {
                (State::Waiting { until, fresh: true }, vec![Action::Discard, Action::Wake(until)])
            }
        }
    }

    /// Its main returned: the same instance once more, now or later.
    fn run_again(&mut self, conditions: &Conditions) -> Decision {
        match self.wait(conditions) {
            None => (State::Enabled, vec![Action::RunAgain]),
            Some(until) => (State::Waiting { until, fresh: false }, vec![Action::Wake(until)]),
        }
    }

    /// Until when to wait before this restart, which is counted. None: at once.
    fn wait(&mut self, conditions: &Conditions) -> Option<Instant> {
        let Conditions { now, roll, .. } = *conditions;
        let ServiceOptions { period, intensity, .. } = self.options;
        self.restarts.retain(|at| now.saturating_duration_since(*at) < period);
        let before = self.restarts.len() as u32;
        self.restarts.push_back(now);
        // From `intensity` on the count says nothing new, and the latest are the last to be forgotten.
        if before >= intensity.max(1) {
            self.restarts.pop_front();
        }
        let wait = match before {
            0 => return None,
            _ if before >= intensity => LONGEST_WAIT,
            _ => {
                let longest = FIRST_WAIT * 2u32.saturating_pow(before - 1).min(1 << 20);
                longest.min(LONGEST_WAIT).mul_f64(roll.clamp(0.01, 1.0))
            }
        };
        Some(now + wait)
    }
}

#[cfg(test)]
mod tests;
