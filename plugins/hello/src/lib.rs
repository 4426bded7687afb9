//! The model plugin. Start from a copy of it: docs/write-a-plugin.md shows how.
use zephserver_plugin::{Call, Declare, Reply, Result, Service, Start, export};

struct Hello(String);

impl Service for Hello {
    fn declare(declare: Declare) -> Declare {
        declare.setting("greeting", "Hello", "the word before the name")
    }
    fn new(start: Start) -> Result<Self> {
        Ok(Self(start.setting("greeting")?))
    }
    fn call(&self, call: Call<'_>) -> Result<Reply> {
        match call.method() {
            "greet/1" => Reply::json(&format!("{}, {}!", self.0, call.json::<String>()?)),
            _ => call.unknown_method(),
        }
    }
}
export!(Hello);
