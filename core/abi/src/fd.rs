//! File descriptors that cross the boundary.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// A descriptor of our own for what `fd` stands for. The one that was given stays its owner's.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl answers a new descriptor, or -1 for a number that is none.
    let own = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if own == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was made just now, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(own) })
}

/// Takes over a descriptor.
///
/// # Safety
/// It is open, and whoever gave it has given it away.
pub(crate) unsafe fn take(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller vouches for it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
