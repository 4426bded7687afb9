//! What the server does for its plugins: the other end of the function table.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use serde_json::Value;
use zeph_abi::{CallRequest, Context, Failure, HostSide, Out, Outcome, Report, Scope, ServiceId};
use zeph_contract::{Code, Error};

use crate::bus::{self, Bus};
use crate::cluster::Cluster;
use crate::control::Desk;
use crate::life;
use crate::listener::Listeners;
use crate::messages::{Command, Message, Ticket};
use crate::settings::Current;

/// The server, as plugins see it. Lives for ever: see [`zeph_abi::host_table`].
pub struct HostTable {
    pub bus: Arc<Bus>,
    pub settings: Current,
    pub manager: Sender<Message>,
    pub listeners: Arc<Listeners>,
    pub cluster: Cluster,
    pub desk: Desk,
}

fn failure(error: Error) -> Failure {
    Failure::new(error.code.number(), error.text)
}

/// `create` is pure: there only `log` and `config` are answered.
fn not_while_creating(what: &str) -> Result<(), Failure> {
    if life::is_creating() {
        let text = format!("`{what}` is refused while a service is made; do it in `init`");
        return Err(failure(Error::refused(text)));
    }
    Ok(())
}

impl HostTable {
    fn slot_of(&self, from: ServiceId) -> Result<(u32, u32), Failure> {
        let slot = from.slot().filter(|slot| *slot != 0);
        let slot = slot.ok_or_else(|| failure(Error::refused("only a service can ask for this")))?;
        Ok((slot, from.serial()))
    }
}

impl HostSide for HostTable {
    fn log(&self, from: ServiceId, level: u32, target: &str, message: &str) {
        crate::logging::plugin_line(level, self.bus.who(from), target, message);
    }

    fn log_level(&self) -> u32 {
        crate::logging::level()
    }

    fn config(&self, _from: ServiceId, key: &str) -> Result<Vec<u8>, Failure> {
        let value = match key {
            "node" => Value::from(self.settings.look().cluster.node.clone()),
            "version" => Value::from(env!("CARGO_PKG_VERSION")),
            "call_timeout_ms" => Value::from(self.settings.look().limits.call_timeout.as_millis() as u64),
            _ => return Err(failure(Error::not_found(format!("the server has no fact named `{key}`")))),
        };
        Ok(value.to_string().into_bytes())
    }

    fn resolve(&self, _from: ServiceId, name: &str) -> Result<u64, Failure> {
        not_while_creating("resolve")?;
        self.bus.registry.resolve(name).map(|slot| u64::from(slot.number)).map_err(failure)
    }

    #[inline]
    fn call(&self, request: &CallRequest<'_>, reply: &mut Out<'_>) -> Outcome {
        // A handle comes from `resolve`, which is refused in `create`: no need to look again here.
        self.bus.call(request, reply)
    }

    fn defer(&self, from: ServiceId, context: &Context<'_>) -> Result<u64, Failure> {
        self.bus.defer(from, context).map_err(failure)
    }

    fn reply(&self, _from: ServiceId, token: u64, status: i32, payload: &[u8]) -> Result<(), Failure> {
        self.bus.reply(token, status, payload).map_err(failure)
    }

    fn stream(&self, _from: ServiceId, token: u64, payload: &[u8]) -> Result<(), Failure> {
        self.bus.stream(token, payload).map_err(failure)
    }

    fn credit(&self, _from: ServiceId, token: u64, items: u32) -> Result<(), Failure> {
        self.bus.credit(token, items).map_err(failure)
    }

    fn cancel(&self, _from: ServiceId, token: u64) -> Result<(), Failure> {
        self.bus.cancel(token).map_err(failure)
    }

    fn publish(&self, _from: ServiceId, event: &str, payload: &[u8]) -> Result<u64, Failure> {
        not_while_creating("publish")?;
        Ok(self.bus.publish(event, payload))
    }

    fn say(&self, _from: ServiceId, event: &str, payload: &[u8]) -> Result<u64, Failure> {
        not_while_creating("say")?;
        self.cluster.say(event, payload).map(|nodes| nodes as u64).map_err(failure)
    }

    fn tell(&self, _from: ServiceId, node: &str, event: &str, payload: &[u8]) -> Result<(), Failure> {
        not_while_creating("tell")?;
        self.cluster.tell(node, event, payload).map_err(failure)
    }

    fn subscribe(&self, from: ServiceId, scope: Scope, event: &str) -> Result<u64, Failure> {
        not_while_creating("subscribe")?;
        let (slot, serial) = self.slot_of(from)?;
        let bring = |token| match scope {
            Scope::Node => Ok(None),
            Scope::Cluster => self.cluster.bring_events(&self.bus, slot, token, event).map(Some),
            Scope::Members => self.cluster.bring_changes(&self.bus, slot, token).map(Some),
        };
        let event = if scope == Scope::Members { "" } else { event };
        let added = self.bus.subscriptions.add(self.bus.token(), slot, serial, (scope, event), bring);
        added.map_err(failure)
    }

    fn timer(&self, from: ServiceId, after_ms: u64, period_ms: u64) -> Result<u64, Failure> {
        not_while_creating("timer")?;
        let instance = self.slot_of(from)?;
        let (after, period) = (Duration::from_millis(after_ms), Duration::from_millis(period_ms));
        let token = self.bus.token();
        let pends = |token| self.bus.pending.contains(token);
        if !self.bus.clock.set_timer(token, instance, after, period, pends) {
            return Err(failure(Error::busy("too many timers")));
        }
        Ok(token)
    }

    fn listener(&self, from: ServiceId, address: &str) -> Result<RawFd, Failure> {
        not_while_creating("listener")?;
        self.listeners.lend(self.bus.who(from), from.serial(), address).map_err(failure)
    }

    fn ensure(&self, _from: ServiceId, path: &str, settings: &[u8]) -> Result<u64, Failure> {
        not_while_creating("ensure")?;
        let settings = match settings {
            [] => serde_json::Map::new(),
            settings => serde_json::from_slice(settings)
                .map_err(|error| failure(Error::invalid(format!("settings of {path}: {error}"))))?,
        };
        let (ticket, answer) = Ticket::new();
        let _ = self.manager.send(Message::Command(Command::Ensure(path.into(), settings), ticket));
        // The start_timeout of the service bounds this wait.
        let gone = || Error::cancelled("the server stopped meanwhile");
        answer.recv().unwrap_or_else(|_| Err(gone())).map_err(failure)?;
        self.bus.registry.resolve(path).map(|slot| u64::from(slot.number)).map_err(failure)
    }

    fn control(&self, _from: ServiceId, line: &str) -> Result<Vec<u8>, Failure> {
        not_while_creating("control")?;
        self.desk.answer(line).map(|answer| answer.to_string().into_bytes()).map_err(failure)
    }

    fn report(&self, from: ServiceId, report: Report, payload: &[u8]) -> Result<(), Failure> {
        let message = match report {
            Report::Ready => Message::Ready(from),
            Report::Heartbeat => return Ok(()),
            Report::Metrics => {
                let metrics = serde_json::from_slice(payload).map_err(|error| failure(error.into()))?;
                Message::Metrics(from, metrics)
            }
            Report::Resumed if payload.is_empty() => {
                self.bus.pending.pass_on_all(from);
                return Ok(());
            }
            Report::Resumed => {
                let token = payload.try_into().map(u64::from_ne_bytes);
                let token = token.map_err(|_| failure(Error::invalid("a token has eight bytes")))?;
                self.bus.pending.pass_on(token, from);
                return Ok(());
            }
            Report::Checkpoint => Message::Checkpoint(from, payload.into()),
            Report::Panic => {
                let text = String::from_utf8_lossy(payload);
                bus::remember_panic(&text);
                tracing::error!("{}: {text}", self.bus.who(from));
                return Ok(());
            }
        };
        let gone = |_| Failure::new(Code::Cancelled.number(), "the server has stopped");
        self.manager.send(message).map_err(gone)
    }

    fn stopping(&self, from: ServiceId) -> bool {
        let slot = from.slot().and_then(|slot| self.bus.registry.slot(u64::from(slot)));
        slot.is_none_or(|slot| slot.stopping.load(std::sync::atomic::Ordering::Relaxed) >= from.serial())
    }
}
