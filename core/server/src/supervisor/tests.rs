use super::*;

/// A state without its time, for the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Available,
    Blocked,
    Starting,
    Enabled,
    Ended,
    Stopping,
    StoppingForAgain,
    WaitingFresh,
    WaitingSame,
}

/// An action without its time, for the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Do {
    Launch,
    RunAgain,
    Serve,
    Discard,
    AskStop,
    LeaveBehind,
    StartLimit,
    StopLimit,
}

/// In these states, at each of these events, for these restart types, with needs like that: this is the
/// next state, and this is done.
type Row = (&'static [At], &'static [Event], &'static [Restart], &'static [Needs], At, &'static [Do]);

const STATES: [At; 9] = [
    At::Available,
    At::Blocked,
    At::Starting,
    At::Enabled,
    At::Ended,
    At::Stopping,
    At::StoppingForAgain,
    At::WaitingFresh,
    At::WaitingSame,
];

const WELL: Event = Event::Returned { well: true };
const ILL: Event = Event::Returned { well: false };

const EVENTS: [Event; 12] = [
    Event::Start,
    Event::NeedsReady,
    Event::Ready,
    Event::Failed,
    WELL,
    ILL,
    Event::Crashed,
    Event::Stop,
    Event::Gone,
    Event::Due,
    Event::Called,
    Event::NewBuild,
];

const PERMANENT: &[Restart] = &[Restart::Permanent];
const TRANSIENT: &[Restart] = &[Restart::Transient];
const TEMPORARY: &[Restart] = &[Restart::Temporary];
const LASTING: &[Restart] = &[Restart::Permanent, Restart::Transient];
const ALL: &[Restart] = &[Restart::Permanent, Restart::Transient, Restart::Temporary];

const MET: &[Needs] = &[Needs::Met];
const MISSING: &[Needs] = &[Needs::Missing];
const EITHER: &[Needs] = &[Needs::Met, Needs::Missing];

/// Everything that can happen to a service that has not failed within the period: a failure is mended at
/// once.
#[rustfmt::skip]
const TABLE: &[Row] = &[
    // It does not run.
    (&[At::Available], &[Event::Start, Event::Called], ALL, MET, At::Starting, &[Do::Launch, Do::StartLimit]),
    (&[At::Available], &[Event::Start, Event::Called], ALL, MISSING, At::Blocked, &[]),
    (&[At::Available], &[Event::NeedsReady, Event::Ready, Event::Failed, WELL, ILL, Event::Crashed, Event::Stop,
        Event::Gone, Event::Due, Event::NewBuild], ALL, EITHER, At::Available, &[]),

    // It waits for what it needs.
    (&[At::Blocked], &[Event::NeedsReady, Event::Start, Event::Called], ALL, MET,
        At::Starting, &[Do::Launch, Do::StartLimit]),
    (&[At::Blocked], &[Event::NeedsReady, Event::Start, Event::Called], ALL, MISSING, At::Blocked, &[]),
    (&[At::Blocked], &[Event::Stop], ALL, EITHER, At::Available, &[]),
    (&[At::Blocked], &[Event::Ready, Event::Failed, WELL, ILL, Event::Crashed, Event::Gone, Event::Due,
        Event::NewBuild], ALL, EITHER, At::Blocked, &[]),

    // It gets ready. Whatever ends before that has failed, and so has who is late.
    (&[At::Starting], &[Event::Ready], ALL, EITHER, At::Enabled, &[Do::Serve]),
    (&[At::Starting], &[Event::Failed, WELL, ILL, Event::Crashed, Event::Gone, Event::Due], LASTING, MET,
        At::Starting, &[Do::Discard, Do::Launch, Do::StartLimit]),
    (&[At::Starting], &[Event::Failed, WELL, ILL, Event::Crashed, Event::Gone, Event::Due], LASTING, MISSING,
        At::Blocked, &[Do::Discard]),
    (&[At::Starting], &[Event::Failed, WELL, ILL, Event::Crashed, Event::Gone, Event::Due], TEMPORARY, EITHER,
        At::Available, &[Do::Discard]),
    (&[At::Starting], &[Event::Start, Event::NeedsReady, Event::Called], ALL, EITHER, At::Starting, &[]),

    // It serves. What it needs may go: that counts for a start only.
    (&[At::Enabled], &[WELL, ILL], PERMANENT, EITHER, At::Enabled, &[Do::RunAgain]),
    (&[At::Enabled], &[WELL], TRANSIENT, EITHER, At::Ended, &[]),
    (&[At::Enabled], &[ILL], TRANSIENT, EITHER, At::Enabled, &[Do::RunAgain]),
    (&[At::Enabled], &[WELL, ILL], TEMPORARY, EITHER, At::Ended, &[]),
    (&[At::Enabled], &[Event::Failed, Event::Crashed, Event::Gone], LASTING, MET,
        At::Starting, &[Do::Discard, Do::Launch, Do::StartLimit]),
    (&[At::Enabled], &[Event::Failed, Event::Crashed, Event::Gone], LASTING, MISSING, At::Blocked, &[Do::Discard]),
    (&[At::Enabled], &[Event::Failed, Event::Crashed, Event::Gone], TEMPORARY, EITHER,
        At::Available, &[Do::Discard]),
    (&[At::Enabled], &[Event::Start, Event::NeedsReady, Event::Ready, Event::Due, Event::Called], ALL, EITHER,
        At::Enabled, &[]),

    // It runs in one way or another, and is asked to stop, or to make room for another build.
    (&[At::Starting, At::Enabled, At::Ended, At::WaitingSame], &[Event::Stop], ALL, EITHER,
        At::Stopping, &[Do::StopLimit, Do::AskStop]),
    (&[At::Starting, At::Enabled], &[Event::NewBuild], ALL, EITHER,
        At::StoppingForAgain, &[Do::StopLimit, Do::AskStop]),

    // Its main has returned, and the instance rests until somebody wants it.
    (&[At::Ended], &[Event::Start, Event::Called], ALL, EITHER, At::Enabled, &[Do::RunAgain]),
    (&[At::Ended], &[Event::Crashed, Event::Gone, Event::NewBuild], ALL, EITHER, At::Available, &[Do::Discard]),
    (&[At::Ended], &[Event::NeedsReady, Event::Ready, Event::Failed, WELL, ILL, Event::Due], ALL, EITHER,
        At::Ended, &[]),

    // It was asked to stop. A start in between counts afterwards; a stop takes that back.
    (&[At::Stopping, At::StoppingForAgain], &[Event::Start], ALL, EITHER, At::StoppingForAgain, &[]),
    (&[At::Stopping, At::StoppingForAgain], &[Event::Stop], ALL, EITHER, At::Stopping, &[]),
    (&[At::Stopping], &[Event::Gone], ALL, EITHER, At::Available, &[]),
    (&[At::Stopping], &[Event::Due], ALL, EITHER, At::Available, &[Do::LeaveBehind]),
    (&[At::StoppingForAgain], &[Event::Gone], ALL, MET, At::Starting, &[Do::Launch, Do::StartLimit]),
    (&[At::StoppingForAgain], &[Event::Due], ALL, MET,
        At::Starting, &[Do::LeaveBehind, Do::Launch, Do::StartLimit]),
    (&[At::StoppingForAgain], &[Event::Gone], ALL, MISSING, At::Blocked, &[]),
    (&[At::StoppingForAgain], &[Event::Due], ALL, MISSING, At::Blocked, &[Do::LeaveBehind]),
    (&[At::Stopping], &[Event::NeedsReady, Event::Ready, Event::Failed, WELL, ILL, Event::Crashed, Event::Called,
        Event::NewBuild], ALL, EITHER, At::Stopping, &[]),
    (&[At::StoppingForAgain], &[Event::NeedsReady, Event::Ready, Event::Failed, WELL, ILL, Event::Crashed,
        Event::Called, Event::NewBuild], ALL, EITHER, At::StoppingForAgain, &[]),

    // It failed, and is to get a new instance later.
    (&[At::WaitingFresh], &[Event::Due, Event::Start, Event::NewBuild], ALL, MET,
        At::Starting, &[Do::Launch, Do::StartLimit]),
    (&[At::WaitingFresh], &[Event::Due, Event::Start, Event::NewBuild], ALL, MISSING, At::Blocked, &[]),
    (&[At::WaitingFresh], &[Event::Stop], ALL, EITHER, At::Available, &[]),
    (&[At::WaitingFresh], &[Event::NeedsReady, Event::Ready, Event::Failed, WELL, ILL, Event::Crashed, Event::Gone,
        Event::Called], ALL, EITHER, At::WaitingFresh, &[]),

    // Its main returned, and the same instance is to run again later.
    (&[At::WaitingSame], &[Event::Due, Event::Start, Event::Called], ALL, EITHER, At::Enabled, &[Do::RunAgain]),
    (&[At::WaitingSame], &[Event::NewBuild], ALL, MET,
        At::Starting, &[Do::Discard, Do::Launch, Do::StartLimit]),
    (&[At::WaitingSame], &[Event::NewBuild], ALL, MISSING, At::Blocked, &[Do::Discard]),
    (&[At::WaitingSame], &[Event::Crashed, Event::Gone], LASTING, MET,
        At::Starting, &[Do::Discard, Do::Launch, Do::StartLimit]),
    (&[At::WaitingSame], &[Event::Crashed, Event::Gone], LASTING, MISSING, At::Blocked, &[Do::Discard]),
    (&[At::WaitingSame], &[Event::Crashed, Event::Gone], TEMPORARY, EITHER, At::Available, &[Do::Discard]),
    (&[At::WaitingSame], &[Event::NeedsReady, Event::Ready, Event::Failed, WELL, ILL], ALL, EITHER,
        At::WaitingSame, &[]),
];

impl At {
    fn state(self, until: Instant) -> State {
        match self {
            Self::Available => State::Available,
            Self::Blocked => State::Blocked,
            Self::Starting => State::Starting,
            Self::Enabled => State::Enabled,
            Self::Ended => State::Ended,
            Self::Stopping => State::Stopping { again: false },
            Self::StoppingForAgain => State::Stopping { again: true },
            Self::WaitingFresh => State::Waiting { until, fresh: true },
            Self::WaitingSame => State::Waiting { until, fresh: false },
        }
    }
}

impl Do {
    fn action(self, now: Instant, options: &ServiceOptions) -> Action {
        match self {
            Self::Launch => Action::Launch,
            Self::RunAgain => Action::RunAgain,
            Self::Serve => Action::Serve,
            Self::Discard => Action::Discard,
            Self::AskStop => Action::AskStop,
            Self::LeaveBehind => Action::LeaveBehind,
            Self::StartLimit => Action::Wake(now + options.start_timeout),
            Self::StopLimit => Action::Wake(now + options.stop_timeout),
        }
    }
}

fn at(state: State, restart: Restart) -> Supervisor {
    let options = ServiceOptions { restart, ..ServiceOptions::default() };
    Supervisor { state, ..Supervisor::new(options) }
}

fn permanent(state: State) -> Supervisor {
    at(state, Restart::Permanent)
}

/// All is there, and the dice show the longest wait.
fn met(now: Instant) -> Conditions {
    Conditions { now, roll: 1.0, needs: Needs::Met }
}

fn missing(now: Instant) -> Conditions {
    Conditions { needs: Needs::Missing, ..met(now) }
}

#[test]
fn the_table_is_total_and_the_supervisor_agrees() {
    let now = Instant::now();
    let mut used = vec![false; TABLE.len()];
    for state in STATES {
        for event in EVENTS {
            for restart in ALL.iter().copied() {
                for needs in EITHER.iter().copied() {
                    let case = format!("{state:?}, {event:?}, {restart:?}, needs {needs:?}");
                    let rows: Vec<usize> = (0..TABLE.len())
                        .filter(|row| {
                            let (states, events, restarts, with, ..) = TABLE[*row];
                            states.contains(&state)
                                && events.contains(&event)
                                && restarts.contains(&restart)
                                && with.contains(&needs)
                        })
                        .collect();
                    let [row] = rows[..] else { panic!("{case}: rows {rows:?}, expected just one") };
                    used[row] = true;
                    let (.., next, actions) = TABLE[row];
                    let mut service = at(state.state(now), restart);
                    let expected: Vec<Action> =
                        actions.iter().map(|action| action.action(now, &service.options)).collect();
                    assert_eq!(service.step(event, Conditions { needs, ..met(now) }), expected, "{case}");
                    assert_eq!(service.state(), next.state(now), "{case}");
                }
            }
        }
    }
    assert!(used.iter().all(|used| *used), "a row says nothing: {used:?}");
}

#[test]
fn the_usual_life() {
    let now = Instant::now();
    let mut service = permanent(State::Available);
    let options = ServiceOptions::default();
    let start = [Action::Launch, Action::Wake(now + options.start_timeout)];
    assert_eq!(service.step(Event::Start, met(now)), start);
    assert_eq!(service.step(Event::Ready, met(now)), [Action::Serve]);
    let stop = [Action::Wake(now + options.stop_timeout), Action::AskStop];
    assert_eq!(service.step(Event::Stop, met(now)), stop);
    assert_eq!(service.step(Event::Gone, met(now)), []);
    assert_eq!(service.state(), State::Available);
}

/// The waits after `count` failures at the same time, in milliseconds; 0: mended at once.
fn waits(service: &mut Supervisor, now: Instant, roll: f64, count: usize) -> Vec<u128> {
    let conditions = Conditions { roll, ..met(now) };
    let mut waits = Vec::new();
    for _ in 0..count {
        service.step(Event::Crashed, conditions);
        waits.push(match service.state() {
            State::Waiting { until, fresh: true } => (until - now).as_millis(),
            State::Starting => 0,
            other => panic!("{other:?}"),
        });
        if matches!(service.state(), State::Waiting { .. }) {
            service.step(Event::Due, conditions);
        }
        service.step(Event::Ready, conditions);
    }
    waits
}

#[test]
fn first_restart_at_once_then_back_off_then_probation() {
    let now = Instant::now();
    let mut service = permanent(State::Enabled);
    assert_eq!(waits(&mut service, now, 1.0, 8), [0, 100, 200, 400, 800, 30_000, 30_000, 30_000]);
    // The last is as old as the period: forgotten, all of them.
    let later = now + ServiceOptions::default().period;
    assert_eq!(waits(&mut service, later, 1.0, 2), [0, 100]);
}

#[test]
fn a_failure_is_forgotten_when_its_period_is_over() {
    let now = Instant::now();
    let second = Duration::from_secs(1);
    let mut service = permanent(State::Enabled);
    assert_eq!(waits(&mut service, now, 1.0, 1), [0]);
    assert_eq!(waits(&mut service, now + 59 * second, 1.0, 1), [100], "it is remembered up to its end");
    assert_eq!(waits(&mut service, now + 60 * second, 1.0, 1), [100], "only the second one counts");
    assert_eq!(waits(&mut service, now + 200 * second, 1.0, 1), [0]);
}

#[test]
fn intensity_says_when_probation_begins() {
    let now = Instant::now();
    let cases: [(u32, [u128; 4]); 4] = [
        (0, [0, 30_000, 30_000, 30_000]),
        (1, [0, 30_000, 30_000, 30_000]),
        (2, [0, 100, 30_000, 30_000]),
        (3, [0, 100, 200, 30_000]),
    ];
    for (intensity, expected) in cases {
        let mut service = permanent(State::Enabled);
        service.options.intensity = intensity;
        assert_eq!(waits(&mut service, now, 1.0, 4), expected, "intensity {intensity}");
        assert!(service.restarts.len() <= intensity.max(1) as usize, "more is not kept");
    }
}

#[test]
fn waits_grow_to_the_longest_and_have_full_jitter() {
    let now = Instant::now();
    let cases: [(f64, u128, u128); 5] =
        [(0.0, 1, 300), (0.5, 50, 15_000), (1.0, 100, 30_000), (-1.0, 1, 300), (2.0, 100, 30_000)];
    for (roll, second, longest) in cases {
        let mut service = permanent(State::Enabled);
        service.options.intensity = 1000;
        let waits = waits(&mut service, now, roll, 40);
        assert_eq!((waits[0], waits[1]), (0, second), "roll {roll}");
        assert!(waits.is_sorted(), "roll {roll}: {waits:?}");
        assert_eq!(waits[39], longest, "roll {roll}");
    }
}

#[test]
fn probation_goes_on_for_ever() {
    let mut now = Instant::now();
    let mut service = permanent(State::Enabled);
    service.options.period = Duration::from_secs(3600);
    waits(&mut service, now, 1.0, 5);
    for _ in 0..100 {
        now += LONGEST_WAIT;
        assert_eq!(waits(&mut service, now, 1.0, 1), [30_000]);
        assert_eq!(service.state(), State::Enabled, "it was tried again");
    }
}

#[test]
fn a_manual_start_forgets_what_was() {
    let now = Instant::now();
    let mut service = permanent(State::Enabled);
    waits(&mut service, now, 1.0, 6);
    service.step(Event::Crashed, met(now));
    assert!(matches!(service.state(), State::Waiting { .. }));
    service.step(Event::Called, met(now));
    assert!(matches!(service.state(), State::Waiting { .. }), "a call does not shorten it");
    service.step(Event::Start, met(now));
    service.step(Event::Ready, met(now));
    assert_eq!(waits(&mut service, now, 1.0, 2), [0, 100]);
    // A stop forgets as well.
    service.step(Event::Stop, met(now));
    service.step(Event::Start, met(now));
    service.step(Event::Gone, met(now));
    service.step(Event::Ready, met(now));
    assert_eq!(waits(&mut service, now, 1.0, 2), [0, 100]);
}

#[test]
fn a_new_build_forgets_what_failed_with_the_old_one() {
    let now = Instant::now();
    let mut service = permanent(State::Enabled);
    waits(&mut service, now, 1.0, 6);
    service.step(Event::Crashed, met(now));
    service.step(Event::NewBuild, met(now));
    service.step(Event::Ready, met(now));
    assert_eq!(waits(&mut service, now, 1.0, 2), [0, 100]);
}

#[test]
fn who_is_not_ready_in_time_has_failed() {
    let now = Instant::now();
    let mut service = permanent(State::Available);
    service.step(Event::Start, met(now));
    let late = now + service.options.start_timeout;
    let again = [Action::Discard, Action::Launch, Action::Wake(late + service.options.start_timeout)];
    assert_eq!(service.step(Event::Due, met(late)), again);
    assert_eq!(service.restarts.len(), 1, "it counts");
    assert_eq!(service.step(Event::Ready, met(late)), [Action::Serve]);
    assert_eq!(service.step(Event::Due, met(late)), [], "once it is ready there is no limit");
}

#[test]
fn being_blocked_counts_for_nothing() {
    let now = Instant::now();
    let mut service = permanent(State::Enabled);
    assert_eq!(service.step(Event::Crashed, missing(now)), [Action::Discard]);
    for event in [Event::NeedsReady, Event::Called, Event::Due] {
        assert_eq!(service.step(event, missing(now)), [], "{event:?}");
        assert_eq!(service.state(), State::Blocked);
    }
    assert_eq!(service.restarts.len(), 1, "the crash, and nothing else");
    let start = [Action::Launch, Action::Wake(now + service.options.start_timeout)];
    assert_eq!(service.step(Event::NeedsReady, met(now)), start);
    service.step(Event::Ready, met(now));
    // What it needs goes away, and it serves on.
    assert_eq!(service.step(Event::Called, missing(now)), []);
    assert_eq!(service.state(), State::Enabled);
    assert_eq!(waits(&mut service, now, 1.0, 1), [100], "the second failure, not the first");
}

#[test]
fn a_wait_ends_blocked_where_something_is_missing() {
    let now = Instant::now();
    let mut service = permanent(State::Enabled);
    waits(&mut service, now, 1.0, 1);
    service.step(Event::Crashed, missing(now));
    assert!(matches!(service.state(), State::Waiting { fresh: true, .. }), "its own wait comes first");
    assert_eq!(service.step(Event::Due, missing(now)), []);
    assert_eq!(service.state(), State::Blocked);
}

#[test]
fn main_that_returned_runs_again_with_the_same_instance() {
    let now = Instant::now();
    let mut service = permanent(State::Enabled);
    assert_eq!(service.step(WELL, met(now)), [Action::RunAgain]);
    service.step(WELL, met(now));
    assert!(matches!(service.state(), State::Waiting { fresh: false, .. }));
    assert_eq!(service.step(Event::Called, met(now)), [Action::RunAgain]);
}

#[test]
fn who_has_ended_comes_back_when_it_is_called() {
    let now = Instant::now();
    for restart in [Restart::Transient, Restart::Temporary] {
        let mut service = at(State::Enabled, restart);
        assert_eq!(service.step(WELL, met(now)), []);
        assert_eq!(service.state(), State::Ended);
        assert_eq!(service.step(Event::Called, missing(now)), [Action::RunAgain], "it is there already");
        assert_eq!(service.state(), State::Enabled);
    }
}

#[test]
fn a_stop_during_the_start_and_a_start_during_the_stop() {
    let now = Instant::now();
    let mut service = permanent(State::Starting);
    service.step(Event::Stop, met(now));
    assert_eq!(service.step(Event::Ready, met(now)), [], "too late");
    assert_eq!(service.step(Event::Start, met(now)), []);
    assert_eq!(service.state(), State::Stopping { again: true });
    let start = [Action::Launch, Action::Wake(now + service.options.start_timeout)];
    assert_eq!(service.step(Event::Gone, met(now)), start);
    assert_eq!(service.state(), State::Starting);
}

#[test]
fn who_ignores_its_stop_timeout_is_left_behind() {
    let now = Instant::now();
    let mut service = permanent(State::Stopping { again: false });
    assert_eq!(service.step(Event::Due, met(now)), [Action::LeaveBehind]);
    assert_eq!(service.state(), State::Available);
}

/// What the supervisor cannot see, and the rules that hold for it.
struct World {
    now: Instant,
    /// An instance is there that belongs to the service.
    instance: bool,
    wake: Option<Instant>,
    /// When it was restarted, as a reader of the documentation would count.
    restarts: Vec<Instant>,
    seed: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        Self { now: Instant::now(), instance: false, wake: None, restarts: Vec::new(), seed }
    }

    /// xorshift64.
    fn below(&mut self, limit: u64) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed % limit
    }

    /// The next event: what is due, else any that can happen.
    fn event(&mut self) -> Event {
        let pause = self.below(4_000);
        self.now += Duration::from_millis(pause);
        if self.wake.is_some_and(|at| at <= self.now) {
            self.wake = None;
            return Event::Due;
        }
        match EVENTS[self.below(EVENTS.len() as u64) as usize] {
            Event::Gone if !self.instance => Event::Called,
            event => event,
        }
    }

    fn conditions(&mut self) -> Conditions {
        let needs = if self.below(4) == 0 { Needs::Missing } else { Needs::Met };
        Conditions { now: self.now, roll: self.below(101) as f64 / 100.0, needs }
    }

    /// Does what was decided, and checks that it can be done.
    fn perform(&mut self, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Launch => assert!(!std::mem::replace(&mut self.instance, true), "two instances"),
                Action::RunAgain | Action::Serve | Action::AskStop => assert!(self.instance, "{action:?}"),
                Action::Discard | Action::LeaveBehind => self.instance = false,
                Action::Wake(at) => {
                    assert!(*at >= self.now, "a wake in the past");
                    self.wake = Some(*at);
                }
            }
        }
    }

    /// Whether this was a restart by itself, and if so whether its wait was right.
    fn count(&mut self, before: State, event: Event, service: &Supervisor) {
        let after = service.state();
        let rests = matches!(after, State::Available | State::Ended);
        let failed = matches!(
            (before, event),
            (
                State::Starting | State::Enabled | State::Waiting { fresh: false, .. },
                Event::Crashed | Event::Gone
            ) | (State::Starting | State::Enabled, Event::Failed | Event::Returned { .. })
                | (State::Starting, Event::Due)
        );
        let manual =
            matches!(event, Event::Start) && matches!(before, State::Waiting { .. } | State::Blocked);
        let anew = event == Event::NewBuild && matches!(before, State::Waiting { .. });
        let stopped = matches!(before, State::Stopping { .. }) && matches!(event, Event::Gone | Event::Due);
        if manual || anew || stopped {
            self.restarts.clear();
        }
        if !failed || rests {
            return;
        }
        let ServiceOptions { period, intensity, .. } = service.options;
        let now = self.now;
        let count = self.restarts.iter().filter(|at| now - **at < period).count() as u32;
        self.restarts.push(now);
        match after {
            State::Waiting { until, .. } if count >= intensity => assert_eq!(until - now, LONGEST_WAIT),
            State::Waiting { until, .. } => {
                assert!(count > 0, "the first is mended at once");
                assert!(until > now && until - now <= FIRST_WAIT * 2u32.pow(count - 1), "{:?}", until - now);
            }
            other => assert_eq!(count, 0, "{other:?} at once, though it is not the first"),
        }
    }
}

/// From anywhere: after a stop, and its end or its limit, it does not run.
fn check_stop(service: &Supervisor, conditions: Conditions) {
    for end in [Event::Gone, Event::Due] {
        let mut service = service.clone();
        service.step(Event::Stop, conditions);
        service.step(end, conditions);
        assert_eq!(service.state(), State::Available);
    }
}

#[test]
fn a_long_life_of_chance_breaks_no_rule() {
    for restart in ALL.iter().copied() {
        let mut world = World::new(0x9e37_79b9_7f4a_7c15);
        let mut service = at(State::Available, restart);
        service.options.intensity = 3;
        let mut visited = Vec::new();
        for _ in 0..100_000 {
            let (before, event) = (service.state(), world.event());
            // Gone means just that; after a crash the instance is there until it is discarded.
            if event == Event::Gone {
                world.instance = false;
            }
            let conditions = world.conditions();
            let actions = service.step(event, conditions);
            world.perform(&actions);
            world.count(before, event, &service);
            check_stop(&service, conditions);
            let state = service.state();
            let has_instance =
                !matches!(state, State::Available | State::Blocked | State::Waiting { fresh: true, .. });
            assert_eq!(world.instance, has_instance, "{before:?}, {event:?} → {state:?}");
            if let State::Waiting { until, .. } = state {
                assert_eq!(world.wake, Some(until), "nobody would ever wake it");
            } else if matches!(state, State::Available | State::Blocked | State::Enabled | State::Ended) {
                world.wake = None;
            }
            let kind = std::mem::discriminant(&state);
            if !visited.contains(&kind) {
                visited.push(kind);
            }
        }
        // Who is permanent never ends by itself, and who is temporary never waits.
        let kinds = if restart == Restart::Transient { 7 } else { 6 };
        assert_eq!(visited.len(), kinds, "{restart:?}");
    }
}
