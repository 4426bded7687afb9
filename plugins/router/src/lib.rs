//! Which task answers a request. The only one who knows a task's name.

mod ordered;
mod table;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use ordered::{Ordered, Waiting};
use table::{Deadlines, Declared, Route, Table};
use zephserver_plugin::contract::event::{SERVICE_CHANGED, ServiceChanged};
use zephserver_plugin::contract::request::{LIST, ROUTE, Request, SAY, SAY_JSON};
use zephserver_plugin::contract::room::{Address, Letter, Push, SEND};
use zephserver_plugin::contract::wire::Reader;
use zephserver_plugin::{
    Access, Begun, Call, Declare, Error, Event, Handle, Host, Imported, Pending, Reply, Result, RunMode,
    Service, Start, State, Stop, export, tracing,
};

struct Router {
    host: Host,
    room: Handle,
    table: ArcSwap<Table>,
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
        let special = start.setting::<BTreeMap<String, f64>>("deadlines")?.into_iter();
        let special = special.map(|(name, seconds)| Ok((name, duration(seconds)?))).collect::<Result<_>>()?;
        let deadlines = Deadlines { usual: duration(start.setting("deadline")?)?, special };
        let table = Table::new(&tasks, deadlines, |path| host.service(path))?;
        let room = host.service(&start.setting::<String>("room")?);
        Ok(Self { host, room, table: ArcSwap::from_pointee(table), ordered: Mutex::default() })
    }

    fn init(&self) -> Result<()> {
        self.host.subscribe(SERVICE_CHANGED)?;
        self.host.subscribe_cluster(SAY)?;
        Ok(())
    }

    fn main(&self, stop: &Stop) -> Result<()> {
        if self.host.until_serving() {
            // Tasks that the generation before has begun end here: their answers come by name.
            self.host.resume_calls()?;
        }
        stop.wait();
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
        // Every request passes here: the table is looked at without a lock.
        let table = self.table.load();
        let learned;
        let route = match table.find(asked.task) {
            Some(Ok(route)) => route,
            _ => {
                learned = self.learn(asked.task)?;
                &learned
            }
        };
        if route.access == Access::Authenticated && asked.user.is_none() {
            let task = String::from_utf8_lossy(asked.task);
            return Err(Error::refused(format!("task `{task}` is for users only; log in first")));
        }
        match route.run {
            RunMode::Inline => call.forward(&route.service, &route.method),
            RunMode::Pooled => {
                let (pending, reply) = call.defer()?;
                self.begin(pending, route, call.payload());
                Ok(reply)
            }
            RunMode::Ordered => {
                let (pending, reply) = call.defer()?;
                let waiting = Waiting { token: pending.token(), request: call.payload().to_vec() };
                let entered = self.ordered().enter(asked.cid, waiting);
                match entered {
                    Ok(Some(waiting)) => self.begin(pending, route, &waiting.request),
                    Ok(None) => drop(pending.hand_over()),
                    Err(error) => pending.fail(&error)?,
                }
                Ok(reply)
            }
        }
    }

    /// Begins a task on the pool; its answer comes as an event.
    fn begin(&self, pending: Pending, route: &Route, request: &[u8]) {
        let token = pending.token();
        let service = route.service.on_behalf_of(&pending);
        match service.begin_on_pool(&route.method, request, token, route.deadline) {
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

    /// The route of a task.
    fn find(&self, task: &[u8]) -> Result<Arc<Route>> {
        match self.table.load().find(task) {
            Some(Ok(route)) => Ok(route.clone()),
            _ => self.learn(task),
        }
    }

    /// Learns from a task's service how it runs.
    #[cold]
    fn learn(&self, task: &[u8]) -> Result<Arc<Route>> {
        let name = String::from_utf8_lossy(task);
        let service = match self.table.load().find(task) {
            Some(Ok(route)) => return Ok(route.clone()),
            Some(Err(service)) => service.clone(),
            None => return Err(Error::not_found(format!("no task is named `{name}` in TASKS_PATH"))),
        };
        let tasks: Vec<Declared> = service.call_json(LIST, &())?;
        self.table.rcu(|table| table.learn(service.path(), &tasks));
        match self.table.load().find(task) {
            Some(Ok(route)) => Ok(route.clone()),
            _ => Err(Error::not_found(format!("{} has no task for `{name}`", service.path()))),
        }
    }

    /// A service began anew, perhaps with other tasks.
    fn forget(&self, service: &str) {
        self.table.rcu(|table| table.forget(service));
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
