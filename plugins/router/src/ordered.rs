//! Requests whose tasks run one after the other for each peer. Pure.

use std::collections::{HashMap, VecDeque};

use zephserver_plugin::contract::peer::Cid;
use zephserver_plugin::contract::wire::{Reader, Writer};
use zephserver_plugin::{Error, Result};

/// Requests of one peer that wait for the one before, at most.
const WAITING: usize = 256;

/// Bytes of them.
const BYTES: usize = 4 * 1024 * 1024;

/// A request that waits: the call that its answer is for, and what was asked.
#[derive(Debug, PartialEq, Eq)]
pub struct Waiting {
    pub token: u64,
    pub request: Vec<u8>,
}

/// Who waits for whom.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ordered {
    /// The call that runs, and whose it is.
    running: HashMap<u64, Cid>,
    /// One entry for each peer that has a call running.
    waiting: HashMap<Cid, VecDeque<Waiting>>,
}

impl Ordered {
    /// A request comes. Some: it may run now.
    pub fn enter(&mut self, cid: Cid, waiting: Waiting) -> Result<Option<Waiting>> {
        match self.waiting.get_mut(&cid) {
            Some(queue) if queue.len() >= WAITING || bytes(queue) + waiting.request.len() > BYTES => {
                Err(Error::busy(format!("{} of your requests wait for the one before already", queue.len())))
            }
            Some(queue) => {
                queue.push_back(waiting);
                Ok(None)
            }
            None => {
                self.waiting.insert(cid, VecDeque::new());
                self.running.insert(waiting.token, cid);
                Ok(Some(waiting))
            }
        }
    }

    /// A call has its answer. Some: the request that may run now.
    pub fn leave(&mut self, token: u64) -> Option<Waiting> {
        let cid = self.running.remove(&token)?;
        match self.waiting.get_mut(&cid).and_then(VecDeque::pop_front) {
            Some(next) => {
                self.running.insert(next.token, cid);
                Some(next)
            }
            None => {
                self.waiting.remove(&cid);
                None
            }
        }
    }

    /// All of it, for the next build.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer(&mut bytes);
        for (token, cid) in &self.running {
            let queue = self.waiting.get(cid).into_iter().flatten();
            writer.u64(*token).u64(*cid).u32(queue.clone().count() as u32);
            for waiting in queue {
                writer.u64(waiting.token).bytes(&waiting.request);
            }
        }
        bytes
    }

    /// What the build before left.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader(bytes);
        let mut ordered = Self::default();
        while !reader.is_empty() {
            let (token, cid, count) = (reader.u64()?, reader.u64()?, reader.u32()?);
            let queue =
                (0..count).map(|_| Ok(Waiting { token: reader.u64()?, request: reader.bytes()?.to_vec() }));
            let queue = queue.collect::<Result<_>>()?;
            ordered.running.insert(token, cid);
            ordered.waiting.insert(cid, queue);
        }
        Ok(ordered)
    }
}

fn bytes(queue: &VecDeque<Waiting>) -> usize {
    queue.iter().map(|waiting| waiting.request.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(token: u64) -> Waiting {
        Waiting { token, request: vec![token as u8] }
    }

    #[test]
    fn one_after_the_other_for_each_peer() {
        let mut ordered = Ordered::default();
        assert_eq!(ordered.enter(1, waiting(10)).unwrap(), Some(waiting(10)));
        assert_eq!(ordered.enter(1, waiting(11)).unwrap(), None);
        assert_eq!(ordered.enter(2, waiting(20)).unwrap(), Some(waiting(20)), "another peer");
        assert_eq!(ordered.enter(1, waiting(12)).unwrap(), None);
        let mut ordered = Ordered::decode(&ordered.encode()).unwrap();
        assert_eq!(ordered.leave(10), Some(waiting(11)));
        assert_eq!(ordered.leave(10), None, "not twice");
        assert_eq!(ordered.leave(11), Some(waiting(12)));
        assert_eq!((ordered.leave(12), ordered.leave(20)), (None, None));
        assert_eq!(ordered, Ordered::default());
    }

    #[test]
    fn a_peer_cannot_wait_for_ever_more() {
        let mut ordered = Ordered::default();
        for token in 0..=WAITING as u64 {
            ordered.enter(1, waiting(token)).unwrap();
        }
        assert!(ordered.enter(1, waiting(9999)).is_err());
    }
}
