//! A new build is watched for a while. If a service of its library fails within that time, the build before
//! serves again: it is loaded still.
//!
//! What failed begins anew with the old code and with the state of the swap, or with its own checkpoint, which is
//! younger. What did not fail keeps its state and its peers: the reload thread lets it follow in order, and until
//! then it runs on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::{Container, Manager};
use crate::history::{Entry, What};
use crate::life::Inherited;
use crate::loader::{Loaded, short};
use crate::messages::{Candidate, Direction, Job};
use crate::supervisor::{Event, State};

/// Why a service starts that is given back.
const GONE_BACK: &str = "the build before serves again";

/// What the build before would need to serve again, for as long as the new one is watched.
pub struct Watch {
    before: Arc<Loaded>,
    since: Instant,
    /// When it is over.
    pub until: Instant,
    /// By slot.
    left: HashMap<u32, Left>,
    /// Services that failed with the build before as well: it would not help them.
    failing: HashSet<u32>,
}

/// What a service was started with before the swap, and the state with which it passed it.
struct Left {
    values: Map<String, Value>,
    state: Option<Inherited>,
}

/// What follows from an event of a service whose plugin is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// What follows at any time.
    Usual,
    /// The build before serves again, for the whole library.
    GoBack,
    /// The library has gone back already: this service, too, begins with the build before.
    Follow,
}

/// The generations of a plugin that is watched.
#[derive(Clone, Copy, Debug)]
pub struct Generations {
    /// The one to go back to.
    pub before: u32,
    /// What new instances are made of.
    pub present: u32,
    /// What the service runs with.
    pub own: u32,
}

/// Whether an event is a failure of the new build that the build before would mend.
pub fn verdict(state: State, event: Event, generations: Generations) -> Verdict {
    let failed = match (state, event) {
        (State::Starting | State::Enabled, Event::Crashed | Event::Failed) => true,
        (State::Enabled, Event::Returned { well }) => !well,
        (State::Starting, Event::Returned { .. } | Event::Due) => true,
        _ => false,
    };
    let Generations { before, present, own } = generations;
    match failed && own != before {
        false => Verdict::Usual,
        true if present == before => Verdict::Follow,
        true => Verdict::GoBack,
    }
}

impl Manager {
    /// What the build that serves now leaves, if the one that takes over is to be watched.
    pub(super) fn begin_watch(
        &self,
        loaded: &Loaded,
        candidates: &mut [Candidate],
        direction: Direction,
    ) -> Option<Watch> {
        let before = self.plugins.get(&loaded.name)?.loaded.clone();
        let limit = self.settings.look().limits.watch_after_reload;
        if !matches!(direction, Direction::Forward(_)) || limit.is_zero() || before.hash == loaded.hash {
            return None;
        }
        let mut states: HashMap<u32, Inherited> = candidates
            .iter_mut()
            .filter_map(|candidate| Some((candidate.slot, candidate.state.take()?)))
            .collect();
        let left = self.of_library(&loaded.name).map(|container| {
            let (slot, values) = (container.slot, container.settings.values.clone());
            (slot, Left { values, state: states.remove(&slot) })
        });
        let left = left.collect();
        let fails = self
            .of_library(&loaded.name)
            .filter(|container| matches!(container.supervisor.state(), State::Waiting { .. }));
        let since = Instant::now();
        Some(Watch {
            before,
            since,
            until: since + limit,
            left,
            failing: fails.map(|container| container.slot).collect(),
        })
    }

    /// Forgets what was kept for a time that is over: states may be big.
    pub(super) fn end_watches(&mut self, now: Instant) {
        for plugin in self.plugins.values_mut() {
            plugin.watch = plugin.watch.take().filter(|watch| now < watch.until);
        }
    }

    pub(super) fn verdict(&self, slot: u32, event: Event) -> Verdict {
        self.look(slot, event).unwrap_or(Verdict::Usual)
    }

    fn look(&self, slot: u32, event: Event) -> Option<Verdict> {
        let container = self.containers.get(&slot)?;
        let plugin = self.plugins.get(&container.path.library)?;
        let watch = plugin.watch.as_ref()?;
        // It would not help a service that the build before does not know.
        watch.before.declaration.service(&container.path.kind)?;
        let own = container.life.as_ref()?.generation;
        let generations =
            Generations { before: watch.before.generation, present: plugin.loaded.generation, own };
        let counts = Instant::now() < watch.until && !watch.failing.contains(&slot) && !self.is_stopping();
        counts.then(|| verdict(container.supervisor.state(), event, generations))
    }

    /// A service has failed while its build was watched.
    pub(super) fn go_back(&mut self, slot: u32, verdict: Verdict) {
        let turned = match verdict {
            Verdict::GoBack => self.turn_back(slot),
            Verdict::Usual | Verdict::Follow => None,
        };
        self.begin_with_before(slot);
        let Some((from, to)) = turned else { return };
        // Whoever serves keeps serving until it can follow.
        self.renew_others(&to, GONE_BACK, |container| {
            container.slot != slot && container.supervisor.state() != State::Enabled
        });
        // Who is just stopping is waited for, and a second more.
        let limits = self.of_library(&to.name).map(|container| container.settings.options.stop_timeout);
        let patience = limits.max().unwrap_or_default() + Duration::from_secs(1);
        if self.jobs.try_send(Job::Follow { from, to: to.clone(), patience }).is_err() {
            tracing::error!(
                "{}: what did not fail stays with the new build: too many reloads wait; bring it back: zephserver \
                 restart NAME",
                to.name
            );
        }
    }

    /// New instances are made of the build before again. Answers the build that failed, and that one.
    fn turn_back(&mut self, slot: u32) -> Option<(Arc<Loaded>, Arc<Loaded>)> {
        let container = self.containers.get(&slot)?;
        let plugin = self.plugins.get_mut(&container.path.library)?;
        let watch = plugin.watch.as_ref()?;
        let (to, seconds) = (watch.before.clone(), (watch.until - watch.since).as_secs_f64());
        let from = std::mem::replace(&mut plugin.loaded, to.clone());
        let failure = container.failure.as_deref().unwrap_or("it failed");
        let reason = format!("rolled back: it crashed within {seconds} s: {failure}");
        tracing::error!(
            "{}: generation {} ({}) is {reason}; generation {} ({}) serves again, until the file changes: {}",
            to.name,
            from.generation,
            short(&from.hash),
            to.generation,
            short(&to.hash),
            container.path
        );
        let cause = format!("generation {} ({}) is {reason}", from.generation, short(&from.hash));
        let entry = Entry::new(to.name.clone(), What::RolledBack);
        self.history.record(entry.of_build(to.generation, &to.hash).because(&cause));
        let told: HashMap<u32, Map<String, Value>> =
            watch.left.iter().map(|(slot, left)| (*slot, left.values.clone())).collect();
        plugin.refused = Some((from.hash.clone(), reason));
        self.renew_settings(&to, &told);
        Some((from, to))
    }

    /// The service that failed gets a new instance of the build before, and says what it lost.
    fn begin_with_before(&mut self, slot: u32) {
        let Some(container) = self.containers.get_mut(&slot) else { return };
        let plugin = self.plugins.get_mut(&container.path.library);
        let Some(watch) = plugin.and_then(|plugin| plugin.watch.as_mut()) else { return };
        let before = watch.before.clone();
        let declared = before.declaration.service(&container.path.kind);
        let reads = |kept: &Inherited| declared.is_some_and(|service| service.reads(kept.version));
        let checkpoint = container.checkpoint.take().filter(reads);
        let state = watch.left.remove(&slot).and_then(|left| left.state).filter(reads);
        let lost = what_is_lost(checkpoint.as_ref(), state.as_ref(), watch.since);
        tracing::error!("{}: {lost}", container.path);
        let entry = Entry::new(container.path.to_string(), What::RolledBack);
        self.history.record(entry.of_build(before.generation, &before.hash).because(&lost));
        container.checkpoint = checkpoint.or(state);
        container.start_reason = Some(GONE_BACK.into());
        self.step_now(slot, Event::Crashed);
        let waits = |container: &mut Container| {
            matches!(container.supervisor.state(), State::Waiting { .. } | State::Available)
        };
        // The back-off is for a build that fails again and again; this is another one.
        if self.with(slot, waits) == Some(true) {
            self.wish(slot, Event::Start, GONE_BACK);
        }
    }
}

/// What a service begins with that is given back, and what it lost.
fn what_is_lost(checkpoint: Option<&Inherited>, state: Option<&Inherited>, since: Instant) -> String {
    match (checkpoint, state) {
        (Some(_), _) => "begins with its checkpoint: what changed in its state since that is lost".into(),
        (None, Some(_)) => {
            let seconds = since.elapsed().as_secs_f64();
            format!(
                "begins with its state of the reload: what changed in it during the {seconds:.1} s since is lost"
            )
        }
        (None, None) => "begins without state".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WATCHED: Generations = Generations { before: 1, present: 2, own: 2 };

    #[test]
    fn failures_of_the_new_build_lead_back() {
        for (state, event) in [
            (State::Enabled, Event::Crashed),
            (State::Enabled, Event::Failed),
            (State::Enabled, Event::Returned { well: false }),
            (State::Starting, Event::Crashed),
            (State::Starting, Event::Failed),
            (State::Starting, Event::Returned { well: true }),
            (State::Starting, Event::Due),
        ] {
            assert_eq!(verdict(state, event, WATCHED), Verdict::GoBack, "{state:?} {event:?}");
            let gone_back = Generations { present: 1, ..WATCHED };
            assert_eq!(verdict(state, event, gone_back), Verdict::Follow, "{state:?} {event:?}");
            let is_old = Generations { own: 1, present: 1, ..WATCHED };
            assert_eq!(verdict(state, event, is_old), Verdict::Usual, "{state:?} {event:?}");
        }
    }

    #[test]
    fn nothing_else_does() {
        let until = Instant::now();
        for (state, event) in [
            (State::Enabled, Event::Returned { well: true }),
            (State::Enabled, Event::Stop),
            (State::Enabled, Event::Start),
            (State::Enabled, Event::Called),
            (State::Starting, Event::Ready),
            (State::Starting, Event::Stop),
            (State::Stopping { again: true }, Event::Due),
            (State::Stopping { again: false }, Event::Crashed),
            (State::Stopping { again: false }, Event::Gone),
            (State::Waiting { until, fresh: true }, Event::Due),
            (State::Ended, Event::Crashed),
            (State::Available, Event::Start),
        ] {
            assert_eq!(verdict(state, event, WATCHED), Verdict::Usual, "{state:?} {event:?}");
        }
    }
}
