//! Answers as people read them.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::{nodes, past, table};

/// Prints lines; whoever closed the pipe wants no more.
pub fn line(text: &str) {
    let shown = text.split('\n').map(visible).collect::<Vec<_>>().join("\n");
    raw(&shown);
}

/// The same, to the letter.
pub fn raw(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Says what is wrong.
pub fn error(text: &str) {
    let shown = text.split('\n').map(visible).collect::<Vec<_>>().join("\n");
    let _ = writeln!(std::io::stderr(), "zephserver: {shown}");
}

/// Prints the answer to a verb.
pub fn answer(verb: &str, answer: &Value) {
    match verb {
        "status" => status(answer),
        "services" => services(answer),
        "plugins" => plugins(answer),
        "history" => past::history(answer),
        "why" => past::why(answer),
        "help" => help(answer),
        "cluster" => nodes::cluster(answer),
        "events" => nodes::events(answer),
        "say" => line(&format!("{}: said to {} nodes", text(&answer["event"]), answer["nodes"])),
        "reload" => reload(answer),
        "rollback" if answer.is_array() => builds(answer),
        "rollback" => {
            reload(answer);
            for text in [&answer["pinned"], &answer["warning"]].into_iter().filter_map(Value::as_str) {
                line(text);
            }
        }
        "apply" => apply(answer),
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

pub fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub fn print(head: &[&str], rows: &[Vec<String>]) {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| visible(cell)).collect()).collect();
    table::lines(head, &rows, table::width()).iter().for_each(|row| line(row));
}

/// Names and texts may come from clients: what would move the cursor, or do worse, is shown and not obeyed.
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter.is_control() {
            true => shown.extend(letter.escape_default()),
            false => shown.push(letter),
        }
    }
    shown
}

pub fn age(seconds: &Value) -> String {
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
        "plugin copies {} of {}{}; pool {} threads, {} stuck\ncalls: {} pending, {} slow, {} timed out",
        generations["copies"],
        generations["limit"],
        kept(generations),
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

/// What old copies keep, where that is known.
fn kept(generations: &Value) -> String {
    let held = generations["held"].as_array().map_or(0, Vec::len);
    let keys = generations["keys_in_use"].as_u64().map(|keys| format!(", {keys} of 1024 thread keys"));
    let held = (held > 0).then(|| format!(", {held} held by threads"));
    [keys, held].into_iter().flatten().collect()
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
    let waits_for = service["waits_for"].as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
    let failure = match (&service["refused"], &service["settings_refused"], &service["waiting_build"]) {
        _ if !waits_for.is_empty() => format!("waits for {}", waits_for.join(", ")),
        (Value::String(refused), ..) => format!("new build refused: {refused}"),
        (_, Value::String(refused), _) => format!("new settings refused: {refused}"),
        (.., Value::String(waiting)) => format!("new build {waiting}"),
        _ => text(&service["last_failure"]),
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
        let state = match (plugin["loaded"].as_bool(), &plugin["refused"], &plugin["waiting_build"]) {
            (_, Value::String(_), _) => "refused",
            (_, _, Value::String(_)) => "waits",
            (Some(true), ..) => "loaded",
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
        if let Value::String(waiting) = &plugin["waiting_build"] {
            line(&format!("\n{}: new build {waiting}", text(&plugin["name"])));
        }
    }
    rolled_back(answer.as_array().into_iter().flatten().map(|plugin| (text(&plugin["name"]), plugin)));
}

/// The builds that are kept of a library.
fn builds(answer: &Value) {
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

fn apply(answer: &Value) {
    let list = |key: &str| answer[key].as_array().into_iter().flatten();
    let is_plan = answer["applied"] == false;
    if list("changes").next().is_none() {
        line("nothing has changed");
    } else if is_plan {
        line("nothing is touched yet; `zephserver apply` does this:");
    }
    for change in list("changes") {
        line(&format!("{}: {}", text(&change["name"]), what_becomes(change)));
        for key in change["keys"].as_array().into_iter().flatten() {
            line(&format!("  {}: {} → {}", text(&key["key"]), key["from"], key["to"]));
        }
    }
    list("remarks").for_each(|remark| line(&text(remark)));
}

fn what_becomes(change: &Value) -> String {
    let what = match change["change"].as_str() {
        Some("added") => "added to SERVICE_LIST",
        Some("removed") => "removed from SERVICE_LIST",
        Some("options") => "options",
        _ => "settings",
    };
    match (&change["outcome"], change["effect"].as_str()) {
        (Value::String(error), _) if error != "done" => format!("{what}: failed: {error}"),
        (_, Some("next start")) => format!("{what}: they count at the next start only"),
        (_, effect) => format!("{what}: {}", effect.unwrap_or("-")),
    }
}

/// True where a change could not be made.
pub fn has_failed(answer: &Value) -> bool {
    let outcomes = answer["changes"].as_array().into_iter().flatten().map(|change| &change["outcome"]);
    outcomes.filter_map(Value::as_str).any(|outcome| outcome != "done")
}

/// What a plugin answers: a list of objects, alone or with its page, as a table; everything else as it is.
fn generic(answer: &Value) {
    let Some((above, objects)) = tabular(answer) else {
        let short = answer.to_string();
        let fits = short.chars().count() <= table::width();
        let long = || serde_json::to_string_pretty(answer).unwrap_or_else(|_| answer.to_string());
        return line(&if fits { short } else { long() });
    };
    if !above.is_empty() {
        line(&above.replace('\n', " "));
    }
    let head: Vec<&str> =
        objects[0].as_object().into_iter().flat_map(|object| object.keys().map(String::as_str)).collect();
    let row = |object: &Value| head.iter().map(|key| text(&object[*key])).collect();
    print(&head, &objects.iter().map(row).collect::<Vec<_>>());
}

/// The objects of a table, and what stands above it: the other keys of an object whose only list it is.
fn tabular(answer: &Value) -> Option<(String, &[Value])> {
    let Value::Object(object) = answer else { return Some((String::new(), objects(answer)?)) };
    let (deep, plain): (Vec<_>, Vec<_>) =
        object.iter().partition(|(_, value)| value.is_array() || value.is_object());
    let &[(_, list)] = deep.as_slice() else { return None };
    let above = plain.iter().map(|(key, value)| format!("{key}: {}", text(value)));
    Some((above.collect::<Vec<_>>().join(", "), objects(list)?))
}

/// A list of objects that is not empty.
fn objects(value: &Value) -> Option<&[Value]> {
    let list = value.as_array()?.as_slice();
    (!list.is_empty() && list.iter().all(Value::is_object)).then_some(list)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_of_objects_are_tables() {
        let rows = [json!({"room": "a", "peers": 1})];
        let shown = |answer: Value| tabular(&answer).map(|(above, list)| (above, list.to_vec()));
        assert_eq!(shown(json!(rows)), Some((String::new(), rows.to_vec())));
        let page = json!({"rooms": rows, "total": 2, "next_offset": 1, "of": null});
        assert_eq!(shown(page), Some(("next_offset: 1, of: -, total: 2".into(), rows.to_vec())));
        for other in [
            json!([]),
            json!([1]),
            json!({}),
            json!({"total": 0, "rooms": []}),
            json!({"rooms": rows, "more": rows}),
            json!({"rooms": rows, "limits": {"a": 1}}),
            json!({"rooms": ["a"]}),
            json!(5),
        ] {
            assert_eq!(shown(other.clone()), None, "{other}");
        }
    }

    #[test]
    fn names_do_not_steer_the_terminal() {
        assert_eq!(visible("a\u{1b}[2J\nb\u{9b}ü"), "a\\u{1b}[2J\\nb\\u{9b}ü");
    }
}
