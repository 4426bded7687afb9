//! Tasks: one request's work, run for a peer by its name.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;
use zeph_abi::{Access, RunMode, TaskDeclaration};
use zeph_contract::request::{LIST, RUN, SAY};
use zeph_contract::room::{Address, Push};
use zeph_contract::session::User;
use zeph_contract::wire::{Reader, Writer};

use crate::call::{Call, Reply};
use crate::host::{Handle, Host};
use crate::service::Service;
use crate::start::Start;
use crate::{Error, Result};

/// One request's work. Made, run and dropped for each request.
pub trait Task: Sized + Send + Sync {
    /// Where it runs. Default: on the router's pool.
    const RUN: RunMode = RunMode::Pooled;
    /// Who may ask for it. Default: anyone.
    const ACCESS: Access = Access::Anyone;

    /// Looks at the request. An error here is the answer.
    fn new(request: Request) -> Result<Self>;

    /// Does the work.
    fn main(&self) -> Result<()>;

    /// Make `main` return soon. Reserved: the router does not call it yet.
    fn interrupt(&self) {}
}

/// What a peer asked for, and the way to answer it.
pub struct Request {
    cid: u64,
    task: String,
    data: Vec<u8>,
    room: String,
    user: Option<User>,
    say: Handle,
    answers: Arc<Mutex<Vec<u8>>>,
}

impl Request {
    /// The peer that asks.
    pub fn cid(&self) -> u64 {
        self.cid
    }

    /// The task's name, as clients know it.
    pub fn task(&self) -> &str {
        &self.task
    }

    /// The room that the peer is in.
    pub fn room(&self) -> &str {
        &self.room
    }

    /// Who asks; None: anonymous.
    pub fn user(&self) -> Option<&User> {
        self.user.as_ref()
    }

    /// The data as the peer sent it: JSON.
    pub fn raw_data(&self) -> &[u8] {
        &self.data
    }

    /// The data in a type of the task's own.
    pub fn data<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.data)
            .map_err(|error| Error::invalid(format!("data of {}: {error}", self.task)))
    }

    /// Answers the peer that asked.
    pub fn answer<T: Serialize + ?Sized>(&self, data: &T) -> Result<()> {
        self.answer_raw(&serde_json::to_vec(data)?);
        Ok(())
    }

    /// Answers with JSON that is encoded already.
    pub fn answer_raw(&self, data: &[u8]) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        Writer(&mut answers).bytes(data);
    }

    /// Pushes to an address, under this task's name; answers how many local peers it reached.
    pub fn push<T: Serialize + ?Sized>(&self, address: Address<'_>, data: &T) -> Result<u64> {
        let data = serde_json::to_vec(data)?;
        let mut payload = Vec::with_capacity(data.len() + 64);
        Push { address, task: &self.task, data: &data }.encode(&mut payload);
        let reached = self.say.call(SAY, &payload)?;
        Reader(&reached).u64()
    }
}

/// One task of a plugin, as `export!` lists it.
pub struct TaskKind {
    pub(crate) declaration: TaskDeclaration,
    run: fn(Request) -> Result<()>,
}

/// The [`TaskKind`] of a type.
pub fn task<T: Task>(name: &str) -> TaskKind {
    TaskKind {
        declaration: TaskDeclaration { name: name.into(), run: T::RUN, access: T::ACCESS },
        run: |request| T::new(request)?.main(),
    }
}

/// The service that runs a plugin's tasks.
pub(crate) struct Tasks {
    host: Host,
    kinds: Vec<TaskKind>,
}

impl Tasks {
    pub(crate) fn with(kinds: Vec<TaskKind>, start: &Start) -> Self {
        Self { host: start.host(), kinds }
    }

    fn run(&self, call: Call<'_>) -> Result<Reply> {
        let asked = zeph_contract::request::Request::decode(call.payload())?;
        let Some(kind) = self.kinds.iter().find(|kind| kind.declaration.name == asked.kind) else {
            return Err(Error::not_found(format!("this plugin has no task `{}`", asked.kind)));
        };
        let answers = Arc::new(Mutex::new(Vec::new()));
        (kind.run)(Request {
            cid: asked.cid,
            task: asked.task.into(),
            data: asked.data.into(),
            room: asked.room.into(),
            user: asked.user.map(|(id, username)| User { id: id.into(), username: username.into() }),
            say: self.host.service(asked.say),
            answers: answers.clone(),
        })?;
        let answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
        call.reply(&answers)
    }
}

impl Service for Tasks {
    fn new(_: Start) -> Result<Self> {
        Err(Error::internal("made with `with`"))
    }

    fn call(&self, call: Call<'_>) -> Result<Reply> {
        match call.method() {
            RUN => self.run(call),
            LIST => Reply::json(&self.kinds.iter().map(|kind| &kind.declaration).collect::<Vec<_>>()),
            _ => call.unknown_method(),
        }
    }
}
