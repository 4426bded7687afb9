//! The cluster, as people read it, and its key.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde_json::Value;
use signal_hook::consts::SIGINT;
use signal_hook::flag::register_conditional_shutdown;
use zeph_cluster::Keys;
use zephserver::client::ask;
use zephserver::{Settings, exit};

use crate::past::moment;
use crate::show::{error, line, print, text, visible};
use crate::{Arguments, unanswered};

/// Whoever follows looks for new events this often.
const POLL: Duration = Duration::from_millis(200);

/// `cluster key [FILE]`
pub fn key(words: &[String]) -> u8 {
    let file = match words {
        [] => "cluster.key",
        [file] => file,
        _ => {
            error("usage: cluster key [FILE]");
            return exit::USAGE;
        }
    };
    match Keys::make(Path::new(file)) {
        Ok(()) => {
            line(&format!("{file} has a new key; copy it to all nodes, and name it there:"));
            line(&format!("  [cluster]\n  key_file = \"{file}\""));
            exit::OK
        }
        Err(why) => {
            error(&why.to_string());
            exit::FAILED
        }
    }
}

/// `cluster`
pub fn cluster(answer: &Value) {
    let [engine, node] = ["engine", "node"].map(|key| text(&answer[key]));
    let address = answer["address"].as_str().map(|address| format!(" at {address}")).unwrap_or_default();
    line(&format!("{node}: {engine}{address}, boot {}", text(&answer["boot"])));
    line(&format!(
        "said {}; kept for others {} ({} bytes); wait for handlers here {}; lost {}, refused {}",
        answer["said"],
        answer["backlog"],
        answer["backlog_bytes"],
        answer["waiting"],
        answer["lost"],
        answer["refused"]
    ));
    let members = answer["members"].as_array().map(Vec::as_slice).unwrap_or_default();
    if members.is_empty() {
        return line(if engine == "local" { "no cluster: this node is alone" } else { "no other node yet" });
    }
    line("");
    let row = |member: &Value| {
        let (to, from) = (&member["outgoing"], &member["incoming"]);
        let heard =
            member["heard_ms"].as_u64().map_or("-".into(), |ms| format!("{:.1} s", ms as f64 / 1000.0));
        let [acked, backlog, evictions, given] =
            ["acked", "backlog", "evictions", "gaps"].map(|key| text(&to[key]));
        let [last, gaps] = ["last", "gaps"].map(|key| text(&from[key]));
        let (node, address) = (text(&member["node"]), text(&member["address"]));
        vec![node, text(&member["state"]), heard, address, acked, backlog, evictions, given, last, gaps]
    };
    let head = ["NODE", "STATE", "HEARD", "ADDRESS", "HAS", "LACKS", "EVICTED", "MISSED", "SAID", "GAPS"];
    print(&head, &members.iter().map(row).collect::<Vec<_>>());
}

fn entry(entry: &Value) -> String {
    let (at, node, what) = (moment(&entry["at"]), text(&entry["node"]), text(&entry["what"]));
    let said = match what.as_str() {
        "said" => format!("{} {} B  {}", text(&entry["event"]), entry["bytes"], text(&entry["payload"])),
        word => format!("({word})"),
    };
    format!("{at}  {node}  {said}")
}

/// `events`
pub fn events(answer: &Value) {
    let entries = answer["entries"].as_array().map(Vec::as_slice).unwrap_or_default();
    if entries.is_empty() {
        return line("no node has said anything lately");
    }
    entries.iter().for_each(|one| line(&entry(one)));
}

/// `events --follow`: what is there, then what comes, until Ctrl-C.
pub fn follow(settings: &Settings, arguments: &Arguments) -> u8 {
    let words = arguments.words.iter().map(String::as_str).filter(|word| !matches!(*word, "-f" | "--follow"));
    // Ctrl-C is the way to end it, and no failure.
    let _ = register_conditional_shutdown(SIGINT, exit::OK.into(), Arc::new(AtomicBool::new(true)));
    let mut question = format!("events {}", words.collect::<Vec<_>>().join(" "));
    let mut is_first = true;
    loop {
        let answer = match ask(&settings.control_socket, &question) {
            Ok(answer) => answer,
            Err(why) => return unanswered(&why),
        };
        if let Some(why) = answer["error"]["text"].as_str() {
            error(why);
            return exit::USAGE;
        }
        if !is_first && answer["missed"].as_u64().is_some_and(|missed| missed > 0) {
            error(&format!("{} events went by too fast to show", answer["missed"]));
        }
        for one in answer["entries"].as_array().into_iter().flatten() {
            let shown = if arguments.json { one.to_string() } else { visible(&entry(one)) };
            if writeln!(std::io::stdout(), "{shown}").is_err() {
                // Whoever closed the pipe wants no more.
                return exit::OK;
            }
        }
        is_first = false;
        question = format!("events --limit 1000 --after {}", answer["last"]);
        std::thread::sleep(POLL);
    }
}
