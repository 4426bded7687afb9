//! One node as a process: does what its input says, and says what came of it. Ends with its input.

use std::io::{Write, stdin, stdout};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use serde_json::json;
use zeph_cluster::{Change, Engine, Mesh, MeshOptions, Profile, Said};

use super::heard::Ear;
use crate::Result;

/// Somebody of whom nothing more comes for so long has heard everything that comes.
const QUIET: Duration = Duration::from_secs(2);

/// What events go over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Over {
    /// The engine.
    Mesh,
    /// The engine.
    Nats(String),
    /// NATS alone: publish and subscribe.
    NatsCore(String),
    /// JetStream alone: a stream in files, 200 acks under way.
    JetStream(String),
    /// Sockets alone.
    Plain,
}

/// Which node this is.
#[derive(Args)]
pub struct NodeOptions {
    #[arg(long)]
    name: String,
    #[arg(long)]
    profile: String,
    /// Where another node listens; empty: this is the first
    #[arg(long)]
    seed: String,
    #[arg(long)]
    over: String,
}

/// Nanoseconds of the machine's clock, the same for all processes.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn print(value: &serde_json::Value) {
    let mut out = stdout().lock();
    let _ = writeln!(out, "{value}").and_then(|()| out.flush());
}

/// Whatever carries events.
pub trait Speaker {
    /// Where others find it.
    fn address(&self) -> String;
    /// How many others are there.
    fn others(&self) -> usize;
    /// Says one event.
    fn say(&mut self, payload: &[u8]) -> Result<()>;
    /// Everything that was said is out of this process.
    fn flush(&mut self) -> Result<()>;
}

/// What is heard, shared with whoever brings it.
#[derive(Clone, Default)]
pub struct Heard(Arc<Mutex<Ear>>);

impl Heard {
    fn ear(&self) -> MutexGuard<'_, Ear> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An event came.
    pub fn event(&self, seq: Option<u64>, payload: &[u8]) {
        let said = payload.first_chunk::<8>().map_or(0, |time| u64::from_le_bytes(*time));
        let now = now();
        self.ear().event(seq, said, now);
    }
}

struct OfEngine {
    engine: Box<dyn Engine>,
    _subscriptions: [zeph_cluster::Subscription; 2],
}

impl OfEngine {
    fn new(engine: Box<dyn Engine>, heard: &Heard) -> Self {
        let (of_events, of_changes) = (heard.clone(), heard.clone());
        let event = move |said: &Said| of_events.event(Some(said.seq), &said.payload);
        let change = move |change: &Change| match change {
            Change::Down(node) => print(&json!({"down": &**node, "at": now()})),
            Change::Gap { from, to, .. } => of_changes.ear().gap(*from, *to),
            Change::Up(_) | Change::Evicted(_) => {}
        };
        let subscriptions = [engine.subscribe("bench", Arc::new(event)), engine.watch(Arc::new(change))];
        Self { engine, _subscriptions: subscriptions }
    }
}

impl Speaker for OfEngine {
    fn address(&self) -> String {
        self.engine.status().address.unwrap_or_default()
    }

    fn others(&self) -> usize {
        let is_up = |member: &&zeph_cluster::Member| member.state == zeph_cluster::MemberState::Up;
        self.engine.status().members.iter().filter(is_up).count()
    }

    fn say(&mut self, payload: &[u8]) -> Result<()> {
        Ok(self.engine.say("bench", payload).map(drop)?)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

fn speaker(options: &NodeOptions, heard: &Heard) -> Result<Box<dyn Speaker>> {
    let over: Over = serde_json::from_str(&options.over)?;
    let profile = Profile::named(&options.profile).ok_or("no such profile")?;
    match over {
        Over::Mesh => {
            let seeds = Some(options.seed.clone()).filter(|seed| !seed.is_empty()).into_iter().collect();
            let listen = ([127, 0, 0, 1], 0).into();
            let mesh = MeshOptions { node: options.name.clone(), listen, seeds, keys: None, profile };
            Ok(Box::new(OfEngine::new(Box::new(Mesh::start(mesh)?), heard)))
        }
        Over::Plain => super::plain::speaker(&options.seed, heard),
        #[cfg(feature = "nats")]
        Over::Nats(url) => {
            let options = zeph_cluster::nats::Options {
                profile,
                ..zeph_cluster::nats::Options::new(options.name.clone(), url)
            };
            Ok(Box::new(OfEngine::new(Box::new(zeph_cluster::Nats::start(options)?), heard)))
        }
        #[cfg(feature = "nats")]
        other => super::nats::speaker(&other, &options.name, heard),
        #[cfg(not(feature = "nats"))]
        _ => Err("built without NATS: use scripts/bench cluster".into()),
    }
}

/// A node, from its first to its last line of input.
pub fn run(options: &NodeOptions) -> Result<()> {
    let heard = Heard::default();
    let mut speaker = speaker(options, &heard)?;
    print(&json!({"address": speaker.address()}));
    for line in stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or_default();
        match words.first().copied() {
            Some("meet") => {
                while (speaker.others() as u64) < number(1) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                print(&json!({"met": number(1)}));
            }
            Some("flood" | "pace") => {
                let began = say_all(&mut *speaker, number(1), number(2) as usize, number(3))?;
                print(&json!({"began": began}));
            }
            Some("take") => print(&json!({"heard": take(&heard, number(1))})),
            _ => return Err(format!("no node knows `{line}`").into()),
        }
    }
    Ok(())
}

fn say_all(speaker: &mut dyn Speaker, count: u64, size: usize, rate: u64) -> Result<u64> {
    let mut payload = vec![b'x'; size.max(8)];
    let pause = Duration::from_nanos(1_000_000_000u64.checked_div(rate).unwrap_or(0));
    let began = now();
    let mut next = Instant::now();
    for _ in 0..count {
        if !pause.is_zero() {
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        payload[..8].copy_from_slice(&now().to_le_bytes());
        speaker.say(&payload)?;
        // Whoever was held up does not hurry afterwards.
        next = (next + pause).max(Instant::now());
    }
    speaker.flush()?;
    Ok(began)
}

/// What was heard when there is so much of it, or nothing more comes.
fn take(heard: &Heard, count: u64) -> super::heard::Heard {
    let mut last = (heard.ear().count(), Instant::now());
    loop {
        let now = heard.ear().count();
        if now != last.0 {
            last = (now, Instant::now());
        }
        if now >= count || last.1.elapsed() > QUIET {
            return heard.ear().take();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
