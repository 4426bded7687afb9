//! The room service: what it is told and asked, and how it tells.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use zephserver_plugin::contract::event::{Change, SERVICE_CHANGED, ServiceChanged};
use zephserver_plugin::contract::page::Words;
use zephserver_plugin::contract::peer::{Cid, Delivery, SEND as EDGE_SEND};
use zephserver_plugin::contract::presence::PRESENCE;
use zephserver_plugin::contract::room::{Address, JOIN, Join, LEAVE, Leave, Letter, Push, SEND};
use zephserver_plugin::contract::wire::Reader;
use zephserver_plugin::{
    Call, Declare, Error, Event, Handle, Host, Imported, Reply, Result, Service, Start, State, tracing,
};

use crate::access::Access;
use crate::rooms::{LONGEST_NAME, Letter as ToNodes, Notice, Outcome, RoomList, Rooms};

/// Notices that wait to be told, and how long a further one waits for its place.
const OUTGOING: usize = 1024;
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// A timer that is so late will not come.
const OVERDUE: Duration = Duration::from_secs(1);

pub struct Room {
    pub host: Host,
    access: Access,
    /// It began with what another build left.
    inherited: AtomicBool,
    /// Something of another node that cannot be read was mentioned.
    pub unreadable: OnceLock<()>,
    told: Mutex<Told>,
    /// There is room for notices again.
    progress: Condvar,
    edges: Mutex<HashMap<String, Handle>>,
}

/// Who is where, and what is not told yet. Under one lock, so that notices go out in the order of what
/// they tell.
#[derive(Default)]
pub struct Told {
    pub rooms: Rooms,
    outgoing: VecDeque<Notice>,
    /// A thread is at it, and takes what comes meanwhile with it.
    is_telling: bool,
    /// The timer for the next list, and when that is.
    timer: Option<(u64, Instant)>,
}

impl Service for Room {
    fn declare(declare: Declare) -> Declare {
        declare
            .setting(
                "access",
                serde_json::json!({}),
                "room, or its beginning and `*` → \"anyone\", \"authenticated\", \"nobody\" or user ids",
            )
            .verb("rooms", "rooms/1", "[NAME] [--limit N] [--offset N] this node's rooms, or who is in one")
            .state(1)
    }

    fn new(start: Start) -> Result<Self> {
        let access = Access::new(start.setting("access")?)?;
        let host = start.host();
        let rooms = Rooms::new(host.node()?, new_life());
        Ok(Self {
            host,
            access,
            inherited: AtomicBool::new(false),
            unreadable: OnceLock::new(),
            told: Mutex::new(Told { rooms, ..Told::default() }),
            progress: Condvar::new(),
            edges: Mutex::default(),
        })
    }

    fn call(&self, call: Call<'_>) -> Result<Reply> {
        match call.method() {
            SEND => {
                let reached = self.send(&Push::decode(call.payload())?, call.payload())?;
                call.reply(&reached.to_le_bytes())
            }
            JOIN => {
                let mut join: Join = call.json()?;
                if join.room.is_empty() || join.room.len() > LONGEST_NAME {
                    return Err(Error::invalid(format!("a room's name has 1 to {LONGEST_NAME} bytes")));
                }
                if !join.again {
                    self.access.check(&join.room, join.user.as_ref())?;
                }
                let now = micros();
                join.since = join.since.filter(|_| join.again).map(|since| since.min(now)).or(Some(now));
                self.change(|rooms, now| rooms.join(join, now));
                Reply::empty()
            }
            LEAVE => {
                let leave: Leave = call.json()?;
                self.change(|rooms, now| rooms.leave(leave.cid, now));
                Reply::empty()
            }
            "rooms/1" => self.list(Words::read(call.json()?)?),
            "send_to_room/1" => self.send_letter(&call, |address| matches!(address, Address::Room(_))),
            "send_to_users/1" => self.send_letter(&call, |address| matches!(address, Address::Users(_))),
            "send_to_all/1" => self.send_letter(&call, |address| matches!(address, Address::All)),
            "send_to_cid/1" => self.send_letter(&call, |address| matches!(address, Address::Cid(_))),
            _ => call.unknown_method(),
        }
    }

    fn init(&self) -> Result<()> {
        self.host.subscribe(SERVICE_CHANGED)?;
        self.listen()?;
        // The first one of a server has no edge with peers; nor does one forget them that was handed them.
        let has_forgotten = self.host.instance() > 1 && !self.inherited.load(Ordering::Relaxed);
        self.change(|rooms, now| {
            if has_forgotten {
                rooms.settle(now);
            }
            // And what the build before owed is due.
            Vec::new()
        });
        Ok(())
    }

    fn event(&self, event: Event<'_>) -> Result<()> {
        match event {
            Event::Published { name: SERVICE_CHANGED, payload } => {
                self.service_changed(&serde_json::from_slice(payload)?);
            }
            // One of a generation before, or one that came late, is not this one's: each would make another.
            Event::Timer { token } => {
                let mut told = self.told();
                if told.timer.is_some_and(|(own, _)| own == token) {
                    told.timer = None;
                    drop(told);
                    self.exchange(Rooms::due);
                }
            }
            Event::Node { name, change } => self.node(name, change),
            Event::Said { name: PRESENCE, payload } => self.presence(payload),
            Event::Said { name: SEND, payload } => self.pushed(payload)?,
            _ => {}
        }
        Ok(())
    }

    fn export_state(&self) -> Result<State> {
        State::json(&self.told().rooms.snapshot(Instant::now()))
    }

    fn import_state(&self, state: Imported<'_>) -> Result<()> {
        self.told().rooms.restore(state.json()?, Instant::now());
        self.inherited.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Room {
    pub fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn service_changed(&self, changed: &ServiceChanged) {
        let ServiceChanged { service, instance, change, .. } = changed;
        let is_this = *service == self.host.name() && *instance == self.host.instance();
        match change {
            // An edge that went down has lost its peers.
            Change::Down => self.change(|rooms, now| rooms.lose_edge(service, *instance, now)),
            // The one before had ended when this one began: its build was taken back, and this is the state from
            // before that. A state that passes straight on, with nothing missed, is told as `Reloaded`.
            Change::Ready if is_this && self.inherited.load(Ordering::Relaxed) => {
                tracing::info!("its state is of some time ago: the edges are to tell who is here");
                self.change(|rooms, now| {
                    rooms.doubt(new_life(), now);
                    Vec::new()
                });
            }
            Change::Ready | Change::Reloaded => {}
        }
    }

    fn edge(&self, path: &str) -> Handle {
        let mut edges = self.edges.lock().unwrap_or_else(PoisonError::into_inner);
        match edges.get(path) {
            Some(edge) => edge.clone(),
            None => edges.entry(path.into()).or_insert(self.host.service(path)).clone(),
        }
    }

    /// Changes who is where, and tells the members. What other nodes are to be told is due then, and goes out with
    /// the timer: it is nothing that a caller waits for.
    fn change(&self, change: impl FnOnce(&mut Rooms, Instant) -> Vec<Notice>) {
        self.apply(|rooms, now| change(rooms, now).into());
        self.tell();
    }

    /// Changes who is where; answers what other nodes are to be told. What the members are told waits for
    /// [`Room::tell`].
    pub fn apply(&self, change: impl FnOnce(&mut Rooms, Instant) -> Outcome) -> Vec<ToNodes> {
        let mut told = self.told();
        if told.outgoing.len() >= OUTGOING {
            // Whoever tells is behind: who makes notices waits for it, not the memory.
            let is_behind = |told: &mut Told| told.outgoing.len() >= OUTGOING && told.is_telling;
            let waited = self.progress.wait_timeout_while(told, LONGEST_WAIT, is_behind);
            told = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let now = Instant::now();
        let Outcome { notices, letters } = change(&mut told.rooms, now);
        told.outgoing.extend(notices);
        self.arm(&mut told, now);
        told.rooms.remarks().iter().for_each(|remark| tracing::warn!("{remark}"));
        letters
    }

    /// A timer for what is due next: a list that is late, or what other nodes are to be told.
    fn arm(&self, told: &mut Told, now: Instant) {
        let Some(at) = told.rooms.next_due() else { return };
        // One that is long overdue was lost.
        if told.timer.is_some_and(|(_, due)| due <= at && due + OVERDUE > now) {
            return;
        }
        match self.host.after(at.saturating_duration_since(now)) {
            Ok(token) => {
                if let Some((before, _)) = told.timer.replace((token, at.max(now))) {
                    // Due already, perhaps: then it finds nothing to do.
                    let _ = self.host.cancel(before);
                }
            }
            Err(error) => tracing::warn!("lists of users will be late: {error}"),
        }
    }

    /// Delivers notices in their order until there are none, unless another thread is at it. An edge that cannot
    /// take one tells of its peers again when it is back.
    pub fn tell(&self) {
        if std::mem::replace(&mut self.told().is_telling, true) {
            return;
        }
        let telling = Telling(self);
        loop {
            let Some(notice) = ({
                let mut told = self.told();
                let notice = told.outgoing.pop_front();
                told.is_telling = notice.is_some();
                if told.outgoing.len() + 1 == OUTGOING || notice.is_none() {
                    self.progress.notify_all();
                }
                notice
            }) else {
                return std::mem::forget(telling);
            };
            for (edge, cids) in notice.to.iter() {
                if let Err(error) = self.deliver(edge, &notice.frame, cids) {
                    tracing::warn!("a notice did not reach {edge}: {error}");
                }
            }
        }
    }

    /// The rooms, or the members of one. The lock is held to collect, not to sort and count.
    fn list(&self, asked: Words) -> Result<Reply> {
        let Words { name, page } = asked;
        let Some(name) = name else {
            let names = self.told().rooms.names();
            return Reply::json(&RoomList::new(names, page, |name| self.told().rooms.crowd(name)));
        };
        let members = self.told().rooms.members(&name, page);
        let missing =
            || Error::not_found(format!("nobody is in room `{name}`; `zephserver rooms` lists all"));
        Reply::json(&members.ok_or_else(missing)?)
    }

    fn send_letter(&self, call: &Call<'_>, is_right: impl Fn(&Address<'_>) -> bool) -> Result<Reply> {
        let letter: Letter = call.json()?;
        let push = letter.push()?;
        if !is_right(&push.address) {
            return Err(Error::invalid(format!(
                "{} takes the address that it is named after",
                call.method()
            )));
        }
        let mut payload = Vec::new();
        push.encode(&mut payload);
        Reply::json(&self.send(&push, &payload)?)
    }

    /// Sends to the peers of this node; one to a cid goes where that is. `payload` is the push, encoded.
    fn send(&self, push: &Push<'_>, payload: &[u8]) -> Result<u64> {
        if let Address::Cid(cid) = push.address
            && let Some(reached) = self.send_away(cid, payload)?
        {
            return Ok(reached);
        }
        self.send_here(push)
    }

    /// Encodes once, and hands the frame to each edge with the cids that it has.
    pub fn send_here(&self, push: &Push<'_>) -> Result<u64> {
        let by_edge = self.told().rooms.at(&push.address);
        if by_edge.is_empty() {
            return Ok(0);
        }
        let mut frame = Vec::with_capacity(push.task.len() + push.data.len() + 24);
        frame.extend_from_slice(b"{\"task\":");
        serde_json::to_writer(&mut frame, push.task)?;
        frame.extend_from_slice(b",\"data\":");
        frame.extend_from_slice(push.data);
        frame.push(b'}');
        let reached = by_edge.iter().map(|(edge, cids)| {
            // An edge that cannot take it does not keep it from the others.
            self.deliver(edge, &frame, cids).unwrap_or_else(|error| {
                tracing::warn!("a push did not reach {edge}: {error}");
                0
            })
        });
        Ok(reached.sum())
    }

    fn deliver(&self, edge: &str, frame: &[u8], cids: &[Cid]) -> Result<u64> {
        let mut payload = Vec::new();
        Delivery::encode(&mut payload, frame, cids.iter().copied());
        let reached = self.edge(edge).call(EDGE_SEND, &payload)?;
        Reader(&reached).u64()
    }
}

/// A number that no other life has.
fn new_life() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Microseconds since 1970.
fn micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

/// A thread that tells, and panics, leaves it to the next.
struct Telling<'a>(&'a Room);

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        self.0.told().is_telling = false;
    }
}
