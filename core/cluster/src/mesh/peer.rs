//! What this node keeps of another one. Pure.

use std::sync::Arc;
use std::time::Instant;

use super::identity::Identity;
use super::link::{Inlet, Outlet};
use super::log::Log;
use crate::status::{Incoming, Member, MemberState, Outgoing};

/// Another node, in one of its lives. It stays when the node is taken for dead: only another life ends it.
#[derive(Debug)]
pub struct Peer {
    pub name: Arc<str>,
    pub identity: Identity,
    /// None: it is up.
    pub down_since: Option<Instant>,
    /// It is down for so long that nothing is kept for it any more.
    pub is_given_up: bool,
    pub outlet: Outlet,
    /// None: it has never greeted.
    pub inlet: Option<Inlet>,
    /// When anything was heard of it over a connection.
    pub heard: Option<Instant>,
    /// The life before, until this one has greeted: that it began may be old news.
    pub before: Option<Box<Peer>>,
}

impl Peer {
    /// A node that was just seen; it is to have everything after `head`.
    pub fn new(identity: Identity, head: u64, now: Instant) -> Self {
        let name = identity.node.as_ref().into();
        let outlet = Outlet::new(head, now);
        Self {
            name,
            identity,
            down_since: None,
            is_given_up: false,
            outlet,
            inlet: None,
            heard: None,
            before: None,
        }
    }

    pub fn is_up(&self) -> bool {
        self.down_since.is_none()
    }

    /// True for another life than the known ones, at another address. At one address membership knows who came last.
    pub fn is_another(&self, life: &Identity) -> bool {
        let is_known = |peer: &Self| peer.identity.boot == life.boot;
        let is_known = is_known(self) || self.before.as_deref().is_some_and(is_known);
        !is_known && self.identity.address != life.address
    }

    /// Up to where it has everything; what it lacks is kept for it, while there is room. None: nothing is.
    pub fn holds_log(&self) -> Option<u64> {
        let before = self.before.as_ref().map(|before| before.outlet.acked());
        before.into_iter().chain((!self.is_given_up).then(|| self.outlet.acked())).min()
    }

    /// True where `say` waits for room until it has taken what it lacks.
    pub fn holds_say(&self) -> bool {
        self.is_up() && !self.outlet.is_evicted
    }

    /// As people see it.
    pub fn member(&self, log: &Log, now: Instant) -> Member {
        let outlet = &self.outlet;
        let incoming = self.inlet.as_ref().map(|inlet| Incoming {
            last: inlet.last(),
            events: inlet.events,
            gaps: inlet.gaps,
            duplicates: inlet.duplicates,
        });
        Member {
            node: self.name.to_string(),
            address: Some(self.identity.address.to_string()),
            state: if self.is_up() { MemberState::Up } else { MemberState::Down },
            heard_ms: self.heard.map(|heard| now.saturating_duration_since(heard).as_millis() as u64),
            outgoing: Outgoing {
                acked: outlet.acked(),
                backlog: log.last() - outlet.acked(),
                gaps: outlet.gaps,
                evictions: outlet.evictions,
                connections: outlet.connections,
            },
            incoming: incoming.unwrap_or_default(),
        }
    }
}
