//! Calls on the pool, which end for their caller whatever the callee does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use zeph_abi::{CallMode, CallOptions, CallRequest, Context, Out, Outcome, ServiceId, status};
use zeph_contract::{Code, Error};

use super::{Bus, ancestors, fail};
use crate::frames;
use crate::pending::{Answer, Caller, Waiter};

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

/// What a job of the pool needs beside the request.
struct Job<D> {
    limit: Duration,
    cancel: Arc<AtomicBool>,
    done: D,
}

impl Bus {
    /// Calls on the pool and waits until the deadline at most.
    pub(super) fn pooled(self: &Arc<Self>, request: &CallRequest<'_>, reply: &mut Out<'_>) -> Outcome {
        let limit = self.limit(request.options);
        let deadline = Instant::now() + limit;
        let (waiter, cancel) = (Arc::new(Waiter::default()), Arc::new(AtomicBool::new(false)));
        let answered = waiter.clone();
        let done = move |answer| answered.put(answer);
        let job = self.job(request, Job { limit, cancel: cancel.clone(), done });
        let Some(ticket) = self.pool.spawn(job) else { return fail(reply, &self.pool_is_full()) };
        let _waiting = self.pool.waits();
        if let Some((status, bytes)) = waiter.wait(deadline) {
            reply.put(&bytes);
            return Outcome { status, value: 0 };
        }
        cancel.store(true, Ordering::Relaxed);
        ticket.abandon();
        let method = String::from_utf8_lossy(request.method);
        let error = match self.registry.slot(request.handle) {
            Some(slot) => self.timeout(slot, &method, limit),
            None => Error::timeout(format!("no answer to {method}")),
        };
        tracing::warn!("{}: {}", self.who(request.from), error.text);
        fail(reply, &error)
    }

    /// Calls on the pool; the answer comes as an event, at the deadline at the latest.
    pub(super) fn pooled_later(self: &Arc<Self>, request: &CallRequest<'_>, reply: &mut Out<'_>) -> Outcome {
        let CallRequest { from, handle, parent, method, options, .. } = *request;
        let limit = self.limit(options);
        let (token, deadline) = (self.token(), Instant::now() + limit);
        let Some(slot) = from.slot() else {
            return fail(reply, &Error::invalid("only a service can have an answer sent as an event"));
        };
        let callee = ServiceId::instance(handle as u32, 0);
        let inside = ancestors(self, parent, options.behalf);
        if let Err(error) =
            self.pending.defer(token, callee, &String::from_utf8_lossy(method), inside, deadline)
        {
            return fail(reply, &error);
        }
        let waits = Caller::Service { slot, serial: from.serial(), cookie: options.cookie };
        self.pending.attend(token, waits, options.credit, deadline);
        self.clock.set_deadline(token, deadline, |token| self.pending.contains(token));
        let (bus, cancel) = (self.clone(), Arc::new(AtomicBool::new(false)));
        let late = self.timeout_text(handle as u32, &String::from_utf8_lossy(method));
        let done = move |answer: Answer| {
            // What comes at the deadline or later is late, such as the word of one that was interrupted.
            let is_late = Instant::now() >= deadline;
            let (status, bytes) = if is_late { (Code::Timeout.number(), late.into_bytes()) } else { answer };
            // Nobody may wait any more: then the deadline has answered.
            let _ = bus.reply(token, status, &bytes);
        };
        let job = self.job(request, Job { limit, cancel: cancel.clone(), done });
        match self.pool.spawn(job) {
            Some(ticket) => self.pending.attach_job(token, ticket, cancel),
            None => {
                self.pending.remove(token);
                return fail(reply, &self.pool_is_full());
            }
        }
        Outcome::pending(token)
    }

    /// A call from outside of any service: on the pool, so that it ends whatever the callee does.
    /// `limit` zero: the server's own.
    pub fn call_from_outside(
        self: &Arc<Self>,
        handle: u64,
        method: &str,
        payload: &[u8],
        limit: Duration,
    ) -> Result<Vec<u8>, Error> {
        let within = limit.as_nanos() as u64;
        let options = CallOptions { within, ..CallOptions::new(CallMode::PoolWait) };
        let (from, parent, method, options) = (ServiceId::SERVER, None, method.as_bytes(), &options);
        let request = CallRequest { from, handle, parent, method, payload, options };
        let mut reply = Vec::new();
        match self.pooled(&request, &mut Out::to(&mut reply)).status {
            status::DONE => Ok(reply),
            number => Err(Error::new(Code::from_number(number), String::from_utf8_lossy(&reply))),
        }
    }

    fn timeout_text(&self, slot: u32, method: &str) -> String {
        format!("{} did not answer {method} in time", self.registry.name(slot))
    }

    fn pool_is_full(&self) -> Error {
        let figures = self.pool.figures();
        Error::busy(format!(
            "the pool is full: {} threads, {} of them stuck, {} calls waiting ([server] pool_threads = {})",
            figures.threads,
            figures.stuck,
            figures.queued,
            self.settings.look().limits.pool_threads
        ))
    }

    /// A direct call as a job for the pool, with copies of everything that is only lent.
    fn job<D: FnOnce(Answer) + Send + 'static>(
        self: &Arc<Self>,
        request: &CallRequest<'_>,
        job: Job<D>,
    ) -> impl FnOnce() + Send + use<D> {
        let CallRequest { from, handle, parent, method, payload, options } = *request;
        let Job { limit, cancel, done } = job;
        let options_mode = options.mode();
        let mut options = CallOptions { mode: CallMode::Wait as u32, ..*options };
        let inside = ancestors(self, parent, options.behalf);
        let chain = parent.map(|parent| parent.chain);
        // The chain goes on in another thread: an entry of its own carries what it is inside of, and
        // goes with the job, whether that ever runs or not.
        let carrier = (!inside.is_empty()).then(|| {
            let token = self.token();
            // Where there is no room the chain ends here, and the call waits at a shut gate like others.
            let _ = self.pending.defer(token, ServiceId::SERVER, "", inside, Instant::now() + limit);
            options.behalf = token;
            Carrier { bus: self.clone(), token }
        });
        let (bus, method, payload) = (self.clone(), method.to_vec(), payload.to_vec());
        let deadline = Instant::now() + limit;
        let is_later = options_mode == CallMode::PoolLater;
        move || {
            // What it waited in the queue is gone from its time.
            let left = deadline.saturating_duration_since(Instant::now()).as_nanos() as u64;
            let options = CallOptions { within: left.max(1), ..options };
            let root = chain.map(|chain| Context::root(from, 0, chain));
            let (parent, options) = (root.as_ref(), &options);
            let request = CallRequest { from, handle, parent, method: &method, payload: &payload, options };
            let mut bytes = Vec::new();
            let mut run = || bus.direct(&request, Some(&cancel), &mut Out::to(&mut bytes));
            let outcome = match is_later {
                true => frames::with(|thread| thread.detached(run)),
                false => run(),
            };
            drop(carrier);
            done((outcome.status, bytes));
        }
    }
}
