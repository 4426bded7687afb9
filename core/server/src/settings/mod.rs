//! settings.toml: from what is written to what it means.
//!
//! The server's own keys are resolved here, before anything else happens ([`Settings::read`]). What
//! belongs to plugins is kept as written until their libraries are open and say what they know
//! (`plugin`).

mod cluster;
mod current;
mod difference;
mod fault;
mod of_build;
mod plugin;
mod read;
mod tree;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use cluster::{Cluster as ClusterSettings, ClusterNode, EngineKind};
pub(crate) use current::Current;
pub(crate) use difference::{Change, Effect, Living, Stance, What, difference};
pub(crate) use fault::nearest;
pub use fault::{Fault, Faults};
pub(crate) use of_build::{Source, kept_values, values_of_build};
pub use plugin::{Reload, Restart, ServiceOptions, ServiceSettings, check_service, unclaimed};
use read::Reader;
use tree::Table;

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

const SERVER_KEYS: &[&str] = &[
    "call_timeout",
    "gate_timeout",
    "drain_timeout",
    "pool_threads",
    "watch",
    "watch_after_reload",
    "log_size",
    "log_files",
    "http_address",
];

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
    /// `[cluster]` and CLUSTER_SERVER_LIST.
    pub cluster: ClusterSettings,
    /// `[server]`.
    pub limits: Limits,
    /// `[server] http_address`: where the server itself answers over HTTP; None: nowhere.
    pub http_address: Option<SocketAddr>,
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
    /// For how long a new build that fails is replaced by the one before; zero: never.
    pub watch_after_reload: Duration,
    /// How large the log file may grow before it is put aside, in bytes; 0: as large as it likes.
    pub log_size: u64,
    /// How many log files that were put aside are kept.
    pub log_files: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            call_timeout: Duration::from_secs(30),
            gate_timeout: Duration::from_millis(500),
            drain_timeout: Duration::from_secs(30),
            pool_threads: 16,
            watch: true,
            watch_after_reload: Duration::from_secs(10),
            log_size: 64 * 1024 * 1024,
            log_files: 5,
        }
    }
}

impl Settings {
    /// Reads and checks the server's own keys. Opens no library and touches no other file.
    pub fn read(file: &Path) -> Result<Self, Faults> {
        let text = Self::text(file)?;
        let absolute = std::path::absolute(file).map_err(|error| unreadable(file, &error))?;
        Self::parse(&absolute, &text)
    }

    /// What is written in the file.
    pub(crate) fn text(file: &Path) -> Result<String, Faults> {
        std::fs::read_to_string(file).map_err(|error| unreadable(file, &error))
    }

    /// What a text means that stands in `file`, which is absolute.
    pub(crate) fn parse(file: &Path, text: &str) -> Result<Self, Faults> {
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
            cluster: reader.cluster(),
            limits: reader.limits(),
            http_address: reader.http_address(),
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

fn unreadable(file: &Path, error: &std::io::Error) -> Faults {
    let hint = "give a settings file: zephserver-start --settings FILE";
    Faults::one(file, Fault { line: 0, text: format!("cannot be read: {error}"), hint: Some(hint.into()) })
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

#[cfg(test)]
mod tests;
