//! Calls and events between services.
//!
//! The fast path of a direct call is: look up the slot, enter its gate, note the frame, call, leave. No
//! lock, no clock, no allocation. Everything else (a shut gate, a dead callee, an answer that comes
//! later, the pool) is beside that path.

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use zeph_abi::{
    CallMode, CallOptions, Closed, Context, Entry, Event, EventKind, Failure, Out, Outcome, Scope, ServiceId,
    status,
};
use zeph_contract::Error;

use crate::clock::{Clock, Due};
use crate::frames;
use crate::mailbox::OwnedEvent;
use crate::manager::{Crash, Message};
use crate::pending::{Answer, Attended, Call, Caller, Pending, Waiter};
use crate::pool::Pool;
use crate::registry::{CAPACITY, Down, Registry, Slot};
use crate::settings::Limits;
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
    pub limits: Limits,
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

/// What a call on the pool is inside of, for as long as the call lasts.
struct Carrier {
    bus: Arc<Bus>,
    token: u64,
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.bus.pending.remove(self.token);
    }
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
    pub fn new(limits: Limits, manager: Sender<Message>) -> Self {
        static SERVERS: AtomicU64 = AtomicU64::new(1);
        Self {
            id: SERVERS.fetch_add(1, Ordering::Relaxed),
            registry: Registry::new(),
            pending: Pending::default(),
            pool: Pool::new(limits.pool_threads),
            clock: Clock::default(),
            subscriptions: Subscriptions::default(),
            limits,
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
    #[allow(clippy::too_many_arguments)]
    #[inline]
    pub fn call(
        self: &Arc<Self>,
        from: ServiceId,
        handle: u64,
        parent: Option<&Context<'_>>,
        method: &[u8],
        payload: &[u8],
        options: &CallOptions,
        reply: &mut Out<'_>,
    ) -> Outcome {
        match options.mode() {
            CallMode::Wait | CallMode::Later => {
                self.direct(from, handle, parent, method, payload, options, None, reply)
            }
            CallMode::PoolWait => self.pooled(from, handle, parent, method, payload, options, reply),
            CallMode::PoolLater => self.pooled_later(from, handle, parent, method, payload, options, reply),
        }
    }

    #[allow(clippy::too_many_arguments)]
    #[inline]
    fn direct(
        self: &Arc<Self>,
        from: ServiceId,
        handle: u64,
        parent: Option<&Context<'_>>,
        method: &[u8],
        payload: &[u8],
        options: &CallOptions,
        cancel: Option<&AtomicBool>,
        reply: &mut Out<'_>,
    ) -> Outcome {
        let Some(slot) = self.registry.slot(handle) else {
            return fail(reply, &Error::not_found(format!("no service has the handle {handle}")));
        };
        let entry = match slot.gate.enter() {
            Ok(entry) => entry,
            Err(_) => match self.wait_to_enter(slot, parent, options) {
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
            if options.within != 0 {
                context.deadline = zeph_abi::monotonic() + options.within;
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
                self.attend(from, slot, method, outcome.value, options, reply)
            }
            status::PANICKED => {
                self.crashed(slot, &entry, method);
                outcome
            }
            _ => outcome,
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

    /// Enters a gate that was not open at the first try.
    #[cold]
    fn wait_to_enter(
        &self,
        slot: &Slot,
        parent: Option<&Context<'_>>,
        options: &CallOptions,
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
                    patience(self.limits.gate_timeout * 4 + RESURRECTION)
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

    /// The callee answers later: wait for it here, or have the answer sent as an event.
    #[cold]
    fn attend(
        self: &Arc<Self>,
        from: ServiceId,
        slot: &Slot,
        method: &[u8],
        token: u64,
        options: &CallOptions,
        reply: &mut Out<'_>,
    ) -> Outcome {
        let limit = match options.within {
            0 => self.limits.call_timeout,
            within => Duration::from_nanos(within),
        };
        let deadline = Instant::now() + limit;
        let waiter = Arc::new(Waiter::default());
        let waits = matches!(options.mode(), CallMode::Wait | CallMode::PoolWait);
        let caller = match from.slot() {
            Some(slot) if !waits => Caller::Service { slot, cookie: options.cookie },
            _ => Caller::Thread(waiter.clone()),
        };
        let answered = |answer: Answer, reply: &mut Out<'_>| {
            reply.put(&answer.1);
            Outcome { status: answer.0, value: 0 }
        };
        match self.pending.attend(token, caller, options.credit, deadline) {
            Attended::Answered(answer) => return answered(answer, reply),
            Attended::Waiting => {}
            Attended::Unknown => {
                let text = format!("{} deferred a call that it had not begun", slot.name);
                return fail(reply, &Error::internal(text));
            }
        }
        if options.credit > 0 {
            self.tell_callee(token, EventKind::Credit, u64::from(options.credit));
        }
        if !waits {
            self.clock.set_deadline(token, deadline);
            return Outcome::pending(token);
        }
        if let Some(answer) = waiter.wait(deadline) {
            return answered(answer, reply);
        }
        self.give_up(token);
        // It may have come at the very last moment.
        match waiter.wait(Instant::now()) {
            Some(answer) => answered(answer, reply),
            None => fail(reply, &self.timeout(slot, &String::from_utf8_lossy(method), limit)),
        }
    }

    fn timeout(&self, slot: &Slot, method: &str, limit: Duration) -> Error {
        self.timeouts.fetch_add(1, Ordering::Relaxed);
        Error::timeout(format!("{} did not answer {method} within {} ms", slot.name, limit.as_millis()))
    }

    /// Nobody waits for a call any more: forget it and tell its callee.
    fn give_up(&self, token: u64) {
        if let Some(call) = self.pending.remove(token) {
            call.abandon_job();
            self.send_cancelled(token, call.callee);
        }
    }

    fn send_cancelled(&self, token: u64, callee: ServiceId) {
        if let Some(slot) = callee.slot() {
            self.mail(slot, &Event { token, ..Event::new(EventKind::Cancelled) });
        }
    }

    fn tell_callee(&self, token: u64, kind: EventKind, number: u64) {
        if let Some(slot) = self.pending.grant(token, 0).and_then(ServiceId::slot) {
            self.deliver(slot, &Event { token, number, ..Event::new(kind) });
        }
    }

    /// See [`zeph_abi::HostSide::defer`].
    pub fn defer(&self, from: ServiceId, context: &Context<'_>) -> Result<u64, Error> {
        let token = self.token();
        let deadline = Instant::now() + self.limits.call_timeout;
        let method =
            frames::with(|thread| thread.innermost(self.id)).map_or_else(String::new, |call| call.method);
        self.pending.defer(token, from, &method, ancestors(self, Some(context), 0), deadline);
        self.clock.set_deadline(token, deadline);
        Ok(token)
    }

    /// See [`zeph_abi::HostSide::reply`].
    pub fn reply(&self, token: u64, status: i32, payload: &[u8]) -> Result<(), Error> {
        match self.pending.answer(token, (status, payload.to_vec())) {
            Ok(None) => Ok(()),
            Ok(Some((Caller::Thread(waiter), answer))) => {
                waiter.put(answer);
                Ok(())
            }
            Ok(Some((Caller::Service { slot, cookie }, (status, payload)))) => {
                let reply = Event::new(EventKind::Reply);
                self.deliver(slot, &Event { status, token, number: cookie, payload: &payload, ..reply });
                Ok(())
            }
            Err(()) => Err(Error::not_found("nobody waits for this answer")),
        }
    }

    /// Ends a call with an error, from a thread of the server, which must not run a plugin's code.
    fn end_call(&self, token: u64, call: Call, error: &Error) {
        call.abandon_job();
        match call.into_caller() {
            Some(Caller::Thread(waiter)) => {
                waiter.put((error.code.number(), error.text.clone().into_bytes()))
            }
            Some(Caller::Service { slot, cookie }) => {
                let reply = Event { token, number: cookie, ..Event::new(EventKind::Reply) };
                let status = error.code.number();
                self.mail(slot, &Event { status, payload: error.text.as_bytes(), ..reply });
            }
            None => {}
        }
    }

    fn mail(&self, slot: u32, event: &Event<'_>) {
        if let Some(slot) = self.registry.slot(u64::from(slot)) {
            self.post(slot, OwnedEvent::new(event));
        }
    }

    /// See [`zeph_abi::HostSide::stream`].
    pub fn stream(&self, token: u64, payload: &[u8]) -> Result<(), Error> {
        match self.pending.take_credit(token) {
            Ok(Caller::Service { slot, cookie }) => {
                let item = Event::new(EventKind::Item);
                self.deliver(slot, &Event { token, number: cookie, payload, ..item });
                Ok(())
            }
            Ok(Caller::Thread(_)) => Err(Error::refused("the caller takes one answer, no stream")),
            Err(false) => Err(Error::busy("the caller has granted no further items")),
            Err(true) => Err(Error::not_found("nobody waits for this stream")),
        }
    }

    /// See [`zeph_abi::HostSide::credit`].
    pub fn credit(&self, token: u64, items: u32) -> Result<(), Error> {
        let callee = self.pending.grant(token, items);
        let slot = callee.and_then(ServiceId::slot).ok_or_else(|| Error::not_found("no such stream"))?;
        self.deliver(slot, &Event { token, number: u64::from(items), ..Event::new(EventKind::Credit) });
        Ok(())
    }

    /// See [`zeph_abi::HostSide::cancel`].
    pub fn cancel(&self, token: u64) -> Result<(), Error> {
        if self.clock.cancel(token) || self.subscriptions.cancel(token) {
            return Ok(());
        }
        let call = self.pending.remove(token);
        let call = call.ok_or_else(|| Error::not_found("no such call, timer or subscription"))?;
        call.abandon_job();
        self.send_cancelled(token, call.callee);
        Ok(())
    }

    /// Answers every pending call that an instance will not answer any more.
    pub fn fail_calls_of(&self, callee: ServiceId, error: &Error) {
        for (token, call) in self.pending.take_where(|call| call.callee == callee) {
            self.end_call(token, call, error);
        }
    }

    /// Ends the calls that a service made, since nobody is left who would know what to do with the answers.
    pub fn cancel_calls_by(&self, slot: u32) {
        for (token, call) in self.pending.take_where(|call| call.is_of_caller(slot)) {
            call.abandon_job();
            self.send_cancelled(token, call.callee);
        }
    }

    /// Calls on the pool and waits until the deadline at most.
    #[allow(clippy::too_many_arguments)]
    fn pooled(
        self: &Arc<Self>,
        from: ServiceId,
        handle: u64,
        parent: Option<&Context<'_>>,
        method: &[u8],
        payload: &[u8],
        options: &CallOptions,
        reply: &mut Out<'_>,
    ) -> Outcome {
        let limit = match options.within {
            0 => self.limits.call_timeout,
            within => Duration::from_nanos(within),
        };
        let deadline = Instant::now() + limit;
        let waiter = Arc::new(Waiter::default());
        let cancel = Arc::new(AtomicBool::new(false));
        let options = CallOptions { within: limit.as_nanos() as u64, ..*options };
        let job = self.job(from, handle, parent, method, payload, &options, cancel.clone(), {
            let waiter = waiter.clone();
            move |answer| waiter.put(answer)
        });
        let Some(ticket) = self.pool.spawn(job) else { return fail(reply, &self.pool_is_full()) };
        let _waiting = self.pool.waits();
        match waiter.wait(deadline) {
            Some((status, bytes)) => {
                reply.put(&bytes);
                Outcome { status, value: 0 }
            }
            None => {
                cancel.store(true, Ordering::Relaxed);
                ticket.abandon();
                let method = String::from_utf8_lossy(method);
                let error = match self.registry.slot(handle) {
                    Some(slot) => self.timeout(slot, &method, limit),
                    None => Error::timeout(format!("no answer to {method}")),
                };
                tracing::warn!("{}: {}", self.who(from), error.text);
                fail(reply, &error)
            }
        }
    }

    /// Calls on the pool; the answer comes as an event, at the deadline at the latest.
    #[allow(clippy::too_many_arguments)]
    fn pooled_later(
        self: &Arc<Self>,
        from: ServiceId,
        handle: u64,
        parent: Option<&Context<'_>>,
        method: &[u8],
        payload: &[u8],
        options: &CallOptions,
        reply: &mut Out<'_>,
    ) -> Outcome {
        let limit = match options.within {
            0 => self.limits.call_timeout,
            within => Duration::from_nanos(within),
        };
        let (token, deadline) = (self.token(), Instant::now() + limit);
        let Some(caller) = from.slot() else {
            return fail(reply, &Error::invalid("only a service can have an answer sent as an event"));
        };
        let callee = ServiceId::instance(handle as u32, 0);
        let method_name = String::from_utf8_lossy(method);
        self.pending.defer(token, callee, &method_name, ancestors(self, parent, options.behalf), deadline);
        let waits = Caller::Service { slot: caller, cookie: options.cookie };
        self.pending.attend(token, waits, options.credit, deadline);
        self.clock.set_deadline(token, deadline);
        let options = CallOptions { within: limit.as_nanos() as u64, ..*options };
        let bus = self.clone();
        let cancel = Arc::new(AtomicBool::new(false));
        let job = self.job(from, handle, parent, method, payload, &options, cancel.clone(), move |answer| {
            // Nobody may wait any more: then the deadline has answered.
            let _ = bus.reply(token, answer.0, &answer.1);
        });
        match self.pool.spawn(job) {
            Some(ticket) => self.pending.attach_job(token, ticket, cancel),
            None => {
                self.pending.remove(token);
                return fail(reply, &self.pool_is_full());
            }
        }
        Outcome::pending(token)
    }

    fn pool_is_full(&self) -> Error {
        let figures = self.pool.figures();
        Error::busy(format!(
            "the pool is full: {} threads, {} of them stuck, {} calls waiting ([server] pool_threads = {})",
            figures.threads, figures.stuck, figures.queued, self.limits.pool_threads
        ))
    }

    /// A direct call as a job for the pool, with copies of everything that is only lent.
    #[allow(clippy::too_many_arguments)]
    fn job(
        self: &Arc<Self>,
        from: ServiceId,
        handle: u64,
        parent: Option<&Context<'_>>,
        method: &[u8],
        payload: &[u8],
        options: &CallOptions,
        cancel: Arc<AtomicBool>,
        done: impl FnOnce(Answer) + Send + 'static,
    ) -> Box<dyn FnOnce() + Send> {
        let bus = self.clone();
        let (method, payload) = (method.to_vec(), payload.to_vec());
        let mut options = CallOptions { mode: CallMode::Wait as u32, ..*options };
        let inside = ancestors(self, parent, options.behalf);
        let chain = parent.map(|parent| parent.chain);
        // The chain goes on in another thread: an entry of its own carries what it is inside of, and
        // goes with the job, whether that ever runs or not.
        let carrier = (!inside.is_empty()).then(|| {
            let token = self.token();
            let deadline = Instant::now() + Duration::from_nanos(options.within.max(1));
            self.pending.defer(token, ServiceId::SERVER, "", inside, deadline);
            options.behalf = token;
            Carrier { bus: self.clone(), token }
        });
        Box::new(move || {
            let mut bytes = Vec::new();
            let mut out = Out::to(&mut bytes);
            let root = chain.map(|chain| Context::root(from, 0, chain));
            let (root, cancel) = (root.as_ref(), Some(&*cancel));
            let outcome = bus.direct(from, handle, root, &method, &payload, &options, cancel, &mut out);
            drop(carrier);
            done((outcome.status, bytes));
        })
    }

    /// Tells a service an event: at once if nothing is in the way, else in its turn.
    pub fn deliver(&self, slot: u32, event: &Event<'_>) {
        let Some(slot) = self.registry.slot(u64::from(slot)) else { return };
        if slot.mailbox.is_idle()
            && let Ok(entry) = slot.gate.enter()
        {
            return self.tell(slot, &entry, event);
        }
        self.post(slot, OwnedEvent::new(event));
    }

    /// Tells a service an event from a thread of the pool.
    pub fn post(&self, slot: &Slot, event: OwnedEvent) {
        if slot.mailbox.push(event) {
            // Never full: each slot is in it once at most.
            let _ = self.mail.0.try_send(slot.number);
        }
    }

    /// Has mail delivered by the pool until `stop`. On a thread of its own.
    pub fn run_mail(self: &Arc<Self>) {
        while let Ok(slot) = self.mail.1.recv() {
            if slot == STOP {
                return;
            }
            let bus = self.clone();
            while self
                .pool
                .spawn({
                    let bus = bus.clone();
                    move || bus.deliver_mail(slot)
                })
                .is_none()
            {
                // Full of calls: mail waits for its turn like everybody.
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Ends the bus's own threads.
    pub fn stop(&self) {
        self.clock.stop();
        let _ = self.mail.0.try_send(STOP);
    }

    /// Delivers what waits for a slot. On a thread of the pool.
    pub fn deliver_mail(&self, slot: u32) {
        let Some(slot) = self.registry.slot(u64::from(slot)) else { return };
        while let Some(event) = slot.mailbox.pop() {
            match self.wait_to_enter(slot, None, &CallOptions::WAIT) {
                Ok(_) if !slot.mailbox.is_wanted(&event) => {}
                Ok(entry) => self.tell(slot, &entry, &event.lend()),
                Err(error) => {
                    slot.mailbox.drop_one();
                    tracing::debug!("{}: an event is lost: {}", slot.name, error.text);
                }
            }
        }
    }

    fn tell(&self, slot: &Slot, entry: &Entry, event: &Event<'_>) {
        let method: Cow<'static, str> = match event.kind {
            EventKind::Reply => "event reply".into(),
            EventKind::Item => "event item".into(),
            EventKind::Credit => "event credit".into(),
            EventKind::Cancelled => "event cancelled".into(),
            EventKind::Timer => "event timer".into(),
            EventKind::Published | EventKind::Said => format!("event {}", event.name).into(),
            EventKind::Node => "event node".into(),
            EventKind::Unknown => "event".into(),
        };
        let _inside = frames::with(|thread| thread.enter(self.id, 0, slot.number, method.as_bytes()));
        match entry.event(event) {
            Ok(()) => {}
            Err(Failure { status: status::PANICKED, .. }) => self.report_crash(slot, entry, method.into()),
            Err(failure) => tracing::warn!("{}: {method}: {failure}", slot.name),
        }
    }

    /// Tells everybody of this node who listens; answers how many.
    pub fn publish(&self, event: &str, payload: &[u8]) -> u64 {
        self.spread(Scope::Node, EventKind::Published, event, event, payload)
    }

    /// Tells all subscribers of `topic` an event.
    pub fn spread(&self, scope: Scope, kind: EventKind, topic: &str, name: &str, payload: &[u8]) -> u64 {
        let subscribers = self.subscriptions.of(scope, topic);
        let (name, payload): (Arc<str>, Arc<[u8]>) = (name.into(), payload.into());
        for (slot, token) in &subscribers {
            let (name, payload) = (name.clone(), payload.clone());
            if let Some(slot) = self.registry.slot(u64::from(*slot)) {
                self.post(
                    slot,
                    OwnedEvent { kind, status: 0, token: *token, number: *token, name, payload, epoch: 0 },
                );
            }
        }
        subscribers.len() as u64
    }

    /// Does what becomes due until the clock is stopped. On a thread of its own.
    pub fn run_clock(&self) {
        while let Some(due) = self.clock.next() {
            match due {
                Due::Timer { token, slot } => {
                    let timer = Event { token, ..Event::new(EventKind::Timer) };
                    if let Some(slot) = self.registry.slot(u64::from(slot)) {
                        self.post(slot, OwnedEvent::new(&timer));
                    }
                }
                Due::Call { token } => self.end_overdue(token),
            }
        }
    }

    fn end_overdue(&self, token: u64) {
        let now = Instant::now();
        let Some((_, call)) = self.pending.take_one_overdue(token, now) else { return };
        let callee = call.callee;
        let name = callee.slot().map_or("(nobody)", |slot| self.registry.name(slot));
        let error = Error::timeout(format!("{name} did not answer {} in time", call.method));
        if call.is_attended() {
            self.timeouts.fetch_add(1, Ordering::Relaxed);
            self.send_cancelled(token, callee);
        }
        self.end_call(token, call, &error);
    }

    /// Somebody's name, for messages.
    pub fn who(&self, id: ServiceId) -> &str {
        match id.slot() {
            Some(slot) => self.registry.name(slot),
            None => "a library",
        }
    }
}
