//! File descriptors that crossed the boundary.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes over a descriptor that the other side gave away: one of `HostSide::listener`, or of an
/// imported state.
///
/// Call it once for each descriptor that was given, and with no other number: what closes it
/// afterwards is the answer's drop.
pub fn adopt(fd: RawFd) -> std::io::Result<OwnedFd> {
    // SAFETY: fcntl reads only the descriptor's flags.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: it is open, and the boundary's rule makes it ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
