//! Reloads by the control socket, and the proof that other code answers after each.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde_json::Value;
use zephserver_testkit::{Code, TestServer};

use crate::DEADLINE;

/// Before a reload that could not be at this moment is tried again.
const PAUSE: Duration = Duration::from_millis(20);

/// What was reloaded in one server.
#[derive(Default)]
pub struct Renewals {
    /// Where code of plugins has lain.
    addresses: HashSet<String>,
    /// Reloads that were done.
    pub done: u64,
    /// Attempts that came at a bad moment: a call inside did not end in time.
    pub tried_again: u64,
}

/// One load of a library.
struct Generation {
    number: u64,
    code_address: String,
}

impl Renewals {
    /// Reloads a library. Its generation must be one more than before, and its code must lie where no code
    /// has lain before.
    pub fn reload(&mut self, server: &TestServer, library: &str) -> Result<(), String> {
        let before = generation(server, library)?;
        self.addresses.insert(before.code_address);
        self.ask(server, library)?;
        let after = generation(server, library)?;
        if after.number != before.number + 1 {
            let (number, expected) = (after.number, before.number + 1);
            return Err(format!("{library}: generation {number} serves after a reload, not {expected}"));
        }
        if self.addresses.contains(&after.code_address) {
            return Err(format!("{library}: generation {} is old code", after.number));
        }
        self.addresses.insert(after.code_address);
        self.done += 1;
        Ok(())
    }

    fn ask(&mut self, server: &TestServer, library: &str) -> Result<(), String> {
        let end = Instant::now() + DEADLINE;
        loop {
            match server.ask(&format!("reload {library}")) {
                Ok(_) => return Ok(()),
                Err(error) if matches!(error.code, Code::Busy | Code::Timeout) && Instant::now() < end => {
                    self.tried_again += 1;
                    std::thread::sleep(PAUSE);
                }
                Err(error) => return Err(format!("reload {library}: {error}")),
            }
        }
    }
}

fn generation(server: &TestServer, library: &str) -> Result<Generation, String> {
    let plugins = server.ask("plugins").map_err(|error| format!("plugins: {error}"))?;
    let is_it = |plugin: &&Value| plugin["name"] == library;
    let plugin = plugins.as_array().and_then(|plugins| plugins.iter().find(is_it));
    let found = plugin.and_then(|plugin| {
        let code_address = plugin["code_address"].as_str()?.to_string();
        Some(Generation { number: plugin["generation"].as_u64()?, code_address })
    });
    found.ok_or_else(|| format!("`plugins` does not say which generation of {library} is loaded: {plugins}"))
}
