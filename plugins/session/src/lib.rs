//! Who a peer is: everybody anonymous, or who a signed token says.

mod token;

use token::Tokens;
use zephserver_plugin::contract::session::{GET_USER_SESSION, GetUserSession, Identity};
use zephserver_plugin::{Call, Declare, Error, Reply, Result, Service, Start, export};

/// Where users come from.
enum Session {
    Anonymous,
    Token(Box<Tokens>),
}

impl Service for Session {
    fn declare(declare: Declare) -> Declare {
        declare.setting("backend", "anonymous", "where users come from: \"anonymous\" or \"token\"").setting(
            "token",
            serde_json::json!({}),
            "algorithm, secret, secret_file, public_key_file, iss, aud, leeway",
        )
    }

    fn new(start: Start) -> Result<Self> {
        let settings = token::settings(start.setting("token")?)?;
        match start.setting::<String>("backend")?.as_str() {
            "anonymous" => Ok(Self::Anonymous),
            "token" => Ok(Self::Token(Box::new(Tokens::new(settings)?))),
            other => Err(Error::invalid(format!(
                "[session] backend is \"{other}\"; it is \"anonymous\" or \"token\""
            ))),
        }
    }

    fn call(&self, call: Call<'_>) -> Result<Reply> {
        match call.method() {
            GET_USER_SESSION => Reply::json(&self.identify(&call.json()?)?),
            _ => call.unknown_method(),
        }
    }
}

impl Session {
    /// No token: anonymous. A token that is not good is an error, never somebody anonymous.
    fn identify(&self, question: &GetUserSession) -> Result<Option<Identity>> {
        match (self, question.session_id()?) {
            (Self::Anonymous, _) | (_, None) => Ok(None),
            (Self::Token(tokens), Some(token)) => tokens.read(&token).map(Some),
        }
    }
}

export!(Session);
