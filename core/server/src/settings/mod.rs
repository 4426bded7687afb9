//! settings.toml: from what is written to what it means.
//!
//! The server's own keys are resolved here, before anything else happens ([`Settings::read`]). What
//! belongs to plugins is kept as written until their libraries are open and say what they know
//! ([`plugin`]).

mod fault;
mod plugin;
mod tree;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use fault::nearest;
pub use fault::{Fault, Faults};
pub use plugin::{Restart, ServiceOptions, ServiceSettings, check_service, unclaimed};
use tree::{Node, Table, Written};

/// Top-level names that belong to plugins in every installation, claimed or not.
const WELL_KNOWN: &[&str] =
    &["PORT_ZEPH", "MY_SESSION_HANDLER", "MY_ROOM_HANDLER", "TASKS_PATH", "SAME_DOMAIN"];

const OWN: &[&str] = &[
    "LOCK_FILE",
    "LOG_LEVEL",
    "LOG_PATH",
    "CONFIGURATION_NETWORK_INTERFACE_SERVER",
    "SERVICE_LIST",
    "CLUSTER_SERVER_LIST",
    "PLUGIN_PATH",
    "STATE_PATH",
    "server",
    "cluster",
];

const SERVER_KEYS: &[&str] = &["call_timeout", "gate_timeout", "drain_timeout", "pool_threads", "watch"];

/// What the settings file means for the server, and what it says to plugins.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The file itself, absolute.
    pub file: PathBuf,
    /// LOCK_FILE.
    pub lock_file: PathBuf,
    /// LOG_LEVEL.
    pub log_level: tracing::Level,
    /// LOG_PATH; None: to stderr only.
    pub log_path: Option<PathBuf>,
    /// CONFIGURATION_NETWORK_INTERFACE_SERVER.
    pub control_socket: PathBuf,
    /// SERVICE_LIST.
    pub services: Vec<ServicePath>,
    /// PLUGIN_PATH.
    pub plugin_path: Vec<PathBuf>,
    /// STATE_PATH.
    pub state_path: PathBuf,
    /// CLUSTER_SERVER_LIST.
    pub cluster: Vec<ClusterNode>,
    /// `[cluster] node`, or the machine's name.
    pub node: String,
    /// `[server]`.
    pub limits: Limits,
    /// Lines of SERVICE_LIST's entries, in its order.
    service_lines: Vec<usize>,
    /// What is not the server's own: tables and top-level names of plugins.
    foreign: Table,
}

/// One entry of SERVICE_LIST: `library/Service` or `library/Service@name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePath {
    /// `hello` for `libhello.so`.
    pub library: String,
    /// The kind of service in it.
    pub kind: String,
    /// The instance's own name.
    pub instance: Option<String>,
}

impl std::str::FromStr for ServicePath {
    type Err = String;

    fn from_str(path: &str) -> Result<Self, String> {
        let form = "a service is written `library/Service` or `library/Service@name`";
        let is_name = |name: &str| {
            !name.is_empty()
                && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
        };
        let (library, rest) = path.split_once('/').ok_or(form)?;
        let (kind, instance) = match rest.split_once('@') {
            Some((kind, instance)) => (kind, Some(instance)),
            None => (rest, None),
        };
        if !is_name(library) || !is_name(kind) || !instance.is_none_or(is_name) || library.starts_with('.') {
            return Err(form.into());
        }
        Ok(Self { library: library.into(), kind: kind.into(), instance: instance.map(Into::into) })
    }
}

impl std::fmt::Display for ServicePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.library, self.kind)?;
        self.instance.iter().try_for_each(|instance| write!(f, "@{instance}"))
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

/// `[server]`: the waits and sizes of the core.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// How long a caller waits for a deferred answer, unless it says otherwise.
    pub call_timeout: Duration,
    /// How long a reload may keep callers at the gate.
    pub gate_timeout: Duration,
    /// How long a replaced instance may finish its jobs.
    pub drain_timeout: Duration,
    /// Threads for calls with a deadline.
    pub pool_threads: usize,
    /// Whether changed plugin files are loaded without being asked.
    pub watch: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            call_timeout: Duration::from_secs(30),
            gate_timeout: Duration::from_millis(500),
            drain_timeout: Duration::from_secs(30),
            pool_threads: 16,
            watch: true,
        }
    }
}

impl Settings {
    /// Reads and checks the server's own keys. Opens no library and touches no other file.
    pub fn read(file: &Path) -> Result<Self, Faults> {
        let unreadable = |error: std::io::Error| {
            let hint = "give a settings file: zephserver-start --settings FILE";
            Faults::one(
                file,
                Fault { line: 0, text: format!("cannot be read: {error}"), hint: Some(hint.into()) },
            )
        };
        let text = std::fs::read_to_string(file).map_err(unreadable)?;
        let absolute = std::path::absolute(file).map_err(unreadable)?;
        Self::parse(&absolute, &text)
    }

    fn parse(file: &Path, text: &str) -> Result<Self, Faults> {
        let mut reader = Reader::new(file, tree::parse(file, text)?);
        let lock_file = reader.required_path("LOCK_FILE");
        let control_socket = reader.required_path("CONFIGURATION_NETWORK_INTERFACE_SERVER");
        let state_path = reader
            .path("STATE_PATH")
            .unwrap_or_else(|| lock_file.parent().unwrap_or(Path::new(".")).join(".zephserver"));
        let (services, service_lines) = reader.services();
        let log_path = match reader.text("LOG_PATH") {
            Some(path) if path.is_empty() => None,
            Some(path) => Some(reader.absolute(&path)),
            None => Some(reader.absolute("./logging.log")),
        };
        let settings = Self {
            log_level: reader.log_level(),
            plugin_path: reader.plugin_path(),
            cluster: reader.cluster_nodes(),
            limits: reader.limits(),
            node: reader.node_name(),
            file: file.to_path_buf(),
            lock_file,
            log_path,
            control_socket,
            services,
            state_path,
            service_lines,
            foreign: BTreeMap::new(),
        };
        let foreign = reader.finish(&settings)?;
        Ok(Self { foreign, ..settings })
    }

    /// The file of a library: the first `lib<name>.so` along PLUGIN_PATH.
    pub fn library_file(&self, library: &str) -> Option<PathBuf> {
        let name = format!("lib{library}.so");
        self.plugin_path.iter().map(|folder| folder.join(&name)).find(|file| file.symlink_metadata().is_ok())
    }

    /// Every library along PLUGIN_PATH, by name: the first hit of each.
    pub fn library_files(&self) -> BTreeMap<String, PathBuf> {
        let mut found = BTreeMap::new();
        for folder in &self.plugin_path {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                if let Some(name) = library_name(&entry.path()) {
                    found.entry(name).or_insert_with(|| entry.path());
                }
            }
        }
        found
    }
}

/// Names in capitals are the seed's: of the server, or aliases of plugins' options.
fn is_alias(key: &str) -> bool {
    !key.contains('@') && key.chars().all(|c| !c.is_lowercase())
}

/// `hello` of `…/libhello.so`.
pub fn library_name(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?.strip_prefix("lib")?.strip_suffix(".so")?;
    (!name.is_empty()).then(|| name.into())
}

/// Takes the server's own keys out of the file, collecting faults.
struct Reader {
    file: PathBuf,
    table: Table,
    server: Table,
    cluster: Table,
    faults: Vec<Fault>,
}

impl Reader {
    fn new(file: &Path, mut table: Table) -> Self {
        let mut faults = Vec::new();
        let mut own_table = |name: &str| match table.remove(name) {
            Some(Node { value: Written::Table(table), .. }) => table,
            Some(node) => {
                faults.push(Fault::wrong_type(node.line, name, "a table", &node));
                Table::new()
            }
            None => Table::new(),
        };
        let (server, cluster) = (own_table("server"), own_table("cluster"));
        Self { file: file.to_path_buf(), table, server, cluster, faults }
    }

    fn absolute(&self, path: &str) -> PathBuf {
        let folder = self.file.parent().unwrap_or(Path::new("/"));
        // Lexically: `./x` and `x` are the same to whoever reads it in a message.
        folder.join(path).components().filter(|part| !matches!(part, std::path::Component::CurDir)).collect()
    }

    fn text(&mut self, key: &str) -> Option<String> {
        let node = self.table.remove(key)?;
        match node.value {
            Written::Text(text) => Some(text),
            _ => {
                self.faults.push(Fault::wrong_type(node.line, key, "a text", &node));
                None
            }
        }
    }

    fn list(&mut self, key: &str) -> Option<(usize, Vec<Node>)> {
        let node = self.table.remove(key)?;
        match node.value {
            Written::List(list) => Some((node.line, list)),
            _ => {
                self.faults.push(Fault::wrong_type(node.line, key, "a list", &node));
                None
            }
        }
    }

    fn path(&mut self, key: &str) -> Option<PathBuf> {
        let line = self.table.get(key).map_or(0, |node| node.line);
        let path = self.text(key)?;
        if path.is_empty() {
            self.faults.push(Fault { line, text: format!("{key} is empty; it names a file"), hint: None });
        }
        Some(self.absolute(&path))
    }

    fn required_path(&mut self, key: &str) -> PathBuf {
        let was_given = self.table.contains_key(key);
        self.path(key).unwrap_or_else(|| {
            if !was_given {
                let hint = format!("add a line such as {key} = \"./{}\"", key.to_lowercase());
                self.faults.push(Fault { line: 0, text: format!("{key} is missing"), hint: Some(hint) });
            }
            PathBuf::from("/")
        })
    }

    fn log_level(&mut self) -> tracing::Level {
        let line = self.table.get("LOG_LEVEL").map_or(0, |node| node.line);
        let Some(level) = self.text("LOG_LEVEL") else { return tracing::Level::INFO };
        match level.to_ascii_uppercase().as_str() {
            "CRITICAL" | "ERROR" => tracing::Level::ERROR,
            "WARNING" | "WARN" => tracing::Level::WARN,
            "INFO" => tracing::Level::INFO,
            "DEBUG" => tracing::Level::DEBUG,
            "TRACE" => tracing::Level::TRACE,
            _ => {
                let known = ["ERROR", "WARNING", "INFO", "DEBUG", "TRACE"];
                let text = format!("LOG_LEVEL is \"{level}\"; it can be {}", known.join(", "));
                self.faults.push(Fault { line, text, hint: nearest(&level.to_uppercase(), known) });
                tracing::Level::INFO
            }
        }
    }

    fn plugin_path(&mut self) -> Vec<PathBuf> {
        let Some((line, list)) = self.list("PLUGIN_PATH") else { return vec![self.absolute("plugins")] };
        let mut folders = Vec::new();
        for node in list {
            match node.value {
                Written::Text(ref folder) => folders.push(self.absolute(folder)),
                _ => {
                    self.faults.push(Fault::wrong_type(node.line, "an entry of PLUGIN_PATH", "a text", &node))
                }
            }
        }
        if folders.is_empty() {
            let text = "PLUGIN_PATH names no folder".into();
            self.faults.push(Fault { line, text, hint: Some("PLUGIN_PATH = [\"plugins\"]".into()) });
        }
        folders
    }

    fn services(&mut self) -> (Vec<ServicePath>, Vec<usize>) {
        if !self.table.contains_key("SERVICE_LIST") {
            let hint = Some("SERVICE_LIST = [\"hello/Hello\"]".into());
            self.faults.push(Fault { line: 0, text: "SERVICE_LIST is missing".into(), hint });
        }
        let mut seen: Vec<(ServicePath, usize)> = Vec::new();
        for node in self.list("SERVICE_LIST").map(|(_, list)| list).unwrap_or_default() {
            let Written::Text(path) = &node.value else {
                self.faults.push(Fault::wrong_type(node.line, "an entry of SERVICE_LIST", "a text", &node));
                continue;
            };
            match path.parse::<ServicePath>() {
                Err(reason) => {
                    let text = format!("\"{path}\" is no service: {reason}");
                    self.faults.push(Fault { line: node.line, text, hint: None });
                }
                Ok(service) => match seen.iter().find(|(known, _)| *known == service) {
                    Some((_, first)) => {
                        let text = format!("service {service} is named twice, first in line {first}");
                        let hint = Some(format!("a second instance has a name of its own: {service}@two"));
                        self.faults.push(Fault { line: node.line, text, hint });
                    }
                    None => seen.push((service, node.line)),
                },
            }
        }
        seen.into_iter().unzip()
    }

    fn cluster_nodes(&mut self) -> Vec<ClusterNode> {
        let mut nodes = Vec::new();
        for node in self.list("CLUSTER_SERVER_LIST").map(|(_, list)| list).unwrap_or_default() {
            match cluster_node(&node) {
                Ok(entry) => nodes.push(entry),
                Err(fault) => self.faults.push(fault),
            }
        }
        nodes
    }

    fn node_name(&mut self) -> String {
        match self.cluster.remove("node") {
            Some(Node { value: Written::Text(name), .. }) => return name,
            Some(node) => self.faults.push(Fault::wrong_type(node.line, "node", "a text", &node)),
            None => {}
        }
        let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        if hostname.trim().is_empty() { "localhost".into() } else { hostname.trim().into() }
    }

    fn limits(&mut self) -> Limits {
        let default = Limits::default();
        let mut server = std::mem::take(&mut self.server);
        let mut seconds = |key: &str, default| match server.remove(key) {
            None => default,
            Some(node) => plugin::seconds(&node).unwrap_or_else(|| {
                let what = "a number of seconds above 0";
                self.faults.push(Fault::wrong_type(node.line, key, what, &node));
                default
            }),
        };
        let limits = Limits {
            call_timeout: seconds("call_timeout", default.call_timeout),
            gate_timeout: seconds("gate_timeout", default.gate_timeout),
            drain_timeout: seconds("drain_timeout", default.drain_timeout),
            ..default
        };
        let pool_threads = match server.remove("pool_threads") {
            None => limits.pool_threads,
            Some(Node { value: Written::Integer(threads @ 1..=1024), .. }) => threads as usize,
            Some(node) => {
                let what = "a whole number from 1 to 1024";
                self.faults.push(Fault::wrong_type(node.line, "pool_threads", what, &node));
                limits.pool_threads
            }
        };
        let watch = match server.remove("watch") {
            None => limits.watch,
            Some(Node { value: Written::Boolean(watch), .. }) => watch,
            Some(node) => {
                self.faults.push(Fault::wrong_type(node.line, "watch", "true or false", &node));
                limits.watch
            }
        };
        self.server = server;
        Limits { pool_threads, watch, ..limits }
    }

    /// Checks what is left over; answers what belongs to plugins.
    fn finish(mut self, settings: &Settings) -> Result<Table, Faults> {
        for (table, left, known) in
            [("server", &self.server, SERVER_KEYS), ("cluster", &self.cluster, &["node"][..])]
        {
            for (key, node) in left {
                self.faults.push(Fault::unknown(
                    node.line,
                    &format!("[{table}] {key}"),
                    key,
                    known.iter().copied(),
                ));
            }
        }
        let listed = || settings.services.iter().map(|service| service.library.as_str());
        let files = settings.library_files();
        for (key, node) in &self.table {
            let library = key.split('@').next().unwrap_or(key);
            // Another name in capitals may be an alias that a plugin declares: checked when it is open.
            let known = match (is_alias(key), &node.value) {
                (true, _) => true,
                (false, Written::Table(_)) => {
                    library.is_empty() || listed().any(|name| name == library) || files.contains_key(library)
                }
                (false, _) => false,
            };
            if !known {
                let names = OWN.iter().chain(WELL_KNOWN).copied().chain(listed());
                let names = names.chain(files.keys().map(String::as_str));
                self.faults.push(Fault::unknown(node.line, key, key, names));
            }
        }
        if self.faults.is_empty() { Ok(self.table) } else { Err(Faults::new(&self.file, self.faults)) }
    }
}

fn cluster_node(node: &Node) -> Result<ClusterNode, Fault> {
    let form =
        "an entry of CLUSTER_SERVER_LIST is { hostname = \"a\", address = \"10.0.0.1\", port = 22631 }";
    let fault = || Fault { line: node.line, text: form.into(), hint: None };
    let Written::Table(table) = &node.value else { return Err(fault()) };
    let text = |key: &str| match table.get(key).map(|node| &node.value) {
        Some(Written::Text(text)) => Ok(text.clone()),
        _ => Err(fault()),
    };
    let port = match table.get("port").map(|node| &node.value) {
        Some(Written::Integer(port)) => u16::try_from(*port).map_err(|_| fault())?,
        _ => return Err(fault()),
    };
    Ok(ClusterNode { hostname: text("hostname")?, address: text("address")?, port })
}

#[cfg(test)]
mod tests;
