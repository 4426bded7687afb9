//! A plugin-based service manager with hot reload.
//!
//! The server takes a lock, opens the libraries of SERVICE_LIST, starts their services, brings the
//! dead back to life, answers on a Unix socket, and carries events to other nodes. It knows no plugin
//! by name, no socket of a client, and no room.
//!
//! ```no_run
//! let settings = zephserver::Settings::read(std::path::Path::new("settings.toml"))?;
//! let server = zephserver::start_server(settings)?;
//! println!("ready");
//! let ended = server.command_stop();
//! # Ok::<(), zephserver::Error>(())
//! ```
//!
//! Reading order: `server` is the life of the whole; [`settings`] and `inventory` say what is to
//! live; `manager` owns what lives and asks `supervisor` what to do; `loader` and `reload` bring
//! in code, `copies` and `pins` keep what was there before; `history` keeps what happened; `bus` carries
//! calls and events, with `registry`, `pending`, `pool`, `clock`, `mailbox`, `subscriptions` and `frames` as
//! its parts; `host` is the plugins' way in, `control` the operator's, `http` that of monitoring.

#![forbid(unsafe_code)]

pub mod error;
pub mod phase;
mod server;
pub mod settings;

mod history;
mod inventory;
mod lock;
mod log_file;
mod logging;

mod life;
mod manager;
mod messages;
mod supervisor;

mod copies;
mod loader;
mod pins;
mod reload;
mod watch;

mod bus;
mod clock;
mod frames;
mod mailbox;
mod pending;
mod pool;
mod registry;
mod subscriptions;

mod cluster;
mod control;
mod host;
mod http;
mod listener;
mod metrics;

pub mod client;

pub use error::{Error, exit};
pub use log_file::{MOST_LOG_FILES, rotated_log};
pub use logging::reopen as reopen_log;
pub use phase::Phase;
pub use server::{Ended, Server, check, start_server};
pub use settings::Settings;
