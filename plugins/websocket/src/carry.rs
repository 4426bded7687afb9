//! The edge as one generation carries it to the next: version 1. The descriptors of the sockets go beside the
//! bytes, in the order of the connections. What came to it later may be absent, and builds that do not know it pass
//! over it: so one can go back to them.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsRawFd, OwnedFd};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use zeph_edge::{Carried, CarriedPeers, Cid, Loop, Peers};
use zephserver_plugin::contract::peer::Kick;
use zephserver_plugin::{Error, Imported, Result, State};

use crate::asked::{Asked, Questions};
use crate::crew::Part;
use crate::inbox::{Inbox, Letters, asker};
use crate::peer::{Peer, Tokens};
use crate::sockets::Sockets;

/// Version of what is carried.
pub const VERSION: u32 = 1;
const MIB: usize = 1024 * 1024;
/// Bytes of messages that are carried, of all loops.
const CARRIED: usize = 256 * MIB;

#[derive(Serialize, Deserialize)]
struct Whole {
    peers: CarriedPeers,
    tokens: Tokens,
    loops: Vec<ByteBuf>,
    #[serde(default)]
    kicks: Vec<Kick>,
    /// Other nodes that are up.
    #[serde(default)]
    up: BTreeSet<String>,
}

#[derive(Serialize)]
struct Leaving<'a> {
    connections: Vec<Carried<&'a Peer>>,
    questions: Under<'a>,
    letters: Letters,
}

/// [`Questions`], lent.
#[derive(Serialize)]
struct Under<'a> {
    asked: &'a HashMap<u64, Asked>,
    next_cookie: Option<u64>,
}

#[derive(Deserialize)]
struct Coming {
    connections: Vec<Carried<Peer>>,
    questions: Questions,
    letters: Letters,
}

/// What a loop takes over.
#[derive(Default)]
pub struct Inheritance {
    pub connections: Vec<(OwnedFd, Carried<Peer>)>,
    pub questions: Vec<Questions>,
    pub letters: Vec<Letters>,
}

/// What the loops of an edge take over, and what is common to them.
pub struct Estate {
    pub peers: Peers,
    pub tokens: Tokens,
    /// Those of the last minutes.
    pub kicks: Vec<Kick>,
    /// Other nodes that are up.
    pub up: BTreeSet<String>,
    /// One for each loop.
    pub loops: Vec<Inheritance>,
    /// Questions whose cookie names another loop than the one that has them: there were as many loops before.
    pub strays: HashMap<u64, usize>,
}

/// What one of so many loops leaves.
pub fn part(one: &mut Loop<Sockets>, inbox: &Inbox, loops: usize) -> Result<Part> {
    let weight = one.weight(Peer::kept);
    if weight > CARRIED / loops {
        // It is copied several times: for a moment, but for all slow peers at once.
        return Err(Error::busy(format!(
            "{} MiB wait for slow peers; a reload carries {} MiB at most: try again later, or lower `backlog`",
            weight * loops / MIB,
            CARRIED / MIB
        )));
    }
    let mut letters = inbox.letters();
    let (bytes, sockets) = one.carried(|connections, protocol| {
        let (asked, next_cookie) = protocol.dispatch.questions();
        // What open questions are to hear of is carried once for all of them.
        letters.revoked.extend(protocol.dispatch.revoked_lately());
        let questions = Under { asked, next_cookie: Some(next_cookie) };
        encode(&Leaving { connections, questions, letters })
    });
    Ok((bytes?, sockets.iter().map(AsRawFd::as_raw_fd).collect()))
}

/// All that an edge leaves.
pub fn whole(
    peers: &Peers,
    tokens: Tokens,
    (kicks, up): (Vec<Kick>, BTreeSet<String>),
    parts: Vec<Part>,
) -> Result<State> {
    let (loops, sockets): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    let loops = loops.into_iter().map(ByteBuf::from).collect();
    let mut state = State::bytes(encode(&Whole { peers: peers.carried(), tokens, loops, kicks, up })?);
    for socket in sockets.iter().flatten() {
        state.push_fd(socket);
    }
    Ok(state)
}

/// Takes over what an edge has left, for so many loops.
pub fn estate(state: Imported<'_>, loops: usize) -> Result<Estate> {
    let Whole { peers, tokens, loops: parts, kicks, up } = decode(state.bytes)?;
    let mut estate: Vec<Inheritance> = (0..loops).map(|_| Inheritance::default()).collect();
    let mut cids: Vec<Cid> = Vec::with_capacity(state.fds());
    let mut strays = HashMap::new();
    for (number, part) in parts.iter().enumerate() {
        let Coming { connections, questions, letters } = decode(part)?;
        // By number, as the answers to its questions find their loop.
        let heir = &mut estate[number % loops];
        for connection in connections {
            let socket = state.fd(cids.len()).map_err(|error| {
                // Says nothing of the new build: for a moment each connection has two descriptors.
                Error::busy(format!("socket {} of {}: {}", cids.len(), state.fds(), error.text))
            })?;
            cids.push(connection.cid());
            heir.connections.push((socket, connection));
        }
        let is_stray = |cookie: &u64| asker(*cookie) % loops != number % loops;
        strays.extend(questions.cookies().filter(is_stray).map(|cookie| (cookie, number % loops)));
        heir.questions.push(questions);
        heir.letters.push(letters);
    }
    if cids.len() != state.fds() {
        let text = format!("{} connections, but {} sockets were handed over", cids.len(), state.fds());
        return Err(Error::internal(text));
    }
    Ok(Estate { peers: Peers::restored(&peers, cids.into_iter()), tokens, kicks, up, loops: estate, strays })
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    rmp_serde::to_vec_named(value).map_err(|error| Error::internal(format!("state: {error}")))
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    rmp_serde::from_slice(bytes).map_err(|error| Error::invalid(format!("state of an edge: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What every build reads and writes.
    #[derive(Serialize, Deserialize)]
    struct First {
        peers: CarriedPeers,
        tokens: Tokens,
        loops: Vec<ByteBuf>,
    }

    #[test]
    fn what_came_later_may_be_absent_and_is_passed_over() {
        let (peers, tokens, loops) = (Peers::default().carried(), Tokens::default(), Vec::new());
        let first = encode(&First { peers, tokens, loops }).unwrap();
        let Whole { peers, tokens, loops, kicks, up } = decode(&first).unwrap();
        assert!(kicks.is_empty() && up.is_empty());
        let up = BTreeSet::from(["b".to_string()]);
        let whole = encode(&Whole { peers, tokens, loops, kicks, up: up.clone() }).unwrap();
        assert_eq!(decode::<Whole>(&whole).unwrap().up, up);
        assert!(decode::<First>(&whole).is_ok());
    }
}
