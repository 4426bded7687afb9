//! What a message of a peer means: hello or task. Session and tasks may answer later, and hold up only
//! the peer that waits for them; the room, and tasks that run inline, are called on the loop's thread and
//! are to be quick.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use zeph_edge::{Cid, Link, Outbox, To};
use zephserver_plugin::contract::request::{ROUTE, Request, answers};
use zephserver_plugin::contract::room::{JOIN, Join, LEAVE, Leave};
use zephserver_plugin::contract::session::{GET_USER_SESSION, GetUserSession, Identity, User};
use zephserver_plugin::{Error, Handle, Result, tracing};

use crate::asked::{Asked, Questions};
use crate::inbox::{Answer, Inbox, Letters, asker, first_cookie};
use crate::kicks::Closings;
use crate::message::{self, Kind, Message};
use crate::peer::{Open, Peer, Tokens, close, send_error};
use crate::revoked::{Lately, Revocations, revoked};
use crate::settings::Settings;
use crate::verbs::{Errand, kicked};

/// An answer that does not come in this time never comes: routers and tasks have shorter deadlines.
pub const LONGEST: Duration = Duration::from_secs(3600);
/// Questions of one loop under way at most.
const UNDER_WAY: usize = 65_536;

/// The services that the edge asks.
#[derive(Clone)]
pub struct Services {
    pub session: Handle,
    pub room: Handle,
    pub router: Handle,
    /// The edge's own path, by which the room reaches it, and which instance of it this is.
    pub own: (String, u32),
}

/// What other threads have for a peer.
pub enum Note {
    /// The answer to a question.
    Answer(Asked, Answer),
    /// The room service has forgotten it.
    Announce,
    /// Sessions of these users were revoked.
    Revoked(Revocations),
    /// The operators of other nodes want them closed.
    Closing(Closings),
    Errand(Errand),
}

/// The questions of one loop.
pub struct Dispatch {
    services: Services,
    settings: Arc<Settings>,
    inbox: Arc<Inbox>,
    tokens: Tokens,
    asked: HashMap<u64, Asked>,
    next_cookie: u64,
    lately: Lately,
    /// The room service did not take one of its peers back.
    is_room_lost: bool,
    /// Used again and again.
    payload: Vec<u8>,
    reply: Vec<u8>,
}

impl Dispatch {
    /// The questions of a loop. `asked` are those of a generation before, to which answers may come still.
    pub fn new(
        (services, settings): (Services, Arc<Settings>),
        (inbox, tokens): (Arc<Inbox>, Tokens),
        number: usize,
        questions: Vec<Questions>,
    ) -> Self {
        // Answers find their way by name: those to another life's questions must not fit ours.
        let random = RandomState::new().build_hasher().finish();
        let inherited = questions.iter().filter_map(|questions| questions.next_cookie);
        let next_cookie = inherited.into_iter().find(|cookie| asker(*cookie) == number);
        Self {
            services,
            settings,
            inbox,
            tokens,
            asked: questions.into_iter().flat_map(|questions| questions.asked).collect(),
            next_cookie: next_cookie.unwrap_or_else(|| first_cookie(number, random)),
            lately: Lately::default(),
            is_room_lost: false,
            payload: Vec::new(),
            reply: Vec::new(),
        }
    }

    /// The questions that are under way, to be carried.
    pub fn questions(&self) -> (&HashMap<u64, Asked>, u64) {
        (&self.asked, self.next_cookie)
    }

    /// What was revoked since the oldest of them was asked.
    pub fn revoked_lately(&self) -> Revocations {
        self.lately.since(self.oldest())
    }

    fn oldest(&self) -> Option<u64> {
        self.asked.values().filter_map(Asked::noted).min()
    }

    /// One message of a peer.
    pub fn message(&mut self, link: &mut Link<'_, Peer>, text: &str) {
        let message = Message::read(text);
        let Peer::Open(open) = &mut *link.peer else { return };
        match message.kind {
            Err(ref error) => self.bad(link, error, message.name.as_deref(), message.id),
            Ok(Kind::Hello { ref room }) => {
                open.bad = 0;
                let token = message.session_id.map_or(0, |token| self.tokens.hash(token));
                let id = message.id.map(str::to_string);
                let (cid, room, revoked) = (link.cid, room.clone(), Revocations::default());
                let asked = Asked::Hello { cid, room, id, token, noted: self.lately.heard(), revoked };
                self.ask_session(link, &message, asked);
            }
            Ok(Kind::Task { ref name, ref json, data }) => {
                if open.joined.is_none() {
                    let error = Error::refused("say hello first: {\"room\": \"lobby\"}");
                    return self.bad(link, &error, Some(name), message.id);
                }
                open.bad = 0;
                if let Some(token) = message.session_id.map(|token| self.tokens.hash(token))
                    && token != open.token
                {
                    let (cid, text, revoked) = (link.cid, text.into(), Revocations::default());
                    let asked = Asked::Again { cid, text, token, noted: self.lately.heard(), revoked };
                    return self.ask_session(link, &message, asked);
                }
                self.task(link, &message, (name, json), data);
            }
        }
    }

    /// A message that makes no sense: said, counted, and after too many of them the end.
    pub fn bad(&self, link: &mut Link<'_, Peer>, error: &Error, name: Option<&str>, id: Option<&str>) {
        send_error(link.outbox, error, name, id);
        let Peer::Open(open) = &mut *link.peer else { return };
        open.bad += 1;
        if open.bad > self.settings.bad_messages {
            close(link, 1008, "too many messages that make no sense");
        }
    }

    fn cookie(&mut self) -> u64 {
        self.next_cookie += 1;
        self.next_cookie - 1
    }

    /// Asks who sent a message; the peer's next one waits for the answer.
    fn ask_session(&mut self, link: &mut Link<'_, Peer>, message: &Message<'_>, asked: Asked) {
        let Peer::Open(open) = &*link.peer else { return };
        if self.asked.len() >= UNDER_WAY {
            let name = match &message.kind {
                Ok(Kind::Task { name, .. }) => Some(&**name),
                _ => None,
            };
            return send_error(link.outbox, &too_many(), name, message.id);
        }
        let question = GetUserSession::encode(&open.facts, message.text.as_bytes());
        let cookie = self.cookie();
        let (session, limit) = (&self.services.session, self.settings.session_timeout);
        let mut reply = Vec::new();
        match session.begin_into(GET_USER_SESSION, &question, cookie, limit, &mut reply) {
            Ok(Some(_)) => {
                // The answer may be in the inbox already: it is looked at on this thread, later.
                self.asked.insert(cookie, asked);
                link.pause();
            }
            Ok(None) => self.answered(link, &asked, &Ok(reply)),
            Err(error) => self.answered(link, &asked, &Err(error)),
        }
    }

    fn task(
        &mut self,
        link: &mut Link<'_, Peer>,
        message: &Message<'_>,
        (task, json): (&str, &str),
        data: (u32, u32),
    ) {
        let Peer::Open(open) = &mut *link.peer else { return };
        let Some(joined) = &open.joined else { return };
        if open.asked >= self.settings.requests || self.asked.len() >= UNDER_WAY {
            return send_error(link.outbox, &too_many(), Some(task), message.id);
        }
        let user = joined.user.as_ref().map(|user| (user.id.as_bytes(), user.username.as_bytes()));
        let (name, room, text) = (task.as_bytes(), joined.room.as_bytes(), message.text.as_bytes());
        let request = Request { cid: link.cid, task: name, room, user, message: text, data };
        self.payload.clear();
        request.encode(&mut self.payload);
        self.reply.clear();
        let cookie = self.cookie();
        let router = &self.services.router;
        match router.begin_into(ROUTE, &self.payload, cookie, LONGEST, &mut self.reply) {
            Ok(None) => send_answers(link.outbox, (task, json), &self.reply, message.id),
            Ok(Some(_)) => {
                open.asked += 1;
                let id = message.id.map(str::to_string);
                self.asked
                    .insert(cookie, Asked::Task { cid: link.cid, task: task.into(), json: json.into(), id });
            }
            Err(error) => send_error(link.outbox, &error, Some(task), message.id),
        }
    }

    /// An answer has come: to a hello, to a token, or to a task.
    fn answered(&mut self, link: &mut Link<'_, Peer>, asked: &Asked, answer: &Answer) {
        if !matches!(asked, Asked::Task { .. }) {
            link.resume();
        }
        let Peer::Open(open) = &mut *link.peer else { return };
        match asked {
            Asked::Hello { room, id, token, noted, revoked, .. } => {
                if let Err(error) = self.join(link, room, answer, (*noted, revoked), *token) {
                    send_error(link.outbox, &error, None, id.as_deref());
                }
            }
            Asked::Again { text, token, noted, revoked, .. } => {
                let message = Message::read(text);
                let Ok(Kind::Task { ref name, ref json, data }) = message.kind else { return };
                let room = open.joined.as_ref().map(|joined| joined.room.to_string()).unwrap_or_default();
                match self.join(link, &room, answer, (*noted, revoked), *token) {
                    Ok(()) => self.task(link, &message, (name, json), data),
                    Err(error) => send_error(link.outbox, &error, Some(name), message.id),
                }
            }
            Asked::Task { task, json, id, .. } => {
                open.asked = open.asked.saturating_sub(1);
                match answer {
                    Ok(reply) => send_answers(link.outbox, (task, json), reply, id.as_deref()),
                    Err(error) => send_error(link.outbox, error, Some(task), id.as_deref()),
                }
            }
        }
    }

    /// A peer joins a room as who the session service says it is. A refusal leaves it where and who it
    /// was.
    fn join(
        &self,
        link: &mut Link<'_, Peer>,
        room: &str,
        answer: &Answer,
        (noted, revoked): (u64, &Revocations),
        token: u64,
    ) -> Result<()> {
        let answer = answer.as_ref().map_err(Error::clone)?;
        let identity: Option<Identity> = serde_json::from_slice(answer).map_err(|error| {
            Error::internal(format!("{} answered with bad JSON: {error}", self.services.session.path()))
        })?;
        let Peer::Open(open) = &mut *link.peer else { return Ok(()) };
        revoked.check(identity.as_ref())?;
        self.lately.check(identity.as_ref(), noted)?;
        self.send_join(link.cid, room, identity.as_ref().map(|identity| &identity.user), None)?;
        open.join(room, identity, token);
        if let Some(remaining) = open.remaining() {
            // It is looked at then, and says when to look again.
            link.due_within(remaining);
        }
        Ok(())
    }

    /// A peer joins; `again`: it has, at that time, and the room service forgot it.
    fn send_join(&self, cid: Cid, room: &str, user: Option<&User>, again: Option<u64>) -> Result<()> {
        let (edge, instance) = self.services.own.clone();
        let since = again.filter(|since| *since > 0);
        let join = Join {
            cid,
            edge,
            instance,
            room: room.into(),
            user: user.cloned(),
            again: again.is_some(),
            since,
        };
        self.services.room.call_json(JOIN, &join)
    }

    /// A peer is gone.
    pub fn closed(&self, cid: Cid, open: &Open) {
        if open.joined.is_some()
            && let Err(error) = self.services.room.call_json::<()>(LEAVE, &Leave { cid })
        {
            tracing::warn!("the room service was not told that a peer left: {error}");
        }
    }

    /// Takes what other threads have put into the inbox.
    pub fn woken(&mut self) -> Vec<(To, Note)> {
        let mut notes = Vec::new();
        let Letters { answers, announce, revoked, closing, errands } = self.inbox.take();
        if announce {
            self.is_room_lost = false;
            notes.push((To::All, Note::Announce));
        }
        if !revoked.is_empty() {
            self.lately.add(&revoked, self.oldest());
            notes.push((To::All, Note::Revoked(revoked)));
        }
        for (cookie, answer) in answers {
            if let Some(asked) = self.asked.remove(&cookie) {
                notes.push((To::One(asked.cid()), Note::Answer(asked, answer)));
            }
        }
        if !closing.is_empty() {
            notes.push((To::All, Note::Closing(closing.into_iter().collect())));
        }
        notes.extend(errands.into_iter().map(|errand| (To::All, Note::Errand(errand))));
        notes
    }

    /// A note for a peer.
    pub fn noted(&mut self, link: &mut Link<'_, Peer>, note: &Note) {
        match note {
            Note::Answer(asked, answer) => self.answered(link, asked, answer),
            Note::Announce => self.announce(link),
            Note::Revoked(all) => revoked(link, all),
            Note::Closing(closing) => kicked(link, closing),
            Note::Errand(errand) => errand.run(link),
        }
    }

    /// Tells a room service that began from nothing who is here.
    fn announce(&mut self, link: &Link<'_, Peer>) {
        let Peer::Open(open) = &*link.peer else { return };
        let Some(joined) = open.joined.as_ref().filter(|_| !self.is_room_lost) else { return };
        let (room, user) = (&joined.room, joined.user.as_ref());
        if let Err(error) = self.send_join(link.cid, room, user, Some(joined.since)) {
            // It is asked no further: each of them would wait. When it serves again, it is told again.
            self.is_room_lost = true;
            tracing::warn!("the room service does not take its peers back: {error}");
        }
    }
}

fn too_many() -> Error {
    Error::busy("too many of your requests wait for their answers; wait for some of them")
}

/// Each answer becomes a frame; the task's name comes plain and as JSON. A request with an id is always
/// answered.
fn send_answers(outbox: &Arc<Outbox>, (task, json): (&str, &str), reply: &[u8], id: Option<&str>) {
    let mut is_answered = false;
    for answer in answers(reply) {
        is_answered = true;
        match answer {
            Ok(data) => {
                outbox.send(|buffer| message::write_answer(buffer, json, data, id));
            }
            Err(error) => send_error(outbox, &error, Some(task), id),
        }
    }
    if !is_answered && id.is_some() {
        outbox.send(|buffer| message::write_answer(buffer, json, b"null", id));
    }
}
