//! A call as the callee sees it, and the three ways to answer: at once, later, or as a stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use zeph_abi::{Context, Out, Report, ServiceId, status};

use crate::failure::from_failure;
use crate::host::{Handle, Host};
use crate::{Code, Error, Result, waiting};

/// One call from another service, or from the command line.
pub struct Call<'a> {
    pub(crate) context: &'a Context<'a>,
    pub(crate) method: &'a str,
    pub(crate) payload: &'a [u8],
    pub(crate) out: Out<'a>,
    pub(crate) host: &'a Host,
}

impl<'a> Call<'a> {
    /// The method's name with the version of its payload: `greet/1`.
    pub fn method(&self) -> &'a str {
        self.method
    }

    /// The payload's bytes, lent for the length of the call.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The payload as JSON; an empty payload reads as `null`.
    #[inline]
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        let payload = if self.payload.is_empty() { b"null" } else { self.payload };
        serde_json::from_slice(payload)
            .map_err(|error| Error::invalid(format!("payload of {}: {error}", self.method)))
    }

    /// Who calls, when, on whose behalf.
    pub fn context(&self) -> &'a Context<'a> {
        self.context
    }

    /// True once nobody waits for the answer any more.
    pub fn is_cancelled(&self) -> bool {
        self.context.is_cancelled()
    }

    /// Answers at once with bytes, straight into the caller's buffer.
    #[inline]
    pub fn reply(&self, bytes: &[u8]) -> Result<Reply> {
        self.out.put(bytes);
        Ok(Reply(Kind::Sent))
    }

    /// Passes the call on: another service's answer to the same payload is the answer.
    #[inline]
    pub fn forward(&self, service: &Handle, method: &str) -> Result<Reply> {
        match service.call_out(method, self.payload, &self.out)? {
            status::DONE => Ok(Reply(Kind::Sent)),
            failed => Ok(Reply(Kind::Failed(failed))),
        }
    }

    /// The answer comes later: give `Pending` to whoever will have it, and return the `Reply`.
    pub fn defer(&self) -> Result<(Pending, Reply)> {
        let token = self.host.abi().defer(self.host.id, self.context).map_err(from_failure)?;
        Ok((Pending::new(self.host, token), Reply(Kind::Later(token))))
    }

    /// The answer to a method that this service does not have.
    pub fn unknown_method(&self) -> Result<Reply> {
        Err(Error::new(Code::Unsupported, format!("this service has no method `{}`", self.method)))
    }
}

/// What `Service::call` returns.
pub struct Reply(pub(crate) Kind);

pub(crate) enum Kind {
    Sent,
    Bytes(Vec<u8>),
    Later(u64),
    /// With a text that was sent already.
    Failed(i32),
}

impl Reply {
    /// JSON.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
        Ok(Self(Kind::Bytes(serde_json::to_vec(value)?)))
    }

    /// Bytes.
    pub fn bytes(bytes: Vec<u8>) -> Result<Self> {
        Ok(Self(Kind::Bytes(bytes)))
    }

    /// Nothing but "done".
    pub fn empty() -> Result<Self> {
        Ok(Self(Kind::Sent))
    }
}

/// A call that waits for its answer. Send it to any thread. Dropped without an answer, it answers
/// with an error, so that no caller hangs.
pub struct Pending {
    host: Host,
    token: u64,
    cancelled: Arc<AtomicBool>,
    answered: bool,
}

impl Pending {
    /// The pending call of a token that came with imported state, or was handed over: this instance
    /// answers it from now on.
    pub fn resume(host: &Host, token: u64) -> Self {
        // A server that does not know this report takes the answer all the same.
        let _ = host.abi().report(host.id, Report::Resumed, &token.to_ne_bytes());
        Self::new(host, token)
    }

    fn new(host: &Host, token: u64) -> Self {
        Self { host: host.clone(), token, cancelled: waiting::watch_cancel(token), answered: false }
    }

    /// The call's number, the same in every generation: what an exported state carries.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Gives the call away without an answer: the next generation resumes it by its token.
    pub fn hand_over(mut self) -> u64 {
        self.answered = true;
        self.token
    }

    /// True once nobody waits for the answer any more.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Answers with bytes. An error says that the caller had gone.
    pub fn reply(mut self, bytes: &[u8]) -> Result<()> {
        self.answer(status::DONE, bytes)
    }

    /// Answers with JSON.
    pub fn json<T: Serialize + ?Sized>(self, value: &T) -> Result<()> {
        let bytes = serde_json::to_vec(value)?;
        self.reply(&bytes)
    }

    /// Answers with an error.
    pub fn fail(mut self, error: &Error) -> Result<()> {
        self.answer(error.code.number(), error.text.as_bytes())
    }

    /// Sends one item towards the caller, and goes on. `busy`: the caller has not granted more; wait
    /// for [`Event::Credit`](crate::Event::Credit), or use [`Pending::item_within`].
    pub fn item(&self, bytes: &[u8]) -> Result<()> {
        let sent = self.host.abi().stream(self.host.id, self.token, bytes).map_err(from_failure);
        sent.map_err(|error| match error.code {
            Code::Busy => Error::busy("the caller has granted no further items"),
            Code::NotFound => Error::cancelled("the caller of this stream has gone"),
            _ => error,
        })
    }

    /// Sends one item, waiting for credit up to `limit`.
    pub fn item_within(&self, bytes: &[u8], limit: Duration) -> Result<()> {
        waiting::until_credit(self.token, limit, || self.item(bytes))
    }

    fn answer(&mut self, status: i32, bytes: &[u8]) -> Result<()> {
        self.answered = true;
        self.host.abi().reply(self.host.id, self.token, status, bytes).map_err(|failure| {
            let error = from_failure(failure);
            Error::new(error.code, format!("nobody waits for the answer of call {} any more", self.token))
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        waiting::forget(self.token);
        if !self.answered {
            let _ = self.answer(Code::Internal.number(), b"the service dropped this call without an answer");
        }
    }
}

impl Handle {
    /// The same service, called on behalf of a pending call: the calls belong to its chain.
    pub fn on_behalf_of(&self, pending: &Pending) -> Self {
        self.with_behalf(pending.token())
    }
}

/// The slot of the service that a call is for, as an id for its log lines.
pub(crate) fn callee(context: &Context<'_>) -> ServiceId {
    ServiceId::instance(context.callee_slot(), 0)
}
