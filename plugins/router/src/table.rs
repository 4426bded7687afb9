//! TASKS_PATH with what is known of each task. Pure but for the handles that it keeps.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

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
    /// How long it may run on the pool.
    pub deadline: Duration,
}

/// What a task service says of a task.
#[derive(Debug, Deserialize)]
pub struct Declared {
    name: String,
    run: RunMode,
    access: Access,
    #[serde(default)]
    deadline: Option<f64>,
}

/// Every task by its short name.
pub struct Table {
    entries: HashMap<String, Entry>,
    /// Where a task does not say.
    deadline: Duration,
    /// Whatever the task says.
    deadlines: BTreeMap<String, Duration>,
}

struct Entry {
    route: Arc<Route>,
    learned: bool,
}

impl Table {
    /// The table of TASKS_PATH: short name → `library/Task`.
    pub fn new(
        tasks: &BTreeMap<String, String>,
        deadline: Duration,
        deadlines: BTreeMap<String, Duration>,
        mut service: impl FnMut(&str) -> Handle,
    ) -> Result<Self> {
        if let Some(name) = deadlines.keys().find(|name| !tasks.contains_key(*name)) {
            return Err(Error::invalid(format!(
                "[router] deadlines: no task is named `{name}` in TASKS_PATH"
            )));
        }
        let entry = |(name, path): (&String, &String)| {
            let Some((library, task)) = path.split_once('/').filter(|(_, task)| !task.is_empty()) else {
                return Err(Error::invalid(format!(
                    "TASKS_PATH: `{name}` is \"{path}\"; it is written \"library/Task\""
                )));
            };
            let (run, access) = (RunMode::default(), Access::Authenticated);
            let service = service(&format!("{library}/Tasks"));
            let route = Route { service, task: task.into(), run, access, deadline };
            Ok((name.clone(), Entry { route: route.into(), learned: false }))
        };
        let entries = tasks.iter().map(entry).collect::<Result<_>>()?;
        Ok(Self { entries, deadline, deadlines })
    }

    /// The route of a task. Err: its service has not said yet how it runs.
    pub fn find(&self, name: &str) -> Option<Result<Arc<Route>, Handle>> {
        let entry = self.entries.get(name)?;
        Some(if entry.learned { Ok(entry.route.clone()) } else { Err(entry.route.service.clone()) })
    }

    /// Takes what a service says of its tasks.
    pub fn learn(&mut self, service: &str, tasks: &[Declared]) {
        let entries = self.entries.iter_mut();
        for (name, entry) in entries.filter(|(_, entry)| entry.route.service.path() == service) {
            if let Some(declared) = tasks.iter().find(|declared| *declared.name == *entry.route.task) {
                let own = declared.deadline.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                let deadline = self.deadlines.get(name).copied().or(own).unwrap_or(self.deadline);
                let (run, access) = (declared.run, declared.access);
                entry.route = Arc::new(Route { run, access, deadline, ..(*entry.route).clone() });
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
