//! The settings file as written: values with the lines where they stand.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Fault, Faults};

/// A value and its line, counted from 1.
#[derive(Clone, Debug)]
pub struct Node {
    pub line: usize,
    pub value: Written,
}

/// A value as TOML knows it.
#[derive(Clone, Debug)]
pub enum Written {
    Text(String),
    Integer(i64),
    Number(f64),
    Boolean(bool),
    Time(String),
    List(Vec<Node>),
    Table(Table),
}

pub type Table = BTreeMap<String, Node>;

impl Node {
    /// What a person would call the type.
    pub fn kind(&self) -> &'static str {
        match self.value {
            Written::Text(_) => "a text",
            Written::Integer(_) => "a whole number",
            Written::Number(_) => "a number",
            Written::Boolean(_) => "true or false",
            Written::Time(_) => "a time",
            Written::List(_) => "a list",
            Written::Table(_) => "a table",
        }
    }

    pub fn to_json(&self) -> Value {
        match &self.value {
            Written::Text(text) | Written::Time(text) => Value::String(text.clone()),
            Written::Integer(number) => Value::from(*number),
            Written::Number(number) => Value::from(*number),
            Written::Boolean(yes) => Value::Bool(*yes),
            Written::List(list) => list.iter().map(Node::to_json).collect(),
            Written::Table(table) => Value::Object(
                table.iter().map(|(key, node)| (key.clone(), node.to_json())).collect::<Map<_, _>>(),
            ),
        }
    }
}

/// Parses a settings file.
pub fn parse(file: &std::path::Path, text: &str) -> Result<Table, Faults> {
    let lines = Lines::of(text);
    DeTable::parse(text).map(|table| lines.table(table.into_inner())).map_err(|error| {
        let line = error.span().map_or(0, |span| lines.at(span.start));
        Faults::one(file, Fault { line, text: format!("not TOML: {}", error.message()), hint: None })
    })
}

/// Where each line of a text begins.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self(std::iter::once(0).chain(ends).collect())
    }

    fn at(&self, offset: usize) -> usize {
        self.0.partition_point(|start| *start <= offset)
    }

    fn table(&self, table: DeTable<'_>) -> Table {
        table
            .into_iter()
            .map(|(key, value)| {
                // A key says better than its value where something stands: a table's value may begin anywhere.
                let line = self.at(key.span().start);
                (key.into_inner().into_owned(), Node { line, ..self.node(value) })
            })
            .collect()
    }

    fn node(&self, value: Spanned<DeValue<'_>>) -> Node {
        let line = self.at(value.span().start);
        let value = match value.into_inner() {
            DeValue::String(text) => Written::Text(text.into_owned()),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| Written::Text(number.as_str().into()), Written::Integer),
            DeValue::Float(number) => number
                .as_str()
                .parse()
                .map_or_else(|_| Written::Text(number.as_str().into()), Written::Number),
            DeValue::Boolean(yes) => Written::Boolean(yes),
            DeValue::Datetime(time) => Written::Time(time.to_string()),
            DeValue::Array(list) => Written::List(list.into_iter().map(|value| self.node(value)).collect()),
            DeValue::Table(table) => Written::Table(self.table(table)),
        };
        Node { line, value }
    }
}
