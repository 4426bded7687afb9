//! Answers that come later: deferred, streamed, cancelled, or never.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use zeph_abi::{CallMode, CallRequest, Context, Event, EventKind, Out, Outcome, ServiceId};
use zeph_contract::Error;

use super::{Bus, ancestors, fail};
use crate::frames;
use crate::pending::{Answer, Attended, Call, Caller, Waiter};
use crate::registry::Slot;

impl Bus {
    /// The callee answers later: wait for it here, or have the answer sent as an event.
    #[cold]
    pub(super) fn attend(
        self: &Arc<Self>,
        request: &CallRequest<'_>,
        slot: &Slot,
        token: u64,
        reply: &mut Out<'_>,
    ) -> Outcome {
        let CallRequest { from, method, options, .. } = *request;
        let limit = self.limit(options);
        let deadline = Instant::now() + limit;
        let waiter = Arc::new(Waiter::default());
        let waits = matches!(options.mode(), CallMode::Wait | CallMode::PoolWait);
        let caller = match from.slot() {
            Some(slot) if !waits => Caller::Service { slot, serial: from.serial(), cookie: options.cookie },
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
        if options.credit > 0
            && let Some(callee) = self.pending.grant(token, 0)
        {
            self.tell_credit(token, callee, options.credit);
        }
        if !waits {
            self.clock.set_deadline(token, deadline, |token| self.pending.contains(token));
            return Outcome::pending(token);
        }
        let _waiting = self.pool.waits();
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

    pub(super) fn timeout(&self, slot: &Slot, method: &str, limit: Duration) -> Error {
        self.timeouts.fetch_add(1, Ordering::Relaxed);
        Error::timeout(format!("{} did not answer {method} within {} ms", slot.name, limit.as_millis()))
    }

    /// Nobody waits for a call any more: forget it and tell its callee.
    pub(super) fn give_up(&self, token: u64) {
        if let Some(call) = self.pending.remove(token) {
            call.abandon_job();
            self.send_cancelled(token, call.callee);
        }
    }

    pub(super) fn send_cancelled(&self, token: u64, callee: ServiceId) {
        if let Some(slot) = callee.slot() {
            self.mail(slot, &Event { token, ..Event::new(EventKind::Cancelled) });
        }
    }

    fn tell_credit(&self, token: u64, callee: ServiceId, items: u32) {
        if let Some(slot) = callee.slot() {
            let number = u64::from(items);
            self.deliver(slot, &Event { token, number, ..Event::new(EventKind::Credit) });
        }
    }

    /// See [`zeph_abi::HostSide::defer`].
    pub fn defer(&self, from: ServiceId, context: &Context<'_>) -> Result<u64, Error> {
        let token = self.token();
        let deadline = Instant::now() + self.settings.look().limits.call_timeout;
        let method =
            frames::with(|thread| thread.innermost(self.id)).map_or_else(String::new, |call| call.method);
        self.pending.defer(token, from, &method, ancestors(self, Some(context), 0), deadline)?;
        self.clock.set_deadline(token, deadline, |token| self.pending.contains(token));
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
            Ok(Some((Caller::Service { slot, cookie, .. }, (status, payload)))) => {
                let reply = Event::new(EventKind::Reply);
                self.deliver(slot, &Event { status, token, number: cookie, payload: &payload, ..reply });
                Ok(())
            }
            Err(()) => Err(Error::not_found("nobody waits for this answer")),
        }
    }

    /// Ends a call with an error, from a thread of the server, which must not run a plugin's code.
    pub(super) fn end_call(&self, token: u64, call: Call, error: &Error) {
        call.abandon_job();
        match call.into_caller() {
            Some(Caller::Thread(waiter)) => {
                waiter.put((error.code.number(), error.text.clone().into_bytes()))
            }
            Some(Caller::Service { slot, cookie, .. }) => {
                let reply = Event { token, number: cookie, ..Event::new(EventKind::Reply) };
                let status = error.code.number();
                self.mail(slot, &Event { status, payload: error.text.as_bytes(), ..reply });
            }
            None => {}
        }
    }

    /// See [`zeph_abi::HostSide::stream`].
    pub fn stream(&self, token: u64, payload: &[u8]) -> Result<(), Error> {
        match self.pending.take_credit(token) {
            Ok(Caller::Service { slot, cookie, .. }) => {
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
        let callee = self.pending.grant(token, items).ok_or_else(|| Error::not_found("no such stream"))?;
        self.tell_credit(token, callee, items);
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
    /// Serial 0: those of any instance of the slot.
    pub fn cancel_calls_by(&self, slot: u32, serial: u32) {
        for (token, call) in self.pending.take_where(|call| call.is_of_caller(slot, serial)) {
            call.abandon_job();
            self.send_cancelled(token, call.callee);
        }
    }

    pub(super) fn end_overdue(&self, token: u64) {
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
}
