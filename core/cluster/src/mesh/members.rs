//! Who is in the cluster: foca's SWIM with its timers, from datagrams in to datagrams out. Pure: what time it is
//! says the caller.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use foca::{Foca, Member, NoCustomBroadcast, Notification, PostcardCodec, Runtime, Timer};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::identity::Identity;
use super::waits::Waits;

/// What membership has found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Up(Identity),
    Down(Identity),
}

/// The members, as this node knows them.
pub struct Members {
    foca: Foca<Identity, PostcardCodec, SmallRng, NoCustomBroadcast>,
    effects: Effects,
}

/// What foca wants, until somebody collects it.
struct Effects {
    now: Instant,
    datagrams: Vec<(SocketAddr, Vec<u8>)>,
    seen: Vec<Seen>,
    /// Of those that took another's place, foca says later whether they live.
    renamed: Vec<(Identity, Identity)>,
    /// This node was taken for dead, and has another identity now.
    has_rejoined: bool,
    timers: BinaryHeap<Reverse<Due>>,
    /// Orders timers of the same time.
    count: u64,
}

struct Due {
    at: Instant,
    number: u64,
    timer: Timer<Identity>,
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

impl Runtime<Identity> for &mut Effects {
    fn notify(&mut self, notification: Notification<'_, Identity>) {
        match notification {
            Notification::MemberUp(member) => self.seen.push(Seen::Up(member.clone())),
            Notification::MemberDown(member) => self.seen.push(Seen::Down(member.clone())),
            Notification::Rename(before, member) => self.renamed.push((before.clone(), member.clone())),
            Notification::Rejoin(own) => {
                self.has_rejoined = true;
                tracing::info!("cluster: others took this node for dead; it is back (time {})", own.bump);
            }
            Notification::Active | Notification::Idle | Notification::Defunct => {}
        }
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        self.datagrams.push((to.address, data.to_vec()));
    }

    fn submit_after(&mut self, timer: Timer<Identity>, after: Duration) {
        self.count += 1;
        self.timers.push(Reverse(Due { at: self.now + after, number: self.count, timer }));
    }
}

impl Members {
    /// A node that knows nobody. `seed` decides whom it asks when.
    pub fn new(own: Identity, waits: &Waits, seed: u64, now: Instant) -> Self {
        let foca = Foca::new(own, waits.membership(), SmallRng::seed_from_u64(seed), PostcardCodec);
        let effects = Effects {
            now,
            datagrams: Vec::new(),
            seen: Vec::new(),
            renamed: Vec::new(),
            has_rejoined: false,
            timers: BinaryHeap::new(),
            count: 0,
        };
        Self { foca, effects }
    }

    /// Who this node is now: it comes back under another number after it was taken for dead.
    pub fn own(&self) -> &Identity {
        self.foca.identity()
    }

    fn with(
        &mut self,
        now: Instant,
        what: impl FnOnce(
            &mut Foca<Identity, PostcardCodec, SmallRng, NoCustomBroadcast>,
            &mut Effects,
        ) -> Result<(), foca::Error>,
    ) -> Result<(), foca::Error> {
        self.effects.now = now;
        let done = what(&mut self.foca, &mut self.effects);
        if std::mem::take(&mut self.effects.has_rejoined) {
            // Its timers have ended with the identity before. Where nobody sends anything any more it would ask
            // nobody, and hold the members for alive that it knew last.
            let _ = self.foca.apply_many(std::iter::empty(), false, &mut self.effects);
        }
        for (before, member) in std::mem::take(&mut self.effects.renamed) {
            if (&before.node, before.boot) != (&member.node, member.boot) {
                // Another node, or another life, at the same address.
                self.effects.seen.push(Seen::Down(before));
            }
            if self.is_active(&member) {
                self.effects.seen.push(Seen::Up(member));
            }
        }
        done
    }

    fn is_active(&self, identity: &Identity) -> bool {
        self.foca.iter_members().any(|member| member.id() == identity)
    }

    /// True where a member lives at an address.
    pub fn is_at(&self, address: SocketAddr) -> bool {
        self.foca.iter_members().any(|member| member.id().address == address)
    }

    /// A datagram came. An error: it makes no sense, and changed nothing.
    pub fn datagram(&mut self, bytes: &[u8], now: Instant) -> Result<(), foca::Error> {
        match self.with(now, |foca, effects| foca.handle_data(bytes, effects)) {
            // From the life before of this very node, most likely.
            Err(foca::Error::DataFromOurselves | foca::Error::IndirectForOurselves) => Ok(()),
            other => other,
        }
    }

    /// Asks whoever is at an address to take this node in.
    pub fn announce(&mut self, address: SocketAddr, now: Instant) {
        let _ = self.with(now, |foca, effects| foca.announce(Identity::at(address), effects));
    }

    /// A node has proven by itself that it lives.
    pub fn vouch(&mut self, member: Identity, now: Instant) {
        let alive = std::iter::once(Member::alive(member));
        let _ = self.with(now, |foca, effects| foca.apply_many(alive, true, effects));
    }

    /// A node has said itself that it goes.
    pub fn farewell(&mut self, member: Identity, now: Instant) {
        // Others are told by itself: what it still owes them is not cut off by somebody who has everything.
        let down = std::iter::once(Member::down(member));
        let _ = self.with(now, |foca, effects| foca.apply_many(down, false, effects));
    }

    /// This node goes.
    pub fn leave(&mut self, now: Instant) {
        let _ = self.with(now, |foca, effects| foca.leave_cluster(effects));
    }

    /// When there is something to do next.
    pub fn due(&self) -> Option<Instant> {
        self.effects.timers.peek().map(|Reverse(due)| due.at)
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        let mut due = Vec::new();
        while self.due().is_some_and(|at| at <= now)
            && let Some(Reverse(Due { timer, .. })) = self.effects.timers.pop()
        {
            due.push(timer);
        }
        // Late ones, after a pause of the whole process, come in the order that foca wants.
        due.sort();
        for timer in due {
            let done = self.with(now, |foca, effects| foca.handle_timer(timer, effects));
            if let Err(error) = done {
                tracing::debug!("cluster membership: {error}");
            }
        }
    }

    /// What is to be sent.
    pub fn datagrams(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        std::mem::take(&mut self.effects.datagrams)
    }

    /// What was found out.
    pub fn seen(&mut self) -> Vec<Seen> {
        std::mem::take(&mut self.effects.seen)
    }
}
