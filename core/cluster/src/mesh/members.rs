//! Who is in the cluster: foca's SWIM with its timers, from datagrams in to datagrams out. Pure: what time it is
//! says the caller.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use foca::{Codec, Foca, Member, NoCustomBroadcast, Notification, PostcardCodec, Runtime, Timer};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::identity::Identity;
use super::waits::Waits;

/// The log says the same at most so often.
const SELDOM: Duration = Duration::from_secs(10);

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
    /// How often this node had to come after another one that others remember.
    overtakes: Seldom,
}

/// Counts what may happen often, and is to be in the log every 10 s at most.
#[derive(Default)]
struct Seldom {
    count: u64,
    logged: Option<Instant>,
}

impl Seldom {
    /// Counts one. How many there were, where that is to be logged.
    fn count(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        let is_due = self.logged.is_none_or(|logged| now >= logged + SELDOM);
        is_due.then(|| {
            self.logged = Some(now);
            self.count
        })
    }
}

/// What foca wants, until somebody collects it.
struct Effects {
    now: Instant,
    datagrams: Vec<(SocketAddr, Vec<u8>)>,
    seen: Vec<Seen>,
    /// Of those that took another's place, foca says later whether they live.
    renamed: Vec<(Identity, Identity)>,
    /// This node has another identity now.
    has_rejoined: bool,
    /// How often others took it for dead.
    returns: Seldom,
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
            Notification::Rejoin(_) => {
                self.has_rejoined = true;
                if let Some(times) = self.returns.count(self.now) {
                    tracing::info!("cluster: others took this node for dead; it is back (time {times})");
                }
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
            returns: Seldom::default(),
            timers: BinaryHeap::new(),
            count: 0,
        };
        Self { foca, effects, overtakes: Seldom::default() }
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
            // Foca's timers have ended with the identity before. Where nobody sends anything any more it would ask
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

    /// True where a node is a member in this life.
    pub fn is_there(&self, node: &Identity) -> bool {
        self.foca.iter_members().map(Member::id).any(|id| id.boot == node.boot && id.node == node.node)
    }

    /// Another life of a node that is a member, the latest of them.
    pub fn other_life(&self, node: &Identity) -> Option<Identity> {
        let members = self.foca.iter_members().map(Member::id);
        let others = members.filter(|other| other.node == node.node && other.boot != node.boot);
        others.max_by_key(|other| (other.turn, other.boot)).cloned()
    }

    /// A datagram came. An error: it makes no sense, and changed nothing.
    pub fn datagram(&mut self, bytes: &[u8], now: Instant) -> Result<(), foca::Error> {
        let header: Result<foca::Header<Identity>, _> = PostcardCodec.decode_header(bytes);
        if let Ok(foca::Header { src, dst, .. }) = header {
            if dst.address == self.own().address && dst.is_after(self.own()) {
                self.overtake(&dst, now)?;
            }
            if let Some(later) = self.later_at(&src) {
                // Foca takes it for dead, and it cannot learn why. Asked for that later one, it comes after that.
                return self.with(now, |foca, effects| foca.announce(later, effects));
            }
        }
        match self.with(now, |foca, effects| foca.handle_data(bytes, effects)) {
            // From the life before of this very node, most likely.
            Err(foca::Error::DataFromOurselves | foca::Error::IndirectForOurselves) => Ok(()),
            other => other,
        }
    }

    /// Who is remembered at the address of a node, in another life that counts as the later one.
    fn later_at(&self, node: &Identity) -> Option<Identity> {
        let mut known = self.foca.iter_membership_state().map(Member::id);
        let there = known.find(|known| known.address == node.address)?;
        (there.boot != node.boot && there.is_after(node)).then(|| there.clone())
    }

    /// Others remember somebody at this node's address, and take this one for earlier: comes after that one.
    fn overtake(&mut self, other: &Identity, now: Instant) -> Result<(), foca::Error> {
        let own = self.own().come_after(other).ok_or(foca::Error::MalformedPacket)?;
        if let Some(times) = self.overtakes.count(now) {
            tracing::warn!(
                "cluster: others remember `{}` at {}, with a later start than that of this node: the clock went back \
                 since, or two servers share this address. Now this one counts as the later (time {times})",
                other.node,
                other.address
            );
        }
        self.with(now, |foca, effects| {
            effects.has_rejoined = true;
            foca.change_identity(own, effects)
        })
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    fn members(name: &str, port: u16, boot: u64, now: Instant) -> Members {
        Members::new(Identity::new(address(port), name, boot), &Waits::LAN, boot, now)
    }

    /// Brings datagrams at once until there are none. How many there were.
    fn exchange(all: &mut [&mut Members], now: Instant) -> usize {
        let mut count = 0;
        let mut under_way = VecDeque::new();
        loop {
            all.iter_mut().for_each(|members| under_way.extend(members.datagrams()));
            let Some((to, bytes)) = under_way.pop_front() else { return count };
            count += 1;
            assert!(count < 1000, "they answer one another for ever");
            for members in all.iter_mut().filter(|members| members.own().address == to) {
                members.datagram(&bytes, now).unwrap();
            }
        }
    }

    #[test]
    fn a_node_whose_clock_went_back_is_heard_at_once() {
        let start = Instant::now();
        for is_down_before in [false, true] {
            let mut now = start;
            let mut a = members("a", 1, 7, now);
            let mut before = members("b", 2, 1000, now);
            before.announce(address(1), now);
            exchange(&mut [&mut a, &mut before], now);
            assert_eq!(a.seen(), [Seen::Up(before.own().clone())]);
            assert_eq!(before.seen(), [Seen::Up(a.own().clone())]);
            if is_down_before {
                for _ in 0..20 {
                    now += Duration::from_secs(1);
                    a.tick(now);
                    a.datagrams();
                }
                assert_eq!(a.seen(), [Seen::Down(before.own().clone())]);
            }
            let mut b = members("b", 2, 500, now);
            b.announce(address(1), now);
            let count = exchange(&mut [&mut a, &mut b], now);
            assert!(count < 20, "{count} datagrams");
            assert!(b.own().is_after(before.own()) && b.own().boot == 500);
            let seen = a.seen();
            assert_eq!(seen.last(), Some(&Seen::Up(b.own().clone())), "{is_down_before}");
            assert!(seen.contains(&Seen::Down(before.own().clone())));
            assert!(b.seen().contains(&Seen::Up(a.own().clone())));
        }
    }

    #[test]
    fn somebody_with_the_last_number_there_is_does_no_harm() {
        let now = Instant::now();
        let mut a = members("a", 1, 7, now);
        let mut b = members("b", 2, u64::MAX, now);
        b.announce(address(1), now);
        exchange(&mut [&mut a, &mut b], now);
        let mut datagrams = Vec::new();
        let mut again = members("b", 2, 8, now);
        again.announce(address(1), now);
        datagrams.extend(again.datagrams());
        a.datagram(&datagrams[0].1, now).unwrap();
        let [(_, answer)] = &a.datagrams()[..] else { panic!() };
        assert!(again.datagram(answer, now).is_err(), "nobody comes after that");
        assert!(again.datagrams().is_empty(), "and nobody goes on about it");
    }

    #[test]
    fn what_happens_often_is_counted_and_logged_seldom() {
        let start = Instant::now();
        let mut seldom = Seldom::default();
        let logged: Vec<u64> =
            (0..25_000).filter_map(|ms| seldom.count(start + Duration::from_millis(ms))).collect();
        assert_eq!(logged, [1, 10_001, 20_001]);
    }
}
