//! What a service is told by another build of its plugin.

use serde_json::{Map, Value};
use zeph_abi::{Declaration, ServiceDeclaration, SettingDeclaration};

use super::{Faults, ServicePath, Settings, check_service};

/// Where the settings for another build come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The file, if it names the service.
    File,
    /// What the service was told: newer settings were refused.
    Told,
}

/// What a service is told by this build: what the file says; where that does not name it, or is not to count,
/// what it was `told` before. An error: the build does not take what the file says.
pub fn values_of_build(
    settings: &Settings,
    path: &ServicePath,
    build: &Declaration,
    source: Source,
    told: &Map<String, Value>,
) -> Result<Map<String, Value>, Faults> {
    match build.service(&path.kind) {
        None => Ok(told.clone()),
        Some(kind) if source == Source::File && settings.services.contains(path) => {
            check_service(settings, path, kind, &build.services).map(|checked| checked.values)
        }
        Some(kind) => Ok(kept_values(kind, told)),
    }
}

/// A build's own defaults, and what a service was told of what that build knows.
pub fn kept_values(kind: &ServiceDeclaration, told: &Map<String, Value>) -> Map<String, Value> {
    let value = |setting: &SettingDeclaration| {
        let value = told.get(&setting.name).or(Some(&setting.default)).filter(|value| !value.is_null());
        value.map(|value| (setting.name.clone(), value.clone()))
    };
    kind.settings.iter().filter_map(value).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;
    use zeph_abi::SettingType;

    use super::*;

    fn settings(rest: &str) -> Settings {
        let own = "LOCK_FILE = \"l\"\nCONFIGURATION_NETWORK_INTERFACE_SERVER = \"s\"\n";
        Settings::parse(Path::new("/x/settings.toml"), &format!("{own}{rest}")).unwrap()
    }

    /// A build of the plugin `a` that knows these settings, with these defaults.
    fn build(defaults: &[(&str, Value)]) -> Declaration {
        let setting = |(name, default): &(&str, Value)| SettingDeclaration {
            name: (*name).into(),
            value_type: SettingType::Integer,
            default: default.clone(),
            required: false,
            alias: None,
            doc: String::new(),
        };
        let settings = defaults.iter().map(setting).collect();
        let kind = ServiceDeclaration { kind: "A".into(), settings, ..ServiceDeclaration::default() };
        Declaration { plugin: "a".into(), services: vec![kind], ..Declaration::default() }
    }

    fn values(
        settings: &Settings,
        build: &Declaration,
        source: Source,
        told: Value,
    ) -> Result<Value, Faults> {
        let Value::Object(told) = told else { panic!("{told} is no table") };
        let path = "a/A".parse().unwrap();
        values_of_build(settings, &path, build, source, &told).map(Value::Object)
    }

    #[test]
    fn a_new_build_gets_its_defaults_and_what_the_file_says() {
        let file = settings("SERVICE_LIST = [\"a/A\"]\n[a]\nold = 2\n");
        let new = build(&[("old", json!(1)), ("new", json!(7)), ("free", Value::Null)]);
        let told = json!({"old": 3, "gone": 4});
        let values = |settings, source| values(settings, &new, source, told.clone()).unwrap();
        assert_eq!(values(&file, Source::File), json!({"old": 2, "new": 7}));
        assert_eq!(values(&file, Source::Told), json!({"old": 3, "new": 7}), "newer ones were refused");
        let unlisted = settings("SERVICE_LIST = []");
        assert_eq!(values(&unlisted, Source::File), json!({"old": 3, "new": 7}));
    }

    #[test]
    fn a_build_that_does_not_take_the_file_or_lacks_the_service() {
        let file = settings("SERVICE_LIST = [\"a/A\"]\n[a]\nold = 2\n");
        assert!(values(&file, &build(&[("new", json!(7))]), Source::File, json!({})).is_err());
        let told = json!({"old": 3});
        let other = Declaration { plugin: "a".into(), ..Declaration::default() };
        assert_eq!(values(&file, &other, Source::File, told.clone()).unwrap(), told);
    }
}
