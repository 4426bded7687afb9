//! What the server's threads say to one another: plain data, and where an answer goes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError};
use serde_json::{Map, Value};
use zeph_abi::{Failure, Instance, Seat, ServiceId};
use zeph_contract::Error;

use crate::history::What;
use crate::life;
use crate::loader::Loaded;
use crate::reload::Steps;
use crate::settings::{Living, Reload, ServiceOptions, ServicePath, ServiceSettings};

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
    /// Changed settings are applied.
    Applying(Box<Applying>),
    /// A library was opened for a command that waits for it.
    Opened(Result<Loaded, Error>, Box<(Command, Ticket)>),
    /// An instance that was replaced has no call inside and no job left.
    Drained(ServiceId),
    /// Nothing more comes.
    Quit,
}

impl From<Replacing> for Message {
    fn from(step: Replacing) -> Self {
        Self::Replacing(step)
    }
}

impl From<Applying> for Message {
    fn from(step: Applying) -> Self {
        Self::Applying(Box::new(step))
    }
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
    /// The same, since the settings want it to run.
    Added(String),
    /// Stop it; no call brings it back.
    Disable(String),
    /// The same, since the settings do not name it any more.
    Removed(String),
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
    /// Leave these alone from now on.
    Hold { library: String, extent: Extent, ids: Vec<ServiceId>, ticket: Sender<Result<(), Error>> },
    /// Send me what this new instance tells.
    Candidate { id: ServiceId, events: Sender<life::Event> },
    /// The new instances serve from now on.
    Commit {
        loaded: Arc<Loaded>,
        direction: Direction,
        candidates: Vec<Candidate>,
        ticket: Sender<Result<(), Error>>,
    },
    /// Nothing has changed; the file (its hash) is not to be tried again for this reason.
    Abort { library: String, refused: Option<(String, String)> },
    /// The file is what runs already: whatever was refused before is gone from there.
    Unchanged { library: String },
    /// The file is another one, of this hash, and is not loaded before somebody asks for it.
    Waits { library: String, hash: String },
    /// A new instance will not serve: what it had asked for is void.
    Forget { id: ServiceId },
}

/// How much of a library is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of it that runs, but for what runs with this generation already: that one is to serve.
    Library { but: u32 },
    /// Only some services: their settings have changed.
    Services,
}

/// Where a reload leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the file that was dropped in. Where its content is new, it is watched for a while.
    Forward(Origin),
    /// To a build that was kept, since an operator wants it.
    Back,
    /// To the build that new instances are made of again since the newer one failed.
    Follow,
}

impl Direction {
    /// What the history says of a service that goes there, and the cause that it gives.
    pub fn in_history(self) -> (What, &'static str) {
        match self {
            Self::Forward(origin) => (What::Reloaded, origin.reason()),
            Self::Back => (What::RolledBack, "asked: rollback"),
            Self::Follow => (What::RolledBack, "another service failed with the new build"),
        }
    }
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
    /// Who has a new build of it loaded.
    pub reload: Reload,
}

/// A service that runs, to be replaced.
pub struct Subject {
    pub id: ServiceId,
    pub slot: u32,
    pub path: ServicePath,
    /// What it is made of.
    pub loaded: Arc<Loaded>,
    /// The settings in force.
    pub values: Map<String, Value>,
    pub wanted: Wanted,
    pub options: ServiceOptions,
    pub instance: Arc<Instance>,
    pub steps: Arc<Steps>,
    pub seat: &'static Seat,
}

/// Which settings the successor begins with.
pub enum Wanted {
    /// Those of the file, if it names the service.
    OfFile,
    /// Those in force: newer ones were refused.
    Kept,
    /// These.
    These(Map<String, Value>),
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

/// The steps of `apply` that only the manager can do.
pub enum Applying {
    /// What lives, and which libraries are open?
    Begin(Sender<Result<World, Error>>),
    /// A library was opened for services that are new.
    Opened(Arc<Loaded>),
    /// These options count from now on.
    Options { path: ServicePath, options: ServiceOptions, ticket: Sender<Result<(), Error>> },
    /// These settings are wanted. A service that does not serve just has them from now on; else the answer
    /// is whom to replace, and with which code.
    Settings { path: ServicePath, settings: ServiceSettings, ticket: Sender<Result<ToReplace, Error>> },
    /// The new instance serves from now on, with these options.
    Commit {
        loaded: Arc<Loaded>,
        candidate: Candidate,
        options: ServiceOptions,
        ticket: Sender<Result<(), Error>>,
    },
    /// All is done: the order of SERVICE_LIST, and whose settings were refused, with the reason.
    End { order: Vec<ServicePath>, refused: BTreeMap<ServicePath, String> },
}

/// The present instance that is to be replaced, and its code. None: there is none.
pub type ToReplace = Option<(Arc<Loaded>, Subject)>;

/// Everything that lives when settings are applied.
pub struct World {
    pub plugins: Vec<Arc<Loaded>>,
    /// In start order.
    pub services: Vec<Living>,
}

/// Whether settings are applied, or only compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApplyMode {
    /// Say what would change.
    DryRun,
    /// Make them the ones in force.
    Apply,
}

/// Why a library is loaded anew, or settings are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Somebody asked for it: also an unchanged file makes a new generation.
    Asked,
    /// The file changed: the same content once more is passed over.
    Watched,
}

impl Origin {
    /// The cause that the history gives.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Asked => "asked: reload",
            Self::Watched => "its file changed",
        }
    }
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
    /// is to follow. For so long it is waited for who just starts or stops.
    Follow { from: Arc<Loaded>, to: Arc<Loaded>, patience: Duration },
    /// Compare the settings file with what is in force, and make the changes.
    Apply { mode: ApplyMode, origin: Origin, ticket: Ticket },
    /// No more work.
    Quit,
}

/// Why the reload thread does not take a job.
pub fn not_taken(refused: &TrySendError<Job>) -> Error {
    match refused {
        TrySendError::Full(_) => Error::busy("too many reloads wait already"),
        TrySendError::Disconnected(_) => Error::unavailable("the server is stopping"),
    }
}
