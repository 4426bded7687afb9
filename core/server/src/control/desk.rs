//! What each verb does. Used by the control socket and by services that ask for `control`.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use serde_json::{Value, json};
use zeph_contract::Error;

use crate::bus::Bus;
use crate::cluster::Cluster;
use crate::history::History;
use crate::manager::unknown_verb;
use crate::messages::{ApplyMode, Command, Job, Message, Origin, Ticket, not_taken};
use crate::phase::{Phase, Phases};

/// The server's own verbs, with what each is for.
const VERBS: &[(&str, &str)] = &[
    ("status", "how everything stands"),
    ("services", "[NAME] the services and where each stands"),
    ("plugins", "what is loaded, and what lies in PLUGIN_PATH"),
    ("history", "[NAME] [--limit N] what happened, the newest last"),
    ("why", "NAME where it stands, and how it came to that"),
    ("start", "NAME make it, if need be, and start it"),
    ("disable", "NAME stop it; no call brings it back"),
    ("restart", "NAME stop and start it"),
    ("reload", "NAME load its library anew and hand over"),
    ("rollback", "NAME [HASH] hand over to the build before, or to that one; --list: to which"),
    ("apply", "[--dry-run] make what changed in the settings file count"),
    ("call", "NAME METHOD [JSON] call a service"),
    ("cluster", "the other nodes, and how each stands"),
    ("say", "EVENT [JSON] say an event to all other nodes"),
    ("events", "[--limit N] [--after N] what nodes said lately; with --follow as it comes"),
    ("version", "which server this is"),
    ("help", "all verbs"),
    ("stop", "stop the server; answered when it has stopped"),
];

/// Answers commands.
#[derive(Clone)]
pub struct Desk {
    pub bus: Arc<Bus>,
    pub manager: Sender<Message>,
    pub jobs: Sender<Job>,
    pub phases: Phases,
    pub history: History,
    pub cluster: Cluster,
}

impl Desk {
    /// Has the server stop.
    pub fn request_stop(&self) {
        self.phases.advance(Phase::Stopping);
    }

    /// Does what a line says. Blocks until it is done.
    pub fn answer(&self, line: &str) -> Result<Value, Error> {
        let (verb, rest) = split(line);
        match verb {
            "stop" | "status" | "plugins" | "cluster" | "version" | "help" if !rest.is_empty() => {
                let hint = if verb == "stop" { "; to stop one service: disable NAME" } else { "" };
                Err(Error::invalid(format!("usage: {verb}, without further words{hint}")))
            }
            "stop" => {
                self.request_stop();
                Ok(json!({"state": Phase::Stopping.name()}))
            }
            "status" => self.status(),
            "services" => self.ask(Command::Services((!rest.is_empty()).then(|| rest.into()))),
            "plugins" => self.ask(Command::Plugins),
            "history" => self.history(rest),
            "why" => self.why(&name(verb, rest)?),
            "start" => self.ask(Command::Start(name(verb, rest)?)),
            "disable" => self.ask(Command::Disable(name(verb, rest)?)),
            "restart" => self.ask(Command::Restart(name(verb, rest)?)),
            "reload" => self.reload(&name(verb, rest)?),
            "rollback" => self.rollback(rest),
            "apply" => self.apply(rest),
            "call" => self.call(rest),
            "cluster" => self.cluster.describe(),
            "say" => self.say(rest),
            "events" => self.events(rest),
            "version" => Ok(json!({"zephserver": env!("CARGO_PKG_VERSION")})),
            "help" => self.help(),
            _ => self.plugin_verb(verb, rest),
        }
    }

    pub(super) fn ask(&self, command: Command) -> Result<Value, Error> {
        let (ticket, answer) = Ticket::new();
        let gone = || Error::unavailable("the server is stopping");
        self.manager.send(Message::Command(command, ticket)).map_err(|_| gone())?;
        answer.recv().unwrap_or_else(|_| Err(gone()))
    }

    fn reload(&self, name: &str) -> Result<Value, Error> {
        let library = self.library(name)?;
        self.work(|ticket| Job::Reload { library, origin: Origin::Asked, ticket })
    }

    /// To the build before, or to the one whose hash begins like the second word.
    fn rollback(&self, rest: &str) -> Result<Value, Error> {
        let (library, build) = match rest.split_whitespace().collect::<Vec<_>>().as_slice() {
            [name, "--list"] => return self.kept(&self.library(name)?),
            [name] => (self.library(name)?, None),
            [name, hash] => (self.library(name)?, Some(hash.to_ascii_lowercase())),
            _ => {
                let text = "usage: rollback NAME [HASH], or rollback NAME --list, where NAME is a service's path or \
                            its library's name, and HASH the first letters of a kept build's hash";
                return Err(Error::invalid(text));
            }
        };
        self.work(|ticket| Job::Rollback { library, build, ticket })
    }

    /// The builds of a library that are kept.
    fn kept(&self, library: &str) -> Result<Value, Error> {
        let plugins = self.ask(Command::Plugins)?;
        let plugin = plugins.as_array().into_iter().flatten().find(|plugin| plugin["name"] == library);
        Ok(plugin.map_or(Value::Null, |plugin| plugin["kept"].clone()))
    }

    /// The library of a name: its own, or the path of one of its services.
    fn library(&self, name: &str) -> Result<String, Error> {
        // So that an unknown name gets the same answer, with the nearest known one, as everywhere.
        self.ask(Command::Services(Some(name.into())))?;
        Ok(name.split('/').next().unwrap_or(name).into())
    }

    /// Has the reload thread do something.
    fn work(&self, job: impl FnOnce(Ticket) -> Job) -> Result<Value, Error> {
        let (ticket, answer) = Ticket::new();
        self.jobs.try_send(job(ticket)).map_err(|refused| not_taken(&refused))?;
        answer.recv().unwrap_or_else(|_| Err(Error::unavailable("the server is stopping")))
    }

    /// The settings file is the one that the server was started with.
    fn apply(&self, rest: &str) -> Result<Value, Error> {
        let mode = match rest {
            "" => ApplyMode::Apply,
            "--dry-run" => ApplyMode::DryRun,
            _ => return Err(Error::invalid("usage: apply [--dry-run]")),
        };
        self.work(|ticket| Job::Apply { mode, origin: Origin::Asked, ticket })
    }

    fn call(&self, rest: &str) -> Result<Value, Error> {
        let (name, rest) = split(rest);
        let (method, payload) = split(rest);
        if method.is_empty() {
            return Err(Error::invalid("usage: call NAME METHOD [JSON]"));
        }
        if !payload.is_empty() {
            serde_json::from_str::<serde::de::IgnoredAny>(payload)
                .map_err(|error| Error::invalid(format!("the payload is no JSON: {error}")))?;
        }
        let service = self.service(name)?;
        self.call_service(service["name"].as_str().unwrap_or(name), method, payload.as_bytes())
    }

    /// The one service that a name means: a library's name means its service, where it has just one.
    pub(super) fn service(&self, name: &str) -> Result<Value, Error> {
        let services = self.ask(Command::Services(Some(name.into())))?;
        match services.as_array().map(Vec::as_slice) {
            Some([service]) => Ok(service.clone()),
            several => {
                let names = several.into_iter().flatten().filter_map(|service| service["name"].as_str());
                let names = names.collect::<Vec<_>>().join(", ");
                Err(Error::invalid(format!("`{name}` has several services: {names}")))
            }
        }
    }

    /// Calls on the pool: whatever the callee does, the operator gets an answer.
    fn call_service(&self, path: &str, method: &str, payload: &[u8]) -> Result<Value, Error> {
        let handle = u64::from(self.bus.registry.resolve(path)?.number);
        let reply = self.bus.call_from_outside(handle, method, payload, Duration::ZERO)?;
        if reply.is_empty() {
            return Ok(Value::Null);
        }
        Ok(serde_json::from_slice(&reply)
            .unwrap_or_else(|_| json!({"bytes": reply.len(), "text": String::from_utf8_lossy(&reply)})))
    }

    /// Path, method and doc of every verb that a living service declares.
    fn plugin_verbs(&self) -> Result<Vec<(String, String, String, String)>, Error> {
        let services = self.ask(Command::Services(None))?;
        let mut verbs = Vec::new();
        for service in services.as_array().into_iter().flatten() {
            for verb in service["verbs"].as_array().into_iter().flatten() {
                let text = |key: &str| verb[key].as_str().unwrap_or_default().to_string();
                let path = service["name"].as_str().unwrap_or_default().to_string();
                verbs.push((text("name"), path, text("method"), text("doc")));
            }
        }
        Ok(verbs)
    }

    fn plugin_verb(&self, verb: &str, rest: &str) -> Result<Value, Error> {
        let verbs = self.plugin_verbs()?;
        let Some((_, path, method, _)) = verbs.iter().find(|(name, ..)| name == verb) else {
            let known =
                VERBS.iter().map(|(name, _)| *name).chain(verbs.iter().map(|(name, ..)| name.as_str()));
            return Err(unknown_verb(verb, &known.collect::<Vec<_>>()));
        };
        let words: Vec<&str> = rest.split_whitespace().collect();
        self.call_service(path, method, &serde_json::to_vec(&words)?)
    }

    fn help(&self) -> Result<Value, Error> {
        let own = VERBS.iter().map(|(name, doc)| json!({"verb": name, "doc": doc, "of": "zephserver"}));
        let plugins = self.plugin_verbs()?;
        let declared =
            plugins.iter().map(|(name, path, _, doc)| json!({"verb": name, "doc": doc, "of": path}));
        Ok(own.chain(declared).collect())
    }
}

/// The first word, and the rest.
pub(super) fn split(line: &str) -> (&str, &str) {
    let line = line.trim();
    line.split_once(char::is_whitespace).map_or((line, ""), |(word, rest)| (word, rest.trim_start()))
}

fn name(verb: &str, rest: &str) -> Result<String, Error> {
    match rest.split_whitespace().collect::<Vec<_>>().as_slice() {
        [name] => Ok((*name).into()),
        _ => Err(Error::invalid(format!(
            "usage: {verb} NAME, where NAME is a service's path or its library's name"
        ))),
    }
}
