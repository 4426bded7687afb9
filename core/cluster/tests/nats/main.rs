//! What a broker can do to the nodes around it: be away, die under load, lose what it stored.

mod access;
mod away;
#[path = "../broker/mod.rs"]
mod broker;
#[path = "../ear/mod.rs"]
mod ear;
mod members;
mod stream;

use std::io;
use std::sync::{LazyLock, Mutex, mpsc};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use broker::Broker;
use ear::{Ear, changes, check_stream, down, events, insist_numbers, say_numbers, up, wait_until};
use futures_util::TryStreamExt;
use zeph_cluster::Profile;
use zeph_cluster::nats::{Nats, Options};
use zeph_cluster::{Change, Engine, Error, MemberState, SAY_TIMEOUT};

/// What the engines of this process log.
static LOG: LazyLock<Mutex<Vec<u8>>> = LazyLock::new(|| {
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(|| ToLog)
        .with_max_level(tracing::Level::DEBUG)
        .init();
    Mutex::default()
});

struct ToLog;

impl io::Write for ToLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn logged() -> String {
    String::from_utf8_lossy(&LOG.lock().unwrap()).into_owned()
}

fn options(broker: &Broker, node: &str) -> Options {
    LazyLock::force(&LOG);
    Options { profile: Profile::Fast, ..Options::new(node, broker.url()) }
}

fn start(broker: &Broker, node: &str) -> Nats {
    Nats::start(options(broker, node)).unwrap()
}

/// Nodes of these names, once each knows all others.
fn nodes(broker: &Broker, names: &[&str]) -> Vec<Nats> {
    let nodes: Vec<_> = names.iter().map(|name| start(broker, name)).collect();
    wait_until("all know all others", || nodes.iter().all(|node| up_count(node) == names.len() - 1));
    nodes
}

fn up_count(node: &Nats) -> usize {
    node.status().members.iter().filter(|member| member.state == MemberState::Up).count()
}

/// Does something with the broker that no node knows of.
fn admin<F: Future>(broker: &Broker, act: impl FnOnce(jetstream::Context) -> F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { act(jetstream::new(async_nats::connect(broker.url()).await.unwrap())).await })
}

/// Everything that was said, in order and once.
fn assert_all(ear: &Ear, from: &[&str], each: u64) {
    ear.wait_events(from.len() * each as usize);
    for node in from {
        let (numbers, gaps) = check_stream(&ear.heard(), node);
        assert!(numbers.iter().copied().eq(0..each), "{node}: {} of {each}", numbers.len());
        assert_eq!(gaps, 0, "{node}");
    }
}

/// The last of these numbers came from a node, in whatever state the rest is.
fn wait_number(ear: &Ear, node: &str, number: u64) {
    let is_it = |said: &zeph_cluster::Said| *said.node == *node && said.payload == number.to_string();
    let mut looked_at = 0;
    ear.wait(&format!("{number} of {node}"), |heard| {
        events(&heard[std::mem::replace(&mut looked_at, heard.len())..]).iter().any(is_it)
    });
}
