//! Other settings for a living server: what has changed is changed, and nothing else is touched.
//!
//! ```text
//! read the file → open new libraries → check everything → difference ─ any fault: nothing is touched
//! options: set; new services: started; changed ones: replaced by an instance of the same code, by the
//! road of a reload; gone ones: stopped
//! ```
//! Each service stands for itself: where a new instance fails, the old one serves on with the settings
//! that it has, `status` says why, and the others go on.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use zeph_contract::{Code, Error};

use super::jobs::Jobs;
use super::passage::Passage;
use super::{Failed, Reloader, is_for_later};
use crate::error::Error as ServerError;
use crate::inventory::{self, Inventory};
use crate::loader::Loaded;
use crate::logging;
use crate::messages::{ApplyMode, Applying, Command, Extent, Message, Origin, Ticket, World};
use crate::settings::{
    Change, Effect, Faults, ServiceOptions, ServicePath, ServiceSettings, Settings, Stance, What, difference,
};

/// What is kept from one `apply` to the next.
#[derive(Default)]
pub struct Memory {
    /// The content of the file that was applied or refused last, as far as it could be read.
    last: Option<Result<String, Faults>>,
    /// Libraries that were opened for nothing: each further copy would stay for ever.
    opened: BTreeMap<String, Arc<Loaded>>,
}

/// What is to be done. Nothing is wrong with it as far as can be seen beforehand.
struct Plan {
    /// The settings that will be in force.
    settings: Settings,
    /// Libraries that the server did not know.
    opened: Vec<Arc<Loaded>>,
    /// The services of SERVICE_LIST in start order.
    order: Vec<ServicePath>,
    changes: Vec<Change>,
    remarks: Vec<String>,
}

/// What became of a change; None: nothing was tried.
type Outcome = Option<Result<(), Error>>;

fn invalid(faults: &Faults) -> Error {
    Error::invalid(faults.to_string())
}

fn view(change: &Change, outcome: &Outcome) -> Value {
    let keys = change.keys.iter().map(|key| json!({"key": key.key, "from": key.from, "to": key.to}));
    json!({
        "what": if change.what == What::Server { "server" } else { "service" },
        "name": change.what.name(),
        "change": change.what.kind(),
        "keys": keys.collect::<Vec<_>>(),
        "effect": change.effect.name(),
        "outcome": outcome.as_ref().map(|outcome| match outcome {
            Ok(()) => "done",
            Err(error) => error.text.as_str(),
        }),
    })
}

impl Reloader {
    /// Brings what lives to what the settings file says.
    pub(super) fn apply(
        &self,
        jobs: &mut Jobs,
        memory: &mut Memory,
        mode: ApplyMode,
        origin: Origin,
    ) -> Result<Value, Error> {
        let text = Settings::text(&self.settings.get().file);
        if origin == Origin::Watched && memory.last.as_ref() == Some(&text) {
            return Ok(json!({"applied": false, "changes": [], "remarks": []}));
        }
        let plan = text.as_ref().map_err(invalid).and_then(|text| self.plan(memory, text));
        if mode == ApplyMode::DryRun {
            return plan.map(|Plan { changes, remarks, .. }| {
                let changes: Vec<Value> = changes.iter().map(|change| view(change, &None)).collect();
                json!({"applied": false, "changes": changes, "remarks": remarks})
            });
        }
        match plan {
            Ok(plan) => {
                memory.last = Some(text);
                Ok(self.carry_out(jobs, memory, plan))
            }
            Err(error) if is_for_later(&error) => Err(error),
            Err(error) => {
                tracing::error!("the settings are not applied, the old ones stay in force: {}", error.text);
                memory.last = Some(text);
                Err(error)
            }
        }
    }

    /// Reads and checks everything, and touches nothing.
    fn plan(&self, memory: &mut Memory, text: &str) -> Result<Plan, Error> {
        let present = self.settings.get();
        let written = Settings::parse(&present.file, text).map_err(|faults| invalid(&faults))?;
        let settings = written.until_the_next_start(&present);
        let world = self.ask(Applying::Begin)??;
        // Opened since, for a command.
        memory.opened.retain(|name, _| !world.plugins.iter().any(|known| known.name == *name));
        let open = |path: &ServicePath| self.library_of(path, &settings, &world, memory);
        let inventory = inventory::open_by(&settings, open, || true).map_err(|error| {
            let code =
                if matches!(error, ServerError::Settings(_)) { Code::Invalid } else { Code::Incompatible };
            let hint = "\n  PLUGIN_PATH has changed: that counts at the next start";
            let hint = if written.plugin_path == settings.plugin_path { "" } else { hint };
            Error::new(code, format!("{error}{hint}"))
        })?;
        let Inventory { loaded, listed, remarks } = inventory;
        let wanted: Vec<_> = listed.iter().map(|one| (&one.path, &one.settings)).collect();
        let changes = difference(&present, &written, &world.services, &wanted);
        let moves = |path: &ServicePath| {
            world.services.iter().any(|one| one.path == *path && one.stance == Stance::Moves)
        };
        for change in &changes {
            if let What::Settings(path, _) = &change.what
                && moves(path)
            {
                return Err(Error::busy(format!("{path} is just starting or stopping; try again")));
            }
        }
        let is_known = |library: &Loaded| world.plugins.iter().any(|known| known.name == library.name);
        let opened = loaded.into_iter().filter(|library| !is_known(library)).collect();
        let order = listed.into_iter().map(|one| one.path).collect();
        Ok(Plan { settings, opened, order, changes, remarks })
    }

    /// The library of a service: open already, or opened now.
    fn library_of(
        &self,
        path: &ServicePath,
        settings: &Settings,
        world: &World,
        memory: &mut Memory,
    ) -> Result<Arc<Loaded>, ServerError> {
        let name = &path.library;
        if let Some(known) = world.plugins.iter().find(|known| known.name == *name) {
            return Ok(known.clone());
        }
        let refused = |reason: String| ServerError::Start(format!("{path}: {reason}"));
        let file = settings.library_file(name).ok_or_else(|| inventory::missing(settings, path))?;
        let chosen = self.loader.choose(name, &file).map_err(|refusal| refused(refusal.to_string()))?;
        if let Some(known) = memory.opened.get(name).filter(|known| known.hash == chosen.hash) {
            return Ok(known.clone());
        }
        let loaded = Arc::new(self.load_first(name, chosen).map_err(|failed| refused(failed.error.text))?);
        memory.opened.insert(name.clone(), loaded.clone());
        Ok(loaded)
    }

    /// Does it all, one change after the other.
    fn carry_out(&self, jobs: &mut Jobs, memory: &mut Memory, plan: Plan) -> Value {
        let Plan { settings, opened, order, changes, remarks } = plan;
        for loaded in opened {
            memory.opened.remove(&loaded.name);
            self.loader.copies.prune(&loaded.name);
            self.loader.pins.settle(&loaded.name);
            self.tell(Applying::Opened(loaded));
        }
        if settings.log_level != self.settings.look().log_level {
            logging::set_level(settings.log_level);
        }
        if !changes.is_empty() {
            let file = settings.file.display();
            remarks.iter().for_each(|remark| tracing::warn!("{file}: {remark}"));
        }
        self.settings.set(settings);
        let mut refused = BTreeMap::new();
        let mut views = Vec::new();
        for change in &changes {
            let outcome = self.make(jobs, change, &mut refused);
            match &outcome {
                Some(Err(error)) => tracing::error!("settings: {change}: failed: {}", error.text),
                _ => tracing::info!("settings: {change}"),
            }
            views.push(view(change, &outcome));
        }
        self.tell(Applying::End { order, refused });
        json!({"applied": true, "changes": views, "remarks": remarks})
    }

    fn make(&self, jobs: &mut Jobs, change: &Change, refused: &mut BTreeMap<ServicePath, String>) -> Outcome {
        let made = match (&change.what, change.effect) {
            (_, Effect::NextStart) => return None,
            (What::Server, _) => Ok(()),
            (What::Options(path, options), _) => self.set_options(path, options),
            (What::Added(path), _) => self.command(jobs, Command::Added(path.to_string())),
            (What::Settings(path, settings), effect) => match self.renew(path, settings) {
                Err(error) => {
                    refused.insert(path.clone(), error.text.clone());
                    Err(error)
                }
                // The manager starts it: this waits for how that ends.
                Ok(()) if effect == Effect::Started => self.command(jobs, Command::Added(path.to_string())),
                Ok(()) => Ok(()),
            },
            (What::Removed(path), _) => self
                .command(jobs, Command::Removed(path.to_string()))
                .and_then(|()| self.command(jobs, Command::Delete(path.to_string()))),
        };
        Some(made)
    }

    fn set_options(&self, path: &ServicePath, options: &ServiceOptions) -> Result<(), Error> {
        let (path, options) = (path.clone(), options.clone());
        self.ask(|ticket| Applying::Options { path, options, ticket })?
    }

    /// Has a service work with other settings: one that serves is replaced by an instance of the same code.
    fn renew(&self, path: &ServicePath, settings: &ServiceSettings) -> Result<(), Error> {
        let (owned, wanted) = (path.clone(), settings.clone());
        let step = |ticket| Applying::Settings { path: owned, settings: wanted, ticket };
        let Some((loaded, subject)) = self.ask(step)?? else { return Ok(()) };
        let mut passages = Vec::new();
        let passed = self.pass(&loaded, Extent::Services, vec![subject], &mut passages);
        let arrived = passed.and_then(|()| self.commit(&loaded, &settings.options, &mut passages));
        arrived.map_err(|failed| {
            passages.into_iter().for_each(|passage| self.undo(passage));
            self.abort(&path.library, None);
            failed.error
        })
    }

    fn commit(
        &self,
        loaded: &Arc<Loaded>,
        options: &ServiceOptions,
        passages: &mut [Passage],
    ) -> Result<(), Failed> {
        let Some(candidate) = passages.first_mut().map(Passage::arrive) else { return Ok(()) };
        let (loaded, options) = (loaded.clone(), options.clone());
        let step = |ticket| Applying::Commit { loaded, candidate, options, ticket };
        self.ask(step).flatten().map_err(Failed::later)
    }

    /// Asks the manager for what an operator might ask for; start_timeout and stop_timeout bound the wait.
    fn command(&self, jobs: &mut Jobs, command: Command) -> Result<(), Error> {
        let (ticket, answer) = Ticket::new();
        let gone = || Error::unavailable("the server stops");
        self.manager.send(Message::Command(command, ticket)).map_err(|_| gone())?;
        let answer = jobs.wait(&answer, |library, waiting| self.open_for(library, waiting));
        answer.unwrap_or_else(|| Err(gone())).map(drop)
    }
}
