//! A real server with peers that talk to it, and what is done to it meanwhile.

use std::time::{Duration, Instant};

use serde_json::Value;
use zephserver_testkit::TestServer;

use crate::Result;
use crate::cores::open_files;
use crate::crowd::Plan;
use crate::figure::Figure;
use crate::history::Faults;
use crate::measure::SERVICES;
use crate::renewal::Renewals;
use crate::talk::{Ended, Talk};
use crate::usage::{self, Memory};

/// Files beside the connections.
pub const OTHER_FILES: usize = 200;

/// They talk so long before anything counts.
const WARM_UP: Duration = Duration::from_millis(500);

/// Files of the server are counted so often, with such pauses: the connection of a command that was just
/// answered may still be among them, so the fewest count.
const LOOKS: u32 = 10;
const LOOK: Duration = Duration::from_millis(20);

/// Replaced generations have ended after this time: the server itself gives them 30 s.
const DRAINED: Duration = Duration::from_secs(45);

/// Lines of the server's log that are shown with an error.
const LOG_LINES: usize = 20;

const SETTINGS: &str = r#"PORT_ZEPH = 0
[server]
watch = false
[TASKS_PATH]
TaskEcho = "tasks/TaskEcho"
"chat.say" = "tasks/ChatSay"
"#;

/// One server, and all who talk to it.
pub struct Scene {
    server: TestServer,
    /// The peers.
    pub talk: Talk,
    renewals: Renewals,
}

/// What a server holds while nothing happens but talk.
#[derive(Clone, Copy, Debug)]
pub struct Holding {
    files: u64,
    memory: Memory,
}

impl Scene {
    /// Starts a server and lets the peers talk.
    pub fn start(plan: &Plan) -> Result<Self> {
        open_files((plan.peers + OTHER_FILES) as u64)?;
        let server = TestServer::with(&SERVICES).settings(SETTINGS).start();
        let talk = Talk::connect(server.port("websocket/WebSocket"), plan)
            .map_err(|error| with_log(&server, &error.to_string()))?;
        let mut scene = Self { server, talk, renewals: Renewals::default() };
        let begun = scene.warm_up();
        begun.map_err(|error| scene.told(&error.to_string()))?;
        Ok(scene)
    }

    fn warm_up(&mut self) -> Result<()> {
        self.talk.run_for(WARM_UP)?;
        self.until_all_have_talked()
    }

    /// Reloads a library while everybody talks.
    pub fn reload(&mut self, library: &str) -> Result<()> {
        let (server, renewals) = (&self.server, &mut self.renewals);
        self.talk.meanwhile(|| renewals.reload(server, library))??;
        Ok(())
    }

    /// Lets them talk until everybody has asked and was answered after now.
    pub fn until_all_have_talked(&mut self) -> Result<()> {
        self.talk.until_all_have_talked(Instant::now())
    }

    /// Asks the control socket while everybody talks.
    pub fn ask(&mut self, line: &str) -> Result<Value> {
        let server = &self.server;
        let answer = self.talk.meanwhile(|| server.ask(line))?;
        Ok(answer.map_err(|error| format!("{line}: {error}"))?)
    }

    /// Waits until every replaced generation has ended.
    pub fn until_nothing_drains(&mut self) -> Result<()> {
        let end = Instant::now() + DRAINED;
        loop {
            let status = self.ask("status")?;
            let draining = &status["generations"]["draining"];
            if draining.as_array().is_some_and(Vec::is_empty) {
                return Ok(());
            }
            if Instant::now() > end {
                let seconds = DRAINED.as_secs();
                return Err(format!("after {seconds} s generations still drain: {draining}").into());
            }
            self.talk.run_for(LOOK)?;
        }
    }

    /// Counts open files and memory, when nothing drains any more.
    pub fn holding(&mut self) -> Result<Holding> {
        self.until_nothing_drains()?;
        let mut files = self.files()?;
        for _ in 1..LOOKS {
            self.talk.run_for(LOOK)?;
            files = files.min(self.files()?);
        }
        Ok(Holding { files, memory: self.memory()? })
    }

    /// Files that the server has open at this moment.
    pub fn files(&self) -> Result<u64> {
        usage::open_files(self.server.pid())
    }

    /// The server's memory at this moment.
    pub fn memory(&self) -> Result<Memory> {
        usage::memory(self.server.pid())
    }

    /// Reloads so far.
    pub fn reloads(&self) -> u64 {
        self.renewals.done
    }

    /// No service may have failed, whatever the peers saw.
    pub fn check_services(&mut self) -> Result<()> {
        let services = self.ask("services")?;
        let list = services.as_array().ok_or("`services` answers no list")?;
        match list.iter().find(|service| service["failures"] != 0 || service["state"] != "enabled") {
            Some(service) => Err(format!("a service did not just serve: {service}").into()),
            None => Ok(()),
        }
    }

    /// An error with what the server said last: its folder goes with it.
    pub fn told(&self, error: &str) -> String {
        with_log(&self.server, error)
    }

    /// Nobody asks any more: what came of it all.
    pub fn end(self) -> Result<Sums> {
        let Ended { faults, first, messages } = self.talk.end()?;
        let Renewals { done, tried_again, .. } = self.renewals;
        Ok(Sums { faults, first, messages, reloads: done, tried_again })
    }
}

fn with_log(server: &TestServer, error: &str) -> String {
    let log = server.log();
    let lines: Vec<&str> = log.lines().collect();
    let last = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
    format!("{error}\n{}{last}", server.stderr())
}

impl Holding {
    /// What so many generations have left behind since `before`.
    pub fn figures(&self, before: &Self, generations: u64, memory_limit: Option<f64>) -> Vec<Figure> {
        let mib = |after: u64, before: u64| (after as f64 - before as f64) / 1024.0 / generations as f64;
        let resident = mib(self.memory.resident, before.memory.resident);
        let private = mib(self.memory.private, before.memory.private);
        vec![
            Figure::plain("open files, difference", self.files.abs_diff(before.files) as f64, "", Some(0.0)),
            // Most of it is the copy's own file in memory, which the kernel may drop.
            Figure::plain("resident memory for each generation", resident, "MiB", None),
            Figure::plain("private memory for each generation", private, "MiB", memory_limit),
        ]
    }
}

/// What came of one server or of several.
#[derive(Default)]
pub struct Sums {
    faults: Faults,
    /// The first fault, in words.
    pub first: Option<String>,
    messages: u64,
    reloads: u64,
    tried_again: u64,
}

impl Sums {
    /// Adds what came of another server.
    pub fn add(&mut self, other: Self) {
        self.faults.add(other.faults);
        self.first = self.first.take().or(other.first);
        self.messages += other.messages;
        self.reloads += other.reloads;
        self.tried_again += other.tried_again;
    }

    /// The faults have limits: none.
    pub fn figures(&self) -> Vec<Figure> {
        let count = |name: &str, count: u64, limit| Figure::plain(name, count as f64, "", limit);
        let work = [
            count("reloads", self.reloads, None),
            count("reloads tried again", self.tried_again, None),
            count("messages", self.messages, None),
        ];
        let faults = self.faults.each().map(|(name, faults)| count(name, faults, Some(0.0)));
        work.into_iter().chain(faults).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_all_servers_are_missed_limits() {
        let mut sums = Sums { messages: 5, reloads: 1, ..Sums::default() };
        assert!(sums.figures().iter().all(Figure::is_ok));
        let faults = Faults { lost: 2, ..Faults::default() };
        sums.add(Sums { faults, first: Some("peer 1".into()), reloads: 1, ..Sums::default() });
        let missed: Vec<_> = sums.figures().into_iter().filter(|figure| !figure.is_ok()).collect();
        assert_eq!((missed.len(), missed[0].name.as_str(), missed[0].value), (1, "lost", 2.0));
        assert_eq!((sums.reloads, sums.messages, sums.first.as_deref()), (2, 5, Some("peer 1")));
    }

    #[test]
    fn what_is_left_behind_is_told_for_each_generation() {
        let holding = |files, resident| Holding { files, memory: Memory { resident, private: 0 } };
        let figures = holding(101, 3 * 1024).figures(&holding(100, 1024), 4, Some(0.7));
        assert_eq!(figures.iter().map(|figure| figure.value).collect::<Vec<_>>(), [1.0, 0.5, 0.0]);
        assert_eq!(figures.iter().map(Figure::is_ok).collect::<Vec<_>>(), [false, true, true]);
    }
}
