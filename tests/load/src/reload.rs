//! `bench reload`: how long peers wait while a service is replaced, and what a replaced one leaves behind.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use crate::cores::most_files;
use crate::crowd::{MEMBERS, Plan};
use crate::figure::{self, Columns, Figure, grouped, percentile};
use crate::scene::{OTHER_FILES, Scene, Sums};
use crate::{Result, failed};

/// After the answer to a reload its window stays open for so long.
const AFTER: Duration = Duration::from_millis(500);

/// Peers of the cell with many.
const MANY: usize = 10_000;

/// Generations whose remains are looked at, after some for warming up.
const GENERATIONS: u64 = 200;
const FIRST_GENERATIONS: u64 = 20;

/// MiB that a generation may keep.
const MEMORY: f64 = 0.15;

/// How to measure.
#[derive(Args)]
pub struct Options {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// So many peers talk, in rooms of ten
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(10..=10_000))]
    peers: u32,
    /// So often is each service reloaded
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
    times: u32,
    /// Only this cell, or these: baseline, tasks, router, session, room, websocket, many, remains
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
}

/// Some figures of one server.
struct Cell {
    /// What `--only` names.
    key: &'static str,
    kind: Kind,
}

/// What is done while everybody talks.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Nothing: what the machine does by itself.
    Baseline,
    /// A library is reloaded; limits in milliseconds, of the 50th and the 99th percentile.
    Reload(&'static str, Option<f64>, f64),
    /// The websocket is reloaded under many peers; the limit of the 99th percentile.
    Many(f64),
    /// Two libraries are reloaded often: what stays?
    Remains,
}

const fn cell(key: &'static str, kind: Kind) -> Cell {
    Cell { key, kind }
}

/// Figures that are to be 0.
const FAULTS: [&str; 5] = ["dropped", "lost", "doubled", "reordered", "strange"];

/// Every cell, in the order of the table.
static CELLS: [Cell; 8] = [
    cell("baseline", Kind::Baseline),
    cell("tasks", Kind::Reload("tasks", Some(10.0), 50.0)),
    cell("router", Kind::Reload("router", Some(10.0), 50.0)),
    cell("session", Kind::Reload("session", Some(10.0), 50.0)),
    cell("room", Kind::Reload("room", Some(10.0), 50.0)),
    cell("websocket", Kind::Reload("websocket", None, 100.0)),
    cell("many", Kind::Many(500.0)),
    cell("remains", Kind::Remains),
];

/// Measures, and prints the figures.
pub fn bench(options: &Options) -> ExitCode {
    if let Some(unknown) = options.only.iter().find(|only| !CELLS.iter().any(|cell| cell.key == *only)) {
        let keys: Vec<&str> = CELLS.iter().map(|cell| cell.key).collect();
        eprintln!("no cell is named {unknown}; there are {}", keys.join(", "));
        return ExitCode::from(2);
    }
    match measure_all(options) {
        Ok(figures) => {
            if options.json {
                let figures: Vec<_> = figures.iter().map(Figure::json).collect();
                println!("{}", json!({ "figures": figures }));
            }
            // A figure may miss its limit on a busy machine; a fault is one on any.
            let is_fault = |figure: &Figure| FAULTS.contains(&figure.name.as_str()) && !figure.is_ok();
            if figures.iter().any(is_fault) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => failed("bench reload", &*error),
    }
}

fn measure_all(options: &Options) -> Result<Vec<Figure>> {
    if !options.json {
        println!("{}", figure::head(Columns::Plain));
    }
    let mut all = Vec::new();
    let mut show = |figures: Vec<Figure>| {
        if !options.json {
            figures.iter().for_each(|figure| println!("{}", figure.row(Columns::Plain)));
        }
        all.extend(figures);
    };
    let is_meant = |cell: &&Cell| options.only.is_empty() || options.only.iter().any(|only| cell.key == only);
    let mut sums = Sums::default();
    for cell in CELLS.iter().filter(is_meant) {
        let (figures, own) = measure(cell, options).map_err(|error| format!("{}: {error}", cell.key))?;
        if let Some(first) = &own.first {
            eprintln!("{}: {first}", cell.key);
        }
        sums.add(own);
        show(figures);
    }
    show(sums.figures());
    Ok(all)
}

/// Measures a cell, with a server of its own.
fn measure(cell: &Cell, options: &Options) -> Result<(Vec<Figure>, Sums)> {
    let (peers, times) = (options.peers as usize, options.times);
    let plan = match cell.kind {
        Kind::Baseline | Kind::Reload(..) => Plan::talking(peers),
        Kind::Many(_) => Plan::talking(many()),
        Kind::Remains => {
            let pauses = [100, 500].map(Duration::from_millis);
            Plan { peers: 200, request_pause: pauses[0], word_pause: pauses[1] }
        }
    };
    let mut scene = Scene::start(&plan)?;
    let measured = match cell.kind {
        Kind::Baseline => silences(&mut scene, &plan, times, None, (None, None)),
        Kind::Reload(library, p50, p99) => {
            silences(&mut scene, &plan, times, Some(library), (p50, Some(p99)))
        }
        Kind::Many(p99) => silences(&mut scene, &plan, times, Some("websocket"), (None, Some(p99))),
        Kind::Remains => remains(&mut scene),
    };
    let measured = measured.and_then(|figures| scene.check_services().map(|()| figures));
    let figures = measured.map_err(|error| scene.told(&error.to_string()))?;
    Ok((figures, scene.end()?))
}

/// Many peers, or as many as fit: while the websocket hands over, the server has each socket open twice.
fn many() -> usize {
    let fit = |files: u64| (files as usize).saturating_sub(OTHER_FILES) / 2;
    let peers = most_files().map_or(MANY, |files| MANY.min(fit(files)));
    (peers - peers % MEMBERS).max(MEMBERS)
}

/// The longest silence of each peer in each window: from just before a reload until some time after it.
fn silences(
    scene: &mut Scene,
    plan: &Plan,
    times: u32,
    library: Option<&str>,
    (p50, p99): (Option<f64>, Option<f64>),
) -> Result<Vec<Figure>> {
    // Long enough for a request of everybody.
    let after = AFTER.max(plan.request_pause * 3 / 2);
    let mut silences = Vec::with_capacity(plan.peers * times as usize);
    for _ in 0..times {
        scene.talk.silence().begin();
        if let Some(library) = library {
            scene.reload(library)?;
        }
        scene.talk.run_for(after)?;
        let end = Instant::now();
        scene.talk.silence().end(end);
        // By then everything is answered that was sent before.
        scene.talk.until_all_have_talked(end)?;
        let longest = scene.talk.silence().take();
        silences.extend(longest.iter().map(|time| time.as_secs_f64() * 1000.0));
        scene.until_nothing_drains()?;
    }
    silences.sort_by(f64::total_cmp);
    let what = library.map_or_else(|| "no reload".to_string(), |library| format!("reload {library}"));
    let peers = grouped(plan.peers as u64);
    let silence = |name: &str, share: f64, limit: Option<f64>| {
        let value = percentile(&silences, share);
        Figure::plain(format!("{what}, {peers} peers: silence, {name}"), value, "ms", limit)
    };
    Ok(vec![silence("p50", 0.5, p50), silence("p99", 0.99, p99), silence("worst", 1.0, None)])
}

/// What many generations of websocket and room leave behind.
fn remains(scene: &mut Scene) -> Result<Vec<Figure>> {
    reload_in_turn(scene, FIRST_GENERATIONS)?;
    let before = scene.holding()?;
    reload_in_turn(scene, GENERATIONS)?;
    let after = scene.holding()?;
    Ok(after.figures(&before, GENERATIONS, Some(MEMORY)))
}

fn reload_in_turn(scene: &mut Scene, count: u64) -> Result<()> {
    for library in ["websocket", "room"].into_iter().cycle().take(count as usize) {
        scene.reload(library)?;
        scene.until_all_have_talked()?;
    }
    Ok(())
}
