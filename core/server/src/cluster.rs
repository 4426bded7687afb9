//! The cluster as the rest of the server uses it: one engine, what it brings to services, and what went by lately.

mod recent;

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};
use zeph_cluster::{Change, Engine, Handler, Keys, Local, Mesh, MeshOptions, Status, Subscription, Watcher};
use zeph_contract::Error;
use zeph_contract::event::NodeChange;

use crate::bus::Bus;
use crate::mailbox::OwnedEvent;
use crate::settings::{ClusterSettings, EngineKind};
pub use recent::Recent;

/// The cluster of a server. It begins after the libraries are open, and before the services.
#[derive(Clone, Default)]
pub struct Cluster(Arc<Parts>);

#[derive(Default)]
struct Parts {
    engine: OnceLock<Box<dyn Engine>>,
    recent: Arc<Recent>,
    /// Of what is kept as recent.
    watched: OnceLock<[Subscription; 2]>,
}

/// The key that the settings name; None: none. Read before anything is started.
pub fn keys(settings: &ClusterSettings) -> Result<Option<Keys>, crate::Error> {
    let fault = |error: zeph_cluster::KeyError| crate::Error::Start(format!("[cluster] {error}"));
    match (&settings.key_file, settings.engine) {
        (Some(file), EngineKind::Mesh) => Keys::read(file).map(Some).map_err(fault),
        _ => Ok(None),
    }
}

fn open(settings: &ClusterSettings) -> Result<Box<dyn Engine>, crate::Error> {
    let node = settings.node.clone();
    match settings.engine {
        EngineKind::Local => Ok(Box::new(Local::new(node))),
        EngineKind::Mesh => {
            let listen = address(settings.listen.as_deref().unwrap_or_default())?;
            let (seeds, profile) = (settings.seeds.clone(), settings.profile());
            let options = MeshOptions { node, listen, seeds, keys: keys(settings)?, profile };
            let mesh = Mesh::start(options).map_err(|error| crate::Error::Start(error.to_string()))?;
            Ok(Box::new(mesh))
        }
        EngineKind::Nats => nats(settings),
    }
}

#[cfg(feature = "nats")]
fn nats(settings: &ClusterSettings) -> Result<Box<dyn Engine>, crate::Error> {
    use zeph_cluster::nats::{Nats, Options};
    let urls = settings.url.as_deref().unwrap_or_default().split(',').map(|url| url.trim().into()).collect();
    let options = Options {
        urls,
        credentials: settings.key_file.clone(),
        profile: settings.profile(),
        ..Options::new(&settings.node, "")
    };
    let nats = Nats::start(options).map_err(|error| crate::Error::Start(format!("[cluster] {error}")))?;
    Ok(Box::new(nats))
}

#[cfg(not(feature = "nats"))]
fn nats(_: &ClusterSettings) -> Result<Box<dyn Engine>, crate::Error> {
    // The settings say so before.
    Err(crate::Error::Start("this zephserver was built without the engine nats".into()))
}

fn address(listen: &str) -> Result<SocketAddr, crate::Error> {
    let fault =
        |why: String| crate::Error::Start(format!("[cluster] listen: \"{listen}\" is no address: {why}"));
    let mut found = listen.to_socket_addrs().map_err(|error| fault(error.to_string()))?;
    found.next().ok_or_else(|| fault("it is not known".into()))
}

impl Cluster {
    /// Begins to take part.
    pub fn start(&self, settings: &ClusterSettings) -> Result<(), crate::Error> {
        let engine = open(settings)?;
        let recent = self.0.recent.clone();
        let events: Handler = Arc::new(move |said| recent.add(&said.node, said.event(), &said.payload));
        let recent = self.0.recent.clone();
        let changes: Watcher = Arc::new(move |change| {
            let (node, word) = node_change(change);
            log(change);
            recent.add_change(node, word);
        });
        let _ = self.0.watched.set([engine.subscribe_all(events), engine.watch(changes)]);
        if let Some(address) = engine.status().address {
            tracing::info!("cluster: node {}, {} at {address}", settings.node, settings.engine.name());
        }
        let _ = self.0.engine.set(engine);
        Ok(())
    }

    fn engine(&self) -> Result<&dyn Engine, Error> {
        self.0
            .engine
            .get()
            .map(|engine| &**engine)
            .ok_or_else(|| Error::unavailable("the cluster is not up yet"))
    }

    /// Says an event to all other nodes; answers how many are up.
    pub fn say(&self, event: &str, payload: &[u8]) -> Result<usize, Error> {
        let engine = self.engine()?;
        let up = engine.say(event, payload).map_err(|why| error(&why))?;
        self.0.recent.add(engine.node(), event, payload);
        Ok(up)
    }

    /// Tells one node.
    pub fn tell(&self, node: &str, event: &str, payload: &[u8]) -> Result<(), Error> {
        self.engine()?.tell(node, event, payload).map_err(|why| error(&why))
    }

    /// Brings events of one name to the service in a slot.
    pub fn bring_events(
        &self,
        bus: &Arc<Bus>,
        slot: u32,
        token: u64,
        event: &str,
    ) -> Result<Subscription, Error> {
        Ok(self.engine()?.subscribe(event, handler(bus.clone(), slot, token, event)))
    }

    /// Brings changes of the cluster to the service in a slot.
    pub fn bring_changes(&self, bus: &Arc<Bus>, slot: u32, token: u64) -> Result<Subscription, Error> {
        Ok(self.engine()?.watch(watcher(bus.clone(), slot, token)))
    }

    /// How it stands; None: it is not up yet.
    pub fn status(&self) -> Option<Status> {
        self.0.engine.get().map(|engine| engine.status())
    }

    /// The verb `cluster`.
    pub fn describe(&self) -> Result<Value, Error> {
        Ok(json!(self.engine()?.status()))
    }

    /// What went by lately.
    pub fn recent(&self) -> &Recent {
        &self.0.recent
    }

    /// Leaves. Nothing comes in any more afterwards.
    pub fn leave(&self) {
        if let Some(engine) = self.0.engine.get() {
            engine.leave();
        }
    }
}

fn handler(bus: Arc<Bus>, slot: u32, token: u64, event: &str) -> Handler {
    let name: Arc<str> = event.into();
    let epoch = epoch(&bus, slot);
    Arc::new(move |said| {
        if let Some(slot) = bus.registry.slot(u64::from(slot)) {
            let event = OwnedEvent::said(&said.node, name.clone(), said.payload[..].into());
            bus.post(slot, event.to(token, epoch));
        }
    })
}

fn watcher(bus: Arc<Bus>, slot: u32, token: u64) -> Watcher {
    let epoch = epoch(&bus, slot);
    Arc::new(move |change| {
        let (node, change) = node_change(change);
        if let Some(slot) = bus.registry.slot(u64::from(slot)) {
            bus.post(slot, OwnedEvent::change(node, change).to(token, epoch));
        }
    })
}

/// The one in which a service subscribes: what it asked for is nothing to whoever begins anew after it.
fn epoch(bus: &Bus, slot: u32) -> u32 {
    bus.registry.slot(u64::from(slot)).map_or(0, |slot| slot.mailbox.epoch())
}

fn node_change(change: &Change) -> (&Arc<str>, NodeChange) {
    match change {
        Change::Up(node) => (node, NodeChange::Up),
        Change::Down(node) => (node, NodeChange::Down),
        Change::Gap { node, .. } => (node, NodeChange::Gap),
        Change::Evicted(node) => (node, NodeChange::Evicted),
    }
}

fn log(change: &Change) {
    match change {
        Change::Up(node) => tracing::info!("cluster: node {node} is up"),
        Change::Down(node) => tracing::warn!("cluster: node {node} is down"),
        Change::Gap { node, from, to, .. } => {
            tracing::warn!("cluster: events {from} to {to} of node {node} are lost here");
        }
        Change::Evicted(node) => {
            tracing::warn!("cluster: node {node} takes nothing; others do not wait for it any longer");
        }
    }
}

/// A cluster's error as services and operators get it.
fn error(error: &zeph_cluster::Error) -> Error {
    use zeph_cluster::Error as Why;
    let text = error.to_string();
    match error {
        Why::NoSuchNode(_) => Error::not_found(text),
        Why::Busy => Error::busy(text),
        Why::TooLarge(_) | Why::BadName(_) => Error::invalid(text),
        Why::Closed => Error::unavailable(text),
    }
}
