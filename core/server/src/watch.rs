//! Two watches: over the files in PLUGIN_PATH, and over calls that take too long.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use notify::{EventKind, RecursiveMode, Watcher};
use serde_json::Value;
use zeph_abi::ServiceId;
use zeph_contract::{Code, Error};

use crate::bus::Bus;
use crate::frames;
use crate::messages::{Job, Origin, Ticket};
use crate::phase::{Phase, Phases};
use crate::settings::library_name;

/// A file is loaded when nothing has touched it for so long.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// A reload that could not be done just then is tried again after this time.
const RETRY: Duration = Duration::from_secs(1);
/// A direct call that takes longer is named.
const SLOW: Duration = Duration::from_secs(1);
/// How often calls are looked at.
const LOOK: Duration = Duration::from_millis(250);

/// Asks for a reload of what changes in these folders, until the watcher is dropped.
pub fn files(folders: &[PathBuf], jobs: Sender<Job>) -> notify::Result<notify::RecommendedWatcher> {
    let (changes, changed) = crossbeam_channel::bounded(1024);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return };
        if matches!(event.kind, EventKind::Create(_) | EventKind::Modify(_)) {
            for library in event.paths.iter().filter_map(|path| library_name(path)) {
                // Full: a change of the same file is in it already, or will come again with its next write.
                let _ = changes.try_send(library);
            }
        }
    })?;
    for folder in folders {
        if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
            tracing::warn!("changes in {} are not seen: {error}", folder.display());
        }
    }
    std::thread::Builder::new().name("zephserver-watch".into()).spawn(move || debounce(&changed, &jobs))?;
    Ok(watcher)
}

fn debounce(changed: &Receiver<String>, jobs: &Sender<Job>) {
    let mut due = BTreeMap::<String, Instant>::new();
    let mut asked: Vec<(String, Receiver<Result<Value, Error>>)> = Vec::new();
    loop {
        let look = (!asked.is_empty()).then(|| Instant::now() + DEBOUNCE);
        let next = due.values().copied().chain(look).min();
        let change = match next {
            Some(at) => changed.recv_deadline(at),
            None => changed.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match change {
            Ok(library) => {
                due.insert(library, Instant::now() + DEBOUNCE);
            }
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let now = Instant::now();
        let ripe: Vec<String> = due.extract_if(.., |_, at| *at <= now).map(|(library, _)| library).collect();
        for library in ripe {
            let (ticket, answer) = Ticket::new();
            let job = Job::Reload { library: library.clone(), origin: Origin::Watched, ticket };
            match jobs.try_send(job) {
                Ok(()) => asked.push((library, answer)),
                Err(_) => drop(due.insert(library, now + RETRY)),
            }
        }
        // What could not be done just now is tried again; all else stands in the log and in `status`.
        asked.retain(|(library, answer)| match answer.try_recv() {
            Ok(Err(error)) if matches!(error.code, Code::Busy | Code::Unavailable) => {
                due.entry(library.clone()).or_insert(now + RETRY);
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
