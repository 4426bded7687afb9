//! Threads for calls that must end for their caller, whatever the callee does.
//!
//! A job that outlives its deadline cannot be ended; its thread is stuck until the callee returns. A
//! stuck thread is counted and replaced, so that others go on, up to a bound.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Jobs that wait for a thread at most.
const QUEUE: usize = 1024;
/// Stuck threads that are replaced at most.
const STUCK: usize = 64;
/// A thread without work ends after this time.
const IDLE: Duration = Duration::from_secs(10);

type Work = Box<dyn FnOnce() + Send>;

/// Threads that do jobs.
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    size: usize,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<(Work, Ticket)>,
    threads: usize,
    idle: usize,
    stuck: usize,
    stuck_ever: u64,
    /// Threads whose job waits for another job.
    waiting: usize,
}

thread_local! {
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
}

/// See [`Pool::waits`].
pub struct Waits(Arc<Inner>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Queued,
    Running,
    Stuck,
    Done,
}

/// A job given to the pool.
#[derive(Clone)]
pub struct Ticket {
    phase: Arc<Mutex<Phase>>,
    pool: Arc<Inner>,
}

/// What the pool shows of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Threads alive, the stuck ones included.
    pub threads: usize,
    /// Threads whose job has outlived its deadline.
    pub stuck: usize,
    /// The same, since the server started.
    pub stuck_ever: u64,
    /// Jobs that wait.
    pub queued: usize,
}

impl Pool {
    /// A pool of `size` threads, started when they are needed.
    pub fn new(size: usize) -> Self {
        Self { inner: Arc::new(Inner { size, state: Mutex::default(), wake: Condvar::new() }) }
    }

    /// Gives a job to the pool. None: its queue is full, or all its threads are stuck.
    pub fn spawn(&self, work: impl FnOnce() + Send + 'static) -> Option<Ticket> {
        let inner = &self.inner;
        let mut state = inner.state();
        if state.queue.len() >= QUEUE {
            return None;
        }
        let ticket = Ticket { phase: Arc::new(Mutex::new(Phase::Queued)), pool: inner.clone() };
        state.queue.push_back((Box::new(work), ticket.clone()));
        inner.see_to_workers(&mut state);
        if state.threads == 0 {
            state.queue.pop_back();
            return None;
        }
        inner.wake.notify_one();
        Some(ticket)
    }

    /// Until the answer is dropped, this thread waits for another job: if it is one of the pool's, it
    /// does not count.
    pub fn waits(&self) -> Option<Waits> {
        if !IS_WORKER.get() {
            return None;
        }
        let mut state = self.inner.state();
        state.waiting += 1;
        self.inner.see_to_workers(&mut state);
        Some(Waits(self.inner.clone()))
    }

    /// How the pool stands.
    pub fn figures(&self) -> Figures {
        let state = self.inner.state();
        Figures {
            threads: state.threads,
            stuck: state.stuck,
            stuck_ever: state.stuck_ever,
            queued: state.queue.len(),
        }
    }
}

impl Ticket {
    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody waits for this job any more: forget it where it waits, count its thread as stuck where
    /// it runs.
    pub fn abandon(&self) {
        let mut phase = self.phase();
        match *phase {
            Phase::Queued => *phase = Phase::Done,
            Phase::Running => {
                *phase = Phase::Stuck;
                let mut state = self.pool.state();
                state.stuck += 1;
                state.stuck_ever += 1;
                self.pool.see_to_workers(&mut state);
            }
            Phase::Stuck | Phase::Done => {}
        }
    }

    /// False where the job was abandoned before it began.
    fn begin(&self) -> bool {
        let mut phase = self.phase();
        let is_wanted = *phase == Phase::Queued;
        if is_wanted {
            *phase = Phase::Running;
        }
        is_wanted
    }

    fn end(&self) {
        let before = std::mem::replace(&mut *self.phase(), Phase::Done);
        if before == Phase::Stuck {
            self.pool.state().stuck -= 1;
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Threads that there may be now.
    fn room(&self, state: &State) -> usize {
        self.size + state.stuck.min(STUCK) + state.waiting.min(STUCK)
    }

    /// Starts a thread where jobs wait for one and there is room.
    fn see_to_workers(self: &Arc<Self>, state: &mut State) {
        if state.idle >= state.queue.len() || state.threads >= self.room(state) {
            return;
        }
        let worker = self.clone();
        let thread = std::thread::Builder::new().name("zephserver-pool".into());
        if thread.spawn(move || worker.work()).is_ok() {
            state.threads += 1;
        }
    }

    fn work(&self) {
        IS_WORKER.set(true);
        while let Some((work, ticket)) = self.next() {
            if ticket.begin() {
                // A panic of the server's own code: the hook has printed it; the thread goes on.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
                ticket.end();
            }
        }
    }

    /// The next job; None: this thread is not needed any more.
    fn next(&self) -> Option<(Work, Ticket)> {
        let mut state = self.state();
        loop {
            if let Some(job) = state.queue.pop_front() {
                return Some(job);
            }
            if state.threads > self.room(&state) {
                break;
            }
            state.idle += 1;
            let (guard, waited) = self.wake.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = guard;
            state.idle -= 1;
            if waited.timed_out() && state.queue.is_empty() {
                break;
            }
        }
        state.threads -= 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::bounded;

    #[test]
    fn a_stuck_thread_is_replaced_and_counted_until_it_returns() {
        let pool = Pool::new(1);
        let (release, blocked) = bounded::<()>(0);
        let (began, running) = bounded(1);
        let ticket = pool
            .spawn(move || {
                began.send(()).unwrap();
                let _ = blocked.recv();
            })
            .unwrap();
        running.recv().unwrap();
        ticket.abandon();
        let (done, ended) = bounded(1);
        let second = done.clone();
        pool.spawn(move || done.send(pool_thread()).unwrap()).unwrap();
        assert_eq!(ended.recv_timeout(Duration::from_secs(5)).unwrap(), "zephserver-pool");
        assert_eq!((pool.figures().stuck, pool.figures().stuck_ever), (1, 1));
        drop(release);
        pool.spawn(move || second.send(String::new()).unwrap()).unwrap();
        ended.recv_timeout(Duration::from_secs(5)).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while pool.figures().stuck > 0 || pool.figures().threads > 1 {
            assert!(std::time::Instant::now() < deadline, "{:?}", pool.figures());
            std::thread::yield_now();
        }
    }

    fn pool_thread() -> String {
        std::thread::current().name().unwrap_or_default().into()
    }
}
