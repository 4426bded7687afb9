//! Who a peer is. Everybody is anonymous.

use zephserver_plugin::contract::session::{GET_USER, GetUser, User};
use zephserver_plugin::{Call, Reply, Result, Service, Start, export};

struct Session;

impl Service for Session {
    fn new(_: Start) -> Result<Self> {
        Ok(Self)
    }

    fn call(&self, call: Call<'_>) -> Result<Reply> {
        match call.method() {
            GET_USER => {
                call.json::<GetUser>()?;
                Reply::json(&None::<User>)
            }
            _ => call.unknown_method(),
        }
    }
}

export!(Session);
