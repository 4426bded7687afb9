//! Where peers are. Knows rooms, users and cids; sends encoded frames to the edges that have the peers.

mod access;
mod cluster;
mod room;
mod rooms;

use room::Room;
use zephserver_plugin::export;

export!(Room);
