//! TASKS_PATH with what is known of each task. Pure but for the handles that it keeps; a change makes a
//! new table.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use zephserver_plugin::contract::request::RUN;
use zephserver_plugin::{Access, Error, Handle, Result, RunMode};

/// Where a task is and how it runs.
#[derive(Clone)]
pub struct Route {
    /// The service that runs it.
    pub service: Handle,
    /// The method that runs it.
    pub method: Box<str>,
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

/// How long tasks may run.
#[derive(Clone)]
pub struct Deadlines {
    /// Where a task does not say.
    pub usual: Duration,
    /// By short name, whatever the task says.
    pub special: BTreeMap<String, Duration>,
}

/// Every task by its short name.
#[derive(Clone)]
pub struct Table {
    entries: HashMap<Box<[u8]>, Entry, foldhash::fast::RandomState>,
    deadlines: Deadlines,
}

#[derive(Clone)]
struct Entry {
    /// Its name in its library.
    task: Arc<str>,
    route: Arc<Route>,
    learned: bool,
}

impl Table {
    /// The table of TASKS_PATH: short name → `library/Task`.
    pub fn new(
        tasks: &BTreeMap<String, String>,
        deadlines: Deadlines,
        mut service: impl FnMut(&str) -> Handle,
    ) -> Result<Self> {
        if let Some(name) = deadlines.special.keys().find(|name| !tasks.contains_key(*name)) {
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
            let route = Route {
                service: service(&format!("{library}/Tasks")),
                method: format!("{RUN}{task}").into(),
                run: RunMode::default(),
                access: Access::Authenticated,
                deadline: deadlines.usual,
            };
            let entry = Entry { task: task.into(), route: route.into(), learned: false };
            Ok((name.as_bytes().into(), entry))
        };
        let entries = tasks.iter().map(entry).collect::<Result<_>>()?;
        Ok(Self { entries, deadlines })
    }

    /// The route of a task. Err: its service has not said yet how it runs.
    pub fn find(&self, name: &[u8]) -> Option<Result<&Arc<Route>, &Handle>> {
        let entry = self.entries.get(name)?;
        Some(if entry.learned { Ok(&entry.route) } else { Err(&entry.route.service) })
    }

    /// With what a service says of its tasks.
    pub fn learn(&self, service: &str, tasks: &[Declared]) -> Self {
        let mut table = self.clone();
        let entries = table.entries.iter_mut();
        for (name, entry) in entries.filter(|(_, entry)| entry.route.service.path() == service) {
            if let Some(declared) = tasks.iter().find(|declared| *declared.name == *entry.task) {
                let own = declared.deadline.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                let name = String::from_utf8_lossy(name);
                let special = self.deadlines.special.get(&*name).copied();
                let deadline = special.or(own).unwrap_or(self.deadlines.usual);
                let (run, access) = (declared.run, declared.access);
                entry.route = Arc::new(Route { run, access, deadline, ..(*entry.route).clone() });
                entry.learned = true;
            }
        }
        table
    }

    /// Without what is known of a service's tasks: it may be wrong now.
    pub fn forget(&self, service: &str) -> Self {
        let mut table = self.clone();
        for entry in table.entries.values_mut().filter(|entry| entry.route.service.path() == service) {
            entry.learned = false;
        }
        table
    }
}
