//! What every engine does alike, for each of them.

#[cfg(feature = "nats")]
mod broker;
mod ear;
mod suite;

use std::sync::Mutex;

use suite::{Cluster, Reach};
use zeph_cluster::{Engine, Local, Mesh, MeshOptions, Profile};

struct Locals;

impl Cluster for Locals {
    fn reach(&self) -> Reach {
        Reach::Nobody
    }

    fn node(&self, name: &str) -> Box<dyn Engine> {
        Box::new(Local::new(name))
    }
}

suite!(local, Locals);

/// Nodes that find one another through the first of them.
#[derive(Default)]
struct Meshed(Mutex<Vec<String>>);

impl Cluster for Meshed {
    fn reach(&self) -> Reach {
        Reach::Others
    }

    fn node(&self, name: &str) -> Box<dyn Engine> {
        let mut seeds = self.0.lock().unwrap();
        let listen = ([127, 0, 0, 1], 0).into();
        let options = MeshOptions {
            node: name.into(),
            listen,
            seeds: seeds.clone(),
            keys: None,
            profile: Profile::Fast,
        };
        let mesh = Mesh::start(options).unwrap();
        seeds.extend(mesh.status().address);
        Box::new(mesh)
    }
}

suite!(mesh, Meshed::default());

/// A broker, and the nodes around it.
#[cfg(feature = "nats")]
struct AroundBroker(broker::Broker);

#[cfg(feature = "nats")]
impl Cluster for AroundBroker {
    fn reach(&self) -> Reach {
        Reach::Others
    }

    fn node(&self, name: &str) -> Box<dyn Engine> {
        use zeph_cluster::nats::{Nats, Options};
        Box::new(Nats::start(Options::new(name, self.0.url())).unwrap())
    }
}

#[cfg(feature = "nats")]
suite!(nats, AroundBroker(broker::Broker::start()));
