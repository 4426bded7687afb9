//! The browser's protocol: JSON messages in, JSON frames out.

use serde::Deserialize;
use serde_json::value::RawValue;
use zephserver_plugin::{Code, Error};

/// A message of a client. Raw parts are passed on as they are.
#[derive(Debug, Deserialize)]
pub struct Message<'a> {
    /// Its presence makes the message a request, whatever its value.
    #[serde(borrow, default, deserialize_with = "present")]
    pub task: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub room: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub id: Option<&'a RawValue>,
}

/// A value that is there, `null` included.
fn present<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(value).map(Some)
}

impl<'a> Message<'a> {
    /// Reads a message.
    pub fn read(text: &'a str) -> Result<Self, Error> {
        if !text.trim_start().starts_with('{') {
            return Err(Error::invalid("a message is a JSON object"));
        }
        serde_json::from_str(text)
            .map_err(|error| Error::invalid(format!("the message is no JSON object: {error}")))
    }

    /// The task's name.
    pub fn task_name(&self) -> Result<String, Error> {
        let name = self.task.and_then(|task| serde_json::from_str(task.get()).ok());
        name.ok_or_else(|| Error::invalid("`task` is a text"))
    }

    /// The room of a hello.
    pub fn room_name(&self) -> Result<String, Error> {
        let name = self.room.and_then(|room| serde_json::from_str::<String>(room.get()).ok());
        let name = name.filter(|name| !name.is_empty());
        name.ok_or_else(|| Error::invalid("a hello names a room: {\"room\": \"lobby\"}"))
    }
}

/// `{"task": …, "data": …, "id": …}`: an answer, and with no id the same as a push.
pub fn answer(task: &str, data: &[u8], id: Option<&str>) -> Vec<u8> {
    let mut frame = Vec::with_capacity(task.len() + data.len() + 32);
    frame.extend_from_slice(b"{\"task\":");
    frame.extend_from_slice(quoted(task).as_bytes());
    frame.extend_from_slice(b",\"data\":");
    frame.extend_from_slice(data);
    end(frame, id)
}

/// An error: never with a key `task`, so that the original's client ignores it.
pub fn error(error: &Error, name: Option<&str>, id: Option<&str>) -> Vec<u8> {
    // A client need not know how services are called here.
    let code = if error.code == Code::Unsupported { Code::NotFound } else { error.code };
    let mut frame =
        format!("{{\"msgtype\":\"error\",\"code\":\"{}\",\"text\":{}", code.name(), quoted(&error.text));
    if let Some(name) = name {
        frame.push_str(",\"name\":");
        frame.push_str(&quoted(name));
    }
    end(frame.into_bytes(), id)
}

fn end(mut frame: Vec<u8>, id: Option<&str>) -> Vec<u8> {
    if let Some(id) = id {
        frame.extend_from_slice(b",\"id\":");
        frame.extend_from_slice(id.as_bytes());
    }
    frame.push(b'}');
    frame
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_parts_pass_unchanged() {
        let text = r#"{"task":"T", "data": {"b": 1e400, "a":[ ]}, "id": 18446744073709551617}"#;
        let message = Message::read(text).unwrap();
        assert_eq!(message.task_name().unwrap(), "T");
        let data = message.data.unwrap().get();
        let frame = answer("T", data.as_bytes(), message.id.map(RawValue::get));
        let expected = r#"{"task":"T","data":{"b": 1e400, "a":[ ]},"id":18446744073709551617}"#;
        assert_eq!(String::from_utf8(frame).unwrap(), expected);
    }

    #[test]
    fn what_is_no_message_is_invalid() {
        for text in ["", "[]", "nul", "{", "\"x\""] {
            assert_eq!(Message::read(text).unwrap_err().code, Code::Invalid, "{text}");
        }
        assert!(Message::read(r#"{"task":3}"#).unwrap().task_name().is_err());
        let null = Message::read(r#"{"task":null,"room":"a"}"#).unwrap();
        assert!(null.task.is_some() && null.task_name().is_err(), "never a hello");
        assert!(Message::read(r#"{"room":""}"#).unwrap().room_name().is_err());
    }

    #[test]
    fn errors_have_no_task() {
        let frame = error(&Error::not_found("no \"x\""), Some("x"), Some("1"));
        let expected = r#"{"msgtype":"error","code":"not_found","text":"no \"x\"","name":"x","id":1}"#;
        assert_eq!(String::from_utf8(frame).unwrap(), expected);
    }
}
