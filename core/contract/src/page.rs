//! Lists for people: the words of a command-line verb that shows one, and which part of it they mean.

use serde::{Deserialize, Serialize};

use crate::code::Error;

/// Entries of a page where nobody says how many.
pub const USUAL: usize = 100;
/// Entries of a page at most.
pub const MOST: usize = 10_000;

/// The words `[NAME] [--limit N] [--offset N]`, in any order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words {
    /// What the list is of, its words with one blank between them. None: nothing was named.
    pub name: Option<String>,
    /// Which part of it.
    pub page: Page,
}

/// A part of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// How many entries come before it.
    pub offset: usize,
    /// How many entries it has at most.
    pub limit: usize,
}

/// What is said beside a page, so that nobody takes it for the whole list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// Entries of the whole list.
    pub total: usize,
    /// The offset of the next page; None: nothing comes after this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_offset: Option<usize>,
}

impl Words {
    /// Reads the words of a verb: the payload of its method. Without a payload there are none.
    pub fn read(words: Option<Vec<String>>) -> Result<Self, Error> {
        let mut words = words.unwrap_or_default().into_iter();
        let mut name: Vec<String> = Vec::new();
        let mut page = Page { offset: 0, limit: USUAL };
        while let Some(word) = words.next() {
            match word.as_str() {
                "--limit" => page.limit = number(&word, words.next(), 1, MOST)?,
                "--offset" => page.offset = number(&word, words.next(), 0, usize::MAX)?,
                option if option.starts_with("--") => {
                    let text = format!("`{option}` is not known; it is `--limit N` or `--offset N`");
                    return Err(Error::invalid(text));
                }
                _ => name.push(word),
            }
        }
        Ok(Self { name: (!name.is_empty()).then(|| name.join(" ")), page })
    }
}

fn number(option: &str, word: Option<String>, least: usize, most: usize) -> Result<usize, Error> {
    let number: Option<usize> = word.as_deref().and_then(|word| word.parse().ok());
    number.filter(|number| (least..=most).contains(number)).ok_or_else(|| {
        let word = word.unwrap_or_default();
        Error::invalid(format!("`{option} {word}`: a number from {least} to {most} follows `{option}`"))
    })
}

impl Page {
    /// The entries of a list that are on this page.
    pub fn of<L: IntoIterator>(self, list: L) -> impl Iterator<Item = L::Item> {
        list.into_iter().skip(self.offset).take(self.limit)
    }

    /// What is to be said beside it, where the list has so many entries.
    pub fn shown(self, total: usize) -> Shown {
        let next = self.offset.saturating_add(self.limit);
        Shown { total, next_offset: (next < total).then_some(next) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &str) -> Result<Words, Error> {
        Words::read(Some(words.split_whitespace().map(String::from).collect()))
    }

    #[test]
    fn names_and_options_come_in_any_order() {
        let usual = Page { offset: 0, limit: USUAL };
        assert_eq!(Words::read(None).unwrap(), Words { name: None, page: usual });
        assert_eq!(read("lobby").unwrap(), Words { name: Some("lobby".into()), page: usual });
        let page = Page { offset: 5, limit: 2 };
        for words in ["a b --limit 2 --offset 5", "--offset 5 a --limit 2 b"] {
            assert_eq!(read(words).unwrap(), Words { name: Some("a b".into()), page }, "{words}");
        }
    }

    #[test]
    fn words_that_make_no_sense_are_named() {
        for (words, part) in [
            ("--limit 0", "`--limit 0`: a number from 1 to 10000"),
            ("--limit 10001", "1 to 10000"),
            ("--limit", "follows `--limit`"),
            ("--offset -1", "follows `--offset`"),
            ("--limt 5", "`--limt` is not known"),
        ] {
            let error = read(words).unwrap_err();
            assert!(error.text.contains(part), "{words}: {error}");
        }
    }

    #[test]
    fn a_page_says_what_comes_after_it() {
        let page = |offset, limit| {
            let page = Page { offset, limit };
            (page.of(0..5).collect::<Vec<_>>(), page.shown(5).next_offset)
        };
        assert_eq!(page(0, 2), (vec![0, 1], Some(2)));
        assert_eq!(page(3, 2), (vec![3, 4], None));
        assert_eq!(page(4, 2), (vec![4], None));
        assert_eq!(page(9, 2), (vec![], None));
        assert_eq!(page(1, usize::MAX), (vec![1, 2, 3, 4], None));
        let whole = serde_json::to_string(&Page { offset: 0, limit: 5 }.shown(5)).unwrap();
        assert_eq!(whole, r#"{"total":5}"#);
    }
}
