//! Who may join which room. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;
use zephserver_plugin::contract::session::User;
use zephserver_plugin::{Error, Result};

/// Rules by room name, or by the beginning of a name before a `*`.
#[derive(Debug, Default)]
pub struct Access(BTreeMap<String, Rule>);

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Rule {
    Word(Word),
    /// The ids of those who may.
    Users(Vec<String>),
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Anyone,
    Authenticated,
    Nobody,
}

impl Access {
    /// The rules of the setting `access`.
    pub fn new(rules: BTreeMap<String, serde_json::Value>) -> Result<Self> {
        let rule = |(room, rule): (String, serde_json::Value)| {
            let text = rule.to_string();
            let rule = serde_json::from_value(rule).map_err(|_| {
                Error::invalid(format!(
                    "[room] access: `{room}` is {text}; it is \"anyone\", \"authenticated\", \"nobody\" or a list of user ids"
                ))
            })?;
            match room.find('*') {
                Some(at) if at + 1 < room.len() => {
                    Err(Error::invalid(format!("[room] access: `{room}`: a `*` stands at the end only")))
                }
                _ => Ok((room, rule)),
            }
        };
        rules.into_iter().map(rule).collect::<Result<_>>().map(Self)
    }

    /// May this user join? The room's own rule counts, else that of the longest beginning; without a rule
    /// everybody may.
    pub fn check(&self, room: &str, user: Option<&User>) -> Result<()> {
        let refuse = |why: &str| Err(Error::refused(format!("room `{room}` is {why}")));
        match (self.rule(room), user) {
            (None | Some(Rule::Word(Word::Anyone)), _) => Ok(()),
            (Some(Rule::Word(Word::Nobody)), _) => refuse("closed"),
            (Some(Rule::Word(Word::Authenticated)), Some(_)) => Ok(()),
            (Some(Rule::Word(Word::Authenticated)), None) => refuse("for users only; log in first"),
            (Some(Rule::Users(ids)), Some(user)) if ids.contains(&user.id) => Ok(()),
            (Some(Rule::Users(_)), _) => refuse("for certain users only"),
        }
    }

    fn rule(&self, room: &str) -> Option<&Rule> {
        let begins = |pattern: &str| pattern.strip_suffix('*').is_some_and(|start| room.starts_with(start));
        let longest =
            || self.0.iter().filter(|(pattern, _)| begins(pattern)).max_by_key(|(name, _)| name.len());
        self.0.get(room).or_else(|| longest().map(|(_, rule)| rule))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn access(rules: serde_json::Value) -> Result<Access> {
        Access::new(serde_json::from_value(rules).unwrap())
    }

    #[test]
    fn the_nearest_rule_counts() {
        let access = access(json!({
            "*": "authenticated", "staff-*": ["1"], "staff-open": "anyone", "attic": "nobody"
        }))
        .unwrap();
        let user = |id: &str| Some(User { id: id.into(), username: "x".into() });
        let may = |room, user: Option<User>| access.check(room, user.as_ref()).is_ok();
        assert!(may("lobby", user("2")) && !may("lobby", None));
        assert!(may("staff-a", user("1")) && !may("staff-a", user("2")) && !may("staff-a", None));
        assert!(may("staff-open", None));
        assert!(!may("attic", user("1")));
        assert!(Access::default().check("any", None).is_ok());
    }

    #[test]
    fn a_rule_that_is_none_is_named() {
        assert!(access(json!({"a": "sometimes"})).unwrap_err().text.contains("`a` is \"sometimes\""));
        assert!(access(json!({"a*b": "anyone"})).is_err());
    }
}
