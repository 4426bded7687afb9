//! How everything stands, as JSON.

use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use zeph_abi::{Copies, copies};
use zeph_contract::Error;

use super::{Container, Manager, Plugin};
use crate::loader::short;
use crate::supervisor::State;

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Manager {
    pub(super) fn status(&self) -> Value {
        let bus = &self.bus;
        let pool = bus.pool.figures();
        let Copies { loaded, limit, retired, held, keys, .. } = copies();
        json!({
            "state": self.phases.now().name(),
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "node": self.settings.look().cluster.node,
            "started": seconds(self.started_at),
            "settings": self.settings.look().file,
            "services": self.order.iter().filter_map(|slot| self.containers.get(slot)).map(|c| self.view(c)).collect::<Vec<_>>(),
            "left_behind": self.left.values().collect::<Vec<_>>(),
            "generations": {
                "loaded": self.generations,
                "draining": self.retired.values().map(|retired| retired.generation()).collect::<Vec<_>>(),
                "copies": loaded,
                "limit": limit,
                "retired": retired,
                "held": held
                    .into_iter()
                    .map(|held| json!({"copy": held.copy, "threads": held.threads}))
                    .collect::<Vec<_>>(),
                "key_hook": keys.is_some(),
                "keys_in_use": keys.map(|keys| keys.in_use),
                "keys_freed": keys.map(|keys| keys.freed),
            },
            "calls": {
                "pending": bus.pending.len(),
                "slow": bus.slow_calls.load(Ordering::Relaxed),
                "timeouts": bus.timeouts.load(Ordering::Relaxed),
            },
            "pool": {
                "threads": pool.threads,
                "stuck": pool.stuck,
                "stuck_ever": pool.stuck_ever,
                "queued": pool.queued,
            },
            "log_lines_lost": crate::logging::lost(),
            "history_lines_lost": self.history.lost(),
        })
    }

    fn view(&self, container: &Container) -> Value {
        let state = match container.supervisor.state() {
            State::Available => "available",
            State::Starting => "starting",
            State::Enabled => "enabled",
            State::Ended => "available",
            State::Stopping { .. } => "stopping",
            State::Waiting { .. } | State::Blocked => "waiting",
        };
        let slot = self.bus.registry.slot(u64::from(container.slot));
        let plugin = self.plugins.get(&container.path.library);
        let refused = plugin.and_then(|plugin| plugin.refused.as_ref());
        let life = container.life.as_ref();
        json!({
            "name": container.path.to_string(),
            "state": state,
            "wanted": container.is_wanted,
            "optional": container.settings.options.optional,
            "generation": life.map(|life| life.generation),
            "hash": life.map(|life| &life.hash),
            "since": seconds(container.since),
            "restarts": container.restarts,
            "failures": container.failure_count,
            "last_failure": container.failure,
            "waits_for": self.waits_for(container),
            "reloading": container.reloading,
            "refused": refused.map(|(_, reason)| reason),
            "refused_hash": refused.map(|(hash, _)| short(hash)),
            "settings_refused": container.settings_refused,
            "waiting_build": plugin.and_then(Plugin::waiting_build),
            "pinned": self.loader.pins.text(&container.path.library),
            "slow_calls": slot.map_or(0, |slot| slot.slow_calls.load(Ordering::Relaxed)),
            "events_dropped": slot.map_or(0, |slot| slot.mailbox.dropped()),
            "metrics": container.metrics,
            "verbs": plugin
                .and_then(|plugin| plugin.loaded.declaration.service(&container.path.kind))
                .map(|service| &service.verbs),
        })
    }

    pub(super) fn service_list(&self, name: Option<&str>) -> Result<Value, Error> {
        let slots = match name {
            Some(name) => self.targets(name)?,
            None => self.order.clone(),
        };
        let containers = slots.iter().filter_map(|slot| self.containers.get(slot));
        Ok(Value::Array(containers.map(|container| self.view(container)).collect()))
    }

    /// The builds of a plugin that are kept on disk, the youngest first.
    fn kept(&self, name: &str, plugin: &Plugin) -> Value {
        let refused = |hash: &str| plugin.refused.as_ref().filter(|(bad, _)| bad == hash);
        let kept = self.loader.copies.kept(name).into_iter().map(|kept| {
            json!({
                "hash": short(&kept.hash),
                "loaded_at": seconds(kept.at),
                "runs": kept.hash == plugin.loaded.hash,
                "refused": refused(&kept.hash).map(|(_, reason)| reason),
            })
        });
        kept.collect()
    }

    /// Loaded plugins with what they declare, and files that nobody asked for: those are not opened.
    pub(super) fn plugin_list(&self) -> Value {
        let mut list = Vec::new();
        for (name, plugin) in &self.plugins {
            let loaded = &plugin.loaded;
            list.push(json!({
                "name": name,
                "loaded": true,
                "file": loaded.file,
                "version": loaded.declaration.version,
                "sdk": loaded.declaration.sdk,
                "generation": loaded.generation,
                "hash": short(&loaded.hash),
                "loaded_at": seconds(loaded.at),
                "code_address": format!("{:#x}", loaded.library.code_address()),
                "services": loaded.declaration.services.iter().map(|kind| &kind.kind).collect::<Vec<_>>(),
                "tasks": loaded.declaration.tasks.iter().map(|task| &task.name).collect::<Vec<_>>(),
                "verbs": loaded.declaration.services.iter().flat_map(|kind| &kind.verbs).collect::<Vec<_>>(),
                "refused": plugin.refused.as_ref().map(|(_, reason)| reason),
                "waiting_build": plugin.waiting_build(),
                "watched": plugin.watch.is_some(),
                "pinned": self.loader.pins.text(name),
                "kept": self.kept(name, plugin),
            }));
        }
        for (name, file) in self.settings.get().library_files() {
            if self.plugins.contains_key(&name) {
                continue;
            }
            let metadata = file.metadata().ok();
            list.push(json!({
                "name": name,
                "loaded": false,
                "file": file,
                "size": metadata.as_ref().map(|metadata| metadata.len()),
                "modified": metadata.and_then(|metadata| metadata.modified().ok()).map(seconds),
            }));
        }
        Value::Array(list)
    }
}
