//! Answers as people read them.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::table;

/// Prints a line; whoever closed the pipe wants no more.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints the answer to a verb.
pub fn answer(verb: &str, answer: &Value) {
    match verb {
        "status" => status(answer),
        "services" => services(answer),
        "plugins" => plugins(answer),
        "help" => help(answer),
        "reload" => reload(answer),
        "rollback" if answer.is_array() => kept(answer),
        "rollback" => {
            reload(answer);
            if let Value::String(pinned) = &answer["pinned"] {
                line(pinned);
            }
        }
        "version" => line(&format!("zephserver {}", text(&answer["zephserver"]))),
        "start" | "disable" | "restart" => each(answer, |one| {
            line(&format!("{}: {}", text(&one["service"]), text(&one["state"])));
        }),
        "stop" => stopped(answer),
        _ => generic(answer),
    }
}

fn stopped(answer: &Value) {
    let names = answer["left_behind"].as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
    match names.as_slice() {
        [] => line("Stopped"),
        names => line(&format!("Stopped, but left behind: {}", names.join(", "))),
    }
}

fn each(answer: &Value, f: impl Fn(&Value)) {
    match answer {
        Value::Array(list) => list.iter().for_each(f),
        one => f(one),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn print(head: &[&str], rows: &[Vec<String>]) {
    table::lines(head, rows, table::width()).iter().for_each(|row| line(row));
}

fn age(seconds: &Value) -> String {
    let Some(at) = seconds.as_u64() else { return "-".into() };
    let age = SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_secs(at)).unwrap_or_default();
    let seconds = age.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

fn status(answer: &Value) {
    let server = ["version", "pid", "node"].map(|key| text(&answer[key]));
    let [version, pid, node] = server;
    line(&format!(
        "zephserver {version} on {node}: {}, pid {pid}, up {}",
        text(&answer["state"]),
        age(&answer["started"])
    ));
    let (generations, calls, pool) = (&answer["generations"], &answer["calls"], &answer["pool"]);
    line(&format!(
        "plugin copies {} of {}; pool {} threads, {} stuck\ncalls: {} pending, {} slow, {} timed out",
        generations["copies"],
        generations["limit"],
        pool["threads"],
        pool["stuck"],
        calls["pending"],
        calls["slow"],
        calls["timeouts"]
    ));
    if let Some(list) = answer["left_behind"].as_array().filter(|list| !list.is_empty()) {
        line(&format!("left behind: {}", list.iter().map(text).collect::<Vec<_>>().join(", ")));
    }
    line("");
    services(&answer["services"]);
}

fn services(answer: &Value) {
    let rows: Vec<Vec<String>> = answer.as_array().into_iter().flatten().map(service_row).collect();
    print(&["SERVICE", "STATE", "SINCE", "GEN", "RESTARTS", "LAST FAILURE"], &rows);
    let library = |service: &Value| text(&service["name"]).split('/').next().unwrap_or_default().to_string();
    rolled_back(answer.as_array().into_iter().flatten().map(|service| (library(service), service)));
}

/// A line for each library that runs with another build than its file.
fn rolled_back<'a>(places: impl Iterator<Item = (String, &'a Value)>) {
    let pinned = places.filter_map(|(library, place)| Some((library, place["pinned"].as_str()?)));
    for (library, text) in pinned.collect::<BTreeMap<_, _>>() {
        line(&format!("\n{library}: {text}"));
    }
}

fn service_row(service: &Value) -> Vec<String> {
    let failure = match (&service["refused"], &service["last_failure"]) {
        (Value::String(refused), _) => format!("new build refused: {refused}"),
        (_, failure) => text(failure),
    };
    vec![
        text(&service["name"]),
        text(&service["state"]),
        age(&service["since"]),
        text(&service["generation"]),
        text(&service["restarts"]),
        failure.replace('\n', " "),
    ]
}

fn plugins(answer: &Value) {
    let row = |plugin: &Value| {
        let services = plugin["services"].as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
        let state = match (plugin["loaded"].as_bool(), &plugin["refused"]) {
            (_, Value::String(_)) => "refused",
            (Some(true), _) => "loaded",
            _ => "file",
        };
        let what = if services.is_empty() { text(&plugin["file"]) } else { services.join(", ") };
        vec![
            text(&plugin["name"]),
            state.into(),
            text(&plugin["generation"]),
            text(&plugin["hash"]),
            text(&plugin["version"]),
            what,
        ]
    };
    let rows: Vec<_> = answer.as_array().into_iter().flatten().map(row).collect();
    print(&["PLUGIN", "STATE", "GEN", "HASH", "VERSION", "SERVICES OR FILE"], &rows);
    for plugin in answer.as_array().into_iter().flatten() {
        if let Value::String(reason) = &plugin["refused"] {
            line(&format!("\n{}: new build refused: {reason}", text(&plugin["name"])));
        }
    }
    rolled_back(answer.as_array().into_iter().flatten().map(|plugin| (text(&plugin["name"]), plugin)));
}

fn kept(answer: &Value) {
    let row = |build: &Value| {
        let state = match (build["runs"].as_bool(), &build["refused"]) {
            (Some(true), _) => "runs".to_string(),
            (_, Value::String(reason)) => format!("refused: {}", reason.replace('\n', " ")),
            _ => "kept".to_string(),
        };
        vec![text(&build["hash"]), age(&build["loaded_at"]), state]
    };
    let rows: Vec<_> = answer.as_array().into_iter().flatten().map(row).collect();
    print(&["HASH", "LOADED", "STATE"], &rows);
}

fn help(answer: &Value) {
    let row = |verb: &Value| vec![text(&verb["verb"]), text(&verb["of"]), text(&verb["doc"])];
    let rows: Vec<_> = answer.as_array().into_iter().flatten().map(row).collect();
    print(&["VERB", "OF", "WHAT IT DOES"], &rows);
}

fn reload(answer: &Value) {
    let side = |side: &Value| format!("{} ({})", text(&side["generation"]), text(&side["hash"]));
    line(&format!(
        "{}: generation {} replaces {} in {:.1} ms",
        text(&answer["plugin"]),
        side(&answer["to"]),
        side(&answer["from"]),
        answer["ms"].as_f64().unwrap_or(0.0)
    ));
    for service in answer["services"].as_array().into_iter().flatten() {
        line(&format!("  {}", text(service)));
    }
}

/// What a plugin answers: a list of objects as a table, everything else as it is.
fn generic(answer: &Value) {
    let objects = answer.as_array().filter(|list| !list.is_empty() && list.iter().all(Value::is_object));
    let Some(objects) = objects else {
        let short = answer.to_string();
        let fits = short.chars().count() <= table::width();
        let long = || serde_json::to_string_pretty(answer).unwrap_or_else(|_| answer.to_string());
        return line(&if fits { short } else { long() });
    };
    let head: Vec<&str> =
        objects[0].as_object().into_iter().flat_map(|object| object.keys().map(String::as_str)).collect();
    let row = |object: &Value| head.iter().map(|key| text(&object[*key])).collect();
    print(&head, &objects.iter().map(row).collect::<Vec<_>>());
}
