//! What is wrong in a settings file: line, reason, what was probably meant.

use std::fmt;
use std::path::{Path, PathBuf};

use super::tree::Node;

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Counted from 1; 0: the file as a whole.
    pub line: usize,
    /// What is wrong.
    pub text: String,
    /// What to write instead.
    pub hint: Option<String>,
}

impl Fault {
    pub(super) fn wrong_type(line: usize, key: &str, expected: &str, found: &Node) -> Self {
        Self { line, text: format!("{key} is {}, expected {expected}", found.kind()), hint: None }
    }

    pub(super) fn unknown<'a>(
        line: usize,
        shown: &str,
        key: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        Self { line, text: format!("unknown key {shown}"), hint: nearest(key, known) }
    }
}

/// All faults of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    file: PathBuf,
    faults: Vec<Fault>,
}

impl Faults {
    pub(crate) fn new(file: &Path, faults: Vec<Fault>) -> Self {
        Self { file: file.to_path_buf(), faults }
    }

    pub(crate) fn one(file: &Path, fault: Fault) -> Self {
        Self::new(file, vec![fault])
    }
}

impl std::error::Error for Faults {}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, fault) in self.faults.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            write!(f, "{}", self.file.display())?;
            if fault.line > 0 {
                write!(f, ":{}", fault.line)?;
            }
            write!(f, ": {}", fault.text)?;
            if let Some(hint) = &fault.hint {
                write!(f, "\n  {hint}")?;
            }
        }
        Ok(())
    }
}

/// "did you mean …?", where a known name is near enough.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let limit = (name.chars().count() / 3).max(2);
    let by_distance = known.into_iter().map(|known| (distance(name, known), known));
    let (_, best) = by_distance.filter(|(distance, _)| *distance <= limit).min()?;
    Some(format!("did you mean `{best}`?"))
}

/// Levenshtein's distance, letters of either case being the same.
fn distance(a: &str, b: &str) -> usize {
    let lower = |text: &str| text.to_lowercase().chars().collect::<Vec<_>>();
    let (a, b) = (lower(a), lower(b));
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(x != y)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}
