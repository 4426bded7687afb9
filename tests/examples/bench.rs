//! Figures of the core: `bench core [--json]`. Every figure is taken on real libraries in a real server.
#![allow(missing_docs)]

use std::io::{BufRead, BufReader, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use zephserver_testkit::TestServer;

struct Figure {
    name: &'static str,
    value: f64,
    unit: &'static str,
    limit: f64,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().map(String::as_str) != Some("core") {
        eprintln!("usage: bench core [--json]");
        return ExitCode::from(2);
    }
    let figures = [call(), panic(), reload(), memory()];
    if words.iter().any(|word| word == "--json") {
        let figure = |figure: &Figure| {
            json!({"name": figure.name, "value": figure.value, "unit": figure.unit, "limit": figure.limit,
                   "ok": figure.value <= figure.limit})
        };
        println!("{}", json!({"figures": figures.iter().map(figure).collect::<Vec<_>>()}));
        return ExitCode::SUCCESS;
    }
    println!("{:<58} {:>9} {:>9}", "FIGURE", "VALUE", "LIMIT");
    for Figure { name, value, unit, limit } in figures {
        let mark = if value <= limit { "" } else { "  missed" };
        println!("{name:<58} {value:>9.2} {limit:>9.2} {unit}{mark}");
    }
    ExitCode::SUCCESS
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Plugin to plugin through the public SDK: 64 bytes there and back.
fn call() -> Figure {
    let server = TestServer::with(&["trouble/Trouble", "relay/Relay"]).start();
    let payload = "x".repeat(62);
    let order = |count: u64| {
        json!({"path": "trouble/Trouble", "method": "echo/1", "payload": payload, "count": count}).to_string()
    };
    let time = |count: u64| server.call("relay", "time/1", &order(count)).unwrap().as_f64().unwrap();
    time(200_000);
    let value = median((0..9).map(|_| time(1_000_000)).collect());
    Figure { name: "call through a handle, 64 B, reply included", value, unit: "ns", limit: 60.0 }
}

/// From the call that panics to the next call's answer, as an operator's connection sees it; each
/// sample in a fresh server, so that it is the first panic of a period.
fn panic() -> Figure {
    let sample = || {
        let server = TestServer::with(&["trouble/Trouble"]).start();
        let mut stream = BufReader::new(server.connect());
        let mut line = String::new();
        stream.get_mut().write_all(b"call trouble echo/1 1\n").unwrap();
        stream.read_line(&mut line).unwrap();
        let start = Instant::now();
        stream.get_mut().write_all(b"call trouble panic/1\ncall trouble echo/1 2\n").unwrap();
        line.clear();
        stream.read_line(&mut line).unwrap();
        stream.read_line(&mut line).unwrap();
        assert!(line.ends_with("\n2\n"), "{line}");
        start.elapsed().as_secs_f64() * 1000.0
    };
    let value = median((0..11).map(|_| sample()).collect());
    Figure { name: "panic in a call to answering again", value, unit: "ms", limit: 10.0 }
}

/// From the command to the new generation serving: check, copy, hash, open, create, swap.
fn reload() -> Figure {
    let server = TestServer::with(&["hello/Hello"]).settings("[server]\nwatch = false").start();
    let sample = |_| {
        let start = Instant::now();
        server.ask("reload hello").unwrap();
        assert_eq!(server.call("hello", "greet/1", "\"Ann\"").unwrap(), "Hello, Ann!");
        start.elapsed().as_secs_f64() * 1000.0
    };
    let value = median((0..21).map(sample).collect());
    Figure { name: "closed file to new generation serving, debounce apart", value, unit: "ms", limit: 50.0 }
}

/// Resident memory that stays for each retired generation.
fn memory() -> Figure {
    let server = TestServer::with(&["hello/Hello"]).settings("[server]\nwatch = false").start();
    let reload = |count: usize| {
        (0..count).for_each(|_| drop(server.ask("reload hello").unwrap()));
        let end = Instant::now() + Duration::from_secs(30);
        let is_idle = |status: &Value| status["generations"]["draining"].as_array().unwrap().is_empty();
        while !is_idle(&server.ask("status").unwrap()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    };
    let before = reload(20);
    let value = (reload(200) - before) / 200.0;
    Figure { name: "memory kept for each retired generation of hello", value, unit: "MiB", limit: 0.7 }
}
