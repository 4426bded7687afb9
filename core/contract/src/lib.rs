//! What services say to one another. Plain data; nothing here knows a socket, a thread or the ABI.
//!
//! Reading order: [`code`] and [`event`] are shared by everybody, the server included; the others
//! follow a message on its way: [`peer`], [`session`], [`request`], [`room`]. Methods that are called
//! once for each message have a fixed header ([`wire`]), the others are JSON. A method's name ends with
//! the version of its payload; so does the name of an event that nodes tell one another ([`presence`] is
//! nothing but that). Lists that people ask for on the command line come in pages ([`page`]).

pub mod code;
pub mod event;
pub mod page;

pub mod peer;
pub mod presence;
pub mod request;
pub mod room;
pub mod session;
pub mod wire;

pub use code::{Code, Error};
