//! What a new service is given.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::host::Host;
use crate::{Error, Result};

/// Who the new service is, what its settings say, and its way to the server.
pub struct Start {
    name: String,
    settings: Map<String, Value>,
    host: Host,
}

impl Start {
    pub(crate) fn new(name: &str, settings: &[u8], host: Host) -> Result<Self> {
        let settings = match settings {
            [] => Map::new(),
            settings => serde_json::from_slice(settings)?,
        };
        Ok(Self { name: name.into(), settings, host })
    }

    /// The service's path: `hello/Hello` or `hello/Hello@name`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One setting, its default included.
    pub fn setting<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let value = self.settings.get(name).cloned().unwrap_or(Value::Null);
        serde_json::from_value(value)
            .map_err(|error| Error::invalid(format!("setting `{name}` of {}: {error}", self.name)))
    }

    /// All settings in a struct of the plugin's own.
    pub fn settings<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_value(Value::Object(self.settings.clone()))
            .map_err(|error| Error::invalid(format!("settings of {}: {error}", self.name)))
    }

    /// The way to the server. Keep a clone; use it from `init` on.
    pub fn host(&self) -> Host {
        self.host.clone()
    }
}
