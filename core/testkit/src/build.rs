//! Libraries as files: to be dropped in, changed, and broken.

use std::path::Path;

/// The bytes of a library.
#[derive(Clone)]
pub struct Build(Vec<u8>);

impl Build {
    /// The library that cargo built.
    pub fn of(library: &str) -> Self {
        let file = crate::built(&format!("lib{library}.so"));
        Self(std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())))
    }

    /// Writes other words behind a mark in the file, up to the next `|`, padded with blanks: another build.
    pub fn patched(mut self, mark: &str, words: &str) -> Self {
        let at = self.0.windows(mark.len()).position(|window| window == mark.as_bytes());
        let start = at.unwrap_or_else(|| panic!("no {mark:?} in the library")) + mark.len();
        let room = self.0[start..].iter().take_while(|byte| **byte != b'|').count();
        assert!(words.len() <= room, "{words:?} is longer than the {room} bytes that are there");
        self.0[start..start + room].fill(b' ');
        self.0[start..start + words.len()].copy_from_slice(words.as_bytes());
        self
    }

    /// Replaces every occurrence of a text by another of the same length: another build.
    pub fn replaced(mut self, text: &str, other: &str) -> Self {
        assert_eq!(text.len(), other.len(), "a library's parts do not move");
        let places: Vec<usize> = (0..self.0.len().saturating_sub(text.len()))
            .filter(|at| self.0[*at..].starts_with(text.as_bytes()))
            .collect();
        assert!(!places.is_empty(), "no {text:?} in the library");
        for at in places {
            self.0[at..at + text.len()].copy_from_slice(other.as_bytes());
        }
        self
    }

    /// Its first bytes.
    pub fn truncated(mut self, length: usize) -> Self {
        self.0.truncate(length);
        self
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True without any byte.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Writes it beside `file` and renames it into place, as linkers and `mv` do.
    pub fn put(&self, file: &Path) {
        let beside = file.with_extension("new");
        std::fs::write(&beside, &self.0).expect("the test's own folder can be written");
        std::fs::rename(&beside, file).expect("the test's own folder can be written");
    }

    /// Writes it over `file`, as `cp` does.
    pub fn copy_over(&self, file: &Path) {
        std::fs::write(file, &self.0).expect("the test's own folder can be written");
    }
}
