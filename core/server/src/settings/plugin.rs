//! What the settings file says to plugins, checked against what their libraries declare. The server
//! forwards the values and interprets none of them, but for the options that every service has.

use std::time::Duration;

use serde_json::{Map, Value};
use zeph_abi::{ServiceDeclaration, SettingDeclaration, SettingType};

use super::fault::Fault;
use super::tree::{Node, Table, Written};
use super::{Faults, ServicePath, Settings, WELL_KNOWN};

/// Options that every service has, beside those of its plugin.
const OPTIONS: &[&str] =
    &["optional", "needs", "restart", "intensity", "period", "start_timeout", "stop_timeout", "reload"];

/// What an operator says of any service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceOptions {
    /// The server starts without it if need be.
    pub optional: bool,
    /// Services that must be ready before it, beside those that its plugin declares.
    pub needs: Vec<String>,
    /// When it is started again.
    pub restart: Restart,
    /// How many restarts within `period` are tried before it is put on probation.
    pub intensity: u32,
    /// See `intensity`.
    pub period: Duration,
    /// How long it may take until it is ready.
    pub start_timeout: Duration,
    /// How long it may take to stop.
    pub stop_timeout: Duration,
    /// Who has a new build loaded.
    pub reload: Reload,
}

/// When a service is started again, in Erlang's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Always.
    Permanent,
    /// When it failed.
    Transient,
    /// Never.
    Temporary,
}

/// Who has a new build loaded. One service that says `Manual` says so for its whole library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// The server, as soon as the file has changed.
    Automatic,
    /// Only an operator.
    Manual,
}

impl Default for ServiceOptions {
    fn default() -> Self {
        Self {
            optional: false,
            needs: Vec::new(),
            restart: Restart::Permanent,
            intensity: 5,
            period: Duration::from_secs(60),
            start_timeout: Duration::from_secs(30),
            stop_timeout: Duration::from_secs(5),
            reload: Reload::Automatic,
        }
    }
}

/// What one service is started with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceSettings {
    /// Its plugin's settings, defaults included.
    pub values: Map<String, Value>,
    /// The options that every service has.
    pub options: ServiceOptions,
}

/// A number of seconds above 0.
pub(super) fn seconds(node: &Node) -> Option<Duration> {
    let seconds = match node.value {
        Written::Integer(seconds) => seconds as f64,
        Written::Number(seconds) => seconds,
        _ => return None,
    };
    // A thousand years are for ever, and still fit into every sum of times.
    (seconds > 0.0 && seconds < 3.2e10).then(|| Duration::try_from_secs_f64(seconds).ok()).flatten()
}

/// The tables that speak to a service, the most special one last.
fn tables<'a>(settings: &'a Settings, service: &ServicePath) -> Vec<(String, &'a Table)> {
    let instance = service.instance.iter();
    let names = std::iter::once(service.library.clone())
        .chain(instance.flat_map(|name| [format!("@{name}"), format!("{}@{name}", service.library)]));
    names
        .filter_map(|name| match settings.foreign.get(&name).map(|node| &node.value) {
            Some(Written::Table(table)) => Some((name, table)),
            _ => None,
        })
        .collect()
}

/// What a service is started with, by the file and by what its plugin declares. `siblings` are all
/// kinds of the same library: they share its table.
pub fn check_service(
    settings: &Settings,
    service: &ServicePath,
    declaration: &ServiceDeclaration,
    siblings: &[ServiceDeclaration],
) -> Result<ServiceSettings, Faults> {
    let mut checked = ServiceSettings::default();
    let mut faults = Vec::new();
    for setting in &declaration.settings {
        if !setting.default.is_null() {
            checked.values.insert(setting.name.clone(), setting.default.clone());
        }
    }
    let tables = tables(settings, service);
    for setting in &declaration.settings {
        let Some((alias, node)) =
            setting.alias.as_ref().and_then(|alias| Some((alias, settings.foreign.get(alias)?)))
        else {
            continue;
        };
        for (table, other) in &tables {
            if let Some(twice) = other.get(&setting.name) {
                let text = format!(
                    "{alias} and [{table}] {name} are the same option; {alias} stands in line {line}, [{table}] {name} \
                     in line {other}",
                    name = setting.name,
                    line = node.line,
                    other = twice.line
                );
                faults.push(Fault { line: twice.line, text, hint: Some("remove one of the two".into()) });
            }
        }
        take(&mut checked, &mut faults, alias, setting, node);
    }
    for (table, nodes) in &tables {
        for (key, node) in *nodes {
            let declared = declaration.settings.iter().find(|setting| setting.name == *key);
            let of_sibling =
                || siblings.iter().flat_map(|kind| &kind.settings).any(|setting| setting.name == *key);
            match declared {
                Some(setting) => take(&mut checked, &mut faults, &format!("[{table}] {key}"), setting, node),
                None if OPTIONS.contains(&key.as_str()) => {
                    option(&mut checked.options, &mut faults, key, node)
                }
                None if of_sibling() => {}
                None => {
                    let names = declaration.settings.iter().map(|setting| setting.name.as_str());
                    let names = names.chain(OPTIONS.iter().copied());
                    faults.push(Fault::unknown(node.line, &format!("[{table}] {key}"), key, names));
                }
            }
        }
    }
    for setting in declaration.settings.iter().filter(|setting| setting.required) {
        if !checked.values.contains_key(&setting.name) {
            let text = format!("{service} needs [{}] {} ({})", service.library, setting.name, setting.doc);
            faults.push(Fault { line: settings.line_of(service), text, hint: None });
        }
    }
    if faults.is_empty() { Ok(checked) } else { Err(Faults::new(&settings.file, faults)) }
}

fn take(
    checked: &mut ServiceSettings,
    faults: &mut Vec<Fault>,
    shown: &str,
    setting: &SettingDeclaration,
    node: &Node,
) {
    let (fits, expected) = match (setting.value_type, &node.value) {
        (SettingType::Text, value) => (matches!(value, Written::Text(_)), "a text"),
        (SettingType::Integer, value) => (matches!(value, Written::Integer(_)), "a whole number"),
        (SettingType::Number, value) => {
            (matches!(value, Written::Integer(_) | Written::Number(_)), "a number")
        }
        (SettingType::Boolean, value) => (matches!(value, Written::Boolean(_)), "true or false"),
        (SettingType::List, value) => (matches!(value, Written::List(_)), "a list"),
        (SettingType::Table, value) => (matches!(value, Written::Table(_)), "a table"),
    };
    if fits {
        checked.values.insert(setting.name.clone(), node.to_json());
    } else {
        let mut fault = Fault::wrong_type(node.line, shown, expected, node);
        fault.hint = (!setting.doc.is_empty()).then(|| setting.doc.clone());
        faults.push(fault);
    }
}

fn option(options: &mut ServiceOptions, faults: &mut Vec<Fault>, key: &str, node: &Node) {
    let mut wrong = |expected| faults.push(Fault::wrong_type(node.line, key, expected, node));
    match (key, &node.value) {
        ("optional", Written::Boolean(optional)) => options.optional = *optional,
        ("optional", _) => wrong("true or false"),
        ("needs", Written::List(list)) => {
            for need in list {
                match &need.value {
                    Written::Text(path) => options.needs.push(path.clone()),
                    _ => wrong("a list of services"),
                }
            }
        }
        ("needs", _) => wrong("a list of services"),
        ("restart", Written::Text(restart)) => match restart.as_str() {
            "permanent" => options.restart = Restart::Permanent,
            "transient" => options.restart = Restart::Transient,
            "temporary" => options.restart = Restart::Temporary,
            _ => wrong("\"permanent\", \"transient\" or \"temporary\""),
        },
        ("restart", _) => wrong("\"permanent\", \"transient\" or \"temporary\""),
        ("reload", Written::Text(reload)) => match reload.as_str() {
            "auto" => options.reload = Reload::Automatic,
            "manual" => options.reload = Reload::Manual,
            _ => wrong("\"auto\" or \"manual\""),
        },
        ("reload", _) => wrong("\"auto\" or \"manual\""),
        ("intensity", Written::Integer(count @ 0..=1000)) => options.intensity = *count as u32,
        ("intensity", _) => wrong("a whole number from 0 to 1000"),
        (key, _) => match (key, seconds(node)) {
            ("period", Some(time)) => options.period = time,
            ("start_timeout", Some(time)) => options.start_timeout = time,
            ("stop_timeout", Some(time)) => options.stop_timeout = time,
            _ => wrong("a number of seconds above 0"),
        },
    }
}

/// What no opened plugin claims: faults for names that nobody can know, and lines for the log for
/// those that are in order but without effect.
pub fn unclaimed<'a>(
    settings: &Settings,
    declared: impl Iterator<Item = &'a ServiceDeclaration>,
) -> Result<Vec<String>, Faults> {
    let aliases: Vec<&str> = declared
        .flat_map(|service| &service.settings)
        .filter_map(|setting| setting.alias.as_deref())
        .collect();
    let mut lines = Vec::new();
    let mut faults = Vec::new();
    for (key, node) in &settings.foreign {
        let is_listed = |name: &str| settings.services.iter().any(|service| service.library == name);
        let is_instance =
            |name: &str| settings.services.iter().any(|service| service.instance.as_deref() == Some(name));
        let has_effect = match (super::is_alias(key), key.split_once('@')) {
            (true, _) => aliases.contains(&key.as_str()),
            (false, None) => is_listed(key),
            (false, Some((library, name))) => is_instance(name) && (library.is_empty() || is_listed(library)),
        };
        if has_effect {
            continue;
        }
        let line = node.line;
        if !super::is_alias(key) {
            lines.push(format!("line {line}: table [{key}] has no effect: SERVICE_LIST does not name it"));
        } else if WELL_KNOWN.contains(&key.as_str()) {
            lines.push(format!("line {line}: {key} has no effect: no plugin in SERVICE_LIST claims it"));
        } else {
            let names = super::OWN.iter().chain(WELL_KNOWN).copied().chain(aliases.iter().copied());
            faults.push(Fault::unknown(line, key, key, names));
        }
    }
    if faults.is_empty() { Ok(lines) } else { Err(Faults::new(&settings.file, faults)) }
}

impl Settings {
    /// Whether the server starts without a service, as far as can be said before its library is open.
    pub(crate) fn is_optional(&self, service: &ServicePath) -> bool {
        let written = tables(self, service).into_iter().rev().find_map(|(_, table)| table.get("optional"));
        written.is_some_and(|node| matches!(node.value, Written::Boolean(true)))
    }

    /// The line of SERVICE_LIST that names a service; 0 where none does.
    pub(crate) fn line_of(&self, service: &ServicePath) -> usize {
        let at = self.services.iter().position(|known| known == service);
        at.and_then(|at| self.service_lines.get(at).copied()).unwrap_or(0)
    }

    /// A fault that belongs to a service's line, with the nearest of some names.
    pub(crate) fn service_fault<'a>(
        &self,
        service: &ServicePath,
        text: String,
        name: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Faults {
        let hint = super::fault::nearest(name, known);
        Faults::one(&self.file, Fault { line: self.line_of(service), text, hint })
    }
}
