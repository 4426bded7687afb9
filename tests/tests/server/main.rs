//! The whole server from outside: real binaries, real libraries, real sockets.
//!
//! Reading order: how it begins and ends, how it is talked to, how services call each other, what
//! happens when they fail, how they are replaced, the whole ring with clients, and with browsers.
#![allow(missing_docs)]

mod lifecycle;
mod settings;

mod commands;
mod control;

mod calls;
mod events;

mod supervision;

mod bad_builds;
mod reload;
mod rollback;

mod chat;
mod client;
mod drop_in;
mod hostile;
mod protocol;
mod ring;
mod sessions;

mod browser;
mod chromium;

mod django;

mod embedded;
mod house;
