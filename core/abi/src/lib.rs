//! The boundary between zephserver and its plugins.
//!
//! A plugin is a dynamic library that exports one symbol, [`ROOT_SYMBOL`]: a header that leads to a
//! table of C functions, [`RootV1`]. The server gives every library a table of its own, [`HostV1`].
//! Nothing else crosses: no Rust trait object, no future, no allocator, no tokio, no tracing.
//!
//! # What may change, and how
//! * `RootV1` and `HostV1` are frozen. They never gain, lose or change a field, since `abi_stable`
//!   refuses a library whose table has fewer fields than its reader expects. The structs they pass by
//!   value or reference ([`Bytes`], [`Sink`], [`Outcome`], [`Context`], [`CallOptions`], [`EventV1`])
//!   are frozen with them.
//! * Growth goes through `extension(id, version)`, which both tables have: it answers a further table,
//!   or null where the other side does not know it.
//! * New kinds of events, reports and subscriptions are new numbers; a side that does not know a
//!   number answers [`status::UNSUPPORTED`] or ignores it, as its doc says.
//! * This crate stays at 1.0: `abi_stable` compares its version with that of the other side.
//!
//! # Who reads what
//! `server` implements [`HostSide`] and drives plugins through [`Library`], [`Instance`] and [`Gate`].
//! `sdk` implements [`PluginSide`] and talks through [`Host`]. Both sides are safe code: every `unsafe`
//! of the boundary is in this crate, in reading order below.

mod types;

mod current;
mod declaration;
mod host_table;
mod root_table;

mod gate;
mod instance;
mod library;
mod truth;

mod copies;
mod keys;
mod threads;

pub mod fd;

pub use copies::{Copies, Full, Held, Keys, copies};
pub use current::with as with_current;
pub use declaration::{
    Access, Declaration, Need, Readiness, ReloadMode, RunMode, ServiceDeclaration, SettingDeclaration,
    SettingType, TaskDeclaration, VerbDeclaration,
};
pub use gate::{Closed, Entry, Gate, Seat};
pub use host_table::{Host, HostSide, HostV1, HostV1Ref, table as host_table};
pub use instance::{Exported, Instance};
pub use library::{Library, OpenError};
pub use root_table::{PluginSide, RootV1, RootV1Ref, header as root_header, table as root_table};
pub use truth::monotonic;
pub use types::{
    Bytes, CallMode, CallOptions, CallRequest, Context, Event, EventKind, EventV1, Failure, Out, Outcome,
    Report, Scope, ServiceId, Sink, StopReason, status,
};

/// The symbol every plugin exports.
pub const ROOT_SYMBOL: &std::ffi::CStr = c"zephserver_plugin_root_v1";

#[doc(hidden)]
pub mod private {
    pub use abi_stable::library::LibHeader;
    pub use libc;

    pub use crate::keys::{Destructor, create as create_key, delete as delete_key};
    pub use crate::threads::{Start, create as create_thread};
}

/// Exports a [`PluginSide`] as this library's root. Used by the SDK's `export!`.
#[macro_export]
macro_rules! export_root {
    ($plugin:ty) => {
        #[doc(hidden)]
        #[allow(non_upper_case_globals, missing_docs)]
        #[unsafe(no_mangle)]
        pub static zephserver_plugin_root_v1: $crate::private::LibHeader = $crate::root_header::<$plugin>();
    };
}

/// Puts the counting of thread keys and threads before the C library's, so that one process can load more
/// copies of plugins than there are keys: see [`copies()`]. For the program that loads plugins, never for a
/// library. Its build script must also have the linker export `pthread_key_create`, `pthread_key_delete` and
/// `pthread_create`, with `--export-dynamic-symbol`. Elsewhere than on Linux with glibc it does nothing.
#[macro_export]
macro_rules! export_key_hook {
    () => {
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        #[doc(hidden)]
        #[allow(missing_docs)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn pthread_key_create(
            key: *mut $crate::private::libc::pthread_key_t,
            destructor: $crate::private::Destructor,
        ) -> $crate::private::libc::c_int {
            // SAFETY: passed on as it came.
            unsafe { $crate::private::create_key(key, destructor) }
        }

        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        #[doc(hidden)]
        #[allow(missing_docs)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn pthread_key_delete(
            key: $crate::private::libc::pthread_key_t,
        ) -> $crate::private::libc::c_int {
            // SAFETY: passed on as it came.
            unsafe { $crate::private::delete_key(key) }
        }

        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        #[doc(hidden)]
        #[allow(missing_docs)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn pthread_create(
            thread: *mut $crate::private::libc::pthread_t,
            attributes: *const $crate::private::libc::pthread_attr_t,
            start: $crate::private::Start,
            argument: *mut $crate::private::libc::c_void,
        ) -> $crate::private::libc::c_int {
            // SAFETY: passed on as it came.
            unsafe { $crate::private::create_thread(thread, attributes, start, argument) }
        }
    };
}
