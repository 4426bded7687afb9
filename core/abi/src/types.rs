//! The plain values that cross the boundary. Frozen: see the crate's head.

use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};

use abi_stable::StableAbi;

/// What a function of either table answers with. Numbers from 16 on are error codes whose meaning the
/// two sides share elsewhere (the contract crate); the boundary only carries them.
pub mod status {
    /// Done; a reply, if there is one, is in the sink.
    pub const DONE: i32 = 0;
    /// The answer comes later, under the token in [`Outcome::value`](super::Outcome).
    pub const PENDING: i32 = 1;
    /// The entry panicked. The sink holds the message with file and line.
    pub const PANICKED: i32 = 2;
    /// The other side does not know this number or name.
    pub const UNSUPPORTED: i32 = 3;
}

/// Bytes lent for the length of one call.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct Bytes {
    start: *const u8,
    length: usize,
}

impl Bytes {
    /// Lends a slice.
    #[inline]
    pub fn new(bytes: &[u8]) -> Self {
        Self { start: bytes.as_ptr(), length: bytes.len() }
    }

    /// # Safety
    /// The lender's slice must still be alive for `'a`.
    #[inline]
    pub(crate) unsafe fn get<'a>(self) -> &'a [u8] {
        if self.length == 0 {
            return &[];
        }
        // SAFETY: made from a slice by `new`; the caller vouches for its life.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

/// Where an answer is written: memory of the caller, so that nobody frees what the other allocated.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct Sink {
    context: *mut c_void,
    put: extern "C" fn(*mut c_void, Bytes),
}

extern "C" fn put_into_vec(context: *mut c_void, bytes: Bytes) {
    // SAFETY: `Sink::into_vec` is the only maker of this pair, and `with_sink` keeps the Vec borrowed.
    let (vec, bytes) = unsafe { (&mut *context.cast::<Vec<u8>>(), bytes.get()) };
    vec.extend_from_slice(bytes);
}

impl Sink {
    /// Runs `f` with a sink that appends to `buffer`.
    #[inline]
    pub(crate) fn into_vec<R>(buffer: &mut Vec<u8>, f: impl FnOnce(Sink) -> R) -> R {
        f(Sink { context: (buffer as *mut Vec<u8>).cast(), put: put_into_vec })
    }
}

/// A [`Sink`] with the lifetime of the call it was lent for.
pub struct Out<'a> {
    sink: Sink,
    lent: PhantomData<&'a mut ()>,
}

impl<'a> Out<'a> {
    /// # Safety
    /// The sink's owner must keep it alive for `'a`.
    #[inline]
    pub(crate) unsafe fn new(sink: Sink) -> Self {
        Self { sink, lent: PhantomData }
    }

    /// An `Out` that appends to `buffer`.
    #[inline]
    pub fn to(buffer: &'a mut Vec<u8>) -> Self {
        Self { sink: Sink { context: (buffer as *mut Vec<u8>).cast(), put: put_into_vec }, lent: PhantomData }
    }

    /// The same, lent further.
    #[inline]
    pub fn reborrow(&mut self) -> Out<'_> {
        Out { sink: self.sink, lent: PhantomData }
    }

    /// Appends bytes to the caller's buffer.
    #[inline]
    pub fn put(&self, bytes: &[u8]) {
        (self.sink.put)(self.sink.context, Bytes::new(bytes));
    }

    #[inline]
    pub(crate) fn sink(&self) -> Sink {
        self.sink
    }
}

/// Status and value of one function call across the boundary. Two registers.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// One of [`status`], or an error code.
    pub status: i32,
    /// A token, handle, count or file descriptor, as the function's doc says; else 0.
    pub value: u64,
}

impl Outcome {
    /// Done, with a value.
    #[inline]
    pub const fn done(value: u64) -> Self {
        Self { status: status::DONE, value }
    }

    /// The answer comes under this token.
    #[inline]
    pub const fn pending(token: u64) -> Self {
        Self { status: status::PENDING, value: token }
    }

    /// Failed; the text is in the sink.
    #[inline]
    pub const fn failed(status: i32) -> Self {
        Self { status, value: 0 }
    }

    /// An error that came from another service and is passed on: a panic of its own has the value 0.
    #[inline]
    pub const fn passed_on(status: i32) -> Self {
        Self { status, value: 1 }
    }

    /// True for a panic of the callee itself.
    #[inline]
    pub const fn is_own_panic(&self) -> bool {
        self.status == status::PANICKED && self.value == 0
    }
}

/// A failure as it crosses: a status and a text for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// [`status::PANICKED`], [`status::UNSUPPORTED`] or an error code.
    pub status: i32,
    /// What happened, where, what to do.
    pub text: String,
}

impl Failure {
    /// A failure with a status and a text.
    pub fn new(status: i32, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Who asks, as the server numbers them: a living instance of a service, or a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceId(pub u64);

impl ServiceId {
    const LIBRARY: u64 = 1 << 63;
    /// The server itself, or somebody outside.
    pub const SERVER: Self = Self(0);

    /// The `serial`-th instance that lives (or lived) in `slot`. Serials begin with 1.
    pub fn instance(slot: u32, serial: u32) -> Self {
        Self(u64::from(slot) << 32 | u64::from(serial))
    }

    /// A library outside any of its services.
    pub fn library(serial: u32) -> Self {
        Self(Self::LIBRARY | u64::from(serial))
    }

    /// The slot, if this is an instance; 0 is the server's.
    pub fn slot(self) -> Option<u32> {
        (self.0 & Self::LIBRARY == 0).then_some((self.0 >> 32) as u32)
    }

    /// The serial of an instance or a library; 0 where only the slot is known.
    pub fn serial(self) -> u32 {
        self.0 as u32
    }
}

/// What every call carries. Lives on the caller's stack: no pointer in it outlives the call.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct Context<'a> {
    /// The [`ServiceId`] that called.
    pub caller: u64,
    /// The [`ServiceId`] that is called, without its serial.
    pub callee: u64,
    /// The chain of calls that this one belongs to: the same from the first caller to the last callee.
    pub chain: u64,
    /// Nanoseconds of `CLOCK_MONOTONIC` ([`monotonic`](crate::monotonic)) by which the caller wants its
    /// answer; 0: no such wish.
    pub deadline: u64,
    /// Trace id (W3C, upper half), 0 when not traced.
    pub trace_high: u64,
    /// Trace id, lower half.
    pub trace_low: u64,
    /// Span of the caller within the trace.
    pub span: u64,
    /// The pending call on whose behalf this one is made (its token), or 0.
    pub behalf: u64,
    #[sabi(unsafe_opaque_field)]
    cancel: Option<&'a AtomicBool>,
    #[sabi(unsafe_opaque_field)]
    parent: Option<&'a Context<'a>>,
}

impl<'a> Context<'a> {
    /// The first context of a chain.
    #[inline]
    pub fn root(caller: ServiceId, callee: u32, chain: u64) -> Self {
        Self {
            caller: caller.0,
            callee: u64::from(callee) << 32,
            chain,
            deadline: 0,
            trace_high: 0,
            trace_low: 0,
            span: 0,
            behalf: 0,
            cancel: None,
            parent: None,
        }
    }

    /// The context of a call that is made while `parent` runs.
    #[inline]
    pub fn child(parent: &'a Context<'a>, caller: ServiceId, callee: u32) -> Self {
        Self { caller: caller.0, callee: u64::from(callee) << 32, parent: Some(parent), ..*parent }
    }

    /// The same, with a cancel flag of its own.
    pub fn with_cancel(self, cancel: &'a AtomicBool) -> Self {
        Self { cancel: Some(cancel), ..self }
    }

    /// True once the caller no longer waits for the answer.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    /// This context, then that of its caller, and so on to the first of the chain.
    pub fn ancestry(&self) -> impl Iterator<Item = &Context<'a>> {
        std::iter::successors(Some(self), |context| context.parent)
    }

    /// The slot that is called.
    pub fn callee_slot(&self) -> u32 {
        (self.callee >> 32) as u32
    }
}

/// How a caller wants its answer.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallMode {
    /// On the caller's thread; a deferred answer is waited for.
    Wait = 0,
    /// On the caller's thread; a deferred answer comes as an event under the token.
    Later = 1,
    /// On a thread of the server's pool, waited for until the deadline.
    PoolWait = 2,
    /// On a thread of the server's pool; the answer comes as an event, at the deadline at the latest.
    PoolLater = 3,
}

/// How a call is to be made.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct CallOptions {
    /// The number of a [`CallMode`].
    pub mode: u32,
    /// How many stream items the caller can take before it grants more; 0: it takes no stream.
    pub credit: u32,
    /// Nanoseconds from now within which the answer must come; 0: the server's `call_timeout`.
    pub within: u64,
    /// The pending call on whose behalf this one is made (its token), or 0.
    pub behalf: u64,
    /// The caller's own number for this call: comes back as `number` of its events. Known before the
    /// call is made, so that an answer that overtakes its token finds its way, too.
    pub cookie: u64,
}

impl CallOptions {
    /// On the caller's thread, waiting for the answer.
    pub const WAIT: Self = Self::new(CallMode::Wait);

    /// Options of a mode, with the server's own timeout and no stream.
    pub const fn new(mode: CallMode) -> Self {
        Self { mode: mode as u32, credit: 0, within: 0, behalf: 0, cookie: 0 }
    }

    /// The mode; an unknown number from a newer side counts as `PoolWait`, the one that always ends.
    #[inline]
    pub fn mode(&self) -> CallMode {
        match self.mode {
            0 => CallMode::Wait,
            1 => CallMode::Later,
            3 => CallMode::PoolLater,
            _ => CallMode::PoolWait,
        }
    }
}

/// One call as its caller asks for it.
#[derive(Clone, Copy)]
pub struct CallRequest<'a> {
    /// Who calls.
    pub from: ServiceId,
    /// Whom: the number that `resolve` gave.
    pub handle: u64,
    /// The call that the caller is in at present.
    pub parent: Option<&'a Context<'a>>,
    /// The method's name with its version.
    pub method: &'a [u8],
    /// What it is given.
    pub payload: &'a [u8],
    /// How the answer is wanted.
    pub options: &'a CallOptions,
}

/// Something that happened, told to a service. `kind` decides what the other fields mean: [`EventKind`].
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct EventV1 {
    pub(crate) kind: u32,
    pub(crate) status: i32,
    pub(crate) token: u64,
    pub(crate) number: u64,
    pub(crate) name: Bytes,
    pub(crate) payload: Bytes,
}

/// The kinds of events.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The answer to a call made `Later` under `token`: `status`, `payload`; `number` is the caller's
    /// cookie. Ends a stream, too.
    Reply = 1,
    /// One item of a stream under `token`: `payload`; `number` is the caller's cookie.
    Item = 2,
    /// The receiver of the stream `token` takes `number` more items.
    Credit = 3,
    /// The caller of the pending call `token` no longer waits.
    Cancelled = 4,
    /// The timer `token` is due.
    Timer = 5,
    /// `name` was published on this node: `payload`; `number` is the subscription's token.
    Published = 6,
    /// `name` was said by another node: `payload`; `number` is the subscription's token.
    Said = 7,
    /// Membership of the cluster changed: `name` is the node, `payload` what happened to it.
    Node = 8,
    /// Callers are let in from now on: the instance is the one that serves under its name.
    Serving = 9,
    /// A kind that this side does not know.
    Unknown = 0,
}

/// An event with its fields readable: the safe face of [`EventV1`].
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// What happened.
    pub kind: EventKind,
    /// For `Reply`: [`status::DONE`] or an error code.
    pub status: i32,
    /// Call, stream or timer that it belongs to.
    pub token: u64,
    /// See [`EventKind`].
    pub number: u64,
    /// See [`EventKind`].
    pub name: &'a str,
    /// See [`EventKind`].
    pub payload: &'a [u8],
}

impl<'a> Event<'a> {
    /// An event of a kind with nothing in it.
    pub fn new(kind: EventKind) -> Self {
        Self { kind, status: status::DONE, token: 0, number: 0, name: "", payload: &[] }
    }

    pub(crate) fn to_v1(self) -> EventV1 {
        EventV1 {
            kind: self.kind as u32,
            status: self.status,
            token: self.token,
            number: self.number,
            name: Bytes::new(self.name.as_bytes()),
            payload: Bytes::new(self.payload),
        }
    }

    /// # Safety
    /// The slices lent in `event` must be alive for `'a`.
    pub(crate) unsafe fn from_v1(event: &EventV1) -> Self {
        let kind = match event.kind {
            1 => EventKind::Reply,
            2 => EventKind::Item,
            3 => EventKind::Credit,
            4 => EventKind::Cancelled,
            5 => EventKind::Timer,
            6 => EventKind::Published,
            7 => EventKind::Said,
            8 => EventKind::Node,
            9 => EventKind::Serving,
            _ => EventKind::Unknown,
        };
        // SAFETY: the caller vouches for the lender.
        let (name, payload) = unsafe { (event.name.get(), event.payload.get()) };
        Self {
            kind,
            status: event.status,
            token: event.token,
            number: event.number,
            name: std::str::from_utf8(name).unwrap_or("(not UTF-8)"),
            payload,
        }
    }
}

/// Where a subscription listens.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// What services of this node publish.
    Node = 0,
    /// What other nodes say.
    Cluster = 1,
    /// Who joins and leaves the cluster; the name is ignored.
    Members = 2,
}

/// What a service reports of itself.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// It serves now (declared with [`Readiness::Reported`](crate::Readiness)).
    Ready = 0,
    /// It is alive. Reserved: the server does nothing with it yet.
    Heartbeat = 1,
    /// JSON object of numbers by name, kept and shown by `status`.
    Metrics = 2,
    /// State to begin with after a crash; bytes in its own format.
    Checkpoint = 3,
    /// This thread panics: message and place. Comes before the entry that it is in fails.
    Panic = 4,
    /// It will answer the pending call whose token this is (eight native bytes): it came with
    /// imported state, or from another instance of the service.
    Resumed = 5,
}

/// Why a service is asked to stop.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The server stops, or an operator disabled the service.
    Disabled = 0,
    /// A new generation has taken over; finish the open jobs, then end.
    Replaced = 1,
    /// It panicked or failed; another instance takes over.
    Failed = 2,
}

macro_rules! from_number {
    ($type:ident { $($variant:ident),+ }) => {
        impl $type {
            /// The value of a number, if this side knows it.
            pub fn from_number(number: u32) -> Option<Self> {
                $(if number == Self::$variant as u32 { return Some(Self::$variant); })+
                None
            }
        }
    };
}
from_number!(Scope { Node, Cluster, Members });
from_number!(Report { Ready, Heartbeat, Metrics, Checkpoint, Panic, Resumed });
from_number!(StopReason { Disabled, Replaced, Failed });
