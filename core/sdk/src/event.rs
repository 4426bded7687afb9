//! Things that happen, as a service hears of them.

use zeph_abi::EventKind;
use zeph_contract::event::NodeChange;

use crate::{Code, Error, Result};

/// Something that a service asked to hear of.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// The answer to a call begun with [`Handle::begin`](crate::Handle::begin).
    Reply {
        /// The call.
        token: u64,
        /// The caller's own number for it.
        cookie: u64,
        /// Its answer.
        result: Result<&'a [u8]>,
    },
    /// One item of a stream begun with [`Handle::begin_stream`](crate::Handle::begin_stream).
    Item {
        /// The call.
        token: u64,
        /// The caller's own number for it.
        cookie: u64,
        /// The item.
        payload: &'a [u8],
    },
    /// The receiver of a stream that this service sends takes more.
    Credit {
        /// The pending call.
        token: u64,
        /// How many items more.
        items: u64,
    },
    /// The caller of a pending call no longer waits.
    Cancelled {
        /// The pending call.
        token: u64,
    },
    /// A timer is due.
    Timer {
        /// The timer.
        token: u64,
    },
    /// A service of this node published an event.
    Published {
        /// The event's name.
        name: &'a str,
        /// What it says.
        payload: &'a [u8],
    },
    /// Another node said an event.
    Said {
        /// The event's name.
        name: &'a str,
        /// What it says.
        payload: &'a [u8],
    },
    /// Something happened to another node of the cluster, or to what it said.
    Node {
        /// The node's name.
        name: &'a str,
        /// What happened.
        change: NodeChange,
    },
    /// A kind of event that is newer than this plugin.
    Unknown,
}

impl<'a> Event<'a> {
    pub(crate) fn from_abi(event: &zeph_abi::Event<'a>) -> Self {
        let zeph_abi::Event { token, number, name, payload, .. } = *event;
        match event.kind {
            EventKind::Reply => Self::Reply { token, cookie: number, result: result(event) },
            EventKind::Item => Self::Item { token, cookie: number, payload },
            EventKind::Credit => Self::Credit { token, items: number },
            EventKind::Cancelled => Self::Cancelled { token },
            EventKind::Timer => Self::Timer { token },
            EventKind::Published => Self::Published { name, payload },
            EventKind::Said => Self::Said { name, payload },
            EventKind::Node => {
                serde_json::from_slice(payload).map_or(Self::Unknown, |change| Self::Node { name, change })
            }
            // The adapter takes these.
            EventKind::Serving | EventKind::Unknown => Self::Unknown,
        }
    }
}

/// The answer that a reply event carries.
pub(crate) fn result<'a>(event: &zeph_abi::Event<'a>) -> Result<&'a [u8]> {
    match event.status {
        zeph_abi::status::DONE => Ok(event.payload),
        status => Err(Error::new(Code::from_number(status), String::from_utf8_lossy(event.payload))),
    }
}
