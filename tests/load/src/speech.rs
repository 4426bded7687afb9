//! What talking peers say, and what is said to them: texts, written and read to the letter.

use serde_json::Value;

/// Goes to a room.
pub fn hello(room: usize) -> String {
    format!("{{\"room\":\"talk-{room}\"}}")
}

/// Asks for an echo of the id.
pub fn echo(id: u64) -> String {
    format!("{{\"task\":\"TaskEcho\",\"data\":[{id}],\"id\":{id}}}")
}

/// Says a word to the room. Rooms and numbers tell words of all rooms from each other.
pub fn say(room: usize, number: u64, id: u64) -> String {
    format!("{{\"task\":\"chat.say\",\"data\":{{\"text\":\"{room}.{number}\"}},\"id\":{id}}}")
}

/// What is said to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The answer to an echo.
    Echo(u64),
    /// The answer to a word: it was said.
    Said(u64),
    /// A word of a room.
    Word {
        /// The room that it was said in.
        room: usize,
        /// Which word of that room it is.
        number: u64,
    },
    /// An error instead of an answer.
    Failed(u64),
    /// Who is in the room.
    Notice,
    /// Nothing that a peer expects.
    Other,
}

impl Heard {
    /// Reads the text of a frame.
    pub fn read(text: &[u8]) -> Self {
        echoed(text)
            .or_else(|| word(text))
            .or_else(|| said(text))
            .or_else(|| notice_or_error(text))
            .unwrap_or(Self::Other)
    }
}

fn echoed(text: &[u8]) -> Option<Heard> {
    let rest = text.strip_prefix(b"{\"task\":\"TaskEcho\",\"data\":[")?;
    let (data, rest) = number(rest)?;
    let (id, rest) = number(rest.strip_prefix(b"],\"id\":")?)?;
    (rest == b"}" && data == id).then_some(Heard::Echo(id))
}

fn word(text: &[u8]) -> Option<Heard> {
    let rest = text.strip_prefix(b"{\"task\":\"chat.say\",\"data\":{\"from\":null,\"text\":\"")?;
    let (room, rest) = number(rest)?;
    let (number, rest) = number(rest.strip_prefix(b".")?)?;
    let room = usize::try_from(room).ok()?;
    (rest == b"\"}}").then_some(Heard::Word { room, number })
}

fn said(text: &[u8]) -> Option<Heard> {
    let (id, rest) = number(text.strip_prefix(b"{\"task\":\"chat.say\",\"data\":null,\"id\":")?)?;
    (rest == b"}").then_some(Heard::Said(id))
}

/// Seldom: this one may take its time.
fn notice_or_error(text: &[u8]) -> Option<Heard> {
    let frame: Value = serde_json::from_slice(text).ok()?;
    match frame["msgtype"].as_str()? {
        "error" => Some(Heard::Failed(frame["id"].as_u64()?)),
        "join" | "leave" | "user_list" => Some(Heard::Notice),
        _ => None,
    }
}

/// The number that a text begins with, and what is behind it.
fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let length = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = text.split_at(length);
    let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some((number, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_json() {
        let json = |text: String| serde_json::from_str::<Value>(&text).unwrap();
        assert_eq!(json(hello(3))["room"], "talk-3");
        let echo = json(echo(7));
        assert_eq!(
            (&echo["task"], &echo["data"][0], &echo["id"]),
            (&"TaskEcho".into(), &7.into(), &7.into())
        );
        let say = json(say(3, 12, 8));
        assert_eq!((&say["data"]["text"], &say["id"]), (&"3.12".into(), &8.into()));
    }

    #[test]
    fn what_is_heard_is_told_apart() {
        for (text, heard) in [
            (r#"{"task":"TaskEcho","data":[7],"id":7}"#, Heard::Echo(7)),
            (r#"{"task":"chat.say","data":null,"id":8}"#, Heard::Said(8)),
            (
                r#"{"task":"chat.say","data":{"from":null,"text":"3.12"}}"#,
                Heard::Word { room: 3, number: 12 },
            ),
            (r#"{"msgtype":"error","code":"unavailable","text":"later","id":9}"#, Heard::Failed(9)),
            (r#"{"msgtype":"user_list","data":[]}"#, Heard::Notice),
        ] {
            assert_eq!(Heard::read(text.as_bytes()), heard, "{text}");
        }
    }

    #[test]
    fn what_is_not_right_to_the_letter_is_something_else() {
        for text in [
            "",
            "7",
            r#"{"task":"TaskEcho","data":[6],"id":7}"#,
            r#"{"task":"TaskEcho","data":[7],"id":7,"more":1}"#,
            r#"{"task":"TaskEcho","data":[7]}"#,
            r#"{"task":"chat.say","data":{"from":"Ann","text":"3.12"}}"#,
            r#"{"task":"chat.say","data":{"from":null,"text":"hi"}}"#,
            r#"{"msgtype":"error","code":"unavailable","text":"later"}"#,
            r#"{"task":"TaskEcho","data":[99999999999999999999],"id":7}"#,
        ] {
            assert_eq!(Heard::read(text.as_bytes()), Heard::Other, "{text}");
        }
    }
}
