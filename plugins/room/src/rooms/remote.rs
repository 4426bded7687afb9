//! Who is where on other nodes, as they have told it. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use zephserver_plugin::contract::peer::Cid;
use zephserver_plugin::contract::presence::{Member, Version};
use zephserver_plugin::contract::session::User;

/// Nodes that are listened to at most: far more than a cluster has.
const NODES: usize = 1024;
/// Members that one node may tell of at most: so many connections an edge has room for.
const MEMBERS: usize = 1_048_576;

/// The order of a list on every node: when they came, then where, then their numbers.
pub type Place = (u64, Arc<str>, Cid);

/// The nodes that are up, with their members.
#[derive(Debug, Default)]
pub struct Remote {
    nodes: BTreeMap<Arc<str>, Node>,
    /// By room those who have a name.
    named: HashMap<Arc<str>, BTreeMap<Place, Arc<User>>>,
}

/// What one node has told.
#[derive(Debug, Default)]
pub struct Node {
    /// How far its changes are known. None: not at all, or some were lost; then its members are as they were, until
    /// it has told the whole.
    pub known: Option<Version>,
    /// When it said something last; None: that counts from the next look on.
    pub heard_at: Option<Instant>,
    /// The whole, as far as it has come.
    pub coming: Option<Coming>,
    /// A cid of it is also that of a peer elsewhere, which was said.
    pub has_collided: bool,
    members: HashMap<Cid, Away>,
}

/// The parts of a whole that have come.
#[derive(Debug)]
pub struct Coming {
    version: Version,
    parts: u32,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Away {
    since: u64,
    room: Arc<str>,
    user: Option<Arc<User>>,
}

/// Somebody with a name came or went.
#[derive(Debug)]
pub struct Move {
    pub room: Arc<str>,
    pub user: Arc<User>,
    pub way: Way,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Joined,
    Left,
}

impl Node {
    /// True for one that may tell of nobody more.
    pub fn is_full(&self) -> bool {
        self.members.len() >= MEMBERS
    }

    /// Takes a part of a whole. Some: it is complete. A part that does not follow on the one before is of no use:
    /// then it is asked for once more.
    pub fn take(
        &mut self,
        version: Version,
        (part, last): (u32, bool),
        members: Vec<Member>,
    ) -> Option<Vec<Member>> {
        if part == 0 {
            self.coming = Some(Coming { version, parts: 0, members: Vec::new() });
        }
        let follows = |coming: &Coming| {
            let count = coming.members.len().saturating_add(members.len());
            coming.version == version && coming.parts == part && count <= MEMBERS
        };
        let mut coming = self.coming.take().filter(follows)?;
        coming.parts += 1;
        coming.members.extend(members);
        if last {
            return Some(coming.members);
        }
        self.coming = Some(coming);
        None
    }
}

impl Remote {
    /// What a node has told; a new node has told nothing. None: there are too many nodes.
    pub fn node(&mut self, name: &str) -> Option<(Arc<str>, &mut Node)> {
        let known = self.nodes.get_key_value(name).map(|(known, _)| known.clone());
        if known.is_none() && self.nodes.len() >= NODES {
            return None;
        }
        let name: Arc<str> = known.unwrap_or_else(|| name.into());
        Some((name.clone(), self.nodes.entry(name).or_default()))
    }

    /// Every node.
    pub fn nodes(&self) -> impl Iterator<Item = (&Arc<str>, &Node)> {
        self.nodes.iter()
    }

    /// Who has said nothing for so long: how far its changes are known, and whether it has members.
    pub fn silent(&mut self, limit: Duration, now: Instant) -> Vec<(Arc<str>, Option<Version>, bool)> {
        let silent = self.nodes.iter_mut().filter_map(|(name, node)| {
            let since = *node.heard_at.get_or_insert(now);
            let is_silent = now.saturating_duration_since(since) >= limit;
            is_silent.then(|| (name.clone(), node.known, !node.members.is_empty()))
        });
        silent.collect()
    }

    /// True where no other node is up.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Members of a node.
    pub fn members(&self, node: &str) -> impl Iterator<Item = Member> {
        let members = self.nodes.get(node).into_iter().flat_map(|node| &node.members);
        members.map(|(cid, away)| Member {
            cid: *cid,
            since: away.since,
            room: away.room.to_string(),
            user: away.user.as_deref().cloned(),
        })
    }

    /// The nodes that have a cid.
    pub fn with(&self, cid: Cid) -> impl Iterator<Item = &Arc<str>> {
        self.nodes.iter().filter(move |(_, node)| node.members.contains_key(&cid)).map(|(name, _)| name)
    }

    /// Who has a name in a room, in the order of the list.
    pub fn named(&self, room: &str) -> impl Iterator<Item = (&Place, &Arc<User>)> {
        self.named.get(room).into_iter().flatten()
    }

    /// How many they are.
    pub fn count(&self, room: &str) -> usize {
        self.named.get(room).map_or(0, BTreeMap::len)
    }

    /// A member of a node is in a room.
    pub fn join(&mut self, node: &Arc<str>, member: Member, moves: &mut Vec<Move>) {
        let Member { cid, since, room, user } = member;
        let before = self.nodes.get(node).and_then(|node| node.members.get(&cid));
        let stays = before.is_some_and(|away| *away.room == *room && away.user.as_deref() == user.as_ref());
        let mut told = Vec::new();
        self.leave(node, cid, &mut told);
        let room: Arc<str> = match self.named.get_key_value(room.as_str()) {
            Some((known, _)) => known.clone(),
            None => room.into(),
        };
        let user = user.map(Arc::new);
        if let Some(user) = &user {
            let place = (since, node.clone(), cid);
            self.named.entry(room.clone()).or_default().insert(place, user.clone());
            told.push(Move { room: room.clone(), user: user.clone(), way: Way::Joined });
        }
        if let Some(node) = self.nodes.get_mut(node) {
            node.members.insert(cid, Away { since, room, user });
        }
        // Nobody hears of one who only has another place in the list.
        moves.extend(told.into_iter().filter(|_| !stays));
    }

    /// A member of a node is gone.
    pub fn leave(&mut self, node: &Arc<str>, cid: Cid, moves: &mut Vec<Move>) {
        let away = self.nodes.get_mut(node).and_then(|node| node.members.remove(&cid));
        moves.extend(away.and_then(|away| self.leave_list(node, cid, away)));
    }

    /// A node has these members, and no others.
    pub fn replace(&mut self, node: &Arc<str>, members: Vec<Member>, moves: &mut Vec<Move>) {
        let stay: std::collections::HashSet<Cid> = members.iter().map(|member| member.cid).collect();
        let known = self.nodes.get(node).into_iter().flat_map(|node| node.members.keys().copied());
        let gone: Vec<Cid> = known.filter(|cid| !stay.contains(cid)).collect();
        gone.into_iter().for_each(|cid| self.leave(node, cid, moves));
        members.into_iter().for_each(|member| self.join(node, member, moves));
    }

    /// A node is gone, and all its members with it.
    pub fn lose(&mut self, name: &str) -> Vec<Move> {
        let Some((name, node)) = self.nodes.remove_entry(name) else { return Vec::new() };
        let gone = node.members.into_iter();
        gone.filter_map(|(cid, away)| self.leave_list(&name, cid, away)).collect()
    }

    fn leave_list(&mut self, node: &Arc<str>, cid: Cid, away: Away) -> Option<Move> {
        let Away { since, room, user } = away;
        let user = user?;
        let named = self.named.get_mut(&room)?;
        named.remove(&(since, node.clone(), cid));
        if named.is_empty() {
            self.named.remove(&room);
        }
        Some(Move { room, user, way: Way::Left })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(cid: Cid, since: u64, room: &str, name: Option<&str>) -> Member {
        let user = name.map(|name| User { id: format!("id-{name}"), username: name.into() });
        Member { cid, since, room: room.into(), user }
    }

    fn remote(name: &str) -> (Remote, Arc<str>) {
        let mut remote = Remote::default();
        let name = remote.node(name).unwrap().0;
        (remote, name)
    }

    fn listed(remote: &Remote, room: &str) -> Vec<String> {
        remote.named(room).map(|(_, user)| user.username.clone()).collect()
    }

    fn told(moves: &[Move]) -> Vec<(&str, &str, Way)> {
        moves.iter().map(|one| (&*one.room, one.user.username.as_str(), one.way)).collect()
    }

    #[test]
    fn the_list_is_in_the_order_in_which_they_came() {
        let (mut remote, b) = remote("b");
        let a = remote.node("a").unwrap().0;
        let mut moves = Vec::new();
        for (node, cid, since, name) in
            [(&b, 1, 5, "B5"), (&a, 9, 5, "A5"), (&a, 2, 7, "A7"), (&b, 3, 1, "B1")]
        {
            remote.join(node, member(cid, since, "r", Some(name)), &mut moves);
        }
        remote.join(&a, member(4, 0, "r", None), &mut moves);
        assert_eq!(listed(&remote, "r"), ["B1", "A5", "B5", "A7"]);
        assert_eq!((moves.len(), remote.count("r")), (4, 4), "who has no name is not listed");
        assert_eq!(remote.with(4).collect::<Vec<_>>(), [&a]);
    }

    #[test]
    fn who_moves_leaves_and_joins_and_who_stays_does_neither() {
        let (mut remote, a) = remote("a");
        let mut moves = Vec::new();
        remote.join(&a, member(1, 1, "r", Some("Ann")), &mut moves);
        remote.join(&a, member(1, 2, "s", Some("Ann")), &mut moves);
        let (joined, left) = (Way::Joined, Way::Left);
        assert_eq!(told(&moves), [("r", "Ann", joined), ("r", "Ann", left), ("s", "Ann", joined)]);
        moves.clear();
        remote.join(&a, member(1, 9, "s", Some("Ann")), &mut moves);
        assert!(moves.is_empty() && remote.named("s").all(|(place, _)| place.0 == 9), "another place only");
        remote.join(&a, member(1, 9, "s", Some("Bob")), &mut moves);
        assert_eq!(told(&moves), [("s", "Ann", left), ("s", "Bob", joined)]);
        moves.clear();
        remote.leave(&a, 1, &mut moves);
        remote.leave(&a, 1, &mut moves);
        assert_eq!(told(&moves), [("s", "Bob", left)]);
        assert!(remote.named.is_empty());
    }

    #[test]
    fn a_whole_makes_the_difference_known() {
        let (mut remote, a) = remote("a");
        let mut moves = Vec::new();
        for (cid, name) in [(1, "Ann"), (2, "Bob")] {
            remote.join(&a, member(cid, 1, "r", Some(name)), &mut moves);
        }
        moves.clear();
        remote.replace(&a, vec![member(2, 1, "r", Some("Bob")), member(3, 2, "r", Some("Cid"))], &mut moves);
        assert_eq!(told(&moves), [("r", "Ann", Way::Left), ("r", "Cid", Way::Joined)]);
        assert_eq!(told(&remote.lose("a")).len(), 2);
        assert!(remote.is_empty() && remote.named.is_empty() && remote.lose("a").is_empty());
    }

    #[test]
    fn parts_are_taken_in_their_order_only() {
        let mut node = Node::default();
        let version = Version { life: 1, number: 1 };
        let part = |cid| vec![member(cid, 1, "r", None)];
        assert_eq!(node.take(version, (1, false), part(1)), None);
        assert!(node.coming.is_none(), "the first one was lost");
        assert_eq!(node.take(version, (0, false), part(1)), None);
        assert_eq!(node.take(version, (2, true), part(3)), None);
        assert!(node.coming.is_none(), "the second one was lost");
        assert_eq!(node.take(version, (0, false), part(1)), None);
        assert_eq!(node.take(Version { life: 1, number: 2 }, (1, true), part(2)), None, "of another whole");
        assert_eq!(node.take(version, (0, false), part(7)), None);
        assert_eq!(node.take(version, (0, false), part(1)), None, "it begins anew");
        assert_eq!(node.take(version, (1, true), part(2)), Some([part(1), part(2)].concat()));
        assert_eq!(node.take(version, (0, true), Vec::new()), Some(Vec::new()));
    }

    #[test]
    fn nodes_are_bounded() {
        let mut remote = Remote::default();
        for name in 0..NODES {
            assert!(remote.node(&name.to_string()).is_some());
        }
        assert!(remote.node("one more").is_none() && remote.node("0").is_some());
    }
}
