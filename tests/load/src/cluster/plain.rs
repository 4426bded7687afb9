//! The least that it takes: a plain socket to each, nothing sealed and nothing kept, one thread that reads and another
//! one that hears. What a mesh takes beyond that is its own; below it no machine goes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::SMALL;
use super::child::{Heard, Speaker};
use crate::Result;

/// Events that may wait to be heard.
const WAITING: usize = 1024;

/// Sockets of all others, in the order in which they came.
type Sockets = Arc<Mutex<Vec<TcpStream>>>;

fn lock(sockets: &Sockets) -> MutexGuard<'_, Vec<TcpStream>> {
    sockets.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Sender {
    address: SocketAddr,
    sockets: Sockets,
}

impl Speaker for Sender {
    fn address(&self) -> String {
        self.address.to_string()
    }

    fn others(&self) -> usize {
        lock(&self.sockets).len()
    }

    fn say(&mut self, payload: &[u8]) -> Result<()> {
        lock(&self.sockets).iter_mut().try_for_each(|socket| socket.write_all(payload))?;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

struct Receiver;

impl Speaker for Receiver {
    fn address(&self) -> String {
        String::new()
    }

    fn others(&self) -> usize {
        // It knows of nobody but the first, which waits for all.
        usize::MAX
    }

    fn say(&mut self, _payload: &[u8]) -> Result<()> {
        Err("only the first says something".into())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

/// The first listens, the others connect to it. Every event has [`SMALL`] bytes.
pub fn speaker(seed: &str, heard: &Heard) -> Result<Box<dyn Speaker>> {
    if seed.is_empty() {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let (address, sockets) = (listener.local_addr()?, Sockets::default());
        let accepted = sockets.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                if socket.set_nodelay(true).is_ok() {
                    lock(&accepted).push(socket);
                }
            }
        });
        return Ok(Box::new(Sender { address, sockets }));
    }
    let mut socket = TcpStream::connect(seed)?;
    let (sender, events) = sync_channel(WAITING);
    std::thread::spawn(move || {
        let mut event = [0; SMALL];
        while socket.read_exact(&mut event).is_ok() && sender.send(event).is_ok() {}
    });
    let heard = heard.clone();
    std::thread::spawn(move || events.iter().for_each(|event| heard.event(None, &event)));
    Ok(Box::new(Receiver))
}
