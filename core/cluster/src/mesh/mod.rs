//! A few dozen nodes that need nothing beside themselves: each connected with each. [`node`] decides everything
//! ([`members`] who is there, [`link`] what one still owes another, [`log`] what is kept for that), [`driver`] has
//! the sockets, [`noise`] and [`datagram`] seal what goes over them.

mod datagram;
mod driver;
mod frame;
mod identity;
mod link;
mod log;
mod members;
mod node;
mod noise;
mod peer;
mod seeds;
mod waits;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datagram::{Opener, Sealer};
use driver::Shared;
pub(crate) use frame::Events;
use identity::Identity;
use log::Capacity;
use node::{Config, Node};
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::Runtime;
use waits::Waits;

use crate::hub::Hub;
use crate::key::Keys;
use crate::life::new_boot;
use crate::{Engine, Error, Handler, LONGEST_NAME, Profile, Status, Subscription, Watcher, check_event};

/// How long leaving may take.
const LEAVE: Duration = Duration::from_secs(1);
/// Threads for connections.
const THREADS: usize = 2;
/// A free port is asked for so often until it is free for both kinds of sockets.
const PORTS: usize = 16;

/// How a node takes part in a mesh.
#[derive(Clone, Debug)]
pub struct MeshOptions {
    /// Its name: no other node of the cluster has it.
    pub node: String,
    /// Where it takes datagrams and connections: an address under which others reach it. Port 0: any.
    pub listen: SocketAddr,
    /// `HOST:PORT` of nodes that may be there already; one that answers is enough.
    pub seeds: Vec<String>,
    /// The cluster's keys; None: nodes of this machine only.
    pub keys: Option<Keys>,
    /// How soon a node is taken for dead.
    pub profile: Profile,
}

/// Why a node cannot take part.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// Nobody may listen to others without a key.
    #[error(
        "the cluster is to listen on {0}, beyond this machine, and has no key: make one with `zephserver cluster key \
         FILE`, give it to all nodes, and name it: [cluster] key_file"
    )]
    NoKey(SocketAddr),
    /// Others cannot connect to "anywhere".
    #[error(
        "the cluster is to listen on {0}: give the address under which other nodes reach this one, [cluster] listen"
    )]
    Anywhere(SocketAddr),
    /// The name cannot be one.
    #[error("the name of a node has 1 to {LONGEST_NAME} bytes, `{0}` has {len}", len = .0.len())]
    Name(String),
    /// A socket cannot be opened.
    #[error("the cluster cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Threads or random numbers are not to be had.
    #[error("the cluster cannot start: {0}")]
    System(io::Error),
}

/// A node of a mesh.
pub struct Mesh {
    node: String,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

impl Mesh {
    /// Starts to listen and to look for others.
    pub fn start(options: MeshOptions) -> Result<Self, MeshError> {
        let MeshOptions { node, listen, seeds, keys, profile } = options;
        if node.is_empty() || node.len() > LONGEST_NAME {
            return Err(MeshError::Name(node));
        }
        if listen.ip().is_unspecified() {
            return Err(MeshError::Anywhere(listen));
        }
        if keys.is_none() && !listen.ip().is_loopback() {
            return Err(MeshError::NoKey(listen));
        }
        let keys = keys.unwrap_or_else(Keys::of_everybody);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("zephserver-mesh")
            .enable_all()
            .build()
            .map_err(MeshError::System)?;
        let (listener, udp) =
            runtime.block_on(open(listen)).map_err(|source| MeshError::Listen { address: listen, source })?;
        let address = listener.local_addr().map_err(MeshError::System)?;
        let random = |error: getrandom::Error| MeshError::System(error.into());
        let mut dice = [0; 16];
        getrandom::fill(&mut dice).map_err(random)?;
        let boot = new_boot().map_err(random)?;
        let identity = Identity::new(address, &node, boot);
        let config = Config {
            identity,
            waits: Waits::of(profile),
            capacity: Capacity::default(),
            seeds: Vec::new(),
            dice: u128::from_le_bytes(dice) as u64,
        };
        let hub = Arc::new(Hub::default());
        let (sealer, opener) = (Sealer::new(&keys, dice), Opener::new(&keys));
        let decider = Node::new(config, Instant::now());
        let handle = runtime.handle().clone();
        let shared = Arc::new(Shared::new(decider, hub.clone(), udp, sealer, keys, handle));
        let handlers = std::thread::Builder::new().name("zephserver-cluster".into());
        handlers.spawn(move || hub.run()).map_err(MeshError::System)?;
        runtime.spawn(shared.clone().hear(opener));
        runtime.spawn(shared.clone().listen(listener));
        runtime.spawn(shared.clone().look_up(seeds));
        runtime.spawn(shared.clone().tick());
        Ok(Self { node, shared, runtime: Some(runtime) })
    }
}

/// One port for connections and datagrams.
async fn open(listen: SocketAddr) -> io::Result<(TcpListener, UdpSocket)> {
    let mut tries = 0;
    loop {
        let listener = TcpListener::bind(listen).await?;
        match UdpSocket::bind(listener.local_addr()?).await {
            Ok(udp) => return Ok((listener, udp)),
            Err(error) if listen.port() != 0 || tries == PORTS => return Err(error),
            Err(_) => tries += 1,
        }
    }
}

impl Engine for Mesh {
    fn node(&self) -> &str {
        &self.node
    }

    fn say(&self, event: &str, payload: &[u8]) -> Result<usize, Error> {
        check_event(event, payload)?;
        self.shared.say(event, payload, None)
    }

    fn tell(&self, node: &str, event: &str, payload: &[u8]) -> Result<(), Error> {
        check_event(event, payload)?;
        self.shared.say(event, payload, Some(node)).map(drop)
    }

    fn subscribe(&self, event: &str, handler: Handler) -> Subscription {
        self.shared.hub.subscribe(event, handler)
    }

    fn subscribe_all(&self, handler: Handler) -> Subscription {
        self.shared.hub.subscribe_all(handler)
    }

    fn watch(&self, watcher: Watcher) -> Subscription {
        self.shared.hub.watch(watcher)
    }

    fn status(&self) -> Status {
        let status = self.shared.with(|node| node.status(Instant::now()));
        Status { waiting: self.shared.hub.waiting(), refused: self.shared.refused(), ..status }
    }

    fn leave(&self) {
        self.shared.leave(LEAVE);
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.shared.hub.end();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Events as they come in from a connection.
#[cfg(test)]
pub(crate) fn one_event(name: &str) -> Events {
    match frame::take(&mut frame::event(1, name, b"")[..].into()) {
        Ok(Some(frame::Frame::Events(events))) => events,
        other => panic!("no event: {other:?}"),
    }
}
