//! Which task answers a request. The only one who knows a task's name.

mod table;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use table::{Declared, Route, Table};
use zephserver_plugin::contract::event::{SERVICE_CHANGED, ServiceChanged};
use zephserver_plugin::contract::request::{LIST, ROUTE, RUN, Request, SAY};
use zephserver_plugin::contract::room::{Address, Push, SEND};
use zephserver_plugin::{
    Access, Begun, Call, Declare, Error, Event, Handle, Host, Pending, Reply, Result, RunMode, Service,
    Start, export, tracing,
};

/// How long a task may run.
const DEADLINE: Duration = Duration::from_secs(30);

struct Router {
    host: Host,
    room: Handle,
    table: RwLock<Table>,
}

impl Service for Router {
    fn declare(declare: Declare) -> Declare {
        declare
            .setting("tasks", serde_json::json!({}), "short name → \"library/Task\"")
            .alias("TASKS_PATH")
            .setting("room", "room/Room", "the service that keeps the rooms")
            .alias("MY_ROOM_HANDLER")
            .needs_setting("room")
    }

    fn new(start: Start) -> Result<Self> {
        let host = start.host();
        let tasks: BTreeMap<String, String> = start.setting("tasks")?;
        let table = Table::new(&tasks, |path| host.service(path))?;
        let room = host.service(&start.setting::<String>("room")?);
        Ok(Self { host, room, table: RwLock::new(table) })
    }

    fn init(&self) -> Result<()> {
        self.host.subscribe(SERVICE_CHANGED)?;
        self.host.subscribe_cluster(SAY)?;
        Ok(())
    }

    fn call(&self, call: Call<'_>) -> Result<Reply> {
        match call.method() {
            ROUTE => self.route(call),
            SAY => {
                // A cid is known on its own node only.
                if !matches!(Push::decode(call.payload())?.address, Address::Cid(_)) {
                    self.host.say(SAY, call.payload())?;
                }
                let reached = self.room.call(SEND, call.payload())?;
                call.reply(&reached)
            }
            _ => call.unknown_method(),
        }
    }

    fn event(&self, event: Event<'_>) -> Result<()> {
        match event {
            Event::Reply { cookie, result, .. } => {
                let pending = Pending::resume(&self.host, cookie);
                let answered = match result {
                    Ok(reply) => pending.reply(reply),
                    Err(error) => pending.fail(&error),
                };
                if let Err(error) = answered {
                    // The peer has gone meanwhile.
                    tracing::debug!("{error}");
                }
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
}

impl Router {
    fn route(&self, call: Call<'_>) -> Result<Reply> {
        let asked = Request::decode(call.payload())?;
        let route = self.find(asked.task)?;
        if route.access == Access::Authenticated && asked.user.is_none() {
            return Err(Error::refused(format!("task `{}` is for users only; log in first", asked.task)));
        }
        let mut payload = Vec::with_capacity(call.payload().len() + 64);
        Request { kind: &route.task, say: self.host.name(), ..asked }.encode(&mut payload);
        match route.run {
            RunMode::Inline => Reply::bytes(route.service.call(RUN, &payload)?),
            RunMode::Pooled | RunMode::Ordered => {
                let (pending, reply) = call.defer()?;
                let service = route.service.on_behalf_of(&pending);
                match service.begin_on_pool(RUN, &payload, pending.token(), DEADLINE) {
                    Ok(Begun::Pending(_)) => {
                        // Answered by its token when the task is done.
                        pending.hand_over();
                    }
                    Ok(Begun::Answered(answer)) => pending.reply(&answer)?,
                    Err(error) => pending.fail(&error)?,
                }
                Ok(reply)
            }
        }
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

export!(Router);
