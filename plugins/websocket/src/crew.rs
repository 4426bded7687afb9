//! The loops of the edge as one crew: they begin together, rest together while the edge is carried into its
//! next generation, and end together.
//!
//! ```text
//! adopt ─ all have ─► serve ─► run ─ called to rest ─► rest ─ thaw ─► run
//!                               │                       ├ asked for their part, and stopped ─► leave: the sockets are another's
//!                               └ stopped ─► end        └ stopped ─► end
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use zephserver_plugin::{Error, Result};

/// How long the loops are waited for. The server's own limits are shorter.
const LONGEST: Duration = Duration::from_secs(10);
/// How long one loop may keep the others at rest.
const UNTIL_REST: Duration = Duration::from_millis(400);

/// What a loop leaves to the next generation.
pub type Part = (Vec<u8>, Vec<std::os::fd::RawFd>);

/// See the module.
#[derive(Default)]
pub struct Crew {
    state: Mutex<State>,
    changed: Condvar,
    /// The loops are to look what there is: they rest, or one has ended.
    is_called: AtomicBool,
}

#[derive(Default)]
struct State {
    loops: usize,
    adopted: usize,
    resting: usize,
    wish: Wish,
    /// One for each loop, once it was asked for.
    parts: Vec<Option<Result<Part>>>,
    has_ended: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Wish {
    #[default]
    Run,
    Rest,
    /// Rest, and say what there is to be carried.
    Carry,
    /// Rest: everything was said.
    Carried,
}

/// Whether the edge is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    No,
    /// A new generation serves in its place.
    Replaced,
    Otherwise,
}

/// How a loop goes on after a rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    Run,
    /// Its connections are another generation's.
    Leave,
    End,
}

impl Crew {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while(
        &self,
        limit: Duration,
        what: &str,
        mut goes_on: impl FnMut(&mut State) -> bool,
    ) -> Result<()> {
        let waited =
            self.changed.wait_timeout_while(self.state(), limit, |state| !state.has_ended && goes_on(state));
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        match (state.has_ended, timeout.timed_out()) {
            (true, _) => Err(Error::unavailable("a loop has ended")),
            (_, true) => Err(Error::timeout(format!("the loops did not {what} in {} ms", limit.as_millis()))),
            _ => Ok(()),
        }
    }

    fn wish(&self, wish: Wish, parts: usize) {
        let mut state = self.state();
        state.wish = wish;
        state.parts = (0..parts).map(|_| None).collect();
        self.is_called.store(wish != Wish::Run || state.has_ended, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// So many loops are about to begin.
    pub fn begin(&self, loops: usize) {
        *self.state() = State { loops, ..State::default() };
        self.is_called.store(false, Ordering::SeqCst);
    }

    /// One has its connections; waits until all have.
    pub fn adopted(&self) -> Result<()> {
        self.state().adopted += 1;
        self.changed.notify_all();
        self.wait_while(LONGEST, "take their connections in", |state| state.adopted < state.loops)
    }

    /// A loop that runs asks this all the time.
    pub fn is_called(&self) -> bool {
        self.is_called.load(Ordering::SeqCst)
    }

    /// Lets whoever rests look whether it is to stop.
    pub fn wake(&self) {
        drop(self.state());
        self.changed.notify_all();
    }

    /// A loop ends: all do.
    pub fn end(&self) {
        self.state().has_ended = true;
        self.is_called.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// The rest of one loop, on its thread. `part` says what there is to be carried of it.
    pub fn rest(
        &self,
        number: usize,
        stopped: impl Fn() -> Stopped,
        mut part: impl FnMut() -> Result<Part>,
    ) -> After {
        let mut state = self.state();
        state.resting += 1;
        self.changed.notify_all();
        let after = loop {
            let is_asked = state.wish == Wish::Carry && state.parts.get(number).is_some_and(Option::is_none);
            let stopped = stopped();
            if state.has_ended || stopped != Stopped::No {
                // Carried, and stopped for another reason, they are ours still.
                let is_left = state.wish == Wish::Carried && stopped == Stopped::Replaced;
                break if is_left { After::Leave } else { After::End };
            } else if state.wish == Wish::Run {
                break After::Run;
            } else if is_asked {
                drop(state);
                let part = part();
                state = self.state();
                if let Some(place) = state.parts.get_mut(number) {
                    *place = Some(part);
                }
                self.changed.notify_all();
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        };
        state.resting -= 1;
        after
    }

    /// True once everything was carried to another generation, unless the loops run again.
    pub fn has_left(&self) -> bool {
        self.state().wish == Wish::Carried
    }

    /// Has all loops rest; `wake` reaches those that wait for their sockets.
    pub fn freeze(&self, wake: impl Fn()) -> Result<()> {
        self.wish(Wish::Rest, 0);
        wake();
        let rested = self.wait_while(UNTIL_REST, "come to rest", |state| state.resting < state.loops);
        // One that waits for another service is not waited for by all peers.
        rested.inspect_err(|_| self.thaw())
    }

    /// What all of them leave, in their order.
    pub fn carry(&self) -> Result<Vec<Part>> {
        let state = self.state();
        let (loops, rest) = (state.loops, state.wish == Wish::Rest && state.resting == state.loops);
        drop(state);
        if !rest {
            return Err(Error::busy("the loops do not rest"));
        }
        self.wish(Wish::Carry, loops);
        self.wait_while(LONGEST, "say what there is to be carried", |state| {
            state.parts.iter().any(Option::is_none)
        })?;
        let mut state = self.state();
        if state.wish != Wish::Carry || state.parts.len() != loops {
            return Err(Error::busy("the loops were let go on meanwhile"));
        }
        let parts = std::mem::take(&mut state.parts).into_iter().flatten().collect::<Result<_>>()?;
        state.wish = Wish::Carried;
        Ok(parts)
    }

    /// Lets them run on.
    pub fn thaw(&self) {
        self.wish(Wish::Run, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn part(number: u8) -> Part {
        (vec![number], vec![i32::from(number)])
    }

    /// Two threads that rest whenever they are called.
    fn crew(stop: &Arc<Mutex<Stopped>>) -> (Arc<Crew>, Vec<std::thread::JoinHandle<After>>) {
        let crew = Arc::new(Crew::default());
        crew.begin(2);
        let one = |number: usize| {
            let (crew, stop) = (crew.clone(), stop.clone());
            std::thread::spawn(move || {
                crew.adopted().unwrap();
                loop {
                    let stopped = || *stop.lock().unwrap();
                    while !crew.is_called() && stopped() == Stopped::No {
                        std::thread::yield_now();
                    }
                    match crew.rest(number, stopped, || Ok(part(number as u8))) {
                        After::Run => {}
                        after => return after,
                    }
                }
            })
        };
        let threads = (0..2).map(one).collect();
        (crew, threads)
    }

    fn running() -> Arc<Mutex<Stopped>> {
        Arc::new(Mutex::new(Stopped::No))
    }

    fn end(
        crew: &Crew,
        (stop, why): (&Mutex<Stopped>, Stopped),
        threads: Vec<std::thread::JoinHandle<After>>,
    ) -> Vec<After> {
        *stop.lock().unwrap() = why;
        crew.wake();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }

    #[test]
    fn they_rest_go_on_and_leave_once_they_are_carried() {
        let stop = running();
        let (crew, threads) = crew(&stop);
        for _ in 0..3 {
            crew.freeze(|| {}).unwrap();
            assert_eq!(crew.carry().unwrap(), [part(0), part(1)]);
            crew.thaw();
            assert!(!crew.has_left());
        }
        crew.freeze(|| {}).unwrap();
        crew.carry().unwrap();
        assert!(crew.has_left());
        assert_eq!(end(&crew, (&stop, Stopped::Replaced), threads), [After::Leave, After::Leave]);
    }

    #[test]
    fn who_was_not_carried_or_not_replaced_ends() {
        let stop = running();
        let (crew, threads) = crew(&stop);
        assert!(crew.carry().is_err(), "they do not rest");
        crew.freeze(|| {}).unwrap();
        assert_eq!(end(&crew, (&stop, Stopped::Replaced), threads), [After::End, After::End]);
        let stop = running();
        let (crew, threads) = self::crew(&stop);
        crew.freeze(|| {}).unwrap();
        crew.carry().unwrap();
        assert_eq!(end(&crew, (&stop, Stopped::Otherwise), threads), [After::End, After::End]);
    }

    #[test]
    fn one_that_ends_takes_the_others_with_it() {
        let stop = running();
        let (crew, threads) = crew(&stop);
        crew.freeze(|| {}).unwrap();
        crew.end();
        assert!(crew.carry().is_err());
        assert_eq!(end(&crew, (&stop, Stopped::Otherwise), threads), [After::End, After::End]);
    }
}
