//! Users of a Django site: whoever has logged in there is known here. Each file answers one question:
//! [`settings`] what the operator says, [`signing`] whether Django wrote it, [`session`] what a session
//! says, [`store`] where sessions and users are. This one keeps the callers from waiting.

mod session;
mod settings;
mod signing;
mod store;

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, select_biased};
use session::{Found, Reader, Ticket};
use settings::Settings;
use store::Store;
use zephserver_plugin::contract::session::{GET_USER_SESSION, GetUserSession, Identity, REVOKE};
use zephserver_plugin::{
    Call, Code, Declare, Error, Pending, Reply, Result, Service, Start, Stop, export, tracing,
};

/// Whoever logs in again has a session like the one before: nothing in it says when that was.
const REVOKE_IN_DJANGO: &str = "sessions of Django do not say when their user logged in, so they end in \
    Django only: a new password ends all of a user (`manage.py changepassword NAME`), and one in the \
    database ends when its row is deleted; then close the peers that live: `zephserver kick`";

struct Session {
    settings: Settings,
    reader: Reader,
    jobs: (Sender<Job>, Receiver<Job>),
    /// While this is there, the workers work.
    working: Mutex<Option<Sender<()>>>,
}

/// Somebody wants to know whose session it is.
struct Job {
    pending: Pending,
    key: String,
    until: Instant,
}

impl Service for Session {
    fn declare(declare: Declare) -> Declare {
        settings::declare(declare).verb("revoke", "revoke/1", "USER how to end a user's sessions in Django")
    }

    fn new(start: Start) -> Result<Self> {
        let settings = Settings::new(start.settings()?)?;
        let reader = Reader::new(&settings);
        let jobs = crossbeam_channel::bounded(settings.waiting);
        Ok(Self { settings, reader, jobs, working: Mutex::default() })
    }

    fn main(&self, stop: &Stop) -> Result<()> {
        let (working, ended) = crossbeam_channel::bounded(0);
        *self.working.lock().unwrap_or_else(PoisonError::into_inner) = Some(working);
        if stop.is_set() {
            // Told so before there was something to end.
            self.end_work();
        }
        thread::scope(|scope| {
            let work = || {
                let _ending = Ending(self);
                Worker { session: self, stop, store: None, is_down: false }.run(&ended);
            };
            let start = |_| thread::Builder::new().name("session-django".into()).spawn_scoped(scope, work);
            let started = (0..self.settings.connections).try_for_each(|number| start(number).map(drop));
            if started.is_err() {
                self.end_work();
            }
            started
        })?;
        for job in self.jobs.1.try_iter() {
            job.answer(Err(Error::unavailable("the session service stops; try again")));
        }
        Ok(())
    }

    fn disable(&self) {
        self.end_work();
    }

    fn call(&self, call: Call<'_>) -> Result<Reply> {
        match call.method() {
            GET_USER_SESSION => self.identify(&call),
            REVOKE | "revoke/1" => Err(Error::new(Code::Unsupported, REVOKE_IN_DJANGO)),
            _ => call.unknown_method(),
        }
    }
}

impl Session {
    fn end_work(&self) {
        self.working.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Without a session somebody is anonymous; else a worker answers, later.
    fn identify(&self, call: &Call<'_>) -> Result<Reply> {
        let question: GetUserSession = call.json()?;
        let key = if self.settings.same_domain {
            // Of cookies with the same name, Django takes the last.
            let cookies = question.peer.cookies().filter(|(name, _)| *name == self.settings.cookie);
            cookies.last().map(|(_, value)| value.to_string())
        } else {
            question.session_id()?
        };
        let Some(key) = key else { return Reply::json(&None::<Identity>) };
        let (pending, reply) = call.defer()?;
        let job = Job { pending, key, until: Instant::now() + self.settings.timeout };
        if let Err(error) = self.jobs.0.try_send(job) {
            let text = format!("{} look-ups of sessions wait already; try again", self.settings.waiting);
            error.into_inner().answer(Err(Error::busy(text)));
        }
        Ok(reply)
    }

    /// What a session means to whoever asked. Browsers keep cookies of sessions that are over: then
    /// somebody is a guest. A session in a message was meant: one that is not good is an error.
    fn identity(&self, found: Found) -> Result<Option<Identity>> {
        match found {
            Found::User(identity) => Ok(Some(identity)),
            Found::Nobody => Ok(None),
            Found::Bad(_) if self.settings.same_domain => Ok(None),
            Found::Bad(why) => Err(Error::refused(format!("{why}; log in again"))),
        }
    }
}

impl Job {
    fn answer(self, answer: Result<Option<Identity>>) {
        let told = match answer {
            Ok(identity) => self.pending.json(&identity),
            Err(error) => self.pending.fail(&error),
        };
        if let Err(error) = told {
            tracing::debug!("{error}");
        }
    }
}

/// A worker that panics ends the others, so that the service begins anew.
struct Ending<'a>(&'a Session);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.end_work();
        }
    }
}

/// One connection to the database, and who uses it.
struct Worker<'a> {
    session: &'a Session,
    stop: &'a Stop,
    store: Option<Box<dyn Store>>,
    /// The log says already that the database does not answer.
    is_down: bool,
}

impl Worker<'_> {
    fn run(mut self, ended: &Receiver<()>) {
        // At once, so that a wrong setting is in the log before anybody asks.
        match self.connect(Instant::now() + self.session.settings.timeout) {
            Ok(store) => self.store = Some(store),
            Err(fault) => self.is_lost(&fault),
        }
        let jobs = &self.session.jobs.1;
        loop {
            select_biased! {
                recv(ended) -> _ => return,
                recv(jobs) -> job => match job {
                    Ok(job) => self.work(job),
                    Err(_) => return,
                },
            }
        }
    }

    fn work(&mut self, job: Job) {
        if job.pending.is_cancelled() {
            return;
        }
        let found = if Instant::now() < job.until {
            self.look_up(&job.key, job.until)
        } else {
            Err(Error::busy("too many look-ups of sessions wait; try again"))
        };
        job.answer(found.and_then(|found| self.session.identity(found)));
    }

    fn look_up(&mut self, key: &str, until: Instant) -> Result<Found> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        let ticket = match self.session.reader.check(key, now) {
            Ok(ticket) => ticket,
            Err(found) => return Ok(found),
        };
        let mut found = self.ask(&ticket, now, until);
        // The connection may have died since it was used: once more, with a new one.
        if found.is_err() && !self.stop.is_set() && Instant::now() < until {
            found = self.ask(&ticket, now, until);
        }
        match found {
            Ok(found) => {
                if std::mem::take(&mut self.is_down) {
                    tracing::info!("the database of users answers again");
                }
                Ok(found)
            }
            Err(fault) => {
                self.is_lost(&fault);
                Err(Error::unavailable("the database of users does not answer; try again later"))
            }
        }
    }

    /// The connection is kept only where all went well: else the next one begins with a new one.
    fn ask(&mut self, ticket: &Ticket<'_>, now: f64, until: Instant) -> Result<Found, String> {
        let mut store = match self.store.take() {
            Some(store) => store,
            None => self.connect(until)?,
        };
        let found = self.session.reader.look_up(ticket, &mut *store, now, until)?;
        self.store = Some(store);
        Ok(found)
    }

    fn connect(&self, until: Instant) -> Result<Box<dyn Store>, String> {
        let Settings { database, tables, .. } = &self.session.settings;
        store::open(database, tables, self.stop, until)
    }

    /// Once until it is back: whoever asks gets an error anyhow.
    fn is_lost(&mut self, fault: &str) {
        if !std::mem::replace(&mut self.is_down, true) && !self.stop.is_set() {
            tracing::warn!("the database of users does not answer: {fault}");
        }
    }
}

export!(Session);
