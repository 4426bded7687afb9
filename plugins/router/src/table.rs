//! TASKS_PATH with what is known of each task. Pure but for the handles that it keeps.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::Deserialize;
use zephserver_plugin::{Access, Error, Handle, Result, RunMode};

/// Where a task is and how it runs.
#[derive(Clone)]
pub struct Route {
    /// The service that runs it.
    pub service: Handle,
    /// Its name there.
    pub task: Arc<str>,
    pub run: RunMode,
    pub access: Access,
}

/// What a task service says of a task.
#[derive(Debug, Deserialize)]
pub struct Declared {
    name: String,
    run: RunMode,
    access: Access,
}

/// Every task by its short name.
pub struct Table {
    entries: HashMap<String, Entry>,
}

struct Entry {
    route: Arc<Route>,
    learned: bool,
}

impl Table {
    /// The table of TASKS_PATH: short name → `library/Task`.
    pub fn new(tasks: &BTreeMap<String, String>, mut service: impl FnMut(&str) -> Handle) -> Result<Self> {
        let entry = |(name, path): (&String, &String)| {
            let Some((library, task)) = path.split_once('/').filter(|(_, task)| !task.is_empty()) else {
                return Err(Error::invalid(format!(
                    "TASKS_PATH: `{name}` is \"{path}\"; it is written \"library/Task\""
                )));
            };
            let (run, access) = (RunMode::default(), Access::Authenticated);
            let route =
                Route { service: service(&format!("{library}/Tasks")), task: task.into(), run, access };
            Ok((name.clone(), Entry { route: route.into(), learned: false }))
        };
        Ok(Self { entries: tasks.iter().map(entry).collect::<Result<_>>()? })
    }

    /// The route of a task. Err: its service has not said yet how it runs.
    pub fn find(&self, name: &str) -> Option<Result<Arc<Route>, Handle>> {
        let entry = self.entries.get(name)?;
        Some(if entry.learned { Ok(entry.route.clone()) } else { Err(entry.route.service.clone()) })
    }

    /// Takes what a service says of its tasks.
    pub fn learn(&mut self, service: &str, tasks: &[Declared]) {
        for entry in self.entries.values_mut().filter(|entry| entry.route.service.path() == service) {
            if let Some(declared) = tasks.iter().find(|declared| *declared.name == *entry.route.task) {
                let (run, access) = (declared.run, declared.access);
                entry.route = Arc::new(Route { run, access, ..(*entry.route).clone() });
                entry.learned = true;
            }
        }
    }

    /// What is known of a service's tasks may be wrong now.
    pub fn forget(&mut self, service: &str) {
        for entry in self.entries.values_mut().filter(|entry| entry.route.service.path() == service) {
            entry.learned = false;
        }
    }
}
