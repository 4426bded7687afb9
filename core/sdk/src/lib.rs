//! All that the author of a zephserver plugin imports.
//!
//! A plugin is a crate with `crate-type = ["cdylib"]`, one or more types that implement [`Service`],
//! and one [`export!`]:
//!
//! ```
//! use zephserver_plugin::{Call, Declare, Reply, Result, Service, Start, export};
//!
//! struct Hello {
//!     greeting: String,
//! }
//!
//! impl Service for Hello {
//!     fn declare(declare: Declare) -> Declare {
//!         declare.setting("greeting", "Hello", "the word before the name")
//!     }
//!
//!     fn new(start: Start) -> Result<Self> {
//!         Ok(Self { greeting: start.setting("greeting")? })
//!     }
//!
//!     fn call(&self, call: Call<'_>) -> Result<Reply> {
//!         match call.method() {
//!             "greet/1" => Reply::json(&format!("{}, {}!", self.greeting, call.json::<String>()?)),
//!             _ => call.unknown_method(),
//!         }
//!     }
//! }
//!
//! export!(Hello);
//! # fn main() {}
//! ```
//!
//! Reading order: [`Service`] is what you write, [`Start`] and [`Call`] is what you get, [`Host`] and
//! [`Handle`] are your way to the server and to other services, [`Task`] is for request handlers.
//! [`cluster`] is for services that know the same on all nodes.
//! Log with the [`tracing`] macros: the lines reach the server's log under your service's name.
//!
//! You need no guard against panics: every entry has one, the caller gets an error with file and line,
//! and the service begins anew. Threads of your own are yours: end them in [`Service::disable`].

#![forbid(unsafe_code)]

mod service;
mod start;

mod call;
pub mod cluster;
mod event;
mod host;
mod state;
mod stop;
mod task;

mod adapter;
mod failure;
mod log;
mod panic;
mod waiting;

#[cfg(feature = "tokio")]
mod async_main;

#[cfg(feature = "tokio")]
pub use async_main::async_main;
pub use call::{Call, Pending, Reply};
pub use event::Event;
pub use host::{Begun, Handle, Host, Listener, Stream};
pub use service::{Declare, Service};
pub use start::Start;
pub use state::{Imported, State};
pub use stop::Stop;
pub use task::{Request, Task};

pub use tracing;
pub use zeph_abi::{Access, Context, ReloadMode, RunMode, SettingType, StopReason};
pub use zeph_contract as contract;
pub use zeph_contract::{Code, Error};

/// What everything here answers.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[doc(hidden)]
pub mod private {
    pub use crate::adapter::{Adapter, Kind, Plugin, kind, task_kind};
    pub use crate::task::{TaskKind, task};
    pub use zeph_abi::export_root;
}

#[cfg(panic = "abort")]
compile_error!(
    "a plugin needs `panic = \"unwind\"`: with \"abort\" one panic would end the whole server. \
     Remove `panic = \"abort\"` from the profile in Cargo.toml"
);

/// Exports the services and tasks of a plugin. Once in each plugin, at the crate's root.
///
/// * `export!(Hello)` or `export!(Hello, World)`: services, named like their types.
/// * `export!(tasks: TaskEcho, ChatSay)`: tasks, run by a service named `Tasks`.
/// * `export!(Hello; tasks: TaskEcho)`: both.
#[macro_export]
macro_rules! export {
    ($($service:ident),+ $(,)?) => { $crate::export!(@ [$($service)+] []); };
    (tasks: $($task:ident),+ $(,)?) => { $crate::export!(@ [] [$($task)+]); };
    ($($service:ident),+ ; tasks: $($task:ident),+ $(,)?) => {
        $crate::export!(@ [$($service)+] [$($task)+]);
    };
    (@ [$($service:ident)*] [$($task:ident)*]) => {
        #[doc(hidden)]
        pub struct ZephserverPlugin;

        impl $crate::private::Plugin for ZephserverPlugin {
            const NAME: &'static str = env!("CARGO_CRATE_NAME");
            const VERSION: &'static str = env!("CARGO_PKG_VERSION");

            fn services() -> Vec<$crate::private::Kind> {
                vec![$($crate::private::kind::<$service>(stringify!($service))),*]
            }

            fn tasks() -> Vec<$crate::private::TaskKind> {
                vec![$($crate::private::task::<$task>(stringify!($task))),*]
            }
        }

        $crate::private::export_root!($crate::private::Adapter<ZephserverPlugin>);
    };
}
