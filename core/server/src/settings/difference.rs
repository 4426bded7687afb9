//! What it means that one settings file takes the place of another. A pure function: it can be shown before
//! anything is done, and what is done is what was shown.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value};

use super::{
    ClusterNode, ClusterSettings, Limits, Reload, Restart, ServiceOptions, ServicePath, ServiceSettings,
    Settings,
};

/// Settings whose names contain one of these are not shown.
const SECRET: &[&str] = &["token", "secret", "password", "passwd", "pwd", "key", "credential", "dsn", "auth"];

/// One thing that changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub what: What,
    pub keys: Vec<KeyChange>,
    pub effect: Effect,
}

/// What changes.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// Keys of the server's own.
    Server,
    /// Only options that every service has.
    Options(ServicePath, ServiceOptions),
    /// A service is new in SERVICE_LIST.
    Added(ServicePath),
    /// What its plugin is told, and perhaps options as well.
    Settings(ServicePath, ServiceSettings),
    /// A service is gone from SERVICE_LIST.
    Removed(ServicePath),
}

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It counts from now on; no instance is touched.
    AtOnce,
    /// Nothing, until the server is started again.
    NextStart,
    /// A new instance takes over from the present one.
    Replaced,
    Started,
    Stopped,
}

/// One key, with what it was and what it is to be. Null: it was or is not set.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyChange {
    pub key: String,
    pub from: Value,
    pub to: Value,
}

/// A service that exists, with the settings that are in force for it.
pub struct Living {
    pub path: ServicePath,
    pub settings: ServiceSettings,
    pub stance: Stance,
}

/// How a service takes new settings at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stance {
    /// It serves: it is replaced.
    Serves,
    /// It failed and waits: it is tried at once.
    Waits,
    /// It does not run: it begins with them some day.
    Rests,
    /// It is just starting or stopping: not now.
    Moves,
}

impl Effect {
    /// The words for it, here and in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::AtOnce => "at once",
            Self::NextStart => "next start",
            Self::Replaced => "replaced",
            Self::Started => "started",
            Self::Stopped => "stopped",
        }
    }
}

impl What {
    /// Who is concerned.
    pub fn name(&self) -> String {
        match self {
            Self::Server => "zephserver".into(),
            Self::Options(path, _) | Self::Added(path) | Self::Settings(path, _) | Self::Removed(path) => {
                path.to_string()
            }
        }
    }

    /// The word for it in answers.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Options(..) => "options",
            Self::Added(_) => "added",
            Self::Settings(..) => "settings",
            Self::Removed(_) => "removed",
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.what.name(), self.what.kind(), self.effect.name())?;
        for (number, KeyChange { key, from, to }) in self.keys.iter().enumerate() {
            let before = if number == 0 { ": " } else { ", " };
            write!(f, "{before}{key} {from} → {to}")?;
        }
        Ok(())
    }
}

impl KeyChange {
    /// None: nothing changes.
    fn between(key: &str, from: Option<&Value>, to: Option<&Value>) -> Option<Self> {
        let (from, to) = (from.unwrap_or(&Value::Null), to.unwrap_or(&Value::Null));
        (from != to).then(|| Self { key: key.into(), from: shown(key, from), to: shown(key, to) })
    }
}

/// All that changes, in the order in which it is done: who is new is there before others are told to use
/// it, and who is gone from the list goes when nobody is told to any more. `wanted` is in start order,
/// `living` as well.
pub fn difference(
    old: &Settings,
    new: &Settings,
    living: &[Living],
    wanted: &[(&ServicePath, &ServiceSettings)],
) -> Vec<Change> {
    let (mut options, mut added, mut changed) = (Vec::new(), Vec::new(), Vec::new());
    for (path, settings) in wanted {
        let found = living.iter().find(|one| one.path == **path);
        if found.is_none() || !old.services.contains(path) {
            let what = What::Added((*path).clone());
            added.push(Change { what, keys: Vec::new(), effect: Effect::Started });
        }
        let Some(change) = found.and_then(|found| of_service(found, settings)) else { continue };
        match change.what {
            What::Options(..) => options.push(change),
            _ => changed.push(change),
        }
    }
    let is_gone = |one: &&Living| old.services.contains(&one.path) && !new.services.contains(&one.path);
    let removed = living.iter().rev().filter(is_gone).map(|one| Change {
        what: What::Removed(one.path.clone()),
        keys: Vec::new(),
        effect: Effect::Stopped,
    });
    let server = of_server(old, new);
    server.into_iter().chain(options).chain(added).chain(changed).chain(removed).collect()
}

/// What changes for a service that exists.
fn of_service(living: &Living, new: &ServiceSettings) -> Option<Change> {
    let (path, old) = (&living.path, &living.settings);
    let values = of_tables(&old.values, &new.values);
    let options = of_tables(&table(&old.options), &table(&new.options));
    if values.is_empty() {
        let what = What::Options(path.clone(), new.options.clone());
        return (!options.is_empty()).then_some(Change { what, keys: options, effect: Effect::AtOnce });
    }
    let effect = match living.stance {
        Stance::Serves | Stance::Moves => Effect::Replaced,
        Stance::Waits => Effect::Started,
        Stance::Rests => Effect::AtOnce,
    };
    let keys = values.into_iter().chain(options).collect();
    Some(Change { what: What::Settings(path.clone(), new.clone()), keys, effect })
}

fn of_tables(old: &Map<String, Value>, new: &Map<String, Value>) -> Vec<KeyChange> {
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    keys.into_iter().filter_map(|key| KeyChange::between(key, old.get(key), new.get(key))).collect()
}

/// What changes for the server itself: what counts at once, and what only a start can change.
fn of_server(old: &Settings, new: &Settings) -> Vec<Change> {
    let keys = own_keys(old).into_iter().zip(own_keys(new));
    let changes: Vec<(Effect, KeyChange)> = keys
        .filter_map(|((key, from, effect), (_, to, _))| {
            Some((effect, KeyChange::between(key, Some(&from), Some(&to))?))
        })
        .collect();
    let of = |effect: Effect| {
        let keys = changes.iter().filter(|(when, _)| *when == effect).map(|(_, key)| key.clone());
        Change { what: What::Server, keys: keys.collect(), effect }
    };
    [of(Effect::AtOnce), of(Effect::NextStart)].into_iter().filter(|change| !change.keys.is_empty()).collect()
}

/// The server's own keys, and from when on a change of each counts.
fn own_keys(settings: &Settings) -> Vec<(&'static str, Value, Effect)> {
    use Effect::{AtOnce, NextStart};
    // Each field is named: whoever adds one decides here and in `until_the_next_start`.
    let Settings {
        file: _,
        lock_file,
        log_level,
        log_path,
        control_socket,
        services: _,
        plugin_path,
        state_path,
        cluster,
        http_address,
        limits,
        service_lines: _,
        foreign: _,
    } = settings;
    let Limits {
        call_timeout,
        gate_timeout,
        drain_timeout,
        pool_threads,
        watch,
        watch_after_reload,
        log_size,
        log_files,
    } = limits;
    let path = |path: &std::path::Path| Value::from(path.display().to_string());
    let log_path = log_path.as_deref().map_or_else(|| Value::from(""), path);
    let ClusterSettings { node, engine, listen, seeds: _, key_file, url, profile, list } = cluster;
    let member = |ClusterNode { hostname, address, port }: &ClusterNode| {
        Value::from(format!("{hostname} {address}:{port}"))
    };
    vec![
        ("LOG_LEVEL", log_level.to_string().into(), AtOnce),
        ("[server] call_timeout", seconds(*call_timeout), AtOnce),
        ("[server] gate_timeout", seconds(*gate_timeout), AtOnce),
        ("[server] drain_timeout", seconds(*drain_timeout), AtOnce),
        ("[server] watch", (*watch).into(), AtOnce),
        ("[server] watch_after_reload", seconds(*watch_after_reload), AtOnce),
        ("[server] pool_threads", (*pool_threads).into(), NextStart),
        ("[server] log_size", (*log_size).into(), NextStart),
        ("[server] log_files", (*log_files).into(), NextStart),
        ("[server] http_address", http_address.map(|address| address.to_string()).into(), NextStart),
        ("LOCK_FILE", path(lock_file), NextStart),
        ("LOG_PATH", log_path, NextStart),
        ("CONFIGURATION_NETWORK_INTERFACE_SERVER", path(control_socket), NextStart),
        ("PLUGIN_PATH", plugin_path.iter().map(|folder| path(folder)).collect(), NextStart),
        ("STATE_PATH", path(state_path), NextStart),
        ("CLUSTER_SERVER_LIST", list.iter().map(member).collect(), NextStart),
        ("[cluster] node", node.as_str().into(), NextStart),
        ("[cluster] engine", engine.name().into(), NextStart),
        ("[cluster] listen", listen.as_deref().into(), NextStart),
        ("[cluster] seeds", cluster.seeds.iter().map(String::as_str).collect(), NextStart),
        ("[cluster] key_file", key_file.as_deref().map(path).into(), NextStart),
        // Its credentials are not shown.
        ("[cluster] url", url.as_deref().map(|_| "(another one)").into(), NextStart),
        ("[cluster] profile", profile.as_str().into(), NextStart),
    ]
}

impl Settings {
    /// These settings as far as they count while the server runs: the rest is as in `old`.
    pub(crate) fn until_the_next_start(&self, old: &Self) -> Self {
        let new = self.clone();
        let Limits { call_timeout, gate_timeout, drain_timeout, watch, watch_after_reload, .. } = new.limits;
        Self {
            log_level: new.log_level,
            services: new.services,
            service_lines: new.service_lines,
            foreign: new.foreign,
            limits: Limits {
                call_timeout,
                gate_timeout,
                drain_timeout,
                watch,
                watch_after_reload,
                ..old.limits.clone()
            },
            ..old.clone()
        }
    }
}

/// Options as they are written in the file.
fn table(options: &ServiceOptions) -> Map<String, Value> {
    let ServiceOptions { optional, needs, restart, intensity, period, start_timeout, stop_timeout, reload } =
        options;
    let reload = match reload {
        Reload::Automatic => "auto",
        Reload::Manual => "manual",
    };
    let restart = match restart {
        Restart::Permanent => "permanent",
        Restart::Transient => "transient",
        Restart::Temporary => "temporary",
    };
    let written = [
        ("optional", (*optional).into()),
        ("needs", needs.iter().map(String::as_str).collect()),
        ("restart", restart.into()),
        ("intensity", (*intensity).into()),
        ("period", seconds(*period)),
        ("start_timeout", seconds(*start_timeout)),
        ("stop_timeout", seconds(*stop_timeout)),
        ("reload", reload.into()),
    ];
    written.into_iter().map(|(key, value): (&str, Value)| (key.to_string(), value)).collect()
}

fn seconds(time: Duration) -> Value {
    match time.subsec_nanos() {
        0 => time.as_secs().into(),
        _ => time.as_secs_f64().into(),
    }
}

/// A value as it may be seen: secrets stay in the file.
fn shown(key: &str, value: &Value) -> Value {
    let name = key.to_lowercase();
    match value {
        Value::Null => Value::Null,
        _ if SECRET.iter().any(|word| name.contains(word)) => "***".into(),
        // `postgres://user:password@host`
        Value::String(text) if text.contains("://") && text.contains('@') => "***".into(),
        // `host=db user=a password=b`
        Value::String(text) if text.to_lowercase().contains("password=") => "***".into(),
        Value::Array(list) => list.iter().map(|value| shown(key, value)).collect(),
        Value::Object(table) => {
            Value::Object(table.iter().map(|(key, value)| (key.clone(), shown(key, value))).collect())
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn settings(rest: &str) -> Settings {
        let own = "LOCK_FILE = \"l\"\nCONFIGURATION_NETWORK_INTERFACE_SERVER = \"s\"\n";
        Settings::parse(Path::new("/x/settings.toml"), &format!("{own}{rest}")).unwrap()
    }

    fn path(path: &str) -> ServicePath {
        path.parse().unwrap()
    }

    fn with(values: Value) -> ServiceSettings {
        let Value::Object(values) = values else { panic!("{values} is no table") };
        ServiceSettings { values, ..ServiceSettings::default() }
    }

    fn living(name: &str, stance: Stance, values: Value) -> Living {
        Living { path: path(name), settings: with(values), stance }
    }

    fn said(changes: &[Change]) -> Vec<String> {
        changes.iter().map(Change::to_string).collect()
    }

    #[test]
    fn own_keys_count_at_once_or_at_the_next_start() {
        let old = settings("SERVICE_LIST = []");
        for (rest, expected) in [
            ("", None),
            ("LOG_LEVEL = \"DEBUG\"", Some("zephserver server (at once): LOG_LEVEL \"INFO\" → \"DEBUG\"")),
            (
                "[server]\ncall_timeout = 1.5\ngate_timeout = 1",
                Some(
                    "zephserver server (at once): [server] call_timeout 30 → 1.5, [server] gate_timeout 0.5 → 1",
                ),
            ),
            ("[server]\nwatch = false", Some("zephserver server (at once): [server] watch true → false")),
            (
                "[server]\npool_threads = 3",
                Some("zephserver server (next start): [server] pool_threads 16 → 3"),
            ),
            ("LOG_PATH = \"\"", Some("zephserver server (next start): LOG_PATH \"/x/logging.log\" → \"\"")),
            (
                "PLUGIN_PATH = [\"p\"]",
                Some("zephserver server (next start): PLUGIN_PATH [\"/x/plugins\"] → [\"/x/p\"]"),
            ),
        ] {
            let new = settings(&format!("SERVICE_LIST = []\n{rest}"));
            let expected: Vec<&str> = expected.into_iter().collect();
            assert_eq!(said(&difference(&old, &new, &[], &[])), expected, "{rest}");
        }
    }

    #[test]
    fn only_what_can_change_does_before_the_next_start() {
        let old = settings("SERVICE_LIST = []");
        let text = "LOG_LEVEL = \"DEBUG\"\nSERVICE_LIST = [\"a/A\"]\nPLUGIN_PATH = [\"p\"]\n[server]\n\
                    call_timeout = 3\npool_threads = 3\n[a]\nx = 1";
        let new = settings(text);
        let in_force = new.until_the_next_start(&old);
        assert_eq!(in_force.log_level, tracing::Level::DEBUG);
        assert_eq!(in_force.services, new.services);
        assert_eq!(in_force.limits.call_timeout, Duration::from_secs(3));
        assert_eq!(in_force.limits.pool_threads, 16);
        assert_eq!(in_force.plugin_path, old.plugin_path);
        // What is left is what a start would change, and it stays to be seen.
        let left = difference(&in_force, &new, &[], &[]);
        assert!(left.len() == 1 && left[0].effect == Effect::NextStart, "{left:?}");
        assert_eq!(left[0].keys.len(), 2);
    }

    #[test]
    fn a_services_settings_by_where_it_stands() {
        let list = settings("SERVICE_LIST = [\"a/A\"]");
        let change = |stance, new: &ServiceSettings| {
            let living = [living("a/A", stance, json!({"x": 1, "y": "z"}))];
            said(&difference(&list, &list, &living, &[(&path("a/A"), new)]))
        };
        let same = with(json!({"x": 1, "y": "z"}));
        let other = with(json!({"x": 2, "z": [true]}));
        let keys = "x 1 → 2, y \"z\" → null, z null → [true]";
        for (stance, effect) in [
            (Stance::Serves, "replaced"),
            (Stance::Moves, "replaced"),
            (Stance::Waits, "started"),
            (Stance::Rests, "at once"),
        ] {
            assert_eq!(change(stance, &same), Vec::<String>::new());
            assert_eq!(change(stance, &other), [format!("a/A settings ({effect}): {keys}")]);
        }
        let options = ServiceOptions {
            restart: Restart::Transient,
            stop_timeout: Duration::from_millis(500),
            needs: vec!["b".into()],
            ..ServiceOptions::default()
        };
        let with_options = ServiceSettings { options, ..same };
        let keys = "needs [] → [\"b\"], restart \"permanent\" → \"transient\", stop_timeout 5 → 0.5";
        assert_eq!(change(Stance::Serves, &with_options), [format!("a/A options (at once): {keys}")]);
    }

    #[test]
    fn the_list_and_the_order_of_all() {
        let old = settings("SERVICE_LIST = [\"a/A\", \"b/B\", \"c/C\", \"d/D\"]");
        let new = settings("LOG_LEVEL = \"ERROR\"\nSERVICE_LIST = [\"e/E\", \"c/C\", \"f/F\", \"d/D\"]");
        let lives = |name| living(name, Stance::Serves, json!({}));
        // `d` is optional and did not start; `f` was started by hand, as `g` was.
        let living = ["a/A", "b/B", "c/C", "f/F", "g/G"].map(lives);
        let (empty, changed) = (with(json!({})), with(json!({"x": 1})));
        let paths = ["e/E", "c/C", "f/F", "d/D"].map(path);
        let wanted = [(&paths[0], &empty), (&paths[1], &changed), (&paths[2], &empty), (&paths[3], &empty)];
        assert_eq!(
            said(&difference(&old, &new, &living, &wanted)),
            [
                "zephserver server (at once): LOG_LEVEL \"INFO\" → \"ERROR\"",
                "e/E added (started)",
                "f/F added (started)",
                "d/D added (started)",
                "c/C settings (replaced): x null → 1",
                "b/B removed (stopped)",
                "a/A removed (stopped)",
            ]
        );
    }

    #[test]
    fn secrets_are_not_shown() {
        let hidden = json!("***");
        for (key, value, expected) in [
            ("secret", json!("x"), hidden.clone()),
            ("smtp_passwd", json!("x"), hidden.clone()),
            ("database", json!("host=db user=a Password=b"), hidden.clone()),
            ("Secret_Key_File", json!("x"), hidden.clone()),
            ("token", json!({"iss": "x"}), hidden.clone()),
            ("database", json!("postgres://ann:x@db/site"), hidden.clone()),
            (
                "users",
                json!({"ann": {"password": "x", "id": 1}}),
                json!({"ann": {"password": "***", "id": 1}}),
            ),
            ("nodes", json!(["amqp://a:b@c", "plain"]), json!(["***", "plain"])),
            ("origins", json!(["https://example.org"]), json!(["https://example.org"])),
            ("key", Value::Null, Value::Null),
        ] {
            assert_eq!(shown(key, &value), expected, "{key}");
        }
        let change = KeyChange::between("password", Some(&json!("a")), Some(&json!("b"))).unwrap();
        assert_eq!((change.from, change.to), (hidden.clone(), hidden));
    }
}
