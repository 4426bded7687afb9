//! What operators and services want of the manager.

use serde_json::{Map, Value, json};
use zeph_abi::{Need, ServiceDeclaration};
use zeph_contract::{Code, Error};

use super::Manager;
use super::needs::{Obstacle, Way};
use crate::history::What;
use crate::loader::Loaded;
use crate::messages::{Command, Job, Listed, Ticket, not_taken};
use crate::settings::{ServicePath, ServiceSettings, check_service};
use crate::supervisor::{Event, State};

/// Why a service starts or stops that nobody spoke of by name.
const SETTINGS_CHANGED: &str = "the settings changed";

/// A ticket of which parts are answered: the last part answers for all.
struct Shared {
    ticket: Ticket,
    parts: Vec<crossbeam_channel::Receiver<Result<Value, Error>>>,
}

impl Shared {
    /// Waits for all parts on a thread of its own, and answers with the list, or the first error.
    fn gather(self) {
        let Self { ticket, parts } = self;
        let gathered = std::thread::Builder::new().name("zephserver-gather".into()).spawn(move || {
            let gone = || Err(Error::cancelled("the server stopped meanwhile"));
            let answers = parts.into_iter().map(|part| part.recv().unwrap_or_else(|_| gone()));
            ticket.answer(answers.collect::<Result<Vec<_>, _>>().map(|mut answers| match answers.len() {
                1 => answers.remove(0),
                _ => Value::Array(answers),
            }));
        });
        // Without a thread the ticket is dropped, which its owner hears.
        drop(gathered);
    }
}

impl Manager {
    pub(super) fn on_command(&mut self, command: Command, ticket: Ticket) {
        match command {
            Command::Status => ticket.answer(Ok(self.status())),
            Command::Plugins => ticket.answer(Ok(self.plugin_list())),
            Command::Services(name) => ticket.answer(self.service_list(name.as_deref())),
            _ if self.is_stopping() => ticket.answer(Err(Error::unavailable("the server stops"))),
            Command::Create(ref name)
            | Command::Start(ref name)
            | Command::Added(ref name)
            | Command::Ensure(ref name, _) => {
                let name = name.clone();
                self.create_and(name, command, ticket);
            }
            Command::Disable(name) => self.for_each(&name, ticket, Self::disable_one),
            Command::Removed(name) => self.for_each(&name, ticket, Self::remove_one),
            Command::Restart(name) => self.for_each(&name, ticket, Self::restart_one),
            Command::Delete(name) => self.for_each(&name, ticket, Self::delete_one),
        }
    }

    /// The slots of a name: of one service, or of all services of a library.
    pub(super) fn targets(&self, name: &str) -> Result<Vec<u32>, Error> {
        let of_name = |slot: &&u32| {
            let path = self.containers.get(slot).map(|container| &container.path);
            path.is_some_and(|path| path.to_string() == name || path.library == name)
        };
        let found: Vec<u32> = self.order.iter().filter(of_name).copied().collect();
        if !found.is_empty() {
            return Ok(found);
        }
        let known = self.containers.values().map(|container| container.path.to_string()).collect::<Vec<_>>();
        let nearest = crate::settings::nearest(name, known.iter().map(String::as_str));
        let hint = nearest.unwrap_or_else(|| "`zephserver services` lists them".into());
        Err(Error::not_found(format!("no service `{name}`; {hint}")))
    }

    fn for_each(&mut self, name: &str, ticket: Ticket, f: fn(&mut Self, u32, Ticket)) {
        let slots = match self.targets(name) {
            Ok(slots) => slots,
            Err(error) => return ticket.answer(Err(error)),
        };
        let mut parts = Vec::new();
        for slot in slots {
            let (part, receiver) = Ticket::new();
            parts.push(receiver);
            f(self, slot, part);
        }
        Shared { ticket, parts }.gather();
    }

    fn disable_one(&mut self, slot: u32, ticket: Ticket) {
        self.stop_this(slot, "asked: disable", ticket);
    }

    fn remove_one(&mut self, slot: u32, ticket: Ticket) {
        self.stop_this(slot, SETTINGS_CHANGED, ticket);
    }

    fn stop_this(&mut self, slot: u32, reason: &'static str, ticket: Ticket) {
        let state = self.with(slot, |container| {
            container.stop_tickets.push(ticket);
            container.supervisor.state()
        });
        if state == Some(State::Available) {
            // One that crashed, and is not started again, left its socket open for who may call it back.
            self.listeners.release(self.bus.registry.name(slot));
        }
        self.wish(slot, Event::Stop, reason);
        self.answer_now(slot);
    }

    fn restart_one(&mut self, slot: u32, ticket: Ticket) {
        let runs = self
            .containers
            .get(&slot)
            .is_some_and(|container| container.supervisor.state() != State::Available);
        if runs {
            self.wish(slot, Event::Stop, "asked: restart");
        }
        self.with(slot, |container| container.start_tickets.push(ticket));
        self.start_needs(slot);
        self.wish(slot, Event::Start, "asked: restart");
        self.answer_now(slot);
    }

    fn delete_one(&mut self, slot: u32, ticket: Ticket) {
        let state = self.containers.get(&slot).map(|container| container.supervisor.state());
        if state != Some(State::Available) {
            let text = "it runs; disable it first: zephserver disable NAME";
            return ticket.answer(Err(Error::refused(text)));
        }
        self.order.retain(|known| *known != slot);
        self.listeners.release(self.bus.registry.name(slot));
        if let Some(container) = self.containers.remove(&slot) {
            container.record(What::Deleted, None);
            if let Some(life) = container.life {
                let _ = life.orders.try_send(crate::life::Order::End(life.seat));
            }
            ticket.answer(Ok(json!({"service": container.path.to_string(), "state": "deleted"})));
        }
        if let Some(place) = self.bus.registry.slot(u64::from(slot)) {
            place.set_down(crate::registry::Down::Unknown);
        }
    }

    /// Answers a ticket whose state is reached already.
    fn answer_now(&mut self, slot: u32) {
        self.with(slot, |container| {
            if !container.reloading {
                container.answer_tickets();
            }
        });
    }

    fn create_and(&mut self, name: String, command: Command, ticket: Ticket) {
        let reason = match command {
            Command::Ensure(..) => "a service asked for it",
            Command::Added(_) => SETTINGS_CHANGED,
            _ => "asked: start",
        };
        let is_only_made = matches!(command, Command::Create(_));
        let slots = match self.targets(&name) {
            Ok(_) if is_only_made => {
                return ticket.answer(Ok(json!({"service": name, "state": "exists"})));
            }
            Ok(slots) => self.make_needs_of(&slots).map(|()| slots),
            Err(_) => {
                let extra =
                    if let Command::Ensure(_, settings) = &command { settings.clone() } else { Map::new() };
                self.make(&name, extra, &mut Way::default()).map(|slot| vec![slot])
            }
        };
        match slots {
            Ok(slots) if is_only_made => {
                let name = slots.first().map_or("", |slot| self.bus.registry.name(*slot));
                ticket.answer(Ok(json!({"service": name, "state": "available"})));
            }
            Ok(slots) => self.start_these(slots, reason, ticket),
            Err(Obstacle::Closed(library)) => self.open_first(library, command, ticket),
            Err(Obstacle::Refused(error)) => ticket.answer(Err(error)),
        }
    }

    /// Has a library opened; then the command is taken once more.
    fn open_first(&self, library: String, command: Command, ticket: Ticket) {
        let job = Job::Open { library, waiting: Box::new((command, ticket)) };
        if let Err(refused) = self.jobs.try_send(job) {
            let error = not_taken(&refused);
            if let Job::Open { waiting, .. } = refused.into_inner() {
                waiting.1.answer(Err(error));
            }
        }
    }

    fn start_these(&mut self, slots: Vec<u32>, reason: &'static str, ticket: Ticket) {
        let mut parts = Vec::new();
        for slot in slots {
            let (part, receiver) = Ticket::new();
            parts.push(receiver);
            self.with(slot, |container| container.start_tickets.push(part));
            self.start_needs(slot);
            self.wish(slot, Event::Start, reason);
            self.answer_now(slot);
        }
        Shared { ticket, parts }.gather();
    }

    /// The path that a name means in a loaded plugin: the name itself, or its only kind of service.
    pub(super) fn path_in(&self, name: &str, loaded: &Loaded) -> Result<ServicePath, Error> {
        if let Ok(path) = name.parse::<ServicePath>() {
            return Ok(path);
        }
        match loaded.declaration.services.as_slice() {
            [only] if name == loaded.name => {
                Ok(ServicePath { library: name.into(), kind: only.kind.clone(), instance: None })
            }
            kinds => {
                let paths = kinds.iter().map(|kind| format!("{}/{}", loaded.name, kind.kind));
                let paths = paths.collect::<Vec<_>>().join(", ");
                Err(Error::invalid(format!("`{name}` is no single service; it has: {paths}")))
            }
        }
    }

    pub(super) fn on_opened(&mut self, opened: Result<Loaded, Error>, (command, ticket): (Command, Ticket)) {
        match opened {
            Ok(loaded) => {
                if !self.plugins.contains_key(&loaded.name) {
                    self.register(loaded.into(), "a service of it was asked for");
                }
                self.on_command(command, ticket);
            }
            Err(error) => ticket.answer(Err(error)),
        }
    }
}

/// What a service of a loaded plugin is started with; `extra` counts more than the file.
pub fn listed(
    settings: &crate::settings::Settings,
    path: ServicePath,
    loaded: &Loaded,
    extra: Map<String, Value>,
) -> Result<Listed, crate::settings::Faults> {
    let kinds = &loaded.declaration.services;
    let Some(declaration) = loaded.declaration.service(&path.kind) else {
        let names = kinds.iter().map(|kind| kind.kind.as_str());
        let all = names.clone().map(|kind| format!("{}/{kind}", path.library)).collect::<Vec<_>>().join(", ");
        let text = format!("plugin `{}` has no service `{}`; it has: {all}", path.library, path.kind);
        return Err(settings.service_fault(&path, text, &path.kind.clone(), names));
    };
    let mut checked = check_service(settings, &path, declaration, kinds)?;
    checked.values.extend(extra);
    let needs = needs(declaration, &checked);
    Ok(Listed { path, settings: checked, needs })
}

/// Who must be ready before a service starts: by what its plugin declares, its settings and its options.
pub fn needs(declaration: &ServiceDeclaration, settings: &ServiceSettings) -> Vec<String> {
    let declared = declaration.needs.iter().filter_map(|need| match need {
        Need::Service(path) => Some(path.clone()),
        Need::Setting(setting) => {
            let path = settings.values.get(setting).and_then(Value::as_str);
            path.filter(|path| !path.is_empty()).map(Into::into)
        }
    });
    declared.chain(settings.options.needs.iter().cloned()).collect()
}

/// An error of a code that names what was asked for.
pub fn unknown_verb(verb: &str, known: &[&str]) -> Error {
    let nearest = crate::settings::nearest(verb, known.iter().copied());
    let hint = nearest.unwrap_or_else(|| "`help` lists all verbs".into());
    Error::new(Code::NotFound, format!("no verb `{verb}`; {hint}"))
}
