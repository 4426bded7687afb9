//! `soak`: everything is reloaded in turn for a long time, and nobody may notice.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use crate::crowd::Plan;
use crate::figure::{self, Columns, Figure, grouped};
use crate::measure::SERVICES;
use crate::scene::Scene;
use crate::{Result, failed};

const MINUTE: Duration = Duration::from_secs(60);

/// Reloads of one run at most: each generation stays in memory, and the kernel lets a process map only so
/// many pieces of files.
const MOST: u64 = 5000;

/// How long, and with how many.
#[derive(Args)]
pub struct Options {
    /// So many minutes
    #[arg(long, default_value = "10", value_parser = minutes)]
    minutes: Duration,
    /// So many reloads instead, as fast as they can be
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MOST))]
    reloads: Option<u64>,
    /// So many peers talk, in rooms of ten
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(10..=10_000))]
    peers: u32,
    /// Print one JSON object, at the end
    #[arg(long)]
    json: bool,
}

fn minutes(text: &str) -> std::result::Result<Duration, String> {
    let wrong = || format!("{text:?} is no number of minutes between 0.01 and 10000");
    let minutes: f64 = text.parse().map_err(|_| wrong())?;
    if (0.01..=10_000.0).contains(&minutes) { Ok(MINUTE.mul_f64(minutes)) } else { Err(wrong()) }
}

/// Reloads, and prints what came of it. It ends well only where nobody noticed anything.
pub fn soak(options: &Options) -> ExitCode {
    let (figures, error) = match run(options) {
        Ok(ended) => ended,
        Err(error) => return failed("soak", &*error),
    };
    if options.json {
        let figures: Vec<_> = figures.iter().map(Figure::json).collect();
        println!("{}", json!({ "figures": figures }));
    } else {
        println!("{}", figure::head(Columns::Plain));
        figures.iter().for_each(|figure| println!("{}", figure.row(Columns::Plain)));
    }
    if let Some(error) = error {
        eprintln!("soak: {error}");
        return ExitCode::FAILURE;
    }
    if figures.iter().all(Figure::is_ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The figures, and what ended it too early or went wrong first.
fn run(options: &Options) -> Result<(Vec<Figure>, Option<String>)> {
    let mut scene = Scene::start(&Plan::talking(options.peers as usize))?;
    let mut left_behind = Vec::new();
    let driven = drive(&mut scene, options).map(|figures| left_behind = figures);
    let error = driven.err().map(|error| scene.told(&error.to_string()));
    // Also after an error: what the peers saw is told.
    let sums = scene.end()?;
    let figures = sums.figures().into_iter().chain(left_behind).collect();
    Ok((figures, error.or(sums.first)))
}

/// Reloads one library after the other, as soon as everybody has talked since the last one.
fn drive(scene: &mut Scene, options: &Options) -> Result<Vec<Figure>> {
    let before = scene.holding()?;
    let interval = interval(scene, options)?;
    let start = Instant::now();
    let (end, mut next_line) = (start + options.minutes, start + MINUTE);
    for library in SERVICES.iter().filter_map(|service| service.split('/').next()).cycle() {
        let is_over = match options.reloads {
            Some(reloads) => scene.reloads() >= reloads,
            None => Instant::now() >= end,
        };
        if is_over {
            break;
        }
        let began = Instant::now();
        scene.reload(library)?;
        scene.until_all_have_talked()?;
        scene.talk.run_for(interval.saturating_sub(began.elapsed()))?;
        if Instant::now() >= next_line && !options.json {
            println!("{}", line(scene, start.elapsed())?);
            next_line += MINUTE;
        }
    }
    let after = scene.holding()?;
    scene.check_services()?;
    Ok(after.figures(&before, scene.reloads(), None))
}

/// Reloads are no closer together than this: so many as there are then, the process can load.
fn interval(scene: &mut Scene, options: &Options) -> Result<Duration> {
    if options.reloads.is_some() {
        return Ok(Duration::ZERO);
    }
    let status = scene.ask("status")?;
    let generations = &status["generations"];
    let left = generations["limit"].as_u64().zip(generations["copies"].as_u64());
    let left = left.map_or(MOST, |(limit, copies)| limit.saturating_sub(copies).min(MOST));
    // A tenth is kept for reloads that have to be tried again.
    Ok(options.minutes.div_f64((left - left / 10).max(1) as f64))
}

/// How it stands.
fn line(scene: &Scene, time: Duration) -> Result<String> {
    let minutes = time.as_secs() / 60;
    let (reloads, messages) = (grouped(scene.reloads()), grouped(scene.talk.messages()));
    let faults = scene.talk.faults().each().map(|(name, count)| format!("{count} {name}")).join(", ");
    let (files, resident) = (grouped(scene.files()?), scene.memory()?.resident / 1024);
    Ok(format!(
        "{minutes:>4} min: {reloads} reloads, {messages} messages; {faults}; {files} open files, {resident} MiB"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_are_a_number() {
        assert_eq!(minutes("0.5"), Ok(Duration::from_secs(30)));
        for text in ["0", "-1", "x", "", "NaN", "1e9"] {
            assert!(minutes(text).unwrap_err().contains("no number of minutes"), "{text}");
        }
    }
}
