//! Nodes of the mesh on a network that is made up: it delays, reorders and loses datagrams, cuts connections, leaves
//! them half open, parts the nodes and brings them together again; nodes pause, are killed, start anew, with a wrong
//! clock and at other ports, and have slow handlers. What happens when is decided by one seed, so that whatever fails
//! can be seen again. [`world`] drives the very [`Node`](super::node::Node) that the driver runs on sockets, with
//! [`connections`] between them; [`faults`] go wrong; [`checker`] knows what was said and looks at what is handed on.
//!
//! `scripts/simulate` tries a thousand seeds; ZEPHSERVER_SEEDS and ZEPHSERVER_FIRST_SEED say how many, and which.

mod checker;
mod connections;
mod faults;
mod world;

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use world::World;

/// How long faults happen, and how long the nodes then have to find together.
const TROUBLE: Duration = Duration::from_secs(40);
const PEACE: Duration = Duration::from_secs(60);

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// One history: trouble, then peace, then everything must be where it belongs.
fn run(seed: u64) {
    let mut dice = SmallRng::seed_from_u64(seed);
    // Most are small, so that much happens to each; every tenth is as large as a mesh may be.
    let nodes = if seed.is_multiple_of(10) { 50 } else { dice.random_range(2..=12) };
    let mut world = World::new(nodes, dice);
    world.run_with_faults(TROUBLE);
    world.heal();
    world.run(PEACE);
    world.check_end();
}

#[test]
fn whatever_happens_order_is_kept_nothing_comes_twice_and_no_hole_is_silent() {
    let first = number("ZEPHSERVER_FIRST_SEED", 1);
    let count = number("ZEPHSERVER_SEEDS", 20);
    for seed in first..first + count {
        let history = std::panic::catch_unwind(|| run(seed));
        if let Err(panic) = history {
            eprintln!("seed {seed} failed; see it again: ZEPHSERVER_FIRST_SEED={seed} ZEPHSERVER_SEEDS=1");
            std::panic::resume_unwind(panic);
        }
    }
}
