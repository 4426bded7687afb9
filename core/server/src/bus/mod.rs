//! Calls and events between services.
//!
//! The fast path of a direct call is: look up the slot, enter its gate, note the frame, call, leave. No
//! lock, no clock, no allocation. Everything else (a shut gate, a dead callee, an answer that comes
//! later, the pool) is beside that path.

mod answers;
mod events;
mod pooled;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use zeph_abi::{CallMode, CallOptions, CallRequest, Closed, Context, Entry, Out, Outcome, ServiceId, status};
use zeph_contract::Error;

use crate::clock::Clock;
use crate::frames;
use crate::messages::{Crash, Message};
use crate::pending::Pending;
use crate::pool::Pool;
use crate::registry::{CAPACITY, Down, Registry, Slot};
use crate::settings::Current;
use crate::subscriptions::Subscriptions;

/// How long a caller waits for a service that is on its way back.
const RESURRECTION: Duration = Duration::from_secs(2);
/// No slot: ends the thread that sees to the mail.
const STOP: u32 = u32::MAX;

/// What runs between services.
pub struct Bus {
    /// Tells the servers of one process apart.
    pub id: u64,
    pub registry: Registry,
    pub pending: Pending,
    pub pool: Pool,
    pub clock: Clock,
    pub subscriptions: Subscriptions,
    /// For its limits, which may change at any time.
    pub settings: Current,
    manager: Sender<Message>,
    /// Slots that have mail.
    mail: (Sender<u32>, Receiver<u32>),
    tokens: AtomicU64,
    /// Direct calls that took longer than a second.
    pub slow_calls: AtomicU64,
    /// Calls that were answered `timeout`.
    pub timeouts: AtomicU64,
}

thread_local! {
    /// The panic that this thread reported last, until the failed entry picks it up.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps a panic's text for the entry that is about to fail on this thread.
pub fn remember_panic(text: &str) {
    let _ = PANIC.try_with(|panic| *panic.borrow_mut() = text.into());
}

/// The text of the panic that just ended an entry on this thread.
pub fn take_panic() -> String {
    let text = PANIC.try_with(|panic| std::mem::take(&mut *panic.borrow_mut())).unwrap_or_default();
    if text.is_empty() { "panicked (its SDK did not report where)".into() } else { text }
}

/// Puts an error into a reply.
fn fail(reply: &mut Out<'_>, error: &Error) -> Outcome {
    reply.put(error.text.as_bytes());
    Outcome::failed(error.code.number())
}

/// The slots that a call made in this context is inside of.
fn ancestors(bus: &Bus, context: Option<&Context<'_>>, behalf: u64) -> Arc<[u32]> {
    let mut slots: Vec<u32> =
        context.into_iter().flat_map(Context::ancestry).map(Context::callee_slot).collect();
    for token in [behalf, context.map_or(0, |context| context.behalf)] {
        slots.extend_from_slice(&bus.pending.ancestors(token).unwrap_or_default());
    }
    slots.into()
}

impl Bus {
    pub fn new(settings: Current, manager: Sender<Message>) -> Self {
        static SERVERS: AtomicU64 = AtomicU64::new(1);
        Self {
            id: SERVERS.fetch_add(1, Ordering::Relaxed),
            registry: Registry::new(),
            pending: Pending::default(),
            pool: Pool::new(settings.look().limits.pool_threads),
            clock: Clock::default(),
            subscriptions: Subscriptions::default(),
            settings,
            manager,
            mail: crossbeam_channel::bounded(CAPACITY + 1),
            tokens: AtomicU64::new(1),
            slow_calls: AtomicU64::new(0),
            timeouts: AtomicU64::new(0),
        }
    }

    /// A number that nothing else of this server has: for calls, timers and subscriptions.
    pub fn token(&self) -> u64 {
        self.tokens.fetch_add(1, Ordering::Relaxed)
    }

    fn tell_manager(&self, message: Message) {
        // The manager ends last; after it nobody cares.
        let _ = self.manager.send(message);
    }

    /// Calls a service. See [`zeph_abi::HostSide::call`].
    #[inline]
    pub fn call(self: &Arc<Self>, request: &CallRequest<'_>, reply: &mut Out<'_>) -> Outcome {
        match request.options.mode() {
            CallMode::Wait | CallMode::Later => self.direct(request, None, reply),
            CallMode::PoolWait => self.pooled(request, reply),
            CallMode::PoolLater => self.pooled_later(request, reply),
        }
    }

    #[inline]
    fn direct(
        self: &Arc<Self>,
        request: &CallRequest<'_>,
        cancel: Option<&AtomicBool>,
        reply: &mut Out<'_>,
    ) -> Outcome {
        let CallRequest { from, handle, parent, method, payload, options } = *request;
        let Some(slot) = self.registry.slot(handle) else {
            return fail(reply, &Error::not_found(format!("no service has the handle {handle}")));
        };
        let entry = match slot.gate.enter() {
            Ok(entry) => entry,
            Err(_) => match self.wait_to_enter(slot, parent, options, true) {
                Ok(entry) => entry,
                Err(error) => return fail(reply, &error),
            },
        };
        let outcome = frames::with(|thread| {
            let _inside = thread.enter(self.id, from.0, slot.number, method);
            let mut context = match parent {
                Some(parent) => Context::child(parent, from, slot.number),
                None => Context::root(from, slot.number, thread.new_chain()),
            };
            if options.behalf != 0 {
                context.behalf = options.behalf;
            }
            if options.mode == CallMode::Later as u32 {
                // A caller that does not wait here needs no clock for it.
                context.deadline = 0;
            } else if options.within != 0 {
                context.deadline = zeph_abi::monotonic().saturating_add(options.within);
            }
            if let Some(cancel) = cancel {
                context = context.with_cancel(cancel);
            }
            entry.call(&context, method, payload, reply)
        });
        match outcome.status {
            status::PENDING => {
                // Whoever waits is not inside: the callee may be replaced meanwhile.
                drop(entry);
                self.attend(request, slot, outcome.value, reply)
            }
            status::PANICKED if outcome.is_own_panic() => {
                self.crashed(slot, &entry, method);
                outcome
            }
            _ => outcome,
        }
    }

    /// How long the caller waits for an answer that comes later.
    fn limit(&self, options: &CallOptions) -> Duration {
        match options.within {
            0 => self.settings.look().limits.call_timeout,
            within => Duration::from_nanos(within),
        }
    }

    /// An entry of a service failed with a panic: its instance is not to be trusted any more.
    #[cold]
    fn crashed(&self, slot: &Slot, entry: &Entry, method: &[u8]) {
        let step = format!("call {}", String::from_utf8_lossy(method));
        self.report_crash(slot, entry, step);
    }

    fn report_crash(&self, slot: &Slot, entry: &Entry, step: String) {
        let serial = entry.seat().serial();
        // From now on callers wait for its successor, also those who come before the manager hears of
        // it. A second panic in the same instance changes nothing.
        if entry.seat().close() {
            slot.set_down(Down::Coming);
        }
        self.tell_manager(Message::Crashed(Crash { slot: slot.number, serial, step, text: take_panic() }));
    }

    /// Enters a gate that was not open at the first try. Who rests is brought back for it, or not.
    #[cold]
    fn wait_to_enter(
        &self,
        slot: &Slot,
        parent: Option<&Context<'_>>,
        options: &CallOptions,
        brings_back: bool,
    ) -> Result<Entry, Error> {
        let start = Instant::now();
        let patience = |usual: Duration| match options.within {
            0 => usual,
            within => usual.min(Duration::from_nanos(within)),
        };
        let behalf = options.behalf;
        let mut inside = None;
        loop {
            let limit = match slot.gate.enter() {
                Ok(entry) => return Ok(entry),
                Err(Closed::Shut) => {
                    let is_inside =
                        *inside.get_or_insert_with(|| ancestors(self, parent, behalf).contains(&slot.number));
                    if is_inside && let Ok(entry) = slot.gate.enter_inside() {
                        return Ok(entry);
                    }
                    // A little longer than the reload may take: it opens the gate either way.
                    patience(self.settings.look().limits.gate_timeout * 4 + RESURRECTION)
                }
                Err(Closed::Down) => match slot.down() {
                    Down::Unknown => {
                        return Err(Error::not_found(format!(
                            "no service `{}` lives here; add it to SERVICE_LIST, or start it: zephserver start {}",
                            slot.name, slot.name
                        )));
                    }
                    Down::Off(reason) => {
                        return Err(Error::unavailable(format!("{} does not serve: {reason}", slot.name)));
                    }
                    Down::Asleep if !brings_back => {
                        return Err(Error::unavailable(format!("{} rests", slot.name)));
                    }
                    Down::Asleep => {
                        // Once in each slice: its main may return again before we are in.
                        self.tell_manager(Message::Called(slot.number));
                        patience(RESURRECTION)
                    }
                    Down::Coming => patience(RESURRECTION),
                },
            };
            let now = Instant::now();
            if now >= start + limit {
                return Err(Error::unavailable(format!(
                    "{} is not ready; waited {} ms for it",
                    slot.name,
                    (now - start).as_millis()
                )));
            }
            // In slices: whoever changes the reason for the wait does not always change the gate.
            slot.gate.wait((start + limit).min(now + Duration::from_millis(20)));
        }
    }

    /// Somebody's name, for messages.
    pub fn who(&self, id: ServiceId) -> &str {
        match id.slot() {
            Some(slot) => self.registry.name(slot),
            None => "a library",
        }
    }
}
