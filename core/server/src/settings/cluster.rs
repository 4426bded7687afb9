//! `[cluster]` and CLUSTER_SERVER_LIST: whether this node takes part in a cluster, how, and as whom.

use std::net::SocketAddr;
use std::path::PathBuf;

use zeph_cluster::Profile;

use super::read::Reader;
use super::tree::{Node, Table, Written};
use super::{Fault, nearest};

/// The keys of `[cluster]`.
pub const CLUSTER_KEYS: &[&str] = &["engine", "node", "listen", "key_file", "seeds", "url", "profile"];
const ENGINES: &[&str] = &["local", "mesh", "nats"];
const PROFILES: &[&str] = &["lan", "fast"];

/// How this node takes part in a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// `node`, or the machine's name.
    pub node: String,
    /// What it takes part with.
    pub engine: EngineKind,
    /// Where it listens: `HOST:PORT`.
    pub listen: Option<String>,
    /// Where others may be: `HOST:PORT`; the other entries of CLUSTER_SERVER_LIST are among them.
    pub seeds: Vec<String>,
    /// The file of the cluster's key.
    pub key_file: Option<PathBuf>,
    /// The broker of `nats`.
    pub url: Option<String>,
    /// `lan` or `fast`.
    pub profile: String,
    /// CLUSTER_SERVER_LIST.
    pub list: Vec<ClusterNode>,
}

/// What a node takes part with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// It is alone.
    Local,
    /// Each node is connected with each.
    Mesh,
    /// All are connected with a broker.
    Nats,
}

impl EngineKind {
    /// As the settings name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Mesh => "mesh",
            Self::Nats => "nats",
        }
    }
}

/// One entry of CLUSTER_SERVER_LIST.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterNode {
    /// The node's name.
    pub hostname: String,
    /// Where it listens.
    pub address: String,
    /// Its port.
    pub port: u16,
}

impl ClusterNode {
    fn place(&self) -> String {
        // An IPv6 address stands in brackets before a port.
        match self.address.contains(':') && !self.address.starts_with('[') {
            true => format!("[{}]:{}", self.address, self.port),
            false => format!("{}:{}", self.address, self.port),
        }
    }
}

impl Cluster {
    /// How soon a node is taken for dead.
    pub fn profile(&self) -> Profile {
        Profile::named(&self.profile).unwrap_or_default()
    }
}

/// `[cluster]` as it is written, each value with its line.
struct Given {
    engine: Option<(usize, String)>,
    listen: Option<(usize, String)>,
    url: Option<(usize, String)>,
    seeds: Vec<String>,
}

impl Reader {
    /// Everything about the cluster.
    pub fn cluster(&mut self) -> Cluster {
        let list_line = self.line_of("CLUSTER_SERVER_LIST");
        let list = self.cluster_list();
        let mut table = std::mem::take(&mut self.cluster);
        let node = self.take_text(&mut table, "node");
        let (node_line, node) = node.unwrap_or_else(|| (0, machine_name()));
        let given = Given {
            engine: self.take_text(&mut table, "engine"),
            listen: self.take_text(&mut table, "listen"),
            url: self.take_text(&mut table, "url"),
            seeds: self.take_seeds(&mut table),
        };
        let key_file = self.take_text(&mut table, "key_file").map(|(_, file)| self.absolute(&file));
        let profile = self.take_word(&mut table, "profile", PROFILES).unwrap_or_else(|| "lan".into());
        self.cluster = table;
        if node.is_empty() || node.len() > zeph_cluster::LONGEST_NAME {
            let text = format!("[cluster] node has 1 to {} bytes", zeph_cluster::LONGEST_NAME);
            self.fault(node_line, text, None);
        }
        let engine = self.engine(&given, &list);
        let (listen, listed) = match engine {
            EngineKind::Mesh => self.places(&node, (list_line, &list), &given),
            _ => (None, Vec::new()),
        };
        if let Some(listen) = &listen {
            let line = given.listen.as_ref().map_or(list_line, |(line, _)| *line);
            self.check_listen(line, listen, key_file.is_some());
        }
        let seeds = given.seeds.into_iter().chain(listed).collect();
        Cluster { node, engine, listen, seeds, key_file, url: given.url.map(|(_, url)| url), profile, list }
    }

    /// What is named; else what the other settings ask for.
    fn engine(&mut self, given: &Given, list: &[ClusterNode]) -> EngineKind {
        let engine = match &given.engine {
            Some((line, name)) => match name.as_str() {
                "local" => EngineKind::Local,
                "mesh" => EngineKind::Mesh,
                "nats" => EngineKind::Nats,
                other => {
                    let text = format!("[cluster] engine is \"{other}\"; it can be {}", ENGINES.join(", "));
                    self.fault(*line, text, nearest(other, ENGINES.iter().copied()));
                    EngineKind::Local
                }
            },
            None if given.url.is_some() => EngineKind::Nats,
            None if list.len() > 1 || !given.seeds.is_empty() => EngineKind::Mesh,
            None => EngineKind::Local,
        };
        let line = given.engine.as_ref().or(given.url.as_ref()).map_or(0, |(line, _)| *line);
        if engine == EngineKind::Nats {
            if given.url.is_none() {
                let hint = Some("url = \"nats://127.0.0.1:4222\"".into());
                self.fault(line, "[cluster] url is missing: where the NATS server listens".into(), hint);
            }
            if !cfg!(feature = "nats") {
                let hint = Some("cargo build --release --workspace --features zephserver/nats".into());
                self.fault(line, "this zephserver was built without the engine nats".into(), hint);
            }
        }
        engine
    }

    /// Where a node of a mesh listens, and where CLUSTER_SERVER_LIST says that others do.
    fn places(
        &mut self,
        node: &str,
        (line, list): (usize, &[ClusterNode]),
        given: &Given,
    ) -> (Option<String>, Vec<String>) {
        let listen = given.listen.as_ref().map(|(_, listen)| listen.clone());
        if list.len() < 2 {
            if listen.is_none() {
                let hint = Some("listen = \"127.0.0.1:22631\"".into());
                let line = given.engine.as_ref().map_or(0, |(line, _)| *line);
                let text = "[cluster] listen is missing: where other nodes reach this one";
                self.fault(line, text.into(), hint);
            }
            return (listen, Vec::new());
        }
        let Some(own) = list.iter().find(|entry| entry.hostname == node) else {
            let names = list.iter().map(|entry| entry.hostname.as_str()).collect::<Vec<_>>().join(", ");
            let text = format!("CLUSTER_SERVER_LIST has no entry for this node, `{node}`; it has {names}");
            self.fault(line, text, Some("name this node: [cluster] node = \"...\"".into()));
            return (listen, Vec::new());
        };
        let others = list.iter().filter(|entry| entry.hostname != node).map(ClusterNode::place);
        (Some(listen.unwrap_or_else(|| own.place())), others.collect())
    }

    /// What can be known without opening a socket.
    fn check_listen(&mut self, line: usize, listen: &str, has_key: bool) {
        let Ok(address) = listen.parse::<SocketAddr>() else {
            if listen.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
                let text = format!("the cluster is to listen on \"{listen}\", which is no HOST:PORT");
                self.fault(line, text, Some("listen = \"10.0.0.1:22631\"".into()));
            }
            return;
        };
        if address.ip().is_unspecified() {
            let text = format!(
                "the cluster is to listen on {address}: give the address under which others reach this node"
            );
            self.fault(line, text, Some("listen = \"10.0.0.1:22631\"".into()));
        } else if !address.ip().is_loopback() && !has_key {
            let text = format!("the cluster is to listen on {address}, beyond this machine, and has no key");
            let hint = "make one with `zephserver cluster key FILE`, give it to all nodes, and name it: [cluster] \
                        key_file = \"FILE\"";
            self.fault(line, text, Some(hint.into()));
        }
    }

    fn cluster_list(&mut self) -> Vec<ClusterNode> {
        let mut nodes: Vec<ClusterNode> = Vec::new();
        for node in self.list("CLUSTER_SERVER_LIST").map(|(_, list)| list).unwrap_or_default() {
            match cluster_node(&node) {
                Ok(entry) if nodes.iter().any(|known| known.hostname == entry.hostname) => {
                    let text = format!("CLUSTER_SERVER_LIST names `{}` twice", entry.hostname);
                    self.fault(node.line, text, None);
                }
                Ok(entry) => nodes.push(entry),
                Err((line, text)) => self.fault(line, text, None),
            }
        }
        nodes
    }

    fn take_text(&mut self, table: &mut Table, key: &str) -> Option<(usize, String)> {
        let node = table.remove(key)?;
        match node.value {
            Written::Text(text) => Some((node.line, text)),
            _ => {
                self.wrong_type(&node, &format!("[cluster] {key}"), "a text");
                None
            }
        }
    }

    fn take_word(&mut self, table: &mut Table, key: &str, known: &[&str]) -> Option<String> {
        let (line, word) = self.take_text(table, key)?;
        if known.contains(&word.as_str()) {
            return Some(word);
        }
        let text = format!("[cluster] {key} is \"{word}\"; it can be {}", known.join(", "));
        self.fault(line, text, nearest(&word, known.iter().copied()));
        None
    }

    fn take_seeds(&mut self, table: &mut Table) -> Vec<String> {
        let Some(node) = table.remove("seeds") else { return Vec::new() };
        let Written::List(list) = &node.value else {
            self.wrong_type(&node, "[cluster] seeds", "a list");
            return Vec::new();
        };
        let mut seeds = Vec::new();
        for seed in list {
            match &seed.value {
                Written::Text(text)
                    if text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) =>
                {
                    seeds.push(text.clone());
                }
                _ => {
                    let text = "a seed is a text HOST:PORT, where another node listens".into();
                    self.fault(seed.line, text, Some("seeds = [\"10.0.0.1:22631\"]".into()));
                }
            }
        }
        seeds
    }

    fn fault(&mut self, line: usize, text: String, hint: Option<String>) {
        self.faults.push(Fault { line, text, hint });
    }

    fn wrong_type(&mut self, node: &Node, key: &str, expected: &str) {
        self.faults.push(Fault::wrong_type(node.line, key, expected, node));
    }
}

fn machine_name() -> String {
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if hostname.trim().is_empty() { "localhost".into() } else { hostname.trim().into() }
}

fn cluster_node(node: &Node) -> Result<ClusterNode, (usize, String)> {
    let form =
        "an entry of CLUSTER_SERVER_LIST is { hostname = \"a\", address = \"10.0.0.1\", port = 22631 }";
    let fault = || (node.line, form.to_string());
    let Written::Table(table) = &node.value else { return Err(fault()) };
    let text = |key: &str| match table.get(key).map(|node| &node.value) {
        Some(Written::Text(text)) if !text.is_empty() => Ok(text.clone()),
        _ => Err(fault()),
    };
    let port = match table.get("port").map(|node| &node.value) {
        Some(Written::Integer(port)) => u16::try_from(*port).map_err(|_| fault())?,
        _ => return Err(fault()),
    };
    Ok(ClusterNode { hostname: text("hostname")?, address: text("address")?, port })
}
