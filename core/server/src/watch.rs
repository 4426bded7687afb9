//! Two watches: over the settings file and the files in PLUGIN_PATH, and over calls that take too long.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use notify::{EventKind, RecursiveMode, Watcher};
use serde_json::Value;
use zeph_abi::ServiceId;
use zeph_contract::Error;

use crate::bus::Bus;
use crate::frames;
use crate::messages::{ApplyMode, Job, Origin, Ticket};
use crate::phase::{Phase, Phases};
use crate::reload::is_for_later;
use crate::settings::{Current, library_name};

/// A file is read when nothing has touched it for so long.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// What could not be done just then is tried again after this time, then after twice as long, and so on.
const RETRY: Duration = Duration::from_secs(1);
/// How often it is doubled at most.
const DOUBLINGS: u32 = 5;
/// How often that is: each try may leave a copy of a plugin in memory.
const RETRIES: u32 = 10;
/// A direct call that takes longer is named.
const SLOW: Duration = Duration::from_secs(1);
/// How often calls are looked at.
const LOOK: Duration = Duration::from_millis(250);

/// What has changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Changed {
    /// The settings file.
    Settings,
    /// The file of this library.
    Library(String),
}

impl Changed {
    fn at(path: &Path, settings: &Path) -> Option<Self> {
        match path.file_name() == settings.file_name() {
            true => Some(Self::Settings),
            false => library_name(path).map(Self::Library),
        }
    }

    /// What somebody types who wants it tried once more.
    fn command(&self) -> String {
        match self {
            Self::Settings => "zephserver apply".into(),
            Self::Library(library) => format!("zephserver reload {library}"),
        }
    }

    /// What is to be done about it.
    fn job(&self, ticket: Ticket) -> Job {
        let origin = Origin::Watched;
        match self {
            Self::Settings => Job::Apply { mode: ApplyMode::Apply, origin, ticket },
            Self::Library(library) => Job::Reload { library: library.clone(), origin, ticket },
        }
    }
}

/// Has changed plugins loaded and changed settings applied, until the watcher is dropped. The settings in
/// force say at any time whether that is wanted; the folders are those of the start.
pub fn files(current: &Current, jobs: Sender<Job>) -> notify::Result<notify::RecommendedWatcher> {
    let (changes, changed) = crossbeam_channel::bounded(1024);
    let (settings, current) = (current.get(), current.clone());
    let file = settings.file.clone();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return };
        if matches!(event.kind, EventKind::Create(_) | EventKind::Modify(_)) {
            for change in event.paths.iter().filter_map(|path| Changed::at(path, &file)) {
                // Full: a change of the same file is in it already, or will come again with its next write.
                let _ = changes.try_send(change);
            }
        }
    })?;
    // The folder of the settings, too: editors put a new file in the place of the old one.
    let folders = settings.plugin_path.iter().map(|folder| folder.as_path());
    for folder in folders.chain(settings.file.parent()) {
        if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
            tracing::warn!("changes in {} are not seen: {error}", folder.display());
        }
    }
    let thread = std::thread::Builder::new().name("zephserver-watch".into());
    thread.spawn(move || debounce(&changed, &current, &jobs))?;
    Ok(watcher)
}

/// Where the answer to a wish will be.
type Answer = Receiver<Result<Value, Error>>;

fn debounce(changed: &Receiver<Changed>, current: &Current, jobs: &Sender<Job>) {
    // When it is to be done, and how often that was tried.
    let mut due = BTreeMap::<Changed, (Instant, u32)>::new();
    let mut asked: Vec<(Changed, u32, Answer)> = Vec::new();
    loop {
        let look = (!asked.is_empty()).then(|| Instant::now() + DEBOUNCE);
        let next = due.values().map(|(at, _)| *at).chain(look).min();
        let change = match next {
            Some(at) => changed.recv_deadline(at),
            None => changed.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match change {
            Ok(_) if !current.look().limits.watch => {}
            Ok(change) => {
                due.insert(change, (Instant::now() + DEBOUNCE, 0));
            }
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let now = Instant::now();
        let ripe: Vec<(Changed, (Instant, u32))> = due.extract_if(.., |_, (at, _)| *at <= now).collect();
        for (change, (_, tries)) in ripe {
            let (ticket, answer) = Ticket::new();
            match jobs.try_send(change.job(ticket)) {
                Ok(()) => asked.push((change, tries, answer)),
                Err(_) => drop(due.insert(change, (now + RETRY, tries))),
            }
        }
        // What could not be done just now is tried again; all else stands in the log and in `status`.
        asked.retain(|(change, tries, answer)| match answer.try_recv() {
            Ok(Err(error)) if is_for_later(&error) && *tries < RETRIES => {
                let pause = RETRY * 2u32.pow((*tries).min(DOUBLINGS));
                due.entry(change.clone()).or_insert((now + pause, tries + 1));
                false
            }
            Ok(Err(error)) if is_for_later(&error) => {
                let command = change.command();
                tracing::error!("tried {RETRIES} times more, and given up; {command} tries again: {error}");
                false
            }
            Ok(_) | Err(TryRecvError::Disconnected) => false,
            Err(TryRecvError::Empty) => true,
        });
    }
}

/// Names direct calls that take longer than a second, each once, until the server has stopped.
pub fn calls(bus: &Arc<Bus>, phases: &Phases) {
    let mut known = HashMap::<(usize, usize), (u64, Instant, bool)>::new();
    while !phases.wait_for(Phase::Stopped, LOOK) {
        let now = Instant::now();
        let seen = frames::all(bus.id);
        known.retain(|place, (sequence, ..)| {
            seen.iter().any(|call| call.place == *place && call.sequence == *sequence)
        });
        for call in seen {
            let (_, since, named) = known.entry(call.place).or_insert((call.sequence, now, false));
            if *named || now - *since < SLOW {
                continue;
            }
            *named = true;
            let caller = match call.caller {
                0 => "the server",
                caller => bus.who(ServiceId(caller)),
            };
            let callee = bus.registry.name(call.callee);
            tracing::warn!("slow call: {caller} waits for {callee} {} since more than a second", call.method);
            bus.slow_calls.fetch_add(1, Ordering::Relaxed);
            if let Some(slot) = bus.registry.slot(u64::from(call.callee)) {
                slot.slow_calls.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
