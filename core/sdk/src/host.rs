//! A service's way to its server and, by name, to other services.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeph_abi::{CallMode, CallOptions, Outcome, Report, Scope, ServiceId, status};

use crate::failure::from_failure;
use crate::stop::Stop;
use crate::{Code, Error, Result, waiting};

/// The server, as one service sees it. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Host {
    pub(crate) id: ServiceId,
    abi: zeph_abi::Host,
    own: Arc<Own>,
}

/// What is the same in every clone.
struct Own {
    name: Box<str>,
    stop: Stop,
}

impl Host {
    pub(crate) fn new(id: ServiceId, name: &str, abi: zeph_abi::Host, stop: Stop) -> Self {
        Self { id, abi, own: Arc::new(Own { name: name.into(), stop }) }
    }

    pub(crate) fn abi(&self) -> &zeph_abi::Host {
        &self.abi
    }

    /// This service's own path.
    pub fn name(&self) -> &str {
        &self.own.name
    }

    /// The name of this node: other nodes can tell it something under that name.
    pub fn node(&self) -> Result<String> {
        let name = self.abi.config(self.id, "node").map_err(from_failure)?;
        Ok(serde_json::from_slice(&name)?)
    }

    /// Which instance of its name this is: they are counted from 1.
    pub fn instance(&self) -> u32 {
        self.id.serial()
    }

    /// A handle on the service of a path. It need not live yet; the handle survives its restarts and reloads.
    pub fn service(&self, path: &str) -> Handle {
        Handle { host: self.clone(), path: path.into(), number: OnceLock::new(), behalf: 0 }
    }

    /// Makes sure that a service lives, and answers a handle on it: `library/Service@instance`, made
    /// with these settings (a JSON object) where it does not live yet.
    pub fn ensure(&self, path: &str, settings: &impl Serialize) -> Result<Handle> {
        let settings = serde_json::to_vec(settings)?;
        let number = self.abi.ensure(self.id, path, &settings).map_err(from_failure)?;
        Ok(Handle { host: self.clone(), path: path.into(), number: OnceLock::from(number), behalf: 0 })
    }

    /// This service serves now: for one that declared [`Declare::reports_ready`](crate::Declare::reports_ready).
    pub fn ready(&self) -> Result<()> {
        self.abi.report(self.id, Report::Ready, &[]).map_err(from_failure)
    }

    /// Numbers for `status`: a JSON object.
    pub fn metrics(&self, metrics: &impl Serialize) -> Result<()> {
        self.abi.report(self.id, Report::Metrics, &serde_json::to_vec(metrics)?).map_err(from_failure)
    }

    /// What a new instance begins with after a crash from now on.
    pub fn checkpoint(&self, state: &[u8]) -> Result<()> {
        self.abi.report(self.id, Report::Checkpoint, state).map_err(from_failure)
    }

    /// Waits until callers are let in. In a handover the generation before has the service's work until
    /// then: a `main` with sockets or threads of its own sets to work after this. False: it is to stop, and
    /// never served.
    pub fn until_serving(&self) -> bool {
        self.own.stop.until_serving()
    }

    /// The calls that the generation before had taken and not answered are answered by this one: that one is not
    /// waited for. For a service whose answers come as events, once it serves ([`Host::until_serving`]).
    pub fn resume_calls(&self) -> Result<()> {
        self.abi.report(self.id, Report::Resumed, &[]).map_err(from_failure)
    }

    /// True once this service was told to stop.
    pub fn is_stopping(&self) -> bool {
        self.own.stop.is_set() || self.abi.stopping(self.id)
    }

    /// Tells the services of this node; answers how many listened.
    pub fn publish(&self, event: &str, payload: &[u8]) -> Result<u64> {
        self.abi.publish(self.id, event, payload).map_err(from_failure)
    }

    /// Tells all other nodes; answers how many are up. Alone in its cluster: 0. Ok means that the event is
    /// kept for them, not that they have it; it may wait up to 2 s for room. 1 MiB at most, with the name.
    pub fn say(&self, event: &str, payload: &[u8]) -> Result<u64> {
        self.abi.say(self.id, event, payload).map_err(from_failure)
    }

    /// Tells one other node that is up, in order with what is said to all.
    pub fn tell(&self, node: &str, event: &str, payload: &[u8]) -> Result<()> {
        self.abi.tell(self.id, node, event, payload).map_err(from_failure)
    }

    /// Asks to hear what services of this node publish under a name: `Event::Published`. Events reach a
    /// service once it is ready, not before. A service that hands its state over keeps its subscriptions.
    pub fn subscribe(&self, event: &str) -> Result<u64> {
        self.abi.subscribe(self.id, Scope::Node, event).map_err(from_failure)
    }

    /// Asks to hear what other nodes say under a name: `Event::Said`. What one node says comes in its order.
    /// Where something was lost, `Event::Node` tells of a gap before the next event of that node.
    pub fn subscribe_cluster(&self, event: &str) -> Result<u64> {
        self.abi.subscribe(self.id, Scope::Cluster, event).map_err(from_failure)
    }

    /// Asks to hear who joins and leaves the cluster: `Event::Node`. Begins with those who are up already. Asked
    /// before [`Host::subscribe_cluster`], a node is up before anything of it is heard.
    pub fn subscribe_members(&self) -> Result<u64> {
        self.abi.subscribe(self.id, Scope::Members, "").map_err(from_failure)
    }

    /// `Event::Timer` after this time, once.
    pub fn after(&self, delay: Duration) -> Result<u64> {
        self.abi.timer(self.id, delay.as_nanos().div_ceil(1_000_000) as u64, 0).map_err(from_failure)
    }

    /// `Event::Timer` again and again. A service that hands its state over keeps its timers: set this one
    /// only where no state was imported.
    pub fn every(&self, period: Duration) -> Result<u64> {
        let period = period.as_millis().max(1) as u64;
        self.abi.timer(self.id, period, period).map_err(from_failure)
    }

    /// Ends a timer, a subscription, or a call begun.
    pub fn cancel(&self, token: u64) -> Result<()> {
        self.abi.cancel(self.id, token).map_err(from_failure)
    }

    /// A listening TCP socket, lent by the server: it stays open while this service is replaced, so
    /// that no connection attempt is refused meanwhile.
    pub fn listen(&self, address: std::net::SocketAddr) -> Result<Listener> {
        let fd = self.abi.listener(self.id, &format!("tcp:{address}")).map_err(from_failure)?;
        Ok(Listener { fd })
    }

    /// Does what `zephserver VERB …` does; the answer is JSON.
    pub fn control(&self, line: &str) -> Result<Vec<u8>> {
        self.abi.control(self.id, line).map_err(from_failure)
    }
}

/// A listening socket, lent by the server.
pub struct Listener {
    fd: OwnedFd,
}

impl Listener {
    /// The socket as the standard library knows it.
    pub fn into_std(self) -> TcpListener {
        self.fd.into()
    }
}

/// A way to reach a service by its name. Holds no pointer into anything: it asks the server each time,
/// so it survives whatever happens to the service.
pub struct Handle {
    host: Host,
    path: Arc<str>,
    number: OnceLock<u64>,
    behalf: u64,
}

impl Clone for Handle {
    fn clone(&self) -> Self {
        Self {
            host: self.host.clone(),
            path: self.path.clone(),
            number: self.number.clone(),
            behalf: self.behalf,
        }
    }
}

/// How a call that was begun goes on.
pub enum Begun {
    /// It was answered at once.
    Answered(Vec<u8>),
    /// The answer comes as an event under this token.
    Pending(u64),
}

impl Handle {
    /// The path that it leads to.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Calls and waits for the answer, on this thread. The callee runs on this thread, too, and cannot
    /// be cut short; for one that may block use [`Handle::call_within`].
    pub fn call(&self, method: &str, payload: &[u8]) -> Result<Vec<u8>> {
        let mut reply = Vec::new();
        self.call_into(method, payload, &mut reply)?;
        Ok(reply)
    }

    /// The same, appending the answer to a buffer that is used again and again.
    #[inline]
    pub fn call_into(&self, method: &str, payload: &[u8], reply: &mut Vec<u8>) -> Result<()> {
        let options = CallOptions { behalf: self.behalf, ..CallOptions::WAIT };
        let start = reply.len();
        let outcome = self.call_with(method, payload, &options, reply)?;
        match outcome.status {
            status::DONE => Ok(()),
            _ => Err(failed(outcome, reply, start)),
        }
    }

    /// The same, with the answer written where another call's answer is to go; answers the status.
    #[inline]
    pub(crate) fn call_out(&self, method: &str, payload: &[u8], reply: &zeph_abi::Out<'_>) -> Result<i32> {
        let options = CallOptions { behalf: self.behalf, ..CallOptions::WAIT };
        let number = match self.number.get() {
            Some(number) => *number,
            None => self.resolve()?,
        };
        Ok(self.host.abi.call_into(self.host.id, number, method, payload, &options, reply).status)
    }

    /// Calls with JSON and reads JSON.
    pub fn call_json<T: DeserializeOwned>(&self, method: &str, payload: &impl Serialize) -> Result<T> {
        let reply = self.call(method, &serde_json::to_vec(payload)?)?;
        let reply = if reply.is_empty() { b"null" } else { reply.as_slice() };
        serde_json::from_slice(reply).map_err(|error| {
            Error::internal(format!("{} answered {method} with bad JSON: {error}", self.path))
        })
    }

    /// Calls on a thread of the server's pool, and is back at the deadline, come what may.
    pub fn call_within(&self, limit: Duration, method: &str, payload: &[u8]) -> Result<Vec<u8>> {
        let options = CallOptions {
            // Zero would mean the server's own limit.
            within: limit.as_nanos().max(1) as u64,
            behalf: self.behalf,
            ..CallOptions::new(CallMode::PoolWait)
        };
        let mut reply = Vec::new();
        let outcome = self.call_with(method, payload, &options, &mut reply)?;
        match outcome.status {
            status::DONE => Ok(reply),
            _ => Err(failed(outcome, &mut reply, 0)),
        }
    }

    /// Begins a call whose answer may come later (once this service is ready), as [`Event::Reply`](crate::Event::Reply) with this
    /// cookie, within `limit` (zero: the server's own). Cookies with the highest bit are the SDK's.
    pub fn begin(&self, method: &str, payload: &[u8], cookie: u64, limit: Duration) -> Result<Begun> {
        self.begin_with(method, payload, CallMode::Later, cookie, 0, limit)
    }

    /// The same, with an answer that comes at once appended to a buffer that is used again and again: then
    /// None, else the token of the call.
    #[inline]
    pub fn begin_into(
        &self,
        method: &str,
        payload: &[u8],
        cookie: u64,
        limit: Duration,
        reply: &mut Vec<u8>,
    ) -> Result<Option<u64>> {
        let within = limit.as_nanos() as u64;
        let options =
            CallOptions { within, behalf: self.behalf, cookie, ..CallOptions::new(CallMode::Later) };
        let start = reply.len();
        let outcome = self.call_with(method, payload, &options, reply)?;
        match outcome.status {
            status::DONE => Ok(None),
            status::PENDING => Ok(Some(outcome.value)),
            _ => Err(failed(outcome, reply, start)),
        }
    }

    /// Begins a call on a thread of the server's pool: the answer always comes as an event, at the deadline
    /// at the latest, whatever the callee does.
    pub fn begin_on_pool(&self, method: &str, payload: &[u8], cookie: u64, limit: Duration) -> Result<Begun> {
        self.begin_with(method, payload, CallMode::PoolLater, cookie, 0, limit)
    }

    /// Begins a call whose answer has many items: `credit` of them are taken before more is granted with
    /// [`Handle::grant`].
    pub fn begin_stream(
        &self,
        method: &str,
        payload: &[u8],
        cookie: u64,
        credit: u32,
        limit: Duration,
    ) -> Result<Begun> {
        self.begin_with(method, payload, CallMode::Later, cookie, credit, limit)
    }

    /// Takes `items` more of a stream.
    pub fn grant(&self, token: u64, items: u32) -> Result<()> {
        self.host.abi.credit(self.host.id, token, items).map_err(from_failure)
    }

    /// Calls and iterates over the items of the answer, at most `credit` of them under way at a time,
    /// and for `limit` at most (zero: 30 s). The items come to this generation only: one that is replaced
    /// meanwhile gets no more of them.
    pub fn stream(&self, method: &str, payload: &[u8], credit: u32, limit: Duration) -> Result<Stream> {
        let (cookie, receiver) = waiting::expect_stream(self.host.id, credit);
        // The server ends the call at the limit; this is for a server that cannot reach us any more.
        let limit = if limit.is_zero() { Duration::from_secs(30) } else { limit };
        let deadline = Instant::now() + limit + Duration::from_secs(1);
        let begun = self.begin_with(method, payload, CallMode::Later, cookie, credit.max(1), limit);
        let token = match begun {
            Ok(Begun::Pending(token)) => token,
            Ok(Begun::Answered(_)) => {
                waiting::end_stream(cookie, Ok(()));
                0
            }
            Err(error) => {
                waiting::end_stream(cookie, Ok(()));
                return Err(error);
            }
        };
        Ok(Stream { handle: self.clone(), token, cookie, deadline, receiver })
    }

    pub(crate) fn with_behalf(&self, behalf: u64) -> Self {
        Self { behalf, ..self.clone() }
    }

    fn begin_with(
        &self,
        method: &str,
        payload: &[u8],
        mode: CallMode,
        cookie: u64,
        credit: u32,
        limit: Duration,
    ) -> Result<Begun> {
        let options = CallOptions {
            within: limit.as_nanos() as u64,
            behalf: self.behalf,
            cookie,
            credit,
            ..CallOptions::new(mode)
        };
        let mut reply = Vec::new();
        let outcome = self.call_with(method, payload, &options, &mut reply)?;
        match outcome.status {
            status::DONE => Ok(Begun::Answered(reply)),
            status::PENDING => Ok(Begun::Pending(outcome.value)),
            _ => Err(failed(outcome, &mut reply, 0)),
        }
    }

    #[inline]
    fn call_with(
        &self,
        method: &str,
        payload: &[u8],
        options: &CallOptions,
        reply: &mut Vec<u8>,
    ) -> Result<Outcome> {
        let number = match self.number.get() {
            Some(number) => *number,
            None => self.resolve()?,
        };
        Ok(self.host.abi.call(self.host.id, number, method, payload, options, reply))
    }

    #[cold]
    fn resolve(&self) -> Result<u64> {
        let number = self.host.abi.resolve(self.host.id, &self.path).map_err(from_failure)?;
        Ok(*self.number.get_or_init(|| number))
    }
}

/// The error whose text was appended to the reply's buffer.
#[cold]
fn failed(outcome: Outcome, reply: &mut Vec<u8>, start: usize) -> Error {
    let text = String::from_utf8_lossy(&reply[start..]).into_owned();
    reply.truncate(start);
    Error::new(Code::from_number(outcome.status), text)
}

/// The items of an answer, in order; ends with an error where the callee failed. Dropped early, it
/// cancels the call.
pub struct Stream {
    handle: Handle,
    token: u64,
    cookie: u64,
    deadline: Instant,
    receiver: crossbeam_channel::Receiver<Result<Option<Vec<u8>>>>,
}

impl Iterator for Stream {
    type Item = Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.receiver.recv_deadline(self.deadline) {
            Ok(Ok(Some(item))) => {
                // Gone already: the end follows in the channel.
                let _ = self.handle.grant(self.token, 1);
                Some(Ok(item))
            }
            Ok(Err(error)) => Some(Err(error)),
            Err(RecvTimeoutError::Timeout) if waiting::forget_stream(self.cookie) => {
                let _ = self.handle.host.cancel(self.token);
                Some(Err(Error::timeout(format!("the stream of {} did not end in time", self.handle.path))))
            }
            Ok(Ok(None)) | Err(_) => None,
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if waiting::forget_stream(self.cookie) {
            let _ = self.handle.host.cancel(self.token);
        }
    }
}
