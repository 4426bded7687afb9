//! What was, as people read it: the answers to `history` and `why`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::show::{age, line, text};
use crate::table;

/// The first millisecond of the year 10000, which has no date.
const NO_DATE: u64 = 253_402_300_800_000;

/// Prints entries, the newest last. Nothing is cut: what stands at the end says why.
pub fn history(answer: &Value) {
    match answer.as_array().map(Vec::as_slice) {
        None | Some([]) => line("nothing has happened yet"),
        Some(entries) => {
            let row = |entry: &Value| {
                let [name, what] = ["name", "what"].map(|key| text(&entry[key]));
                vec![moment(&entry["at"]), name, words(&what), build(entry), cause(entry)]
            };
            print(&["TIME (UTC)", "NAME", "WHAT", "GENERATION", "CAUSE"], entries.iter().map(row).collect());
        }
    }
}

/// Prints where a service stands, and how it came to that.
pub fn why(answer: &Value) {
    line(&format!(
        "{}: {} since {}, generation {}",
        text(&answer["service"]),
        text(&answer["state"]),
        age(&answer["since"]),
        build(answer)
    ));
    if let Some(at) = answer["retry_at"].as_u64() {
        line(&format!("  next try in {} s", until(at).as_secs()));
    }
    let waits_for: Vec<String> = answer["waits_for"].as_array().into_iter().flatten().map(text).collect();
    if !waits_for.is_empty() {
        line(&format!("  waits for {}", waits_for.join(", ")));
    }
    let failure = &answer["last_failure"];
    if failure.is_object() {
        line(&format!("  last failure, {}: {}", moment(&failure["at"]), cause(failure)));
    }
    let refused = &answer["refused"];
    if refused.is_object() {
        line(&format!("  new build refused, {}: {}", moment(&refused["at"]), cause(refused)));
    }
    let entries = answer["entries"].as_array().into_iter().flatten();
    let row =
        |entry: &Value| vec![moment(&entry["at"]), words(&text(&entry["what"])), build(entry), cause(entry)];
    line("");
    print(&["TIME (UTC)", "WHAT", "GENERATION", "CAUSE"], entries.map(row).collect());
}

fn print(head: &[&str], rows: Vec<Vec<String>>) {
    table::lines(head, &rows, usize::MAX).iter().for_each(|row| line(row));
}

/// `left_behind` as people write it.
fn words(what: &str) -> String {
    what.replace('_', " ")
}

/// `6 (1a2b3c4d5e6f)`
fn build(entry: &Value) -> String {
    match (&entry["generation"], &entry["hash"]) {
        (generation, Value::Null) => text(generation),
        // A file that was refused is no generation.
        (Value::Null, hash) => format!("({})", text(hash)),
        (generation, hash) => format!("{} ({})", text(generation), text(hash)),
    }
}

/// Why, in one line; of a wait, until when.
fn cause(entry: &Value) -> String {
    match entry["retry_at"].is_u64() {
        true => format!("until {}", moment(&entry["retry_at"])),
        false => text(&entry["cause"]).replace('\n', " "),
    }
}

fn until(milliseconds: u64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::from_millis(milliseconds).saturating_sub(now)
}

/// `2026-11-21 12:05:40`, in UTC.
pub fn moment(milliseconds: &Value) -> String {
    let Some(at) = milliseconds.as_u64().filter(|at| *at < NO_DATE) else { return "-".into() };
    let at = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(at));
    at.to_string().replace('T', " ").replace('Z', "")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn moments_are_dates_in_utc() {
        for (at, shown) in [
            (json!(0), "1970-01-01 00:00:00"),
            (json!(1_709_208_000_999_u64), "2024-02-29 12:00:00"),
            (json!(NO_DATE - 1), "9999-12-31 23:59:59"),
            (json!(NO_DATE), "-"),
            (json!(u64::MAX), "-"),
            (Value::Null, "-"),
        ] {
            assert_eq!(moment(&at), shown);
        }
    }

    #[test]
    fn entries_as_people_read_them() {
        assert_eq!(words("left_behind"), "left behind");
        assert_eq!(build(&json!({"generation": 6, "hash": "1a2b"})), "6 (1a2b)");
        assert_eq!(build(&json!({"hash": "1a2b"})), "(1a2b)");
        assert_eq!(build(&json!({})), "-");
        assert_eq!(cause(&json!({"cause": "a\nb"})), "a b");
        assert_eq!(cause(&json!({"retry_at": 0})), "until 1970-01-01 00:00:00");
        assert_eq!(cause(&json!({})), "-");
    }
}
