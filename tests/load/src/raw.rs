//! The raw peers: one thread, one epoll, no protocol. What a server cannot be faster than.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpListener;
use mio::{Events, Poll};

use crate::pipe::Pipe;
use crate::{DEADLINE, Result};

/// One buffer for all reads.
pub const READ: usize = 64 * 1024;

/// What a raw peer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// The bytes of each read go back with one write.
    Echo,
    /// The bytes of each read from the first connection go to every connection with one write each.
    Send,
}

/// Listens on a free port of this machine, prints it, and serves.
pub fn listen(work: Work, connections: usize) -> Result<()> {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    println!("{}", listener.local_addr()?.port());
    serve(&listener, work, connections)
}

/// Takes so many connections, and serves them until the last one is closed.
pub fn serve(listener: &TcpListener, work: Work, connections: usize) -> Result<()> {
    let mut poll = Poll::new()?;
    let mut peers = accept(listener, connections)?;
    for (at, peer) in peers.iter_mut().enumerate() {
        peer.register(poll.registry(), at)?;
    }
    let mut is_open = vec![true; connections];
    let mut open = connections;
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; READ];
    // It needs no deadline: when the generator is gone, so are its connections.
    while open > 0 {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            other => other?,
        }
        for event in events.iter() {
            let at = event.token().0;
            if event.is_writable() {
                let _ = peers[at].flush();
            }
            while event.is_readable() && is_open[at] {
                match peers[at].read(&mut buffer) {
                    Ok(None) => break,
                    Ok(Some(0)) | Err(_) => {
                        is_open[at] = false;
                        open -= 1;
                    }
                    Ok(Some(count)) => {
                        pass_on(work, &mut peers, at, &buffer[..count]);
                        // It has emptied the socket; the next byte is another event.
                        if count < READ && !event.is_read_closed() {
                            break;
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

/// Who cannot be sent to has gone, which the next read tells.
fn pass_on(work: Work, peers: &mut [Pipe], at: usize, bytes: &[u8]) {
    match work {
        Work::Echo => drop(peers[at].send(bytes)),
        Work::Send if at == 0 => peers.iter_mut().for_each(|peer| drop(peer.send(bytes))),
        Work::Send => {}
    }
}

fn accept(listener: &TcpListener, connections: usize) -> Result<Vec<Pipe>> {
    let end = Instant::now() + DEADLINE;
    let mut peers = Vec::with_capacity(connections);
    while peers.len() < connections {
        match listener.accept() {
            Ok((socket, _)) => {
                socket.set_nodelay(true)?;
                peers.push(Pipe::new(socket));
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if Instant::now() > end {
                    let seconds = DEADLINE.as_secs();
                    let count = peers.len();
                    return Err(format!("{count} of {connections} connections came in {seconds} s").into());
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(peers)
}
