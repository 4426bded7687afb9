//! Reads the stream, as far as handlers keep up.

use std::time::{Duration, Instant};

use async_nats::jetstream::Message;
use async_nats::jetstream::stream::{Info, Stream};
use futures_util::StreamExt;

use super::Shared;
use super::members::Members;
use super::place::{self, Place, Step};
use super::trouble::Trouble;
use super::wire;
use crate::hub::News;

/// Messages that are asked for at a time.
const BATCH: usize = 256;
/// Messages that are handed on at a time.
const CHUNK: usize = 128;
/// How long one request for messages stands.
const REQUEST: Duration = Duration::from_secs(30);
/// The consumer says so often that it is there. After twice as long without that it is not.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// With one consumer after another, until there is trouble.
pub async fn read(shared: &Shared, place: &mut Place, stream: &Stream<Info>) -> Trouble {
    loop {
        if let Err(trouble) = read_on(shared, place, stream).await {
            return trouble;
        }
    }
}

/// Until handlers did not keep up for so long that the consumer is better made anew.
async fn read_on(shared: &Shared, place: &mut Place, stream: &Stream<Info>) -> Result<(), Trouble> {
    let consumer = place::consumer(stream, place).await?;
    let messages = consumer.stream().max_messages_per_batch(BATCH).heartbeat(HEARTBEAT).expires(REQUEST);
    let messages = messages.messages().await.map_err(|error| Trouble::Consumer(error.to_string()))?;
    let mut messages = messages.ready_chunks(CHUNK);
    let mut delivered = 0;
    loop {
        let began = Instant::now();
        shared.hub.room().await;
        if began.elapsed() >= HEARTBEAT {
            // Nobody else has it. Where it cannot be removed it goes by itself.
            drop(stream.delete_consumer(&consumer.cached_info().name).await);
            return Ok(());
        }
        let Some(chunk) = messages.next().await else { return Err(Trouble::Reading("no reason".into())) };
        shared.with_members(|members, news| {
            for message in chunk {
                let message = message.map_err(|error| Trouble::Reading(error.to_string()))?;
                take(shared, members, news, place, &mut delivered, &message)?;
            }
            Ok(())
        })?;
    }
}

fn take(
    shared: &Shared,
    members: &mut Members,
    news: &mut Vec<News>,
    place: &mut Place,
    delivered: &mut u64,
    message: &Message,
) -> Result<(), Trouble> {
    let info = message.info().map_err(|error| Trouble::Reading(error.to_string()))?;
    *delivered += 1;
    if info.consumer_sequence != *delivered {
        return Err(Trouble::Incomplete);
    }
    let piece = wire::decode(&message.payload);
    let identity = piece.as_ref().map(|piece| (piece.boot, piece.seq));
    match place.step(info.stream_sequence, info.published, identity) {
        Step::Next => {}
        Step::Known => return Ok(()),
        Step::Hole => members.tear(),
        Step::Changed => {
            lose(shared, place, members);
            return Err(Trouble::Changed);
        }
    }
    match piece {
        Some(piece) => members.piece(Instant::now(), piece, news),
        None => members.refuse(),
    }
    Ok(())
}

/// The stream is not the one that was read.
pub fn lose(shared: &Shared, place: &mut Place, members: &mut Members) {
    let (address, stream) = (&shared.broker.address, &shared.broker.stream);
    tracing::warn!(
        "NATS broker {address}: it has lost the stream {stream} or its end; who misses events is told"
    );
    place.lose();
    members.tear();
}
