//! What services are told, and what they need then: when another build comes, or other settings.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::Manager;
use super::command::needs;
use super::container::Container;
use crate::loader::Loaded;
use crate::settings::{Settings, Source, kept_values, values_of_build};

/// What a service is told by a build, and was told by another one. What that build does not take of the file
/// is said, and does not count.
fn values_for(
    settings: &Settings,
    container: &Container,
    build: &Loaded,
    told: &Map<String, Value>,
) -> Map<String, Value> {
    let path = &container.path;
    let source = if container.settings_refused.is_some() { Source::Told } else { Source::File };
    values_of_build(settings, path, &build.declaration, source, told).unwrap_or_else(|faults| {
        let generation = build.generation;
        tracing::warn!(
            "{path}: generation {generation} does not take its settings, it keeps others: {faults}"
        );
        build.declaration.service(&path.kind).map_or_else(|| told.clone(), |kind| kept_values(kind, told))
    })
}

impl Manager {
    /// A service needs what the present build of its plugin and the settings in force say.
    pub(super) fn renew_needs(&mut self, slot: u32) {
        let Some(container) = self.containers.get_mut(&slot) else { return };
        let plugin = self.plugins.get(&container.path.library);
        let declared = plugin.and_then(|plugin| plugin.loaded.declaration.service(&container.path.kind));
        if let Some(declared) = declared {
            container.needs = needs(declared, &container.settings);
        }
    }

    /// The next instances of a library's services are made of this build: each is to be told what that knows.
    /// `told` is what they were told, where that is not what they have now.
    pub(super) fn renew_settings(&mut self, build: &Loaded, told: &HashMap<u32, Map<String, Value>>) {
        let settings = self.settings.get();
        let slots: Vec<u32> = self.of_library(&build.name).map(|container| container.slot).collect();
        for slot in slots {
            self.with(slot, |container| {
                let told = told.get(&slot).unwrap_or(&container.settings.values);
                container.settings.values = values_for(&settings, container, build, told);
            });
            self.renew_needs(slot);
        }
    }
}
