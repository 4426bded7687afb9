//! What a plugin says of itself in `info`, as JSON: read by the server before any service is made.
//! Unknown fields are ignored, missing ones have defaults, so that both sides may grow.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The answer of `info`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Declaration {
    /// The library's name: `hello` for `libhello.so`.
    pub plugin: String,
    /// The plugin's own version, semver.
    pub version: String,
    /// The version of the SDK that it was built with.
    pub sdk: String,
    /// The services that it can make.
    #[serde(default)]
    pub services: Vec<ServiceDeclaration>,
    /// The tasks that it can run.
    #[serde(default)]
    pub tasks: Vec<TaskDeclaration>,
}

impl Declaration {
    /// The declaration of a kind of service.
    pub fn service(&self, kind: &str) -> Option<&ServiceDeclaration> {
        self.services.iter().find(|service| service.kind == kind)
    }
}

/// One kind of service.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ServiceDeclaration {
    /// The word after the slash in SERVICE_LIST: `Hello`.
    pub kind: String,
    /// How it is replaced by a new build.
    #[serde(default)]
    pub reload: ReloadMode,
    /// Version of the state that it exports.
    #[serde(default)]
    pub state_version: u32,
    /// Older state versions that it can import.
    #[serde(default)]
    pub imports: Vec<u32>,
    /// When it counts as ready.
    #[serde(default)]
    pub readiness: Readiness,
    /// What it offers to whoever looks for it, as `fleet.backend/1`.
    #[serde(default)]
    pub provides: Vec<String>,
    /// Services that must be ready before it starts.
    #[serde(default)]
    pub needs: Vec<Need>,
    /// The settings that it knows.
    #[serde(default)]
    pub settings: Vec<SettingDeclaration>,
    /// Command-line verbs that it answers.
    #[serde(default)]
    pub verbs: Vec<VerbDeclaration>,
}

impl ServiceDeclaration {
    /// True where it can begin with state of this version.
    pub fn reads(&self, version: u32) -> bool {
        self.state_version == version || self.imports.contains(&version)
    }
}

/// How a service is replaced by a new build.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReloadMode {
    /// It keeps nothing: new calls enter the new one at once, old calls end in the old one.
    #[default]
    Swap,
    /// It keeps state, which is handed over while calls wait at the gate.
    Handover,
}

/// When a service counts as ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Readiness {
    /// As soon as `init` has returned.
    #[default]
    Initialized,
    /// When it reports so itself.
    Reported,
}

/// A service that must be ready first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    /// The service of this path: `room/Room`.
    Service(String),
    /// The service whose path stands in this setting of the needing service.
    Setting(String),
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SettingDeclaration {
    /// Its name in the plugin's table.
    pub name: String,
    /// The type of its value.
    #[serde(rename = "type")]
    pub value_type: SettingType,
    /// The value it has when it is not given; null where it must be given or may be absent.
    #[serde(default)]
    pub default: Value,
    /// True: a start without it is refused.
    #[serde(default)]
    pub required: bool,
    /// The same setting's name at the top level of the file, as `PORT_ZEPH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// One line for a person.
    #[serde(default)]
    pub doc: String,
}

/// The type of a setting's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SettingType {
    /// A string.
    Text,
    /// A whole number.
    Integer,
    /// Any number.
    Number,
    /// true or false.
    Boolean,
    /// An array.
    List,
    /// A table.
    Table,
}

/// One command-line verb: a call to the declaring service under a name of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerbDeclaration {
    /// The word that is typed.
    pub name: String,
    /// The method that is called; it gets a JSON array of the words that follow.
    pub method: String,
    /// One line for `help`.
    pub doc: String,
}

/// One task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskDeclaration {
    /// The word after the slash in TASKS_PATH: `TaskEcho`.
    pub name: String,
    /// Where it runs.
    #[serde(default)]
    pub run: RunMode,
    /// Who may ask for it.
    #[serde(default)]
    pub access: Access,
    /// Seconds that it may run on the pool; null: what the router's settings say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<f64>,
}

/// Where a task runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunMode {
    /// On the thread that brought the request: for what never waits.
    Inline,
    /// On a thread of the router's pool, side by side with others.
    #[default]
    Pooled,
    /// On the pool, one after the other for each peer.
    Ordered,
}

/// Who may ask for a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Everybody, anonymous peers included.
    #[default]
    Anyone,
    /// Peers whose session names a user.
    Authenticated,
}
