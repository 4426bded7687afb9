//! Who a peer is. Everybody is anonymous.

use zephserver_plugin::contract::session::{GET_USER_SESSION, GetUserSession, Identity};
use zephserver_plugin::{Call, Reply, Result, Service, Start, export};

struct Session;

impl Service for Session {
    fn new(_: Start) -> Result<Self> {
        Ok(Self)
    }

    fn call(&self, call: Call<'_>) -> Result<Reply> {
        match call.method() {
            GET_USER_SESSION => {
                call.json::<GetUserSession>()?;
                Reply::json(&None::<Identity>)
            }
            _ => call.unknown_method(),
        }
    }
}

export!(Session);
