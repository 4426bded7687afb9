//! Where this node stands in the stream, and how it goes on from there.

use std::time::Duration;

use async_nats::datetime::DateTime;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::{self, DiscardPolicy, Info, RetentionPolicy, StorageType, Stream};

use super::options::Broker;
use super::trouble::Trouble;

/// How long the stream keeps events: for nodes that were away from the broker.
const MAX_AGE: Duration = Duration::from_secs(10 * 60);
/// How much of them.
const MAX_BYTES: i64 = 1024 * 1024 * 1024;
/// How long the broker knows a piece again.
const DUPLICATES: Duration = Duration::from_secs(2 * 60);
/// A consumer that nobody pulls from is removed by the broker after this.
const INACTIVE: Duration = Duration::from_secs(60);

/// Which piece was read: of which life, and its number there.
pub type Identity = (u64, u64);

/// How far this node has read.
#[derive(Clone, Debug)]
pub struct Place {
    /// Of which stream: one that was made anew under the same name is another.
    created: DateTime,
    /// The last that was read, or came before this node did; 0: none.
    sequence: u64,
    /// When the broker got it.
    time: DateTime,
    /// What it was; None: not seen.
    identity: Option<Identity>,
    /// The stream is not the one it was: what comes first is right, whatever it is.
    is_lost: bool,
}

/// What a message of the stream is to a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The next one.
    Next,
    /// Not the next one: what was between is gone.
    Hole,
    /// The one that was read last.
    Known,
    /// The one that was read last is another now: the broker lost it, and what came behind.
    Changed,
}

impl Place {
    /// At the end of a stream: what is said from now on is read.
    pub fn at_end(info: &Info) -> Self {
        let (created, state) = (info.created, &info.state);
        let (sequence, time) = (state.last_sequence, state.last_timestamp);
        Self { created, sequence, time, identity: None, is_lost: false }
    }

    /// Whether the stream can be the one that was read; from now on it is.
    pub fn is_in(&mut self, info: &Info) -> bool {
        let created = std::mem::replace(&mut self.created, info.created);
        created == info.created && self.sequence <= info.state.last_sequence
    }

    /// The stream is another, or has lost its end: what it got since the last piece that was read is new.
    pub fn lose(&mut self) {
        (self.sequence, self.identity, self.is_lost) = (0, None, true);
    }

    /// What a message is, and where it leaves the reader. One that has changed leaves it where it was.
    pub fn step(&mut self, sequence: u64, time: DateTime, identity: Option<Identity>) -> Step {
        let step = match sequence {
            _ if self.is_lost => Step::Next,
            _ if sequence > self.sequence + 1 => Step::Hole,
            _ if sequence == self.sequence + 1 => Step::Next,
            _ if sequence == self.sequence && (self.identity.is_none() || self.identity == identity) => {
                Step::Known
            }
            _ => return Step::Changed,
        };
        (self.sequence, self.time, self.identity, self.is_lost) = (sequence, time, identity, false);
        step
    }

    fn deliver(&self) -> DeliverPolicy {
        match self.is_lost {
            true => DeliverPolicy::ByStartTime { start_time: self.time },
            // The last one again, to see that it is the same.
            false => DeliverPolicy::ByStartSequence { start_sequence: self.sequence.max(1) },
        }
    }
}

/// The stream of the cluster; made where there is none.
pub async fn stream(context: &Context, broker: &Broker) -> Result<Stream<Info>, Trouble> {
    let config = config(broker);
    let mut stream = context.get_or_create_stream(config.clone()).await;
    if stream.is_err() {
        // Two nodes may have made it at the same time.
        stream = context.get_or_create_stream(config).await;
    }
    let stream = stream.map_err(|error| Trouble::Stream(broker.stream.clone(), error.to_string()))?;
    let found = &stream.cached_info().config;
    if !found.subjects.contains(&broker.events) {
        return Err(Trouble::Subject(broker.stream.clone(), broker.events.clone()));
    }
    Ok(stream)
}

/// What of a stream is not as this house would have made it; empty: nothing.
pub fn differences(found: &stream::Config, broker: &Broker) -> String {
    let ours = config(broker);
    let mut differences = Vec::new();
    let mut compare = |name: &str, found: String, ours: String| {
        if found != ours {
            differences.push(format!("{name} is {found}, not {ours}"));
        }
    };
    compare("max_age", format!("{:?}", found.max_age), format!("{:?}", ours.max_age));
    compare("max_bytes", found.max_bytes.to_string(), ours.max_bytes.to_string());
    compare("max_msgs", found.max_messages.max(-1).to_string(), "-1".into());
    compare("discard", format!("{:?}", found.discard), format!("{:?}", ours.discard));
    compare("retention", format!("{:?}", found.retention), format!("{:?}", ours.retention));
    compare("duplicates", format!("{:?}", found.duplicate_window), format!("{:?}", ours.duplicate_window));
    differences.join(", ")
}

/// Reads on from a place, for nobody else.
pub async fn consumer(stream: &Stream<Info>, place: &Place) -> Result<PullConsumer, Trouble> {
    let config = pull::Config {
        description: Some("one node of the cluster".into()),
        deliver_policy: place.deliver(),
        ack_policy: AckPolicy::None,
        inactive_threshold: INACTIVE,
        memory_storage: true,
        num_replicas: 1,
        ..Default::default()
    };
    stream.create_consumer(config).await.map_err(|error| Trouble::Consumer(error.to_string()))
}

fn config(broker: &Broker) -> stream::Config {
    stream::Config {
        name: broker.stream.clone(),
        description: Some("events between nodes of zephserver".into()),
        subjects: vec![broker.events.clone()],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::Old,
        max_age: MAX_AGE,
        max_bytes: MAX_BYTES,
        max_messages: -1,
        duplicate_window: DUPLICATES,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_nats::datetime::from_nanos;

    fn place(sequence: u64, identity: Option<Identity>) -> Place {
        let start = from_nanos(1).unwrap();
        Place { created: start, sequence, time: start, identity, is_lost: false }
    }

    /// Steps at these sequences; the identity of each is its sequence, in the first life.
    fn steps(place: &mut Place, sequences: &[u64]) -> Vec<Step> {
        let time = |sequence: u64| from_nanos(i128::from(sequence)).unwrap();
        sequences
            .iter()
            .map(|sequence| place.step(*sequence, time(*sequence), Some((1, *sequence))))
            .collect()
    }

    #[test]
    fn what_comes_in_line_is_next() {
        assert_eq!(steps(&mut place(0, None), &[1, 2, 3]), [Step::Next; 3]);
        assert_eq!(steps(&mut place(7, None), &[7, 8]), [Step::Known, Step::Next]);
        assert_eq!(steps(&mut place(7, Some((1, 7))), &[7, 8]), [Step::Known, Step::Next]);
    }

    #[test]
    fn what_is_gone_leaves_a_hole() {
        assert_eq!(steps(&mut place(0, None), &[2, 3]), [Step::Hole, Step::Next]);
        assert_eq!(steps(&mut place(7, Some((1, 7))), &[9, 10, 20]), [Step::Hole, Step::Next, Step::Hole]);
    }

    #[test]
    fn another_message_at_a_known_place_is_another_stream() {
        let mut changed = place(7, Some((2, 7)));
        assert_eq!(steps(&mut changed, &[7]), [Step::Changed]);
        assert_eq!(changed.sequence, 7);
        assert_eq!(steps(&mut place(7, Some((1, 7))), &[6]), [Step::Changed]);
        changed.lose();
        assert!(
            matches!(changed.deliver(), DeliverPolicy::ByStartTime { start_time } if start_time == changed.time)
        );
        assert_eq!(steps(&mut changed, &[3, 4, 6]), [Step::Next, Step::Next, Step::Hole]);
        assert!(matches!(changed.deliver(), DeliverPolicy::ByStartSequence { start_sequence: 6 }));
    }
}
