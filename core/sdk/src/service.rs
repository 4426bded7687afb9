//! What an author writes: a service, and what it declares of itself.

use serde_json::Value;
use zeph_abi::{
    Need, Readiness, ReloadMode, ServiceDeclaration, SettingDeclaration, SettingType, VerbDeclaration,
};

use crate::call::{Call, Reply};
use crate::event::Event;
use crate::start::Start;
use crate::state::{Imported, State};
use crate::stop::Stop;
use crate::{Error, Result};

/// A named living thing that the server starts, watches, calls, replaces and stops.
///
/// Life: `new` → (`import_state`) → `init` → `main` on the service's own thread, while `call` and
/// `event` come from many threads at once → `disable` → `main` returns → drop.
pub trait Service: Send + Sync + Sized + 'static {
    /// Settings, state version, needs, verbs: what the server must know before it makes one.
    fn declare(declare: Declare) -> Declare {
        declare
    }

    /// Makes one. Pure: no threads, no sockets, no calls to others; they may not live yet.
    fn new(start: Start) -> Result<Self>;

    /// Opens what it needs: sockets, subscriptions, calls to others. When it returns the service is
    /// ready, unless it declared [`Declare::reports_ready`].
    fn init(&self) -> Result<()> {
        Ok(())
    }

    /// Runs until `stop` is set. If it returns before, it is run again.
    fn main(&self, stop: &Stop) -> Result<()> {
        stop.wait();
        Ok(())
    }

    /// Called when the service is to stop, beside setting `stop`: wake what `main` waits for.
    fn disable(&self) {}

    /// Answers another service. Called from many threads at once; what takes long is answered later
    /// with [`Call::defer`].
    fn call(&self, call: Call<'_>) -> Result<Reply> {
        call.unknown_method()
    }

    /// Something happened that this service asked to hear of.
    fn event(&self, _event: Event<'_>) -> Result<()> {
        Ok(())
    }

    /// A new build is about to take over: let threads of your own rest, until `thaw` or the end, and return
    /// when they do. Calls may still come, until `export_state`.
    fn freeze(&self) -> Result<()> {
        Ok(())
    }

    /// The new build was not good: go on as if nothing had been.
    fn thaw(&self) {}

    /// What the next generation is to begin with. Asked for after `freeze`, when no call is inside; nothing
    /// may change in it: if the new build is not good, `thaw` comes, and this one goes on.
    fn export_state(&self) -> Result<State> {
        Ok(State::default())
    }

    /// Takes over from the generation before. Comes before `init`.
    fn import_state(&self, _state: Imported<'_>) -> Result<()> {
        Ok(())
    }
}

/// What a service declares. Each method answers the declaration, so that they chain.
#[derive(Debug, Default)]
pub struct Declare(pub(crate) ServiceDeclaration);

impl Declare {
    /// A setting with a default, which gives it its type.
    pub fn setting(self, name: &str, default: impl Into<Value>, doc: &str) -> Self {
        let default = default.into();
        let value_type = match default {
            Value::String(_) | Value::Null => SettingType::Text,
            Value::Bool(_) => SettingType::Boolean,
            Value::Number(ref number) if number.is_f64() => SettingType::Number,
            Value::Number(_) => SettingType::Integer,
            Value::Array(_) => SettingType::List,
            Value::Object(_) => SettingType::Table,
        };
        self.declared(name, value_type, default, doc)
    }

    /// A setting that may be absent.
    pub fn optional(self, name: &str, value_type: SettingType, doc: &str) -> Self {
        self.declared(name, value_type, Value::Null, doc)
    }

    /// A setting without which the service does not start.
    pub fn required(self, name: &str, value_type: SettingType, doc: &str) -> Self {
        let mut declare = self.declared(name, value_type, Value::Null, doc);
        declare.last_setting().required = true;
        declare
    }

    /// The name that the setting declared last has at the top level of the file.
    pub fn alias(mut self, alias: &str) -> Self {
        self.last_setting().alias = Some(alias.into());
        self
    }

    /// How a new build takes over. Default: [`ReloadMode::Swap`], for services that keep nothing.
    pub fn reload(mut self, mode: ReloadMode) -> Self {
        self.0.reload = mode;
        self
    }

    /// It keeps state of this version, and hands it over.
    pub fn state(mut self, version: u32) -> Self {
        self.0.state_version = version;
        self.reload(ReloadMode::Handover)
    }

    /// It can import state of these older versions, too.
    pub fn imports(mut self, versions: &[u32]) -> Self {
        self.0.imports.extend_from_slice(versions);
        self
    }

    /// It says itself when it is ready: [`Host::ready`](crate::Host::ready).
    pub fn reports_ready(mut self) -> Self {
        self.0.readiness = Readiness::Reported;
        self
    }

    /// The service of this path must be ready first.
    pub fn needs(mut self, path: &str) -> Self {
        self.0.needs.push(Need::Service(path.into()));
        self
    }

    /// The service whose path stands in this setting must be ready first.
    pub fn needs_setting(mut self, setting: &str) -> Self {
        self.0.needs.push(Need::Setting(setting.into()));
        self
    }

    /// It offers this to whoever looks for it.
    pub fn provides(mut self, what: &str) -> Self {
        self.0.provides.push(what.into());
        self
    }

    /// A command-line verb: `zephserver NAME words…` calls `method` with a JSON array of the words.
    pub fn verb(mut self, name: &str, method: &str, doc: &str) -> Self {
        self.0.verbs.push(VerbDeclaration { name: name.into(), method: method.into(), doc: doc.into() });
        self
    }

    fn declared(mut self, name: &str, value_type: SettingType, default: Value, doc: &str) -> Self {
        self.0.settings.push(SettingDeclaration {
            name: name.into(),
            value_type,
            default,
            required: false,
            alias: None,
            doc: doc.into(),
        });
        self
    }

    fn last_setting(&mut self) -> &mut SettingDeclaration {
        self.0.settings.last_mut().expect("declare a setting before its alias")
    }
}

/// The services of this crate as the adapter keeps them: whatever their type.
pub(crate) trait AnyService: Send + Sync {
    fn init(&self) -> Result<()>;
    fn main(&self, stop: &Stop) -> Result<()>;
    fn disable(&self);
    fn call(&self, call: Call<'_>) -> Result<Reply>;
    fn event(&self, event: Event<'_>) -> Result<()>;
    fn freeze(&self) -> Result<()>;
    fn thaw(&self);
    fn export_state(&self) -> Result<State>;
    fn import_state(&self, state: Imported<'_>) -> Result<(), Error>;
}

impl<S: Service> AnyService for S {
    fn init(&self) -> Result<()> {
        Service::init(self)
    }
    fn main(&self, stop: &Stop) -> Result<()> {
        Service::main(self, stop)
    }
    fn disable(&self) {
        Service::disable(self)
    }
    fn call(&self, call: Call<'_>) -> Result<Reply> {
        Service::call(self, call)
    }
    fn event(&self, event: Event<'_>) -> Result<()> {
        Service::event(self, event)
    }
    fn freeze(&self) -> Result<()> {
        Service::freeze(self)
    }
    fn thaw(&self) {
        Service::thaw(self)
    }
    fn export_state(&self) -> Result<State> {
        Service::export_state(self)
    }
    fn import_state(&self, state: Imported<'_>) -> Result<()> {
        Service::import_state(self, state)
    }
}
