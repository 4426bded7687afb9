//! Figures, and how they are shown.

use serde_json::{Value, json};

/// What was measured.
pub struct Figure {
    /// What it is.
    pub name: String,
    /// To be held against the limit.
    pub value: f64,
    /// Of value and limit.
    pub unit: &'static str,
    /// The highest value that is in order; None: it is told, and nothing is asked of it.
    pub limit: Option<f64>,
    /// Microseconds of CPU time for each message, of the raw peer.
    pub raw: Option<f64>,
    /// Microseconds of CPU time for each message, of the server.
    pub ours: Option<f64>,
}

/// Which columns a table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Columns {
    /// Value and limit.
    Plain,
    /// Raw and ours as well: microseconds of CPU time for each message.
    Compared,
}

/// The first line of the table.
pub fn head(columns: Columns) -> String {
    let compared = match columns {
        Columns::Plain => String::new(),
        Columns::Compared => format!(" {:>9} {:>9}", "RAW µs", "OURS µs"),
    };
    format!("{:<50}{compared} {:>9} {:>9}", "FIGURE", "VALUE", "LIMIT")
}

impl Figure {
    /// One that is not compared with anything.
    pub fn plain(name: impl Into<String>, value: f64, unit: &'static str, limit: Option<f64>) -> Self {
        Self { name: name.into(), value, unit, limit, raw: None, ours: None }
    }

    /// False: it is above its limit.
    pub fn is_ok(&self) -> bool {
        self.limit.is_none_or(|limit| self.value <= limit)
    }

    /// Its line of the table.
    pub fn row(&self, columns: Columns) -> String {
        let Self { name, value, unit, .. } = self;
        let time = |time: Option<f64>| time.map_or_else(|| "-".to_string(), |time| format!("{time:.3}"));
        let compared = match columns {
            Columns::Plain => String::new(),
            Columns::Compared => format!(" {:>9} {:>9}", time(self.raw), time(self.ours)),
        };
        let limit = self.limit.map_or_else(|| "-".to_string(), |limit| format!("{limit:.2}"));
        let mark = if self.is_ok() { "" } else { "  missed" };
        format!("{name:<50}{compared} {value:>9.2} {limit:>9} {unit}{mark}").trim_end().into()
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

/// The lowest of sorted values that this share of them is not above: 0.99 is the 99th percentile.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// A number for people: 10,000.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
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
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        let of = |share| percentile(&values, share);
        assert_eq!((of(0.0), of(0.5), of(0.99), of(1.0)), (1.0, 100.0, 198.0, 200.0));
        assert_eq!(percentile(&[7.0], 0.5), 7.0);
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_missed_limit_is_told() {
        let figure = |value| Figure { raw: Some(4.0), ..Figure::plain("n", value, "ratio", Some(1.1)) };
        let row = |value| figure(value).row(Columns::Compared);
        assert!(!row(1.1).contains("missed") && row(1.2).ends_with("1.10 ratio  missed"));
        let json = figure(1.2).json();
        assert_eq!((&json["ok"], &json["raw"], &json["ours"]), (&json!(false), &json!(4.0), &Value::Null));
        assert!(!Figure::plain("n", f64::NAN, "ms", Some(1.0)).is_ok(), "nothing was measured");
    }

    #[test]
    fn without_a_limit_nothing_is_missed() {
        let figure = Figure::plain("n", 1e9, "ms", None);
        assert!(figure.row(Columns::Plain).ends_with("         - ms"));
        assert_eq!((&figure.json()["ok"], &figure.json()["limit"]), (&json!(true), &Value::Null));
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
