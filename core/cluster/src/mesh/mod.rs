//! A few dozen nodes that need nothing beside themselves: [`node`] decides, the driver has the sockets.

mod frame;
mod identity;
mod link;
mod log;
mod members;
mod node;
mod peer;
mod profile;

#[cfg(test)]
mod simulation;
