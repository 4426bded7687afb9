//! The plugin's side of the boundary: the frozen table and the safe trait that the SDK implements.
//! Every entry is guarded here, inside the plugin's own library: a guard in the server could not stop
//! an unwind that comes out of another copy of std.

use std::ffi::c_void;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use abi_stable::StableAbi;
use abi_stable::library::{
    __call_root_module_loader, CheckTypeLayout, LibHeader, RootModule, RootModuleResult,
};
use abi_stable::prefix_type::WithMetadata;
use abi_stable::sabi_types::VersionStrings;

use crate::current;
use crate::host_table::Host;
use crate::types::{
    Bytes, Context, Event, EventV1, Failure, Out, Outcome, ServiceId, Sink, StopReason, status,
};

/// The plugin's table. Frozen. `instance` is what `create` answered; texts are UTF-8; on failure the
/// sink holds a text.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = RootV1Ref)))]
#[sabi(missing_field(panic))]
pub struct RootV1 {
    /// `(host, library's own id, sink)`: once for each loaded copy, before anything else.
    pub setup: extern "C" fn(Host, u64, Sink) -> Outcome,
    /// `(sink)`: the [`Declaration`](crate::Declaration) as JSON.
    pub info: extern "C" fn(Sink) -> Outcome,
    /// `(id, kind, name, settings as JSON, sink)` → instance as value. Pure: no threads, sockets, calls.
    pub create: extern "C" fn(u64, Bytes, Bytes, Bytes, Sink) -> Outcome,
    /// `(instance, state version, state, fds, count, sink)`: the fds stay the old instance's; the new one
    /// duplicates those that it wants, before or in `init`.
    pub import_state: extern "C" fn(*mut c_void, u32, Bytes, *const i32, usize, Sink) -> Outcome,
    /// `(instance, sink)`: may call others, open, subscribe.
    pub init: extern "C" fn(*mut c_void, Sink) -> Outcome,
    /// `(instance, sink)`: runs until the service is asked to stop.
    pub main: extern "C" fn(*mut c_void, Sink) -> Outcome,
    /// `(instance, context, method, payload, sink)` → done, pending with the deferred token, or failed.
    pub call: for<'a, 'b> extern "C" fn(*mut c_void, &'a Context<'b>, Bytes, Bytes, Sink) -> Outcome,
    /// `(instance, event, sink)`
    pub event: for<'a> extern "C" fn(*mut c_void, &'a EventV1, Sink) -> Outcome,
    /// `(instance, sink)`: change nothing any more until `thaw` or `stop`.
    pub freeze: extern "C" fn(*mut c_void, Sink) -> Outcome,
    /// `(instance, sink)`: go on as if nothing had been.
    pub thaw: extern "C" fn(*mut c_void, Sink) -> Outcome,
    /// `(instance, reason, sink)`: make `main` return soon; does not wait for it.
    pub stop: extern "C" fn(*mut c_void, u32, Sink) -> Outcome,
    /// `(instance, sink for bytes, sink for fds as native i32s)`
    pub export_state: extern "C" fn(*mut c_void, Sink, Sink) -> Outcome,
    /// `(instance, sink)` → value 1 when the sink holds a checkpoint, 0 when the service keeps none.
    pub checkpoint: extern "C" fn(*mut c_void, Sink) -> Outcome,
    /// `(instance)`: the last call for it.
    pub destroy: extern "C" fn(*mut c_void),
    /// `(id, version)` → a further table, or null.
    #[sabi(last_prefix_field)]
    pub extension: extern "C" fn(Bytes, u32) -> *const c_void,
}

impl RootModule for RootV1Ref {
    abi_stable::declare_root_module_statics! {RootV1Ref}
    const BASE_NAME: &'static str = "zephserver_plugin";
    const NAME: &'static str = "zephserver_plugin";
    const VERSION_STRINGS: VersionStrings = abi_stable::package_version_strings!();
}

/// What a plugin does for the server. Implemented by the SDK, called by the table's functions.
pub trait PluginSide: 'static {
    /// A living service.
    type Instance: Send + Sync + 'static;

    /// See [`RootV1::setup`].
    fn setup(host: Host, library: ServiceId) -> Result<(), Failure>;
    /// See [`RootV1::info`].
    fn info() -> Result<Vec<u8>, Failure>;
    /// See [`RootV1::create`].
    fn create(id: ServiceId, kind: &str, name: &str, settings: &[u8]) -> Result<Self::Instance, Failure>;
    /// See [`RootV1::import_state`].
    fn import_state(
        instance: &Self::Instance,
        version: u32,
        state: &[u8],
        fds: &[RawFd],
    ) -> Result<(), Failure>;
    /// See [`RootV1::init`].
    fn init(instance: &Self::Instance) -> Result<(), Failure>;
    /// See [`RootV1::main`].
    fn main(instance: &Self::Instance) -> Result<(), Failure>;
    /// See [`RootV1::call`].
    fn call(
        instance: &Self::Instance,
        context: &Context<'_>,
        method: &[u8],
        payload: &[u8],
        reply: &mut Out<'_>,
    ) -> Outcome;
    /// See [`RootV1::event`].
    fn event(instance: &Self::Instance, event: &Event<'_>) -> Result<(), Failure>;
    /// See [`RootV1::freeze`].
    fn freeze(instance: &Self::Instance) -> Result<(), Failure>;
    /// See [`RootV1::thaw`].
    fn thaw(instance: &Self::Instance) -> Result<(), Failure>;
    /// See [`RootV1::stop`].
    fn stop(instance: &Self::Instance, reason: StopReason) -> Result<(), Failure>;
    /// See [`RootV1::export_state`].
    fn export_state(instance: &Self::Instance) -> Result<(Vec<u8>, Vec<RawFd>), Failure>;
    /// See [`RootV1::checkpoint`].
    fn checkpoint(instance: &Self::Instance) -> Result<Option<Vec<u8>>, Failure>;
    /// A further table, or null.
    fn extension(_id: &str, _version: u32) -> *const c_void {
        std::ptr::null()
    }
    /// Message, file and line of the panic that was just caught on this thread.
    fn panic_text() -> String;
}

/// The functions of the table for one plugin. Each converts, guards and calls; nothing else.
///
/// SAFETY of all of them: `instance` came out of `create` and was not destroyed; every `Bytes` and
/// `Sink` was lent by the server for the length of the call.
struct Shims<P>(std::marker::PhantomData<P>);

impl<P: PluginSide> Shims<P> {
    unsafe fn instance<'a>(instance: *mut c_void) -> &'a P::Instance {
        // SAFETY: see the type.
        unsafe { &*instance.cast::<P::Instance>() }
    }

    /// Puts the panic's text into the sink. The payload is forgotten: dropping it may panic again.
    #[cold]
    fn panicked(payload: Box<dyn std::any::Any + Send>, sink: Sink) -> Outcome {
        std::mem::forget(payload);
        // SAFETY: see the type.
        unsafe { Out::new(sink) }.put(P::panic_text().as_bytes());
        Outcome::failed(status::PANICKED)
    }

    fn guard(sink: Sink, f: impl FnOnce() -> Result<u64, Failure>) -> Outcome {
        match catch_unwind(AssertUnwindSafe(f)) {
            Ok(Ok(value)) => Outcome::done(value),
            Ok(Err(failure)) => {
                // SAFETY: see the type.
                unsafe { Out::new(sink) }.put(failure.text.as_bytes());
                Outcome::failed(failure.status)
            }
            Err(payload) => Self::panicked(payload, sink),
        }
    }

    extern "C" fn setup(host: Host, library: u64, sink: Sink) -> Outcome {
        Self::guard(sink, || P::setup(host, ServiceId(library)).map(|()| 0))
    }

    extern "C" fn info(sink: Sink) -> Outcome {
        Self::guard(sink, || {
            let info = P::info()?;
            // SAFETY: see the type.
            unsafe { Out::new(sink) }.put(&info);
            Ok(0)
        })
    }

    extern "C" fn create(id: u64, kind: Bytes, name: Bytes, settings: Bytes, sink: Sink) -> Outcome {
        Self::guard(sink, || {
            // SAFETY: see the type.
            let (kind, name, settings) = unsafe { (kind.get(), name.get(), settings.get()) };
            let (kind, name) = (String::from_utf8_lossy(kind), String::from_utf8_lossy(name));
            let instance = P::create(ServiceId(id), &kind, &name, settings)?;
            Ok(Box::into_raw(Box::new(instance)) as u64)
        })
    }

    extern "C" fn import_state(
        instance: *mut c_void,
        version: u32,
        state: Bytes,
        fds: *const i32,
        count: usize,
        sink: Sink,
    ) -> Outcome {
        Self::guard(sink, || {
            let fds = match count {
                0 => &[][..],
                // SAFETY: the server lends `count` descriptors for the length of the call.
                _ => unsafe { std::slice::from_raw_parts(fds, count) },
            };
            // SAFETY: see the type.
            unsafe { P::import_state(Self::instance(instance), version, state.get(), fds).map(|()| 0) }
        })
    }

    extern "C" fn init(instance: *mut c_void, sink: Sink) -> Outcome {
        // SAFETY: see the type.
        Self::guard(sink, || P::init(unsafe { Self::instance(instance) }).map(|()| 0))
    }

    extern "C" fn main(instance: *mut c_void, sink: Sink) -> Outcome {
        // SAFETY: see the type.
        Self::guard(sink, || P::main(unsafe { Self::instance(instance) }).map(|()| 0))
    }

    extern "C" fn call(
        instance: *mut c_void,
        context: &Context<'_>,
        method: Bytes,
        payload: Bytes,
        sink: Sink,
    ) -> Outcome {
        // SAFETY: see the type.
        let called = catch_unwind(AssertUnwindSafe(|| unsafe {
            let _current = current::enter(context);
            let mut reply = Out::new(sink);
            P::call(Self::instance(instance), context, method.get(), payload.get(), &mut reply)
        }));
        called.unwrap_or_else(|payload| Self::panicked(payload, sink))
    }

    extern "C" fn event(instance: *mut c_void, event: &EventV1, sink: Sink) -> Outcome {
        // SAFETY: see the type.
        Self::guard(sink, || unsafe {
            P::event(Self::instance(instance), &Event::from_v1(event)).map(|()| 0)
        })
    }

    extern "C" fn freeze(instance: *mut c_void, sink: Sink) -> Outcome {
        // SAFETY: see the type.
        Self::guard(sink, || P::freeze(unsafe { Self::instance(instance) }).map(|()| 0))
    }

    extern "C" fn thaw(instance: *mut c_void, sink: Sink) -> Outcome {
        // SAFETY: see the type.
        Self::guard(sink, || P::thaw(unsafe { Self::instance(instance) }).map(|()| 0))
    }

    extern "C" fn stop(instance: *mut c_void, reason: u32, sink: Sink) -> Outcome {
        Self::guard(sink, || {
            let reason = StopReason::from_number(reason).unwrap_or(StopReason::Disabled);
            // SAFETY: see the type.
            P::stop(unsafe { Self::instance(instance) }, reason).map(|()| 0)
        })
    }

    extern "C" fn export_state(instance: *mut c_void, sink: Sink, fd_sink: Sink) -> Outcome {
        Self::guard(sink, || {
            // SAFETY: see the type.
            let (state, fds) = P::export_state(unsafe { Self::instance(instance) })?;
            // SAFETY: see the type.
            let (out, fd_out) = unsafe { (Out::new(sink), Out::new(fd_sink)) };
            out.put(&state);
            fds.iter().for_each(|fd| fd_out.put(&fd.to_ne_bytes()));
            Ok(0)
        })
    }

    extern "C" fn checkpoint(instance: *mut c_void, sink: Sink) -> Outcome {
        Self::guard(sink, || {
            // SAFETY: see the type.
            let Some(state) = P::checkpoint(unsafe { Self::instance(instance) })? else { return Ok(0) };
            // SAFETY: see the type.
            unsafe { Out::new(sink) }.put(&state);
            Ok(1)
        })
    }

    extern "C" fn destroy(instance: *mut c_void) {
        let dropped = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: made by `Box::into_raw` in `create`; this is the last call for it.
            drop(unsafe { Box::from_raw(instance.cast::<P::Instance>()) });
        }));
        if let Err(payload) = dropped {
            std::mem::forget(payload);
        }
    }

    extern "C" fn extension(id: Bytes, version: u32) -> *const c_void {
        catch_unwind(|| {
            // SAFETY: see the type.
            P::extension(&String::from_utf8_lossy(unsafe { id.get() }), version)
        })
        .unwrap_or(std::ptr::null())
    }

    const TABLE: &'static WithMetadata<RootV1> = &WithMetadata::new(RootV1 {
        setup: Self::setup,
        info: Self::info,
        create: Self::create,
        import_state: Self::import_state,
        init: Self::init,
        main: Self::main,
        call: Self::call,
        event: Self::event,
        freeze: Self::freeze,
        thaw: Self::thaw,
        stop: Self::stop,
        export_state: Self::export_state,
        checkpoint: Self::checkpoint,
        destroy: Self::destroy,
        extension: Self::extension,
    });

    extern "C" fn root() -> RootModuleResult {
        __call_root_module_loader(table::<P>)
    }
}

/// The table of a plugin.
pub fn table<P: PluginSide>() -> RootV1Ref {
    RootV1Ref(Shims::<P>::TABLE.static_as_prefix())
}

/// The header that a library exports under [`ROOT_SYMBOL`](crate::ROOT_SYMBOL).
pub const fn header<P: PluginSide>() -> LibHeader {
    // SAFETY: `root` answers a `RootV1Ref`, the type named here.
    unsafe { LibHeader::from_constructor::<RootV1Ref>(Shims::<P>::root, CheckTypeLayout::Yes) }
}
