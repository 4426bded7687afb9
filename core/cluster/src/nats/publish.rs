//! Sends the log to the broker: in order, many at a time, and once for each connection.

use async_nats::{Client, HeaderMap, Message, StatusCode, jetstream};
use futures_util::StreamExt;
use tokio::time::{Instant, sleep_until};

use super::trouble::Trouble;
use super::wire::{self, Part};
use super::{ACK_DEADLINE, Shared, WINDOW};

/// From the first piece that is not confirmed on. There is one deadline for all that is under way: the first of
/// it must be confirmed. Others behind it may be stored while it is lost, so they do not count.
pub async fn publish(shared: &Shared, client: &Client) -> Trouble {
    let log = &shared.log;
    let inbox = client.new_inbox();
    let Ok(answers) = client.subscribe(format!("{inbox}.*")).await else { return Trouble::Lost };
    let mut answers = answers.ready_chunks(WINDOW);
    let mut next = log.first();
    let (mut first, mut progress) = (next, Instant::now());
    loop {
        let before = std::mem::replace(&mut first, log.first());
        if before < first {
            progress = Instant::now();
        }
        let under_way = usize::try_from(next.saturating_sub(first)).unwrap_or(WINDOW);
        tokio::select! {
            messages = answers.next() => {
                let Some(messages) = messages else { return Trouble::Lost };
                for message in &messages {
                    match confirmed(message) {
                        Ok(seq) if seq < next => log.confirm(seq),
                        // A stranger that found the subject.
                        Ok(seq) => return Trouble::Refused(format!("it confirms {seq}, which was not sent")),
                        Err(why) => return Trouble::Refused(why),
                    }
                }
            }
            parts = log.from(next, WINDOW - under_way), if under_way < WINDOW => {
                if under_way == 0 {
                    progress = Instant::now();
                }
                for part in &parts {
                    if let Err(trouble) = send(shared, client, &inbox, next, part).await {
                        return trouble;
                    }
                    next += 1;
                }
            }
            () = sleep_until(progress + ACK_DEADLINE), if under_way > 0 => return Trouble::Silent,
        }
    }
}

async fn send(shared: &Shared, client: &Client, inbox: &str, seq: u64, part: &Part) -> Result<(), Trouble> {
    let Shared { node, boot, broker, .. } = shared;
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", format!("{node}:{boot:x}:{seq}"));
    let (reply, bytes) = (format!("{inbox}.{seq}"), wire::encode(node, *boot, seq, part));
    let sent = client.publish_with_reply_and_headers(broker.events.clone(), reply, headers, bytes).await;
    sent.map_err(|error| Trouble::Refused(error.to_string()))
}

/// Which piece the broker has, or why it does not take it.
fn confirmed(message: &Message) -> Result<u64, String> {
    #[derive(serde::Deserialize)]
    struct Answer {
        error: Option<jetstream::Error>,
    }
    if message.status == Some(StatusCode::NO_RESPONDERS) {
        return Err("there is no stream for it".into());
    }
    let answer: Answer = serde_json::from_slice(&message.payload).map_err(|error| error.to_string())?;
    if let Some(error) = answer.error {
        return Err(error.to_string());
    }
    let seq = message.subject.rsplit('.').next().and_then(|seq| seq.parse().ok());
    seq.ok_or_else(|| "its answer cannot be read".into())
}
