//! Load on a real server. `bench websocket` takes every cell beside a raw TCP peer that does the same
//! without a protocol: the physical limit. `bench reload` and `soak` reload services under peers that talk,
//! and hold what each peer gets against what it is to get.
#![forbid(unsafe_code)]

mod board;
mod cells;
mod connect;
mod connection;
mod cores;
mod figure;
mod frames;
mod load;
mod measure;
mod peer;
mod pipe;
mod raw;
mod usage;

mod cluster;
mod crowd;
mod history;
mod pace;
mod reader;
mod reload;
mod renewal;
mod scene;
mod silence;
mod soak;
mod speech;
mod talk;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};

use cells::{CELLS, Cell};
use cores::Cores;
use figure::Columns;
use raw::Work;

/// What fails here is printed and ends the program.
pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Whatever is waited for comes within this time, or an error says what did not.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Measure a real server under load.
#[derive(Parser)]
#[command(name = "bench", disable_help_subcommand = true)]
struct Words {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// The websocket, each figure beside its physical limit
    Websocket(Options),
    /// How long peers wait while a service is replaced, and what stays of it
    Reload(reload::Options),
    /// Five nodes that say events to one another, beside NATS
    Cluster(cluster::Options),
    /// A node of `cluster`
    #[command(hide = true)]
    ClusterNode(cluster::NodeOptions),
    /// Reload everything in turn for a long time, while peers talk
    Soak(soak::Options),
    /// A raw peer that echoes bytes
    #[command(hide = true)]
    RawEcho {
        #[arg(long)]
        connections: usize,
    },
    /// A raw peer that sends what the first connection sends to all
    #[command(hide = true)]
    RawSend {
        #[arg(long)]
        connections: usize,
    },
}

/// How to measure.
#[derive(Args)]
struct Options {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// So many rounds of each side; the medians count
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// So long is a round measured
    #[arg(long, default_value = "0.4", value_parser = seconds)]
    seconds: Duration,
    /// Only this cell, or these: echo, echo-1, echo-16, ring, ring-1, ring-16, broadcast, broadcast-1,
    /// broadcast-8, idle
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
}

fn seconds(text: &str) -> std::result::Result<Duration, String> {
    let wrong = || format!("{text:?} is no time between 0.01 and 60 seconds");
    let seconds: f64 = text.parse().map_err(|_| wrong())?;
    if (0.01..=60.0).contains(&seconds) { Ok(Duration::from_secs_f64(seconds)) } else { Err(wrong()) }
}

fn main() -> ExitCode {
    let done = match Words::parse().verb {
        Verb::Websocket(options) => return websocket(&options),
        Verb::Reload(options) => return reload::bench(&options),
        Verb::Cluster(options) => return cluster::bench(&options),
        Verb::ClusterNode(options) => cluster::run_node(&options),
        Verb::Soak(options) => return soak::soak(&options),
        Verb::RawEcho { connections } => raw::listen(Work::Echo, connections),
        Verb::RawSend { connections } => raw::listen(Work::Send, connections),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed("raw peer or node", &*error),
    }
}

fn failed(what: &str, error: &dyn Error) -> ExitCode {
    eprintln!("{what}: {error}");
    ExitCode::FAILURE
}

fn websocket(options: &Options) -> ExitCode {
    if let Some(unknown) = options.only.iter().find(|only| !CELLS.iter().any(|cell| cell.is_meant(only))) {
        let keys: Vec<&str> = CELLS.iter().map(|cell| cell.key).collect();
        eprintln!("no cell is named {unknown}; there are {}", keys.join(", "));
        return ExitCode::from(2);
    }
    match measure_all(options) {
        Ok(figures) => {
            if options.json {
                println!("{}", json!({ "figures": figures }));
            }
            ExitCode::SUCCESS
        }
        Err(error) => failed("bench websocket", &*error),
    }
}

fn measure_all(options: &Options) -> Result<Vec<Value>> {
    let cores = Cores::find()?;
    if !options.json {
        println!("{}", figure::head(Columns::Compared));
    }
    let is_meant =
        |cell: &&Cell| options.only.is_empty() || options.only.iter().any(|only| cell.is_meant(only));
    let mut figures = Vec::new();
    for cell in CELLS.iter().filter(is_meant) {
        let figure = measure::measure(cell, options.rounds, options.seconds, &cores)
            .map_err(|error| format!("{}: {error}", cell.key))?;
        if !options.json {
            println!("{}", figure.row(Columns::Compared));
        }
        figures.push(figure.json());
    }
    Ok(figures)
}
