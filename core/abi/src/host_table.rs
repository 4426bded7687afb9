//! The server's side of the boundary: the frozen table, the safe trait the server implements, and the
//! safe handle through which the SDK calls it.

use std::ffi::c_void;
use std::os::fd::{OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use abi_stable::StableAbi;
use abi_stable::prefix_type::WithMetadata;

use crate::current;
use crate::types::{
    Bytes, CallOptions, CallRequest, Context, Failure, Out, Outcome, Report, Scope, ServiceId, Sink, status,
};

/// The server's table. Frozen. Every function takes the server's own pointer and the asking
/// [`ServiceId`] first; texts are UTF-8; on failure the sink, where there is one, holds a text.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = HostV1Ref)))]
#[sabi(missing_field(panic))]
pub struct HostV1 {
    /// `(level 1 error … 5 trace, target, message)`
    pub log: extern "C" fn(*const c_void, u64, u32, Bytes, Bytes),
    /// The most detailed level that is kept, 0 to 5.
    pub log_level: extern "C" fn(*const c_void) -> u32,
    /// `(key, sink)`: one fact of the server's configuration, as JSON.
    pub config: extern "C" fn(*const c_void, u64, Bytes, Sink) -> Outcome,
    /// `(name, sink)` → handle of the service of that path, whether it lives already or not.
    pub resolve: extern "C" fn(*const c_void, u64, Bytes, Sink) -> Outcome,
    /// `(handle, parent, method, payload, options, sink)` → done, pending with a token, or failed.
    pub call: for<'a, 'b> extern "C" fn(
        *const c_void,
        u64,
        u64,
        Option<&'a Context<'b>>,
        Bytes,
        Bytes,
        &'a CallOptions,
        Sink,
    ) -> Outcome,
    /// `(context)` → token: the running call will be answered later, with `reply`.
    pub defer: for<'a, 'b> extern "C" fn(*const c_void, u64, &'a Context<'b>, Sink) -> Outcome,
    /// `(token, status, payload or error text)`: answers a pending call, from any thread.
    pub reply: extern "C" fn(*const c_void, u64, u64, i32, Bytes) -> Outcome,
    /// `(token, payload)`: one item towards the caller of a pending call. `busy` without credit.
    pub stream: extern "C" fn(*const c_void, u64, u64, Bytes) -> Outcome,
    /// `(token, items)`: the caller takes that many more.
    pub credit: extern "C" fn(*const c_void, u64, u64, u32) -> Outcome,
    /// `(token)`: ends a pending call made, a timer set or a subscription held by the asker.
    pub cancel: extern "C" fn(*const c_void, u64, u64) -> Outcome,
    /// `(event, payload)` → how many services of this node were told.
    pub publish: extern "C" fn(*const c_void, u64, Bytes, Bytes) -> Outcome,
    /// `(event, payload)` → to how many other nodes it went out.
    pub say: extern "C" fn(*const c_void, u64, Bytes, Bytes, Sink) -> Outcome,
    /// `(node, event, payload)`: to one node.
    pub tell: extern "C" fn(*const c_void, u64, Bytes, Bytes, Bytes, Sink) -> Outcome,
    /// `(scope, event)` → token of the subscription.
    pub subscribe: extern "C" fn(*const c_void, u64, u32, Bytes, Sink) -> Outcome,
    /// `(milliseconds, period or 0)` → token of the timer.
    pub timer: extern "C" fn(*const c_void, u64, u64, u64, Sink) -> Outcome,
    /// `(address as tcp:IP:PORT)` → file descriptor, a duplicate of the server's own, the asker's to close.
    pub listener: extern "C" fn(*const c_void, u64, Bytes, Sink) -> Outcome,
    /// `(library/Service@instance, settings as JSON)` → handle; makes and starts it where it does not live.
    pub ensure: extern "C" fn(*const c_void, u64, Bytes, Bytes, Sink) -> Outcome,
    /// `(verb and words)`: what the command line would do; the answer is JSON.
    pub control: extern "C" fn(*const c_void, u64, Bytes, Sink) -> Outcome,
    /// `(kind, payload)`: see [`Report`].
    pub report: extern "C" fn(*const c_void, u64, u32, Bytes) -> Outcome,
    /// 1 once the asker was told to stop, else 0.
    pub stopping: extern "C" fn(*const c_void, u64) -> u32,
    /// `(id, version)` → a further table, or null.
    #[sabi(last_prefix_field)]
    pub extension: extern "C" fn(*const c_void, Bytes, u32) -> *const c_void,
}

/// What a server does for its plugins. Implemented by the server, called by the table's functions.
/// Every function may be called from any thread at any time, also after the server has stopped.
pub trait HostSide: Send + Sync + 'static {
    /// A line for the log.
    fn log(&self, from: ServiceId, level: u32, target: &str, message: &str);
    /// The most detailed level that is kept.
    fn log_level(&self) -> u32;
    /// One fact of the configuration, as JSON.
    fn config(&self, from: ServiceId, key: &str) -> Result<Vec<u8>, Failure>;
    /// The handle of a service's path.
    fn resolve(&self, from: ServiceId, name: &str) -> Result<u64, Failure>;
    /// Calls a service. A reply or an error text is put into `reply`.
    fn call(&self, request: &CallRequest<'_>, reply: &mut Out<'_>) -> Outcome;
    /// Turns the running call into a pending one.
    fn defer(&self, from: ServiceId, context: &Context<'_>) -> Result<u64, Failure>;
    /// Answers a pending call.
    fn reply(&self, from: ServiceId, token: u64, status: i32, payload: &[u8]) -> Result<(), Failure>;
    /// Sends one stream item.
    fn stream(&self, from: ServiceId, token: u64, payload: &[u8]) -> Result<(), Failure>;
    /// Grants credit to a stream.
    fn credit(&self, from: ServiceId, token: u64, items: u32) -> Result<(), Failure>;
    /// Ends a pending call, a timer or a subscription.
    fn cancel(&self, from: ServiceId, token: u64) -> Result<(), Failure>;
    /// Tells services of this node; answers how many.
    fn publish(&self, from: ServiceId, event: &str, payload: &[u8]) -> Result<u64, Failure>;
    /// Tells all other nodes; answers how many.
    fn say(&self, from: ServiceId, event: &str, payload: &[u8]) -> Result<u64, Failure>;
    /// Tells one node.
    fn tell(&self, from: ServiceId, node: &str, event: &str, payload: &[u8]) -> Result<(), Failure>;
    /// Subscribes to an event.
    fn subscribe(&self, from: ServiceId, scope: Scope, event: &str) -> Result<u64, Failure>;
    /// Sets a timer; `period_ms` 0: once.
    fn timer(&self, from: ServiceId, after_ms: u64, period_ms: u64) -> Result<u64, Failure>;
    /// Lends a listening socket.
    fn listener(&self, from: ServiceId, address: &str) -> Result<RawFd, Failure>;
    /// Makes sure that a service lives.
    fn ensure(&self, from: ServiceId, path: &str, settings: &[u8]) -> Result<u64, Failure>;
    /// Does what a command line says.
    fn control(&self, from: ServiceId, line: &str) -> Result<Vec<u8>, Failure>;
    /// Takes a report.
    fn report(&self, from: ServiceId, report: Report, payload: &[u8]) -> Result<(), Failure>;
    /// Whether the asker was told to stop.
    fn stopping(&self, from: ServiceId) -> bool;
    /// A further table, or null.
    fn extension(&self, _id: &str, _version: u32) -> *const c_void {
        std::ptr::null()
    }
}

/// Runs one function of the server so that neither a panic nor a failure crosses as anything but a status.
fn answer<T: Into<Value>>(sink: Option<Sink>, f: impl FnOnce() -> Result<T, Failure>) -> Outcome {
    let failure = match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => return Outcome::done(value.into().0),
        Ok(Err(failure)) => failure,
        Err(payload) => {
            std::mem::forget(payload);
            Failure::new(status::PANICKED, "the server panicked while it served this request; see its log")
        }
    };
    if let Some(sink) = sink {
        // SAFETY: the sink was lent for the running call.
        unsafe { Out::new(sink) }.put(failure.text.as_bytes());
    }
    Outcome::failed(failure.status)
}

/// The value of an [`Outcome`], from what the trait's functions answer.
struct Value(u64);
impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self(value)
    }
}
impl From<()> for Value {
    fn from((): ()) -> Self {
        Self(0)
    }
}

/// The text lent in `bytes`, or a failure that names `what` it was to be.
///
/// # Safety
/// The lender's slice must be alive for `'a`.
unsafe fn text<'a>(bytes: Bytes, what: &str) -> Result<&'a str, Failure> {
    // SAFETY: passed on to the caller.
    std::str::from_utf8(unsafe { bytes.get() })
        .map_err(|_| Failure::new(status::UNSUPPORTED, format!("{what} is not UTF-8")))
}

/// The functions of the table for one implementation. Each converts and calls; nothing else.
///
/// SAFETY of all of them: `host` is the pointer that [`table`] was made for, which lives for ever;
/// every `Bytes` and `Sink` was lent by the caller for the length of the call.
struct Shims<H>(std::marker::PhantomData<H>);

#[allow(clippy::too_many_arguments)]
impl<H: HostSide> Shims<H> {
    unsafe fn host<'a>(host: *const c_void) -> &'a H {
        // SAFETY: see the type.
        unsafe { &*host.cast::<H>() }
    }

    extern "C" fn log(host: *const c_void, from: u64, level: u32, target: Bytes, message: Bytes) {
        let _ = answer(None, || {
            // SAFETY: see the type.
            let (host, target, message) = unsafe { (Self::host(host), target.get(), message.get()) };
            host.log(
                ServiceId(from),
                level,
                &String::from_utf8_lossy(target),
                &String::from_utf8_lossy(message),
            );
            Ok(())
        });
    }

    extern "C" fn log_level(host: *const c_void) -> u32 {
        // SAFETY: see the type.
        catch_unwind(|| unsafe { Self::host(host) }.log_level()).unwrap_or(0)
    }

    extern "C" fn config(host: *const c_void, from: u64, key: Bytes, sink: Sink) -> Outcome {
        answer(Some(sink), || {
            // SAFETY: see the type.
            let (host, key) = unsafe { (Self::host(host), text(key, "the key")?) };
            let value = host.config(ServiceId(from), key)?;
            // SAFETY: see the type.
            unsafe { Out::new(sink) }.put(&value);
            Ok(())
        })
    }

    extern "C" fn resolve(host: *const c_void, from: u64, name: Bytes, sink: Sink) -> Outcome {
        // SAFETY: see the type.
        answer(Some(sink), || unsafe {
            Self::host(host).resolve(ServiceId(from), text(name, "the service's name")?)
        })
    }

    extern "C" fn call(
        host: *const c_void,
        from: u64,
        handle: u64,
        parent: Option<&Context<'_>>,
        method: Bytes,
        payload: Bytes,
        options: &CallOptions,
        sink: Sink,
    ) -> Outcome {
        // SAFETY: see the type.
        let called = catch_unwind(AssertUnwindSafe(|| unsafe {
            let (method, payload) = (method.get(), payload.get());
            let request = CallRequest { from: ServiceId(from), handle, parent, method, payload, options };
            Self::host(host).call(&request, &mut Out::new(sink))
        }));
        match called {
            Ok(outcome) => outcome,
            Err(payload) => {
                std::mem::forget(payload);
                Outcome::failed(status::PANICKED)
            }
        }
    }

    extern "C" fn defer(host: *const c_void, from: u64, context: &Context<'_>, sink: Sink) -> Outcome {
        // SAFETY: see the type.
        answer(Some(sink), || unsafe { Self::host(host).defer(ServiceId(from), context) })
    }

    extern "C" fn reply(host: *const c_void, from: u64, token: u64, status: i32, payload: Bytes) -> Outcome {
        // SAFETY: see the type.
        answer(None, || unsafe { Self::host(host).reply(ServiceId(from), token, status, payload.get()) })
    }

    extern "C" fn stream(host: *const c_void, from: u64, token: u64, payload: Bytes) -> Outcome {
        // SAFETY: see the type.
        answer(None, || unsafe { Self::host(host).stream(ServiceId(from), token, payload.get()) })
    }

    extern "C" fn credit(host: *const c_void, from: u64, token: u64, items: u32) -> Outcome {
        // SAFETY: see the type.
        answer(None, || unsafe { Self::host(host).credit(ServiceId(from), token, items) })
    }

    extern "C" fn cancel(host: *const c_void, from: u64, token: u64) -> Outcome {
        // SAFETY: see the type.
        answer(None, || unsafe { Self::host(host).cancel(ServiceId(from), token) })
    }

    extern "C" fn publish(host: *const c_void, from: u64, event: Bytes, payload: Bytes) -> Outcome {
        // SAFETY: see the type.
        answer(None, || unsafe {
            Self::host(host).publish(ServiceId(from), text(event, "the event's name")?, payload.get())
        })
    }

    extern "C" fn say(host: *const c_void, from: u64, event: Bytes, payload: Bytes, sink: Sink) -> Outcome {
        // SAFETY: see the type.
        answer(Some(sink), || unsafe {
            Self::host(host).say(ServiceId(from), text(event, "the event's name")?, payload.get())
        })
    }

    extern "C" fn tell(
        host: *const c_void,
        from: u64,
        node: Bytes,
        event: Bytes,
        payload: Bytes,
        sink: Sink,
    ) -> Outcome {
        // SAFETY: see the type.
        answer(Some(sink), || unsafe {
            let (node, event) = (text(node, "the node's name")?, text(event, "the event's name")?);
            Self::host(host).tell(ServiceId(from), node, event, payload.get())
        })
    }

    extern "C" fn subscribe(host: *const c_void, from: u64, scope: u32, event: Bytes, sink: Sink) -> Outcome {
        answer(Some(sink), || {
            let scope = Scope::from_number(scope)
                .ok_or_else(|| Failure::new(status::UNSUPPORTED, "this server does not know that scope"))?;
            // SAFETY: see the type.
            unsafe { Self::host(host).subscribe(ServiceId(from), scope, text(event, "the event's name")?) }
        })
    }

    extern "C" fn timer(host: *const c_void, from: u64, after: u64, period: u64, sink: Sink) -> Outcome {
        // SAFETY: see the type.
        answer(Some(sink), || unsafe { Self::host(host).timer(ServiceId(from), after, period) })
    }

    extern "C" fn listener(host: *const c_void, from: u64, address: Bytes, sink: Sink) -> Outcome {
        answer(Some(sink), || {
            // SAFETY: see the type.
            let fd = unsafe { Self::host(host).listener(ServiceId(from), text(address, "the address")?)? };
            Ok(fd as u64)
        })
    }

    extern "C" fn ensure(
        host: *const c_void,
        from: u64,
        path: Bytes,
        settings: Bytes,
        sink: Sink,
    ) -> Outcome {
        // SAFETY: see the type.
        answer(Some(sink), || unsafe {
            Self::host(host).ensure(ServiceId(from), text(path, "the service's path")?, settings.get())
        })
    }

    extern "C" fn control(host: *const c_void, from: u64, line: Bytes, sink: Sink) -> Outcome {
        answer(Some(sink), || {
            // SAFETY: see the type.
            unsafe {
                let answer = Self::host(host).control(ServiceId(from), text(line, "the command")?)?;
                Out::new(sink).put(&answer);
            }
            Ok(())
        })
    }

    extern "C" fn report(host: *const c_void, from: u64, kind: u32, payload: Bytes) -> Outcome {
        answer(None, || {
            let report = Report::from_number(kind)
                .ok_or_else(|| Failure::new(status::UNSUPPORTED, "this server does not know that report"))?;
            // SAFETY: see the type.
            unsafe { Self::host(host).report(ServiceId(from), report, payload.get()) }
        })
    }

    extern "C" fn stopping(host: *const c_void, from: u64) -> u32 {
        // SAFETY: see the type.
        catch_unwind(|| unsafe { Self::host(host) }.stopping(ServiceId(from))).unwrap_or(true) as u32
    }

    extern "C" fn extension(host: *const c_void, id: Bytes, version: u32) -> *const c_void {
        // SAFETY: see the type.
        catch_unwind(|| unsafe {
            Self::host(host).extension(text(id, "the extension's name").unwrap_or(""), version)
        })
        .unwrap_or(std::ptr::null())
    }

    const TABLE: &'static WithMetadata<HostV1> = &WithMetadata::new(HostV1 {
        log: Self::log,
        log_level: Self::log_level,
        config: Self::config,
        resolve: Self::resolve,
        call: Self::call,
        defer: Self::defer,
        reply: Self::reply,
        stream: Self::stream,
        credit: Self::credit,
        cancel: Self::cancel,
        publish: Self::publish,
        say: Self::say,
        tell: Self::tell,
        subscribe: Self::subscribe,
        timer: Self::timer,
        listener: Self::listener,
        ensure: Self::ensure,
        control: Self::control,
        report: Self::report,
        stopping: Self::stopping,
        extension: Self::extension,
    });
}

/// The handle that plugins get of a server. The server is kept alive for ever, since threads of a
/// plugin may still ask after it has stopped.
pub fn table<H: HostSide>(server: &'static H) -> Host {
    Host { server: (server as *const H).cast(), table: HostV1Ref(Shims::<H>::TABLE.static_as_prefix()) }
}

/// A plugin's way to its server: cheap to copy, callable from any thread.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct Host {
    server: *const c_void,
    table: HostV1Ref,
}

// SAFETY: the pointer is a `&'static H` with `H: Sync`, the table is static.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

/// The value of an outcome, or the failure whose text is in `text`.
fn checked(outcome: Outcome, text: Vec<u8>) -> Result<u64, Failure> {
    match outcome.status {
        status::DONE => Ok(outcome.value),
        status => Err(Failure::new(status, String::from_utf8_lossy(&text))),
    }
}

impl Host {
    fn ask(&self, f: impl FnOnce(Sink) -> Outcome) -> Result<u64, Failure> {
        let mut text = Vec::new();
        let outcome = Sink::into_vec(&mut text, f);
        checked(outcome, text)
    }

    fn ask_bytes(&self, f: impl FnOnce(Sink) -> Outcome) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        match Sink::into_vec(&mut bytes, f).status {
            status::DONE => Ok(bytes),
            status => Err(Failure::new(status, String::from_utf8_lossy(&bytes))),
        }
    }

    /// See [`HostSide::log`].
    pub fn log(&self, from: ServiceId, level: u32, target: &str, message: &str) {
        self.table.log()(
            self.server,
            from.0,
            level,
            Bytes::new(target.as_bytes()),
            Bytes::new(message.as_bytes()),
        );
    }

    /// See [`HostSide::log_level`].
    pub fn log_level(&self) -> u32 {
        self.table.log_level()(self.server)
    }

    /// See [`HostSide::config`].
    pub fn config(&self, from: ServiceId, key: &str) -> Result<Vec<u8>, Failure> {
        self.ask_bytes(|sink| self.table.config()(self.server, from.0, Bytes::new(key.as_bytes()), sink))
    }

    /// See [`HostSide::resolve`].
    pub fn resolve(&self, from: ServiceId, name: &str) -> Result<u64, Failure> {
        self.ask(|sink| self.table.resolve()(self.server, from.0, Bytes::new(name.as_bytes()), sink))
    }

    /// See [`HostSide::call`]. The reply, or the error's text, is appended to `reply`. The call that
    /// this thread is in at present becomes its parent.
    #[inline]
    pub fn call(
        &self,
        from: ServiceId,
        handle: u64,
        method: &str,
        payload: &[u8],
        options: &CallOptions,
        reply: &mut Vec<u8>,
    ) -> Outcome {
        self.call_into(from, handle, method, payload, options, &Out::to(reply))
    }

    /// The same, with the reply written where another call's reply is to go.
    #[inline]
    pub fn call_into(
        &self,
        from: ServiceId,
        handle: u64,
        method: &str,
        payload: &[u8],
        options: &CallOptions,
        reply: &Out<'_>,
    ) -> Outcome {
        let sink = reply.sink();
        let (method, payload) = (Bytes::new(method.as_bytes()), Bytes::new(payload));
        current::with(|parent| {
            self.table.call()(self.server, from.0, handle, parent, method, payload, options, sink)
        })
    }

    /// See [`HostSide::defer`].
    pub fn defer(&self, from: ServiceId, context: &Context<'_>) -> Result<u64, Failure> {
        self.ask(|sink| self.table.defer()(self.server, from.0, context, sink))
    }

    /// See [`HostSide::reply`].
    pub fn reply(&self, from: ServiceId, token: u64, status: i32, payload: &[u8]) -> Result<(), Failure> {
        let outcome = self.table.reply()(self.server, from.0, token, status, Bytes::new(payload));
        checked(outcome, Vec::new()).map(drop)
    }

    /// See [`HostSide::stream`].
    pub fn stream(&self, from: ServiceId, token: u64, payload: &[u8]) -> Result<(), Failure> {
        checked(self.table.stream()(self.server, from.0, token, Bytes::new(payload)), Vec::new()).map(drop)
    }

    /// See [`HostSide::credit`].
    pub fn credit(&self, from: ServiceId, token: u64, items: u32) -> Result<(), Failure> {
        checked(self.table.credit()(self.server, from.0, token, items), Vec::new()).map(drop)
    }

    /// See [`HostSide::cancel`].
    pub fn cancel(&self, from: ServiceId, token: u64) -> Result<(), Failure> {
        checked(self.table.cancel()(self.server, from.0, token), Vec::new()).map(drop)
    }

    /// See [`HostSide::publish`].
    pub fn publish(&self, from: ServiceId, event: &str, payload: &[u8]) -> Result<u64, Failure> {
        let event = Bytes::new(event.as_bytes());
        checked(self.table.publish()(self.server, from.0, event, Bytes::new(payload)), Vec::new())
    }

    /// See [`HostSide::say`].
    pub fn say(&self, from: ServiceId, event: &str, payload: &[u8]) -> Result<u64, Failure> {
        let event = Bytes::new(event.as_bytes());
        self.ask(|sink| self.table.say()(self.server, from.0, event, Bytes::new(payload), sink))
    }

    /// See [`HostSide::tell`].
    pub fn tell(&self, from: ServiceId, node: &str, event: &str, payload: &[u8]) -> Result<(), Failure> {
        let (node, event) = (Bytes::new(node.as_bytes()), Bytes::new(event.as_bytes()));
        let payload = Bytes::new(payload);
        self.ask(|sink| self.table.tell()(self.server, from.0, node, event, payload, sink)).map(drop)
    }

    /// See [`HostSide::subscribe`].
    pub fn subscribe(&self, from: ServiceId, scope: Scope, event: &str) -> Result<u64, Failure> {
        let event = Bytes::new(event.as_bytes());
        self.ask(|sink| self.table.subscribe()(self.server, from.0, scope as u32, event, sink))
    }

    /// See [`HostSide::timer`].
    pub fn timer(&self, from: ServiceId, after_ms: u64, period_ms: u64) -> Result<u64, Failure> {
        self.ask(|sink| self.table.timer()(self.server, from.0, after_ms, period_ms, sink))
    }

    /// See [`HostSide::listener`].
    pub fn listener(&self, from: ServiceId, address: &str) -> Result<OwnedFd, Failure> {
        let address = Bytes::new(address.as_bytes());
        let fd = self.ask(|sink| self.table.listener()(self.server, from.0, address, sink))?;
        // SAFETY: the server has made this duplicate for us.
        Ok(unsafe { crate::fd::take(fd as RawFd) })
    }

    /// See [`HostSide::ensure`].
    pub fn ensure(&self, from: ServiceId, path: &str, settings: &[u8]) -> Result<u64, Failure> {
        let path = Bytes::new(path.as_bytes());
        self.ask(|sink| self.table.ensure()(self.server, from.0, path, Bytes::new(settings), sink))
    }

    /// See [`HostSide::control`].
    pub fn control(&self, from: ServiceId, line: &str) -> Result<Vec<u8>, Failure> {
        let line = Bytes::new(line.as_bytes());
        self.ask_bytes(|sink| self.table.control()(self.server, from.0, line, sink))
    }

    /// See [`HostSide::report`].
    pub fn report(&self, from: ServiceId, report: Report, payload: &[u8]) -> Result<(), Failure> {
        let outcome = self.table.report()(self.server, from.0, report as u32, Bytes::new(payload));
        checked(outcome, Vec::new()).map(drop)
    }

    /// See [`HostSide::stopping`].
    pub fn stopping(&self, from: ServiceId) -> bool {
        self.table.stopping()(self.server, from.0) != 0
    }

    /// See [`HostSide::extension`].
    pub fn extension(&self, id: &str, version: u32) -> *const c_void {
        self.table.extension()(self.server, Bytes::new(id.as_bytes()), version)
    }
}
