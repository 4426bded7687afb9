//! Where a cid is, in the whole cluster. Pure.

use std::sync::Arc;

use zephserver_plugin::contract::peer::Cid;

use super::Rooms;

/// Where a cid is.
#[derive(Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// Here, or nowhere.
    Here,
    /// On another node.
    Node(String),
    /// On these nodes: different peers.
    Several(Vec<String>),
}

impl Rooms {
    /// Where a cid is. Two nodes may have given the same to different peers.
    pub fn find(&self, cid: Cid) -> Whereabouts {
        let here = self.members.contains_key(&cid).then_some(&*self.cluster.node);
        let mut nodes: Vec<String> =
            self.remote.with(cid).map(|node| &**node).chain(here).map(String::from).collect();
        match (nodes.len(), here) {
            (0, _) | (1, Some(_)) => Whereabouts::Here,
            (1, None) => Whereabouts::Node(nodes.remove(0)),
            _ => Whereabouts::Several(nodes),
        }
    }

    /// Says once for each node that a cid of it is also that of a peer elsewhere. `told` has just told of it; None:
    /// it is a peer of this node that came.
    pub(super) fn note_collision(&mut self, cid: u64, told: Option<&Arc<str>>) {
        if self.remote.is_empty() {
            return;
        }
        let mut nodes: Vec<_> = self.remote.with(cid).chain(told).cloned().collect();
        nodes.sort_unstable();
        nodes.dedup();
        let is_here = told.is_none() || self.members.contains_key(&cid);
        if nodes.len() + usize::from(is_here) < 2 {
            return;
        }
        let mut is_new = false;
        for name in &nodes {
            if let Some((_, node)) = self.remote.node(name) {
                is_new |= !std::mem::replace(&mut node.has_collided, true);
            }
        }
        if is_new {
            let here = is_here.then_some(&*self.cluster.node);
            let names: Vec<&str> = nodes.iter().map(|name| &**name).chain(here).collect();
            self.remark(format!(
                "cid {cid} is that of several peers, on the nodes {}: what is sent to it is refused, until the edge \
                 of one of them is restarted",
                names.join(", ")
            ));
        }
    }
}
