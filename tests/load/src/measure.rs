//! How a cell is measured: a fresh server and a raw peer beside each other, in turns.

use std::time::Duration;

use zephserver_testkit::TestServer;

use crate::cells::{Cell, Kind};
use crate::cores::{Cores, open_files};
use crate::figure::{Figure, median};
use crate::load::Load;
use crate::peer::RawPeer;
use crate::{Result, usage};

/// Before each round, unmeasured.
const WARM_UP: Duration = Duration::from_millis(150);

/// So long after the last answer, everybody sleeps and the time that they ran is booked.
const AT_REST: Duration = Duration::from_millis(2);

/// Files beside the connections.
const OTHER_FILES: usize = 100;

/// What is shipped, from the websocket to the tasks.
pub const SERVICES: [&str; 5] =
    ["session/Session", "room/Room", "tasks/Tasks", "router/Router", "websocket/WebSocket"];

const SETTINGS: &str = r#"PORT_ZEPH = 0
[websocket]
echo_path = "/echo"
[TASKS_PATH]
TaskEcho = "tasks/TaskEcho"
"chat.say" = "tasks/ChatSay"
"#;

/// Measures a cell: `rounds` times on each side.
pub fn measure(cell: &Cell, rounds: u32, time: Duration, cores: &Cores) -> Result<Figure> {
    let sides = if cell.kind == Kind::Idle { 1 } else { 2 };
    open_files((cell.kind.ours(0).connections * sides + OTHER_FILES) as u64)?;
    let mut server = cores.start(|| TestServer::with(&SERVICES).settings(SETTINGS).launch())?;
    server.wait_ready();
    let figure = match cell.kind {
        Kind::Idle => idle(cell, &server, cores),
        _ => compare(cell, &server, rounds, time, cores),
    };
    // The server's folder goes with it.
    figure.map_err(|error| format!("{error}\n{}{}", server.stderr(), server.log()).into())
}

/// One of the two that are compared.
struct Side {
    pid: u32,
    load: Load,
    samples: Vec<f64>,
}

impl Side {
    fn new(pid: u32, load: Load) -> Self {
        Self { pid, load, samples: Vec::new() }
    }

    /// Microseconds of CPU time for each answer. A round begins and ends with nothing under way: the time
    /// is that of the answers that were counted.
    fn sample(&mut self, time: Duration) -> Result<()> {
        self.load.run(WARM_UP)?;
        let before = self.at_rest()?;
        let answers = self.load.run(time)?;
        let nanoseconds = self.at_rest()?.saturating_sub(before);
        self.samples.push(nanoseconds as f64 / 1000.0 / answers as f64);
        Ok(())
    }

    fn at_rest(&self) -> Result<u64> {
        std::thread::sleep(AT_REST);
        usage::cpu_nanoseconds(self.pid)
    }
}

/// Raw and ours in turns: A B B A A B ..., so that a machine that gets slower slows both.
fn compare(cell: &Cell, server: &TestServer, rounds: u32, time: Duration, cores: &Cores) -> Result<Figure> {
    let kind = cell.kind;
    let raw_plan = kind.raw(0);
    let mut peer = cores.start(|| RawPeer::spawn(kind.work(), raw_plan.connections))??;
    let raw_load = Load::connect(&kind.raw(peer.port()?), cores.are_two())?;
    let our_load = Load::connect(&kind.ours(server.port("websocket/WebSocket")), cores.are_two())?;
    let mut raw = Side::new(peer.pid(), raw_load);
    let mut ours = Side::new(server.pid(), our_load);
    for round in 0..rounds {
        let order = if round % 2 == 0 { [&mut raw, &mut ours] } else { [&mut ours, &mut raw] };
        for side in order {
            side.sample(time)?;
        }
    }
    let (raw, ours) = (median(raw.samples), median(ours.samples));
    let Cell { name, limit, .. } = *cell;
    let ratio = Figure::plain(name, ours / raw, "ratio", Some(limit));
    Ok(Figure { raw: Some(raw), ours: Some(ours), ..ratio })
}

/// What the server keeps for a peer that says nothing.
fn idle(cell: &Cell, server: &TestServer, cores: &Cores) -> Result<Figure> {
    let plan = cell.kind.ours(server.port("websocket/WebSocket"));
    let before = usage::resident(server.pid())?;
    let load = Load::connect(&plan, cores.are_two())?;
    let after = usage::resident(server.pid())?;
    drop(load);
    let value = after.saturating_sub(before) as f64 / plan.connections as f64;
    let Cell { name, limit, .. } = *cell;
    Ok(Figure::plain(name, value, "KiB", Some(limit)))
}
