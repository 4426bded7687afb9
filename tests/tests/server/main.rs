//! The whole server from outside: real binaries, real libraries, real sockets.
//!
//! Reading order: how it begins and ends, how it is talked to, how services call each other, what
//! happens when they fail and how that is seen, how they are replaced, the whole ring with clients, and
//! with browsers.
#![allow(missing_docs)]

mod lifecycle;
mod settings;

mod commands;
mod control;

mod caller;
mod calls;
mod carry;
mod events;

mod history;
mod needs;
mod operation;
mod supervision;

mod apply;
mod bad_builds;
mod by_hand;
mod copies;
mod reload;
mod rollback;

mod cluster;
mod cluster_net;
mod cluster_rooms;
mod cluster_sessions;
mod cluster_talk;
mod nodes;

mod chat;
mod client;
mod crash;
mod drop_in;
mod hostile;
mod protocol;
mod ring;
mod sessions;
mod soak;
mod verbs;

mod browser;
mod chromium;

mod django;

mod embedded;
mod house;
