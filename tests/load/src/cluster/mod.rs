//! `bench cluster`: five nodes on this machine, each a process of its own; beside them the same events over NATS,
//! in the same run.

mod broker;
mod child;
mod fleet;
mod heard;
#[cfg(feature = "nats")]
mod nats;
mod plain;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use crate::figure::{self, Columns, Figure, median};
use crate::{Result, failed};
use broker::Broker;
pub use child::{NodeOptions, Over, run as run_node};
use fleet::Fleet;

/// Nodes of a cluster here.
const NODES: usize = 5;
/// Bytes of a small event.
const SMALL: usize = 100;
/// Small events that are said as fast as it goes, over the mesh.
const MANY: u64 = 1_000_000;
/// Those that are said at a pace: at 450 a second.
const PACED: (u64, u64) = (2250, 450);

/// How to measure.
#[derive(Args)]
pub struct Options {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// So many rounds of what is compared; the medians count
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Only this cell, or these: latency, throughput, killed, paused
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
}

/// A part of the table.
type Cell = (&'static str, fn(&Options, &mut Silent) -> Result<Vec<Figure>>);

/// Every cell, in the order of the table.
static CELLS: [Cell; 4] =
    [("latency", latency), ("throughput", throughput), ("killed", killed), ("paused", paused)];

/// Events that were lost, and nobody was told.
#[derive(Default)]
struct Silent(u64);

/// Measures, and prints the figures.
pub fn bench(options: &Options) -> ExitCode {
    if let Some(unknown) = options.only.iter().find(|only| !CELLS.iter().any(|(key, _)| key == only)) {
        let keys: Vec<&str> = CELLS.iter().map(|(key, _)| *key).collect();
        eprintln!("no cell is named {unknown}; there are {}", keys.join(", "));
        return ExitCode::from(2);
    }
    match measure_all(options) {
        Ok((figures, Silent(silent))) => {
            if options.json {
                let figures: Vec<_> = figures.iter().map(Figure::json).collect();
                println!("{}", json!({ "figures": figures }));
            }
            // A figure may miss its limit on a busy machine; a silent hole is a fault on any.
            if silent > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => failed("bench cluster", &*error),
    }
}

fn measure_all(options: &Options) -> Result<(Vec<Figure>, Silent)> {
    if !options.json {
        println!("{}", figure::head(Columns::Plain));
    }
    let (mut all, mut silent) = (Vec::new(), Silent::default());
    let is_meant = |key: &str| options.only.is_empty() || options.only.iter().any(|only| key == only);
    let mut show = |figures: Vec<Figure>| {
        if !options.json {
            figures.iter().for_each(|figure| println!("{}", figure.row(Columns::Plain)));
        }
        all.extend(figures);
    };
    for (key, cell) in CELLS.iter().filter(|(key, _)| is_meant(key)) {
        show(cell(options, &mut silent).map_err(|error| format!("{key}: {error}"))?);
    }
    show(vec![Figure::plain("events lost without a gap", silent.0 as f64, "events", Some(0.0))]);
    Ok((all, silent))
}

/// From `say` to the handler of the slowest of four receivers, at a pace; plain sockets in the same rounds.
fn latency(options: &Options, silent: &mut Silent) -> Result<Vec<Figure>> {
    let (mut p50, mut p99, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let mesh = paced(&Over::Mesh, silent)?;
        p50.push(mesh.0);
        p99.push(mesh.1);
        plain.push(paced(&Over::Plain, &mut Silent::default())?.0);
    }
    let figure = |who: &str, name: &str, value, limit| {
        Figure::plain(format!("{who}, {SMALL} B at {}/s: {name}", PACED.1), value, "ms", limit)
    };
    Ok(vec![
        figure("mesh", "p50", median(p50), Some(0.15)),
        figure("mesh", "p99", median(p99), Some(1.0)),
        figure("plain sockets", "p50", median(plain), None),
    ])
}

/// p50 and p99 of the slowest of four receivers.
fn paced(over: &Over, silent: &mut Silent) -> Result<(f64, f64)> {
    let mut fleet = Fleet::start(NODES, over, "lan")?;
    fleet.pace(PACED.0 / 10, PACED.1, SMALL)?;
    fleet.take()?;
    fleet.pace(PACED.0, PACED.1, SMALL)?;
    let heard = fleet.collect(PACED.0)?;
    silent.0 += heard.iter().map(|heard| heard.silent).sum::<u64>();
    let worst = |of: fn(&heard::Heard) -> f64| heard.iter().map(of).fold(0.0, f64::max);
    Ok((worst(|heard| heard.p50), worst(|heard| heard.p99)))
}

/// One says as fast as it goes, four receive; NATS in the same rounds.
fn throughput(options: &Options, silent: &mut Silent) -> Result<Vec<Figure>> {
    let broker = Broker::start()?;
    let (mut mesh, mut core, mut stream, mut engine) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        mesh.push(rate(&Over::Mesh, MANY, silent)?);
        core.push(rate(&Over::NatsCore(broker.url()), MANY / 4, &mut Silent::default())?);
        stream.push(rate(&Over::JetStream(broker.url()), MANY / 20, &mut Silent::default())?);
        if cfg!(feature = "nats") {
            engine.push(rate(&Over::Nats(broker.url()), MANY / 20, silent)?);
        }
    }
    let (mesh, core, stream) = (median(mesh), median(core), median(stream));
    let rate = |name: &str, rate: f64| {
        Figure::plain(format!("{name}, {SMALL} B to 4: events a second"), rate, "/s", None)
    };
    let share = |name: &str, of: f64, limit| {
        Figure::plain(format!("{name}, of the mesh's rate"), of / mesh, "ratio", Some(limit))
    };
    let mut figures = vec![rate("mesh", mesh), rate("NATS core", core), rate("JetStream (file)", stream)];
    if !engine.is_empty() {
        figures.push(rate("engine nats", median(engine)));
    }
    figures.extend([share("NATS core", core, 0.5), share("JetStream (file)", stream, 0.2)]);
    Ok(figures)
}

fn rate(over: &Over, count: u64, silent: &mut Silent) -> Result<f64> {
    let mut fleet = Fleet::start(NODES, over, "lan")?;
    fleet.flood(count / 20, SMALL)?;
    fleet.collect_some(count / 20)?;
    let began = fleet.flood(count, SMALL)?;
    let heard = fleet.collect_some(count)?;
    silent.0 += heard.iter().map(|heard| heard.silent).sum::<u64>();
    let last = heard.iter().map(|heard| heard.last).max().unwrap_or_default();
    let fewest = heard.iter().map(|heard| heard.count).min().unwrap_or_default();
    if fewest < count {
        eprintln!("{over:?}: one receiver got {fewest} of {count} events");
    }
    Ok(fewest as f64 / (last.saturating_sub(began).max(1) as f64 / 1e9))
}

/// A node is killed: until the last of the others knows.
fn killed(options: &Options, _silent: &mut Silent) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (profile, limit) in [("lan", 7.0), ("fast", 3.0)] {
        let mut worst: f64 = 0.0;
        for _ in 0..options.rounds {
            let mut fleet = Fleet::start(NODES, &Over::Mesh, profile)?;
            worst = worst.max(fleet.kill_last()?.as_secs_f64());
        }
        let name = format!("SIGKILL seen by all others, profile {profile}, worst of {}", options.rounds);
        figures.push(Figure::plain(name, worst, "s", Some(limit)));
    }
    Ok(figures)
}

/// A node is stopped under load until it is evicted: what the others then wait.
fn paused(_options: &Options, silent: &mut Silent) -> Result<Vec<Figure>> {
    const LARGE: usize = 16 * 1024;
    let mut fleet = Fleet::start(NODES, &Over::Mesh, "lan")?;
    fleet.pace(500, 1000, LARGE)?;
    fleet.take()?;
    fleet.pause_last()?;
    // More than is kept for it: by the end it is evicted.
    fleet.pace(7000, 2000, LARGE)?;
    let before = fleet.collect_healthy(7000)?;
    fleet.pace(2000, 1000, LARGE)?;
    let after = fleet.collect_healthy(2000)?;
    fleet.resume_last()?;
    fleet.pace(10, 10, SMALL)?;
    let last = fleet.collect_last()?;
    silent.0 += before.iter().chain(&after).map(|heard| heard.silent).sum::<u64>() + last.silent;
    let lost = |heard: &[heard::Heard]| heard.iter().map(|heard| heard.gapped).sum::<u64>();
    let p99 = after.iter().map(|heard| heard.p99).fold(0.0, f64::max);
    let told = if last.gapped > 0 { 0.0 } else { 1.0 };
    Ok(vec![
        Figure::plain(
            "one paused under load: lost at the others",
            (lost(&before) + lost(&after)) as f64,
            "events",
            Some(0.0),
        ),
        Figure::plain("one paused under load: p99 after the eviction", p99, "ms", Some(10.0)),
        Figure::plain("one paused under load: it was not told of its gap", told, "", Some(0.0)),
    ])
}

/// Whatever a node is asked comes within this time.
const PATIENCE: Duration = Duration::from_secs(60);
