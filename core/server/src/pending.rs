//! Calls whose answer comes later. Entries belong to the names of caller and callee, not to
//! generations: they pass on when either is replaced.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use zeph_abi::ServiceId;
use zeph_contract::Error;

use crate::pool::Ticket;

/// Calls that wait for their answers at most.
const CAPACITY: usize = 1 << 20;

/// A status and a payload, or the text of an error.
pub type Answer = (i32, Vec<u8>);

/// Somebody who waits on a thread.
#[derive(Default)]
pub struct Waiter {
    answer: Mutex<Option<Answer>>,
    arrived: Condvar,
}

impl Waiter {
    /// Leaves the answer.
    pub fn put(&self, answer: Answer) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        self.arrived.notify_all();
    }

    /// Waits for the answer. None at the deadline.
    pub fn wait(&self, deadline: Instant) -> Option<Answer> {
        let guard = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.arrived.wait_timeout_while(guard, left, |answer| answer.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.take()
    }
}

/// Where an answer goes.
#[derive(Clone)]
pub enum Caller {
    /// To a thread that waits.
    Thread(Arc<Waiter>),
    /// To the caller's service, as an event with its cookie.
    Service { slot: u32, serial: u32, cookie: u64 },
}

/// One pending call.
pub struct Call {
    /// The instance that will answer.
    pub callee: ServiceId,
    /// Its method, for messages.
    pub method: String,
    /// When it is over; unattended calls too, so that none stays for ever.
    pub deadline: Instant,
    /// Stream items that the caller takes now.
    pub credit: u32,
    /// Slots that the chain of this call is inside of.
    pub ancestors: Arc<[u32]>,
    caller: Option<Caller>,
    early: Option<Answer>,
    /// The pool's job that does it, where it is one, and the flag that the job looks at.
    job: Option<(Ticket, Arc<AtomicBool>)>,
}

/// All pending calls of a server.
#[derive(Default)]
pub struct Pending {
    calls: Mutex<HashMap<u64, Call>>,
}

/// What became of an attempt to attend a call.
pub enum Attended {
    /// The answer came before the caller was back.
    Answered(Answer),
    /// It will come.
    Waiting,
    /// There is no such call.
    Unknown,
}

impl Pending {
    fn calls(&self) -> MutexGuard<'_, HashMap<u64, Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a running call will be answered later. Its caller attends to it when the callee has
    /// returned.
    pub fn defer(
        &self,
        token: u64,
        callee: ServiceId,
        method: &str,
        ancestors: Arc<[u32]>,
        deadline: Instant,
    ) -> Result<(), Error> {
        let method = method.into();
        let call =
            Call { callee, method, deadline, credit: 0, ancestors, caller: None, early: None, job: None };
        let mut calls = self.calls();
        if calls.len() >= CAPACITY {
            return Err(Error::busy(format!("{CAPACITY} calls wait for their answers already")));
        }
        calls.insert(token, call);
        Ok(())
    }

    /// Says where the answer goes.
    pub fn attend(&self, token: u64, caller: Caller, credit: u32, deadline: Instant) -> Attended {
        let mut calls = self.calls();
        let Some(call) = calls.get_mut(&token) else { return Attended::Unknown };
        if let Some(answer) = call.early.take() {
            calls.remove(&token);
            return Attended::Answered(answer);
        }
        (call.caller, call.credit, call.deadline) = (Some(caller), credit, deadline);
        Attended::Waiting
    }

    /// Notes which job of the pool does a call.
    pub fn attach_job(&self, token: u64, ticket: Ticket, cancel: Arc<AtomicBool>) {
        if let Some(call) = self.calls().get_mut(&token) {
            call.job = Some((ticket, cancel));
        }
    }

    /// Another instance answers a call from now on.
    pub fn pass_on(&self, token: u64, callee: ServiceId) {
        if let Some(call) = self.calls().get_mut(&token) {
            call.callee = callee;
        }
    }

    /// The calls that instances before this one of its name were to answer are its own from now on.
    pub fn pass_on_all(&self, callee: ServiceId) {
        let is_before = |known: ServiceId| {
            known.slot() == callee.slot() && (1..callee.serial()).contains(&known.serial())
        };
        self.calls().values_mut().filter(|call| is_before(call.callee)).for_each(|call| call.callee = callee);
    }

    /// Takes the answer of a call. Answers where it goes: None, if the caller is not back yet and will
    /// find it; Err, if nobody waits.
    pub fn answer(&self, token: u64, answer: Answer) -> Result<Option<(Caller, Answer)>, ()> {
        let mut calls = self.calls();
        let call = calls.get_mut(&token).ok_or(())?;
        if call.caller.is_none() {
            call.early = Some(answer);
            return Ok(None);
        }
        let caller = calls.remove(&token).and_then(|call| call.caller).ok_or(())?;
        Ok(Some((caller, answer)))
    }

    /// Forgets a call.
    pub fn remove(&self, token: u64) -> Option<Call> {
        self.calls().remove(&token)
    }

    /// Uses up one item of credit, unless the caller takes no stream. Err(false): none left; Err(true):
    /// nobody waits.
    pub fn take_credit(&self, token: u64) -> Result<Caller, bool> {
        let mut calls = self.calls();
        let call = calls.get_mut(&token).ok_or(true)?;
        let caller = call.caller.clone().ok_or(false)?;
        if matches!(caller, Caller::Thread(_)) {
            return Ok(caller);
        }
        call.credit = call.credit.checked_sub(1).ok_or(false)?;
        Ok(caller)
    }

    /// Grants credit; answers the callee.
    pub fn grant(&self, token: u64, items: u32) -> Option<ServiceId> {
        let mut calls = self.calls();
        let call = calls.get_mut(&token)?;
        call.credit = call.credit.saturating_add(items);
        Some(call.callee)
    }

    /// The slots that the chain of a call is inside of.
    pub fn ancestors(&self, token: u64) -> Option<Arc<[u32]>> {
        self.calls().get(&token).map(|call| call.ancestors.clone())
    }

    /// Takes out every call that `ends` says yes to.
    pub fn take_where(&self, ends: impl Fn(&Call) -> bool) -> Vec<(u64, Call)> {
        self.calls().extract_if(|_, call| ends(call)).collect()
    }

    /// Takes out a call whose deadline has passed.
    pub fn take_one_overdue(&self, token: u64, now: Instant) -> Option<(u64, Call)> {
        let mut calls = self.calls();
        // A caller that waits on its thread sees to its own deadline.
        let is_over = |call: &Call| call.deadline <= now && !matches!(call.caller, Some(Caller::Thread(_)));
        if !calls.get(&token).is_some_and(is_over) {
            return None;
        }
        calls.remove(&token).map(|call| (token, call))
    }

    /// True while a call pends.
    pub fn contains(&self, token: u64) -> bool {
        self.calls().contains_key(&token)
    }

    /// How many calls an instance still has to answer.
    pub fn of_callee(&self, callee: ServiceId) -> usize {
        self.calls().values().filter(|call| call.callee == callee).count()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.calls().len()
    }
}

impl Call {
    /// Where the answer goes, if the caller is back already.
    pub fn into_caller(self) -> Option<Caller> {
        self.caller
    }

    /// True once somebody waits for it.
    pub fn is_attended(&self) -> bool {
        self.caller.is_some()
    }

    /// Nobody waits for it any more: its job, if it is one, is told so.
    pub fn abandon_job(&self) {
        if let Some((ticket, cancel)) = &self.job {
            cancel.store(true, Ordering::Relaxed);
            ticket.abandon();
        }
    }

    /// True where an instance made it; serial 0: any instance of the slot.
    pub fn is_of_caller(&self, slot: u32, serial: u32) -> bool {
        match self.caller {
            Some(Caller::Service { slot: by, serial: of, .. }) => by == slot && (serial == 0 || of == serial),
            _ => false,
        }
    }
}
