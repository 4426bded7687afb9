//! What the mesh is compared with: NATS by itself, and JetStream by itself.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::{self, stream};
use futures_util::StreamExt;
use tokio::runtime::Runtime;

use super::child::{Heard, Over, Speaker};
use crate::Result;

/// Acks that may be under way.
const UNDER_WAY: usize = 200;
const SUBJECT: &str = "bench";

/// Whatever speaks over NATS.
pub fn speaker(over: &Over, name: &str, heard: &Heard) -> Result<Box<dyn Speaker>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match over {
        Over::NatsCore(url) => {
            let client = runtime.block_on(listen(url, name, heard.clone()))?;
            Ok(Box::new(Core { client, runtime }))
        }
        Over::JetStream(url) => {
            let context = runtime.block_on(stream(url, name, heard.clone()))?;
            Ok(Box::new(Stream { context, runtime, acks: VecDeque::new() }))
        }
        Over::Mesh | Over::Nats(_) | Over::Plain => Err("these are not NATS alone".into()),
    }
}

/// All but the first listen.
async fn listen(url: &str, name: &str, heard: Heard) -> Result<async_nats::Client> {
    // Enough for everything that one round says: what is lost is lost on the way.
    let options = async_nats::ConnectOptions::new().subscription_capacity(1 << 20);
    let client = options.connect(url).await?;
    if name != "n0" {
        let mut messages = client.subscribe(SUBJECT).await?;
        client.flush().await?;
        tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                heard.event(None, &message.payload);
            }
        });
    }
    Ok(client)
}

async fn stream(url: &str, name: &str, heard: Heard) -> Result<jetstream::Context> {
    let context = jetstream::new(async_nats::connect(url).await?);
    let config = stream::Config {
        name: "BENCH".into(),
        subjects: vec![SUBJECT.into()],
        storage: stream::StorageType::File,
        max_age: Duration::from_secs(600),
        ..Default::default()
    };
    let stream = context.get_or_create_stream(config).await?;
    if name != "n0" {
        let new = OrderedConfig { deliver_policy: DeliverPolicy::New, ..Default::default() };
        let consumer = stream.create_consumer(new).await?;
        let mut messages = consumer.messages().await?;
        tokio::spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                heard.event(None, &message.payload);
            }
        });
    }
    Ok(context)
}

struct Core {
    client: async_nats::Client,
    runtime: Runtime,
}

impl Speaker for Core {
    fn address(&self) -> String {
        "-".into()
    }

    /// Nobody counts them: whoever is started listens.
    fn others(&self) -> usize {
        usize::MAX
    }

    fn say(&mut self, payload: &[u8]) -> Result<()> {
        let payload = payload.to_vec().into();
        Ok(self.runtime.block_on(self.client.publish(SUBJECT, payload))?)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(self.runtime.block_on(self.client.flush())?)
    }
}

struct Stream {
    context: jetstream::Context,
    runtime: Runtime,
    acks: VecDeque<PublishAckFuture>,
}

impl Speaker for Stream {
    fn address(&self) -> String {
        "-".into()
    }

    fn others(&self) -> usize {
        usize::MAX
    }

    fn say(&mut self, payload: &[u8]) -> Result<()> {
        let payload = payload.to_vec().into();
        let ack = self.runtime.block_on(self.context.publish(SUBJECT, payload))?;
        self.acks.push_back(ack);
        if self.acks.len() >= UNDER_WAY
            && let Some(ack) = self.acks.pop_front()
        {
            self.runtime.block_on(async { ack.await })?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        for ack in std::mem::take(&mut self.acks) {
            self.runtime.block_on(async { ack.await })?;
        }
        Ok(())
    }
}
