//! The seal of datagrams: XChaCha20-Poly1305 under a key for this purpose. Pure.
//!
//! ```text
//! datagram = id of the key (u8) · sender (16 bytes) · counter (u64) · sealed (milliseconds since 1970 (u64) · content)
//! ```
//!
//! The nonce is sender and counter: random for each start of a node, and counted. What came already is refused by
//! the counter; what an unknown sender sends must be of these 30 seconds, so that nothing of a sender that is gone
//! can be brought again. A node that starts anew knows no sender, and would take such a datagram once: membership
//! bears that.

use std::collections::HashMap;

use chacha20poly1305::aead::{Aead, AeadInPlace, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};

use crate::key::Keys;

/// How old a datagram of an unknown sender may be, and how far clocks may differ, in milliseconds.
const SKEW: u64 = 30_000;
/// Senders that are remembered.
const SENDERS: usize = 1024;
const HEAD: usize = 1 + 16 + 8;
const PURPOSE: &str = "datagrams";

/// Why a datagram is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is of another cluster, or of nobody.
    #[error("a datagram under another key: all nodes of a cluster need the same key_file")]
    Stranger,
    /// It came already.
    #[error("a datagram that came already")]
    Replayed,
    /// Clocks differ too much.
    #[error("a datagram of {0} s ago or ahead: set the clocks of the nodes, they may differ by 30 s")]
    Skewed(u64),
}

/// Seals what goes out.
pub struct Sealer {
    cipher: XChaCha20Poly1305,
    id: u8,
    sender: [u8; 16],
    counter: u64,
}

impl Sealer {
    /// `sender`: random bytes that no other start of any node has.
    pub fn new(keys: &Keys, sender: [u8; 16]) -> Self {
        let key = keys.own();
        Self { cipher: XChaCha20Poly1305::new(&key.derive(PURPOSE).into()), id: key.id, sender, counter: 0 }
    }

    /// A datagram with this content.
    pub fn seal(&mut self, content: &[u8], now: u64) -> Vec<u8> {
        self.counter += 1;
        let mut nonce = [0; 24];
        nonce[..16].copy_from_slice(&self.sender);
        nonce[16..].copy_from_slice(&self.counter.to_le_bytes());
        let mut out = Vec::with_capacity(HEAD + 8 + content.len() + 16);
        out.push(self.id);
        out.extend_from_slice(&nonce);
        let mut sealed = [&now.to_le_bytes()[..], content].concat();
        // Fails for contents of many gigabytes only.
        let _ = self.cipher.encrypt_in_place(XNonce::from_slice(&nonce), &[self.id], &mut sealed);
        out.extend_from_slice(&sealed);
        out
    }
}

/// Opens what comes in.
pub struct Opener {
    ciphers: Vec<(u8, XChaCha20Poly1305)>,
    senders: HashMap<[u8; 16], Window>,
    /// Orders the use of senders.
    uses: u64,
}

/// Which counters of a sender came.
struct Window {
    highest: u64,
    /// Bit n: `highest - n` came.
    came: u64,
    used: u64,
}

impl Window {
    /// False: this counter came already, or is too old to know.
    fn takes(&mut self, counter: u64) -> bool {
        if counter > self.highest {
            let ahead = counter - self.highest;
            self.came = if ahead < 64 { self.came << ahead | 1 } else { 1 };
            self.highest = counter;
            return true;
        }
        let behind = self.highest - counter;
        let is_new = behind < 64 && self.came & (1 << behind) == 0;
        if is_new {
            self.came |= 1 << behind;
        }
        is_new
    }
}

impl Opener {
    pub fn new(keys: &Keys) -> Self {
        let cipher = |key: &crate::key::Key| (key.id, XChaCha20Poly1305::new(&key.derive(PURPOSE).into()));
        Self { ciphers: keys.all().iter().map(cipher).collect(), senders: HashMap::new(), uses: 0 }
    }

    /// The content of a datagram.
    pub fn open(&mut self, datagram: &[u8], now: u64) -> Result<Vec<u8>, Refusal> {
        let (head, sealed) = datagram.split_at_checked(HEAD).ok_or(Refusal::Stranger)?;
        let nonce = &head[1..];
        let payload = || Payload { msg: sealed, aad: &head[..1] };
        let of_id = self.ciphers.iter().filter(|(id, _)| *id == head[0]);
        let opened =
            of_id.filter_map(|(_, cipher)| cipher.decrypt(XNonce::from_slice(nonce), payload()).ok()).next();
        let opened = opened.ok_or(Refusal::Stranger)?;
        let (at, content) = opened.split_first_chunk::<8>().ok_or(Refusal::Stranger)?;
        let (mut sender, mut counter) = ([0; 16], [0; 8]);
        sender.copy_from_slice(&nonce[..16]);
        counter.copy_from_slice(&nonce[16..]);
        self.uses += 1;
        let (used, counter) = (self.uses, u64::from_le_bytes(counter));
        if let Some(window) = self.senders.get_mut(&sender) {
            window.used = used;
            return if window.takes(counter) { Ok(content.to_vec()) } else { Err(Refusal::Replayed) };
        }
        let skew = u64::from_le_bytes(*at).abs_diff(now);
        if skew > SKEW {
            return Err(Refusal::Skewed(skew / 1000));
        }
        self.make_room();
        self.senders.insert(sender, Window { highest: counter, came: 1, used });
        Ok(content.to_vec())
    }

    fn make_room(&mut self) {
        if self.senders.len() >= SENDERS
            && let Some(oldest) =
                self.senders.iter().min_by_key(|(_, window)| window.used).map(|(sender, _)| *sender)
        {
            self.senders.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000_000;

    fn pair() -> (Sealer, Opener) {
        let keys = Keys::of_everybody();
        (Sealer::new(&keys, [7; 16]), Opener::new(&keys))
    }

    #[test]
    fn what_was_sealed_opens_once() {
        let (mut sealer, mut opener) = pair();
        let datagrams: Vec<_> = (0..200).map(|number: u8| sealer.seal(&[number], NOW)).collect();
        assert_eq!(opener.open(&datagrams[5], NOW), Ok(vec![5]));
        assert_eq!(opener.open(&datagrams[2], NOW), Ok(vec![2]), "out of order");
        assert_eq!(opener.open(&datagrams[5], NOW), Err(Refusal::Replayed));
        assert_eq!(opener.open(&datagrams[2], NOW), Err(Refusal::Replayed));
        assert_eq!(opener.open(&datagrams[199], NOW), Ok(vec![199]));
        assert_eq!(opener.open(&datagrams[100], NOW), Err(Refusal::Replayed), "too old to know");
        assert_eq!(opener.open(&datagrams[198], NOW), Ok(vec![198]));
    }

    #[test]
    fn a_changed_bit_is_a_stranger_and_changes_nothing() {
        let (mut sealer, mut opener) = pair();
        let datagram = sealer.seal(b"content", NOW);
        for at in 0..datagram.len() {
            let mut changed = datagram.clone();
            changed[at] ^= 1;
            assert_eq!(opener.open(&changed, NOW), Err(Refusal::Stranger), "byte {at}");
        }
        for cut in 0..datagram.len() {
            assert_eq!(opener.open(&datagram[..cut], NOW), Err(Refusal::Stranger));
        }
        assert_eq!(opener.open(&datagram, NOW), Ok(b"content".to_vec()));
    }

    #[test]
    fn an_unknown_sender_is_of_now() {
        let (mut sealer, mut opener) = pair();
        let datagram = sealer.seal(b"x", NOW);
        assert_eq!(opener.open(&datagram, NOW + 31_000), Err(Refusal::Skewed(31)));
        assert_eq!(opener.open(&datagram, NOW - 31_000), Err(Refusal::Skewed(31)));
        assert_eq!(opener.open(&datagram, NOW + 29_000), Ok(b"x".to_vec()));
        // Once known, its clock does not matter.
        let later = sealer.seal(b"y", NOW - 100_000);
        assert_eq!(opener.open(&later, NOW), Ok(b"y".to_vec()));
    }

    #[test]
    fn senders_are_bounded() {
        let (_, mut opener) = pair();
        for number in 0..2 * SENDERS as u64 {
            let mut sender = [0; 16];
            sender[..8].copy_from_slice(&number.to_le_bytes());
            let datagram = Sealer::new(&Keys::of_everybody(), sender).seal(b"x", NOW);
            opener.open(&datagram, NOW).unwrap();
        }
        assert_eq!(opener.senders.len(), SENDERS);
    }
}
