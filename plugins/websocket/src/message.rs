//! The browser's protocol: JSON messages in, JSON frames out.

use std::borrow::Cow;

use zephserver_plugin::{Code, Error};

use crate::{codec, scan};

/// A message of a client. Raw parts are passed on as they are.
#[derive(Debug)]
pub struct Message<'a> {
    /// The whole of it.
    pub text: &'a str,
    /// What it is; an error names what is wrong with it.
    pub kind: Result<Kind<'a>, Error>,
    /// The task's name, where something else is wrong.
    pub name: Option<Cow<'a, str>>,
    /// Its number, a string or a number as JSON.
    pub id: Option<&'a str>,
    /// A token, as JSON.
    pub session_id: Option<&'a str>,
}

/// What a message is.
#[derive(Debug)]
pub enum Kind<'a> {
    Hello {
        room: String,
    },
    Task {
        name: Cow<'a, str>,
        /// The same as JSON, without needless escapes.
        json: Cow<'a, str>,
        /// Where in the text its data is; empty where it has none.
        data: (u32, u32),
    },
}

/// Values by the keys that mean something here, as JSON, with where they begin.
#[derive(Default)]
struct Parts<'a> {
    /// Its presence makes the message a request, whatever its value.
    task: Option<&'a str>,
    data: (u32, u32),
    room: Option<&'a str>,
    id: Option<&'a str>,
    session_id: Option<&'a str>,
}

impl<'a> Message<'a> {
    /// Reads a message. What is wrong with it is in its `kind`, beside the parts that are there. Of a key
    /// that comes twice the last one counts, as everywhere.
    pub fn read(text: &'a str) -> Self {
        let mut parts = Parts::default();
        let slice = |(start, end): (usize, usize)| text.get(start..end).unwrap_or_default();
        let present = |value: &'a str| (value != "null").then_some(value);
        let mut take = |key: &[u8], value: (usize, usize)| match key {
            b"task" => parts.task = Some(slice(value)),
            b"data" => parts.data = (value.0 as u32, value.1 as u32),
            b"room" => parts.room = Some(slice(value)),
            b"id" => parts.id = present(slice(value)),
            b"session_id" => parts.session_id = present(slice(value)),
            _ => {}
        };
        let scanned = scan::object(text, |member| match member.is_escaped {
            false => take(member.key, member.value),
            true => take(&unescaped_key(member.key), member.value),
        });
        let fault = scanned.err().map(|fault| format!("byte {} of the message: {}", fault.at, fault.what));
        let is_id =
            |id: &&str| id.starts_with(|first: char| first == '"' || first == '-' || first.is_ascii_digit());
        let id = parts.id.filter(is_id);
        let bad_id = (id != parts.id).then(|| "`id` is a string or a number".to_string());
        if let Some(fault) = fault.or(bad_id) {
            let name = parts.task.and_then(content);
            return Self { text, kind: Err(Error::invalid(fault)), name, id, session_id: None };
        }
        let kind = match parts.task {
            Some(json) => content(json)
                .map(|name| {
                    let json = match name {
                        Cow::Borrowed(_) => json.into(),
                        Cow::Owned(ref name) => quoted(name).into(),
                    };
                    Kind::Task { name, json, data: parts.data }
                })
                .ok_or_else(|| Error::invalid("`task` is a text")),
            None => match parts.room.and_then(content).filter(|room| !room.is_empty()) {
                Some(room) => Ok(Kind::Hello { room: room.into_owned() }),
                None => Err(Error::invalid("a hello names a room: {\"room\": \"lobby\"}")),
            },
        };
        Self { text, kind, name: None, id, session_id: parts.session_id }
    }
}

/// The content of a JSON text; None: it is no text.
fn content(json: &str) -> Option<Cow<'_, str>> {
    let content = json.strip_prefix('"')?.strip_suffix('"')?;
    match content.contains('\\') {
        false => Some(content.into()),
        true => unescaped(content).map(Cow::Owned),
    }
}

/// A key may be written with escapes; one whose escapes mean nothing is none of ours.
#[cold]
fn unescaped_key(key: &[u8]) -> Vec<u8> {
    std::str::from_utf8(key).ok().and_then(unescaped).unwrap_or_default().into_bytes()
}

/// What stands between the quotes of a JSON text; None: an escape that means nothing.
fn unescaped(content: &str) -> Option<String> {
    serde_json::from_str(&format!("\"{content}\"")).ok()
}

/// Appends the frame of an answer, `{"task": …, "data": …, "id": …}`: with no id the same as a push. All
/// three are JSON.
#[inline]
pub fn write_answer(buffer: &mut Vec<u8>, task: &str, data: &[u8], id: Option<&str>) {
    let id_length = id.map_or(0, |id| 6 + id.len());
    let length = 8 + task.len() + 8 + data.len() + id_length + 1;
    codec::write_text_with(buffer, length, |buffer| {
        buffer.extend_from_slice(b"{\"task\":");
        buffer.extend_from_slice(task.as_bytes());
        buffer.extend_from_slice(b",\"data\":");
        buffer.extend_from_slice(data);
        if let Some(id) = id {
            buffer.extend_from_slice(b",\"id\":");
            buffer.extend_from_slice(id.as_bytes());
        }
        buffer.push(b'}');
    });
}

/// Appends the frame of an error: never with a key `task`, so that the original's client ignores it.
pub fn write_error(buffer: &mut Vec<u8>, error: &Error, name: Option<&str>, id: Option<&str>) {
    // A client need not know how services are called here.
    let code = if error.code == Code::Unsupported { Code::NotFound } else { error.code };
    let mut text = format!("{{\"msgtype\":\"error\",\"code\":\"{}\",\"text\":", code.name()).into_bytes();
    text.extend_from_slice(quoted(&error.text).as_bytes());
    if let Some(name) = name {
        text.extend_from_slice(b",\"name\":");
        text.extend_from_slice(quoted(name).as_bytes());
    }
    if let Some(id) = id {
        text.extend_from_slice(b",\"id\":");
        text.extend_from_slice(id.as_bytes());
    }
    text.push(b'}');
    codec::write_text(buffer, &text);
}

/// A text as JSON.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(write: impl Fn(&mut Vec<u8>)) -> String {
        let mut frame = Vec::new();
        write(&mut frame);
        assert_eq!(codec::frame_length(&frame), Some(frame.len()));
        let header = if frame[1] < 126 { 2 } else { 4 };
        String::from_utf8(frame[header..].to_vec()).unwrap()
    }

    #[test]
    fn raw_parts_pass_unchanged() {
        let text = r#"{"task":"T", "data": {"b": 1e400, "a":[ ]}, "id": 18446744073709551617}"#;
        let message = Message::read(text);
        let Ok(Kind::Task { json, data, .. }) = message.kind else { panic!() };
        let data = &text.as_bytes()[data.0 as usize..data.1 as usize];
        let expected = r#"{"task":"T","data":{"b": 1e400, "a":[ ]},"id":18446744073709551617}"#;
        assert_eq!(payload(|frame| write_answer(frame, &json, data, message.id)), expected);
    }

    #[test]
    fn names_are_texts_with_or_without_escapes() {
        let name = |text: &str| match Message::read(text).kind {
            Ok(Kind::Task { name, .. }) => name.into_owned(),
            other => panic!("{other:?}"),
        };
        assert_eq!(name(r#"{"task":"chat.say"}"#), "chat.say");
        assert_eq!(name(r#"{"task":"a","t\u0061sk":"b"}"#), "b");
        assert_eq!(name(r#"{"task":"a\u0062\"c"}"#), "ab\"c");
    }

    #[test]
    fn what_is_no_message_is_invalid() {
        for text in ["", "[]", "nul", "{", "\"x\"", r#"{"room":"a","id":true}"#, r#"{"task":"x","id":[1]}"#] {
            assert_eq!(Message::read(text).kind.unwrap_err().code, Code::Invalid, "{text}");
        }
        let kind = |text: &'static str| Message::read(text).kind;
        for text in [r#"{"task":3}"#, r#"{"task":null,"room":"a"}"#, r#"{"room":""}"#, r#"{"room":7}"#, "{}"]
        {
            assert_eq!(kind(text).unwrap_err().code, Code::Invalid, "{text}");
        }
        assert!(matches!(kind(r#"{"room":"a","id":null}"#), Ok(Kind::Hello { .. })));
        assert_eq!(Message::read(r#"{"task":3,"id":"x"}"#).id, Some("\"x\""), "also beside a fault");
    }

    #[test]
    fn errors_have_no_task() {
        let error = Error::not_found("no \"x\"");
        let expected = r#"{"msgtype":"error","code":"not_found","text":"no \"x\"","name":"x","id":1}"#;
        assert_eq!(payload(|frame| write_error(frame, &error, Some("x"), Some("1"))), expected);
    }
}
