//! Tests of plugins against the real server: real binaries, real libraries, a folder of its own for
//! each test, no fixed port, no sleep.
//!
//! ```no_run
//! use zephserver_testkit::TestServer;
//!
//! let server = TestServer::with(&["hello/Hello"]).settings("[hello]\ngreeting = \"Moin\"").start();
//! assert_eq!(server.call("hello", "greet/1", "\"Ann\"").unwrap(), "Moin, Ann!");
//! ```
//!
//! Binaries and libraries are taken from the folder where cargo put them (or from ZEPHSERVER_BIN): run
//! `cargo build --release --workspace` first. A test's folder is removed when the test is done, and
//! kept, with its name printed, when it fails.

mod build;
mod server;

pub use build::Build;
pub use server::{Command, Finished, TestServer, built, deadline};
pub use zeph_contract::{Code, Error};
