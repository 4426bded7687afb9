//! The seal of connections: `Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s` under the cluster's key, as the Noise
//! specification (revision 34) has it. Each connection has keys of its own; what is changed, left out, brought again
//! or out of its order does not open.
//!
//! ```text
//! who dials:   id of the key (u8) · length (u16) · first message
//! who listens:                     length (u16) · second message
//! then both:                       length (u16) · sealed bytes, again and again      lengths little-endian
//! ```
//!
//! Whoever brings a first message again gets an answer, and cannot go on: so a connection counts as nobody's
//! until the first sealed bytes have opened.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use bytes::{Buf, BytesMut};
use snow::{Builder, HandshakeState, StatelessTransportState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::key::Keys;

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &[u8] = b"zephserver cluster 1";
/// The key for connections is one of its own.
const PURPOSE: &str = "connections";
/// Bytes of a sealed message at most, and what the seal takes of them.
const MESSAGE: usize = 65_535;
const TAG: usize = 16;
const LENGTH: usize = 2;
/// Bytes of a handshake message at most.
const GREETING: usize = 256;
/// Bytes that are read at a time.
const READ: usize = 128 * 1024;

fn refused(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}

fn broken(_: snow::Error) -> io::Error {
    refused("the seal does not open: another key_file, or bytes were changed")
}

/// Both halves of a sealed connection.
pub struct Sealed {
    pub reader: Reader,
    pub writer: Arc<Writer>,
}

/// Opens what comes.
pub struct Reader {
    stream: OwnedReadHalf,
    seal: Arc<StatelessTransportState>,
    nonce: u64,
    wire: BytesMut,
    /// What was opened and not taken yet.
    pub opened: BytesMut,
}

/// Seals what goes, from any thread: whoever has the lock writes, and waits for nothing with it.
pub struct Writer {
    stream: OwnedWriteHalf,
    sealing: Mutex<Sealing>,
}

/// The order of what goes.
pub struct Sealing {
    seal: Arc<StatelessTransportState>,
    nonce: u64,
    wire: Vec<u8>,
    /// So much of it is out.
    out: usize,
}

fn state(secret: &[u8; 32]) -> Result<Builder<'_>, snow::Error> {
    Builder::new(PATTERN.parse()?).prologue(PROLOGUE)?.psk(0, secret)
}

async fn send(stream: &mut TcpStream, head: &[u8], state: &mut HandshakeState) -> io::Result<()> {
    let mut message = [0; GREETING];
    let length = state.write_message(&[], &mut message).map_err(broken)?;
    let whole = [head, &(length as u16).to_le_bytes(), &message[..length]].concat();
    stream.write_all(&whole).await
}

async fn receive(stream: &mut TcpStream, state: &mut HandshakeState) -> io::Result<()> {
    let length = usize::from(stream.read_u16_le().await?);
    if length > GREETING {
        return Err(refused("no handshake of ours is so long"));
    }
    let mut message = [0; GREETING];
    stream.read_exact(&mut message[..length]).await?;
    state.read_message(&message[..length], &mut [0; GREETING]).map(drop).map_err(broken)
}

/// Seals a connection that was made here.
pub async fn dial(mut stream: TcpStream, keys: &Keys) -> io::Result<Sealed> {
    let key = keys.own();
    let secret = key.derive(PURPOSE);
    let mut state = state(&secret).and_then(Builder::build_initiator).map_err(broken)?;
    send(&mut stream, &[key.id], &mut state).await?;
    receive(&mut stream, &mut state).await?;
    sealed(stream, state)
}

/// Seals a connection that somebody else made, and waits for the first sealed bytes.
pub async fn accept(mut stream: TcpStream, keys: &Keys) -> io::Result<Sealed> {
    let id = stream.read_u8().await?;
    let key = keys.all().iter().find(|key| key.id == id);
    let key =
        key.ok_or_else(|| refused("a connection under another key: all nodes need the same key_file"))?;
    let secret = key.derive(PURPOSE);
    let mut state = state(&secret).and_then(Builder::build_responder).map_err(broken)?;
    receive(&mut stream, &mut state).await?;
    send(&mut stream, &[], &mut state).await?;
    let mut sealed = sealed(stream, state)?;
    sealed.reader.more().await?;
    Ok(sealed)
}

fn sealed(stream: TcpStream, state: HandshakeState) -> io::Result<Sealed> {
    let seal = Arc::new(state.into_stateless_transport_mode().map_err(broken)?);
    let (read, write) = stream.into_split();
    let wire = BytesMut::with_capacity(READ);
    let reader = Reader { stream: read, seal: seal.clone(), nonce: 0, wire, opened: BytesMut::new() };
    let sealing = Mutex::new(Sealing { seal, nonce: 0, wire: Vec::new(), out: 0 });
    Ok(Sealed { reader, writer: Arc::new(Writer { stream: write, sealing }) })
}

impl Reader {
    /// Waits for bytes, and opens what is whole of them.
    pub async fn more(&mut self) -> io::Result<()> {
        loop {
            self.wire.reserve(READ);
            if self.stream.read_buf(&mut self.wire).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if self.open()? {
                return Ok(());
            }
        }
    }

    /// Opens whole messages. False: there is none yet.
    fn open(&mut self) -> io::Result<bool> {
        let mut has_opened = false;
        while let Some((length, rest)) = self.wire.split_first_chunk::<LENGTH>() {
            let length = usize::from(u16::from_le_bytes(*length));
            let Some(message) = rest.get(..length) else { break };
            let before = self.opened.len();
            self.opened.resize(before + length, 0);
            let opened = self.seal.read_message(self.nonce, message, &mut self.opened[before..]);
            let opened = opened.map_err(broken)?;
            self.opened.truncate(before + opened);
            self.nonce += 1;
            self.wire.advance(LENGTH + length);
            has_opened = true;
        }
        Ok(has_opened)
    }
}

impl Writer {
    /// The right to write; None: somebody else has it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, Sealing>> {
        match self.sealing.try_lock() {
            Ok(sealing) => Some(sealing),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The same, when others are done.
    pub fn lock(&self) -> MutexGuard<'_, Sealing> {
        self.sealing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is sealed. False: the socket takes no more now.
    pub fn try_flush(&self, sealing: &mut Sealing) -> io::Result<bool> {
        while sealing.out < sealing.wire.len() {
            match self.stream.try_write(&sealing.wire[sealing.out..]) {
                Ok(written) => sealing.out += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        sealing.wire.clear();
        sealing.out = 0;
        Ok(true)
    }

    /// Waits until the socket takes more.
    pub async fn writable(&self) -> io::Result<()> {
        self.stream.writable().await
    }

    /// Seals and writes all of it.
    #[cfg(test)]
    pub async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        self.lock().seal(bytes)?;
        while !self.try_flush(&mut self.lock())? {
            self.writable().await?;
        }
        Ok(())
    }
}

impl Sealing {
    /// True where everything sealed is out.
    pub fn is_empty(&self) -> bool {
        self.wire.is_empty()
    }

    /// Seals bytes behind what is not out yet.
    pub fn seal(&mut self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(MESSAGE - TAG) {
            let before = self.wire.len();
            let length = piece.len() + TAG;
            self.wire.extend_from_slice(&(length as u16).to_le_bytes());
            self.wire.resize(before + LENGTH + length, 0);
            let sealed = self.seal.write_message(self.nonce, piece, &mut self.wire[before + LENGTH..]);
            sealed.map_err(broken)?;
            self.nonce += 1;
        }
        Ok(())
    }
}
