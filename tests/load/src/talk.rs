//! The generator of talk: one thread, many peers in rooms, each of which asks again when it was answered.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use mio::{Events, Poll};

use crate::crowd::{Crowd, Plan};
use crate::history::Faults;
use crate::load::{BATCH, QUIET, WAIT};
use crate::raw::READ;
use crate::silence::Silence;
use crate::{DEADLINE, Result, connect};

/// Peers that talk for as long as somebody turns them.
pub struct Talk {
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
    crowd: Crowd,
}

/// What came of it.
pub struct Ended {
    /// What went wrong.
    pub faults: Faults,
    /// The first of it, in words.
    pub first: Option<String>,
    /// Answers and words that came.
    pub messages: u64,
}

impl Talk {
    /// Opens all connections, waits until everybody is in a room, and begins.
    pub fn connect(port: u16, plan: &Plan) -> Result<Self> {
        let (poll, events) = (Poll::new()?, Events::with_capacity(1024));
        let mut talk = Self { poll, events, buffer: vec![0; READ], crowd: Crowd::new(plan) };
        for start in (0..plan.peers).step_by(BATCH) {
            for (socket, read) in connect::websockets(port, "/ws", BATCH.min(plan.peers - start))? {
                talk.crowd.add(socket, &read, talk.poll.registry())?;
            }
            // What came meanwhile does not pile up.
            talk.turn(Duration::ZERO)?;
        }
        talk.settle()?;
        talk.crowd.begin(plan, Instant::now());
        Ok(talk)
    }

    /// Waits until everybody is in a room, and no notice comes any more.
    fn settle(&mut self) -> Result<()> {
        let end = Instant::now() + DEADLINE;
        let too_long =
            |what: &str| -> Result<()> { Err(format!("{what} after {} s", DEADLINE.as_secs()).into()) };
        let mut joined = 0;
        while let Some(at) = self.crowd.outside(joined) {
            // Those before it need not be looked at again.
            joined = at;
            self.turn(WAIT)?;
            if Instant::now() > end {
                return too_long(&format!("peer {joined} is in no room"));
            }
        }
        while self.turn(QUIET)? {
            if Instant::now() > end {
                return too_long("notices still come");
            }
        }
        match self.crowd.history().first() {
            Some(fault) => Err(format!("while the peers joined: {fault}").into()),
            None => Ok(()),
        }
    }

    /// Whoever is due speaks; then looks for events once, and handles them. False: there were none.
    fn turn(&mut self, longest: Duration) -> Result<bool> {
        let now = Instant::now();
        self.crowd.speak(now);
        let due = self.crowd.next_due().map(|due| due.saturating_duration_since(now));
        let wait = due.map_or(longest, |due| due.min(longest));
        if let Err(error) = self.poll.poll(&mut self.events, Some(wait))
            && error.kind() != ErrorKind::Interrupted
        {
            return Err(error.into());
        }
        for event in self.events.iter() {
            let at = event.token().0;
            if event.is_writable() {
                self.crowd.flush(at);
            }
            if event.is_readable() || event.is_error() {
                self.crowd.read(at, &mut self.buffer, event.is_read_closed());
            }
        }
        Ok(!self.events.is_empty())
    }

    /// Lets them talk for a while.
    pub fn run_for(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.turn(left.min(WAIT))?;
        }
        Ok(())
    }

    /// Lets them talk while something is done on a thread of its own.
    pub fn meanwhile<T: Send>(&mut self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let working = scope.spawn(work);
            let mut turned = Ok(true);
            while turned.is_ok() && !working.is_finished() {
                turned = self.turn(WAIT);
            }
            let done = working.join().map_err(|_| "the server could not be asked: see above")?;
            turned?;
            Ok(done)
        })
    }

    /// Lets them talk until everybody has got an answer to something that was asked after `since`.
    pub fn until_all_have_talked(&mut self, since: Instant) -> Result<()> {
        let end = Instant::now() + DEADLINE;
        let mut talked = 0;
        while let Some(silent) = self.crowd.silent_since(since, talked) {
            // Who has talked has talked.
            talked = silent;
            self.turn(WAIT)?;
            if Instant::now() > end {
                let (seconds, first) = (DEADLINE.as_secs(), self.crowd.history().first());
                let first = first.unwrap_or("before that, nothing was wrong");
                return Err(format!("peer {silent} got no answer for {seconds} s; {first}").into());
            }
        }
        Ok(())
    }

    /// The longest times to an answer.
    pub fn silence(&mut self) -> &mut Silence {
        &mut self.crowd.silence
    }

    /// What has gone wrong so far.
    pub fn faults(&self) -> Faults {
        self.crowd.history().so_far()
    }

    /// Answers and words so far.
    pub fn messages(&self) -> u64 {
        self.crowd.messages
    }

    /// Nobody asks any more: waits for what is missing, and tells what did not come.
    pub fn end(mut self) -> Result<Ended> {
        self.crowd.finish();
        let end = Instant::now() + DEADLINE;
        while !self.crowd.history().is_complete() && Instant::now() < end {
            self.turn(WAIT)?;
        }
        // What comes twice comes soon.
        self.run_for(QUIET)?;
        let (history, messages) = self.crowd.into_history();
        let (faults, first) = history.at_the_end();
        Ok(Ended { faults, first, messages })
    }
}
