//! Who a peer is: everybody anonymous, or who a signed token says. [`token`] reads tokens, [`revocations`]
//! knows which count no more, [`cluster`] brings that to all nodes, and [`file`](mod@file) keeps it over a start of
//! the server.

mod cluster;
mod file;
mod revocations;
mod token;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use file::Owed;
use revocations::{MOST, Revocations};
use token::Tokens;
use zephserver_plugin::cluster::Inquiry;
use zephserver_plugin::contract::page::Words;
use zephserver_plugin::contract::session::{
    ASK_REVOCATIONS, GET_USER_SESSION, GetUserSession, Identity, REVOCATIONS, REVOKE, REVOKED, Revoke,
    Revoked,
};
use zephserver_plugin::{
    Call, Declare, Error, Event, Host, Imported, Reply, Result, Service, SettingType, Start, State, export,
    tracing,
};

/// Bytes of a user's id at most: it must be possible to remember it.
const LONGEST_ID: usize = 1024;
/// A revocation counts for so many seconds at least.
const SHORTEST_KEPT: u64 = 60;

struct Session {
    host: Host,
    /// None: everybody is anonymous.
    tokens: Option<Tokens>,
    /// Seconds for which a revocation counts.
    kept: u64,
    revocations: Mutex<Revocations>,
    /// Held from a change of the revocations until it is kept or noted as owed, so that what is kept is the newest.
    keeping: Mutex<Owed>,
    file: Option<PathBuf>,
    /// It began with what another instance left.
    inherited: AtomicBool,
    /// Which nodes have not said yet what they know.
    inquiry: Inquiry,
}

impl Service for Session {
    fn declare(declare: Declare) -> Declare {
        declare
            .setting("backend", "anonymous", "where users come from: \"anonymous\" or \"token\"")
            .setting(
                "token",
                serde_json::json!({}),
                "algorithm, secret, secret_file, public_key_file, iss, aud, leeway",
            )
            .setting("revocations_kept", 2_592_000, "seconds that a revocation counts; no token lasts longer")
            .optional(
                "revocations_file",
                SettingType::Text,
                "a file that keeps revocations over restarts of the server",
            )
            .verb(
                "revoke",
                "revoke/1",
                "USER refuse what this user was issued until now, and close its peers",
            )
            .verb(
                "revocations",
                "revocations/1",
                "[--limit N] [--offset N] whose sessions were revoked, and when",
            )
            .state(1)
    }

    fn new(start: Start) -> Result<Self> {
        let settings = token::settings(start.setting("token")?)?;
        let tokens = match start.setting::<String>("backend")?.as_str() {
            "anonymous" => None,
            "token" => Some(Tokens::new(settings)?),
            other => {
                return Err(Error::invalid(format!(
                    "[session] backend is \"{other}\"; it is \"anonymous\" or \"token\""
                )));
            }
        };
        let kept = u64::try_from(start.setting::<i64>("revocations_kept")?).unwrap_or_default();
        if kept < SHORTEST_KEPT {
            let text = format!("[session] revocations_kept is a number of seconds, {SHORTEST_KEPT} at least");
            return Err(Error::invalid(text));
        }
        let file: Option<PathBuf> = start.setting("revocations_file")?;
        Ok(Self {
            host: start.host(),
            tokens,
            kept,
            revocations: Mutex::new(Revocations::new(kept)),
            keeping: Mutex::default(),
            file: file.filter(|file| !file.as_os_str().is_empty()),
            inherited: AtomicBool::new(false),
            inquiry: Inquiry::default(),
        })
    }

    fn init(&self) -> Result<()> {
        if let Some(file) = &self.file
            && !self.inherited.load(Ordering::Relaxed)
        {
            *lock(&self.revocations) = Revocations::restore(self.kept, file::read(file)?);
        }
        // They are to outlive a crash, too. Only who serves can leave a checkpoint: the timer comes then.
        if !lock(&self.revocations).is_empty() {
            self.host.after(Duration::ZERO)?;
        }
        self.listen()
    }

    fn call(&self, call: Call<'_>) -> Result<Reply> {
        match call.method() {
            GET_USER_SESSION => Reply::json(&self.identify(&call.json()?)?),
            REVOKE => Reply::json(&self.revoke(&call.json::<Revoke>()?.user)?),
            "revoke/1" => match call.json::<Vec<String>>()?.as_slice() {
                [user] => Reply::json(&self.revoke(user)?),
                _ => Err(Error::invalid(format!(
                    "usage: revoke USER, the id of a user; of one with blanks: call {} {REVOKE} \
                     '{{\"user\": \"...\"}}'",
                    self.host.name()
                ))),
            },
            "revocations/1" => match Words::read(call.json()?)? {
                Words { name: None, page } => {
                    let list = lock(&self.revocations).list(page, now());
                    Reply::json(&list)
                }
                _ => Err(Error::invalid("usage: revocations [--limit N] [--offset N]")),
            },
            _ => call.unknown_method(),
        }
    }

    fn event(&self, event: Event<'_>) -> Result<()> {
        match event {
            Event::Timer { token } if self.inquiry.is_timer(token) => {
                self.inquiry.ask(&self.host, ASK_REVOCATIONS, || true)
            }
            Event::Timer { .. } => {
                // In the file as well: it may be named since the instance before.
                self.keep(&mut lock(&self.keeping))
            }
            Event::Node { name, change } => {
                self.inquiry.node(name, change);
                self.inquiry.ask(&self.host, ASK_REVOCATIONS, || true)
            }
            Event::Said { name: REVOCATIONS, payload } => self.heard(payload),
            Event::Said { name: ASK_REVOCATIONS, payload } => self.asked(payload),
            _ => Ok(()),
        }
    }

    fn disable(&self) {
        self.write_owed();
    }

    fn export_state(&self) -> Result<State> {
        // Later the file is the next generation's.
        self.write_owed();
        Ok(State::bytes(self.encoded()?))
    }

    /// From the build before, or from a checkpoint.
    fn import_state(&self, state: Imported<'_>) -> Result<()> {
        *lock(&self.revocations) = Revocations::restore(self.kept, state.json()?);
        self.inherited.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Session {
    /// No token: anonymous. A token that is not good is an error, never somebody anonymous.
    fn identify(&self, question: &GetUserSession) -> Result<Option<Identity>> {
        let (Some(tokens), Some(token)) = (&self.tokens, question.session_id()?) else { return Ok(None) };
        let identity = tokens.read(&token)?;
        if lock(&self.revocations).is_revoked(&identity.user.id, identity.issued, now()) {
            return Err(Error::refused("the session was revoked; log in again"));
        }
        Ok(Some(identity))
    }

    /// Refuses from now on what a user was issued until now, and tells this node and the others.
    fn revoke(&self, user: &str) -> Result<Revoked> {
        if self.tokens.is_none() {
            let text = "[session] backend is \"anonymous\": nobody has a session that could be revoked";
            return Err(Error::invalid(text));
        }
        if user.is_empty() || user.len() > LONGEST_ID {
            return Err(Error::invalid(format!(
                "the id of a user to be revoked has 1 to {LONGEST_ID} bytes"
            )));
        }
        let mut keeping = lock(&self.keeping);
        let (revoked, forgotten) = lock(&self.revocations).revoke(user, now());
        tracing::info!("the sessions of user {user:?} are revoked");
        forgotten.iter().for_each(self::forgotten);
        let kept = self.keep(&mut keeping);
        drop(keeping);
        self.tell_edges(&revoked)?;
        let said = self.say(vec![revoked.clone()], true).map_err(|error| {
            let text = format!(
                "it is revoked on this node, but the others were not told: {error}; revoke once more"
            );
            Error::new(error.code, text)
        });
        kept.and(said).map(|()| revoked)
    }

    fn tell_edges(&self, revoked: &Revoked) -> Result<()> {
        self.host.publish(REVOKED, &serde_json::to_vec(revoked)?).map(drop)
    }

    /// For whoever comes after this instance, after a crash and after a start of the server.
    fn keep(&self, owed: &mut Owed) -> Result<()> {
        let bytes = self.encoded()?;
        let left = self.host.checkpoint(&bytes);
        owed.take();
        self.write(&bytes).and(left)
    }

    /// What is owed to the file and cannot wait any more.
    fn write_owed(&self) {
        let mut owed = lock(&self.keeping);
        if owed.take()
            && let Err(error) = self.encoded().and_then(|bytes| self.write(&bytes))
        {
            tracing::error!("{error}");
        }
    }

    fn write(&self, bytes: &[u8]) -> Result<()> {
        self.file.as_ref().map_or(Ok(()), |file| file::write(file, bytes))
    }

    fn encoded(&self) -> Result<Vec<u8>> {
        let revoked = lock(&self.revocations).snapshot();
        Ok(serde_json::to_vec(&revoked)?)
    }
}

/// Says whose revocation had to make room.
fn forgotten(Revoked { user, .. }: &Revoked) {
    tracing::warn!(
        "more than {MOST} users are revoked: that of {user:?} was the oldest and is forgotten, its tokens count \
         again"
    );
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

export!(Session);
