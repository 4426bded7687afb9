//! The life of the whole: in which order things begin and end, and nothing else.
//!
//! lock → log → history → control and HTTP (so that a hanging start can be seen and stopped) → libraries and
//! their settings → cluster → services → ready; and back: services in reverse → cluster → history →
//! HTTP → control socket's file → lock → whoever asked for the stop is answered.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::Sender;
use serde_json::{Value, json};

use crate::bus::Bus;
use crate::cluster::Cluster;
use crate::control::{Control, Desk};
use crate::error::{Error, exit};
use crate::history::{Entry, History, SERVER, What};
use crate::host::HostTable;
use crate::http::{self, Http};
use crate::inventory::{self, Inventory};
use crate::listener::Listeners;
use crate::loader::Loader;
use crate::lock::Lock;
use crate::log_file::Rotation;
use crate::manager::{Manager, Tools};
use crate::messages::{self, Command, Job, Message, Ticket};
use crate::phase::{Phase, Phases};
use crate::reload::Reloader;
use crate::settings::{Current, Settings};
use crate::{logging, watch};

/// Reloads that wait at most.
const JOBS: usize = 256;

/// A running server.
pub struct Server {
    core: Arc<Core>,
}

/// How a server ended.
#[derive(Debug)]
pub struct Ended {
    /// Why it could not go on; None: it was asked to stop.
    pub error: Option<Error>,
    /// Services that did not stop in time: their threads still run.
    pub left_behind: Vec<String>,
}

impl Ended {
    /// The exit code of a process that ends like this.
    pub fn exit_code(&self) -> u8 {
        match &self.error {
            Some(error) => error.exit_code(),
            None if !self.left_behind.is_empty() => exit::TIMEOUT,
            None => exit::OK,
        }
    }
}

/// What all threads of the server share.
struct Core {
    /// The settings of the start: for what is opened once.
    settings: Arc<Settings>,
    /// The settings in force.
    current: Current,
    phases: Phases,
    bus: Arc<Bus>,
    manager: Sender<Message>,
    jobs: Sender<Job>,
    listeners: Arc<Listeners>,
    cluster: Cluster,
    history: History,
    desk: Desk,
    error: Mutex<Option<Error>>,
    ended: Mutex<Option<Ended>>,
}

/// Starts a server and waits until every service is ready. Where it cannot start, nothing is left behind.
pub fn start_server(settings: Settings) -> Result<Server, Error> {
    let server = Server::launch(settings)?;
    match server.wait_ready() {
        true => Ok(server),
        false => Err(server.wait().error.unwrap_or(Error::Stopped)),
    }
}

/// Opens the libraries and checks all settings, as a start would, and starts nothing. Answers what a
/// start would remark.
pub fn check(settings: Settings) -> Result<Vec<String>, Error> {
    let folder = tempfile::Builder::new().prefix("zephserver-check-").tempdir();
    let folder = folder.map_err(Error::io("cannot make a folder in", std::env::temp_dir()))?;
    let (parts, _queues) = parts(settings);
    let loader = Loader::new(folder.path(), parts.host()).map_err(Error::io("cannot use", folder.path()))?;
    inventory::open(&parts.settings, &loader, || true).map(|inventory| inventory.remarks)
}

type Queues = (crossbeam_channel::Receiver<Message>, crossbeam_channel::Receiver<Job>);

fn parts(settings: Settings) -> (Core, Queues) {
    let settings = Arc::new(settings);
    let phases = Phases::default();
    let (manager, messages) = messages::queue();
    let (jobs, job_queue) = crossbeam_channel::bounded(JOBS);
    let current = Current::new(settings.clone());
    let bus = Arc::new(Bus::new(current.clone(), manager.clone()));
    let history = History::default();
    let cluster = Cluster::default();
    let desk = Desk {
        bus: bus.clone(),
        manager: manager.clone(),
        jobs: jobs.clone(),
        phases: phases.clone(),
        history: history.clone(),
        cluster: cluster.clone(),
    };
    let core = Core {
        settings,
        current,
        phases,
        bus,
        manager,
        jobs,
        listeners: Arc::default(),
        cluster,
        history,
        desk,
        error: Mutex::new(None),
        ended: Mutex::new(None),
    };
    (core, (messages, job_queue))
}

impl Core {
    /// The function table for plugins. It lives for ever, as their threads may.
    fn host(&self) -> zeph_abi::Host {
        zeph_abi::host_table(Box::leak(Box::new(HostTable {
            bus: self.bus.clone(),
            settings: self.current.clone(),
            manager: self.manager.clone(),
            listeners: self.listeners.clone(),
            cluster: self.cluster.clone(),
            desk: self.desk.clone(),
        })))
    }

    /// What the manager works with.
    fn tools(&self, loader: &Arc<Loader>) -> Tools {
        Tools {
            bus: self.bus.clone(),
            settings: self.current.clone(),
            listeners: self.listeners.clone(),
            loader: loader.clone(),
            phases: self.phases.clone(),
            history: self.history.clone(),
        }
    }

    fn thread(self: &Arc<Self>, name: &str, f: impl FnOnce(Arc<Self>) + Send + 'static) -> Result<(), Error> {
        let core = self.clone();
        let spawned = std::thread::Builder::new().name(format!("zephserver-{name}")).spawn(move || f(core));
        spawned.map(drop).map_err(Error::io("cannot start a thread of", &self.settings.file))
    }

    fn fail(&self, error: Error) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        self.phases.advance(Phase::Stopping);
    }

    /// Everything between control and ready. `http`: where the server itself answers.
    fn bootstrap(self: &Arc<Self>, loader: &Arc<Loader>, http: Option<SocketAddr>) -> Result<(), Error> {
        let wanted = || self.phases.now() == Phase::Starting;
        let Inventory { loaded, listed, remarks } = inventory::open(&self.settings, loader, wanted)?;
        let version = env!("CARGO_PKG_VERSION");
        tracing::info!(
            "zephserver {version} starts, pid {}, settings {}",
            std::process::id(),
            self.settings.file.display()
        );
        if !wanted() {
            return Err(Error::Stopped);
        }
        self.history.server_starts();
        // Not before: wrong settings leave nothing behind, no log either.
        http.iter().for_each(|address| tracing::info!("http: listens on {address}"));
        self.cluster.start(&self.settings.cluster)?;
        remarks.iter().for_each(|remark| tracing::warn!("{}: {remark}", self.settings.file.display()));
        let libraries: Vec<String> = loaded.iter().map(|loaded| loaded.name.clone()).collect();
        let (ticket, started) = crossbeam_channel::bounded(1);
        let gone = |_| Error::Stopped;
        self.manager.send(Message::Adopt(loaded, listed)).map_err(gone)?;
        self.manager.send(Message::StartAll(ticket)).map_err(gone)?;
        match started.recv() {
            Ok(Ok(())) => {
                for library in &libraries {
                    loader.copies.prune(library);
                    loader.pins.settle(library);
                }
                Ok(())
            }
            Ok(Err(_)) if !wanted() => Err(Error::Stopped),
            Ok(Err(reason)) => Err(Error::Start(reason)),
            Err(_) => Err(Error::Stopped),
        }
    }

    /// Stops everything, in order. Answers who did not stop in time.
    fn stop_services(&self) -> Vec<String> {
        let (ticket, stopped) = crossbeam_channel::bounded(1);
        let _ = self.manager.send(Message::StopAll(ticket));
        // The manager bounds each service's stop; the wait as a whole needs no limit of its own.
        stopped.recv().unwrap_or_default()
    }
}

impl Server {
    /// Begins to start a server: takes the lock, opens log and control, and answers as soon as it can
    /// be watched and stopped.
    pub fn launch(settings: Settings) -> Result<Self, Error> {
        let lock = Lock::take(&settings.lock_file, &settings.control_socket)?;
        let had_log = settings.log_path.as_ref().is_none_or(|path| path.exists());
        let rotation = Rotation { size: settings.limits.log_size, files: settings.limits.log_files };
        logging::start(settings.log_level, settings.log_path.as_deref(), rotation)?;
        let (core, (messages, job_queue)) = parts(settings);
        let core = Arc::new(core);
        let settings = core.settings.clone();
        let remove_log = || {
            settings.log_path.as_deref().filter(|_| !had_log).into_iter().for_each(remove_if_empty);
        };
        let loader = Loader::new(&settings.state_path, core.host())
            .map(Arc::new)
            .map_err(Error::io("cannot use the folder STATE_PATH", &settings.state_path))
            .inspect_err(|_| remove_log())?;
        let writer = core.history.open(&settings.state_path);
        // Before any thread: where they cannot be opened, nothing is to be undone but the folder and the log.
        let clean_up = |_: &Error| {
            loader.copies.clean_up(&settings.state_path);
            remove_log();
        };
        let listener = settings.http_address.map(http::listen).transpose().inspect_err(clean_up)?;
        let control = Control::open(&settings.control_socket, core.desk.clone())
            .map_err(Error::io("cannot open the control socket", &settings.control_socket))
            .inspect_err(clean_up)?;
        let http = listener.map(|listener| Http::serve(listener, core.desk.clone())).transpose();
        let http = http.map_err(Error::io("cannot answer over HTTP; settings", &settings.file))?;
        let queues = (core.manager.clone(), messages);
        let manager = Manager::new(core.tools(&loader), queues, core.jobs.clone());
        core.thread("history", move |_| writer.run())?;
        core.thread("manager", move |_| manager.run())?;
        core.thread("clock", |core| core.bus.run_clock())?;
        core.thread("mail", |core| core.bus.run_mail())?;
        core.thread("calls", |core| watch::calls(&core.bus, &core.phases))?;
        let reloader = Reloader {
            bus: core.bus.clone(),
            settings: core.current.clone(),
            loader: loader.clone(),
            manager: core.manager.clone(),
            history: core.history.clone(),
            refused: RefCell::default(),
        };
        core.thread("reload", move |_| reloader.run(job_queue))?;
        let (of_bootstrap, address) = (loader.clone(), http.as_ref().map(|http| http.address));
        core.thread("bootstrap", move |core| run_bootstrap(&core, &of_bootstrap, address))?;
        core.thread("end", move |core| end(&core, lock, (control, http), &loader, had_log))?;
        Ok(Self { core })
    }

    /// Waits until every service is ready. False: it ends instead; [`Server::wait`] says why.
    pub fn wait_ready(&self) -> bool {
        self.core.phases.wait(Phase::Ready);
        self.core.phases.now() == Phase::Ready
    }

    /// Waits until the server has ended. The first to ask is told how; later ones only that it has.
    pub fn wait(&self) -> Ended {
        self.core.phases.wait(Phase::Stopped);
        let ended = self.core.ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        ended.unwrap_or(Ended { error: None, left_behind: Vec::new() })
    }

    /// Asks the server to stop; it does so on its own.
    pub fn request_stop(&self) {
        self.core.desk.request_stop();
    }

    /// Stops the server, and waits until it has.
    pub fn command_stop(&self) -> Ended {
        self.request_stop();
        self.wait()
    }

    /// Where the server stands.
    pub fn phase(&self) -> Phase {
        self.core.phases.now()
    }

    /// Does what a command line says, and answers what the control socket would.
    pub fn control(&self, line: &str) -> Result<Value, zeph_contract::Error> {
        self.core.desk.answer(line)
    }

    /// The addresses that services listen on, with the path of each.
    pub fn addresses(&self) -> Vec<(String, SocketAddr)> {
        self.core.listeners.addresses()
    }

    /// Makes a service without starting it: it is available then.
    pub fn create_service(&self, path: &str) -> Result<Value, zeph_contract::Error> {
        self.ask(Command::Create(path.into()))
    }

    /// Starts a service.
    pub fn enable_service(&self, path: &str) -> Result<Value, zeph_contract::Error> {
        self.ask(Command::Start(path.into()))
    }

    /// Stops a service; no call brings it back.
    pub fn disable_service(&self, path: &str) -> Result<Value, zeph_contract::Error> {
        self.ask(Command::Disable(path.into()))
    }

    /// Forgets a service that does not run.
    pub fn delete_service(&self, path: &str) -> Result<Value, zeph_contract::Error> {
        self.ask(Command::Delete(path.into()))
    }

    /// A handle on a service, whether it lives or not.
    pub fn get_service(&self, path: &str) -> Result<ServiceHandle, zeph_contract::Error> {
        let number = self.core.bus.registry.resolve(path)?.number;
        Ok(ServiceHandle { bus: self.core.bus.clone(), number: u64::from(number) })
    }

    fn ask(&self, command: Command) -> Result<Value, zeph_contract::Error> {
        let (ticket, answer) = Ticket::new();
        let gone = || zeph_contract::Error::unavailable("the server has stopped");
        self.core.manager.send(Message::Command(command, ticket)).map_err(|_| gone())?;
        answer.recv().unwrap_or_else(|_| Err(gone()))
    }
}

/// A way to call a service from the program that embeds the server.
#[derive(Clone)]
pub struct ServiceHandle {
    bus: Arc<Bus>,
    number: u64,
}

impl ServiceHandle {
    /// Calls on a thread of the pool; a dead service is brought back to life.
    pub fn call(
        &self,
        method: &str,
        payload: &[u8],
        limit: Duration,
    ) -> Result<Vec<u8>, zeph_contract::Error> {
        self.bus.call_from_outside(self.number, method, payload, limit)
    }
}

fn run_bootstrap(core: &Arc<Core>, loader: &Arc<Loader>, http: Option<SocketAddr>) {
    if let Err(error) = core.bootstrap(loader, http) {
        return core.fail(error);
    }
    let watcher = watch::files(&core.current, core.jobs.clone())
        .inspect_err(|error| tracing::warn!("changed files are not seen by themselves: {error}"));
    if core.phases.now() == Phase::Starting {
        // Before anybody can know it: what comes after that is to stand behind it.
        core.history.record(Entry::new(SERVER, What::Ready));
    }
    if core.phases.advance(Phase::Ready) {
        tracing::info!("ready");
    }
    // The watcher lives in this thread.
    core.phases.wait(Phase::Stopping);
    drop(watcher);
}

/// Waits for the wish to stop, then ends everything.
fn end(
    core: &Arc<Core>,
    lock: Lock,
    (control, http): (Control, Option<Http>),
    loader: &Loader,
    had_log: bool,
) {
    core.phases.wait(Phase::Stopping);
    let error = core.error.lock().unwrap_or_else(PoisonError::into_inner).take();
    let left_behind = core.stop_services();
    let _ = core.jobs.send_timeout(Job::Quit, Duration::from_secs(1));
    core.cluster.leave();
    core.listeners.close();
    if matches!(error, Some(Error::Settings(_))) {
        if let Some(log) = core.settings.log_path.as_deref().filter(|_| !had_log) {
            remove_if_empty(log);
        }
    } else {
        tracing::info!("stopped");
        core.history.record(how_it_ended(error.as_ref(), &left_behind));
    }
    // Before the next server may have the files.
    core.history.close();
    if matches!(error, Some(Error::Settings(_) | Error::Start(_))) {
        // Builds with which nothing could start must not push out those that served. Not before the history
        // has its last line: the folder goes, where it is empty.
        loader.copies.clean_up(&core.settings.state_path);
    }
    http.into_iter().for_each(Http::close);
    control.remove_file();
    drop(lock);
    core.bus.stop();
    let _ = core.manager.send_timeout(Message::Quit, Duration::from_secs(1));
    control.close(json!({"state": "stopped", "left_behind": left_behind}));
    let error = error.filter(|error| !matches!(error, Error::Stopped));
    *core.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(Ended { error, left_behind });
    core.phases.advance(Phase::Stopped);
}

fn how_it_ended(error: Option<&Error>, left_behind: &[String]) -> Entry {
    let stopped = Entry::new(SERVER, What::Stopped);
    match error {
        None if left_behind.is_empty() => stopped,
        None => stopped.because(&format!("left behind: {}", left_behind.join(", "))),
        Some(Error::Stopped) => stopped.because("while it started"),
        Some(error) => Entry::new(SERVER, What::Failed).because(&error.to_string()),
    }
}

fn remove_if_empty(log: &Path) {
    if log.metadata().is_ok_and(|metadata| metadata.len() == 0) {
        let _ = std::fs::remove_file(log);
    }
}
