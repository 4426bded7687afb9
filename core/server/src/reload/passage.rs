//! One service on its way from one generation to the next, and the steps that plugins do for it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use serde_json::{Map, Value};
use zeph_abi::{Exported, Failure, Instance, Readiness, ServiceDeclaration, ServiceId};
use zeph_contract::{Code, Error};

use super::Failed;
use crate::life::{self, Inherited, Order};
use crate::messages::{Candidate, Subject};

/// How long a new instance's main is looked at before it is let in.
const PROBATION: Duration = Duration::from_millis(2);
/// How long a thaw is waited for.
const THAW: Duration = Duration::from_millis(500);

/// A service on its way from one generation to the next.
pub struct Passage {
    pub subject: Subject,
    pub declaration: ServiceDeclaration,
    pub values: Map<String, Value>,
    pub id: ServiceId,
    pub orders: Sender<Order>,
    pub events: Receiver<life::Event>,
    pub instance: Arc<Instance>,
    /// State passes from the old to the new.
    pub hands_over: bool,
    pub old_state_version: u32,
    /// What the old build could begin with once more.
    pub state: Option<Inherited>,
    /// How its main ended, if it did already.
    pub returned: Option<Result<(), Failure>>,
    /// Its own threads rest, or are about to.
    pub was_frozen: bool,
}

/// The steps of one instance: one at a time, also where one took too long and was given up. It belongs to the
/// instance, so that the next reload knows of a step that the one before has given up.
#[derive(Default)]
pub struct Steps {
    turn: Mutex<()>,
    under_way: AtomicUsize,
}

/// A step that is to be done, or is being done.
struct UnderWay(Arc<Steps>);

impl UnderWay {
    fn new(steps: &Arc<Steps>) -> Self {
        steps.under_way.fetch_add(1, Ordering::SeqCst);
        Self(steps.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

pub fn too_long(path: &str, step: &str, limit: Duration) -> String {
    format!("{path}: {step} took longer than {} ms", limit.as_millis())
}

/// Runs a step of a plugin on a thread of its own. None: it is not done in time; the thread stays.
pub fn within<T: Send + 'static>(deadline: Instant, step: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let thread = std::thread::Builder::new().name("zephserver-step".into());
    thread.spawn(move || sender.send(step())).ok()?;
    receiver.recv_deadline(deadline).ok()
}

impl Passage {
    /// Has the old instance's own threads rest.
    pub fn freeze(&mut self, limit: Duration) -> Result<(), Failed> {
        if self.subject.steps.under_way.load(Ordering::SeqCst) > 0 {
            // A thaw that comes late would undo what comes now.
            let text = "a step of an earlier reload still runs in it; try again";
            return Err(Failed::later(Error::busy(format!("{}: {text}", self.subject.path))));
        }
        self.was_frozen = true;
        let frozen = self.ask_old("freeze", Instant::now() + limit, limit, |instance| instance.freeze());
        frozen.map_err(|failed| Failed::later(Error::busy(failed.error.text)))
    }

    /// Takes the state of the old instance.
    pub fn export(&mut self, deadline: Instant, limit: Duration) -> Result<Exported, Failed> {
        self.ask_old("export_state", deadline, limit, Instance::export_state)
    }

    /// Lets the old instance go on, as if nothing had been.
    pub fn go_on(&mut self) {
        if std::mem::take(&mut self.was_frozen) {
            // After a freeze that still runs, whenever that ends.
            let thawed = self.ask_old("thaw", Instant::now() + THAW, THAW, Instance::thaw);
            thawed.unwrap_or_else(|failed| tracing::error!("{}", failed.error.text));
        }
        self.subject.seat.open();
    }

    /// Runs a step of the old instance, one at a time.
    fn ask_old<T: Send + 'static>(
        &self,
        name: &str,
        deadline: Instant,
        limit: Duration,
        f: fn(&Instance) -> Result<T, Failure>,
    ) -> Result<T, Failed> {
        let (path, instance) = (self.subject.path.to_string(), self.subject.instance.clone());
        let under_way = UnderWay::new(&self.subject.steps);
        let step = move || {
            let UnderWay(steps) = &under_way;
            let _turn = steps.turn.lock();
            f(&instance)
        };
        let name = format!("{name} of the old instance");
        match within(deadline, step) {
            Some(Ok(value)) => Ok(value),
            Some(Err(failure)) => {
                Err(Failed::later(Error::internal(format!("{path}: {name} failed: {failure}"))))
            }
            None => Err(Failed::later(Error::timeout(too_long(&path, &name, limit)))),
        }
    }

    /// Starts the new instance and waits until it is ready.
    pub fn start(
        &mut self,
        inherited: Option<Inherited>,
        deadline: Instant,
        limit: Duration,
    ) -> Result<(), Failed> {
        let path = self.subject.path.to_string();
        let reports = self.declaration.readiness == Readiness::Reported;
        let (mut initialized, mut reported) = (false, false);
        let _ = self.orders.send(Order::Start(inherited));
        while !initialized || (reports && !reported) {
            match self.events.recv_deadline(deadline) {
                Ok(life::Event::Initialized) => initialized = true,
                Ok(life::Event::Ready) => reported = true,
                Ok(life::Event::Failed { step, failure }) => {
                    let text = format!("{path}: {step} of the new instance failed: {failure}");
                    // Busy is what it found, and says nothing of the file.
                    let is_busy = failure.status == Code::Busy.number();
                    let busy = || Failed::later(Error::busy(text.as_str()));
                    return Err(if is_busy { busy() } else { Failed::bad_file(text) });
                }
                Ok(life::Event::Returned(Err(failure))) => {
                    return Err(Failed::bad_file(format!(
                        "{path}: main of the new instance failed: {failure}"
                    )));
                }
                Ok(life::Event::Returned(Ok(()))) => self.returned = Some(Ok(())),
                Ok(life::Event::Created(_) | life::Event::Gone) => {}
                Err(_) => {
                    let step = if initialized { "getting ready" } else { "import_state or init" };
                    return Err(Failed::bad_file(too_long(
                        &path,
                        &format!("{step} of the new instance"),
                        limit,
                    )));
                }
            }
        }
        self.look_at_main(&path)
    }

    /// A main that fails as soon as it runs is not let in.
    fn look_at_main(&mut self, path: &str) -> Result<(), Failed> {
        match self.events.recv_timeout(PROBATION) {
            Ok(life::Event::Returned(Err(failure))) => {
                Err(Failed::bad_file(format!("{path}: main of the new instance failed: {failure}")))
            }
            Ok(life::Event::Returned(Ok(()))) => {
                self.returned = Some(Ok(()));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Its successor, ready to serve. The passage is kept, in case that it has to turn back all the same.
    pub fn arrive(&mut self) -> Candidate {
        Candidate {
            slot: self.subject.slot,
            id: self.id,
            orders: self.orders.clone(),
            instance: self.instance.clone(),
            values: self.values.clone(),
            inherits: self.hands_over,
            state: self.state.take(),
            events: self.events.clone(),
            returned: self.returned.clone(),
        }
    }
}
