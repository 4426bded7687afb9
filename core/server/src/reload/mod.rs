//! New code for living services, without anybody noticing but by the better answers.
//!
//! ```text
//! check file → copy → open → truth → setup, info ─ the old one never noticed ─┐
//! create new beside old                                                       │ any failure:
//! handover only: shut gate → calls inside end (50 ms) → freeze → export       │ thaw, open,
//! (import →) init → main → ready                                              │ file is bad
//! commit: swap, open gate ────────────────────────────────────────────────────┘
//! old: drain, stop, destroy
//! ```
//! One thread does all reloads of a server, one after the other. Steps of plugins run on threads of
//! their own, so that a step that hangs costs its time limit and no more.

mod back;
mod passage;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use serde_json::{Map, Value, json};
use zeph_abi::{Instance, ReloadMode, ServiceDeclaration, ServiceId};
use zeph_contract::{Code, Error};

use crate::bus::Bus;
use crate::frames;
use crate::life::{self, Birth, Inherited, Order};
use crate::loader::{self, Loaded, Loader, short};
use crate::messages::{Job, Message, Origin, Replacing, Standing, Subject, Way, from_life};
use crate::settings::{ServicePath, Settings, check_service};
use passage::{Passage, Step, too_long, within};

/// How long calls inside may take to end, once the gate is shut.
const QUIET: Duration = Duration::from_millis(50);
/// How often that is tried.
const TRIES: u32 = 3;
/// How long a new library's constructors and declarations may take.
const LOADING: Duration = Duration::from_secs(10);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// Why a reload did not happen.
struct Failed {
    error: Error,
    /// The file is to blame: it is not tried again until it changes.
    file_is_bad: bool,
}

impl Failed {
    fn bad_file(text: impl Into<String>) -> Self {
        Self { error: Error::new(Code::Incompatible, text), file_is_bad: true }
    }

    fn refused(refusal: &loader::Refusal) -> Self {
        Self { file_is_bad: refusal.file_is_bad, ..Self::bad_file(refusal.to_string()) }
    }

    fn later(error: Error) -> Self {
        Self { error, file_is_bad: false }
    }
}

/// Does the reloads of one server.
pub struct Reloader {
    pub bus: Arc<Bus>,
    pub settings: Arc<Settings>,
    pub loader: Arc<Loader>,
    pub manager: Sender<Message>,
}

impl Reloader {
    /// Works until `Quit`. On a thread of its own.
    pub fn run(self, jobs: Receiver<Job>) {
        for job in jobs {
            match job {
                Job::Open { library, waiting } => {
                    let opened = self.open(&library);
                    let _ = self.manager.send(Message::Opened(opened, waiting));
                }
                Job::Reload { library, origin, ticket } => ticket.answer(self.reload(&library, origin)),
                Job::Rollback { library, build, ticket } => {
                    ticket.answer(self.rollback(&library, build.as_deref()));
                }
                Job::Follow { from, to } => self.follow(&from, &to),
                Job::Quit => return,
            }
        }
    }

    fn open(&self, library: &str) -> Result<Loaded, Error> {
        let file = self.file_of(library)?;
        let refused = |refusal: loader::Refusal| Error::new(Code::Incompatible, refusal.to_string());
        let checked = loader::check(&file).map_err(refused)?;
        let chosen = self.loader.pins.choose(&self.loader.copies, library, checked);
        let loaded = self.load(library, chosen, 1).map_err(|failed| failed.error)?;
        self.loader.copies.prune(library);
        Ok(Loaded { file, ..loaded })
    }

    fn file_of(&self, library: &str) -> Result<std::path::PathBuf, Error> {
        self.settings.library_file(library).ok_or_else(|| {
            let known = self.settings.library_files();
            let nearest = crate::settings::nearest(library, known.keys().map(String::as_str));
            let hint = nearest.unwrap_or_else(|| "`zephserver plugins` lists what is there".into());
            Error::not_found(format!("no lib{library}.so in PLUGIN_PATH; {hint}"))
        })
    }

    fn ask<T>(&self, step: impl FnOnce(Sender<T>) -> Replacing) -> Result<T, Failed> {
        let (ticket, answer) = crossbeam_channel::bounded(1);
        let gone = || Failed::later(Error::unavailable("the server stops"));
        self.manager.send(Message::Replacing(step(ticket))).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())
    }

    fn standing(&self, library: &str, but: Option<u32>) -> Result<Standing, Error> {
        self.ask(|ticket| Replacing::Begin { library: library.into(), but, ticket })
            .and_then(|standing| standing.map_err(Failed::later))
            .map_err(|failed| failed.error)
    }

    fn abort(&self, library: &str, refused: Option<(String, String)>) {
        let _ = self.manager.send(Message::Replacing(Replacing::Abort { library: library.into(), refused }));
    }

    fn reload(&self, library: &str, origin: Origin) -> Result<Value, Error> {
        let start = Instant::now();
        let standing = self.standing(library, None)?;
        let mut hash = None;
        let reloaded = self.replace(library, origin, standing, &mut hash, start);
        reloaded.map_err(|failed| {
            let text = &failed.error.text;
            tracing::error!("{library}: not reloaded, the old generation serves on: {text}");
            // A file that cannot even be read has no hash, and is tried again at its next change.
            self.abort(library, failed.file_is_bad.then(|| (hash.unwrap_or_default(), text.clone())));
            failed.error
        })
    }

    fn replace(
        &self,
        library: &str,
        origin: Origin,
        standing: Standing,
        hash: &mut Option<String>,
        start: Instant,
    ) -> Result<Value, Failed> {
        let old = standing.loaded;
        let file = self.file_of(library).map_err(Failed::later)?;
        let checked = loader::check(&file).map_err(|refusal| {
            hash.clone_from(&refusal.hash);
            Failed::refused(&refusal)
        })?;
        *hash = Some(checked.hash.clone());
        if origin == Origin::Watched {
            let was_refused = standing.refused.as_ref().is_some_and(|(bad, _)| *bad == checked.hash);
            let was_left = self.loader.pins.get(library).is_some_and(|pin| pin.file == checked.hash);
            if checked.hash == old.hash {
                let unchanged = Replacing::Unchanged { library: library.into() };
                let _ = self.manager.send(Message::Replacing(unchanged));
                // Now its file is what it was rolled back to.
                self.loader.pins.end(library);
            }
            if checked.hash == old.hash || was_refused || was_left {
                return Ok(json!({"plugin": library, "unchanged": true}));
            }
        }
        let loaded = Arc::new(self.load(library, checked, standing.newest + 1)?);
        let services = self.exchange(&loaded, standing.subjects, Way::Forward)?;
        self.loader.pins.end(library);
        Ok(said(&old, &loaded, &services, start))
    }

    /// Puts a build's services in the place of those that run, all at once, or none.
    fn exchange(
        &self,
        loaded: &Arc<Loaded>,
        subjects: Vec<Subject>,
        way: Way,
    ) -> Result<Vec<String>, Failed> {
        let mut passages = Vec::new();
        let passed = self.pass(loaded, subjects, &mut passages);
        let arrived = passed.and_then(|()| {
            let services: Vec<_> = passages.iter().map(|passage| passage.subject.path.to_string()).collect();
            let candidates = passages.drain(..).map(Passage::arrive).collect();
            match self.ask(|ticket| Replacing::Commit { loaded: loaded.clone(), candidates, way, ticket })? {
                Ok(()) => Ok(services),
                // The server stops: the old instances are on their way out already.
                Err(candidates) => {
                    candidates.into_iter().for_each(|candidate| {
                        self.dismiss(candidate.id, candidate.instance, &candidate.orders)
                    });
                    Err(Failed::later(Error::unavailable("the server stops")))
                }
            }
        });
        passages.into_iter().for_each(|passage| self.turn_back(passage));
        match &arrived {
            Ok(_) => self.loader.copies.prune(&loaded.name),
            // What followed was loaded long ago.
            Err(_) if way == Way::Follow => {}
            Err(_) => self.loader.copies.discard(&loaded.name, &loaded.hash, loaded.generation),
        }
        arrived
    }

    /// Loads a library on a thread of its own: its constructors and declarations are the author's code.
    fn load(&self, library: &str, checked: loader::Checked, generation: u32) -> Result<Loaded, Failed> {
        let (loader, name, hash) = (self.loader.clone(), library.to_string(), checked.hash.clone());
        let load = move || loader.load(&name, &checked, generation);
        match within(Instant::now() + LOADING, load) {
            Some(loaded) => loaded.map_err(|refusal| Failed::refused(&refusal)),
            None => {
                self.loader.copies.discard(library, &hash, generation);
                Err(Failed::bad_file(too_long(library, "loading (constructors, setup, info)", LOADING)))
            }
        }
    }

    /// Brings all services of a library to where only the commit is missing.
    fn pass(
        &self,
        loaded: &Arc<Loaded>,
        subjects: Vec<Subject>,
        passages: &mut Vec<Passage>,
    ) -> Result<(), Failed> {
        for subject in subjects {
            passages.push(self.create(loaded, subject)?);
        }
        for passage in passages.iter_mut().filter(|passage| !passage.hands_over) {
            let limit = passage.subject.options.start_timeout;
            passage.start(None, Instant::now() + limit, limit)?;
        }
        // Only from here on is anybody held up by the reload.
        let ids = passages.iter().map(|passage| passage.subject.id).collect();
        let (library, but) = (loaded.name.clone(), loaded.generation);
        self.ask(|ticket| Replacing::Hold { library, but, ids, ticket })?.map_err(Failed::later)?;
        self.quiesce(passages)?;
        let limit = self.bus.limits.gate_timeout;
        let deadline = Instant::now() + limit;
        for passage in passages.iter_mut().filter(|passage| passage.hands_over) {
            if passage.subject.seat.is_closed() {
                let text = format!("{} failed just now; try again", passage.subject.path);
                return Err(Failed::later(Error::busy(text)));
            }
            let state = passage.export(deadline, limit)?;
            let inherited = Inherited { version: passage.old_state_version, state };
            // Descriptors are the old instance's, and end with it.
            let can_be_kept = inherited.state.fds.is_empty() && !self.bus.limits.watch_after_reload.is_zero();
            passage.state = can_be_kept.then(|| inherited.clone());
            passage.start(Some(inherited), deadline, limit)?;
        }
        Ok(())
    }

    fn create(&self, loaded: &Arc<Loaded>, subject: Subject) -> Result<Passage, Failed> {
        let (path, old) = (subject.path.clone(), subject.loaded.clone());
        let Some(declaration) = loaded.declaration.service(&path.kind).cloned() else {
            return Err(Failed::bad_file(format!("the new build has no service `{}`", path.kind)));
        };
        let before = old.declaration.service(&path.kind).cloned().unwrap_or_default();
        let hands_over = before.reload == ReloadMode::Handover && declaration.reload == ReloadMode::Handover;
        let fits = declaration.state_version == before.state_version
            || declaration.imports.contains(&before.state_version);
        if hands_over && !fits {
            return Err(Failed::bad_file(format!(
                "{path}: the new build keeps state version {} and cannot import version {} (it imports {:?}; built \
                 with SDK {}, the old one with {})",
                declaration.state_version,
                before.state_version,
                declaration.imports,
                loaded.declaration.sdk,
                old.declaration.sdk
            )));
        }
        let values = self.settings_for(&path, loaded, &declaration, &subject.values)?;
        let Some(slot) = self.bus.registry.slot(u64::from(subject.slot)) else {
            return Err(Failed::later(Error::internal(format!("{path} has no slot"))));
        };
        let id = ServiceId::instance(subject.slot, slot.next_serial());
        // A life has fewer steps than this.
        let (sender, events) = crossbeam_channel::bounded(64);
        let _ = self.manager.send(Message::Replacing(Replacing::Candidate { id, events: sender }));
        let birth = Birth {
            library: loaded.library.clone(),
            id,
            kind: path.kind.clone(),
            name: path.to_string(),
            settings: values.clone(),
        };
        let orders = life::begin(birth, from_life(self.manager.clone(), id))
            .map_err(|error| Failed::later(Error::internal(format!("{path}: no thread: {error}"))))?;
        let limit = subject.options.start_timeout;
        let instance = match events.recv_timeout(limit) {
            Ok(life::Event::Created(instance)) => instance,
            Ok(life::Event::Failed { step, failure }) => {
                let _ = self.manager.send(Message::Replacing(Replacing::Forget { id }));
                return Err(Failed::bad_file(format!("{path}: {step} of the new build failed: {failure}")));
            }
            _ => {
                let _ = self.manager.send(Message::Replacing(Replacing::Forget { id }));
                return Err(Failed::bad_file(too_long(&path.to_string(), "create", limit)));
            }
        };
        let old_state_version = before.state_version;
        Ok(Passage {
            subject,
            declaration,
            values,
            id,
            orders,
            events,
            instance,
            hands_over,
            old_state_version,
            state: None,
            returned: None,
            step: Step::default(),
        })
    }

    /// What the new build is started with, checked as at the start of the server.
    fn settings_for(
        &self,
        path: &ServicePath,
        loaded: &Loaded,
        declaration: &ServiceDeclaration,
        values: &Map<String, Value>,
    ) -> Result<Map<String, Value>, Failed> {
        if !self.settings.services.contains(path) {
            return Ok(kept_settings(declaration, values));
        }
        let checked = check_service(&self.settings, path, declaration, &loaded.declaration.services);
        let refused =
            |faults| Failed::bad_file(format!("{path}: the new build does not take its settings: {faults}"));
        checked.map(|checked| checked.values).map_err(refused)
    }

    /// Shuts the gates of what hands over, and waits until nobody is inside. One after the other, callers
    /// before those they call (they start later): shut all at once, two that call each other would wait
    /// for each other.
    fn quiesce(&self, passages: &[Passage]) -> Result<(), Failed> {
        let hand_over = || passages.iter().filter(|passage| passage.hands_over);
        for attempt in 1..=TRIES {
            let is_quiet = |passage: &Passage| {
                passage.subject.seat.shut();
                passage.subject.seat.quiesce(Instant::now() + QUIET)
            };
            let Some(busy) = hand_over().rev().find(|passage| !is_quiet(passage)) else { return Ok(()) };
            let methods = self.methods_inside(busy.subject.slot);
            hand_over().for_each(|passage| passage.subject.seat.open());
            if attempt == TRIES {
                // Given up: each further try would load another copy.
                return Err(Failed::later(Error::timeout(format!(
                    "{}: calls inside it did not end within {} ms, {TRIES} times: {methods}; what takes longer \
                     is to be answered later",
                    busy.subject.path,
                    QUIET.as_millis()
                ))));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// The new instance goes, the old one goes on.
    fn turn_back(&self, passage: Passage) {
        let Passage { subject, id, orders, instance, step, .. } = passage;
        self.dismiss(id, instance, &orders);
        let Step { lock, was_frozen } = step;
        if was_frozen {
            let (path, old) = (subject.path.clone(), subject.instance.clone());
            let limit = Duration::from_millis(500);
            // After a freeze that still runs, whenever that ends.
            let thaw = move || {
                let _turn = lock.lock();
                old.thaw()
            };
            match within(Instant::now() + limit, thaw) {
                Some(Ok(())) => {}
                Some(Err(failure)) => tracing::error!("{path}: thaw failed: {failure}"),
                None => tracing::error!("{}", too_long(&path.to_string(), "thaw", limit)),
            }
        }
        subject.seat.open();
    }

    /// Ends an instance that never served. Its thread is to be its last owner, but for the one that
    /// asks it to stop.
    fn dismiss(&self, id: ServiceId, instance: Arc<Instance>, orders: &Sender<Order>) {
        let _ = self.manager.send(Message::Replacing(Replacing::Forget { id }));
        let _ = within(Instant::now(), move || instance.stop(zeph_abi::StopReason::Failed));
        let _ = orders.try_send(Order::End(None));
    }

    fn methods_inside(&self, slot: u32) -> String {
        let mut counts = BTreeMap::<String, u32>::new();
        for call in frames::all(self.bus.id).into_iter().filter(|call| call.callee == slot) {
            *counts.entry(call.method).or_default() += 1;
        }
        counts.into_iter().map(|(method, count)| format!("{method} ({count})")).collect::<Vec<_>>().join(", ")
    }
}

/// Says in the log and to whoever asked what replaces what.
fn said(old: &Loaded, loaded: &Loaded, services: &[String], start: Instant) -> Value {
    let ms = start.elapsed().as_secs_f64() * 1000.0;
    tracing::info!(
        "{}: generation {} ({}) replaces {} ({}) in {ms:.1} ms",
        loaded.name,
        loaded.generation,
        short(&loaded.hash),
        old.generation,
        short(&old.hash)
    );
    let view = |loaded: &Loaded| json!({"generation": loaded.generation, "hash": short(&loaded.hash)});
    json!({"plugin": loaded.name, "services": services, "from": view(old), "to": view(loaded), "ms": ms})
}

/// The settings of a new build for a service that no file speaks of: its own defaults, and what was set
/// of what it still knows.
fn kept_settings(declaration: &ServiceDeclaration, values: &Map<String, Value>) -> Map<String, Value> {
    let value = |setting: &zeph_abi::SettingDeclaration| {
        let value = values.get(&setting.name).or(Some(&setting.default)).filter(|value| !value.is_null());
        value.map(|value| (setting.name.clone(), value.clone()))
    };
    declaration.settings.iter().filter_map(value).collect()
}
