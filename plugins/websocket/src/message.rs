//! The browser's protocol: JSON messages in, JSON frames out.

use serde::Deserialize;
use serde_json::value::RawValue;
use zephserver_plugin::{Code, Error};

use crate::codec;

/// How deep a message may be nested, itself included.
const DEPTH: usize = 128;

/// A message of a client. Raw parts are passed on as they are.
#[derive(Debug)]
pub struct Message<'a> {
    /// The whole of it.
    pub text: &'a str,
    /// What it is; an error names what is wrong with it.
    pub kind: Result<Kind<'a>, Error>,
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
        name: std::borrow::Cow<'a, str>,
        /// Where in the text its data is; empty where it has none.
        data: (u32, u32),
    },
}

#[derive(Deserialize)]
struct Parts<'a> {
    /// Its presence makes the message a request, whatever its value.
    #[serde(borrow, default, deserialize_with = "present")]
    task: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    room: Option<&'a RawValue>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    session_id: Option<&'a RawValue>,
}

/// A value that is there, `null` included.
fn present<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(value).map(Some)
}

impl<'a> Message<'a> {
    /// Reads a message. What is wrong with a part of it is in its `kind`, beside the other parts.
    pub fn read(text: &'a str) -> Result<Self, Error> {
        if !text.trim_start().starts_with('{') {
            return Err(Error::invalid("a message is a JSON object"));
        }
        if is_too_deep(text.as_bytes()) {
            return Err(Error::invalid(format!("a message is nested {DEPTH} deep at most")));
        }
        let parts: Parts<'a> = serde_json::from_str(text)
            .map_err(|error| Error::invalid(format!("the message is no JSON object: {error}")))?;
        let id = match parts.id.map(RawValue::get) {
            Some(id)
                if !id.starts_with(|first: char| first == '"' || first == '-' || first.is_ascii_digit()) =>
            {
                return Err(Error::invalid("`id` is a string or a number"));
            }
            id => id,
        };
        let kind = match parts.task {
            Some(task) => name(task).map(|name| Kind::Task { name, data: place(text, parts.data) }),
            None => room(parts.room).map(|room| Kind::Hello { room }),
        };
        Ok(Self { text, kind, id, session_id: parts.session_id.map(RawValue::get) })
    }
}

/// Where in a text a part of it is.
fn place(text: &str, part: Option<&RawValue>) -> (u32, u32) {
    let Some(part) = part.map(RawValue::get) else { return (0, 0) };
    // Borrowed from the text, which is shorter than 4 GiB.
    let start = part.as_ptr() as usize - text.as_ptr() as usize;
    (start as u32, (start + part.len()) as u32)
}

fn name(task: &RawValue) -> Result<std::borrow::Cow<'_, str>, Error> {
    match plain(task.get()) {
        Some(plain) => Ok(plain.into()),
        None => serde_json::from_str(task.get())
            .map(std::borrow::Cow::Owned)
            .map_err(|_| Error::invalid("`task` is a text")),
    }
}

fn room(room: Option<&RawValue>) -> Result<String, Error> {
    let name = room.and_then(|room| serde_json::from_str::<String>(room.get()).ok());
    let name = name.filter(|name| !name.is_empty());
    name.ok_or_else(|| Error::invalid("a hello names a room: {\"room\": \"lobby\"}"))
}

/// The content of a JSON text without escapes.
fn plain(json: &str) -> Option<&str> {
    let content = json.strip_prefix('"')?.strip_suffix('"')?;
    (!content.contains('\\')).then_some(content)
}

/// Brackets inside of texts do not count.
fn is_too_deep(text: &[u8]) -> bool {
    let opens = |byte: &u8| matches!(byte, b'{' | b'[');
    // Most messages have not even that many brackets.
    if text.len() <= DEPTH || text.iter().filter(|byte| opens(byte)).count() <= DEPTH {
        return false;
    }
    let (mut depth, mut in_text, mut is_escaped) = (0usize, false, false);
    for byte in text {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_text => is_escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => depth += 1,
            b'}' | b']' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH {
            return true;
        }
    }
    false
}

/// Appends the frame of an answer, `{"task": …, "data": …, "id": …}`: with no id the same as a push.
pub fn write_answer(buffer: &mut Vec<u8>, task: &str, data: &[u8], id: Option<&str>) {
    let quoted = quoted(task);
    let id_length = id.map_or(0, |id| id.len() + 6);
    let length = 8 + quoted.len() + 8 + data.len() + id_length + 1;
    codec::write_text_with(buffer, length, |buffer| {
        buffer.extend_from_slice(b"{\"task\":");
        buffer.extend_from_slice(quoted.as_bytes());
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
    let mut text =
        format!("{{\"msgtype\":\"error\",\"code\":\"{}\",\"text\":{}", code.name(), quoted(&error.text));
    for (key, value) in [("name", name.map(quoted).as_deref()), ("id", id)] {
        if let Some(value) = value {
            text.push_str(&format!(",\"{key}\":{value}"));
        }
    }
    text.push('}');
    codec::write_text(buffer, text.as_bytes());
}

/// A text as JSON.
fn quoted(text: &str) -> String {
    let is_plain = |byte: u8| byte >= 0x20 && byte != b'"' && byte != b'\\';
    if text.bytes().all(is_plain) {
        let mut quoted = String::with_capacity(text.len() + 2);
        quoted.push('"');
        quoted.push_str(text);
        quoted.push('"');
        return quoted;
    }
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
        let message = Message::read(text).unwrap();
        let Ok(Kind::Task { name, data }) = message.kind else { panic!() };
        let data = &text.as_bytes()[data.0 as usize..data.1 as usize];
        let expected = r#"{"task":"T","data":{"b": 1e400, "a":[ ]},"id":18446744073709551617}"#;
        assert_eq!(payload(|frame| write_answer(frame, &name, data, message.id)), expected);
    }

    #[test]
    fn names_are_texts_with_or_without_escapes() {
        let name = |text: &str| match Message::read(text).unwrap().kind {
            Ok(Kind::Task { name, .. }) => name.into_owned(),
            other => panic!("{other:?}"),
        };
        assert_eq!(name(r#"{"task":"chat.say"}"#), "chat.say");
        assert_eq!(name(r#"{"task":"a\u0062\"c"}"#), "ab\"c");
        assert_eq!(
            payload(|frame| write_answer(frame, "a\"b\n", b"1", None)),
            r#"{"task":"a\"b\n","data":1}"#
        );
    }

    #[test]
    fn what_is_no_message_is_invalid() {
        for text in
            ["", "[]", "nul", "{", "\"x\"", r#"{"room":"a","id":true}"#, r#"{"a":1,"task":"x","task":"y"}"#]
        {
            assert_eq!(Message::read(text).unwrap_err().code, Code::Invalid, "{text}");
        }
        let kind = |text: &'static str| Message::read(text).unwrap().kind;
        for text in [r#"{"task":3}"#, r#"{"task":null,"room":"a"}"#, r#"{"room":""}"#, r#"{"room":7}"#, "{}"]
        {
            assert_eq!(kind(text).unwrap_err().code, Code::Invalid, "{text}");
        }
        assert!(matches!(kind(r#"{"room":"a","id":null}"#), Ok(Kind::Hello { .. })));
        assert_eq!(Message::read(r#"{"task":3,"id":"x"}"#).unwrap().id, Some("\"x\""), "also beside a fault");
    }

    #[test]
    fn depth_is_bounded_and_texts_do_not_count() {
        let deep = |depth: usize| {
            let text = format!("{{\"task\":\"T\",\"data\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
            Message::read(&text).is_ok()
        };
        assert!(deep(DEPTH - 1) && !deep(DEPTH) && !deep(100_000));
        let text = format!(r#"{{"task":"T","data":"{}\"{}"}}"#, "[".repeat(500), "{".repeat(500));
        assert!(Message::read(&text).is_ok());
    }

    #[test]
    fn errors_have_no_task() {
        let error = Error::not_found("no \"x\"");
        let expected = r#"{"msgtype":"error","code":"not_found","text":"no \"x\"","name":"x","id":1}"#;
        assert_eq!(payload(|frame| write_error(frame, &error, Some("x"), Some("1"))), expected);
    }
}
