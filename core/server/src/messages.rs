//! What the server's threads say to one another: plain data, and where an answer goes.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use serde_json::{Map, Value};
use zeph_abi::{Failure, Instance, Seat, ServiceId};
use zeph_contract::Error;

use crate::life;
use crate::loader::Loaded;
use crate::settings::{ServiceOptions, ServicePath, ServiceSettings};

/// How many messages wait for the manager at most; who sends more waits.
const QUEUE: usize = 4096;

/// The queue towards a manager.
pub fn queue() -> (Sender<Message>, Receiver<Message>) {
    crossbeam_channel::bounded(QUEUE)
}

/// Tells the manager what the instance `id` tells.
pub fn from_life(manager: Sender<Message>, id: ServiceId) -> impl Fn(life::Event) + Send + 'static {
    move |event| {
        // The manager ends last; after it nobody cares.
        let _ = manager.send(Message::Life { id, event });
    }
}

/// A panic in an entry of an instance.
pub struct Crash {
    pub slot: u32,
    pub serial: u32,
    /// Where: `call greet/1`.
    pub step: String,
    /// What the panic said, with file and line.
    pub text: String,
}

/// What the manager is told.
pub enum Message {
    /// An instance's thread tells something.
    Life { id: ServiceId, event: life::Event },
    /// A service reports that it is ready.
    Ready(ServiceId),
    /// A service reports figures.
    Metrics(ServiceId, serde_json::Value),
    /// A service leaves state for after a crash.
    Checkpoint(ServiceId, Vec<u8>),
    /// An entry panicked.
    Crashed(Crash),
    /// Somebody calls a service that sleeps.
    Called(u32),
    /// The libraries are open and the settings checked: this is to live.
    Adopt(Vec<Arc<Loaded>>, Vec<Listed>),
    /// Start everything that was adopted; the answer is the reason why that failed.
    StartAll(Sender<Result<(), String>>),
    /// Stop everything; the answer names who did not stop.
    StopAll(Sender<Vec<String>>),
    /// Somebody wants something.
    Command(Command, Ticket),
    /// A reload goes on.
    Replacing(Replacing),
    /// A library was opened for a command that waits for it.
    Opened(Result<Loaded, Error>, Box<(Command, Ticket)>),
    /// An instance that was replaced has no call inside and no job left.
    Drained(ServiceId),
    /// Nothing more comes.
    Quit,
}

/// A service as SERVICE_LIST and its plugin want it.
pub struct Listed {
    pub path: ServicePath,
    pub settings: ServiceSettings,
    /// Services that must be ready first.
    pub needs: Vec<String>,
}

/// A wish. NAME is a service's path or its library's name.
#[derive(Clone, Debug)]
pub enum Command {
    /// Make a service without starting it: it is available then.
    Create(String),
    /// Make it, if need be, and start it.
    Start(String),
    /// The same with settings of the asker's own, where it does not exist yet.
    Ensure(String, Map<String, Value>),
    /// Stop it; no call brings it back.
    Disable(String),
    /// Stop and start it.
    Restart(String),
    /// Stop it and forget it.
    Delete(String),
    /// How everything stands.
    Status,
    /// The services of a name.
    Services(Option<String>),
    /// What is loaded, and which files were refused.
    Plugins,
}

/// Where the answer goes.
pub struct Ticket(pub Sender<Result<Value, Error>>);

impl Ticket {
    /// A ticket, and where its answer will be.
    pub fn new() -> (Self, crossbeam_channel::Receiver<Result<Value, Error>>) {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        (Self(sender), receiver)
    }

    /// Answers; whoever asked may have gone.
    pub fn answer(self, answer: Result<Value, Error>) {
        let _ = self.0.try_send(answer);
    }
}

/// The steps of a reload that only the manager can do.
pub enum Replacing {
    /// Which services of this library run, but for those of a generation?
    Begin { library: String, but: Option<u32>, ticket: Sender<Result<Standing, Error>> },
    /// Leave these alone from now on: they are all of the library that run, but for those of the generation
    /// that is to serve.
    Hold { library: String, but: u32, ids: Vec<ServiceId>, ticket: Sender<Result<(), Error>> },
    /// Send me what this new instance tells.
    Candidate { id: ServiceId, events: Sender<life::Event> },
    /// The new instances serve from now on. They come back where they must not.
    Commit {
        loaded: Arc<Loaded>,
        candidates: Vec<Candidate>,
        way: Way,
        ticket: Sender<Result<(), Vec<Candidate>>>,
    },
    /// Nothing has changed; the file (its hash) is not to be tried again for this reason.
    Abort { library: String, refused: Option<(String, String)> },
    /// The file is what runs already: whatever was refused before is gone from there.
    Unchanged { library: String },
    /// A new instance will not serve: what it had asked for is void.
    Forget { id: ServiceId },
}

/// Where a commit leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the file that was dropped in. Where its content is new, it is watched for a while.
    Forward,
    /// To a build that was kept, since an operator wants it.
    Back,
    /// To the build that new instances are made of again since the newer one failed.
    Follow,
}

/// How a library stands when its reload begins.
pub struct Standing {
    /// What new instances are made of.
    pub loaded: Arc<Loaded>,
    /// The highest generation so far.
    pub newest: u32,
    pub subjects: Vec<Subject>,
    /// Hash and reason of the newest file that was refused.
    pub refused: Option<(String, String)>,
}

/// A service that runs, to be replaced.
pub struct Subject {
    pub id: ServiceId,
    pub slot: u32,
    pub path: ServicePath,
    /// What it is made of.
    pub loaded: Arc<Loaded>,
    pub values: Map<String, Value>,
    pub options: ServiceOptions,
    pub instance: Arc<Instance>,
    pub seat: &'static Seat,
}

/// Its successor, ready to serve.
pub struct Candidate {
    pub slot: u32,
    pub id: ServiceId,
    pub orders: Sender<life::Order>,
    pub instance: Arc<Instance>,
    pub values: Map<String, Value>,
    /// State was handed over: what belonged to the one before belongs to it now.
    pub inherits: bool,
    /// That state, where the build before could begin with it once more: it has no descriptors.
    pub state: Option<life::Inherited>,
    /// What it has told since it is ready.
    pub events: Receiver<life::Event>,
    /// How its main ended, if it did before it was ready.
    pub returned: Option<Result<(), Failure>>,
}

/// Why a reload is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Somebody asked for it: also an unchanged file makes a new generation.
    Asked,
    /// The file changed.
    Watched,
}

/// Work for the reload thread.
pub enum Job {
    /// Open a library that a command needs.
    Open { library: String, waiting: Box<(Command, Ticket)> },
    /// Replace a library's services.
    Reload { library: String, origin: Origin, ticket: Ticket },
    /// Replace them by those of a kept build: the one before, or the one whose hash begins like this.
    Rollback { library: String, build: Option<String>, ticket: Ticket },
    /// A build failed soon after its reload, and the one before serves again: whatever else of the library runs
    /// is to follow.
    Follow { from: Arc<Loaded>, to: Arc<Loaded> },
    /// No more work.
    Quit,
}
