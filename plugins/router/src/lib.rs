//! Which task answers a request. The only one who knows a task's name.

mod ordered;
mod table;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use ordered::{Ordered, Waiting};
use table::{Declared, Route, Table};
use zephserver_plugin::contract::event::{SERVICE_CHANGED, ServiceChanged};
use zephserver_plugin::contract::request::{LIST, ROUTE, RUN, Request, Run, SAY, SAY_JSON};
use zephserver_plugin::contract::room::{Address, Letter, Push, SEND};
use zephserver_plugin::contract::wire::Reader;
use zephserver_plugin::{
    Access, Begun, Call, Declare, Error, Event, Handle, Host, Imported, Pending, Reply, Result, RunMode,
    Service, Start, State, export, tracing,
};

struct Router {
    host: Host,
    room: Handle,
    table: RwLock<Table>,
    ordered: Mutex<Ordered>,
}

impl Service for Router {
    fn declare(declare: Declare) -> Declare {
        declare
            .setting("tasks", serde_json::json!({}), "short name → \"library/Task\"")
            .alias("TASKS_PATH")
            .setting("deadline", 30.0, "seconds that a task may run on the pool, where it does not say")
            .setting("deadlines", serde_json::json!({}), "short name → seconds, whatever the task says")
            .setting("room", "room/Room", "the service that keeps the rooms")
            .alias("MY_ROOM_HANDLER")
            .needs_setting("room")
            .state(1)
    }

    fn new(start: Start) -> Result<Self> {
        let host = start.host();
        let tasks: BTreeMap<String, String> = start.setting("tasks")?;
        let deadlines = BTreeMap::from_iter(
            start
                .setting::<BTreeMap<String, f64>>("deadlines")?
                .into_iter()
                .map(|(name, seconds)| Ok((name, duration(seconds)?)))
                .collect::<Result<Vec<_>>>()?,
        );
        let deadline = duration(start.setting("deadline")?)?;
        let table = Table::new(&tasks, deadline, deadlines, |path| host.service(path))?;
        let room = host.service(&start.setting::<String>("room")?);
        Ok(Self { host, room, table: RwLock::new(table), ordered: Mutex::default() })
    }

    fn init(&self) -> Result<()> {
        self.host.subscribe(SERVICE_CHANGED)?;
        self.host.subscribe_cluster(SAY)?;
        Ok(())
    }

    fn call(&self, call: Call<'_>) -> Result<Reply> {
        match call.method() {
            ROUTE => self.route(call),
            SAY => call.reply(&self.say(call.payload())?),
            SAY_JSON => {
                let letter: Letter = call.json()?;
                let mut payload = Vec::new();
                letter.push()?.encode(&mut payload);
                Reply::json(&Reader(&self.say(&payload)?).u64()?)
            }
            _ => call.unknown_method(),
        }
    }

    fn event(&self, event: Event<'_>) -> Result<()> {
        match event {
            Event::Reply { cookie, result, .. } => {
                self.answer(cookie, result);
                Ok(())
            }
            Event::Said { name: SAY, payload } => self.room.call(SEND, payload).map(drop),
            Event::Published { name: SERVICE_CHANGED, payload } => {
                let changed: ServiceChanged = serde_json::from_slice(payload)?;
                self.forget(&changed.service);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn export_state(&self) -> Result<State> {
        Ok(State::bytes(self.ordered().encode()))
    }

    fn import_state(&self, state: Imported<'_>) -> Result<()> {
        *self.ordered() = Ordered::decode(state.bytes)?;
        Ok(())
    }
}

impl Router {
    fn ordered(&self) -> MutexGuard<'_, Ordered> {
        self.ordered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn route(&self, call: Call<'_>) -> Result<Reply> {
        let asked = Request::decode(call.payload())?;
        let route = self.find(asked.task)?;
        if route.access == Access::Authenticated && asked.user.is_none() {
            return Err(Error::refused(format!("task `{}` is for users only; log in first", asked.task)));
        }
        match route.run {
            RunMode::Inline => {
                let mut answers = Vec::new();
                route.service.call_into(RUN, &self.order(&route, call.payload()), &mut answers)?;
                Reply::bytes(answers)
            }
            RunMode::Pooled => {
                let (pending, reply) = call.defer()?;
                self.begin(pending, &route, call.payload());
                Ok(reply)
            }
            RunMode::Ordered => {
                let (pending, reply) = call.defer()?;
                let waiting = Waiting { token: pending.token(), request: call.payload().to_vec() };
                let entered = self.ordered().enter(asked.cid, waiting);
                match entered {
                    Ok(Some(waiting)) => self.begin(pending, &route, &waiting.request),
                    Ok(None) => drop(pending.hand_over()),
                    Err(error) => pending.fail(&error)?,
                }
                Ok(reply)
            }
        }
    }

    /// The payload that has a task run.
    fn order(&self, route: &Route, request: &[u8]) -> Vec<u8> {
        let mut payload = Vec::with_capacity(request.len() + 64);
        Run { kind: &route.task, say: self.host.name(), request }.encode(&mut payload);
        payload
    }

    /// Begins a task on the pool; its answer comes as an event.
    fn begin(&self, pending: Pending, route: &Route, request: &[u8]) {
        let token = pending.token();
        let service = route.service.on_behalf_of(&pending);
        match service.begin_on_pool(RUN, &self.order(route, request), token, route.deadline) {
            Ok(Begun::Pending(_)) => drop(pending.hand_over()),
            Ok(Begun::Answered(answer)) => self.answer(pending.hand_over(), Ok(&answer)),
            Err(error) => self.answer(pending.hand_over(), Err(error)),
        }
    }

    /// A task on the pool has ended: its answer goes to who asked, and whoever waited for it is next.
    fn answer(&self, token: u64, result: Result<&[u8]>) {
        let pending = Pending::resume(&self.host, token);
        let answered = match result {
            Ok(reply) => pending.reply(reply),
            Err(error) => pending.fail(&error),
        };
        if let Err(error) = answered {
            // The peer has gone meanwhile.
            tracing::debug!("{error}");
        }
        let next = self.ordered().leave(token);
        if let Some(Waiting { token, request }) = next {
            let pending = Pending::resume(&self.host, token);
            match Request::decode(&request).and_then(|asked| self.find(asked.task)) {
                Ok(route) => self.begin(pending, &route, &request),
                Err(error) => self.answer(pending.hand_over(), Err(error)),
            }
        }
    }

    /// Pushes, here and on the other nodes. A cid is known on its own node only.
    fn say(&self, push: &[u8]) -> Result<Vec<u8>> {
        if !matches!(Push::decode(push)?.address, Address::Cid(_)) {
            self.host.say(SAY, push)?;
        }
        self.room.call(SEND, push)
    }

    /// The route of a task; learns from its service how it runs, where that is not known yet.
    fn find(&self, task: &str) -> Result<Arc<Route>> {
        let read = || self.table.read().unwrap_or_else(PoisonError::into_inner);
        let unlearned = match read().find(task) {
            Some(Ok(route)) => return Ok(route),
            Some(Err(service)) => service,
            None => return Err(Error::not_found(format!("no task is named `{task}` in TASKS_PATH"))),
        };
        let tasks: Vec<Declared> = unlearned.call_json(LIST, &())?;
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.learn(unlearned.path(), &tasks);
        match table.find(task) {
            Some(Ok(route)) => Ok(route),
            _ => Err(Error::not_found(format!("{} has no task for `{task}`", unlearned.path()))),
        }
    }

    /// A service began anew, perhaps with other tasks.
    fn forget(&self, service: &str) {
        self.table.write().unwrap_or_else(PoisonError::into_inner).forget(service);
    }
}

fn duration(seconds: f64) -> Result<Duration> {
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => {
            Err(Error::invalid(format!("[router] a deadline is a number of seconds above 0, not {seconds}")))
        }
    }
}

export!(Router);
