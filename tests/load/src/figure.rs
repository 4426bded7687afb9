//! Figures, and how they are shown.

use serde_json::{Value, json};

/// What was measured.
pub struct Figure {
    /// What it is.
    pub name: &'static str,
    /// To be held against the limit.
    pub value: f64,
    /// Of value and limit.
    pub unit: &'static str,
    /// The highest value that is in order.
    pub limit: f64,
    /// Microseconds of CPU time for each message, of the raw peer.
    pub raw: Option<f64>,
    /// Microseconds of CPU time for each message, of the server.
    pub ours: Option<f64>,
}

/// The first line of the table; raw and ours are microseconds of CPU time for each message.
pub fn head() -> String {
    format!("{:<50} {:>9} {:>9} {:>9} {:>9}", "FIGURE", "RAW µs", "OURS µs", "VALUE", "LIMIT")
}

impl Figure {
    fn is_ok(&self) -> bool {
        self.value <= self.limit
    }

    /// Its line of the table.
    pub fn row(&self) -> String {
        let Self { name, value, unit, limit, .. } = self;
        let time = |time: Option<f64>| time.map_or_else(|| "-".to_string(), |time| format!("{time:.3}"));
        let (raw, ours) = (time(self.raw), time(self.ours));
        let mark = if self.is_ok() { "" } else { "  missed" };
        format!("{name:<50} {raw:>9} {ours:>9} {value:>9.2} {limit:>9.2} {unit}{mark}")
    }

    /// Its object in `figures`.
    pub fn json(&self) -> Value {
        json!({"name": self.name, "value": self.value, "unit": self.unit, "limit": self.limit,
               "ok": self.is_ok(), "raw": self.raw, "ours": self.ours})
    }
}

/// The value in the middle; of an even number of values, the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 100.0]), 3.0);
        assert_eq!(median(vec![5.0]), 5.0);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn a_missed_limit_is_told() {
        let figure =
            |value| Figure { name: "n", value, unit: "ratio", limit: 1.1, raw: Some(4.0), ours: None };
        assert!(!figure(1.1).row().contains("missed") && figure(1.2).row().ends_with("1.10 ratio  missed"));
        let json = figure(1.2).json();
        assert_eq!((&json["ok"], &json["raw"], &json["ours"]), (&json!(false), &json!(4.0), &Value::Null));
    }
}
