//! Tasks: one request's work, run for a peer by its name.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use smallvec::SmallVec;
use zeph_abi::{Access, CallOptions, RunMode, ServiceId, TaskDeclaration, monotonic, status};
use zeph_contract::request::{self, LIST, RUN, SAY};
use zeph_contract::room::{Address, Push};
use zeph_contract::session::User;
use zeph_contract::wire::Reader;

use crate::call::{Call, Reply};
use crate::host::Host;
use crate::service::Service;
use crate::start::Start;
use crate::stop::Stop;
use crate::{Code, Error, Result};

/// The keeper of deadlines looks at least so often.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// One request's work. Made, run and dropped for each request.
pub trait Task: Sized + Send + Sync + 'static {
    /// Where it runs. Default: on the server's pool.
    const RUN: RunMode = RunMode::Pooled;
    /// Who may ask for it. Default: anyone.
    const ACCESS: Access = Access::Anyone;
    /// How long it may run on the pool. Default: what the router's settings say.
    const DEADLINE: Option<Duration> = None;

    /// May this user ask for it? Asked before `new`; None: an anonymous peer. The error is what the peer
    /// reads, such as `Error::refused("for moderators only")`.
    fn allow(_user: Option<&User>) -> Result<()> {
        Ok(())
    }

    /// Looks at the request. An error here is the answer.
    fn new(request: Request) -> Result<Self>;

    /// Does the work.
    fn main(&self) -> Result<()>;

    /// Make `main` return soon: its deadline has come, or the service stops. Called from another thread
    /// while `main` runs on the pool; never for a task that runs inline.
    fn interrupt(&self) {}
}

/// What a peer asked for, and the way to answer it.
pub struct Request(Arc<Inner>);

struct Inner {
    /// The encoded request, which was read once without an error.
    payload: SmallVec<[u8; SMALL]>,
    user: Option<User>,
    /// The way to the router, which is who called: no handle, so that a task that never pushes need not
    /// pay for one.
    abi: zeph_abi::Host,
    own: ServiceId,
    router: u32,
    answers: Mutex<SmallVec<[u8; SMALL]>>,
}

/// Requests and answers of so many bytes need no memory of their own.
const SMALL: usize = 160;

impl Request {
    /// The peer that asks.
    pub fn cid(&self) -> u64 {
        self.0.asked().cid
    }

    /// The task's name, as clients know it.
    pub fn task(&self) -> &str {
        text(self.0.asked().task)
    }

    /// The room that the peer is in, whatever the message says.
    pub fn room(&self) -> &str {
        text(self.0.asked().room)
    }

    /// Who asks; None: anonymous.
    pub fn user(&self) -> Option<&User> {
        self.0.user.as_ref()
    }

    /// The data as the peer sent it: JSON.
    #[inline]
    pub fn raw_data(&self) -> &[u8] {
        self.0.asked().data()
    }

    /// The data in a type of the task's own.
    pub fn data<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(self.raw_data())
            .map_err(|error| Error::invalid(format!("data of {}: {error}", self.task())))
    }

    /// The other keys of the message, as the peer sent them: all but `task` and `data`.
    pub fn extra(&self) -> HashMap<String, Box<RawValue>> {
        let message = self.0.asked().message;
        // The edge has read it before.
        let mut extra: HashMap<String, Box<RawValue>> = serde_json::from_slice(message).unwrap_or_default();
        extra.retain(|key, _| !["task", "data"].contains(&key.as_str()));
        extra
    }

    /// Answers the peer that asked.
    pub fn answer<T: Serialize + ?Sized>(&self, data: &T) -> Result<()> {
        self.answer_raw(&serde_json::to_vec(data)?);
        Ok(())
    }

    /// Answers with JSON that is encoded already.
    #[inline]
    pub fn answer_raw(&self, data: &[u8]) {
        let mut answers = self.0.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.extend_from_slice(&(data.len() as u32).to_le_bytes());
        answers.extend_from_slice(data);
    }

    /// Pushes to an address, under this task's name; answers how many local peers it reached.
    pub fn push<T: Serialize + ?Sized>(&self, address: Address<'_>, data: &T) -> Result<u64> {
        let data = serde_json::to_vec(data)?;
        let mut payload = Vec::with_capacity(data.len() + 64);
        Push { address, task: self.task(), data: &data }.encode(&mut payload);
        let (router, mut reached) = (u64::from(self.0.router), Vec::new());
        let outcome = self.0.abi.call(self.0.own, router, SAY, &payload, &CallOptions::WAIT, &mut reached);
        match outcome.status {
            status::DONE => Reader(&reached).u64(),
            failed => Err(Error::new(Code::from_number(failed), String::from_utf8_lossy(&reached))),
        }
    }
}

/// Texts of a request come from an edge, which has read them as UTF-8.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

impl Inner {
    #[inline]
    fn asked(&self) -> request::Request<'_> {
        request::Request::decode(&self.payload).expect("it was read before")
    }
}

/// One task of a plugin, as `export!` lists it.
pub struct TaskKind {
    pub(crate) declaration: TaskDeclaration,
    allow: fn(Option<&User>) -> Result<()>,
    run: fn(Request) -> Result<()>,
    make: fn(Request) -> Result<Arc<dyn AnyTask>>,
}

/// A task that can be interrupted.
trait AnyTask: Send + Sync {
    fn main(&self) -> Result<()>;
    fn interrupt(&self);
}

impl<T: Task> AnyTask for T {
    fn main(&self) -> Result<()> {
        Task::main(self)
    }
    fn interrupt(&self) {
        Task::interrupt(self);
    }
}

/// The [`TaskKind`] of a type.
pub fn task<T: Task>(name: &str) -> TaskKind {
    let deadline = T::DEADLINE.map(|deadline| deadline.as_secs_f64());
    TaskKind {
        declaration: TaskDeclaration { name: name.into(), run: T::RUN, access: T::ACCESS, deadline },
        allow: T::allow,
        run: |request| T::new(request)?.main(),
        make: |request| Ok(Arc::new(T::new(request)?)),
    }
}

/// The service that runs a plugin's tasks.
pub(crate) struct Tasks {
    host: Host,
    kinds: Vec<TaskKind>,
    running: Mutex<HashMap<u64, Running>>,
    /// A task began, or the service stops.
    changed: Condvar,
    next: AtomicU64,
}

/// A task on the pool.
struct Running {
    task: Arc<dyn AnyTask>,
    /// In the server's time; zero: it has none, or was interrupted.
    deadline: u64,
}

impl Tasks {
    pub(crate) fn with(kinds: Vec<TaskKind>, start: &Start) -> Self {
        Self {
            host: start.host(),
            kinds,
            running: Mutex::default(),
            changed: Condvar::new(),
            next: AtomicU64::new(0),
        }
    }

    fn run(&self, call: &Call<'_>, kind: &str) -> Result<Reply> {
        let Some(kind) = self.kinds.iter().find(|known| known.declaration.name == kind) else {
            return Err(Error::not_found(format!("this plugin has no task `{kind}`")));
        };
        let asked = request::Request::decode(call.payload())?;
        let user =
            asked.user.map(|(id, username)| User { id: text(id).into(), username: text(username).into() });
        // The router has looked, too; but it may have looked at the build before.
        if kind.declaration.access == Access::Authenticated && user.is_none() {
            return Err(Error::refused(format!(
                "task `{}` is for users only; log in first",
                text(asked.task)
            )));
        }
        (kind.allow)(user.as_ref())?;
        let mut inner = Arc::new(Inner {
            payload: SmallVec::from_slice(call.payload()),
            user,
            abi: *self.host.abi(),
            own: self.host.id,
            router: ServiceId(call.context().caller).slot().unwrap_or_default(),
            answers: Mutex::default(),
        });
        let request = Request(inner.clone());
        match kind.declaration.run {
            RunMode::Inline => (kind.run)(request)?,
            RunMode::Pooled | RunMode::Ordered => self.supervised(kind, request, call.context().deadline)?,
        }
        match Arc::get_mut(&mut inner) {
            Some(inner) => call.reply(inner.answers.get_mut().unwrap_or_else(PoisonError::into_inner)),
            // The task keeps its request beyond its end: what it answered so far counts.
            None => call.reply(&inner.answers.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    /// Runs a task on the pool: it can be interrupted.
    fn supervised(&self, kind: &TaskKind, request: Request, deadline: u64) -> Result<()> {
        let task = (kind.make)(request)?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.running().insert(number, Running { task: task.clone(), deadline });
        self.changed.notify_one();
        let _leave = Leave { tasks: self, number };
        task.main()
    }

    fn running(&self) -> MutexGuard<'_, HashMap<u64, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Interrupts the tasks that this is the time for, each once.
    fn interrupt(&self, is_due: impl Fn(u64) -> bool) {
        let due: Vec<Arc<dyn AnyTask>> = {
            let mut running = self.running();
            let due = running.values_mut().filter(|running| is_due(running.deadline));
            due.map(|running| {
                running.deadline = 0;
                running.task.clone()
            })
            .collect()
        };
        for task in due {
            if catch_unwind(AssertUnwindSafe(|| task.interrupt())).is_err() {
                tracing::error!("a task's `interrupt` {}", crate::panic::last());
            }
        }
    }
}

/// A task that ends, also by a panic, is not running any more.
struct Leave<'a> {
    tasks: &'a Tasks,
    number: u64,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.tasks.running().remove(&self.number);
    }
}

impl Service for Tasks {
    fn new(_: Start) -> Result<Self> {
        Err(Error::internal("made with `with`"))
    }

    /// Keeps the deadlines.
    fn main(&self, stop: &Stop) -> Result<()> {
        let mut running = self.running();
        while !stop.is_set() {
            let deadlines = running.values().map(|running| running.deadline).filter(|at| *at != 0);
            let wait = deadlines
                .min()
                .map_or(LONGEST_WAIT, |at| Duration::from_nanos(at.saturating_sub(monotonic())));
            let waited = self.changed.wait_timeout(running, wait.min(LONGEST_WAIT));
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            let now = monotonic();
            self.interrupt(|deadline| deadline != 0 && deadline <= now);
            running = self.running();
        }
        Ok(())
    }

    fn disable(&self) {
        // Under the lock, so that `main` either waits already or sees that it is to stop.
        drop(self.running());
        self.changed.notify_one();
        self.interrupt(|_| true);
    }

    fn call(&self, call: Call<'_>) -> Result<Reply> {
        if let Some(kind) = call.method().strip_prefix(RUN) {
            return self.run(&call, kind);
        }
        match call.method() {
            LIST => Reply::json(&self.kinds.iter().map(|kind| &kind.declaration).collect::<Vec<_>>()),
            _ => call.unknown_method(),
        }
    }
}
