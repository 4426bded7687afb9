//! Tasks for chats. Each is a few lines: copy one to write your own.

use serde::{Deserialize, Serialize};
use zephserver_plugin::contract::room::{Address, ids};
use zephserver_plugin::{Access, Error, Request, Result, RunMode, Task, export};

/// Answers its data.
struct TaskEcho(Request);

impl Task for TaskEcho {
    const RUN: RunMode = RunMode::Inline;
    fn new(request: Request) -> Result<Self> {
        Ok(Self(request))
    }
    fn main(&self) -> Result<()> {
        self.0.answer_raw(self.0.raw_data());
        Ok(())
    }
}

/// Does nothing and answers nothing: it keeps a connection busy.
struct TaskPing;

impl Task for TaskPing {
    const RUN: RunMode = RunMode::Inline;
    fn new(_: Request) -> Result<Self> {
        Ok(Self)
    }
    fn main(&self) -> Result<()> {
        Ok(())
    }
}

/// Says `{"text"}` to the room that the peer is in, as `{"from", "text"}`.
struct ChatSay(Request);

#[derive(Deserialize)]
struct Say {
    text: String,
}

#[derive(Serialize)]
struct Said<'a> {
    from: Option<&'a str>,
    text: &'a str,
}

impl Task for ChatSay {
    const RUN: RunMode = RunMode::Inline;
    fn new(request: Request) -> Result<Self> {
        Ok(Self(request))
    }
    fn main(&self) -> Result<()> {
        let Say { text } = self.0.data()?;
        let from = self.0.user().map(|user| user.username.as_str());
        self.0.push(Address::Room(self.0.room()), &Said { from, text: &text })?;
        Ok(())
    }
}

/// Says `{"to", "text"}` to all peers of the users `to`, ids in a list, as `{"from", "text"}`.
struct ChatWhisper(Request);

#[derive(Deserialize)]
struct Whisper {
    #[serde(default, deserialize_with = "ids")]
    to: Option<Vec<String>>,
    text: String,
}

impl Task for ChatWhisper {
    const RUN: RunMode = RunMode::Inline;
    const ACCESS: Access = Access::Authenticated;
    fn new(request: Request) -> Result<Self> {
        Ok(Self(request))
    }
    fn main(&self) -> Result<()> {
        let Whisper { to, text } = self.0.data()?;
        let from = self.0.user().map(|user| user.username.as_str());
        let to = to.ok_or_else(|| Error::invalid("`to` is a list of user ids"))?;
        let to = to.iter().map(String::as_str).collect();
        self.0.push(Address::Users(to), &Said { from, text: &text })?;
        Ok(())
    }
}

export!(tasks: TaskPing, TaskEcho, ChatSay, ChatWhisper);
