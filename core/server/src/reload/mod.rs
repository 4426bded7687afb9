//! New code for living services, without anybody noticing but by the better answers.
//!
//! ```text
//! check file → copy → open → truth → setup, info ─ the old one never noticed ─┐
//! create new beside old                                                       │ any failure:
//! handover only: freeze → shut gate → calls inside end (50 ms) → export       │ thaw, open,
//! (import →) init → main → ready                                              │ file is bad
//! commit: swap, open gate ────────────────────────────────────────────────────┘
//! old: drain, stop, destroy
//! ```
//! One thread does all reloads of a server, one after the other. Steps of plugins run on threads of
//! their own, so that a step that hangs costs its time limit and no more.

mod apply;
mod back;
mod jobs;
mod passage;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use serde_json::{Map, Value, json};
use zeph_abi::{ReloadMode, ServiceId};
use zeph_contract::{Code, Error};

use crate::bus::Bus;
use crate::frames;
use crate::history::{Entry, History, What};
use crate::life::{self, Birth, Inherited, Order};
use crate::loader::{self, Loaded, Loader, short};
use crate::messages::{
    Command, Direction, Extent, Job, Message, Origin, Replacing, Standing, Subject, Ticket, Wanted, from_life,
};
use crate::settings::{Current, Reload, Source, values_of_build};
use apply::Memory;
use jobs::Jobs;
pub use passage::Steps;
use passage::{Passage, too_long, within};

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
        match refusal.file_is_bad {
            true => Self::bad_file(refusal.to_string()),
            false => Self::later(Error::new(Code::Internal, refusal.to_string())),
        }
    }

    fn later(error: Error) -> Self {
        Self { error, file_is_bad: false }
    }
}

/// It is worth to try again though neither files nor settings have changed.
pub fn is_for_later(error: &Error) -> bool {
    matches!(error.code, Code::Busy | Code::Unavailable | Code::Timeout)
}

/// Does the reloads of one server.
pub struct Reloader {
    pub bus: Arc<Bus>,
    pub settings: Current,
    pub loader: Arc<Loader>,
    pub manager: Sender<Message>,
    pub history: History,
    /// Files that could not be opened: by library, hash and reason. Each try would leave a copy in memory.
    pub refused: RefCell<BTreeMap<String, (String, String)>>,
}

impl Reloader {
    /// Works until `Quit`. On a thread of its own.
    pub fn run(self, jobs: Receiver<Job>) {
        let (mut jobs, mut memory) = (Jobs::new(jobs), Memory::default());
        while let Some(job) = jobs.take() {
            match job {
                Job::Open { library, waiting } => self.open_for(&library, waiting),
                Job::Reload { library, origin, ticket } => ticket.answer(self.reload(&library, origin)),
                Job::Rollback { library, build, ticket } => {
                    ticket.answer(self.rollback(&library, build.as_deref()));
                }
                Job::Follow { from, to, patience } => self.follow(&from, &to, patience),
                Job::Apply { mode, origin, ticket } => {
                    ticket.answer(self.apply(&mut jobs, &mut memory, mode, origin));
                }
                Job::Quit => return,
            }
        }
    }

    fn open_for(&self, library: &str, waiting: Box<(Command, Ticket)>) {
        let is_unknown = matches!(self.standing(library, None), Err(Error { code: Code::NotFound, .. }));
        if !is_unknown {
            // It was opened since, for another command.
            let (command, ticket) = *waiting;
            let _ = self.manager.send(Message::Command(command, ticket));
            return;
        }
        let opened = self.open(library);
        let _ = self.manager.send(Message::Opened(opened, waiting));
    }

    fn open(&self, library: &str) -> Result<Loaded, Error> {
        let file = self.file_of(library)?;
        let refused = |refusal: loader::Refusal| Error::new(Code::Incompatible, refusal.to_string());
        let chosen = self.loader.choose(library, &file).map_err(refused)?;
        let loaded = self.load_first(library, chosen).map_err(|failed| failed.error)?;
        self.loader.copies.prune(library);
        self.loader.pins.settle(library);
        Ok(loaded)
    }

    /// Loads a library that the server does not know, unless this file was refused already.
    fn load_first(&self, library: &str, checked: loader::Checked) -> Result<Loaded, Failed> {
        let hash = checked.hash.clone();
        let before = self.refused.borrow().get(library).cloned();
        if let Some((_, reason)) = before.filter(|(bad, _)| *bad == hash) {
            return Err(Failed::bad_file(format!(
                "{reason}; it is not tried again until its content changes"
            )));
        }
        let loaded = self.load(library, checked, 1);
        match &loaded {
            Err(failed) if failed.file_is_bad => {
                let reason = failed.error.text.clone();
                self.refused.borrow_mut().insert(library.into(), (hash, reason));
            }
            _ => drop(self.refused.borrow_mut().remove(library)),
        }
        loaded
    }

    fn file_of(&self, library: &str) -> Result<std::path::PathBuf, Error> {
        let settings = self.settings.get();
        settings.library_file(library).ok_or_else(|| {
            let known = settings.library_files();
            let nearest = crate::settings::nearest(library, known.keys().map(String::as_str));
            let hint = nearest.unwrap_or_else(|| "`zephserver plugins` lists what is there".into());
            Error::not_found(format!("no lib{library}.so in PLUGIN_PATH; {hint}"))
        })
    }

    fn tell(&self, step: impl Into<Message>) {
        // The manager ends last; after it nobody cares.
        let _ = self.manager.send(step.into());
    }

    fn ask<T, S: Into<Message>>(&self, step: impl FnOnce(Sender<T>) -> S) -> Result<T, Error> {
        let (ticket, answer) = crossbeam_channel::bounded(1);
        self.tell(step(ticket));
        answer.recv().map_err(|_| Error::unavailable("the server stops"))
    }

    fn standing(&self, library: &str, but: Option<u32>) -> Result<Standing, Error> {
        self.ask(|ticket| Replacing::Begin { library: library.into(), but, ticket })?
    }

    fn abort(&self, library: &str, refused: Option<(String, String)>) {
        self.tell(Replacing::Abort { library: library.into(), refused });
    }

    /// Notes that a build did not take over.
    fn note_refused(&self, library: &str, hash: Option<&str>, cause: &str) {
        let entry = Entry::new(library, What::Refused).because(cause);
        self.history.record(Entry { hash: hash.map(|hash| short(hash).into()), ..entry });
    }

    fn reload(&self, library: &str, origin: Origin) -> Result<Value, Error> {
        let start = Instant::now();
        let standing = self.standing(library, None)?;
        let mut hash = None;
        let reloaded = self.replace(library, origin, standing, &mut hash, start);
        reloaded.map_err(|failed| {
            let text = &failed.error.text;
            tracing::error!("{library}: not reloaded, the old generation serves on: {text}");
            self.note_refused(library, hash.as_deref(), text);
            // A file that cannot even be read has no hash, and is tried again at its next change.
            let refused = failed.file_is_bad.then(|| (hash.clone().unwrap_or_default(), text.clone()));
            self.abort(library, refused);
            if let Some(hash) = hash.filter(|_| origin == Origin::Watched && !failed.file_is_bad) {
                self.let_wait(library, hash);
            }
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
                self.tell(Replacing::Unchanged { library: library.into() });
                // Now its file is what it was rolled back to. What cannot be written was said.
                let _ = self.loader.pins.end(library);
            }
            if checked.hash == old.hash || was_refused || was_left {
                return Ok(json!({"plugin": library, "unchanged": true}));
            }
            if standing.reload == Reload::Manual {
                self.let_wait(library, checked.hash);
                return Ok(json!({"plugin": library, "waits": true}));
            }
        }
        let loaded = Arc::new(self.load(library, checked, standing.newest + 1)?);
        let services = self.exchange(&loaded, standing.subjects, Direction::Forward(origin))?;
        let _ = self.loader.pins.end(library);
        Ok(said(&old, &loaded, &services, start))
    }

    /// Has it shown that a newer file is there, which is not loaded.
    fn let_wait(&self, library: &str, hash: String) {
        self.tell(Replacing::Waits { library: library.into(), hash });
    }

    /// Puts a build's services in the place of those that run, all at once, or none.
    fn exchange(
        &self,
        loaded: &Arc<Loaded>,
        subjects: Vec<Subject>,
        direction: Direction,
    ) -> Result<Vec<String>, Failed> {
        let mut passages = Vec::new();
        let extent = Extent::Library { but: loaded.generation };
        let passed = self.pass(loaded, extent, subjects, &mut passages);
        let arrived = passed.and_then(|()| {
            let candidates = passages.iter_mut().map(Passage::arrive).collect();
            let loaded = loaded.clone();
            let commit = |ticket| Replacing::Commit { loaded, direction, candidates, ticket };
            self.ask(commit).flatten().map_err(Failed::later)
        });
        if let Err(failed) = arrived {
            passages.into_iter().for_each(|passage| self.undo(passage));
            // What is to be followed was loaded long ago.
            if direction != Direction::Follow {
                self.loader.copies.discard(&loaded.copy);
            }
            return Err(failed);
        }
        let services = passages.iter().map(|passage| passage.subject.path.to_string()).collect();
        drop(passages);
        self.loader.copies.prune(&loaded.name);
        Ok(services)
    }

    /// Loads a library on a thread of its own: its constructors and declarations are the author's code.
    fn load(&self, library: &str, checked: loader::Checked, generation: u32) -> Result<Loaded, Failed> {
        let refused = |refusal: loader::Refusal| Failed::refused(&refusal);
        let copy = self.loader.copy(library, &checked, generation).map_err(refused)?;
        let (loader, name, path) = (self.loader.clone(), library.to_string(), copy.clone());
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let thread = std::thread::Builder::new().name("zephserver-step".into());
        let begun =
            thread.spawn(move || drop(sender.send(loader.load_copy(&name, &checked, generation, &path))));
        let failed = match begun.map(|_| receiver.recv_timeout(LOADING)) {
            Ok(Ok(loaded)) => return loaded.map_err(refused),
            Ok(Err(_)) => Failed::bad_file(too_long(library, "loading (constructors, setup, info)", LOADING)),
            // The file is not to blame.
            Err(error) => {
                Failed::later(Error::internal(format!("{library}: not loaded: no thread: {error}")))
            }
        };
        self.loader.copies.discard(&copy);
        Err(failed)
    }

    /// Brings services of a library to where only the commit is missing.
    fn pass(
        &self,
        loaded: &Arc<Loaded>,
        extent: Extent,
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
        let library = loaded.name.clone();
        let hold = |ticket| Replacing::Hold { library, extent, ids, ticket };
        self.ask(hold).flatten().map_err(Failed::later)?;
        self.still(passages)?;
        let is_watched = !self.bus.settings.look().limits.watch_after_reload.is_zero();
        let limit = self.bus.settings.look().limits.gate_timeout;
        let deadline = Instant::now() + limit;
        for passage in passages.iter_mut().filter(|passage| passage.hands_over) {
            if passage.subject.seat.is_closed() {
                let text = format!("{} failed just now; try again", passage.subject.path);
                return Err(Failed::later(Error::busy(text)));
            }
            let state = passage.export(deadline, limit)?;
            let inherited = Inherited { version: passage.old_state_version, state };
            // Where new content may fail soon. Descriptors are the old instance's, and end with it.
            let is_kept =
                is_watched && passage.subject.loaded.hash != loaded.hash && inherited.state.fds.is_empty();
            passage.state = is_kept.then(|| inherited.clone());
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
        if hands_over && !declaration.reads(before.state_version) {
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
        let values = self.settings_for(&subject, loaded)?;
        let Some(slot) = self.bus.registry.slot(u64::from(subject.slot)) else {
            return Err(Failed::later(Error::internal(format!("{path} has no slot"))));
        };
        let id = ServiceId::instance(subject.slot, slot.next_serial());
        // A life has fewer steps than this.
        let (sender, events) = crossbeam_channel::bounded(64);
        self.tell(Replacing::Candidate { id, events: sender });
        let birth = Birth {
            library: loaded.library.clone(),
            id,
            kind: path.kind.clone(),
            name: path.to_string(),
            settings: values.clone(),
        };
        let orders = life::begin(birth, from_life(self.manager.clone(), id)).map_err(|error| {
            self.tell(Replacing::Forget { id });
            Failed::later(Error::internal(format!("{path}: no thread: {error}")))
        })?;
        let limit = subject.options.start_timeout;
        let instance = match events.recv_timeout(limit) {
            Ok(life::Event::Created(instance)) => instance,
            Ok(life::Event::Failed { step, failure }) => {
                self.tell(Replacing::Forget { id });
                return Err(Failed::bad_file(format!(
                    "{path}: {step} of the new instance failed: {failure}"
                )));
            }
            _ => {
                self.tell(Replacing::Forget { id });
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
            was_frozen: false,
        })
    }

    /// What the new instance is started with, checked as at the start of the server.
    fn settings_for(&self, subject: &Subject, loaded: &Loaded) -> Result<Map<String, Value>, Failed> {
        let (path, settings) = (&subject.path, self.settings.get());
        let source = match &subject.wanted {
            Wanted::These(values) => return Ok(values.clone()),
            Wanted::OfFile => Source::File,
            Wanted::Kept => Source::Told,
        };
        let values = values_of_build(&settings, path, &loaded.declaration, source, &subject.values);
        values.map_err(|faults| {
            Failed::bad_file(format!("{path}: the new build does not take its settings: {faults}"))
        })
    }

    /// Has what hands over rest: first its own threads, since these may call it, or wait for who does; then
    /// its gate is shut, until nobody is inside. One gate after the other, callers before those they call (they
    /// start later): shut all at once, two that call each other would wait for each other.
    fn still(&self, passages: &mut [Passage]) -> Result<(), Failed> {
        let limit = self.bus.settings.look().limits.gate_timeout;
        for attempt in 1..=TRIES {
            let mut hand_over = passages.iter_mut().filter(|passage| passage.hands_over);
            hand_over.try_for_each(|passage| passage.freeze(limit))?;
            let is_quiet = |passage: &&Passage| {
                passage.subject.seat.shut();
                passage.subject.seat.quiesce(Instant::now() + QUIET)
            };
            let mut hand_over = passages.iter().rev().filter(|passage| passage.hands_over);
            let Some(busy) = hand_over.find(|passage| !is_quiet(passage)) else { return Ok(()) };
            let methods = self.methods_inside(busy.subject.slot);
            if attempt == TRIES {
                // Given up: each further try would load another copy.
                return Err(Failed::later(Error::timeout(format!(
                    "{}: calls inside it did not end within {} ms, {TRIES} times: {methods}; what takes longer \
                     is to be answered later",
                    busy.subject.path,
                    QUIET.as_millis()
                ))));
            }
            passages.iter_mut().filter(|passage| passage.hands_over).for_each(Passage::go_on);
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// The old instance goes on, the new one goes. Its thread is to be its last owner, but for the one that
    /// asks it to stop.
    fn undo(&self, mut passage: Passage) {
        passage.go_on();
        let Passage { id, orders, instance, .. } = passage;
        self.tell(Replacing::Forget { id });
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
