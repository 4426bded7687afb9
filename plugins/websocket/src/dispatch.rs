//! What a message of a peer means: hello or task. Session and tasks may answer later, and hold up only
//! the peer that waits for them; the room, and tasks that run inline, are called on the loop's thread and
//! are to be quick.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::value::RawValue;
use zephserver_plugin::contract::peer::{Cid, Peer};
use zephserver_plugin::contract::request::{ROUTE, Request, answers};
use zephserver_plugin::contract::room::{JOIN, Join, LEAVE, Leave};
use zephserver_plugin::contract::session::{GET_USER, GetUser, User};
use zephserver_plugin::{Begun, Error, Handle, Result, tracing};

use crate::codec::Opcode;
use crate::edge::{Flow, Handler};
use crate::message::{self, Message};
use crate::outbox::Outbox;

/// How long session or task may take.
const LIMIT: Duration = Duration::from_secs(40);

/// Questions under way at most.
const UNDER_WAY: usize = 65_536;

/// The services that the edge asks.
#[derive(Clone)]
pub struct Services {
    pub session: Handle,
    pub room: Handle,
    pub router: Handle,
    /// The edge's own path, by which the room reaches it.
    pub own: String,
}

/// Answers that came on other threads, by the cookie of their question.
#[derive(Default)]
pub struct Inbox {
    answers: Mutex<VecDeque<(u64, Result<Vec<u8>>)>>,
    /// The room service has forgotten its peers.
    announce: Mutex<bool>,
}

impl Inbox {
    pub fn put(&self, cookie: u64, answer: Result<Vec<u8>>) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).push_back((cookie, answer));
    }

    pub fn ask_to_announce(&self) {
        *self.announce.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    fn take(&self) -> VecDeque<(u64, Result<Vec<u8>>)> {
        std::mem::take(&mut *self.answers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn take_announce(&self) -> bool {
        std::mem::take(&mut *self.announce.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Known {
    peer: Peer,
    outbox: Arc<Outbox>,
    /// The room that it joined, and who it is.
    joined: Option<(String, Option<User>)>,
}

/// A question that is under way.
enum Asked {
    Hello { cid: Cid, room: String, id: Option<String> },
    Task { cid: Cid, task: String, id: Option<String> },
}

/// Every peer with what was asked for it.
pub struct Dispatch {
    services: Services,
    inbox: Arc<Inbox>,
    peers: HashMap<Cid, Known>,
    asked: HashMap<u64, Asked>,
    next_cookie: u64,
    payload: Vec<u8>,
}

impl Dispatch {
    pub fn new(services: Services, inbox: Arc<Inbox>) -> Self {
        let (peers, asked) = (HashMap::new(), HashMap::new());
        // Answers find their way by name: those to another generation's questions must not fit ours.
        let next_cookie = RandomState::new().build_hasher().finish() & 0x7fff_ffff_0000_0000;
        Self { services, inbox, peers, asked, next_cookie, payload: Vec::new() }
    }

    fn cookie(&mut self, asked: Asked) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        self.asked.insert(cookie, asked);
        cookie
    }

    fn hello(&mut self, cid: Cid, text: &str, message: &Message<'_>) -> Result<Flow> {
        let room = message.room_name()?;
        let id = message.id.map(|id| id.get().to_string());
        let Some(known) = self.peers.get(&cid) else { return Ok(Flow::Go) };
        let peer = known.peer.clone();
        let question = GetUser { peer, message: RawValue::from_string(text.into())? };
        let question = serde_json::to_vec(&question)?;
        let cookie = self.cookie(Asked::Hello { cid, room, id });
        match self.services.session.begin(GET_USER, &question, cookie, LIMIT) {
            Ok(Begun::Pending(_)) => Ok(Flow::Wait),
            Ok(Begun::Answered(answer)) => {
                self.answered(cookie, Ok(answer));
                Ok(Flow::Go)
            }
            Err(error) => {
                self.answered(cookie, Err(error));
                Ok(Flow::Go)
            }
        }
    }

    fn task(&mut self, cid: Cid, message: &Message<'_>) -> Result<()> {
        let task = message.task_name()?;
        let joined = self.peers.get(&cid).and_then(|known| known.joined.as_ref());
        let Some((room, user)) = joined else {
            return Err(Error::refused("say hello first: {\"room\": \"lobby\"}"));
        };
        if self.asked.len() >= UNDER_WAY {
            return Err(Error::busy(format!("{UNDER_WAY} requests are under way already; try again")));
        }
        let data = message.data.map_or("null", RawValue::get).as_bytes();
        let user = user.as_ref().map(|user| (user.id.as_str(), user.username.as_str()));
        let mut payload = std::mem::take(&mut self.payload);
        payload.clear();
        Request { cid, task: &task, kind: "", data, room, user, say: "" }.encode(&mut payload);
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let begun = self.services.router.begin(ROUTE, &payload, cookie, LIMIT);
        self.payload = payload;
        let id = message.id.map(RawValue::get);
        let Some(known) = self.peers.get(&cid) else { return Ok(()) };
        match begun {
            Ok(Begun::Answered(reply)) => send_answers(&known.outbox, &task, &reply, id),
            Ok(Begun::Pending(_)) => {
                // The answer may be in the inbox already: it is looked at on this thread, later.
                self.asked.insert(cookie, Asked::Task { cid, task, id: id.map(str::to_string) });
            }
            Err(error) => send_error(&known.outbox, &error, Some(&task), id),
        }
        Ok(())
    }

    /// An answer has come: to a hello or to a task.
    fn answered(&mut self, cookie: u64, answer: Result<Vec<u8>>) -> Option<Cid> {
        match self.asked.remove(&cookie)? {
            Asked::Hello { cid, room, id } => {
                if let Err(error) = self.join(cid, room, answer) {
                    let known = self.peers.get(&cid)?;
                    send_error(&known.outbox, &error, None, id.as_deref());
                }
                Some(cid)
            }
            Asked::Task { cid, task, id } => {
                let known = self.peers.get(&cid)?;
                match answer {
                    Ok(reply) => send_answers(&known.outbox, &task, &reply, id.as_deref()),
                    Err(error) => send_error(&known.outbox, &error, Some(&task), id.as_deref()),
                }
                None
            }
        }
    }

    fn join(&mut self, cid: Cid, room: String, answer: Result<Vec<u8>>) -> Result<()> {
        let user: Option<User> = serde_json::from_slice(&answer?)?;
        if !self.peers.contains_key(&cid) {
            return Ok(());
        }
        self.send_join(cid, &room, &user, false)?;
        if let Some(known) = self.peers.get_mut(&cid) {
            known.joined = Some((room, user));
        }
        Ok(())
    }

    fn send_join(&self, cid: Cid, room: &str, user: &Option<User>, again: bool) -> Result<()> {
        let edge = self.services.own.clone();
        let join = Join { cid, edge, room: room.into(), user: user.clone(), again };
        self.services.room.call_json(JOIN, &join)
    }

    /// Tells a room service that began from nothing who is here.
    fn announce(&self) {
        for (cid, known) in &self.peers {
            if let Some((room, user)) = &known.joined
                && let Err(error) = self.send_join(*cid, room, user, true)
            {
                return tracing::warn!("the room service does not take its peers back: {error}");
            }
        }
    }
}

impl Handler for Dispatch {
    fn opened(&mut self, peer: Peer, outbox: &Arc<Outbox>) {
        self.peers.insert(peer.cid, Known { peer, outbox: outbox.clone(), joined: None });
    }

    fn message(&mut self, cid: Cid, outbox: &Arc<Outbox>, text: &str) -> Flow {
        let message = match Message::read(text) {
            Ok(message) => message,
            Err(error) => {
                send_error(outbox, &error, None, None);
                return Flow::Go;
            }
        };
        let done = match message.task {
            Some(_) => self.task(cid, &message).map(|()| Flow::Go),
            None => self.hello(cid, text, &message),
        };
        done.unwrap_or_else(|error| {
            let name = message.task_name().ok();
            send_error(outbox, &error, name.as_deref(), message.id.map(RawValue::get));
            Flow::Go
        })
    }

    fn closed(&mut self, cid: Cid) {
        let joined = self.peers.remove(&cid).and_then(|known| known.joined);
        if joined.is_some()
            && let Err(error) = self.services.room.call_json::<()>(LEAVE, &Leave { cid })
        {
            tracing::warn!("the room service was not told that a peer left: {error}");
        }
    }

    fn woken(&mut self) -> Vec<Cid> {
        if self.inbox.take_announce() {
            self.announce();
        }
        let answers = self.inbox.take();
        answers.into_iter().filter_map(|(cookie, answer)| self.answered(cookie, answer)).collect()
    }
}

/// Each answer becomes a frame. A request with an id is always answered.
fn send_answers(outbox: &Outbox, task: &str, reply: &[u8], id: Option<&str>) {
    let mut is_answered = false;
    for answer in answers(reply) {
        is_answered = true;
        match answer {
            Ok(data) => {
                outbox.send_frame(Opcode::Text, &message::answer(task, data, id));
            }
            Err(error) => send_error(outbox, &error, Some(task), id),
        }
    }
    if !is_answered && id.is_some() {
        outbox.send_frame(Opcode::Text, &message::answer(task, b"null", id));
    }
}

fn send_error(outbox: &Outbox, error: &Error, name: Option<&str>, id: Option<&str>) {
    outbox.send_frame(Opcode::Text, &message::error(error, name, id));
}
