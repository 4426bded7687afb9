//! What happens to a service when something happened to it: a pure function from state, event and
//! time to the next state and actions. The manager performs the actions and decides nothing itself.
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
//! ```
//! A first failure within a period is mended at once; from the second on there is a growing wait with
//! full jitter; beyond the intensity the service is on probation: it is tried again slowly, for ever.
//! A manual start always works, and forgets what was.

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
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make an instance, if there is none, and start it.
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

/// The supervisor of one service.
#[derive(Clone, Debug)]
pub struct Supervisor {
    state: State,
    options: ServiceOptions,
    /// When it was restarted within the period.
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

    /// Takes an event. `roll` is a random number from 0 to 1, for the jitter.
    pub fn step(&mut self, event: Event, now: Instant, roll: f64) -> Vec<Action> {
        use Action::*;
        let start_limit = Wake(now + self.options.start_timeout);
        let stop_limit = Wake(now + self.options.stop_timeout);
        let (next, actions) = match (self.state, event) {
            (State::Available, Event::Start | Event::Called) => (State::Starting, vec![Launch, start_limit]),
            (State::Available, _) => return Vec::new(),

            (State::Starting, Event::Ready) => (State::Enabled, vec![Serve]),
            (
                State::Starting,
                Event::Failed | Event::Due | Event::Crashed | Event::Returned { .. } | Event::Gone,
            ) => {
                if self.options.restart == Restart::Temporary {
                    (State::Available, vec![Discard])
                } else {
                    return self.restart(true, now, roll, vec![Discard]);
                }
            }
            (State::Starting, Event::Stop) => (State::Stopping { again: false }, vec![AskStop, stop_limit]),
            (State::Starting, Event::Start | Event::Called) => return Vec::new(),

            (State::Enabled, Event::Returned { well }) => match self.options.restart {
                Restart::Temporary => (State::Ended, vec![]),
                Restart::Transient if well => (State::Ended, vec![]),
                _ => return self.restart(false, now, roll, Vec::new()),
            },
            (State::Enabled, Event::Crashed | Event::Failed | Event::Gone) => match self.options.restart {
                Restart::Temporary => (State::Available, vec![Discard]),
                _ => return self.restart(true, now, roll, vec![Discard]),
            },
            (State::Enabled, Event::Stop) => (State::Stopping { again: false }, vec![AskStop, stop_limit]),
            (State::Enabled, Event::Start | Event::Called | Event::Ready | Event::Due) => return Vec::new(),

            (State::Ended, Event::Start | Event::Called) => (State::Enabled, vec![RunAgain]),
            (State::Ended, Event::Stop) => (State::Stopping { again: false }, vec![AskStop, stop_limit]),
            (State::Ended, Event::Crashed | Event::Gone) => (State::Available, vec![Discard]),
            (State::Ended, _) => return Vec::new(),

            (State::Waiting { fresh: true, .. }, Event::Due | Event::Start) => {
                self.forget_if_asked(event);
                (State::Starting, vec![Launch, start_limit])
            }
            (State::Waiting { fresh: false, .. }, Event::Due | Event::Start | Event::Called) => {
                self.forget_if_asked(event);
                (State::Enabled, vec![RunAgain])
            }
            (State::Waiting { fresh: true, .. }, Event::Stop) => (State::Available, vec![]),
            (State::Waiting { fresh: false, .. }, Event::Stop) => {
                (State::Stopping { again: false }, vec![AskStop, stop_limit])
            }
            (State::Waiting { fresh: false, .. }, Event::Crashed | Event::Gone) => {
                return self.restart(true, now, roll, vec![Discard]);
            }
            // A call does not shorten a back-off: else a busy caller would undo it.
            (State::Waiting { .. }, _) => return Vec::new(),

            (State::Stopping { again }, Event::Gone) => return self.stopped(again, start_limit, Vec::new()),
            (State::Stopping { again }, Event::Due) => {
                return self.stopped(again, start_limit, vec![LeaveBehind]);
            }
            (State::Stopping { .. }, Event::Start) => (State::Stopping { again: true }, vec![]),
            (State::Stopping { .. }, Event::Stop) => (State::Stopping { again: false }, vec![]),
            (State::Stopping { .. }, _) => return Vec::new(),
        };
        self.state = next;
        actions
    }

    /// A new generation has taken over from the one that ran.
    pub fn replaced(&mut self, options: ServiceOptions) {
        self.options = options;
        self.state = State::Enabled;
    }

    /// These options count from the next event on.
    pub fn set_options(&mut self, options: ServiceOptions) {
        self.options = options;
    }

    /// The instance that waited to be run again is gone: the next start makes a new one.
    pub fn lost_instance(&mut self) {
        self.state = match self.state {
            State::Waiting { until, .. } => State::Waiting { until, fresh: true },
            State::Ended => State::Available,
            other => other,
        };
    }

    fn forget_if_asked(&mut self, event: Event) {
        if event == Event::Start {
            self.restarts.clear();
        }
    }

    fn stopped(&mut self, again: bool, start_limit: Action, mut actions: Vec<Action>) -> Vec<Action> {
        self.state = if again { State::Starting } else { State::Available };
        self.restarts.clear();
        if again {
            actions.extend([Action::Launch, start_limit]);
        }
        actions
    }

    fn restart(&mut self, fresh: bool, now: Instant, roll: f64, mut actions: Vec<Action>) -> Vec<Action> {
        let wait = self.wait(now, roll);
        if wait.is_zero() {
            self.state = if fresh { State::Starting } else { State::Enabled };
            match fresh {
                true => actions.extend([Action::Launch, Action::Wake(now + self.options.start_timeout)]),
                false => actions.push(Action::RunAgain),
            }
        } else {
            let until = now + wait;
            self.state = State::Waiting { until, fresh };
            actions.push(Action::Wake(until));
        }
        actions
    }

    /// How long to wait before this restart, which is counted.
    fn wait(&mut self, now: Instant, roll: f64) -> Duration {
        let period = self.options.period;
        self.restarts.retain(|at| now.saturating_duration_since(*at) < period);
        let before = self.restarts.len() as u32;
        self.restarts.push_back(now);
        match before {
            0 => Duration::ZERO,
            _ if before >= self.options.intensity => LONGEST_WAIT,
            _ => {
                let longest = FIRST_WAIT * 2u32.saturating_pow(before - 1).min(1 << 20);
                longest.min(LONGEST_WAIT).mul_f64(roll.clamp(0.01, 1.0))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(state: State, restart: Restart) -> Supervisor {
        let options = ServiceOptions { restart, ..ServiceOptions::default() };
        Supervisor { state, ..Supervisor::new(options) }
    }

    fn permanent(state: State) -> Supervisor {
        at(state, Restart::Permanent)
    }

    #[test]
    fn the_usual_life() {
        let now = Instant::now();
        let mut service = permanent(State::Available);
        let options = ServiceOptions::default();
        let start = [Action::Launch, Action::Wake(now + options.start_timeout)];
        assert_eq!(service.step(Event::Start, now, 1.0), start);
        assert_eq!(service.step(Event::Ready, now, 1.0), [Action::Serve]);
        let stop = [Action::AskStop, Action::Wake(now + options.stop_timeout)];
        assert_eq!(service.step(Event::Stop, now, 1.0), stop);
        assert_eq!(service.step(Event::Gone, now, 1.0), []);
        assert_eq!(service.state(), State::Available);
    }

    #[test]
    fn first_restart_at_once_then_back_off_then_probation() {
        let now = Instant::now();
        let mut service = permanent(State::Enabled);
        let mut waits = Vec::new();
        for _ in 0..8 {
            service.step(Event::Crashed, now, 1.0);
            waits.push(match service.state() {
                State::Waiting { until, fresh: true } => (until - now).as_millis(),
                State::Starting => 0,
                other => panic!("{other:?}"),
            });
            service.step(Event::Due, now, 1.0);
            service.step(Event::Ready, now, 1.0);
        }
        assert_eq!(waits, [0, 100, 200, 400, 800, 30_000, 30_000, 30_000]);
        let later = now + Duration::from_secs(61);
        service.step(Event::Crashed, later, 1.0);
        assert_eq!(service.state(), State::Starting);
    }

    #[test]
    fn restart_types() {
        let now = Instant::now();
        for (restart, event, runs) in [
            (Restart::Permanent, Event::Returned { well: true }, true),
            (Restart::Permanent, Event::Returned { well: false }, true),
            (Restart::Permanent, Event::Crashed, true),
            (Restart::Transient, Event::Returned { well: true }, false),
            (Restart::Transient, Event::Returned { well: false }, true),
            (Restart::Transient, Event::Crashed, true),
            (Restart::Temporary, Event::Returned { well: false }, false),
            (Restart::Temporary, Event::Crashed, false),
        ] {
            let mut service = at(State::Enabled, restart);
            service.step(event, now, 1.0);
            let rests = matches!(service.state(), State::Available | State::Ended);
            assert_eq!(!rests, runs, "{restart:?} {event:?}");
            service.step(Event::Called, now, 1.0);
            let runs = matches!(service.state(), State::Starting | State::Enabled);
            assert!(runs, "a call resurrects: {restart:?} {event:?}");
        }
    }

    #[test]
    fn main_that_returned_runs_again_with_the_same_instance() {
        let now = Instant::now();
        let mut service = permanent(State::Enabled);
        assert_eq!(service.step(Event::Returned { well: true }, now, 1.0), [Action::RunAgain]);
        service.step(Event::Returned { well: true }, now, 1.0);
        assert!(matches!(service.state(), State::Waiting { fresh: false, .. }));
        assert_eq!(service.step(Event::Called, now, 1.0), [Action::RunAgain]);
    }

    #[test]
    fn a_stop_ends_in_available_from_everywhere() {
        let now = Instant::now();
        let waiting = |fresh| State::Waiting { until: now, fresh };
        let stopping = |again| State::Stopping { again };
        for state in [
            State::Available,
            State::Starting,
            State::Enabled,
            State::Ended,
            waiting(true),
            waiting(false),
            stopping(true),
            stopping(false),
        ] {
            let mut service = permanent(state);
            service.step(Event::Stop, now, 1.0);
            service.step(Event::Due, now, 1.0);
            assert_eq!(service.state(), State::Available, "{state:?}");
        }
    }

    #[test]
    fn who_ignores_its_stop_timeout_is_left_behind() {
        let now = Instant::now();
        let mut service = permanent(State::Stopping { again: false });
        assert_eq!(service.step(Event::Due, now, 1.0), [Action::LeaveBehind]);
    }
}
