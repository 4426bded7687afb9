//! Questions that are under way: what a loop keeps of them until they are answered, also over a reload.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use zeph_edge::Cid;

use crate::revoked::Revocations;

/// A question that is under way.
#[derive(Debug, Serialize, Deserialize)]
pub enum Asked {
    /// Who says this hello?
    Hello {
        cid: Cid,
        room: String,
        id: Option<String>,
        token: u64,
        /// What was revoked before it was asked is known to who answers: see [`Lately`](crate::revoked::Lately).
        #[serde(skip)]
        noted: u64,
        /// What was revoked meanwhile, by the word of the generation before.
        #[serde(flatten)]
        revoked: Revocations,
    },
    /// Who sent this message, before it is looked at?
    Again {
        cid: Cid,
        text: String,
        token: u64,
        #[serde(skip)]
        noted: u64,
        #[serde(flatten)]
        revoked: Revocations,
    },
    /// The answer of a task?
    Task { cid: Cid, task: String, json: String, id: Option<String> },
}

impl Asked {
    /// The peer that waits for it.
    pub fn cid(&self) -> Cid {
        match self {
            Self::Hello { cid, .. } | Self::Again { cid, .. } | Self::Task { cid, .. } => *cid,
        }
    }

    /// For a question of who somebody is.
    pub fn noted(&self) -> Option<u64> {
        match self {
            Self::Hello { noted, .. } | Self::Again { noted, .. } => Some(*noted),
            Self::Task { .. } => None,
        }
    }
}

/// The questions of one loop, as they are carried into the next generation.
#[derive(Default, Serialize, Deserialize)]
pub struct Questions {
    pub asked: HashMap<u64, Asked>,
    pub next_cookie: Option<u64>,
}

impl Questions {
    /// Their numbers.
    pub fn cookies(&self) -> impl Iterator<Item = u64> {
        self.asked.keys().copied()
    }
}
