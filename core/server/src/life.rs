//! The thread of one instance. It makes it, starts it, runs its `main`, and destroys it: nothing else
//! of the server ever waits for a plugin's entry.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use serde_json::{Map, Value};
use zeph_abi::{Exported, Failure, Instance, Library, Seat, ServiceId, StopReason};

/// What the thread is told.
pub enum Order {
    /// Take this state, if there is one, then `init`, then `main`.
    Start(Option<Inherited>),
    /// Run `main` again.
    Again,
    /// End: destroy the instance once nobody is inside it.
    End(Option<&'static Seat>),
}

/// State that comes from another instance.
#[derive(Clone, Debug)]
pub struct Inherited {
    /// The version that it was exported with.
    pub version: u32,
    /// The state.
    pub state: Exported,
}

/// What the thread tells.
pub enum Event {
    /// It exists.
    Created(Arc<Instance>),
    /// A step failed; the thread ends.
    Failed { step: &'static str, failure: Failure },
    /// `init` has returned.
    Initialized,
    /// The service says itself that it is ready.
    Ready,
    /// `main` has returned.
    Returned(Result<(), Failure>),
    /// The instance is destroyed, or never was; the thread ends.
    Gone,
}

/// Everything that an instance is made of.
pub struct Birth {
    /// Kept until the instance is gone: who drops it last says that nothing leads into that code any more.
    pub library: Arc<Library>,
    pub id: ServiceId,
    pub kind: String,
    pub name: String,
    pub settings: Map<String, Value>,
}

thread_local! {
    static CREATING: Cell<bool> = const { Cell::new(false) };
}

/// True on a thread that is just in `create`, where a plugin may ask for nothing but `log` and `config`.
pub fn is_creating() -> bool {
    CREATING.get()
}

/// Starts the thread; it begins with `create`.
pub fn begin(birth: Birth, tell: impl Fn(Event) + Send + 'static) -> std::io::Result<Sender<Order>> {
    // At most Start, Again and End are under way; more would be a fault of the manager, and is refused.
    let (orders, receiver) = crossbeam_channel::bounded(8);
    let name = birth.name.clone();
    std::thread::Builder::new().name(name).spawn(move || {
        live(birth, &receiver, &tell);
        tell(Event::Gone);
    })?;
    Ok(orders)
}

fn live(birth: Birth, orders: &Receiver<Order>, tell: &impl Fn(Event)) {
    let settings = Value::Object(birth.settings).to_string();
    CREATING.set(true);
    let created = birth.library.create(birth.id, &birth.kind, &birth.name, settings.as_bytes());
    CREATING.set(false);
    let instance = match created {
        Ok(instance) => Arc::new(instance),
        Err(failure) => return tell(Event::Failed { step: "create", failure }),
    };
    tell(Event::Created(instance.clone()));
    let mut was_started = false;
    loop {
        match orders.recv() {
            Ok(Order::Start(inherited)) => {
                was_started = true;
                if let Err((step, failure)) = start(&instance, inherited) {
                    // The manager knows whether it has a seat.
                    tell(Event::Failed { step, failure });
                    continue;
                }
                // It may have taken so long that nobody wants it any more.
                if let Ok(Order::End(seat)) = orders.try_recv() {
                    return end(instance, seat, was_started);
                }
                tell(Event::Initialized);
                tell(Event::Returned(instance.main()));
            }
            Ok(Order::Again) => tell(Event::Returned(instance.main())),
            Ok(Order::End(seat)) => return end(instance, seat, was_started),
            Err(_) => return end(instance, None, was_started),
        }
    }
}

fn start(instance: &Instance, inherited: Option<Inherited>) -> Result<(), (&'static str, Failure)> {
    if let Some(Inherited { version, state }) = inherited {
        instance.import_state(version, &state).map_err(|failure| ("import_state", failure))?;
    }
    instance.init().map_err(|failure| ("init", failure))
}

/// Destroys the instance when the last caller has left, on this thread: what an author does in `disable`
/// and `drop` holds up nobody else.
fn end(instance: Arc<Instance>, seat: Option<&'static Seat>, was_started: bool) {
    if was_started {
        // For a main that had ended by itself; asked a second time, the service hears nothing.
        let _ = instance.stop(StopReason::Disabled);
    }
    if let Some(seat) = seat {
        seat.close();
        while seat.vacate().is_none() {
            seat.quiesce(Instant::now() + Duration::from_secs(1));
        }
    }
    let (mut shared, mut pause) = (instance, Duration::from_millis(1));
    loop {
        // Others hold it for a moment: a reload, or whoever asks it to stop. Unless the author's code hangs.
        match Arc::try_unwrap(shared) {
            Ok(last) => return drop(last),
            Err(again) => shared = again,
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}
