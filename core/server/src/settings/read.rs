//! Takes the server's own keys out of the file, each with its type, and collects what is wrong.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cluster::CLUSTER_KEYS;
use super::fault::nearest;
use super::tree::{Node, Table, Written};
use super::{Fault, Faults, Limits, OWN, SERVER_KEYS, ServicePath, Settings, WELL_KNOWN, is_alias, plugin};
use crate::log_file::MOST_LOG_FILES;

/// A log file larger than this is none that anybody reads, in bytes.
const LARGEST_LOG: i64 = 1 << 40;

/// Takes the server's own keys out of the file, collecting faults.
pub struct Reader {
    file: PathBuf,
    table: Table,
    server: Table,
    pub(super) cluster: Table,
    pub(super) faults: Vec<Fault>,
}

impl Reader {
    pub fn new(file: &Path, mut table: Table) -> Self {
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

    pub fn absolute(&self, path: &str) -> PathBuf {
        let folder = self.file.parent().unwrap_or(Path::new("/"));
        // Lexically: `./x` and `x` are the same to whoever reads it in a message.
        folder.join(path).components().filter(|part| !matches!(part, std::path::Component::CurDir)).collect()
    }

    pub fn text(&mut self, key: &str) -> Option<String> {
        let node = self.table.remove(key)?;
        match node.value {
            Written::Text(text) => Some(text),
            _ => {
                self.faults.push(Fault::wrong_type(node.line, key, "a text", &node));
                None
            }
        }
    }

    /// Where a key of the top level stands; 0: nowhere.
    pub(super) fn line_of(&self, key: &str) -> usize {
        self.table.get(key).map_or(0, |node| node.line)
    }

    pub(super) fn list(&mut self, key: &str) -> Option<(usize, Vec<Node>)> {
        let node = self.table.remove(key)?;
        match node.value {
            Written::List(list) => Some((node.line, list)),
            _ => {
                self.faults.push(Fault::wrong_type(node.line, key, "a list", &node));
                None
            }
        }
    }

    pub fn path(&mut self, key: &str) -> Option<PathBuf> {
        let line = self.table.get(key).map_or(0, |node| node.line);
        let path = self.text(key)?;
        if path.is_empty() {
            self.faults.push(Fault { line, text: format!("{key} is empty; it names a file"), hint: None });
        }
        Some(self.absolute(&path))
    }

    pub fn required_path(&mut self, key: &str) -> PathBuf {
        let was_given = self.table.contains_key(key);
        self.path(key).unwrap_or_else(|| {
            if !was_given {
                let hint = format!("add a line such as {key} = \"./{}\"", key.to_lowercase());
                self.faults.push(Fault { line: 0, text: format!("{key} is missing"), hint: Some(hint) });
            }
            PathBuf::from("/")
        })
    }

    pub fn log_level(&mut self) -> tracing::Level {
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

    pub fn plugin_path(&mut self) -> Vec<PathBuf> {
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

    pub fn services(&mut self) -> (Vec<ServicePath>, Vec<usize>) {
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

    pub fn limits(&mut self) -> Limits {
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
        let watch = match server.remove("watch") {
            None => limits.watch,
            Some(Node { value: Written::Boolean(watch), .. }) => watch,
            Some(node) => {
                self.faults.push(Fault::wrong_type(node.line, "watch", "true or false", &node));
                limits.watch
            }
        };
        let watch_after_reload = match server.remove("watch_after_reload") {
            None => limits.watch_after_reload,
            Some(Node { value: Written::Integer(0), .. }) => Duration::ZERO,
            Some(node) => plugin::seconds(&node).unwrap_or_else(|| {
                let what = "a number of seconds, 0 for never";
                self.faults.push(Fault::wrong_type(node.line, "watch_after_reload", what, &node));
                limits.watch_after_reload
            }),
        };
        self.server = server;
        let most_files = i64::from(MOST_LOG_FILES);
        let pool_threads = self.whole("pool_threads", 1..=1024).map(|number| number as usize);
        let log_size = self.whole("log_size", 0..=LARGEST_LOG).map(|number| number as u64);
        let log_files = self.whole("log_files", 0..=most_files).map(|number| number as u32);
        Limits {
            pool_threads: pool_threads.unwrap_or(limits.pool_threads),
            log_size: log_size.unwrap_or(limits.log_size),
            log_files: log_files.unwrap_or(limits.log_files),
            watch,
            watch_after_reload,
            ..limits
        }
    }

    /// A whole number of `[server]`.
    fn whole(&mut self, key: &str, range: RangeInclusive<i64>) -> Option<i64> {
        let node = self.server.remove(key)?;
        match node.value {
            Written::Integer(number) if range.contains(&number) => Some(number),
            _ => {
                let what = format!("a whole number from {} to {}", range.start(), range.end());
                self.faults.push(Fault::wrong_type(node.line, key, &what, &node));
                None
            }
        }
    }

    /// Where the server itself answers over HTTP. It asks nobody who he is, so only this machine may ask.
    pub fn http_address(&mut self) -> Option<SocketAddr> {
        let node = self.server.remove("http_address")?;
        let Written::Text(written) = &node.value else {
            self.faults.push(Fault::wrong_type(node.line, "http_address", "a text", &node));
            return None;
        };
        let (text, hint) = match written.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => return Some(address),
            Ok(address) => (
                format!("http_address is \"{address}\", which is no loopback address"),
                format!("others come through a proxy: put one in front of 127.0.0.1:{}", address.port()),
            ),
            Err(_) => (
                format!("http_address is \"{written}\", expected an IP address and a port"),
                "http_address = \"127.0.0.1:9100\"".into(),
            ),
        };
        self.faults.push(Fault { line: node.line, text, hint: Some(hint) });
        None
    }

    /// Checks what is left over; answers what belongs to plugins.
    pub fn finish(mut self, settings: &Settings) -> Result<Table, Faults> {
        for (table, left, known) in
            [("server", &self.server, SERVER_KEYS), ("cluster", &self.cluster, CLUSTER_KEYS)]
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
