//! What one generation leaves to the next.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

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

    /// Adds a descriptor and answers its index. It stays this generation's, which closes it in its end as
    /// ever: the next one gets a duplicate ([`Imported::fd`]), and nothing is to be undone where that fails.
    pub fn push_fd(&mut self, fd: &impl AsRawFd) -> usize {
        self.fds.push(fd.as_raw_fd());
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
    pub(crate) fds: &'a [RawFd],
}

impl Imported<'_> {
    /// How many descriptors came with it.
    pub fn fds(&self) -> usize {
        self.fds.len()
    }

    /// A duplicate of the descriptor of an index, to keep.
    pub fn fd(&self, index: usize) -> Result<OwnedFd> {
        let fd = self.fds.get(index);
        let fd = fd.ok_or_else(|| {
            Error::invalid(format!("the state names descriptor {index} of {}", self.fds.len()))
        })?;
        Ok(zeph_abi::fd::duplicate(*fd)?)
    }

    /// The bytes as JSON.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(self.bytes)
            .map_err(|error| Error::invalid(format!("state of version {}: {error}", self.version)))
    }
}
