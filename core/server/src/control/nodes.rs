//! The verbs of the cluster, and what `status` tells of it.

use serde_json::{Value, json};
use zeph_contract::Error;

use super::Desk;
use super::desk::split;
use crate::messages::Command;

/// Events that `events` answers where nothing else is asked for, and at most.
const SHOWN: usize = 50;
const MOST: usize = 1000;

impl Desk {
    /// How everything stands.
    pub fn status(&self) -> Result<Value, Error> {
        let mut status = self.ask(Command::Status)?;
        if let Some(cluster) = self.cluster.status() {
            let sum = |of: fn(&zeph_cluster::Member) -> u64| cluster.members.iter().map(of).sum::<u64>();
            let is_up =
                |member: &zeph_cluster::Member| u64::from(member.state == zeph_cluster::MemberState::Up);
            status["cluster"] = json!({
                "engine": cluster.engine,
                "up": sum(is_up),
                "known": cluster.members.len(),
                "said": cluster.said,
                "heard": sum(|member| member.incoming.events),
                "gaps": sum(|member| member.incoming.gaps),
                "evictions": sum(|member| member.outgoing.evictions),
                "backlog": cluster.backlog,
                "lost": cluster.lost,
                "refused": cluster.refused,
            });
        }
        Ok(status)
    }

    /// Says an event to all other nodes.
    pub(super) fn say(&self, rest: &str) -> Result<Value, Error> {
        let (event, payload) = split(rest);
        if event.is_empty() {
            return Err(Error::invalid("usage: say EVENT [JSON]"));
        }
        if !payload.is_empty() {
            serde_json::from_str::<serde::de::IgnoredAny>(payload)
                .map_err(|error| Error::invalid(format!("the payload is no JSON: {error}")))?;
        }
        Ok(json!({"event": event, "nodes": self.cluster.say(event, payload.as_bytes())?}))
    }

    /// What nodes said lately.
    pub(super) fn events(&self, rest: &str) -> Result<Value, Error> {
        let usage =
            || Error::invalid(format!("usage: events [--limit N] [--after N], N of --limit is 1 to {MOST}"));
        let (mut limit, mut after) = (SHOWN, 0);
        let words: Vec<&str> = rest.split_whitespace().collect();
        for pair in words.chunks(2) {
            match pair {
                ["--limit", number] => limit = number.parse().map_err(|_| usage())?,
                ["--after", number] => after = number.parse().map_err(|_| usage())?,
                _ => return Err(usage()),
            }
        }
        if !(1..=MOST).contains(&limit) {
            return Err(usage());
        }
        Ok(json!(self.cluster.recent().page(after, limit)))
    }
}
