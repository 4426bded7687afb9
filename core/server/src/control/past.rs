//! The verbs that tell what was: `history` and `why`.

use serde_json::{Value, json};
use zeph_contract::Error;

use super::Desk;
use crate::history::{CAPACITY, Entry, What};
use crate::messages::Command;

/// Entries that `history` answers where nothing else is asked for.
const SHOWN: usize = 50;
/// Entries that `why` answers.
const NEWEST: usize = 10;

impl Desk {
    /// The newest entries of a service, a library, the server, or everything.
    pub(super) fn history(&self, rest: &str) -> Result<Value, Error> {
        let (name, limit) = question(rest)?;
        let entries = self.history.newest(limit, |entry| name.is_none_or(|name| entry.is_of(name)));
        if let Some(name) = name.filter(|_| entries.is_empty()) {
            // So that an unknown name gets the same answer, with the nearest known one, as everywhere.
            self.ask(Command::Services(Some(name.into())))?;
        }
        Ok(json!(entries))
    }

    /// Where a service stands, and how it came to that.
    pub(super) fn why(&self, name: &str) -> Result<Value, Error> {
        let service = self.service(name)?;
        let path = service["name"].as_str().unwrap_or(name);
        let library = path.split('/').next().unwrap_or(path);
        let of_service = |entry: &Entry| entry.name == path;
        // A service that does not run just now had a build before.
        let ran = self.history.last(|entry| of_service(entry) && entry.generation.is_some());
        let waits = service["state"] == "waiting";
        let waiting = self.history.last(|entry| of_service(entry) && entry.what == What::Waiting);
        let hash = service["refused_hash"].as_str();
        let refused =
            hash.and_then(|hash| self.history.last(|entry| entry.name == library && is_refusal(entry, hash)));
        Ok(json!({
            "service": path,
            "state": service["state"],
            "since": service["since"],
            "generation": ran.as_ref().map(|entry| entry.generation),
            "hash": ran.as_ref().map(|entry| &entry.hash),
            "retry_at": waiting.filter(|_| waits).map(|entry| entry.retry_at),
            "waits_for": service["waits_for"],
            "last_failure": self.history.last(|entry| of_service(entry) && entry.what.is_failure()),
            "refused": refused,
            "entries": self.history.newest(NEWEST, |entry| of_service(entry) || entry.name == library),
        }))
    }
}

/// Whether an entry says why the build of this hash is refused; one that was rolled back from stands in the cause.
/// A file that cannot be read has no hash.
fn is_refusal(entry: &Entry, hash: &str) -> bool {
    match entry.what {
        What::Refused => entry.hash.as_deref().unwrap_or_default() == hash,
        What::RolledBack => {
            let from = format!("({hash}) is rolled back");
            entry.cause.as_ref().is_some_and(|cause| cause.contains(&from))
        }
        _ => false,
    }
}

/// What `history` is asked: `[NAME] [--limit N]`.
fn question(rest: &str) -> Result<(Option<&str>, usize), Error> {
    let usage = || Error::invalid(format!("usage: history [NAME] [--limit N], where N is 1 to {CAPACITY}"));
    let (mut name, mut limit) = (None, SHOWN);
    let mut words = rest.split_whitespace();
    while let Some(word) = words.next() {
        match word {
            "--limit" => {
                let number = words.next().and_then(|number| number.parse::<usize>().ok());
                limit = number.filter(|number| (1..=CAPACITY).contains(number)).ok_or_else(usage)?;
            }
            word if name.is_none() && !word.starts_with('-') => name = Some(word),
            _ => return Err(usage()),
        }
    }
    Ok((name, limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_of_a_build() {
        let refused = Entry { hash: Some("aa".into()), ..Entry::new("a", What::Refused) };
        assert!(is_refusal(&refused, "aa") && !is_refusal(&refused, "bb") && !is_refusal(&refused, ""));
        let unreadable = Entry::new("a", What::Refused);
        assert!(is_refusal(&unreadable, "") && !is_refusal(&unreadable, "aa"));
        let back = Entry::new("a", What::RolledBack).of_build(1, "aa");
        let back = back.because("generation 2 (bb) is rolled back: it crashed within 10 s: boom");
        assert!(is_refusal(&back, "bb") && !is_refusal(&back, "aa"));
        assert!(!is_refusal(&Entry::new("a", What::Loaded).of_build(1, "aa"), "aa"));
    }

    #[test]
    fn words_in_either_order() {
        assert_eq!(question("").unwrap(), (None, SHOWN));
        assert_eq!(question("room/Room").unwrap(), (Some("room/Room"), SHOWN));
        assert_eq!(question("--limit 3 room").unwrap(), (Some("room"), 3));
        assert_eq!(question("room --limit 3").unwrap(), (Some("room"), 3));
        for wrong in ["a b", "--limit", "--limit 0", "--limit x", "--limit 10001", "--all"] {
            assert!(question(wrong).unwrap_err().text.contains("usage: history"), "{wrong}");
        }
    }
}
