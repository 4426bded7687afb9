//! Nodes as processes: the first says, the others hear.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::PATIENCE;
use super::child::{Over, now};
use super::heard::Heard;
use crate::Result;

struct Process {
    child: Child,
    input: ChildStdin,
    lines: Receiver<Value>,
    /// A change that came while an answer was waited for.
    changes: Vec<Value>,
}

/// Nodes of one cluster.
pub struct Fleet {
    nodes: Vec<Process>,
}

impl Process {
    fn start(name: usize, over: &Over, seed: &str, profile: &str) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["cluster-node", "--name", &format!("n{name}"), "--profile", profile, "--seed", seed])
            .args(["--over", &serde_json::to_string(over)?])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().ok_or("a child has an input")?;
        let output = child.stdout.take().ok_or("a child has an output")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(std::result::Result::ok) {
                if let Ok(value) = serde_json::from_str::<Value>(&line)
                    && sender.send(value).is_err()
                {
                    return;
                }
            }
        });
        Ok(Self { child, input, lines, changes: Vec::new() })
    }

    /// The next line that has this key.
    fn next(&mut self, key: &str) -> Result<Value> {
        let end = Instant::now() + PATIENCE;
        if let Some(at) = self.changes.iter().position(|change| change.get(key).is_some()) {
            return Ok(self.changes.remove(at));
        }
        loop {
            let line = self.lines.recv_timeout(end.saturating_duration_since(Instant::now()));
            let line = line.map_err(|_| format!("a node does not say `{key}`"))?;
            match line.get(key) {
                Some(_) => return Ok(line),
                None => self.changes.push(line),
            }
        }
    }

    fn ask(&mut self, words: &str, key: &str) -> Result<Value> {
        writeln!(self.input, "{words}")?;
        self.next(key)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.id() as i32).ok_or("a child has an id")?;
        Ok(kill_process(pid, signal)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Fleet {
    /// Starts nodes, and waits until each sees all others.
    pub fn start(count: usize, over: &Over, profile: &str) -> Result<Self> {
        let mut first = Process::start(0, over, "", profile)?;
        let address = first.next("address")?;
        let seed = address["address"].as_str().unwrap_or_default().to_string();
        let mut nodes = vec![first];
        for name in 1..count {
            nodes.push(Process::start(name, over, &seed, profile)?);
        }
        for node in &mut nodes {
            node.ask(&format!("meet {}", count - 1), "met")?;
        }
        Ok(Self { nodes })
    }

    /// The first says so many events as fast as it goes. Answers when it began.
    pub fn flood(&mut self, count: u64, size: usize) -> Result<u64> {
        let answer = self.nodes[0].ask(&format!("flood {count} {size}"), "began")?;
        Ok(answer["began"].as_u64().unwrap_or_default())
    }

    /// The first says so many events, so many a second.
    pub fn pace(&mut self, count: u64, rate: u64, size: usize) -> Result<()> {
        self.nodes[0].ask(&format!("pace {count} {size} {rate}"), "began").map(drop)
    }

    /// What the others have heard; they begin anew.
    pub fn take(&mut self) -> Result<Vec<Heard>> {
        self.nodes[1..].iter_mut().map(|node| heard(node, 0)).collect()
    }

    /// The same, when all have heard so many.
    pub fn collect(&mut self, count: u64) -> Result<Vec<Heard>> {
        self.nodes[1..].iter_mut().map(|node| heard(node, count)).collect()
    }

    /// The same, when all have heard so many or hear nothing more: not everybody keeps what it promises.
    pub fn collect_some(&mut self, count: u64) -> Result<Vec<Heard>> {
        self.collect(count)
    }

    /// The same of all but the last.
    pub fn collect_healthy(&mut self, count: u64) -> Result<Vec<Heard>> {
        let last = self.nodes.len() - 1;
        self.nodes[1..last].iter_mut().map(|node| heard(node, count)).collect()
    }

    /// What the last one hears until nothing more comes.
    pub fn collect_last(&mut self) -> Result<Heard> {
        let last = self.nodes.len() - 1;
        heard(&mut self.nodes[last], u64::MAX)
    }

    fn last(&self) -> Result<&Process> {
        Ok(self.nodes.last().ok_or("there are nodes")?)
    }

    pub fn pause_last(&self) -> Result<()> {
        self.last()?.signal(Signal::STOP)
    }

    pub fn resume_last(&self) -> Result<()> {
        self.last()?.signal(Signal::CONT)
    }

    /// Kills the last: how long until all others know.
    pub fn kill_last(&mut self) -> Result<Duration> {
        let began = now();
        self.last()?.signal(Signal::KILL)?;
        let others = self.nodes.len() - 1;
        let mut worst = 0;
        for node in &mut self.nodes[..others] {
            let down = node.next("down")?;
            worst = worst.max(down["at"].as_u64().unwrap_or_default());
        }
        Ok(Duration::from_nanos(worst.saturating_sub(began)))
    }
}

fn heard(node: &mut Process, count: u64) -> Result<Heard> {
    let answer = node.ask(&format!("take {count}"), "heard")?;
    Ok(serde_json::from_value(answer["heard"].clone())?)
}
