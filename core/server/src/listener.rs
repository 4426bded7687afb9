//! Listening sockets: kept by the server, lent to edges. An edge that is replaced or crashes leaves
//! its socket open, so that no connection attempt is refused meanwhile.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, IntoRawFd, RawFd};
use std::sync::{Mutex, PoisonError};

use zeph_contract::Error;

/// Connections that wait to be accepted; the kernel's own limit (net.core.somaxconn) counts, too.
const BACKLOG: i32 = 4096;

/// A socket, and whose it is.
struct Lent {
    owner: String,
    /// The first and the last of its instances that asked for it, by their serials.
    first: u32,
    last: u32,
    socket: TcpListener,
}

/// All listening sockets of a server.
#[derive(Default)]
pub struct Listeners {
    /// By the address as it was asked for.
    sockets: Mutex<HashMap<String, Lent>>,
}

impl Listeners {
    /// Lends the socket of an address, `tcp:IP:PORT`; opens it at first. The answer is the borrower's.
    /// Port 0 is a free port, and the same one for the same borrower. `serial` is that of its instance.
    pub fn lend(&self, borrower: &str, serial: u32, address: &str) -> Result<RawFd, Error> {
        let wanted = address.strip_prefix("tcp:").and_then(|address| address.parse::<SocketAddr>().ok());
        let wanted = wanted.ok_or_else(|| {
            Error::invalid(format!(
                "`{address}` is no address to listen on; it is written tcp:127.0.0.1:8080"
            ))
        })?;
        let key = if wanted.port() == 0 { format!("{address} {borrower}") } else { address.into() };
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lent) = sockets.get_mut(&key) {
            if lent.owner != borrower {
                return Err(Error::refused(format!("{} listens on {wanted} already", lent.owner)));
            }
            lent.last = serial;
            return duplicate(&lent.socket);
        }
        let socket = TcpListener::bind(wanted).map_err(|error| {
            Error::unavailable(format!(
                "cannot listen on {wanted}: {error}; `ss -ltnp 'sport = :{}'` shows who does",
                wanted.port()
            ))
        })?;
        // More than the standard library's 128: many clients may come back at the same moment.
        rustix::net::listen(&socket, BACKLOG).map_err(std::io::Error::from)?;
        let fd = duplicate(&socket)?;
        if let Ok(address) = socket.local_addr() {
            tracing::info!("{borrower}: listens on {address}");
        }
        sockets.insert(key, Lent { owner: borrower.into(), first: serial, last: serial, socket });
        Ok(fd)
    }

    /// The addresses that are listened on, with whoever asked for them.
    pub fn addresses(&self) -> Vec<(String, SocketAddr)> {
        let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let address = |lent: &Lent| Some((lent.owner.clone(), lent.socket.local_addr().ok()?));
        sockets.values().filter_map(address).collect()
    }

    /// Closes those of a borrower that has stopped. Only what it still holds itself stays open.
    pub fn release(&self, borrower: &str) {
        self.retain(|lent| lent.owner != borrower);
    }

    /// Closes those that an instance did not ask for which took over from others of its name.
    pub fn keep_only(&self, borrower: &str, serial: u32) {
        self.retain(|lent| lent.owner != borrower || lent.last == serial);
    }

    /// Closes those that were opened for an instance which will not serve.
    pub fn forget(&self, borrower: &str, serial: u32) {
        self.retain(|lent| lent.owner != borrower || lent.first != serial);
    }

    fn retain(&self, is_kept: impl Fn(&Lent) -> bool) {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.retain(|_, lent| is_kept(lent));
    }

    /// Closes all of them.
    pub fn close(&self) {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn duplicate(socket: &TcpListener) -> Result<RawFd, Error> {
    Ok(socket.as_fd().try_clone_to_owned()?.into_raw_fd())
}
