//! What one generation leaves to the next.

use std::os::fd::RawFd;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// State as a service exports it: bytes of its own, and descriptors that the bytes name by index.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<RawFd>,
}

impl State {
    /// Bytes.
    pub fn bytes(bytes: Vec<u8>) -> Self {
        Self { bytes, fds: Vec::new() }
    }

    /// JSON.
    pub fn json(value: &impl Serialize) -> Result<Self> {
        Ok(Self::bytes(serde_json::to_vec(value)?))
    }

    /// Adds a descriptor and answers its index. From the commit on it belongs to the next generation, so
    /// do not close it in this one's end; after `thaw` it is this generation's as before.
    pub fn push_fd(&mut self, fd: RawFd) -> usize {
        self.fds.push(fd);
        self.fds.len() - 1
    }
}

/// State as a service imports it.
#[derive(Clone, Copy, Debug)]
pub struct Imported<'a> {
    /// The version that it was exported with.
    pub version: u32,
    /// The bytes.
    pub bytes: &'a [u8],
    /// The descriptors. Own them in `init`: [`Host::adopt`](crate::Host::adopt).
    pub fds: &'a [RawFd],
}

impl Imported<'_> {
    /// The bytes as JSON.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(self.bytes)
            .map_err(|error| Error::invalid(format!("state of version {}: {error}", self.version)))
    }
}
