//! Why a connection to the broker ended.

use super::ACK_DEADLINE;
use super::wire::LEAST_MAX_PAYLOAD;

/// The next connection is made after a pause, whatever it was. Told as `NATS broker ADDRESS: ...`.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error("cannot connect: {0}; see that `nats-server -js` runs there and lets this node in")]
    Unreachable(String),
    #[error("cannot use the credentials or certificates: {0}")]
    Credentials(std::io::Error),
    #[error("it takes {0} bytes at a time: set `max_payload` in its settings to {LEAST_MAX_PAYLOAD} or more")]
    MaxPayload(usize),
    #[error(
        "it gives no stream {0}: {1}; see that it runs with JetStream (`nats-server -js`) and has room for it"
    )]
    Stream(String, String),
    #[error("its stream {0} does not take the subject {1}: remove it, or add the subject")]
    Subject(String, String),
    #[error("it gives no consumer: {0}")]
    Consumer(String),
    #[error("the connection was lost")]
    Lost,
    #[error("it confirmed nothing for {} s", ACK_DEADLINE.as_secs())]
    Silent,
    #[error("this node does not hear its own signs of life: may it subscribe to `{0}`, and publish there?")]
    Deaf(String),
    #[error("it does not store an event: {0}")]
    Refused(String),
    #[error("it ended the reading of its stream: {0}")]
    Reading(String),
    #[error("some of what it sent did not come")]
    Incomplete,
    #[error("its stream has lost its end")]
    Changed,
    #[error("the system gives no runtime for it: {0}")]
    Runtime(std::io::Error),
}
