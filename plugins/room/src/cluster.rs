//! The room service and its like on other nodes: what it hears of them, and what it tells them.
//!
//! Only events end up here, and a service gets them one after the other: so what is told goes out in the order in
//! which it was made, though no lock is held while it does. Who joins and leaves never waits for another node.

use std::time::Instant;

use zephserver_plugin::contract::event::NodeChange;
use zephserver_plugin::contract::peer::Cid;
use zephserver_plugin::contract::presence::PRESENCE;
use zephserver_plugin::contract::room::{Address, Push, SEND};
use zephserver_plugin::{Code, Error, Result, tracing};

use crate::room::Room;
use crate::rooms::{Letter, Outcome, Rooms, To, Whereabouts};

impl Room {
    /// Asks to hear of other nodes.
    pub fn listen(&self) -> Result<()> {
        self.host.subscribe_members()?;
        self.host.subscribe_cluster(PRESENCE)?;
        self.host.subscribe_cluster(SEND)?;
        Ok(())
    }

    /// Something happened to another node.
    pub fn node(&self, name: &str, change: NodeChange) {
        self.exchange(|rooms, now| match change {
            NodeChange::Up | NodeChange::Gap => rooms.up(name, now),
            NodeChange::Down => rooms.down(name, now),
            // It will be told of a gap, and ask.
            NodeChange::Evicted => Outcome::default(),
        });
    }

    /// Another node says who is where there.
    pub fn presence(&self, payload: &[u8]) {
        match serde_json::from_slice(payload) {
            Ok(told) => self.exchange(|rooms, now| rooms.heard(told, now)),
            Err(error) => self.unreadable(PRESENCE, &error),
        }
    }

    /// Another node found a cid here. If the peer is gone meanwhile, nobody gets it.
    pub fn pushed(&self, payload: &[u8]) -> Result<()> {
        match Push::decode(payload) {
            Ok(push @ Push { address: Address::Cid(_), .. }) => self.send_here(&push).map(drop),
            Ok(_) => {
                self.unreadable(SEND, &"it is not for a cid");
                Ok(())
            }
            Err(error) => {
                self.unreadable(SEND, &error);
                Ok(())
            }
        }
    }

    /// Said once: a node that does so once does so always.
    fn unreadable(&self, event: &str, why: &dyn std::fmt::Display) {
        self.unreadable.get_or_init(|| tracing::warn!("{event} of another node cannot be read: {why}"));
    }

    /// Takes a push to a peer of another node there. None: it is one of this node, or nobody's.
    pub fn send_away(&self, cid: Cid, payload: &[u8]) -> Result<Option<u64>> {
        // The guard ends here: whoever tells may wait.
        let whereabouts = self.told().rooms.find(cid);
        match whereabouts {
            Whereabouts::Here => Ok(None),
            Whereabouts::Several(nodes) => Err(Error::refused(format!(
                "cid {cid} is that of several peers, on the nodes {}: address one by user or room",
                nodes.join(", ")
            ))),
            Whereabouts::Node(node) => match self.host.tell(&node, SEND, payload) {
                Ok(()) => Ok(Some(0)),
                // It went this very moment, and its peers with it.
                Err(error) if error.code == Code::NotFound => Ok(Some(0)),
                Err(error) => Err(error),
            },
        }
    }

    /// Changes what is known, tells other nodes what is to be told, then the peers here.
    pub fn exchange(&self, change: impl FnOnce(&mut Rooms, Instant) -> Outcome) {
        let letters = self.apply(change);
        // First: whoever else would have to do it comes from an edge.
        self.tell();
        for Letter { to, told } in letters {
            let Ok(payload) = serde_json::to_vec(&told) else { continue };
            let sent = match &to {
                To::All => self.host.say(PRESENCE, &payload).map(drop),
                To::Node(node) => self.host.tell(node, PRESENCE, &payload),
            };
            match (sent, to) {
                (Ok(()), _) => {}
                // The news of that is on its way; or it was lost, and this is it.
                (Err(error), To::Node(node)) if error.code == Code::NotFound => {
                    self.apply(|rooms, now| rooms.down(&node, now));
                }
                // They learn the version from the next message, and ask.
                (Err(error), _) => tracing::warn!("other nodes learn later who is where: {error}"),
            }
        }
        self.tell();
    }
}
