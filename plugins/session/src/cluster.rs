//! Revocations on all nodes: what is revoked here is said to the others, and what was revoked elsewhere while this
//! node could not hear it is asked for. It does not matter in which order that is learned: of each user the latest
//! counts.

use std::time::Instant;

use zephserver_plugin::cluster::{answer, parts};
use zephserver_plugin::contract::event::Ask;
use zephserver_plugin::contract::session::{ASK_REVOCATIONS, REVOCATIONS, Revocations as Told, Revoked};
use zephserver_plugin::{Result, tracing};

use crate::file::{Due, PAUSE};
use crate::revocations::by_own_clock;
use crate::{LONGEST_ID, Session, lock, now};

impl Session {
    /// Asks to hear of the revocations of other nodes. Where nobody has a session there is nothing to be heard.
    pub fn listen(&self) -> Result<()> {
        if self.tokens.is_some() {
            self.host.subscribe_members()?;
            self.host.subscribe_cluster(REVOCATIONS)?;
            self.host.subscribe_cluster(ASK_REVOCATIONS)?;
        }
        Ok(())
    }

    /// Says revocations to all other nodes. `fresh`: they were made here, just now.
    pub fn say(&self, revoked: Vec<Revoked>, fresh: bool) -> Result<()> {
        let told = Told { node: self.host.node()?, revoked, last: true, answers: false, fresh };
        self.host.say(REVOCATIONS, &serde_json::to_vec(&told)?).map(drop)
    }

    /// Another node says what was revoked: what is new here counts here as well.
    pub fn heard(&self, payload: &[u8]) -> Result<()> {
        let Some(Told { node, mut revoked, last, answers, fresh }) = self.inquiry.read(REVOCATIONS, payload)
        else {
            return Ok(());
        };
        revoked.retain(|one| !one.user.is_empty() && one.user.len() <= LONGEST_ID);
        if answers {
            self.inquiry.heard(&node, last);
        }
        let is_later = fresh && by_own_clock(&mut revoked, now());
        let mut keeping = lock(&self.keeping);
        let (new, forgotten) = lock(&self.revocations).merge(revoked, now());
        forgotten.iter().for_each(crate::forgotten);
        // All of it is written each time: with each word this would fall behind where many are said at once.
        let kept = match keeping.owe(!new.is_empty(), Instant::now()) {
            Due::Nothing => Ok(()),
            Due::Later => self.host.after(PAUSE).map(drop),
            Due::Now => self.keep(&mut keeping),
        };
        drop(keeping);
        for one in &new {
            tracing::info!("the sessions of user {:?} are revoked, by the word of node {node}", one.user);
            self.tell_edges(one)?;
        }
        if is_later && !new.is_empty() {
            tracing::warn!(
                "the clock of node {node} is behind the one here, or its word was seconds on its way: what it revoked \
                 counts as revoked now, on all nodes"
            );
            // Where it was made that is not known.
            let said = self.say(new, false);
            said.unwrap_or_else(|error| tracing::warn!("other nodes were not told of that: {error}"));
        }
        kept
    }

    /// Another node asks for the revocations that are known here.
    pub fn asked(&self, payload: &[u8]) -> Result<()> {
        let Some(Ask { node }) = self.inquiry.read(ASK_REVOCATIONS, payload) else { return Ok(()) };
        let parts = parts(lock(&self.revocations).current(now()), |one| 64 + one.user.len());
        let (own, count) = (self.host.node()?, parts.len());
        let part = |(part, revoked)| {
            let told =
                Told { node: own.clone(), revoked, last: part + 1 == count, answers: true, fresh: false };
            // Texts and numbers: always JSON.
            serde_json::to_vec(&told).unwrap_or_default()
        };
        answer(&self.host, &node, REVOCATIONS, parts.into_iter().enumerate().map(part));
        Ok(())
    }
}
