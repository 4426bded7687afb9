//! One connection, from its first byte to its last: head, then frames.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;
use zeph_edge::{Link, Outbox};
use zephserver_plugin::Error;
use zephserver_plugin::contract::peer::Peer as Facts;
use zephserver_plugin::contract::session::{Identity, User};

use crate::codec::{self, Decoder};
use crate::message;

/// A head must be complete within this time.
pub const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// The session has come to its end.
pub const SESSION_OVER: u16 = 4401;

/// What an edge keeps of a connection.
#[derive(Serialize, Deserialize)]
pub enum Peer {
    /// The head of its request is not complete yet.
    Head,
    /// On the path of the bare echo.
    Echo(Box<Echo>),
    /// Upgraded.
    Open(Box<Open>),
}

impl Peer {
    /// Bytes that it keeps of a message that is not whole.
    pub fn kept(&self) -> usize {
        match self {
            Self::Head => 0,
            Self::Echo(echo) => echo.decoder.kept(),
            Self::Open(open) => open.decoder.kept(),
        }
    }
}

/// A peer on the path of the bare echo.
#[derive(Default, Serialize, Deserialize)]
pub struct Echo {
    pub decoder: Decoder,
    #[serde(skip)]
    pub pinged: Option<Instant>,
}

/// A peer that has upgraded.
#[derive(Serialize, Deserialize)]
pub struct Open {
    pub decoder: Decoder,
    /// When it was sent a ping that nothing came after yet. Not carried: it is sent another one in time.
    #[serde(skip)]
    pub pinged: Option<Instant>,
    /// Seconds since 1970 at which it came.
    pub since: u64,
    /// The facts of its connection, as JSON.
    #[serde(with = "serde_bytes")]
    pub facts: Box<[u8]>,
    pub joined: Option<Joined>,
    /// Hash of the token that its identity rests on; 0: none.
    pub token: u64,
    /// Seconds since 1970 at which its session ends.
    pub expires: Option<u64>,
    /// Seconds since 1970 at which it was issued; None: nobody knows, or a build before did not say.
    #[serde(default)]
    pub issued: Option<u64>,
    /// Messages in a row that made no sense.
    pub bad: u32,
    /// Requests that wait for their answers.
    pub asked: u32,
}

/// Where a peer is, and who.
#[derive(Serialize, Deserialize)]
pub struct Joined {
    pub room: Box<str>,
    pub user: Option<User>,
    /// Since when: microseconds since 1970; 0: a build before did not say.
    #[serde(default)]
    pub since: u64,
}

impl Open {
    pub fn new(facts: &Facts) -> Self {
        // Texts and numbers: always JSON.
        let facts = serde_json::to_vec(facts).unwrap_or_default().into();
        let (decoder, since) = (Decoder::default(), since_1970().as_secs());
        let (pinged, joined, expires, issued) = (None, None, None, None);
        Self { decoder, pinged, since, facts, joined, token: 0, expires, issued, bad: 0, asked: 0 }
    }

    /// It has joined as this.
    pub fn join(&mut self, room: &str, identity: Option<Identity>, token: u64) {
        self.token = token;
        self.expires = identity.as_ref().and_then(|identity| identity.expires);
        self.issued = identity.as_ref().and_then(|identity| identity.issued);
        let user = identity.map(|identity| identity.user);
        let stays = |joined: &Joined| *joined.room == *room && joined.user == user;
        if !self.joined.as_ref().is_some_and(stays) {
            self.joined = Some(Joined { room: room.into(), user, since: since_1970().as_micros() as u64 });
        }
    }

    /// Who it is; None: nobody knows.
    pub fn user(&self) -> Option<&User> {
        self.joined.as_ref().and_then(|joined| joined.user.as_ref())
    }

    /// Seconds that it is here.
    pub fn seconds(&self) -> u64 {
        since_1970().as_secs().saturating_sub(self.since)
    }

    /// The time until its session ends; None: it does not.
    pub fn remaining(&self) -> Option<Duration> {
        self.expires.map(|expires| Duration::from_secs(expires).saturating_sub(since_1970()))
    }
}

/// The time since 1970.
pub fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Tells tokens apart without keeping them, by a keyed hash. The key goes along where peers are carried.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Tokens(u64, u64);

impl Default for Tokens {
    fn default() -> Self {
        let random = || RandomState::new().build_hasher().finish();
        Self(random(), random())
    }
}

impl Tokens {
    /// Never 0.
    pub fn hash(&self, token: &str) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.0, self.1);
        hasher.write(token.as_bytes());
        hasher.finish() | 1
    }
}

pub fn send_error(outbox: &Arc<Outbox>, error: &Error, name: Option<&str>, id: Option<&str>) {
    outbox.send(|buffer| message::write_error(buffer, error, name, id));
}

/// Sends a close frame and hears nothing more of the peer.
pub fn close(link: &mut Link<'_, Peer>, code: u16, reason: &str) {
    link.outbox.send_bytes(&codec::close_frame(code, reason));
    link.finish();
}
